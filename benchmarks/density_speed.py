"""distance_density against scipy.stats.gaussian_kde and the sum as written, on one frame's distances.

python benchmarks/density_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import gaussian_kde

from olivine.pairs.density import bandwidth_of, distance_density

KEYFRAME = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes-keyframe" / "samples" / "LIDAR_TOP"


def distances() -> tuple[np.ndarray, str]:
    files = list(KEYFRAME.glob("*.pcd.bin"))
    if files:
        points = np.fromfile(files[0], np.float32).reshape(-1, 5)[:, :3]
        return np.linalg.norm(points.astype(np.float64), axis=1), "the real keyframe"
    return np.random.default_rng(0).gamma(1.5, 9, 34_688), "made up (the real keyframe is not here)"


def timed(function: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    best = np.inf
    for _ in range(repeats):
        started = time.process_time()
        result = function()
        best = min(best, time.process_time() - started)
    return best, result


def brute_force(d: np.ndarray, h: float) -> np.ndarray:
    """Eq. 14 as written, in float64, a block of rows at a time."""
    rows = [np.exp(-0.5 * ((block[:, None] - d) / h) ** 2).sum(1) for block in np.array_split(d, 64)]
    return np.concatenate(rows) / (len(d) * h * np.sqrt(2 * np.pi))


def main() -> None:
    d, source = distances()
    h = bandwidth_of(d)
    distance_density(d)  # compiles
    ours, density = timed(lambda: distance_density(d), 20)
    brute, exact = timed(lambda: brute_force(d, h), 1)
    peer, scipys = timed(lambda: gaussian_kde(d, bw_method=h / np.std(d, ddof=1))(d), 1)
    million = np.random.default_rng(0).gamma(1.5, 9, 1_000_000)
    large, _ = timed(lambda: distance_density(million), 2)
    print(f"{len(d)} distances, {source}, h = {h:.3f} m")
    print(f"distance_density    {1e3 * ours:9.2f} ms   largest relative error {np.abs(density / exact - 1).max():.1e}")
    print(f"the sum as written  {1e3 * brute:9.0f} ms   {brute / ours:.0f} times as long")
    print(
        f"scipy gaussian_kde  {1e3 * peer:9.0f} ms   {peer / ours:.0f} times as long; differs by {np.abs(scipys / exact - 1).max():.0e}"
    )
    print(f"1,000,000 distances {1e3 * large:9.0f} ms")


if __name__ == "__main__":
    main()
