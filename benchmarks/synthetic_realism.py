"""How close the synthetic world comes to the real sensors: figures side by side with a real keyframe and a real frame.

python benchmarks/synthetic_realism.py [--data ../shared/data] [--scenes 12] [--frames 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from olivine.synthetic import kitti, nuscenes
from olivine.synthetic.capture import Capture, capture, ego_matrix
from olivine.synthetic.kinds import CLASSES, KIND, KINDS, PROMPT_OF_KIND
from olivine.synthetic.rig import Rig, kitti_rig, nuscenes_rig
from olivine.synthetic.world import make_world

NEAR = 1.0
"""Metres: nearer points are the ego vehicle's roof and rays without a return."""


def sample(rig: Rig, model: object, scenes: int, frames: int, step: float, keep_lost: bool, seed: int) -> list[Capture]:
    shots = []
    for scene in range(scenes):
        world = make_world(seed, scene, 20.0)
        for frame in range(frames):
            seconds = step * round((frame + 0.5) / frames * 20.0 / step)
            shots.append(
                capture(
                    world,
                    rig,
                    seconds=seconds,
                    frame=frame,
                    image_scale=0.02,
                    model=model,  # type: ignore[arg-type]
                    keep_lost=keep_lost,
                )
            )
    return shots


def pairs_per_camera(shot: Capture, rig: Rig) -> list[int]:
    """Points in each camera's image at full size: depth over 1 m, inside by the usual rule."""
    counts = []
    to_street = ego_matrix(shot.ego) @ rig.lidar.to_ego
    xyz = shot.points[:, :3].astype(np.float64) @ to_street[:3, :3].T + to_street[:3, 3]
    for view in shot.shots:
        mount = view.mount
        camera = np.linalg.inv(ego_matrix(view.ego) @ mount.to_ego)
        local = xyz @ camera[:3, :3].T + camera[:3, 3]
        depth = local[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            uv = local @ mount.intrinsic.T
            u, v = uv[:, 0] / depth, uv[:, 1] / depth
        inside = (depth > 1) & (u > 0) & (u < mount.width - 1) & (v > 0) & (v < mount.height - 1)
        counts.append(int(inside.sum()))
    return counts


def distance(points: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.linalg.norm(points[:, :3].astype(np.float64), axis=1)


def shares(shots: list[Capture]) -> None:
    kinds = np.concatenate([s.sweep.kind for s in shots])
    labelled = ~np.isin(kinds, [KIND["nothing"], KIND["ego"]])
    count = np.bincount(PROMPT_OF_KIND[kinds[labelled]], minlength=len(CLASSES))
    print(f"\n{'class':14s} {'share of the labelled points':>28s}")
    for name, share in zip(CLASSES, count / count.sum()):
        print(f"{name or '(poles, signs)':14s} {100 * share:27.2f}%")
    things = [k for k, kind in enumerate(KINDS) if kind.prompt in CLASSES[1:9]]
    boxed = np.isin(kinds, things)
    bicycle = np.isin(kinds, [KIND["bicycle"], KIND["cyclist"]])
    print(f"bicycles among the points of annotated objects: {100 * bicycle.sum() / boxed.sum():.2f}%")


def real_keyframe(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    file = next((folder / "nuscenes-keyframe" / "samples" / "LIDAR_TOP").glob("*.bin"))
    raw = np.fromfile(file, np.float32).reshape(-1, 5)
    return raw[:, :4], raw[:, 4].astype(np.int64)


def nuscenes_table(folder: Path, shots: list[Capture], rig: Rig) -> None:
    real, beam = real_keyframe(folder)
    far = distance(real) > NEAR
    everything = np.concatenate([distance(s.points) for s in shots])
    print(f"nuScenes form, {len(shots)} frames against the real keyframe")
    print(f"{'':44s}{'real':>9s}{'synthetic':>11s}{'range over frames':>20s}")

    def row(name: str, value: float, made: list[float], digits: int = 0) -> None:
        span = f"{min(made):.{digits}f} to {max(made):.{digits}f}"
        print(f"{name:44s}{value:9.{digits}f}{float(np.mean(made)):11.{digits}f}{span:>20s}")

    row("points", len(real), [len(s.points) for s in shots])
    row("points beyond 1 m", int(far.sum()), [int((distance(s.points) > NEAR).sum()) for s in shots])
    for q in (10, 25, 50, 75, 90, 95, 99):
        value = float(np.percentile(distance(real)[far], q))
        made = [float(np.percentile(d[d > NEAR], q)) for d in (distance(s.points) for s in shots)]
        row(f"distance beyond 1 m, {q}th percentile, m", value, made, 1)
    for q in (25, 50, 75, 95):
        value = float(np.percentile(real[far, 3], q))
        made = [float(np.percentile(s.points[distance(s.points) > NEAR, 3], q)) for s in shots]
        row(f"intensity beyond 1 m, {q}th percentile", value, made)
    print("\nKolmogorov-Smirnov statistic of the distances (all frames together; median, range of single frames)")
    for name, low in (("all points", 0.0), ("beyond 1 m", NEAR)):
        base = distance(real)
        base = base[base >= low]
        single = [ks_2samp(base, d[d >= low]).statistic for d in (distance(s.points) for s in shots)]
        together = ks_2samp(base, everything[everything >= low]).statistic
        print(f"{name:12s} {together:.3f}   ({np.median(single):.3f}, {min(single):.3f} to {max(single):.3f})")
    print("\nreturns beyond 1 m per beam (real | synthetic mean)")
    made_beams = np.mean([np.bincount(s.beam[distance(s.points) > NEAR], minlength=32) for s in shots], axis=0)
    real_beams = np.bincount(beam[far], minlength=32)
    for start in range(0, 32, 8):
        line = range(start, start + 8)
        print("  ".join(f"{k:2d}:{real_beams[k]:5d}|{made_beams[k]:5.0f}" for k in line))
    correlation = np.corrcoef(real_beams, made_beams)[0, 1]
    worst = np.abs(real_beams - made_beams).max()
    print(f"correlation {correlation:.3f}, largest difference {worst:.0f} of 1084")
    print("\npairs per camera (depth > 1 m, full size)")
    counts = np.array([pairs_per_camera(s, rig) for s in shots])
    for k, name in enumerate(c.name for c in rig.cameras):
        row(f"  {name}", REAL_PAIRS[name], counts[:, k].tolist())
    row("  all", sum(REAL_PAIRS.values()), counts.sum(axis=1).tolist())


# Of the keyframe, by the same rule through nuscenes-devkit's tables (22,115 in all).
REAL_PAIRS: dict[str, int] = {}


def count_real_pairs(folder: Path) -> None:
    from olivine.pairs.project import project_points
    from olivine.readers import open_dataset

    frame = open_dataset("nuscenes", folder / "nuscenes-keyframe").frames()[0]
    camera = project_points(frame.points(), frame.cameras)[1]
    for k, c in enumerate(frame.cameras):
        REAL_PAIRS[c.name] = int((camera == k).sum())


def kitti_table(folder: Path, shots: list[Capture], rig: Rig) -> None:
    raw = np.fromfile(folder / "kitti-odometry-frame/sequences/00/velodyne/000000.bin", np.float32).reshape(-1, 4)
    print(f"\nKITTI form, {len(shots)} frames against the real frame (which is cropped to the camera's view)")
    counts = [len(s.points) for s in shots]
    print(f"returns of a turn: {np.mean(counts):.0f} ({min(counts)} to {max(counts)})")
    in_view = [pairs_per_camera(s, rig)[0] for s in shots]
    print(f"points in image_2: real {len(raw)}, synthetic {np.mean(in_view):.0f} ({min(in_view)} to {max(in_view)})")
    made = np.concatenate([_view(s, rig) for s in shots])
    print(f"Kolmogorov-Smirnov statistic of their distances: {ks_2samp(distance(raw), distance(made)).statistic:.3f}")
    for q in (5, 25, 50, 75, 95):
        a, b = np.percentile(distance(raw), q), np.percentile(distance(made), q)
        c, d = np.percentile(raw[:, 3], q), np.percentile(made[:, 3] / 255, q)
        print(f"{q:3d}th percentile: distance {a:5.1f} | {b:5.1f} m, reflectance {c:.2f} | {d:.2f}")


def _view(shot: Capture, rig: Rig) -> NDArray[np.float32]:
    azimuth = np.degrees(np.arctan2(shot.points[:, 1], shot.points[:, 0]))
    elevation = np.degrees(np.arcsin(shot.points[:, 2] / distance(shot.points)))
    return shot.points[(np.abs(azimuth) < 40.0) & (elevation > -14.7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1].parent / "shared" / "data")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rig = nuscenes_rig()
    count_real_pairs(options.data)
    shots = sample(rig, nuscenes.MODEL, options.scenes, options.frames, 0.5, True, options.seed)
    nuscenes_table(options.data, shots, rig)
    shares(shots)
    shots = sample(kitti_rig(), kitti.MODEL, options.scenes, 1, 0.1, False, options.seed)
    kitti_table(options.data, shots, kitti_rig())


if __name__ == "__main__":
    main()
