"""Promises of sampling features at pairs instead of making full-resolution maps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, grid_sample, interpolate, normalize

from olivine.common import OlivineError
from olivine.train.backbone import unit_rows
from olivine.train.feature_map import sample_features


def setup(h: int = 7, w: int = 13) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, h, w, generator=generator, dtype=torch.float64)
    image = torch.randint(0, 3, (200,), generator=generator)
    pixel = torch.stack(
        [torch.randint(0, 4 * w, (200,), generator=generator), torch.randint(0, 4 * h, (200,), generator=generator)], 1
    )
    return maps, image, pixel


def test_sampling_equals_upsampling_and_looking_up_values_and_head_gradients() -> None:
    """The authors' way: head on the map, upsample by 4 with align_corners, look up the pixel, normalise."""
    maps, image, pixel = setup()
    head = torch.nn.Linear(5, 4).double()
    upsampled = interpolate(
        conv2d(maps, head.weight[:, :, None, None], head.bias),
        scale_factor=4,
        mode="bilinear",
        align_corners=True,
    )
    theirs = normalize(upsampled[image, :, pixel[:, 1], pixel[:, 0]], dim=1)
    ours = unit_rows(head(sample_features(maps, image, pixel.double(), (28, 52))))
    # The positions are made in float32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    weight = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = list(head.parameters())
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), parameters), torch.autograd.grad((theirs * weight).sum(), parameters)
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_sub_pixel_positions_agree_with_grid_sample() -> None:
    maps, image, pixel = setup()
    uv = (pixel + 0.3).clamp(max=torch.tensor([51.0, 27.0]))
    grid = 2 * uv / torch.tensor([51.0, 27.0]) - 1
    theirs = torch.stack(
        [
            grid_sample(maps[i : i + 1], g.double()[None, None, None], align_corners=True)[0, :, 0, 0]
            for i, g in zip(image.tolist(), grid)
        ]
    )
    torch.testing.assert_close(sample_features(maps, image, uv, (28, 52)), theirs, rtol=0, atol=2e-5)


def test_on_the_stride_grid_feature_j_is_at_pixel_4j() -> None:
    maps, _, _ = setup()
    uv = torch.tensor([[0, 0], [4, 8], [20, 12], [51, 27]])
    found = sample_features(maps, torch.tensor([0, 1, 2, 0]), uv, (28, 52), "stride")
    torch.testing.assert_close(found[0], maps[0, :, 0, 0])
    torch.testing.assert_close(found[1], maps[1, :, 2, 1])
    torch.testing.assert_close(found[2], maps[2, :, 3, 5])
    torch.testing.assert_close(found[3], maps[0, :, 6, 12])  # beyond the last feature: its border
    with pytest.raises(OlivineError, match="align_corners, stride or patch"):
        sample_features(maps, torch.zeros(1), uv[:1], (28, 52), "other")  # type: ignore[arg-type]


def test_a_map_of_one_feature_and_no_pixels_work() -> None:
    maps = torch.randn(2, 5, 1, 1)
    found = sample_features(maps, torch.tensor([1, 0]), torch.tensor([[0.0, 0.0], [3.0, 2.0]]), (4, 4))
    torch.testing.assert_close(found, maps[[1, 0], :, 0, 0])
    assert sample_features(maps, torch.zeros(0), torch.zeros(0, 2), (4, 4)).shape == (0, 5)
