"""The foundation models' published weights, of labelers and image encoders: source, licence, size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common import OlivineError, sha256_file


@dataclass(frozen=True)
class WeightFile:
    """One file of a model.

    Attributes:
        path: relative to the weights folder.
        url: where it is published.
        size: bytes; 0 where the publisher's figure is not known.
        sha256: as published; empty where the publisher gives none that could be checked.
    """

    path: str
    url: str
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """A model's weights.

    Attributes:
        name: as in ``olivine weights fetch NAME``.
        role: what labelgen or pre-training uses it for.
        licence: of the weights.
        source: the publisher's page.
        files: what is fetched.
        gated: the publisher gives the files only to accounts that accepted the licence on the page.
    """

    name: str
    role: str
    licence: str
    source: str
    files: tuple[WeightFile, ...]
    gated: bool = False


_DINO = "https://github.com/IDEA-Research/GroundingDINO"
_SAM = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
_HUB = "https://huggingface.co"


_BERT = f"{_HUB}/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594"


def _sam(letter: str, tag: str, size: int, sha256: str) -> Weights:
    file = f"sam_vit_{letter}_{tag}.pth"
    return Weights(
        f"vit-{letter}",
        f"segmenter of grounded-sam (SAM ViT-{letter.upper()})",
        "Apache-2.0",
        _SAM,
        (WeightFile(file, f"{_SAM_FILES}/{file}", size, sha256),),
    )


def _hub(
    name: str, role: str, repository: str, files: tuple[str, ...], licence: str = "Apache-2.0", gated: bool = False
) -> Weights:
    return Weights(
        name,
        role,
        licence,
        f"{_HUB}/{repository}",
        tuple(WeightFile(f"{name}/{f}", f"{_HUB}/{repository}/resolve/main/{f}") for f in files),
        gated,
    )


def _encoder(size: str, patch: int, repository: str, licence: str, gated: bool) -> Weights:
    name = f"dinov{2 if patch == 14 else 3}-vit{size}{patch}"
    url = f"{_HUB}/{repository}"
    file = WeightFile(f"{name}/model.safetensors", f"{url}/resolve/main/model.safetensors")
    return Weights(name, f"image encoder {name} of pretrain and features", licence, url, (file,), gated)


_DINO_HUB = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_MM, _SAM2 = "detector of mm-grounded-sam2", "segmenter of mm-grounded-sam2 (SAM 2.1)"
_SAM_HUB = ("config.json", "model.safetensors", "preprocessor_config.json")
_HQ = "segmenter of grounded-sam-hq"
_TOKENS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_TEXT_HUB = (*_SAM_HUB, *_TOKENS)
_SAM3_HUB = ("config.json", "model.safetensors", "processor_config.json", *_TOKENS)

# Sizes and digests are those that several independent projects pin for the same files.
CATALOGUE: tuple[Weights, ...] = (
    Weights(
        "swin-t",
        "detector of grounded-sam (GroundingDINO Swin-T OGC)",
        "Apache-2.0",
        _DINO,
        (
            WeightFile(
                "groundingdino_swint_ogc.pth",
                f"{_DINO}/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth",
                693_997_677,
                "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
            ),
        ),
    ),
    Weights(
        "swin-b",
        "detector of grounded-sam (GroundingDINO Swin-B)",
        "Apache-2.0",
        _DINO,
        (
            WeightFile(
                "groundingdino_swinb_cogcoor.pth",
                f"{_DINO}/releases/download/v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth",
                938_057_991,
                "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
            ),
        ),
    ),
    Weights(
        "bert-base-uncased",
        "text encoder of grounded-sam (configuration, vocabulary; its weights are in the detector's file)",
        "Apache-2.0",
        f"{_HUB}/google-bert/bert-base-uncased",
        (
            WeightFile("bert-base-uncased/config.json", f"{_BERT}/config.json", 570),
            WeightFile("bert-base-uncased/tokenizer_config.json", f"{_BERT}/tokenizer_config.json"),
            WeightFile(
                "bert-base-uncased/vocab.txt",
                f"{_BERT}/vocab.txt",
                231_508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        ),
    ),
    _sam("b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam("l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam("h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _hub(
        "hf-swin-t", "detector of hf-grounded-sam and grounded-sam-hq", "IDEA-Research/grounding-dino-tiny", _DINO_HUB
    ),
    _hub(
        "hf-swin-b", "detector of hf-grounded-sam and grounded-sam-hq", "IDEA-Research/grounding-dino-base", _DINO_HUB
    ),
    _hub("hf-vit-b", "segmenter of hf-grounded-sam", "facebook/sam-vit-base", _SAM_HUB),
    _hub("hf-vit-l", "segmenter of hf-grounded-sam", "facebook/sam-vit-large", _SAM_HUB),
    _hub("hf-vit-h", "segmenter of hf-grounded-sam", "facebook/sam-vit-huge", _SAM_HUB),
    _hub("mm-swin-t", _MM, "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", _DINO_HUB),
    _hub("mm-swin-b", _MM, "openmmlab-community/mm_grounding_dino_base_all", _DINO_HUB),
    _hub("sam2.1-hiera-tiny", _SAM2, "facebook/sam2.1-hiera-tiny", _SAM_HUB),
    _hub("sam2.1-hiera-large", _SAM2, "facebook/sam2.1-hiera-large", _SAM_HUB),
    _hub("sam-hq-vit-b", _HQ, "syscv-community/sam-hq-vit-base", _SAM_HUB),
    _hub("sam-hq-vit-l", _HQ, "syscv-community/sam-hq-vit-large", _SAM_HUB),
    _hub("sam-hq-vit-h", _HQ, "syscv-community/sam-hq-vit-huge", _SAM_HUB),
    _hub("sam3", "the network of sam3", "facebook/sam3", _SAM3_HUB, "SAM License", gated=True),
    _encoder("s", 14, "facebook/dinov2-small", "Apache-2.0", gated=False),
    _encoder("b", 14, "facebook/dinov2-base", "Apache-2.0", gated=False),
    _encoder("l", 14, "facebook/dinov2-large", "Apache-2.0", gated=False),
    _encoder("s", 16, "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3 License", gated=True),
    _encoder("b", 16, "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 License", gated=True),
    _encoder("l", 16, "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 License", gated=True),
    _hub("clip-vit-l", "encoder of sam-clip", "openai/clip-vit-large-patch14", _TEXT_HUB, "MIT"),
    _hub("siglip2-so400m", "encoder of sam-clip", "google/siglip2-so400m-patch14-384", _TEXT_HUB),
)


def find_weights(name: str) -> Weights:
    """The catalogue's entry of a name.

    Raises:
        OlivineError: there is none.
    """
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise OlivineError(f"no weights are called {name!r}", remedy=f"choose from {', '.join(e.name for e in CATALOGUE)}")


@dataclass(frozen=True)
class Needed:
    """One file or folder of weights that a labeler needs.

    Attributes:
        role: for the manifest and the messages.
        option: the command's option that names it.
        path: where it was looked for.
        entry: the catalogue's name, for ``olivine weights fetch``.
        files: files that must be in ``path`` where it is a folder; one of each group.
    """

    role: str
    option: str
    path: Path
    entry: str
    files: tuple[tuple[str, ...], ...] = ()

    def missing(self) -> list[str]:
        """What is not there; empty when all is."""
        if not self.files:
            return [] if self.path.is_file() else [str(self.path)]
        return [
            str(self.path / " or ".join(group))
            for group in self.files
            if not any((self.path / f).is_file() for f in group)
        ]

    def present_files(self) -> list[Path]:
        """The files that are there and count, for the manifest's SHA-256."""
        if not self.files:
            return [self.path]
        return [next(self.path / f for f in group if (self.path / f).is_file()) for group in self.files]


def weights_digests(needed: dict[str, Needed]) -> dict[str, str]:
    """SHA-256 of every file, by role and file name.

    Raises:
        OlivineError: a file has a published file's name and another digest: it is damaged or not what its name says.
    """
    published = {Path(f.path).name: f.sha256 for entry in CATALOGUE for f in entry.files if f.path.endswith(".pth")}
    digests = {}
    for role, entry in needed.items():
        for file in entry.present_files():
            digest = sha256_file(file)
            if published.get(file.name, digest) != digest:
                raise OlivineError(
                    f"has the SHA-256 {digest}, the published file of this name has {published[file.name]}",
                    where=file,
                    remedy=f"fetch it again with olivine weights fetch {entry.entry}, or rename it if it is your own",
                )
            digests[f"{role} {file.name}"] = digest
    return digests


def require_weights(labeler: str, needed: list[Needed]) -> None:
    """Raise one error that says which files are missing, where they were looked for and how to get them."""
    absent = [(n, missing) for n in needed if (missing := n.missing())]
    if not absent:
        return
    what = "; ".join(f"{n.role}: no {' and no '.join(missing)}" for n, missing in absent)
    names = " ".join(n.entry for n, _ in absent)
    options = ", ".join(n.option for n, _ in absent)
    urls = ", ".join(
        find_weights(n.entry).files[0].url if len(find_weights(n.entry).files) == 1 else find_weights(n.entry).source
        for n, _ in absent
    )
    raise OlivineError(
        f"--labeler {labeler} needs weights that are not here: {what}",
        remedy=f"fetch them with: olivine weights fetch {names} (from {urls}), or name files you have with {options}",
    )
