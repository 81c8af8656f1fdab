"""Two data sets in one run against either alone, and dropped beams in training against a cloud of half the beams.

    python benchmarks/several_sets.py FOLDER [--steps 80] [--frames 24] [--threads 1] [--long]

Makes a small synthetic nuScenes (32 beams, six cameras) and SemanticKITTI (64 beams, one camera) in FOLDER, pre-trains on each
alone, on both, and on SemanticKITTI with dropped beams, all with the CPU preset and one seed, and probes each network on both
data sets. What is there from an earlier call is kept. Prints three tables; with these sizes differences of a few points are
chance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SETS = {"nuscenes": 10, "semantickitti": 4}  # scenes, about a quarter for validation
BEAMS_DROPPED = "semantickitti, beams dropped"


def olivine(folder: Path, *words: object) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "olivine.cli", *map(str, words)], cwd=folder, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"olivine {' '.join(map(str, words))}:\n{done.stderr[-2000:]}")
    print(f"{time.monotonic() - begun:5.0f} s  olivine {' '.join(map(str, words))[:120]}", flush=True)


def make_ground(folder: Path, frames: int) -> dict[str, Path]:
    """The shards of both data sets, with the label noise of a detector."""
    found = {}
    for name, scenes in SETS.items():
        found[name] = Path("data/pairs") / name
        if (folder / found[name] / "val" / "manifest.json").is_file():
            continue
        each = max(1, round(frames / (0.75 * scenes)))
        olivine(folder, "synth", "--format", name, "--scenes", scenes, "--frames", each, "--workers", 1)
        olivine(folder, "labelgen", "--dataset", name, "--error", "default", "--workers", 1)
        olivine(folder, "build-pairs", "--dataset", name, "--workers", 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--frames", type=int, default=24, help="about so many training frames of each data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30, help="of the probes")
    parser.add_argument(
        "--run", action="append", help="do this run alone, again for more; the tables when all are there"
    )
    parser.add_argument("--long", action="store_true", help="also both sets for twice the steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    shards = make_ground(given.folder, given.frames)
    steps = given.steps
    nuscenes, kitti = (["--shards", shards[name] / "train"] for name in SETS)
    runs: dict[str, tuple[list[object], list[str]]] = {
        "nuscenes": (nuscenes, [f"run.steps={steps}"]),
        "semantickitti": (kitti, [f"run.steps={steps}"]),
        "both": ([*nuscenes, *kitti], [f"run.steps={steps}"]),
        BEAMS_DROPPED: (kitti, [f"run.steps={steps}", "augment.beams=0.7"]),
    }
    if given.long:
        runs["both, twice the steps"] = ([*nuscenes, *kitti], [f"run.steps={2 * steps}"])
    for name, (where, changes) in runs.items():
        if given.run and name not in given.run:
            continue
        out = folder_of(name)
        changes += [f"seed={given.seed}", f"run.threads={given.threads}", "run.validate_epochs=1000"]
        olivine(given.folder, "pretrain", "--config", "cpu", *where, "--out", out, *flags(changes))
        for probed in SETS:
            options = [
                "--no-augment",
                "--set",
                f"epochs={given.epochs}",
                "--set",
                "accelerator=cpu",
                "--seed",
                given.seed,
            ]
            options += ["--random" if name == "both" else "--no-random"]
            options += ["--corrupt"] if name.startswith(probed) and probed == "semantickitti" else []
            where_to = ["--shards", shards[probed], "--out", out / f"probe-{probed}"]
            if name != BEAMS_DROPPED or probed == "semantickitti":
                olivine(given.folder, "probe", "--checkpoint", out, *where_to, *options)
    found = {name: given.folder / folder_of(name) for name in runs}
    wanted = {name: "corruptions.json" if name.startswith("semantickitti") else "scores.json" for name in runs}
    if all((found[name] / "probe-semantickitti" / wanted[name]).is_file() for name in runs):
        report({name: {probed: read(folder / f"probe-{probed}") for probed in SETS} for name, folder in found.items()})


def folder_of(name: str) -> Path:
    return Path("runs") / name.replace(", ", "-").replace(" ", "-")


def read(probe: Path) -> list[dict]:
    """The scores of a probe: of random weights where they were probed, then of the checkpoint."""
    if not (probe / "scores.json").is_file():
        return []
    found = [{"clean": one["scores"]["mean_iou"]} for one in json.loads((probe / "scores.json").read_text())]
    if (probe / "corruptions.json").is_file():
        found = json.loads((probe / "corruptions.json").read_text())
    return found


def flags(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def report(scores: dict[str, dict[str, list[dict]]]) -> None:
    print("\n| pre-trained on | probe on nuscenes, mIoU / % | probe on semantickitti, mIoU / % |\n|---|---|---|")
    randoms = [scores["both"][probed][0]["clean"] for probed in SETS]
    print(f"| nothing (random weights) | {100 * randoms[0]:.1f} | {100 * randoms[1]:.1f} |")
    for name, by_set in scores.items():
        if name != BEAMS_DROPPED:
            found = [by_set[probed][-1]["clean"] for probed in SETS]
            print(f"| {name} | {100 * found[0]:.1f} | {100 * found[1]:.1f} |")
    one, other = (scores[name]["semantickitti"][-1] for name in ("semantickitti", BEAMS_DROPPED))
    print(
        "\n| probe on semantickitti (64 beams), mIoU / % | beams as they are | dropped in pre-training |\n|---|---|---|"
    )
    print(f"| clean | {100 * one['clean']:.1f} | {100 * other['clean']:.1f} |")
    for name in one["corrupted"]:
        cells = (f"{100 * run['corrupted'][name]:.1f} ({100 * run['kept'][name]:.0f} %)" for run in (one, other))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
