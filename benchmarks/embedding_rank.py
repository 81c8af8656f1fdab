"""How many dimensions pre-trained embeddings use: the effective rank of the network's features and of each point head.

exp of the entropy of the squared singular values (Roy and Vetterli, 2007), between 1 (all points alike) and the width.
Each checkpoint's network sees the same held-out frames, not augmented. Where a run kept class statistics (eq. 6-9), also
the mean cosine between two classes' mean directions, which says how far apart what L_kl pulls to lies (1: all one
point), and the mean κ.

    python benchmarks/embedding_rank.py SHARDS RUN [RUN …] [--frames 8]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import fmean, stdev

import torch

from olivine.pairs.shards import ShardSet, open_shards
from olivine.train.backbone import Clouds
from olivine.train.checkpoint import load_backbone
from olivine.train.settings import VoxelSettings
from olivine.train.vmf import effective_rank, estimate_kappa
from olivine.train.voxelize import voxelize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="held-out frames")
    parser.add_argument("runs", type=Path, nargs="+", help="runs' folders or checkpoints; of a study: <row>.seed-<k>.…")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    shards = open_shards(options.shards)
    rows: dict[str, list[dict[str, float]]] = {}
    for run in options.runs:
        rank = ranks(shards, run, options.frames)
        print(f"{run.name:<48}" + "".join(f"  {name} {value:.2f}" for name, value in rank.items()), flush=True)
        rows.setdefault(re.sub(r"\.seed-\d+\..*", "", run.name), []).append(rank)
    print("\nmean over the runs of a row (standard deviation)")
    for row, found in rows.items():
        cells = []
        for name in found[0]:
            values = [rank[name] for rank in found]
            cells.append(f"  {name} {fmean(values):.2f} ({stdev(values) if len(values) > 1 else 0:.2f})")
        print(f"{row:<32}{len(found):>3} runs" + "".join(cells))


def ranks(shards: ShardSet, run: Path, frames: int) -> dict[str, float]:
    """Effective ranks of the features (``trunk``) and of each point head's unit embeddings; and :func:`statistics`."""
    network, content = load_backbone(run)
    network.eval()
    voxels = VoxelSettings(**content["settings"]["voxels"])
    kept: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for index in torch.linspace(0, len(shards) - 1, min(frames, len(shards))).long().tolist():
            points = torch.from_numpy(shards[index].points.copy())
            points[:, 3] += shards.intensity_offset
            found = voxelize(points, [len(points)], voxels)
            features = network.encode(Clouds(points, torch.zeros(len(points), dtype=torch.int64), found, voxels))
            kept.setdefault("trunk", []).append(features.raw())
            for name, head in heads(network, content).items():
                kept.setdefault(name, []).append(features.embed(head))
    return {name: effective_rank(torch.cat(values)) for name, values in kept.items()} | statistics(content)


def statistics(content: dict) -> dict[str, float]:
    """Mean cosine of two classes' mean directions, and the mean κ of the classes that have one."""
    mean = content["method_state"].get("statistics.mean")
    if mean is None or not bool((known := mean.norm(dim=1) > 0).any()):
        return {}
    length = mean[known].norm(dim=1)
    direction = mean[known] / length[:, None]
    count = len(direction)
    cosine = ((direction @ direction.T).sum() - count) / max(count * (count - 1), 1)
    return {"cosine": float(cosine), "kappa": float(estimate_kappa(length, mean.shape[1]).mean())}


def heads(network: torch.nn.Module, content: dict) -> dict[str, torch.nn.Module]:
    """The method's point heads, by the names that they have in exported files."""
    made = {}
    for exported, module in content.get("exported_heads", {}).items():
        state = {
            name.removeprefix(f"{module}."): tensor
            for name, tensor in content["method_state"].items()
            if name.startswith(f"{module}.")
        }
        if state:
            width = next(tensor.shape[-1] for name, tensor in state.items() if name.endswith("bias"))
            made[exported] = network.new_head(width, torch.Generator())
            made[exported].load_state_dict(state)
    return made


if __name__ == "__main__":
    main()
