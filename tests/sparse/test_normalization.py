"""Batch norm with shortcut and ReLU in one function against torch's own norm, sum and ReLU in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from olivine.train.sparse import loops
from olivine.train.sparse.normalization import norm_add_relu

compiled = pytest.mark.skipif(not loops.available(), reason="this CPU lacks the vectors, or the loops are switched off")


def norm_of(channels: int, dtype: torch.dtype, momentum: float = 0.05) -> nn.BatchNorm1d:
    generator = torch.Generator().manual_seed(7)
    norm = nn.BatchNorm1d(channels, momentum=momentum, eps=1e-3)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
        norm.running_mean.copy_(torch.randn(channels, generator=generator))
    return norm.to(dtype)


def results(rows: int, channels: int, dtype: torch.dtype, shortcut: bool, relu: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    # A mean far from zero in some channels, and channels of very different widths.
    feature = torch.randn(rows, channels, generator=generator) * torch.logspace(-2, 2, channels) + torch.linspace(
        -50, 50, channels
    )
    other, weight = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    feature, other = feature.to(dtype).requires_grad_(), other.to(dtype).requires_grad_()
    exact = norm_of(channels, torch.float64)(feature.detach().double()) + (other.detach().double() if shortcut else 0)
    # A number that is nearly zero falls on either side of the ReLU.
    weight[exact.abs() < 1e-3] = 0
    norm = norm_of(channels, dtype)
    out = norm_add_relu(feature, norm, shortcut=other if shortcut else None, relu=relu)
    (out * weight.to(dtype)).sum().backward()
    found = {"out": out.detach(), "feature": feature.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "variance": norm.running_var, "batches": norm.num_batches_tracked}
    return found | ({"shortcut": other.grad} if shortcut else {})


@compiled
@pytest.mark.parametrize(("rows", "channels"), [(2, 16), (65, 16), (5000, 48), (129, 24), (777, 96)])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_values_gradients_and_running_statistics_are_the_librarys(rows, channels, shortcut, relu):
    ours, exact = (results(rows, channels, dtype, shortcut, relu) for dtype in (torch.float32, torch.float64))
    assert ours.keys() == exact.keys()
    # With two rows the gradient of the feature is a difference of nearly equal numbers.
    names = [name for name in exact if name != "feature" or rows > 2]
    for name in names:
        expected = exact[name].double()
        error = float((ours[name].double() - expected).norm() / expected.norm().clamp_min(1e-12))
        # Widths that are no multiple of 16 take the library's functions, which round the mean.
        assert error < (1e-6 if channels % 16 == 0 else 1e-3), (name, error)


@compiled
def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(1000, 80, torch.float32, True, True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@compiled
def test_what_is_not_a_number_is_not_hidden():
    feature = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    feature[3, 5] = float("nan")
    out = norm_add_relu(feature, norm_of(16, torch.float32))
    assert out[:, 5].isnan().all()
    assert not out[:, :5].isnan().any()


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [16, 24])
def test_evaluation_takes_the_running_statistics_with_and_without_a_way_back(shortcut, relu, channels):
    generator = torch.Generator().manual_seed(0)
    norm = norm_of(channels, torch.float32).eval()
    feature, other = (torch.randn(10, channels, generator=generator) for _ in range(2))
    expected = norm(feature) + (other if shortcut else 0)
    expected = torch.relu(expected) if relu else expected
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = norm_add_relu(feature, norm, shortcut=other if shortcut else None, relu=relu)
        assert found.requires_grad == grad
        torch.testing.assert_close(found, expected)
