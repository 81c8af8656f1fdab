"""Reduced precision and gradients under autocast."""

from __future__ import annotations

import torch

from olivine.train.backbones import build_backbone
from olivine.train.sparse import Conv3d, SparseTensor


def cloud(channels: int, dtype=torch.float32, size: int = 8, fill: float = 0.3) -> SparseTensor:
    generator = torch.Generator().manual_seed(0)
    coordinate = (torch.rand(2, size, size, size, generator=generator) < fill).nonzero().int()
    return SparseTensor(torch.randn(len(coordinate), channels, generator=generator).to(dtype), coordinate)


def test_under_autocast_a_convolution_is_bfloat16_and_near_float64():
    layer, tensor = Conv3d(16, 32, 3, bias=True), cloud(16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(tensor).feature
    exact = layer.double()(tensor.replace(tensor.feature.double())).feature
    assert out.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; rounding inputs, weights and the result costs a few of 2^-9.
    assert float((out.double() - exact).detach().norm() / exact.detach().norm()) < 8 * 2**-9


def test_autocast_leaves_float64_alone():
    layer, tensor = Conv3d(4, 4, 3).double(), cloud(4, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(tensor).feature
    assert torch.equal(out, layer(tensor).feature)


def test_a_training_step_under_autocast_gives_float32_gradients_near_the_exact_ones():
    # Wide enough that the coarsest batch norms have more than a few voxels; with two they have no gradient to compare.
    network, tensor = build_backbone("srunet-small", seed=1), cloud(1, size=80, fill=0.01)
    generator = torch.Generator().manual_seed(1)
    network.heads = torch.nn.ModuleList([network.new_head(64, generator) for _ in range(2)])

    def loss(tensor):
        feature = network(tensor)
        return sum(head(feature).feature.to(network.conv0p1s1.kernel.dtype).square().mean() for head in network.heads)

    with torch.autocast("cpu", torch.bfloat16):
        value = loss(tensor)
    value.backward()
    single = {n: p.grad.clone() for n, p in network.named_parameters()}
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in single.values())
    network.zero_grad()
    network.double()
    loss(tensor.replace(tensor.feature.double())).backward()
    exact = torch.cat([p.grad.flatten() for p in network.parameters()])
    ours = torch.cat([single[n].flatten() for n, _ in network.named_parameters()]).double()
    assert float(torch.dot(ours, exact) / (ours.norm() * exact.norm())) > 0.98
