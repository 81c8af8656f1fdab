"""A small case against stored results of MinkowskiEngine 0.5.4 (made by benchmarks/minkowski_expectations.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from olivine.train.sparse import BatchNorm, Conv3d, ConvTranspose3d, ReLU, SparseTensor, concatenate


def apart(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


def test_values_gradients_statistics_and_coordinates_are_minkowski_engines():
    stored = dict(np.load(Path(__file__).with_name("minkowski_expectations.npz")))
    layers = nn.ModuleDict(
        {
            "conv": Conv3d(2, 3, 3),
            "norm": BatchNorm(3, momentum=0.05),
            "down": Conv3d(3, 4, 2, 2),
            "dilated": Conv3d(4, 4, 3, dilation=2),
            "up": ConvTranspose3d(4, 3, 2, 2),
            "point": Conv3d(6, 3, 1, bias=True),
            "last": Conv3d(3, 2, (3, 1, 5), (2, 1, 2)),
        }
    ).double()
    layers.load_state_dict({n[6:]: torch.from_numpy(t) for n, t in stored.items() if n.startswith("state ")})
    feature = torch.from_numpy(stored["feature"]).requires_grad_()

    tensor = SparseTensor(feature, torch.from_numpy(stored["coordinate"]))
    skip = ReLU()(layers["norm"](layers["conv"](tensor)))
    coarse = layers["dilated"](layers["down"](skip))
    fine = layers["point"](concatenate(layers["up"](coarse), skip))
    out = layers["last"](fine)
    loss = torch.zeros((), dtype=torch.float64)
    for name, result in (("coarse", coarse), ("fine", fine), ("out", out)):
        order = torch.from_numpy(np.lexsort(result.coordinate.numpy().T[::-1]))
        np.testing.assert_array_equal(result.coordinate[order].numpy(), stored[f"coordinate {name}"])
        values = result.feature.index_select(0, order)
        assert apart(values.detach(), stored[f"feature {name}"]) < 1e-9, name
        loss = loss + (values * torch.from_numpy(stored[f"weight {name}"])).sum()
    loss.backward()

    assert apart(feature.grad, stored["gradient feature"]) < 1e-9
    for name, parameter in layers.named_parameters():
        assert apart(parameter.grad, stored[f"gradient {name}"]) < 1e-9, name
    for name, buffer in layers.named_buffers():
        assert apart(buffer, stored[f"after {name}"]) < 1e-9, name
