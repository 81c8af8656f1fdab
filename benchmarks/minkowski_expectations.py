"""Make the small case of MinkowskiEngine's results that the tests compare with on every machine.

    python benchmarks/minkowski_expectations.py tests/sparse/minkowski_expectations.npz

Run it with the interpreter of the environment that `make minkowski` made. The network is MinkowskiEngine's own modules,
in float64: 3x3x3, batch norm, ReLU, 2x2x2 stride 2, dilated 3x3x3, transposed 2x2x2 stride 2, concatenation, 1x1x1 with
bias, and a 3x1x5 kernel of stride (2, 1, 2) at the end.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from olivine.train.sparse.minkowski import import_minkowski


def main() -> None:
    engine = import_minkowski()
    generator = torch.Generator().manual_seed(20)
    occupied = torch.rand(2, 6, 6, 6, generator=generator) < 0.25
    coordinate = occupied.nonzero().int()
    coordinate[:, 1:] -= 3
    coordinate = torch.cat((coordinate, torch.tensor([[0, 50, -51, 7], [1, -50, 51, -7]], dtype=torch.int32)))
    coordinate = coordinate[torch.randperm(len(coordinate), generator=generator)]
    feature = torch.randn(len(coordinate), 2, generator=generator, dtype=torch.float64).requires_grad_()

    layers = nn.ModuleDict(
        {
            "conv": engine.MinkowskiConvolution(2, 3, kernel_size=3, dimension=3),
            "norm": engine.MinkowskiBatchNorm(3, momentum=0.05),
            "down": engine.MinkowskiConvolution(3, 4, kernel_size=2, stride=2, dimension=3),
            "dilated": engine.MinkowskiConvolution(4, 4, kernel_size=3, dilation=2, dimension=3),
            "up": engine.MinkowskiConvolutionTranspose(4, 3, kernel_size=2, stride=2, dimension=3),
            "point": engine.MinkowskiConvolution(6, 3, kernel_size=1, bias=True, dimension=3),
            "last": engine.MinkowskiConvolution(3, 2, kernel_size=[3, 1, 5], stride=[2, 1, 2], dimension=3),
        }
    ).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    # Buffers change in the pass, so what it starts from is kept now.
    saved = {f"state {n}": t.clone().numpy() for n, t in layers.state_dict().items()}
    saved |= {"coordinate": coordinate.numpy(), "feature": feature.detach().numpy()}

    skip = engine.MinkowskiFunctional.relu(layers["norm"](layers["conv"](engine.SparseTensor(feature, coordinate))))
    coarse = layers["dilated"](layers["down"](skip))
    fine = layers["point"](engine.cat(layers["up"](coarse), skip))
    out = layers["last"](fine)
    weights = {}
    for name, tensor in (("coarse", coarse), ("fine", fine), ("out", out)):
        order = np.lexsort(tensor.C.numpy().T[::-1])
        weights[name] = torch.randn(tensor.F.shape, generator=generator, dtype=torch.float64)
        saved[f"coordinate {name}"] = tensor.C.numpy()[order]
        saved[f"feature {name}"] = tensor.F.detach().numpy()[order]
        saved[f"weight {name}"] = weights[name].numpy()
        weights[name] = (tensor.F.index_select(0, torch.from_numpy(order)) * weights[name]).sum()
    sum(weights.values()).backward()
    saved |= {f"gradient {n}": p.grad.numpy() for n, p in layers.named_parameters()}
    saved |= {f"after {n}": b.numpy() for n, b in layers.named_buffers()}
    saved["gradient feature"] = feature.grad.numpy()
    np.savez_compressed(sys.argv[1], **saved)
    print(f"{len(saved)} arrays of MinkowskiEngine {engine.__version__} in {sys.argv[1]}")


if __name__ == "__main__":
    main()
