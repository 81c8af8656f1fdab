"""The foundation models' published weights: where they come from, under which licence, how large they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common import OlivineError


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
        role: what labelgen uses it for.
        licence: of the weights.
        source: the publisher's page.
        files: what is fetched.
    """

    name: str
    role: str
    licence: str
    source: str
    files: tuple[WeightFile, ...]


_DINO = "https://github.com/IDEA-Research/GroundingDINO"
_SAM = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
_HUB = "https://huggingface.co"


def _hub(name: str, role: str, repository: str, files: tuple[str, ...]) -> Weights:
    return Weights(
        name,
        role,
        "Apache-2.0",
        f"{_HUB}/{repository}",
        tuple(WeightFile(f"{name}/{f}", f"{_HUB}/{repository}/resolve/main/{f}") for f in files),
    )


_DINO_HUB = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_SAM_HUB = ("config.json", "model.safetensors", "preprocessor_config.json")

CATALOGUE: tuple[Weights, ...] = (
    Weights(
        "swin-t",
        "detector of grounded-sam (GroundingDINO Swin-T OGC)",
        "Apache-2.0",
        _DINO,
        (
            WeightFile(
                "groundingdino_swint_ogc.pth", f"{_DINO}/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth"
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
            ),
        ),
    ),
    Weights(
        "bert-base-uncased",
        "text encoder of grounded-sam (configuration and vocabulary; its weights are in the detector's file)",
        "Apache-2.0",
        f"{_HUB}/google-bert/bert-base-uncased",
        tuple(
            WeightFile(f"bert-base-uncased/{f}", f"{_HUB}/google-bert/bert-base-uncased/resolve/main/{f}")
            for f in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
        ),
    ),
    Weights(
        "vit-b",
        "segmenter of grounded-sam (SAM ViT-B)",
        "Apache-2.0",
        _SAM,
        (WeightFile("sam_vit_b_01ec64.pth", f"{_SAM_FILES}/sam_vit_b_01ec64.pth"),),
    ),
    Weights(
        "vit-l",
        "segmenter of grounded-sam (SAM ViT-L)",
        "Apache-2.0",
        _SAM,
        (WeightFile("sam_vit_l_0b3195.pth", f"{_SAM_FILES}/sam_vit_l_0b3195.pth"),),
    ),
    Weights(
        "vit-h",
        "segmenter of grounded-sam (SAM ViT-H)",
        "Apache-2.0",
        _SAM,
        (WeightFile("sam_vit_h_4b8939.pth", f"{_SAM_FILES}/sam_vit_h_4b8939.pth"),),
    ),
    _hub("hf-swin-t", "detector of hf-grounded-sam", "IDEA-Research/grounding-dino-tiny", _DINO_HUB),
    _hub("hf-swin-b", "detector of hf-grounded-sam", "IDEA-Research/grounding-dino-base", _DINO_HUB),
    _hub("hf-vit-b", "segmenter of hf-grounded-sam", "facebook/sam-vit-base", _SAM_HUB),
    _hub("hf-vit-l", "segmenter of hf-grounded-sam", "facebook/sam-vit-large", _SAM_HUB),
    _hub("hf-vit-h", "segmenter of hf-grounded-sam", "facebook/sam-vit-huge", _SAM_HUB),
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
