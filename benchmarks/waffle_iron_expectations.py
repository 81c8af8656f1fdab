"""Make the small case of WaffleIron's own forward pass that the tests compare with, and compare a large one at once.

    git clone https://github.com/valeoai/WaffleIron
    python benchmarks/waffle_iron_expectations.py WaffleIron tests/train/waffle_iron_expectations.npz

The network is the public code's Segmenter (commit bcd387c), its cells and neighbours those of its data set's class. Two
clouds, the second shorter, so that the public code pads it. With ``--large N`` also WaffleIron-48-768 on a random cloud
of N points beside ours: the largest difference, and the seconds of both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

NEIGHBORS = 16


def inputs(reference: Any, clouds: list[np.ndarray], low: tuple, high: tuple, cells: tuple) -> tuple[torch.Tensor, ...]:
    """(x, y, z, normalised intensity) clouds [N, 4] as the public code's collate gives them to its network."""
    made = reference.PCDataset.__new__(reference.PCDataset)
    x, y, z = cells
    made.dim_proj, made.grids_shape = [2, 1, 0], [np.array(g) for g in ((x, y), (x, z), (y, z))]
    made.lut_axis_plane, made.fov_xyz = {0: (1, 2), 1: (0, 2), 2: (0, 1)}, np.array([low, high], dtype=np.float64)
    made.input_feat = ["intensity", "xyz", "radius"]
    parts = []
    for cloud in clouds:
        pc = made.prepare_input_features(cloud)
        _, near = cKDTree(pc[:, :3]).query(pc[:, :3], k=NEIGHBORS + 1)
        cell = made.get_occupied_2d_cells(pc)[None]
        parts.append((pc[:, 3:].T[None], np.zeros(len(pc)), cell, near.T[None], np.arange(len(pc)), ""))
    out = reference.Collate()(parts)
    return out["feat"], out["cell_ind"], out["occupied_cells"], out["neighbors_emb"]


def scatter(count: int, low: tuple, high: tuple, generator: np.random.Generator) -> np.ndarray:
    """A cloud within a range, denser near the middle; its intensity is normalised."""
    middle, half = (np.array(high) + low) / 2, (np.array(high) - low) / 2
    place = generator.uniform(-0.999, 0.999, (count, 3)) * generator.uniform(0.02, 1, (count, 1))
    return np.concatenate([middle + place * half, generator.normal(size=(count, 1))], 1).astype(np.float32)


def randomize(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Random norms and statistics, so that every parameter matters; the other weights stay as they are drawn."""
    for name, value in network.state_dict().items():
        norm = ".norm" in name or ".conv2.0." in name or ".conv2.2." in name
        if norm and name.endswith(("running_var", "weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif norm and name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--large", type=int, default=0, metavar="POINTS")
    given = parser.parse_args()
    sys.path.insert(0, str(given.checkout))
    import waffleiron
    from datasets import pc_dataset as reference

    low, high, cells = (-8.0, -6.0, -2.0), (8.0, 6.0, 2.0), (16, 12, 4)
    grids = [(16, 12), (16, 4), (12, 4)]
    saved: dict[str, Any] = {}
    for norm in ("layernorm", "batchnorm"):
        torch.manual_seed(4)
        clouds = [scatter(n, low, high, np.random.default_rng(n)) for n in (90, 60)]
        network = waffleiron.Segmenter(5, 8, 3, 4, grids, which_norm=norm, layer_norm=norm == "layernorm").eval()
        randomize(network, torch.Generator().manual_seed(5))
        with torch.no_grad():
            out = network(*inputs(reference, clouds, low, high, cells))
        saved |= {f"{norm} state {name}": value.numpy() for name, value in network.state_dict().items()}
        saved |= {f"{norm} out {i}": out[i, :, : len(c)].T.numpy() for i, c in enumerate(clouds)}
        saved |= {f"cloud {i}": cloud for i, cloud in enumerate(clouds)}
    np.savez_compressed(given.out, **saved)
    print(f"{len(saved)} arrays of WaffleIron {waffleiron.__version__} in {given.out}")
    if given.large:
        large(waffleiron, reference, given.large)


def large(waffleiron: Any, reference: Any, count: int) -> None:
    """WaffleIron-48-768 by both."""
    from olivine.train.backbones.waffle_iron import WaffleIron48x768

    low, high, cells = (-64.0, -64.0, -8.0), (64.0, 64.0, 8.0), (256, 256, 32)
    clouds = [scatter(count, low, high, np.random.default_rng(1))]
    torch.manual_seed(6)
    theirs = waffleiron.Segmenter(5, 768, 8, 48, [(256, 256), (256, 32), (256, 32)], layer_norm=True).eval()
    theirs.classif = torch.nn.Identity()
    randomize(theirs, torch.Generator().manual_seed(7))
    ours = WaffleIron48x768(intensity_mean=0.0, intensity_std=1.0).eval()
    ours.load_state_dict(theirs.state_dict())
    given = inputs(reference, clouds, low, high, cells)
    points = torch.from_numpy(clouds[0])
    with torch.no_grad():
        begun = time.perf_counter()
        expected = theirs(*given)[0].T
        middle = time.perf_counter()
        found = ours.tokens(points, points[:, :3], torch.zeros(len(points), dtype=torch.int64))
        ended = time.perf_counter()
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    print(
        f"WaffleIron-48-768, {count} points: relative difference {error:.1e}, of any value "
        f"{(found - expected).abs().max() / expected.std():.1e} of the standard deviation"
    )
    print(
        f"forward pass {ended - middle:.2f} s, neighbours included; the public code's {middle - begun:.2f} s without them"
    )


if __name__ == "__main__":
    main()
