"""What the sparse engine's compiled CPU loops buy: the same step with the loops on and off, in one run.

Forward and backward of SR-UNet34 on one cloud at the paper's voxel size, and of srunet-small on the CPU preset's batch
and voxels, on clouds of the synthetic world. Steps with and without the loops take turns; medians are printed, of the
clock and of processor time, which suffers less from what else the machine does.

    python benchmarks/sparse_loops.py [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

from olivine.synthetic import nuscenes
from olivine.synthetic.capture import capture
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.world import make_world
from olivine.train.backbones import build_backbone
from olivine.train.settings import load_settings
from olivine.train.sparse import SparseTensor, loops
from olivine.train.voxelize import Voxels, voxelize


def synthetic_voxels(preset: str, clouds: int) -> Voxels:
    """The voxels of a batch of synthetic sweeps, each of another street, with a preset's settings."""
    points = []
    for scene in range(clouds):
        world = make_world(7, scene, 20.0)
        shot = capture(
            world, nuscenes_rig(), seconds=10.0, frame=0, image_scale=0.02, model=nuscenes.MODEL, keep_lost=True
        )
        points.append(torch.from_numpy(shot.points))
    return voxelize(torch.cat(points), [len(cloud) for cloud in points], load_settings(preset).voxels)


def step(network: Any, voxels: Voxels) -> dict[str, float]:
    """Seconds of one forward and backward pass, kernel maps included."""
    network.zero_grad()
    begin, start = time.process_time(), time.perf_counter()
    out = network.features(SparseTensor(voxels.feature, voxels.coordinate))
    middle = time.perf_counter()
    out.feature.square().mean().backward()
    end = time.perf_counter()
    return {"forward": middle - start, "backward": end - middle, "processor": time.process_time() - begin}


def compare(name: str, voxels: Voxels, rounds: int) -> None:
    """Print a network's step with and without the loops, and the ratio."""
    network = build_backbone(name)
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for number in range(rounds + 1):
        for on in (True, False) if number % 2 else (False, True):
            loops.switch(on)
            seconds = step(network, voxels)
            if number:  # the first round compiles
                found[on].append(seconds)
    median = {on: {key: statistics.median(s[key] for s in found[on]) for key in found[on][0]} for on in (True, False)}
    clock = {on: statistics.median(s["forward"] + s["backward"] for s in found[on]) for on in (True, False)}
    print(f"{name}, {len(voxels.coordinate):,} voxels, {rounds} rounds")
    for on in (False, True):
        m = median[on]
        print(
            f"  loops {'on ' if on else 'off'}  forward {m['forward']:.3f} s  backward {m['backward']:.3f} s  "
            f"step {clock[on]:.3f} s  processor time {m['processor']:.3f} s"
        )
    processor = median[False]["processor"] / median[True]["processor"]
    print(
        f"  {clock[False] / clock[True]:.2f} times as fast by the clock, {processor:.2f} by processor time", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each kind (default 7)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    options = parser.parse_args()
    if not loops.available():
        print(f"the loops do not run here: the CPU lacks the vectors, numba is missing, or {loops.SWITCH}=0")
        return
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, load average {os.getloadavg()[0]:.1f}")
    compare("srunet-small", synthetic_voxels("cpu", load_settings("cpu").run.batch), options.rounds)
    compare("srunet34", synthetic_voxels("paper", 1), options.rounds)


if __name__ == "__main__":
    main()
