"""How good and how fast the two-scan clusters of `build-pairs --clusters` are, on synthetic scenes with known objects.

An object is a vehicle, a person, a cone … with an instance of its own; all scenery (buildings, trees, poles) counts as
one. A moving object is matched when one cluster holds at least half of its points in both scans.

    python benchmarks/cluster_scans.py [--seed 3] [--scenes 6] [--frames 4] [--gap 1] [--most-points 30000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from olivine.pairs.clusters import ClusterSettings, SceneClusters
from olivine.readers.frame import Frame
from olivine.synthetic.capture import Capture, capture, ego_matrix
from olivine.synthetic.nuscenes import MODEL, STEP_US
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.world import make_world

LEAST = 10  # points of an object in each scan, for it to be counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--gap", type=int, default=1)
    parser.add_argument("--most-points", type=int, default=ClusterSettings().most_points)
    options = parser.parse_args()
    settings = ClusterSettings(most_points=options.most_points)
    rig = replace(nuscenes_rig(), cameras=())
    seconds, pairs = 0.0, 0
    clustered = pure = on_objects = pure_on_objects = usable = 0
    moving = [0, 0]
    standing = [0, 0]
    for scene in range(options.scenes):
        world = make_world(options.seed, scene, options.frames * STEP_US * 1e-6)
        shots = [
            capture(world, rig, seconds=k * STEP_US * 1e-6, frame=k, image_scale=0.1, model=MODEL, keep_lost=True)
            for k in range(options.frames)
        ]
        with tempfile.TemporaryDirectory() as folder:
            members = [_frame(Path(folder), scene, k, shot, rig.lidar.to_ego) for k, shot in enumerate(shots)]
            clusters = SceneClusters(members, options.gap, settings)
            started = time.process_time()
            columns = [clusters.columns(k) for k in range(options.frames)]
            seconds += time.process_time() - started
        for k in range(options.frames - options.gap):
            one, two = shots[k], shots[k + options.gap]
            label = [columns[k]["cluster_next"], columns[k + options.gap]["cluster_previous"]]
            owner = np.concatenate([one.instance, two.instance]).astype(np.int64)
            joint = np.concatenate(label)
            inside = joint >= 0
            single = _one_object(joint[inside], owner[inside])
            objects = owner[inside] > 0
            usable += int((owner > 0).sum())
            clustered, pure = clustered + int(inside.sum()), pure + int(single.sum())
            on_objects, pure_on_objects = on_objects + int(objects.sum()), pure_on_objects + int(single[objects].sum())
            for instance, moves in _objects(one, two):
                tally = moving if moves else standing
                tally[0] += 1
                tally[1] += _matched(label, (one.instance == instance, two.instance == instance))
            pairs += 1
    print(f"{pairs} pairs of scans, {clustered / pairs / 2:.0f} points of a scan in clusters")
    print(f"points whose cluster holds one object only: {100 * pure / clustered:.1f} %")
    print(
        f"points of objects: {100 * on_objects / usable:.1f} % in a cluster, of those {100 * pure_on_objects / on_objects:.1f} %"
        " in one that holds this object only"
    )
    for name, (seen, matched) in (("standing", standing), ("moving", moving)):
        print(f"{name} objects that are matched: {matched} of {seen} ({100 * matched / max(seen, 1):.1f} %)")
    print(f"{seconds / pairs:.2f} s of processor time a pair of scans; a frame of a long scene has one")


def _frame(folder: Path, scene: int, k: int, shot: Capture, to_ego: NDArray[np.float64]) -> Frame:
    name = f"{scene}-{k}.bin"
    shot.points.tofile(folder / name)
    pose = ego_matrix(shot.ego) @ to_ego
    return Frame(
        "synthetic", "", folder, f"{scene}-{k}", str(scene), "train", k * STEP_US, name, 4, pose, (), reader="nuscenes"
    )


def _one_object(cluster: NDArray[np.int16], owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which points are in a cluster that holds points of one owner only."""
    order = np.lexsort((owner, cluster))
    cluster_of, owner_of = cluster[order], owner[order]
    starts = np.flatnonzero(np.diff(cluster_of, prepend=-2))
    counts = np.diff(np.append(starts, len(cluster_of)))
    single = np.repeat(owner_of[starts] == owner_of[starts + counts - 1], counts)
    found = np.empty(len(cluster), bool)
    found[order] = single
    return found


def _objects(one: Capture, two: Capture) -> list[tuple[int, bool]]:
    """Instances with enough points in both scans, and whether they move."""
    counts = [np.bincount(shot.instance, minlength=1 << 16) for shot in (one, two)]
    found = np.flatnonzero((counts[0] >= LEAST) & (counts[1] >= LEAST))
    moves = np.bincount(one.instance, weights=one.moving, minlength=1 << 16) > 0
    return [(int(instance), bool(moves[instance])) for instance in found if instance > 0]


def _matched(label: list[NDArray[np.int16]], rows: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> bool:
    held = [np.bincount(part[row][part[row] >= 0], minlength=1000) / row.sum() for part, row in zip(label, rows)]
    return bool(((held[0] >= 0.5) & (held[1] >= 0.5)).any())


if __name__ == "__main__":
    main()
