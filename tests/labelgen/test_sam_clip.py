"""sam-clip: CLIP and SigLIP of transformers at reduced size with random weights, from files, and SAM's automatic masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.segments import SamSegments
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.labelgen.verify import verify_labels

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if find_spec("segment_anything") is None:  # imported only where a test runs: it takes seconds
    pytest.skip("segment-anything is not installed", allow_module_level=True)

PHRASES = [("sedan", "car", "car"), ("jeep", "car", "car"), ("asphalt", "road", "road"), ("sky", "sky", None)]
KINDS = ("clip", "siglip")
GRID = 4


@dataclass(frozen=True)
class Files:
    """What a user of sam-clip has: SAM's checkpoint and an encoder's folders, by kind."""

    sam: Path
    clip: Path
    siglip: Path


@pytest.fixture(scope="module")
def files(sure_sam: Path, clip_folders: Path) -> Files:
    return Files(sure_sam, clip_folders / "clip", clip_folders / "siglip")


@pytest.fixture
def settings(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelSettings:
    monkeypatch.setattr(SamSegments, "points_per_side", 3)
    rows = [{"phrase": p, "category": c, "class": k} for p, c, k in PHRASES]
    (tmp_path / "phrases.json").write_text(json.dumps(rows))
    return LabelSettings(
        "sam-clip", sam_checkpoint=files.sam, clip_checkpoint=files.clip, phrases=tmp_path / "phrases.json",
        segments="regions", device="cpu", precision="float32", batch_size=2,
    )  # fmt: skip


def _blocks(image: np.ndarray) -> np.ndarray:
    """Masks without SAM: 0 to 5 regions, as an image's first pixel says; region 2 is covered wholly."""
    height, width = image.shape[:2]
    count = int(image[0, 0, 0]) % 6
    segment = np.zeros((height, width), np.uint16)
    for k in range(count):
        segment[k * 9 : k * 9 + 20, k * 17 : k * 17 + 40] = k + 1
    segment[segment == 2] = 0
    return segment


@pytest.fixture(params=KINDS)
def encoder(request, files: Files):
    from olivine.labelgen.sam_clip import load_encoder

    return load_encoder(getattr(files, request.param), torch.device("cpu"))


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (90, 160, 3), np.uint8) for _ in range(3)]


def _package(folder: Path):
    """The package's own model and processor, loaded as its documentation says."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return transformers.AutoModel.from_pretrained(folder).eval(), processor


def _pixels(folder: Path, processor, image: np.ndarray):
    whole = {"do_center_crop": False} if folder.name == "clip" else {}
    return processor(
        Image.fromarray(image), size={"height": 64, "width": 64}, return_tensors="pt", **whole
    ).pixel_values


def _embedding(found):
    """A tensor in transformers 4, in 5 the pooled output of a record."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def _last_layer(model, hidden):
    """CLIP's last layer, of hidden states [B, T, C], without any mask."""
    if int(transformers.__version__.split(".")[0]) < 5:
        return model.vision_model.encoder.layers[-1](hidden, None, None)[0]
    return model.vision_model.encoder.layers[-1](hidden, None)


@torch.inference_mode()
def test_the_region_that_is_the_whole_image_has_the_packages_own_image_feature(encoder, images) -> None:
    model, processor = _package(encoder._folder)
    share = torch.ones(1, GRID**2)
    for image, tokens in zip(images, encoder.tokens(images)):
        expected = _embedding(model.get_image_features(_pixels(encoder._folder, processor, image)))
        torch.testing.assert_close(encoder.pool(tokens, share), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.05


@torch.inference_mode()
def test_a_region_of_whole_patches_is_the_packages_pooling_of_those_patches_alone(encoder, images) -> None:
    """The package's own last layer, or pooling head, on a shorter sequence: no mask anywhere."""
    model, processor = _package(encoder._folder)
    patches = [[0, 1, 4, 5], [3], list(range(8, 16))]
    share = torch.zeros(3, GRID**2)
    for row, chosen in zip(share, patches):
        row[chosen] = 1
    ours = encoder.pool(encoder.tokens(images[:1])[0], share)
    pixels = _pixels(encoder._folder, processor, images[0])
    for row, chosen in zip(ours, patches):
        if encoder.kind == "CLIP":
            before = model.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
            few = before[:, [0, *(1 + k for k in chosen)]]
            last = _last_layer(model, few)
            expected = model.visual_projection(model.vision_model.post_layernorm(last[:, 0]))[0]
        else:
            expected = model.vision_model.head(model.vision_model(pixels).last_hidden_state[:, chosen])[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
    assert (ours[0] - ours[1]).norm() > 0.1


@torch.inference_mode()
def test_a_patch_that_a_region_covers_by_half_counts_half_as_much_as_one_twice_there(encoder, images) -> None:
    """Attention over tokens t, t and u is attention over t and u with u's weight halved."""
    tokens = encoder.tokens(images[:1])[0]
    start = len(tokens) - GRID**2
    twice = torch.cat([tokens[:start], tokens[[start, start, start + 1]]])
    share = torch.zeros(1, GRID**2)
    share[0, 0], share[0, 1] = 0.8, 0.4
    expected = encoder.pool(twice, torch.ones(1, 3))
    ours = encoder.pool(tokens, share)
    if encoder.kind == "CLIP":  # its class token weighs too, as much as one full patch
        twice = torch.cat([tokens[:start], tokens[:start], tokens[[start, start, start + 1]]])
        last = _last_layer(encoder.model, twice[None])
        expected = encoder.model.visual_projection(encoder.model.vision_model.post_layernorm(last[:, 0]))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_shares_are_counted_pixel_by_pixel() -> None:
    from olivine.labelgen.sam_clip import patch_shares

    rng = np.random.default_rng(3)
    for height, width in ((90, 160), (64, 64), (3, 5)):
        segment = rng.integers(0, 4, (height, width)).astype(np.uint16)
        expected, whole = np.zeros((3, 16)), np.zeros(16)
        for y in range(height):
            for x in range(width):
                patch = (y * 4 // height) * 4 + x * 4 // width
                whole[patch] += 1
                if segment[y, x]:
                    expected[segment[y, x] - 1, patch] += 1
        ours = patch_shares(segment, 3, 4)
        np.testing.assert_allclose(ours, expected / np.maximum(whole, 1), rtol=1e-6)


@torch.inference_mode()
def test_the_text_table_is_the_packages_own_text_tower_over_the_templates(encoder) -> None:
    from olivine.labelgen.sam_clip import TEMPLATES, embed_phrases

    phrases = ["pickup truck", "a person on a bicycle", "SUV"]
    table = embed_phrases(encoder, phrases)
    model, tokenizer = _package(encoder._folder)[0], transformers.AutoTokenizer.from_pretrained(encoder._folder)
    for phrase, row in zip(phrases, table):
        found = []
        for template in TEMPLATES:
            text = template.format(phrase).lower()
            if encoder.kind == "CLIP":
                one = _embedding(model.get_text_features(**tokenizer([text], return_tensors="pt")))
            else:
                ids = tokenizer([text], padding="max_length", max_length=64, return_tensors="pt").input_ids
                one = _embedding(model.get_text_features(input_ids=ids))
            one = one[0].double().numpy()
            found.append(one / np.linalg.norm(one))
        mean = np.mean(found, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    assert len(TEMPLATES) == 14 and np.abs(table @ table.T - 1).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_regions_as_the_importers_comes_out_twice_the_same(
    kind: str, settings: LabelSettings, files: Files, make_world: Callable, tmp_path: Path, monkeypatch
) -> None:
    world = make_world(2, 2)
    monkeypatch.setattr(SamSegments, "segment", lambda self, image: _blocks(image))
    settings = replace(settings, clip_checkpoint=getattr(files, kind))
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (8, [])
    store = open_store(tmp_path / "labels")
    assert store.text.phrases == tuple(p for p, _, _ in PHRASES) and store.text.classes == ("car", "car", "road", "")
    assert store.text.model.startswith(f"{kind} ") and store.text.model.endswith("14 templates")
    values = np.array([0, *(DEFAULT_VOCABULARY.value(k) if k else 0 for _, _, k in PHRASES)])
    counts = set()
    for frame in world.index.frames():
        for camera in frame.cameras:
            image = np.asarray(Image.open(frame.image_path(camera)).convert("RGB"))
            segment = store.segment_map(camera, frame.scene)
            blocks = _blocks(image)
            regions = store.regions(camera, segment, frame.scene)
            number = dict(zip(np.unique(blocks[blocks > 0]), range(1, 6)))
            assert np.array_equal(segment, np.vectorize(lambda v: number.get(v, 0))(blocks))  # noqa: B023
            assert len(regions.phrase) == len(number)
            counts.add(len(number))
            nearest = (regions.feature.astype(np.float64) @ store.text.embedding.T).argmax(1)
            assert np.array_equal(regions.phrase, nearest)
            row = np.concatenate([[0], regions.phrase.astype(int) + 1])
            assert np.array_equal(store.label_map(camera, frame.scene), values[row[segment]])
    assert 0 in counts and len(counts) > 2
    generate_labels(world.index, tmp_path / "again", settings)
    for path in sorted((tmp_path / "labels").rglob("*")):
        if path.is_file() and "frames" not in path.parts:
            again = tmp_path / "again" / path.relative_to(tmp_path / "labels")
            assert path.read_bytes() == again.read_bytes(), path
    assert verify_labels(world.index, tmp_path / "labels", settings).failures == []


def test_sams_own_masks_become_regions(settings: LabelSettings, make_world: Callable, tmp_path: Path) -> None:
    world = make_world(1, 1)
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (2, [])
    store = open_store(tmp_path / "labels")
    masks = SamSegments(settings)
    masks.prepare(None)  # type: ignore[arg-type]
    for frame in world.index.frames():
        for camera in frame.cameras:
            segment = store.segment_map(camera, frame.scene)
            image = np.asarray(Image.open(frame.image_path(camera)).convert("RGB"))
            assert np.array_equal(segment > 0, masks.segment(image) > 0) and segment.any()
            assert len(store.regions(camera, segment, frame.scene).phrase) == segment.max()


@torch.inference_mode()
def test_half_precision_stays_close(encoder, images) -> None:
    from olivine.labelgen.encoders import number_format

    share = torch.rand(5, GRID**2, generator=torch.Generator().manual_seed(0))
    full = encoder.pool(encoder.tokens(images[:1])[0], share)
    with number_format(torch.device("cpu"), "bfloat16"):
        tokens = encoder.tokens(images[:1])[0]
    half = encoder.pool(tokens.float(), share)
    assert not torch.equal(full, half)
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.995


def test_the_manifest_names_every_file_of_weights_and_the_text_table(
    settings: LabelSettings, files: Files, make_world: Callable, tmp_path: Path, monkeypatch
) -> None:
    import hashlib

    monkeypatch.setattr(SamSegments, "segment", lambda self, image: _blocks(image))
    generate_labels(make_world(1, 1).index, tmp_path / "labels", settings)
    manifest = open_store(tmp_path / "labels").manifest
    names = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
    expected = {f"clip {name}": files.clip / name for name in names} | {"sam sam.pth": files.sam}
    assert manifest["weights"] == {k: hashlib.sha256(p.read_bytes()).hexdigest() for k, p in expected.items()}
    assert manifest["settings"]["segment_settings"] == {"points_per_side": 3}
    known = manifest["settings"]["regions"]
    assert known["model"] == f"clip {manifest['weights']['clip model.safetensors'][:12]}, 14 templates"
    assert (known["dimension"], known["phrases"]) == (24, 4)


def test_the_second_run_loads_no_network_and_writes_nothing(
    settings: LabelSettings, make_world: Callable, tmp_path: Path, monkeypatch
) -> None:
    world = make_world(1, 2)
    monkeypatch.setattr(SamSegments, "segment", lambda self, image: _blocks(image))
    generate_labels(world.index, tmp_path / "labels", settings)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "labels").rglob("*") if p.is_file()}
    monkeypatch.setattr("olivine.labelgen.sam_clip.load_encoder", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(SamSegments, "prepare", lambda *_: pytest.fail("loaded"))
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.images_kept) == (0, 4)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "labels").rglob("*") if p.is_file()}


def test_a_run_that_goes_on_takes_the_table_of_the_folder_not_its_own(
    settings: LabelSettings, make_world: Callable, tmp_path: Path, monkeypatch
) -> None:
    """Another machine's text tower has other last bits: here, all of them."""
    from olivine.labelgen import sam_clip

    world = make_world(2, 1)
    monkeypatch.setattr(SamSegments, "segment", lambda self, image: _blocks(image))
    generate_labels(world.index, tmp_path / "labels", settings, part=(0, 2))
    known = open_store(tmp_path / "labels").text
    other = np.ones((4, 24), np.float32) / np.sqrt(24, dtype=np.float32)
    monkeypatch.setattr(sam_clip, "embed_phrases", lambda *_: other)
    assert generate_labels(world.index, tmp_path / "labels", settings).images == 2
    assert open_store(tmp_path / "labels").text.digest == known.digest
    (tmp_path / "labels" / "text.npy").write_bytes(b"no table")  # it is made again, and is another one
    with pytest.raises(OlivineError, match=r"made with other settings: settings\.regions\.digest was "):
        generate_labels(world.index, tmp_path / "labels", settings)


def test_a_text_table_of_another_model_is_refused_by_name_and_digest(
    settings: LabelSettings, files: Files, make_world: Callable, tmp_path: Path, monkeypatch
) -> None:
    world = make_world(1, 1)
    monkeypatch.setattr(SamSegments, "segment", lambda self, image: _blocks(image))
    siglip = replace(settings, clip_checkpoint=files.siglip)
    generate_labels(world.index, tmp_path / "clip", settings)
    generate_labels(world.index, tmp_path / "siglip", siglip)
    known, other = (open_store(tmp_path / name).text for name in ("clip", "siglip"))
    for name in ("text.json", "text.npy"):
        shutil.copyfile(tmp_path / "siglip" / name, tmp_path / "clip" / name)
    with pytest.raises(OlivineError) as caught:
        _ = open_store(tmp_path / "clip").text
    message = str(caught.value)
    for part in (f"is of {other.model} (", other.digest[:12], f"of {known.model} (", known.digest[:12]):
        assert part in message
    assert "\n" not in message
    # labelgen itself puts the right one back, and does not go on with another encoder in the same folder.
    generate_labels(world.index, tmp_path / "clip", settings)
    assert open_store(tmp_path / "clip").text.digest == known.digest
    with pytest.raises(OlivineError, match="made with other settings"):
        generate_labels(world.index, tmp_path / "clip", siglip)


def _damage(name: str, change: Callable[[Path], None]) -> Callable[[Path, LabelSettings], LabelSettings]:
    def spoil(folder: Path, settings: LabelSettings) -> LabelSettings:
        shutil.copytree(settings.clip_checkpoint, folder / "spoilt")
        change(folder / "spoilt" / name)
        return replace(settings, clip_checkpoint=folder / "spoilt")

    return spoil


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_damage("model.safetensors", Path.unlink), r"clip: no .*spoilt/model\.safetensors.*fetch clip-vit-l"),
        (_damage("preprocessor_config.json", Path.unlink), r"no .*spoilt/preprocessor_config\.json"),
        (_damage("tokenizer.json", lambda p: [p.unlink(), p.with_name("vocab.json").unlink()]),
         r"no .*spoilt/tokenizer\.json or vocab\.json"),
        (_damage("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-9])), "spoilt: is no CLIP"),
        (_damage("config.json", lambda p: p.write_text('{"model_type": "bert"}')), "type 'bert', neither clip nor siglip"),
        (_damage("config.json", lambda p: p.write_text("{")), r"config\.json"),
        (_damage("config.json", lambda p: p.write_text('{"model_type": "clip"}')), "spoilt: is no CLIP"),
        (_damage("config.json", lambda p: p.write_text('{"model_type": "siglip"}')), "spoilt: is no SigLIP"),
        (_damage("preprocessor_config.json", lambda p: p.write_text("[")), r"preprocessor_config\.json is none"),
        (_damage("tokenizer.json", lambda p: p.write_text("{}")), "is no tokenizer"),
        (lambda f, s: replace(s, sam_checkpoint=f / "none.pth"), r"sam: no .*none\.pth.*fetch vit-h"),
        (lambda f, s: replace(s, sam_checkpoint=s.phrases), r"phrases\.json"),
        (lambda f, s: replace(s, phrases=_write(f / "p.json", "[]")), r"p\.json: names 0 phrases"),
        (lambda f, s: replace(s, phrases=_write(f / "p.json", '[{"phrase": "x"}]')), r"p\.json"),
        (lambda f, s: replace(s, phrases=f / "none.json"), r"none\.json"),
        (lambda f, s: replace(s, phrases=_write(f / "p.json", '[{"phrase": "x", "category": "y", "class": "ufo"}]')),
         r"p\.json: class 'ufo' is not a class of the prompts"),
        (lambda f, s: replace(s, phrases=_write(f / "p.json", json.dumps([{"phrase": "x" * 99, "category": "y",
                                                                           "class": None}]))),
         r"tokens, the text encoder reads 64"),
        (lambda f, s: replace(s, segments="slic"), "the segments of sam-clip are regions"),
        (lambda f, s: replace(s, prompts=_write(f / "v.yaml", "- {name: lorry}")),
         r"uov\.json: class 'barrier' is not|phrases\.json: class 'car' is not"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(
    spoil: Callable, message: str, settings: LabelSettings, make_world: Callable, tmp_path: Path
) -> None:
    world = make_world(1, 1)
    with pytest.raises(OlivineError, match=message) as error:
        generate_labels(world.index, tmp_path / "labels", spoil(tmp_path, settings))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "labels").rglob("*.png"))


def test_the_phrases_are_uovs_without_others(settings: LabelSettings) -> None:
    from olivine.labelgen.sam_clip import make_sam_clip

    labeler = make_sam_clip(replace(settings, phrases=None), DEFAULT_VOCABULARY, None)
    assert len(labeler._phrases) == 175 and labeler._phrases[7] == ("jeep", "car", "car")
