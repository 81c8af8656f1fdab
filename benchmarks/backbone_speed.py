"""A step of WaffleIron-48-768 beside one of SR-UNet34, each as its paper's preset has it, on the same synthetic keyframe.

Forward and backward, the making of voxels' kernel maps, planes and neighbours included. The two networks take turns;
medians are printed, of the clock and of processor time, which suffers less from what else the machine does, and of the
rounds' ratios. What a whole backward pass keeps of the forward pass is counted as well: of
WaffleIron it is more than the memory of small machines, so its blocks are run forward and backward one at a time, which
is the same work (the gradient that a block gets is made up).

    python benchmarks/backbone_speed.py [--rounds 3] [--threads 1] [--blocks 48]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from olivine.synthetic import nuscenes
from olivine.synthetic.capture import capture
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.world import make_world
from olivine.train.backbone import Clouds
from olivine.train.build import seeded_backbone
from olivine.train.settings import load_settings
from olivine.train.voxelize import voxelize


def keyframe() -> Tensor:
    """A synthetic sweep of nuScenes' LiDAR, float32 [N, 4]."""
    world = make_world(7, 0, 20.0)
    rig, model = nuscenes_rig(), nuscenes.MODEL
    return torch.from_numpy(
        capture(world, rig, seconds=10.0, frame=0, image_scale=0.02, model=model, keep_lost=True).points
    )


class Meter:
    """Seconds of the clock and of the processor, forward and backward, and what is kept for the backward pass."""

    def __init__(self) -> None:
        self.seconds = {"forward": 0.0, "backward": 0.0, "processor": 0.0}
        self.kept: dict[int, int] = {}
        self.bytes = 0

    @property
    def clock(self) -> float:
        """Forward and backward."""
        return self.seconds["forward"] + self.seconds["backward"]

    @contextmanager
    def measuring(self, way: str) -> Iterator[None]:
        """Add what passes in here."""
        begin, start = time.process_time(), time.perf_counter()
        yield
        self.seconds[way] += time.perf_counter() - start
        self.seconds["processor"] += time.process_time() - begin

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Forward and backward of one part of a network; its value, without gradient."""
        self.kept.clear()
        with self.measuring("forward"), torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            value = function()
        self.bytes += sum(self.kept.values())
        gradient = torch.full_like(value, 1 / value.numel())
        with self.measuring("backward"):
            value.backward(gradient)
        return value.detach()

    def _keep(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self.kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def whole(network: Any, clouds: Clouds) -> Meter:
    """A step of a network whose backward pass fits."""
    meter = Meter()
    meter.run(lambda: network.encode(clouds).cells.feature)
    return meter


def by_blocks(network: Any, clouds: Clouds) -> Meter:
    """A step of WaffleIron, one block at a time."""
    from olivine.train.backbones._waffle_iron import nearest

    meter, feature = Meter(), clouds.voxels.feature
    xyz, cloud = feature[:, :3], clouds.voxels.coordinate[:, 0].long()
    with meter.measuring("forward"):
        planes, near = network.planes(xyz, cloud), nearest(xyz, cloud, network.settings.neighbors)
        given = torch.cat([feature[:, 3:], xyz, torch.linalg.vector_norm(xyz, dim=1, keepdim=True)], 1)
    tokens = meter.run(lambda: network.embed(given, near))
    blocks = zip(network.waffleiron.spatial_mix, network.waffleiron.channel_mix)
    for number, (spatial, channel) in enumerate(blocks):
        tokens.requires_grad_(True)
        tokens = meter.run(lambda: channel(spatial(tokens, planes[number % 3])))  # noqa: B023  run at once
    return meter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="steps of each network (default 3), after a short one")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--blocks", type=int, default=48, help="of WaffleIron (default 48, the published network's)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    points = keyframe()
    print(f"{len(points):,} points, {given.threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
    waffle = f"WaffleIron-{given.blocks}-768"
    settings = {"SR-UNet34": load_settings("paper"), waffle: load_settings("scalr", [f"backbone.depth={given.blocks}"])}
    networks = {name: seeded_backbone(one, 0).train() for name, one in settings.items()}

    def step(name: str, cloud: Tensor) -> Meter:
        voxels = settings[name].voxels
        made = voxelize(cloud, [len(cloud)], voxels)
        clouds = Clouds(cloud, torch.zeros(len(cloud), dtype=torch.int64), made, voxels)
        networks[name].zero_grad(set_to_none=False)
        return (by_blocks if name == waffle else whole)(networks[name], clouds)

    for name in networks:
        step(name, points[:2000])  # loops are compiled, and gradients there
    found: dict[str, list[Meter]] = {name: [] for name in networks}
    for number in range(given.rounds):
        for name in list(networks)[:: 1 if number % 2 else -1]:
            found[name].append(step(name, points))
            print(f"  round {number + 1}: {name}, {found[name][-1].seconds}", flush=True)
    for name, meters in found.items():
        count = len(voxelize(points, [len(points)], settings[name].voxels).coordinate)
        both = statistics.median(m.clock for m in meters)
        forward, processor = (statistics.median(m.seconds[key] for m in meters) for key in ("forward", "processor"))
        print(
            f"{name}: {count:,} voxels, forward {forward:.2f} s, forward and backward {both:.2f} s, "
            f"processor time {processor:.2f} s, kept for the backward pass {meters[0].bytes / 2**30:.1f} GiB"
        )
    pairs = list(zip(found[waffle], found["SR-UNet34"], strict=True))
    clock = statistics.median(a.clock / b.clock for a, b in pairs)
    processor = statistics.median(a.seconds["processor"] / b.seconds["processor"] for a, b in pairs)
    print(f"{waffle} takes {clock:.1f} times as long by the clock, {processor:.1f} times by processor time")


if __name__ == "__main__":
    main()
