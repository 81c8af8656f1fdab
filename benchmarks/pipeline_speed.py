"""Frames per second of build-pairs and steps per second of the trainer, on the real keyframe.

    python benchmarks/pipeline_speed.py [--data ../shared/data] [--steps 20] [--config cpu]

The keyframe is repeated under new tokens; compilation of the numba kernels is not counted. The trainer's rate
is of the steps after the first two. Both run in one process on the cores that are there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import open_dataset
from olivine.readers.index import write_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--config", default="cpu")
    arguments = parser.parse_args()
    root = arguments.data / "nuscenes-keyframe"
    if not root.is_dir():
        print(f"no keyframe in {root}: name the sample data with --data")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = open_dataset("nuscenes", root).frames()[0]
        repeated = [
            dataclasses.replace(frame, token=f"{frame.token}-{i:03d}", timestamp=frame.timestamp + i)
            for i in range(arguments.frames)
        ]
        index = write_index(
            folder / "labels" / "frames", repeated, dataset="nuscenes", version=frame.version, root=root
        )
        camseg = LabelSettings(labeler="import", camseg=arguments.data / "nuscenes-keyframe-camseg")
        generate_labels(index, folder / "labels", camseg)
        store = open_store(folder / "labels")
        settings = PairSettings(workers=1)
        build_pairs(store, folder / "warm", settings, split="val")
        start = time.perf_counter()
        summary = build_pairs(store, folder / "shards", settings, split="val")
        seconds = time.perf_counter() - start
        print(
            f"build-pairs: {arguments.frames / seconds:.1f} frames a second on one core "
            f"({summary.pairs // arguments.frames:,} pairs, {summary.bytes_per_frame:,} bytes a frame)"
        )
        _trainer(arguments, folder)


def _trainer(arguments: argparse.Namespace, folder: Path) -> None:
    from olivine.train.loop import pretrain
    from olivine.train.settings import load_settings

    changes = [f"data.shards={folder / 'shards'}", f"run.steps={arguments.steps}", "run.deterministic=true"]
    settings = load_settings(arguments.config, changes)
    pretrain(settings, folder / "run")
    with open(folder / "run" / "steps.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    seconds = [float(row["seconds"]) for row in rows[2:]]
    median = statistics.median(seconds)
    print(
        f"pretrain --config {arguments.config}: {1 / median:.2f} steps a second "
        f"({settings.run.batch} frames a step, {settings.run.batch / median:.2f} frames a second, "
        f"{settings.backbone.name}, {settings.image.encoder} encoder)"
    )


if __name__ == "__main__":
    main()
