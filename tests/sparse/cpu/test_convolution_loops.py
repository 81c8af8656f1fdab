"""The compiled loops for CPUs against the general path in float64."""

from __future__ import annotations

import pytest
import torch

from olivine.train.sparse import Conv3d, ConvTranspose3d, SparseTensor, loops
from olivine.train.sparse.convolution import convolve
from olivine.train.sparse.cpu.convolution import suits

pytestmark = pytest.mark.skipif(
    not loops.available(), reason="this CPU lacks the vectors, or the loops are switched off"
)


def sorted_cloud(seed: int, channels: int, batch: int = 2, size: int = 12, fill: float = 0.2) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coordinate = (torch.rand(batch, size, size, size, generator=generator) < fill).nonzero().int()
    coordinate[:, 1:] -= 5
    return SparseTensor(torch.randn(len(coordinate), channels, generator=generator), coordinate)


def maps_of(cloud: SparseTensor):
    manager, voxels = cloud.manager, cloud.voxels
    coarse = manager.coarser(voxels, (2, 2, 2))
    one = (1, 1, 1)
    yield "submanifold", manager.map(voxels, voxels, (3, 3, 3), one, transposed=False)
    yield "down", manager.map(voxels, coarse, (2, 2, 2), one, transposed=False)
    yield "up", manager.map(coarse, voxels, (2, 2, 2), one, transposed=True)
    yield "down of size 3", manager.map(voxels, coarse, (3, 3, 3), one, transposed=False)
    yield "coarse", manager.map(coarse, coarse, (3, 3, 3), one, transposed=False)


# Panels of one to four vectors, in one part and in two, and a last tile of every length.
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (32, 48), (48, 32), (192, 128)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_values_and_gradients_are_the_general_paths(inputs, outputs, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, kernel_map in maps_of(sorted_cloud(1, 1)):
            generator = torch.Generator().manual_seed(2)
            feature = torch.randn(kernel_map.in_count, inputs, generator=generator, requires_grad=True)
            kernel = torch.randn(len(kernel_map.counts), inputs, outputs, generator=generator, requires_grad=True)
            weight = torch.randn(kernel_map.out_count, outputs, generator=generator)
            assert suits(feature, kernel, kernel_map)
            exact_feature = feature.detach().double().requires_grad_()
            exact_kernel = kernel.detach().double().requires_grad_()
            assert not suits(exact_feature, exact_kernel, kernel_map)
            out, exact = convolve(feature, kernel, kernel_map), convolve(exact_feature, exact_kernel, kernel_map)
            (out * weight).sum().backward()
            (exact * weight).sum().backward()
            for ours, expected in ((out, exact), (feature.grad, exact_feature.grad), (kernel.grad, exact_kernel.grad)):
                assert float((ours.detach().double() - expected.detach()).norm() / expected.detach().norm()) < 2e-6, (
                    name
                )
    finally:
        torch.set_num_threads(before)


def test_bits_do_not_depend_on_threads_or_repetition():
    cloud = sorted_cloud(3, 32)
    net = torch.nn.Sequential(Conv3d(32, 64, 3), Conv3d(64, 64, 2, 2), ConvTranspose3d(64, 32, 2, 2))

    def once(threads):
        torch.set_num_threads(threads)
        net.zero_grad()
        feature = cloud.feature.clone().requires_grad_()
        out = net(cloud.replace(feature)).feature
        out.square().sum().backward()
        return [out.detach(), feature.grad, *(p.grad.clone() for p in net.parameters())]

    before = torch.get_num_threads()
    try:
        results = [once(threads) for threads in (1, 2, 2, 3)]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_unsorted_rows_and_odd_widths_take_the_general_path():
    cloud = sorted_cloud(4, 32)
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(5))
    other = SparseTensor(cloud.feature[order], cloud.coordinate[order])
    layer = Conv3d(32, 32, 3)
    kernel_map = other.manager.map(other.voxels, other.voxels, (3, 3, 3), (1, 1, 1), transposed=False)
    assert not suits(other.feature, layer.kernel, kernel_map)
    torch.testing.assert_close(layer(other).feature, layer(cloud).feature[order], rtol=1e-4, atol=1e-5)
    assert not suits(torch.ones(3, 8), torch.ones(27, 8, 16), kernel_map)


def test_a_nearly_empty_map_is_summed_right():
    coordinate = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 50, 0, 0]], dtype=torch.int32)
    feature = torch.ones(3, 16)
    layer = Conv3d(16, 16, 3)
    with torch.no_grad():
        layer.kernel.copy_(torch.eye(16).expand(27, 16, 16))
    out = layer(SparseTensor(feature, coordinate)).feature
    assert out[:, 0].tolist() == [2.0, 2.0, 1.0]
