"""SLidR's loss is the published one, value and gradients, and the method trains on SLIC segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import Given, unit
from torch import Tensor, nn

from olivine.common import OlivineError
from olivine.train.batch import Batch
from olivine.train.group import Group
from olivine.train.loop import pretrain
from olivine.train.method import Context
from olivine.train.methods.slidr import Slidr, SlidrSettings
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.settings import PretrainSettings


def the_method() -> Slidr:
    context = Context(lambda out: nn.Linear(8, out), 8, ("none",), 1, 0.1)
    method = Slidr(SlidrSettings(dimension=8), context).double()
    with torch.no_grad():
        method.pixel_head.weight.copy_(torch.eye(8))
        method.pixel_head.bias.zero_()
    return method


def loss_of(segment: np.ndarray, maps: Tensor, points: Tensor, pair_point: np.ndarray, pixel: np.ndarray) -> Tensor:
    """The method's loss: int [I, H, W], [I, 8, H, W], [V, 8], int [M], int [M, 3] = image, row, column."""
    images, height, width = segment.shape
    order = np.argsort(pixel[:, 0], kind="stable")
    image = torch.zeros(images, height, width, 3, dtype=torch.uint8)
    image[:, 0, 0, 0] = torch.arange(images)
    columns = {
        "image": image,
        "segment": torch.from_numpy(segment.astype(np.int32)),
        "pair_camera": torch.from_numpy(pixel[order, 0].astype(np.int64)),
        "pair_uv": torch.from_numpy(pixel[order][:, [2, 1]].astype(np.float32)),
    }
    pairs = len(pair_point)
    batch = Batch(("f",), (0,), (len(points),), (images,), torch.zeros(pairs, dtype=torch.int64), columns)
    place = torch.from_numpy(pair_point[order])
    source: Any = EncodedFeatures(Given(maps), "align_corners")  # type: ignore[arg-type]
    embeddings: Any = Given(points)
    group = Group(batch, slice(0, 1), slice(0, pairs), place, embeddings, source, torch.zeros(1), (0, 0, 0))
    terms = the_method()(group)
    return terms["superpixel"].value if terms else torch.zeros(())


def test_loss_and_gradients_are_those_of_the_authors_function() -> None:
    """The inputs and values of a float64 run of SLidR's own function (an independent formula beside it)."""
    rng = np.random.default_rng(0)
    segment = rng.integers(0, 7, (3, 12, 16))
    maps = unit(rng.standard_normal((3, 8, 12, 16)), 1)
    points = unit(rng.standard_normal((40, 8)), 1)
    pair_point = rng.integers(0, 40, 60)
    pixel = np.stack([rng.integers(0, 3, 60), rng.integers(0, 12, 60), rng.integers(0, 16, 60)], 1)
    f, g = (torch.from_numpy(x).requires_grad_() for x in (maps, points))
    loss = loss_of(segment, f, g, pair_point, pixel)
    loss.backward()
    assert loss.item() == pytest.approx(3.207975901288, abs=1e-9)
    assert g.grad is not None and g.grad.norm().item() == pytest.approx(0.400317051, abs=1e-9)
    # Along the maps the gradient is taken behind our normalisation, which is the identity on unit vectors but for
    # their length: theirs, less its part along each vector.
    k, q, has = pooled(segment, maps, points, pair_point, pixel)
    assert loss.item() == pytest.approx(plain(k, q, has), abs=1e-9)
    step = 1e-6
    for where in ((0, 3, 5, 7), (2, 0, 11, 15)):
        moved = maps.copy()
        values = []
        for sign in (1, -1):
            moved[where] = maps[where] + sign * step
            values.append(plain(*pooled(segment, unit(moved, 1), points, pair_point, pixel)))
        assert f.grad is not None
        assert f.grad[where].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def pooled(segment: np.ndarray, maps: np.ndarray, points: np.ndarray, pair_point: np.ndarray, pixel: np.ndarray):  # type: ignore[no-untyped-def]
    count = segment.max() + 1
    name = segment + count * np.arange(len(segment))[:, None, None]
    total = count * len(segment)

    def pool(rows: np.ndarray, value: np.ndarray) -> np.ndarray:
        sums = np.zeros((total, value.shape[1]))
        np.add.at(sums, rows[rows >= 0], value[rows >= 0])
        return sums / (np.bincount(rows[rows >= 0], minlength=total)[:, None] + 1e-6)

    of_pair = np.where(segment[tuple(pixel.T)] >= 0, name[tuple(pixel.T)], -1)
    of_pixel = np.where(segment >= 0, name, -1).ravel()
    has = np.bincount(of_pair[of_pair >= 0], minlength=total) > 0
    return pool(of_pair, points[pair_point]), pool(of_pixel, maps.transpose(0, 2, 3, 1).reshape(-1, 8)), has


def plain(k: np.ndarray, q: np.ndarray, has: np.ndarray) -> float:
    z = k[has] @ q[has].T / 0.07
    return float(np.mean(np.log(np.exp(z).sum(1)) - np.diag(z)))


def test_pixels_and_pairs_without_a_segment_belong_to_none() -> None:
    rng = np.random.default_rng(5)
    segment = rng.integers(-1, 4, (2, 12, 16))
    maps, points = unit(rng.standard_normal((2, 8, 12, 16)), 1), unit(rng.standard_normal((30, 8)), 1)
    pair_point = rng.integers(0, 30, 80)
    pixel = np.stack([rng.integers(0, 2, 80), rng.integers(0, 12, 80), rng.integers(0, 16, 80)], 1)
    loss = loss_of(segment, torch.from_numpy(maps), torch.from_numpy(points), pair_point, pixel)
    assert loss.item() == pytest.approx(plain(*pooled(segment, maps, points, pair_point, pixel)), abs=1e-9)
    nothing = loss_of(np.full_like(segment, -1), torch.from_numpy(maps), torch.from_numpy(points), pair_point, pixel)
    assert nothing.item() == 0


@pytest.mark.parametrize("preset", ["slidr", "st-slidr"])
def test_shards_without_segments_name_the_commands(
    preset: str, small_shards: Path, quick: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    with pytest.raises(OlivineError, match=r"hold no 'segment'.*--segments slic.*build-pairs --segments"):
        pretrain(quick(preset, small_shards), tmp_path / "run")
    assert not (tmp_path / "run").exists()
