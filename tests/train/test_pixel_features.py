"""Stored feature maps are the encoder's, and a step does not see the difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from olivine.cli import main
from olivine.common import OlivineError
from olivine.pairs.feature_maps import FeatureMaps
from olivine.pairs.shards import open_shards
from olivine.train.augment import generator_of, make_sample
from olivine.train.batch import collate
from olivine.train.build import build_model, classes_of_pairs, columns_of
from olivine.train.encoder import ImageEncoder
from olivine.train.encoders._store import store_maps
from olivine.train.encoders._stored import StoredFeatures
from olivine.train.loop import pretrain
from olivine.train.pixel_features import EncodedFeatures, in_whole_image, open_pixel_features
from olivine.train.prepare import prepare_pass
from olivine.train.settings import PretrainSettings

NO_CROP = ("augment.crop=false",)
WHOLE = (*NO_CROP, "augment.flip_image=0")
Make = Callable[..., PretrainSettings]


def stored(shards: Path, settings: PretrainSettings, folder: Path, dtype: str = "float32", **options: bool) -> Path:
    return store_maps(open_shards(shards), settings, ImageEncoder("small"), folder, dtype, **options)[0].folder


def step(settings: PretrainSettings, shards: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step on two rotated and cut frames; images only where they are needed."""
    records = open_shards(shards)
    pixels = open_pixel_features(settings, records, torch.device("cpu"))
    size, columns = (settings.image.height, settings.image.width), columns_of(settings)
    assert ("image" in columns) == (settings.image.stored is None)
    samples = [make_sample(records[i], i, size, settings.augment, generator_of(3, 1, i), columns) for i in (4, 1)]
    assert len(samples[0].points) < len(records[4].points)  # a cuboid was dropped: rows and places differ
    model, classes = (
        build_model(settings, pixels.channels, classes_of_pairs(records, settings)[0], 4),
        len(records.class_count),
    )
    statistics = model.method.statistics
    g = torch.nn.functional.normalize(torch.randn(100, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    label = torch.arange(100) % classes
    sums = torch.zeros(classes, 65).index_add_(0, label, torch.nn.functional.pad(g, (0, 1), value=1)).double()
    statistics.update(sums, sums[:, -1].long())
    count = torch.as_tensor(records.class_count)
    loss, terms, _ = model(prepare_pass(collate(samples), model, pixels, count), 2, 0)
    assert set(terms) == {"ppkt", "wcd", "scr"}
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("flips", ["none", "some"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 2e-2)])
def test_a_step_with_stored_maps_is_a_step_with_the_encoder_on_the_same_views(
    small_shards: Path, small_settings: Make, tmp_path: Path, dtype: str, tolerance: float, flips: str
) -> None:
    changes = [*(WHOLE if flips == "none" else NO_CROP), "run.group=2", "augment.cuboid_min_pairs=1"]
    changes.append("augment.cuboid=0.9")
    settings = small_settings(small_shards, *changes)
    folder = stored(small_shards, settings, tmp_path, dtype, mirrored=flips == "some")
    expected, expected_gradients = step(settings, small_shards)
    loss, gradients = step(small_settings(small_shards, *changes, f"image.stored={folder}"), small_shards)
    assert abs(loss - expected) <= tolerance * abs(expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        error = torch.linalg.vector_norm(gradient - expected_gradients[name])
        assert error <= 100 * tolerance * torch.linalg.vector_norm(expected_gradients[name]) + 1e-6, name


def test_a_crop_of_the_whole_image_is_the_whole_image(small_shards: Path, small_settings: Make, tmp_path: Path) -> None:
    changes = ["augment.crop_area=[1, 1]", "augment.crop_aspect=[1.7777, 1.7778]", "run.group=2"]
    changes += ["augment.cuboid_min_pairs=1", "augment.cuboid=0.9"]
    settings = small_settings(small_shards, *changes)
    folder = stored(small_shards, settings, tmp_path, mirrored=True)
    expected, expected_gradients = step(settings, small_shards)
    loss, gradients = step(small_settings(small_shards, *changes, f"image.stored={folder}"), small_shards)
    assert abs(loss - expected) <= 1e-6 * abs(expected)
    for name, gradient in gradients.items():
        error = torch.linalg.vector_norm(gradient - expected_gradients[name])
        assert error <= 1e-4 * torch.linalg.vector_norm(expected_gradients[name]) + 1e-6, name


POINTWISE = """
import torch
from olivine.train.encoder import Encoder

class Pointwise(Encoder):
    channels, stride = 4, 1
    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1, 0, 0], [0, 1, 0], [-2, 1, 0], [1, 3, 1.0]])[:, :, None, None])
            self.conv.bias.zero_()

    def forward(self, x):
        return self.conv(x)
"""


def ramp(data: bytes, crop: tuple[int, int, int, int], flip: bool, out: np.ndarray) -> None:
    """A crop, resized, of an image whose colours are twice its pixels' coordinates: exact where these are whole."""
    left, top, width, height = crop
    u = 2 * (left + (np.arange(out.shape[1]) + 0.5) * width / out.shape[1] - 0.5)
    v = 2 * (top + (np.arange(out.shape[0]) + 0.5) * height / out.shape[0] - 0.5)
    out[..., 0], out[..., 1], out[..., 2] = (u[::-1] if flip else u)[None, :], v[:, None], 7
    assert np.array_equal(out[0, :, 0], u[::-1] if flip else u) and np.array_equal(out[:, 0, 1], v)


def test_features_in_a_crop_are_those_of_the_whole_image_at_the_same_places(
    small_shards: Path, small_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that sees single pixels, on an image that halving leaves what it is: then nothing is lost by a crop."""
    (tmp_path / "pointwise.py").write_text(POINTWISE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("olivine.train.augment.decode_crop", ramp)
    # Crops of 64 x 36 whole pixels of images of 128 x 72, at any place: the network's own size.
    changes = ["image.encoder=pointwise:Pointwise", "image.weights=random", "image.height=36", "image.width=64"]
    changes += ["augment.crop_area=[0.25, 0.25]", "augment.crop_aspect=[1.7777, 1.7778]", "augment.crop_min_pairs=0"]
    settings, shards = small_settings(small_shards, *changes), open_shards(small_shards)
    encoder = ImageEncoder("pointwise:Pointwise", "random")
    folder = store_maps(shards, settings, encoder, tmp_path / "maps", "float32", mirrored=True)[0].folder
    reading = small_settings(small_shards, *changes, f"image.stored={folder}")
    sources = EncodedFeatures(encoder, "patch"), StoredFeatures(folder, reading, shards)
    batches = [
        collate(
            [make_sample(shards[i], i, (36, 64), s.augment, generator_of(3, 2, i), columns_of(s)) for i in range(5)]
        )
        for s in (settings, reading)
    ]
    encoded, whole = batches
    assert "image" not in whole.columns and "image_crop" not in encoded.columns
    for name in ("points", "pair_point", "pair_camera", "pair_uv", "pair_label"):
        assert torch.equal(getattr(encoded, name), getattr(whole, name)), name  # the same pairs at the same pixels
    assert sorted(whole.image_mirrored.unique().tolist()) == [False, True]
    place = in_whole_image(whole.pair_uv, whole.image_crop[whole.pair_camera], (36, 64))
    assert len(whole.image_crop[:, :2].unique(dim=0)) == 10
    inside = torch.nonzero(((place >= 0) & (place <= torch.tensor([63, 35]))).all(1))[:, 0]  # not clamped at the border
    assert len(inside) > 500
    crop, whole_map = (source(batch, inside) for source, batch in zip(sources, batches))
    assert float((crop - whole_map).abs().max()) <= 1e-6 * float(crop.abs().max())
    assert float(crop.std(0).min()) > 10
    # The same of segments' means, in images whose crop does not touch the border.
    number = torch.arange(8).repeat_interleave(8).expand(36, 64)[None] - 1
    head, (height, width) = torch.nn.Linear(4, 3), (36, 64)
    for image in range(10):
        left, top, w, h = whole.image_crop[image].tolist()
        if min(left, top, 1 - left - w, 1 - top - h) == 0:
            continue
        (mean, _, _), (other, feature, _) = (
            source.mean_by_segment(batch, slice(image, image + 1), number, 7, head, encoder=True)
            for source, batch in zip(sources, batches)
        )
        torch.testing.assert_close(other, mean, rtol=1e-5, atol=1e-6)
        # The encoder's own mean is over the cells of the whole image's map that lie in the crop, 32 x 18 of them.
        members: list[list[Tensor]] = [[] for _ in range(7)]
        whole_image_map = sources[1].maps(whole, torch.tensor([image]))[0]
        for row in range(height):
            for column in range(width):
                v, u = (row + 0.5 - top * height) / h, (column + 0.5 - left * width) / w
                if 0 <= v < height and 0 <= u < width and number[0, int(v), int(u)] >= 0:
                    members[number[0, int(v), int(u)]].append(whole_image_map[:, row, column])
        assert sum(map(len, members)) == 18 * 28
        expected = torch.stack([torch.stack(rows).mean(0) for rows in members])
        torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-4)


def test_maps_are_the_encoders_of_each_image_and_of_the_mirrored_one(
    small_shards: Path, small_settings: Make, tmp_path: Path
) -> None:
    settings = small_settings(small_shards, *WHOLE)
    maps = FeatureMaps(stored(small_shards, settings, tmp_path, mirrored=True))
    shards, encoder = open_shards(small_shards), ImageEncoder("small")
    for shard, position, frame in ((0, 1, 1), (1, 1, 4)):  # three frames and two
        sample = make_sample(shards[frame], frame, (40, 72), settings.augment, generator_of(0, 0, 0), ["image"])
        assert sample.frame == frame
        for camera in (0, 1):
            image = torch.from_numpy(sample.image[camera : camera + 1])
            for mirrored, view in ((False, image), (True, image.flip(2))):
                found = maps.read(shard, position, camera, mirrored)
                expected = encoder(view)[0].permute(1, 2, 0).numpy()
                assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
            plain, mirrored = (maps.read(shard, position, camera, m) for m in (False, True))
            assert np.abs(plain[:, ::-1] - mirrored).max() > 0.1 * np.abs(plain).max()  # never a mirrored map


def test_int8_is_within_half_a_step_of_each_channel(tmp_path: Path) -> None:
    identity = {"image_digest": "", "encoder": "", "weights": "", "images": [4, 8], "map": [5, 6, 7]}
    maps = FeatureMaps.create(tmp_path, {**identity, "cameras": 1, "dtype": "int8", "mirrored": False})
    scale = 10.0 ** np.arange(-3, 4)
    values = (np.random.default_rng(0).normal(size=(2, 1, 1, 5, 6, 7)) * scale).astype(np.float32)
    values[1, ..., 3] = 0  # a channel that says nothing
    maps.write(0, values)
    for frame in (0, 1):
        found, expected = maps.read(0, frame, 0, False), values[frame, 0, 0]
        assert (np.abs(found - expected) <= 0.5001 * np.abs(expected).max((0, 1)) / 127).all()
    assert (maps.folder / "maps-00000.bin").stat().st_size == 2 * (5 * 6 * 7 + 4 * 7)


def test_a_run_reads_stored_maps_and_needs_neither_image_nor_weights(
    small_shards: Path, small_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (*NO_CROP, "run.steps=3", f"data.validation={small_shards}", "run.validate_epochs=1")
    settings = small_settings(small_shards, *changes)
    stored(small_shards, settings, tmp_path / "features", mirrored=True)
    with_encoder = pretrain(settings, tmp_path / "a")
    monkeypatch.setattr("olivine.train.augment.decode_crop", None)
    monkeypatch.setattr(ImageEncoder, "__init__", None)
    without = pretrain(small_settings(small_shards, *changes, f"image.stored={tmp_path / 'features'}"), tmp_path / "b")
    assert without.last_loss == pytest.approx(with_encoder.last_loss, rel=1e-5)
    validated = [(tmp_path / run / "epochs.csv").read_text().splitlines()[-1].split(",") for run in "ab"]
    header = (tmp_path / "a" / "epochs.csv").read_text().splitlines()[0].split(",")
    place = header.index("validation_loss")
    assert float(validated[1][place]) == pytest.approx(float(validated[0][place]), rel=1e-5)


def test_what_is_stored_is_not_made_again_and_parts_make_the_whole(
    small_shards: Path, small_settings: Make, tmp_path: Path
) -> None:
    settings, shards, encoder = small_settings(small_shards, *WHOLE), open_shards(small_shards), ImageEncoder("small")
    whole = stored(small_shards, settings, tmp_path / "whole")
    for part in (0, 1):
        maps, made = store_maps(shards, settings, encoder, tmp_path / "parts", "float32", part=(part, 2))
        parts = maps.folder
        assert made == (3, 2)[part]
        assert parts.name == whole.name
        assert len(list(parts.glob("maps-*.bin"))) == part + 1
    content = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == content
    before = {file.name: file.stat().st_mtime_ns for file in whole.glob("maps-*")}
    table = whole / "maps-00001.json"
    # A process that was killed between the file and its table, and a table that is damaged.
    for spoil in (table.unlink, lambda: table.write_text("{")):
        spoil()
        stored(small_shards, settings, tmp_path / "whole")
        after = {file.name: file.stat().st_mtime_ns for file in whole.glob("maps-*")}
        assert sorted(n for n in before if after[n] != before[n]) == ["maps-00001.bin", "maps-00001.json"]
        assert {file.name: file.read_bytes() for file in whole.iterdir()} == content


def test_a_run_that_mirrors_images_says_how_to_store_their_maps(
    small_shards: Path, small_settings: Make, tmp_path: Path
) -> None:
    stored(small_shards, small_settings(small_shards, *WHOLE), tmp_path)
    with pytest.raises(OlivineError, match=r"olivine features --mirrored, or set augment\.flip_image=0"):
        StoredFeatures(tmp_path, small_settings(small_shards, *NO_CROP), open_shards(small_shards))


def test_maps_of_another_precision_are_other_maps(small_shards: Path, small_settings: Make, tmp_path: Path) -> None:
    settings, shards = small_settings(small_shards, *WHOLE), open_shards(small_shards)
    coarse = store_maps(shards, settings, ImageEncoder("small", dtype=torch.bfloat16), tmp_path, "float32")
    exact = store_maps(shards, settings, ImageEncoder("small"), tmp_path, "float32")
    assert coarse[1] == exact[1] == 5 and coarse[0].folder != exact[0].folder
    for dtype, maps in (("bfloat16", coarse[0]), ("float32", exact[0])):
        reading = small_settings(small_shards, *WHOLE, f"image.dtype={dtype}")
        assert StoredFeatures(tmp_path, reading, shards)._maps.folder == maps.folder
    with pytest.raises(OlivineError, match=r"2 stores fit this run"):
        StoredFeatures(tmp_path, small_settings(small_shards, *WHOLE, "image.dtype=auto"), shards)


def test_other_labels_of_the_same_images_take_the_same_maps(
    small_shards: Path, small_settings: Make, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_shards({"a": 3, "b": 2}, absent=1)
    sets = [open_shards(small_shards), open_shards(other)]
    assert sets[0].digest != sets[1].digest
    assert sets[0].image_digest == sets[1].image_digest
    settings, encoder = small_settings(small_shards, *WHOLE), ImageEncoder("small")
    first, again = (store_maps(one, settings, encoder, tmp_path) for one in sets)
    assert (first[1], again[1]) == (5, 0)
    assert again[0].folder == first[0].folder
    StoredFeatures(tmp_path, small_settings(other, *WHOLE), sets[1])


def test_maps_that_do_not_fit_the_run_are_refused_in_one_line(
    small_shards: Path, small_settings: Make, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    settings = small_settings(small_shards, *WHOLE)
    folder = stored(small_shards, settings, tmp_path)
    shards = open_shards(small_shards)

    def refused(message: str, *changes: str, of: Path = folder, shards: object = shards) -> None:
        with pytest.raises(OlivineError, match=message) as caught:
            StoredFeatures(of, small_settings(small_shards, *changes), shards)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refused(r"mirrored is False there and True here")
    refused(r"mirrored is False there and True here", *NO_CROP)
    refused(r"images is \[40, 72\] there and \[44, 72\] here", *WHOLE, "image.height=44")
    refused(r"encoder is small there and resnet18 here", *WHOLE, "image.encoder=resnet18")
    refused(r"weights is \w+ there and random here", *WHOLE, "image.weights=random")
    refused(r"image_digest is", *WHOLE, shards=open_shards(make_shards({"a": 1}, seed=9)))
    refused(r"absent.*Store them first: olivine features", *WHOLE, of=tmp_path / "absent")
    other = stored(small_shards, settings, tmp_path, "float16")
    refused(rf"2 stores fit this run.*({folder.name}|{other.name})", *WHOLE, of=tmp_path)
    (folder / "maps-00001.bin").unlink()
    refused(r"holds no maps of shard 1\. Run olivine features again", *WHOLE)
    (folder / "features.json").write_text(json.dumps({"dtype": "float16"}))
    refused(r"features\.json", *WHOLE)


def test_what_cannot_be_stored_is_refused_in_one_line(small_shards: Path, small_settings: Make, tmp_path: Path) -> None:
    settings, shards = small_settings(small_shards, *WHOLE), open_shards(small_shards)
    with pytest.raises(OlivineError, match=r"no type 'int4'.*float16, float32, int8"):
        store_maps(shards, settings, ImageEncoder("small"), tmp_path, "int4")
    encoder = ImageEncoder("dinov3-vits16", "random")
    with pytest.raises(OlivineError, match=r"multiples of 16, not 40 x 72"):
        store_maps(shards, settings, encoder, tmp_path)
    identity = {"image_digest": "", "encoder": "", "weights": "", "images": [4, 8], "map": [1, 1, 1]}
    maps = FeatureMaps.create(tmp_path, {**identity, "cameras": 1, "dtype": "float16", "mirrored": False})
    with pytest.raises(OlivineError, match=r"a feature of 70000 is too large for float16.*float32 or int8"):
        maps.write(0, np.full((1, 1, 1, 1, 1, 1), 7e4, np.float32))
    assert not list(maps.folder.glob("maps-*.bin"))


def test_means_over_segments_are_the_encoders_too(small_shards: Path, small_settings: Make, tmp_path: Path) -> None:
    settings = small_settings(small_shards, *WHOLE)
    folder, shards, encoder = stored(small_shards, settings, tmp_path), open_shards(small_shards), ImageEncoder("small")
    columns = ["image", "image_mirrored"]
    samples = [make_sample(shards[i], i, (40, 72), settings.augment, generator_of(0, 0, i), columns) for i in (1, 4)]
    number = torch.arange(9).repeat_interleave(8).expand(2, 40, 72) - 1  # columns of pixels; the first is no segment
    head = torch.nn.Linear(64, 8)
    sources = EncodedFeatures(encoder, "align_corners"), StoredFeatures(folder, settings, shards)
    (mean, feature, _), (other_mean, other_feature, _) = (
        source.mean_by_segment(collate(samples), slice(2, 4), number, 8, head, encoder=True) for source in sources
    )
    torch.testing.assert_close(other_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_feature, feature, rtol=1e-4, atol=1e-5)


def test_the_command_makes_a_store_that_pretrain_takes(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (tmp_path / "data/pairs/made").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/pairs/made" / split).symlink_to(small_shards)
    monkeypatch.chdir(tmp_path)
    size = ["--config", "cpu", "--set", "image.height=40", "--set", "image.width=72", "--set", "run.accelerator=cpu"]

    said: list[str] = []

    def olivine(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["olivine", *arguments, *size, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        out, beside = capsys.readouterr()
        said.append(beside)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    first = olivine("features", "--mirrored")
    assert (first["frames"], first["frames_made"]) == (10, 5)  # the two splits are the same shards here
    assert first["bytes_per_frame"] == 2 * 2 * 10 * 18 * 64 * 2  # cameras, mirrored or not, a map of 10 x 18, float16
    assert olivine("features", "--mirrored")["frames_made"] == 0
    monkeypatch.setattr(ImageEncoder, "forward", None)
    changes = [
        "augment.crop=false",
        "image.stored=data/features",
        "run.steps=1",
        "method.scr=false",
        "method.pairs=100",
    ]
    run = olivine("pretrain", *(word for change in changes for word in ("--set", change)))
    assert run["step"] == 1 and "crops" not in said[-1]
    run = olivine("pretrain", "--name", "crops", *(word for change in changes[1:] for word in ("--set", change)))
    assert run["step"] == 1
    assert said[-1].count("crops are looked up in stored maps of whole images; the encoder saw them no larger") == 1
