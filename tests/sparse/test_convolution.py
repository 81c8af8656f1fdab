"""The sparse engine against dense convolutions of torch, which share no line with it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from olivine.common import OlivineError
from olivine.train.sparse import BatchNorm, Conv3d, ConvTranspose3d, ReLU, SparseTensor, concatenate, to_dense


def random_cloud(
    seed: int,
    *,
    channels: int = 5,
    size: int = 9,
    low: int = 0,
    fill: float = 0.15,
    batch: int = 2,
    shuffled: bool = True,
) -> SparseTensor:
    """A random float64 cloud in [low, low + size) with every batch present."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batch, size, size, size, generator=generator) < fill
    occupied[:, 0, 0, 0] = True
    coordinate = occupied.nonzero().int()
    coordinate[:, 1:] += low
    if shuffled:
        coordinate = coordinate[torch.randperm(len(coordinate), generator=generator)]
    feature = torch.randn(len(coordinate), channels, generator=generator, dtype=torch.float64)
    return SparseTensor(feature, coordinate)


def dense_weight(kernel: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """[K, in, out], x fastest, as torch's [out, in, x, y, z]."""
    return kernel.view(size[2], size[1], size[0], *kernel.shape[1:]).permute(4, 3, 2, 1, 0)


def at(grid: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
    """Values of a dense [B, C, X, Y, Z] at (batch, x, y, z)."""
    b, x, y, z = coordinate.long().T
    return grid[b, :, x, y, z]


@pytest.mark.parametrize("size", [(3, 3, 3), (5, 3, 1), (1, 1, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_submanifold_convolution_is_the_dense_one_at_the_occupied_voxels(size, dilation):
    cloud = random_cloud(1)
    layer = Conv3d(5, 4, size, dilation=dilation, bias=True).double()
    out = layer(cloud)
    padding = [(k // 2) * dilation for k in size]
    dense = F.conv3d(to_dense(cloud, (9, 9, 9)), dense_weight(layer.kernel, size), padding=padding, dilation=dilation)
    torch.testing.assert_close(out.feature, at(dense, cloud.coordinate) + layer.bias, rtol=1e-12, atol=1e-12)
    assert out.coordinate is cloud.coordinate


@pytest.mark.parametrize("size", [2, 3])
def test_strided_convolution_makes_the_floored_coordinates_and_the_dense_values(size):
    cloud = random_cloud(2, size=10)
    layer = Conv3d(5, 4, size, 2).double()
    out = layer(cloud)
    floored = {(b, x // 2 * 2, y // 2 * 2, z // 2 * 2) for b, x, y, z in cloud.coordinate.tolist()}
    assert {tuple(c) for c in out.coordinate.tolist()} == floored
    assert out.stride == (2, 2, 2)
    padding = 1 if size == 3 else 0
    dense = F.conv3d(to_dense(cloud, (10, 10, 10)), dense_weight(layer.kernel, (size,) * 3), stride=2, padding=padding)
    half = out.coordinate.clone()
    half[:, 1:] //= 2
    torch.testing.assert_close(out.feature, at(dense, half), rtol=1e-12, atol=1e-12)


def test_negative_odd_coordinates_go_down_to_the_even_one_below():
    cloud = SparseTensor(torch.ones(2, 1), torch.tensor([[0, -1, -3, 5], [0, -2, -4, 4]], dtype=torch.int32))
    assert Conv3d(1, 1, 2, 2)(cloud).coordinate.tolist() == [[0, -2, -4, 4]]


@pytest.mark.parametrize("size", [2, 3])
def test_transposed_convolution_returns_to_the_finer_voxels_with_the_dense_values(size):
    cloud = random_cloud(3, size=8)
    coarse = Conv3d(5, 4, 2, 2).double()(cloud)
    layer = ConvTranspose3d(4, 3, size, 2).double()
    out = layer(coarse)
    assert out.voxels is cloud.voxels
    dense = F.conv_transpose3d(
        to_dense(coarse, (4, 4, 4)),
        dense_weight(layer.kernel, (size,) * 3).transpose(0, 1),
        stride=2,
        padding=1 if size == 3 else 0,
        output_padding=1 if size == 3 else 0,
    )
    torch.testing.assert_close(out.feature, at(dense, cloud.coordinate), rtol=1e-12, atol=1e-12)


def test_rows_in_another_order_give_the_same_values_in_that_order():
    cloud = random_cloud(4, low=-4)
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(9))
    other = SparseTensor(cloud.feature[order], cloud.coordinate[order])
    layer = Conv3d(5, 4, 3).double()
    torch.testing.assert_close(layer(other).feature, layer(cloud).feature[order], rtol=1e-13, atol=1e-13)


def test_clouds_of_a_batch_do_not_see_each_other():
    one, two = random_cloud(5, batch=1), random_cloud(6, batch=1)
    second = two.coordinate.clone()
    second[:, 0] = 1
    both = SparseTensor(torch.cat((one.feature, two.feature)), torch.cat((one.coordinate, second)))
    net = torch.nn.Sequential(Conv3d(5, 4, 3), Conv3d(4, 4, 2, 2), ConvTranspose3d(4, 2, 2, 2)).double()
    apart = torch.cat((net(one).feature, net(two).feature))
    torch.testing.assert_close(net(both).feature, apart, rtol=1e-13, atol=1e-13)


LAYERS = {
    "submanifold": lambda: Conv3d(3, 2, 3, bias=True),
    "pointwise": lambda: Conv3d(3, 2, 1, bias=True),
    "dilated": lambda: Conv3d(3, 2, (3, 1, 3), dilation=(2, 1, 1)),
    "even": lambda: Conv3d(3, 2, 2),
    "down": lambda: Conv3d(3, 2, 2, 2),
    "down of size 3": lambda: Conv3d(3, 2, 3, (2, 1, 2)),
    "up": lambda: torch.nn.Sequential(Conv3d(3, 2, 2, 2), ConvTranspose3d(2, 2, 2, 2)),
    "up of size 3": lambda: torch.nn.Sequential(Conv3d(3, 2, 2, 2), ConvTranspose3d(2, 2, 3, 2, bias=True)),
    "batch norm": lambda: BatchNorm(3),
    "relu": lambda: ReLU(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_finite_differences(name):
    cloud = random_cloud(7, channels=3, size=4, low=-2, fill=0.2)
    layer = LAYERS[name]().double()
    names, parameters = zip(*layer.named_parameters()) if list(layer.parameters()) else ((), ())

    def run(feature, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (cloud.replace(feature),)).feature

    inputs = [p.detach().clone().requires_grad_() for p in (cloud.feature, *parameters)]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-7)


def test_gradients_of_concatenation_and_dense_grid_are_the_finite_differences():
    cloud = random_cloud(8, channels=2, size=3)
    feature = cloud.feature.clone().requires_grad_()
    other = torch.randn_like(feature).requires_grad_()

    def run(a, b):
        return to_dense(concatenate(cloud.replace(a), cloud.replace(b)), (3, 3, 3))

    assert torch.autograd.gradcheck(run, (feature, other))


def test_the_same_input_gives_the_same_bits_forward_and_backward():
    def once():
        cloud = random_cloud(10, size=14, channels=16)
        layer = torch.nn.Sequential(Conv3d(16, 16, 3), Conv3d(16, 32, 2, 2), ConvTranspose3d(32, 8, 2, 2)).float()
        feature = cloud.feature.float().requires_grad_()
        out = layer(cloud.replace(feature)).feature
        out.square().sum().backward()
        return [out, feature.grad, *(p.grad for p in layer.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(once(), once()))


def test_a_kernel_map_is_built_once_for_all_layers_of_a_coordinate_manager():
    cloud = random_cloud(11)
    net = torch.nn.Sequential(*(Conv3d(5, 5, 3) for _ in range(3)), Conv3d(5, 5, 2, 2), ConvTranspose3d(5, 5, 2, 2))
    net.double()(cloud)
    assert cloud.manager.maps_built == 2


def coordinates(*rows):
    return torch.tensor(rows, dtype=torch.int32)


BAD = {
    "occur more than once": lambda: SparseTensor(torch.ones(2, 1), coordinates([0, 1, 2, 3], [0, 1, 2, 3])),
    "60000": lambda: SparseTensor(torch.ones(1, 1), coordinates([0, 70000, 0, 0])),
    "batch indices": lambda: SparseTensor(torch.ones(1, 1), coordinates([-1, 0, 0, 0])),
    "the cloud is empty": lambda: SparseTensor(torch.ones(0, 1), torch.zeros(0, 4, dtype=torch.int32)),
    "cloud 1 of 3": lambda: SparseTensor(torch.ones(2, 1), coordinates([0, 1, 2, 3], [2, 1, 2, 3])),
    "cloud 1 of 2": lambda: SparseTensor(torch.ones(1, 1), coordinates([0, 1, 2, 3]), batch_size=2),
    "must be int32": lambda: SparseTensor(torch.ones(1, 1), torch.zeros(1, 4, dtype=torch.int64)),
    "floating point": lambda: SparseTensor(torch.ones(1, 1, dtype=torch.int64), coordinates([0, 1, 2, 3])),
    "as many rows": lambda: SparseTensor(torch.ones(3, 1), coordinates([0, 1, 2, 3])),
    "elsewhere": lambda: SparseTensor(torch.ones(1, 1, device="meta"), coordinates([0, 1, 2, 3])),
    "does not fit the kernel": lambda: Conv3d(2, 2, 3)(SparseTensor(torch.ones(1, 1), coordinates([0, 1, 2, 3]))),
    "one dtype": lambda: Conv3d(1, 2, 3).double()(SparseTensor(torch.ones(1, 1), coordinates([0, 1, 2, 3]))),
    "cannot refine": lambda: ConvTranspose3d(1, 2, 2, 2)(SparseTensor(torch.ones(1, 1), coordinates([0, 1, 2, 3]))),
    "not multiples": lambda: SparseTensor(torch.ones(1, 1), coordinates([0, 1, 2, 3]), stride=2),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_an_error_that_names_the_tensor(message):
    with pytest.raises(OlivineError, match=message) as caught:
        BAD[message]()
    assert "\n" not in str(caught.value)


def test_concatenation_of_different_strides_is_an_error_with_both_shapes():
    cloud = random_cloud(12)
    with pytest.raises(OlivineError, match=r"strides differ.*\(1, 1, 1\).*\(2, 2, 2\)"):
        concatenate(cloud, Conv3d(5, 5, 2, 2).double()(cloud))
    with pytest.raises(OlivineError, match="not on the same voxels"):
        concatenate(cloud, random_cloud(13))


def test_spconv_rule_makes_every_output_that_the_kernel_reaches_with_the_dense_values():
    cloud = random_cloud(14, size=9, fill=0.02)
    cloud = SparseTensor(cloud.feature, cloud.coordinate, shape=(9, 9, 9))
    for size, stride, padding in itertools.product(
        ((3, 3, 3), (1, 1, 3)), ((2, 2, 2), (1, 1, 2)), ((1, 1, 1), (0, 0, 0))
    ):
        layer = Conv3d(5, 4, size, stride, padding=padding).double()
        out = layer(cloud)
        weight = dense_weight(layer.kernel, size)
        dense = F.conv3d(to_dense(cloud), weight, stride=stride, padding=padding)
        reached = F.conv3d(
            to_dense(cloud).abs().sum(1, keepdim=True), torch.ones_like(weight[:1, :1]), stride=stride, padding=padding
        )
        assert len(out) == int((reached > 0).sum())
        torch.testing.assert_close(to_dense(out), dense, rtol=1e-12, atol=1e-12)
