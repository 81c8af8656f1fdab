"""Stored pixel features are the encoder's, and a step does not see the difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from olivine.common import OlivineError
from olivine.pairs.shards import open_shards
from olivine.train.augment import generator_of, make_sample
from olivine.train.batch import collate
from olivine.train.build import build_model, columns_of, label_names
from olivine.train.encoder import ImageEncoder
from olivine.train.loop import pretrain
from olivine.train.pixel_features import StoredFeatures, open_pixel_features, store_pixel_features
from olivine.train.settings import PretrainSettings

WHOLE = ("augment.crop=false", "augment.flip_image=0")
Make = Callable[..., PretrainSettings]


def stored(shards: Path, settings: PretrainSettings, folder: Path, dtype: str = "float32") -> Path:
    return store_pixel_features(open_shards(shards), settings, ImageEncoder("small"), folder, dtype)


def step(settings: PretrainSettings, shards: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step on two rotated and cut frames; images only where they are needed."""
    records = open_shards(shards)
    pixels = open_pixel_features(settings, records, torch.device("cpu"))
    size, columns = (settings.image.height, settings.image.width), columns_of(settings)
    samples = [make_sample(records[i], i, size, settings.augment, generator_of(3, 1, i), columns) for i in (4, 1)]
    assert len(samples[0].points) < len(records[4].points)  # a cuboid was dropped: rows and places differ
    model, classes = build_model(settings, pixels.channels, label_names(records, settings), 4), len(records.class_count)
    statistics = model.method.statistics
    g = torch.nn.functional.normalize(torch.randn(100, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    sums = statistics.class_sums(g, torch.arange(100) % classes, classes)
    statistics.update(sums, sums[:, -1].long())
    count = torch.as_tensor(records.class_count)
    loss, terms, _ = model(collate(samples), pixels, count, 2, 0)
    assert set(terms) == {"ppkt", "wcd", "scr"}
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 3e-3)])
def test_a_step_with_stored_features_is_a_step_with_the_encoder_on_whole_images(
    small_shards: Path, small_settings: Make, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    settings = small_settings(small_shards, *WHOLE, "run.group=2", "augment.cuboid_min_pairs=1", "augment.cuboid=0.9")
    folder = stored(small_shards, settings, tmp_path, dtype)
    expected, expected_gradients = step(settings, small_shards)
    loss, gradients = step(
        small_settings(
            small_shards,
            *WHOLE,
            "run.group=2",
            "augment.cuboid_min_pairs=1",
            "augment.cuboid=0.9",
            f"image.stored={folder}",
        ),
        small_shards,
    )
    assert abs(loss - expected) <= tolerance * abs(expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        error = torch.linalg.vector_norm(gradient - expected_gradients[name])
        assert error <= 30 * tolerance * torch.linalg.vector_norm(expected_gradients[name]) + 1e-6, name


def test_a_run_reads_stored_features_and_needs_no_image(
    small_shards: Path, small_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(small_shards, *WHOLE, "run.steps=3")
    folder = stored(small_shards, settings, tmp_path / "features")
    with_encoder = pretrain(settings, tmp_path / "a")
    monkeypatch.setattr("olivine.train.augment.decode_crop", None)
    monkeypatch.setattr(ImageEncoder, "forward", None)
    without = pretrain(small_settings(small_shards, *WHOLE, "run.steps=3", f"image.stored={folder}"), tmp_path / "b")
    assert without.last_loss == pytest.approx(with_encoder.last_loss, rel=1e-5)


def test_what_is_stored_is_not_made_again_and_what_is_missing_is(
    small_shards: Path, small_settings: Make, tmp_path: Path
) -> None:
    settings = small_settings(small_shards, *WHOLE)
    folder = stored(small_shards, settings, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    (folder / "frame-000002.npy").unlink()
    assert stored(small_shards, settings, tmp_path) == folder
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert [name for name in sorted(before) if after[name] != before[name]] == [
        "frame-000002.crc.npy",
        "frame-000002.npy",
    ]


def test_features_that_do_not_fit_the_run_are_refused(
    small_shards: Path, small_settings: Make, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    settings = small_settings(small_shards, *WHOLE)
    folder = stored(small_shards, settings, tmp_path)
    shards = open_shards(small_shards)
    with pytest.raises(OlivineError, match=r"augments its images. Set augment.crop=false"):
        StoredFeatures(folder, small_settings(small_shards), shards)
    with pytest.raises(OlivineError, match=r"pictures is .* there and .* here"):
        StoredFeatures(folder, small_settings(small_shards, *WHOLE, "image.height=44"), shards)
    with pytest.raises(OlivineError, match="shards is"):
        StoredFeatures(folder, settings, open_shards(make_shards({"a": 1}, seed=9)))
    with pytest.raises(OlivineError, match=r"Leave out data.validation"):
        StoredFeatures(folder, small_settings(small_shards, *WHOLE, f"data.validation={small_shards}"), shards)
    (folder / "frame-000003.npy").unlink()
    with pytest.raises(OlivineError, match=r"holds no features of frame 3. .* olivine study"):
        StoredFeatures(folder, settings, shards)
    with pytest.raises(OlivineError, match="Store them first: olivine study"):
        StoredFeatures(tmp_path / "absent", settings, shards)
