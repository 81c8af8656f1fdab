"""What `build-pairs --visibility occlusion` removes and costs, on the synthetic world.

A pair is wrong when the exact class of its pixel is not the exact class of its point. The
window was chosen on seed 0; this measures on another seed.

    python benchmarks/visibility.py [--seed 3] [--scenes 6] [--frames 3] [--data DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from olivine.pairs.project import look_up, project_points
from olivine.pairs.visibility import visible_pairs
from olivine.readers import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a synthetic data set to measure on instead of making one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.data
        if root is None:
            from olivine.synthetic.settings import SyntheticSettings
            from olivine.synthetic.write import write_dataset

            root = Path(folder) / "nuscenes"
            settings = SyntheticSettings(
                scenes=options.scenes, frames=options.frames, seed=options.seed, image_scale=0.5, workers=1
            )
            write_dataset(settings, root)
        measure(root)


def measure(root: Path) -> None:
    wrong = right = wrong_removed = right_removed = 0
    seconds, frames = 0.0, 0
    for frame in open_dataset("nuscenes", root).frames():
        points = frame.points()
        name = Path(frame.point_file).name.removesuffix(".pcd.bin") + ".bin"
        truth = np.fromfile(root / "truth" / "point" / name, np.uint8)
        point, camera, uv = project_points(points, frame.cameras)
        started = time.process_time()
        keep = visible_pairs(points, frame.cameras, point, camera, uv)
        seconds, frames = seconds + time.process_time() - started, frames + 1
        masks = [np.asarray(Image.open(path)) for path, _ in frame.image_truth or []]
        label = np.concatenate([look_up(mask, uv[camera == c]) for c, mask in enumerate(masks)])
        bad = label != truth[point]
        wrong, right = wrong + int(bad.sum()), right + int((~bad).sum())
        wrong_removed += int((bad & ~keep).sum())
        right_removed += int((~bad & ~keep).sum())
    left = wrong - wrong_removed
    print(f"{frames} frames, {wrong + right} pairs, {100 * wrong / (wrong + right):.2f} % of them wrong")
    print(
        f"removed: {100 * wrong_removed / wrong:.1f} % of the wrong, {100 * right_removed / right:.1f} % of the right"
    )
    print(f"left wrong: {100 * left / (left + right - right_removed):.2f} %; {1e3 * seconds / frames:.1f} ms a frame")


if __name__ == "__main__":
    main()
