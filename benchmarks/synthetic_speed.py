"""How fast synthetic frames are made: end to end at two sizes, and how the cost grows with pixels and objects.

python benchmarks/synthetic_speed.py [--workers 2] [--frames 100] [--rounds 3]

Of several rounds the median is printed, with the slowest and the fastest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from olivine.synthetic.camera import take_picture
from olivine.synthetic.capture import ego_matrix
from olivine.synthetic.kinds import KIND
from olivine.synthetic.parts import Parts
from olivine.synthetic.raycast import build_hierarchy
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.stage import stage_at
from olivine.synthetic.sun import sun_grid
from olivine.synthetic.world import World, make_world
from olivine.synthetic.write import write_dataset


def end_to_end(scale: float, frames: int, workers: int, rounds: int) -> None:
    settings = SyntheticSettings(scenes=2, frames=frames // 2, image_scale=scale, workers=workers)
    rate, busy = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            start, cpu = time.perf_counter(), sum(_cpu())
            made = write_dataset(settings, Path(folder) / "set").frames
            rate.append(made / (time.perf_counter() - start))
            busy.append((sum(_cpu()) - cpu) / made)
    print(
        f"image scale {scale:4.2f}, {workers} workers: {np.median(rate):5.2f} frames/s ({min(rate):.2f} to "
        f"{max(rate):.2f}; {rounds} x {made} frames with start and tables; {np.median(busy):.2f} core-seconds each)"
    )


def _cpu() -> tuple[float, float]:
    import resource

    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def pictures(world: World, scale: float) -> float:
    """Core-seconds for the six pictures."""
    stage, pose = stage_at(world, 2.0), world.ego.pose(2.0)
    best = np.inf
    for _ in range(2):
        start = time.process_time()
        for mount in nuscenes_rig().cameras:
            width, height, lens = mount.scaled(scale)
            to_street = ego_matrix(pose) @ mount.to_ego
            take_picture(world, stage, to_street, lens, width, height, gain=1.0, grain=2.0, noise_seed=1)
        best = min(best, time.process_time() - start)
    return best


def thinned(world: World, share: float) -> World:
    """The same street with a share of its things (all of its ground)."""
    rng = np.random.default_rng(0)
    still = world.still
    ground = np.isin(still.kind, [KIND["sidewalk"], KIND["terrain"]])
    chosen = ground | (rng.random(len(still)) < share)
    parts = Parts(**{name: getattr(still, name)[chosen] for name in still.__dataclass_fields__})
    tree = build_hierarchy(parts)
    flat = np.isin(parts.kind, [KIND["sidewalk"], KIND["terrain"]])
    shade = sun_grid(tree.solids, world.light.to_sun, flat)
    return replace(world, still=parts, tree=tree, shade=shade)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    world = make_world(0, 0, 20.0)
    pictures(world, 0.05)  # compile
    end_to_end(0.05, 2, 1, 1)
    end_to_end(0.25, options.frames, options.workers, options.rounds)
    end_to_end(1.0, max(options.frames // 10, 4), options.workers, 1)
    print("\ncost of the six pictures with shadows, one core")
    for scale in (0.125, 0.25, 0.5, 1.0):
        pixels = sum(w * h for w, h, _ in (c.scaled(scale) for c in nuscenes_rig().cameras))
        seconds = pictures(world, scale)
        print(
            f"  scale {scale:5.3f}: {pixels / 1e6:5.2f} Mpixel, {seconds:6.3f} s, {1e6 * seconds / pixels:.3f} us a pixel"
        )
    for share in (0.125, 0.25, 0.5, 1.0):
        thin = thinned(world, share)
        print(f"  {len(thin.still):6d} solids: {pictures(thin, 0.25):.3f} s at scale 0.25")


if __name__ == "__main__":
    main()
