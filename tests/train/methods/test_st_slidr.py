"""Promises of ST-SLidR: its features are the encoder's before the head, its loss the formula on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import Given, unit
from torch import Tensor, nn

from olivine.common import OlivineError
from olivine.train.batch import Batch
from olivine.train.group import Group
from olivine.train.method import Context
from olivine.train.methods.st_slidr import StSlidr, StSlidrSettings
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.settings import load_settings

HEIGHT, WIDTH = 12, 16


class Case:
    """Three images, the encoder's maps, points and pairs; segments 0 to 6, the last one a single pixel off the map's grid."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        self.segment = rng.integers(0, 6, (3, HEIGHT, WIDTH))
        self.segment[:, 5, 7] = 6  # odd places have no cell in a map of half the size
        self.maps = np.abs(rng.standard_normal((3, 10, HEIGHT // 2, WIDTH // 2)))
        self.points = unit(rng.standard_normal((40, 8)), 1)
        pixel = np.stack([rng.integers(0, 3, 90), rng.integers(0, HEIGHT, 90), rng.integers(0, WIDTH, 90)], 1)
        pixel[:3] = [[i, 5, 7] for i in range(3)]
        self.pixel = pixel[np.argsort(pixel[:, 0], kind="stable")]
        self.pair_point = rng.integers(0, 40, 90)

    def run(self, settings: StSlidrSettings) -> tuple[StSlidr, Tensor, Given]:
        torch.manual_seed(1)
        method = StSlidr(settings, Context(lambda out: nn.Linear(8, out), 10, ("none",), 1, 0.1)).double()
        image = torch.zeros(3, HEIGHT, WIDTH, 3, dtype=torch.uint8)
        image[:, 0, 0, 0] = torch.arange(3)
        columns = {
            "image": image,
            "segment": torch.from_numpy(self.segment.astype(np.int32)),
            "pair_camera": torch.from_numpy(self.pixel[:, 0]),
            "pair_uv": torch.from_numpy(self.pixel[:, [2, 1]].astype(np.float32)),
        }
        batch = Batch(("f",), (0,), (40,), (3,), torch.zeros(90, dtype=torch.int64), columns)
        encoder = Given(torch.from_numpy(self.maps))
        source: Any = EncodedFeatures(encoder, "align_corners")  # type: ignore[arg-type]
        embeddings: Any = Given(torch.from_numpy(self.points))
        place = torch.from_numpy(self.pair_point)
        group = Group(batch, slice(0, 1), slice(0, 90), place, embeddings, source, torch.zeros(1), (0, 0, 0))
        return method, method(group)["superpixel"].value, encoder

    def sides(self, method: StSlidr) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Superpoints, superpixels and similarities of the segments with a pair and a cell, by another way."""
        name = self.segment + 7 * np.arange(3)[:, None, None]
        head = nn.functional.linear(
            torch.from_numpy(self.maps).permute(0, 2, 3, 1), method.pixel_head.weight, method.pixel_head.bias
        )
        whole = nn.functional.interpolate(
            head.permute(0, 3, 1, 2), (HEIGHT, WIDTH), mode="bilinear", align_corners=True
        ).detach()
        pixels = unit(whole.numpy(), 1).transpose(0, 2, 3, 1)
        cells, of_cell = self.maps.transpose(0, 2, 3, 1), name[:, ::2, ::2]
        of_pair = name[tuple(self.pixel.T)]
        rows = []
        for g in range(21):
            mine = self.points[self.pair_point[of_pair == g]]
            if len(mine) and (of_cell == g).any():
                parts = (mine, pixels[name == g], cells[of_cell == g])
                rows.append([part.sum(0) / (len(part) + 1e-6) for part in parts])
        k, q, f = (np.stack(column) for column in zip(*rows))
        assert len(k) == 18
        return k, q, unit(f, 1) @ unit(f, 1).T


@pytest.mark.parametrize("dropped", ["zero_logit", "excluded"])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_the_formula_on_features_before_the_head(dropped: Any, balanced: bool) -> None:
    case = Case()
    settings = StSlidrSettings(dimension=8, quantile=0.2, dropped=dropped, balanced=balanced)
    method, found, encoder = case.run(settings)
    assert encoder.asked == [0, 1, 2], "an image passes the encoder once"
    k, q, alpha = case.sides(method)
    losses = []
    for i in range(len(k)):
        distance = 1 - np.clip(alpha[i], 0, 1)
        kept = (distance >= np.quantile(distance, 0.2)) & (distance != 0)
        kept[i] = True
        z = q @ k[i] / 0.07
        others = np.exp(z[kept]).sum() + (0 if dropped == "excluded" else (~kept).sum())
        losses.append(np.log(others) - z[i])
    weight = np.ones(len(k))
    if balanced:
        vote = np.where(alpha < 0.5, 0, alpha).sum(1)
        weight = 1 - (vote - vote.min()) / (vote.max() - vote.min())
    assert found.item() == pytest.approx((weight * losses).sum() / weight.sum(), abs=1e-6)  # float32 weights


def test_gradients_reach_both_heads_sides_and_not_the_similarities() -> None:
    case = Case()
    method, found, _ = case.run(StSlidrSettings(dimension=8, quantile=0.0))
    found.backward()
    gradient = method.pixel_head.weight.grad
    assert gradient is not None
    for where in ((0, 0), (5, 9)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                method.pixel_head.weight[where] += sign * 1e-6
            k, q, alpha = case.sides(method)
            with torch.no_grad():
                method.pixel_head.weight[where] -= sign * 1e-6
            z = (1 - alpha) * (k @ q.T) / 0.07
            np.fill_diagonal(z, (k * q).sum(1) / 0.07)
            losses = np.log(np.exp(z).sum(1)) - z.diagonal()
            vote = np.where(alpha < 0.5, 0, alpha).sum(1)
            weight = 1 - (vote - vote.min()) / (vote.max() - vote.min())
            values.append((weight * losses).sum() / weight.sum())
        assert gradient[where].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(OlivineError, match=r"method\.quantile is 1\.5"):
        load_settings("st-slidr", ["method.quantile=1.5"])
    with pytest.raises(OlivineError, match=r"method\.temperature is -1"):
        load_settings("st-slidr", ["method.temperature=-1"])
