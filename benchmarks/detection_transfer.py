"""Does pre-training help a detector with few labels? On the synthetic KITTI object set, as docs/detection.md has decided it.

    python benchmarks/detection_transfer.py FOLDER [--seed 660001] [--runs 3]

Makes streets, labels (the oracle's, with the errors of a detector) and shards in FOLDER, pre-trains a VoxelNet trunk on all
training frames, and trains SECOND on 5 % of the labels from that trunk and from random weights with the same seeds. Each step is
a command of olivine, which is printed; what is there from an earlier call is kept. The table stands in
FOLDER/runs/voxelnet/detect-5-beside-random/comparison.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PARTS, SCENES, FRAMES = 4, 11, 6  # data sets that are made one by one and joined, their streets, frames of each
HELD_OUT = 2  # streets of each part for validation
EVERY = 2  # of the frames of those streets, 0.1 s apart, every second is scored
IMAGE_SCALE = 0.6  # the benchmark then counts cars up to 26 m: an object has to be 25 pixels high
RANGE = [0, -12.8, -5, 25.6, 12.8, 3]
PRETRAIN = {
    "image.encoder": "small",
    "image.height": 112,
    "image.width": 208,
    # The camera looks ahead: the cloud is neither rotated nor mirrored, and what lies beyond the range is left out.
    "voxels.range_m": RANGE,
    "augment.circle": [25.6, -5, 3],
    "augment.rotate": False,
    "augment.flip_axes": False,
    "augment.crop_min_pairs": 256,
    "augment.cuboid_min_pairs": 256,
    # As the preset cpu, but for L_kl, under which the embedding of classes collapsed in so few steps.
    "method.pairs": 2048,
    "method.wcd_form": "reference",
    "method.wcd_weight": 1,
    "method.scr": False,
    "optimizer.lr": 0.1,
    "optimizer.schedule_per": "step",
    "run.batch": 2,
    "run.group": 2,
    "run.steps": 250,
    "run.validate_epochs": 1000,
    "run.validate_frames": 1,
    "run.checkpoint_epochs": 0,
    "data.workers": 0,
}
DETECT = {
    "preset": "pretraining",
    "range_m": RANGE,
    "epochs": 40,
    "batch": 2,
    "plane_layers": [2, 2],
    "plane_channels": [64, 64],
    "plane_up_channels": [64, 64],
    "workers": 0,
}


def olivine(folder: Path, *words: object) -> None:
    """One command, in the folder; its line and its seconds are printed."""
    line = f"olivine {' '.join(map(str, words))}"
    print(line, flush=True)
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "olivine.cli", *map(str, words)], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"{line}: exit code {done.returncode}")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


def flags(settings: dict[str, object]) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in ("--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}".replace(" ", ""))
    ]


def make_streets(folder: Path, seed: int) -> None:
    """Join several synthetic sets: frames of many drives, as KITTI's are."""
    root = folder / "data" / "kitti-object"
    if (root / "ImageSets" / "val.txt").is_file():
        return
    train, validation = [], []
    for k in range(PARTS):
        part = folder / f"part-{k}"
        words = ["--format", "kitti-object", "--scenes", SCENES, "--frames", FRAMES, "--seed", seed + k]
        words += ["--image-scale", IMAGE_SCALE, "--workers", 1]
        olivine(folder, "synth", *words, "--out", part.name)
        shift = 1000 * SCENES * k
        for path in part.rglob("*.*"):
            if path.stem.isdecimal():
                target = root / path.relative_to(part).with_name(f"{int(path.stem) + shift:06d}{path.suffix}")
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        (part / "synthetic.json").replace(root / "synthetic.json")
        shutil.rmtree(part)
        numbers = [[shift + 1000 * scene + frame for frame in range(FRAMES)] for scene in range(SCENES)]
        train += [number for street in numbers[:-HELD_OUT] for number in street]
        validation += [number for street in numbers[-HELD_OUT:] for number in street[::EVERY]]
    (root / "ImageSets").mkdir()
    for name, listed in (("train", train), ("val", validation)):
        (root / "ImageSets" / f"{name}.txt").write_text("".join(f"{number:06d}\n" for number in listed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=660001, help="of the streets")
    parser.add_argument("--runs", type=int, default=3, help="seeds of the detector, from 0 on")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    make_streets(given.folder, given.seed)
    olivine(given.folder, "labelgen", "--dataset", "kitti-object", "--error", "default", "--workers", 1)
    olivine(given.folder, "build-pairs", "--dataset", "kitti-object", "--workers", 1)
    where = ("--shards", "data/pairs/kitti-object/train", "--out", "runs/voxelnet")
    threads = {"run.threads": given.threads}
    olivine(given.folder, "pretrain", "--config", "voxelnet", *where, *flags(PRETRAIN | threads))
    changes = flags(DETECT | {"threads": given.threads})
    words = ("--checkpoint", "runs/voxelnet", "--fraction", 5, "--runs", given.runs, "--beside-random")
    olivine(given.folder, "detect", *words, *changes)


if __name__ == "__main__":
    main()
