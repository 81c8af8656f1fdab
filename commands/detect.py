"""The command for 3D detection on KITTI's object benchmark: train, predict, evaluate."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ..common import OlivineError, check_output, write_bytes, write_json
from . import console, defaults
from .defaults import DATA, RUNS
from .options import Checkpoint, DryRun, Json

if TYPE_CHECKING:
    from ..downstream.detection.detect import DetectionResult
    from ..downstream.detection.scenes import Scene
    from ..readers.frame import Frame

_KNOWN = ("run.json", ".run.lock", "runs.json", "seed-*", "pre-trained", "random", "comparison.json")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(detect)


def detect(
    checkpoint: Checkpoint = None,
    root: Annotated[Path | None, typer.Option(help="KITTI object's folder (default: data/kitti-object).")] = None,
    random: Annotated[bool, typer.Option("--random", help="Start from random weights of a VoxelNet trunk.")] = False,
    beside_random: Annotated[
        bool, typer.Option("--beside-random", help="Also train from random weights, to see what pre-training gains.")
    ] = False,
    fraction: Annotated[float, typer.Option(help="Percent of the training frames: 5, 10, 20 or 100.")] = 100,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training frames (default: 80).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the head, the order, the augmentation and random weights (default: 0).")
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs with seeds from --seed on; the best, and the mean.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as preset=pretraining.")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Write result files with the trained detector --checkpoint.")
    ] = False,
    evaluate: Annotated[Path | None, typer.Option(help="Score the result files of this folder, and stop.")] = None,
    split: Annotated[str | None, typer.Option(help="With --predict or --evaluate: val, train or test.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, or of the result files (default: <run>/detect-…).")
    ] = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train SECOND on a pre-trained VoxelNet trunk on KITTI, and score it as the benchmark does.

    Example: olivine detect --checkpoint runs/voxelnet --fraction 5 --set preset=pretraining
    """
    from ..downstream.detection.detect import check_voxels
    from ..downstream.detection.detect import detect as run
    from ..downstream.detection.runs import compare, comparison_table, runs_of, runs_table
    from ..downstream.detection.settings import DetectionSettings
    from ..downstream.network import read_source
    from ..downstream.settings import settings_of
    from ..train.settings import load_settings

    changes = set_ or []
    if evaluate is not None or predict:
        given: dict[str, object] = {"--random": random, "--beside-random": beside_random, "--fraction": fraction != 100}
        given |= {"--epochs": epochs is not None, "--seed": seed is not None, "--runs": runs != 1}
        if evaluate is not None:
            given = {"--predict": predict, "--checkpoint": checkpoint, "--set": changes, "--out": out, **given}
        if wrong := [option for option, value in given.items() if value]:
            asked = "--evaluate" if evaluate is not None else "--predict"
            raise OlivineError(f"{wrong[0]} does not go with {asked}", remedy="give one of them")
        if evaluate is not None:
            return _evaluate(evaluate, root or DATA / "kitti-object", split or "val", as_json, dry_run)
        return _predict(checkpoint, root or DATA / "kitti-object", split or "val", out, changes, as_json, dry_run)
    if split is not None:
        raise OlivineError("--split goes with --predict or --evaluate", remedy="leave it out")
    if random and beside_random:
        raise OlivineError("--random and --beside-random", remedy="give one of them")
    if runs < 1:
        raise OlivineError(f"--runs {runs}", remedy="use 1 or more")
    settings = settings_of(DetectionSettings, changes, fraction=fraction, epochs=epochs, seed=seed)
    if checkpoint is None and random:
        network = load_settings("voxelnet")
        source, folder = read_source(None, random=True, expected=network), RUNS / network.name
    else:
        checkpoint, why = defaults.choose_checkpoint(checkpoint)
        console.note(f"checkpoint: {checkpoint} ({why})", as_json)
        source = read_source(checkpoint, random=random)
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    root = root or DATA / "kitti-object"
    against = "-random" if random else "-beside-random" if beside_random else ""
    out = out or folder / f"detect-{settings.fraction:g}{against}"
    check_output(out, inputs=(root, checkpoint), known=_KNOWN)
    train, validation = kitti_scenes(root, "train"), kitti_scenes(root, "val")
    check_voxels(source, settings.voxel_settings(), settings)
    if dry_run:
        return console.say_plan(f"SECOND on {source.name} and {settings.fraction:g} % of the labels", out, as_json)
    sides = {"": source}
    if beside_random:
        sides = {"pre-trained": source, "random": read_source(checkpoint, random=True)}
    results: dict[str, list[DetectionResult]] = {name: [] for name in sides}
    for k in range(runs):
        one = dataclasses.replace(settings, seed=settings.seed + k)
        for name, start in sides.items():
            place = out / name if runs == 1 else out / name / f"seed-{one.seed}"
            results[name].append(run(start, train, validation, place, one))
    if beside_random:
        found = compare(results["pre-trained"], results["random"])
        write_json(out / "comparison.json", dataclasses.asdict(found))
        write_bytes(out / "comparison.md", comparison_table(found).encode())
        if as_json:
            return console.emit("detect", dataclasses.asdict(found), out)
        return console.show(lambda: f"\n{comparison_table(found)}\nresults: {out}")
    summary = runs_of(results[""])
    if runs > 1:
        write_json(out / "runs.json", dataclasses.asdict(summary))
        write_bytes(out / "runs.md", runs_table(summary).encode())
    if as_json:
        return console.emit("detect", dataclasses.asdict(summary), out)
    table = functools.partial(runs_table, summary) if runs > 1 else (out / "ap.md").read_text
    return console.show(lambda: f"\n{table()}\nresults: {out}")


def _evaluate(folder: Path, root: Path, split: str, as_json: bool, dry_run: bool) -> None:
    """Score result files."""
    from ..downstream.detection.detect import evaluate_files
    from ..downstream.detection.kitti_eval import LEAST_IOU

    scenes = kitti_scenes(root, split)
    if dry_run:
        what = f"would score the results of {len(scenes)} frames in {folder}, and write nothing"
        return console.emit("detect", {"plan": what}, folder) if as_json else print(what)
    score, table = evaluate_files(folder, scenes, tuple(LEAST_IOU))
    plain = {**dataclasses.asdict(score), "mean_ap": score.mean()}
    if as_json:
        return console.emit("detect", {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in plain.items()})
    return print(f"\n{table}")


def _predict(
    checkpoint: Path | None, root: Path, split: str, out: Path | None, changes: list[str], as_json: bool, dry_run: bool
) -> None:
    """Write result files."""
    from ..downstream.detection.detect import predict as run
    from ..downstream.detection.detect import read_detector
    from ..downstream.settings import plain_changes

    checkpoint, why = defaults.choose_checkpoint(checkpoint, "*/detect-*")
    console.note(f"checkpoint: {checkpoint} ({why})", as_json)
    scenes = kitti_scenes(root, split)
    out = out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / f"results-{split}"
    check_output(out, inputs=(root, checkpoint))
    plain = plain_changes(changes)
    read_detector(checkpoint, plain)
    if dry_run:
        return console.say_plan(f"the results of {len(scenes)} {split} frames", out, as_json)
    return console.finish("detect", run(checkpoint, scenes, out, **plain), out, as_json)


def kitti_scenes(root: Path, split: str) -> list[Scene]:
    """The scenes of a split of KITTI's object benchmark.

    Raises:
        OlivineError: the folder is no such data set, or a file of it is wrong.
    """
    from ..downstream.detection.scenes import KittiCamera, Scene
    from ..readers import open_dataset
    from ..readers.kitti_object import calibration_file, label_file, lidar_to_labels

    dataset = open_dataset("kitti-object", root)

    def scene(frame: Frame) -> Scene:
        (camera,) = frame.cameras
        geometry = KittiCamera(
            camera.intrinsic, camera.lidar_to_camera, lidar_to_labels(frame), camera.width, camera.height
        )
        name, labels = frame.token.rpartition("/")[2], label_file(frame)
        return Scene(
            name,
            frame.points,
            geometry,
            labels,
            intensity_offset=dataset.intensity_offset,
            calibration=calibration_file(frame),
            cloud_bytes=(frame.root / frame.point_file).stat().st_size,
        )

    return [scene(frame) for frame in dataset.frames(split)]
