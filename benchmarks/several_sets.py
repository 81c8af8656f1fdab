"""Two data sets in one run against either alone, and dropped beams in training against a cloud of half the beams.

    python benchmarks/several_sets.py FOLDER [--streets 660102] [--seeds 3] [--steps 60] [--frames 24] [--threads 1]
    python benchmarks/several_sets.py FOLDER --beams-only --streets 660103 --frames 48 --finetune-epochs 30

Makes a small synthetic nuScenes (32 beams, six cameras) and SemanticKITTI (64 beams, one camera) in FOLDER. For each seed it
pre-trains the CPU preset on each alone, on both for as many steps, and on both for twice as many, so that each set is
seen as often as alone; every network is probed on both sets. Networks pre-trained on SemanticKITTI are fine-tuned there, with
and without dropped beams, and scored on worse clouds. With `--beams-only` it makes SemanticKITTI alone, and asks of dropped
beams in fine-tuning alone. What is there from an earlier call is kept. Prints the means over the seeds, and the means of the paired
differences with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

SETS = {"nuscenes": 10, "semantickitti": 4}  # scenes, about a quarter for validation
DROPPED = "beams=0.7"
BEAMS = {
    "none": ("semantickitti", []),
    "in fine-tuning": ("semantickitti", [DROPPED]),
    "in both": ("semantickitti, beams dropped", [DROPPED]),
}
"""Where beams are dropped: the pre-training that is fine-tuned, and settings of the fine-tuning."""


def olivine(folder: Path, *words: object) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "olivine.cli", *map(str, words)], cwd=folder, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"olivine {' '.join(map(str, words))}:\n{done.stderr[-2000:]}")
    print(f"{time.monotonic() - begun:5.0f} s  olivine {' '.join(map(str, words))[:120]}", flush=True)


def make_ground(folder: Path, streets: int, frames: int, sets: dict[str, int]) -> dict[str, Path]:
    """The shards of the data sets, with the label noise of a detector."""
    found = {}
    for name, scenes in sets.items():
        found[name] = Path("data/pairs") / name
        if (folder / found[name] / "val" / "manifest.json").is_file():
            continue
        each = max(1, round(frames / (0.75 * scenes)))
        size = ("--seed", streets, "--scenes", scenes, "--frames", each)
        olivine(folder, "synth", "--format", name, *size, "--workers", 1)
        olivine(folder, "labelgen", "--dataset", name, "--error", "default", "--workers", 1)
        olivine(folder, "build-pairs", "--dataset", name, "--workers", 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streets", type=int, default=660102, help="their seed; docs/pretrain.md has tables of these")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, …")
    parser.add_argument("--steps", type=int, default=60, help="of a pre-training on one set")
    parser.add_argument("--frames", type=int, default=24, help="about so many training frames of each data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe-epochs", type=int, default=10)
    parser.add_argument("--finetune-epochs", type=int, default=15)
    parser.add_argument("--beams-only", action="store_true", help="SemanticKITTI and dropped beams alone")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    sets = {"semantickitti": SETS["semantickitti"]} if given.beams_only else SETS
    shards = make_ground(given.folder, given.streets, given.frames, sets)
    runs = runs_of(shards, given.steps)
    beams = {name: one for name, one in BEAMS.items() if one[0] in runs}
    for seed in range(given.seeds):
        for name in runs:
            run_one(given, shards, seed, name)
        for name, (start, changes) in beams.items():
            out = folder_of(seed, start) / f"finetune-{name.replace(' ', '-')}"
            if not (given.folder / out / "corruptions.json").is_file():
                words = flags([*changes, f"threads={given.threads}", "accelerator=cpu"])
                where = ["--checkpoint", folder_of(seed, start), "--shards", shards["semantickitti"], "--out", out]
                epochs = ["--epochs", given.finetune_epochs, "--seed", seed]
                olivine(given.folder, "finetune", *where, *epochs, "--corrupt", *words)
    if not given.beams_only:
        report_sets(given.folder, given.seeds, list(runs))
    report_beams(given.folder, given.seeds, beams)


def runs_of(shards: dict[str, Path], steps: int) -> dict[str, tuple[list[object], list[str]]]:
    """The pre-trainings: their shards and settings; over one data set that alone."""
    where: dict[str, list[object]] = {name: ["--shards", folder / "train"] for name, folder in shards.items()}
    alone, twice = [f"run.steps={steps}"], [f"run.steps={2 * steps}"]
    runs = {name: (words, alone) for name, words in where.items()}
    if len(where) == 1:
        return runs
    both = [*where["nuscenes"], *where["semantickitti"]]
    dropped = {"semantickitti, beams dropped": (where["semantickitti"], [*alone, f"augment.{DROPPED}"])}
    return runs | {"both": (both, alone), "both, twice the steps": (both, twice)} | dropped


def run_one(given: argparse.Namespace, shards: dict[str, Path], seed: int, name: str) -> None:
    """Pre-train, and probe on both sets; the first run also random weights."""
    where, changes = runs_of(shards, given.steps)[name]
    out = folder_of(seed, name)
    more = [f"seed={seed}", f"run.threads={given.threads}", "run.validate_epochs=1000"]
    if not (given.folder / out / "last.pt").is_file():
        olivine(given.folder, "pretrain", "--config", "cpu", *where, "--out", out, *flags([*changes, *more]))
    for probed in SETS if len(shards) > 1 else ():
        if name.endswith("dropped") or (given.folder / out / f"probe-{probed}" / "scores.json").is_file():
            continue
        options = ["--no-augment", "--epochs", given.probe_epochs, "--seed", seed]
        options += ["--beside-random" if name == "nuscenes" else "--no-beside-random"]
        where_to = ["--checkpoint", out, "--shards", shards[probed], "--out", out / f"probe-{probed}"]
        olivine(given.folder, "probe", *where_to, *options, *flags([f"threads={given.threads}", "accelerator=cpu"]))


def folder_of(seed: int, name: str) -> Path:
    return Path("runs") / str(seed) / name.replace(", ", "-").replace(" ", "-")


def flags(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def report_sets(folder: Path, seeds: int, names: list[str]) -> None:
    scores: dict[str, dict[str, list[float]]] = {"nothing (random weights)": {}}
    for probed in SETS:
        for name in names:
            files = [folder / folder_of(seed, name) / f"probe-{probed}" / "scores.json" for seed in range(seeds)]
            if not name.endswith("dropped"):
                found = [json.loads(file.read_text()) for file in files]
                scores.setdefault(name, {})[probed] = [100 * one[-1]["scores"]["mean_iou"] for one in found]
                if name == "nuscenes":
                    random = [100 * one[0]["scores"]["mean_iou"] for one in found]
                    scores["nothing (random weights)"][probed] = random
    print(f"\n| pre-trained on | {' | '.join(f'probe on {probed}, mIoU / %' for probed in SETS)} |\n|---|---|---|")
    for name, by_set in scores.items():
        print(f"| {name} | {' | '.join(f'{np.mean(by_set[probed]):.1f}' for probed in SETS)} |")
    print(f"\n| paired differences over {seeds} seeds | {' | '.join(SETS)} |\n|---|---|---|")
    for both in ("both", "both, twice the steps"):
        for alone in SETS:
            cells = [interval(np.subtract(scores[both][p], scores[alone][p])) for p in SETS]
            print(f"| {both} − {alone} | {' | '.join(cells)} |")


def report_beams(folder: Path, seeds: int, beams: dict[str, tuple[str, list[str]]]) -> None:
    found = {}
    for name, (start, _) in beams.items():
        of_seed = [
            folder / folder_of(seed, start) / f"finetune-{name.replace(' ', '-')}" / "corruptions.json"
            for seed in range(seeds)
        ]
        found[name] = [json.loads(file.read_text())[0] for file in of_seed]
    print(
        f"\n| fine-tuned on semantickitti, mIoU / %; beams dropped | {' | '.join(found)} |\n|---{'|---' * len(found)}|"
    )
    clean = (f"{100 * np.mean([one['clean'] for one in runs]):.1f}" for runs in found.values())
    print(f"| clean | {' | '.join(clean)} |")
    for worse in found["none"][0]["corrupted"]:
        cells = [
            f"{100 * np.mean([one['corrupted'][worse] for one in runs]):.1f} "
            f"({100 * np.mean([one['kept'][worse] for one in runs]):.0f} %)"
            for runs in found.values()
        ]
        print(f"| {worse} | {' | '.join(cells)} |")
    print(f"\n| points lost | beams not dropped | {' | '.join(list(beams)[1:])} |\n|---{'|---' * len(beams)}|")
    for worse in ("every 2nd beam", "every 4th beam"):
        lost = {name: [lost_of(one, worse) for one in runs] for name, runs in found.items()}
        cells = [f"{np.mean(lost['none']):.1f}"]
        for name in list(beams)[1:]:
            less = np.subtract(lost["none"], lost[name])
            share = 100 * np.mean(less) / np.mean(lost["none"])
            cells.append(f"{np.mean(lost[name]):.1f}: {share:.0f} % less, {interval(less)} points")
        print(f"| {worse} | {' | '.join(cells)} |")


def lost_of(one: dict, worse: str) -> float:
    """Points of mIoU between the clean and the worse cloud, over the classes that the worse one has."""
    kept = one["kept"][worse]
    return 100 * one["corrupted"][worse] * (1 / kept - 1) if kept else float("nan")


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval by Student's t."""
    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error if len(values) > 1 else float("nan")
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


if __name__ == "__main__":
    main()
