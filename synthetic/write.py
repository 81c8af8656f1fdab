"""Write a synthetic data set: frames in parallel, then the tables, all of it or nothing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..common import OlivineError, PathLike, atomic_directory, read_json, remove_leftovers, track, write_json
from . import nuscenes
from .capture import capture
from .kinds import CLASSES
from .lidar import LidarModel
from .rig import Rig, nuscenes_rig
from .settings import VERSION, SyntheticSettings, SyntheticSummary
from .world import World, make_world

MARK = "synthetic.json"
CHUNK = 4
"""Frames of one unit of work: few enough to share, enough to pay for making the scene."""


def write_dataset(settings: SyntheticSettings, out: PathLike) -> SyntheticSummary:
    """Make a synthetic data set in the folder ``out``.

    The folder appears when everything in it is written. Where it already holds exactly what the settings ask for,
    nothing is done; another synthetic data set is replaced.

    Raises:
        OlivineError: ``out`` holds something that is not a synthetic data set, or the disk is too small.
    """
    if settings.format != "nuscenes":
        raise OlivineError("this format is not there yet", where="--format", remedy="use nuscenes")
    out = Path(out)
    identity = _identity(settings)
    found = _existing(out)
    if found is not None and found.get("identity") == identity:
        return _summary(out, found, reused=True)
    _check_space(settings, out)
    remove_leftovers(out.absolute().parent)
    with atomic_directory(out.absolute()) as folder:
        version, scenes = nuscenes.scene_names(settings.scenes)
        names = [nuscenes.SceneName(settings.seed, k, name, version) for k, (name, _) in enumerate(scenes)]
        rows = _frames(settings, names, folder)
        by_scene = [(name, [rows[k, frame] for frame in range(settings.frames)]) for k, name in enumerate(names)]
        nuscenes.write_tables(folder, version, nuscenes_rig(), settings.image_scale, by_scene)
        everything = [row for _, frames in by_scene for row in frames]
        counts = [sum(row["prompt_count"][k] for row in everything) for k in range(len(CLASSES))]
        mark = {
            "synthetic": True,
            "version": VERSION,
            "identity": identity,
            "seed": settings.seed,
            "format": settings.format,
            "dataset_version": version,
            "image_scale": settings.image_scale,
            "classes": list(CLASSES),
            "truth": {
                "class": "truth/class/<camera key>.png: uint8, index into classes",
                "instance": "truth/instance/<camera key>.png: 16-bit, 0 = no instance, unique in the scene",
                "point": "truth/point/<LiDAR file>.bin: uint8 for each point, index into classes",
            },
            "scenes": [list(s) for s in scenes],
            "frames": len(everything),
            "images": len(everything) * len(nuscenes_rig().cameras),
            "points": sum(counts),
            "boxes": sum(len(row["sample_annotation"]) for row in everything),
            "class_points": {name or "other": count for name, count in zip(CLASSES, counts)},
        }
        write_json(folder / MARK, mark)
    return _summary(out, mark, reused=False)


def _identity(settings: SyntheticSettings) -> dict[str, Any]:
    # The number of workers is not part of what is made.
    return {
        "version": VERSION,
        "format": settings.format,
        "scenes": settings.scenes,
        "frames": settings.frames,
        "image_scale": settings.image_scale,
        "seed": settings.seed,
    }


def _summary(out: Path, mark: dict[str, Any], *, reused: bool) -> SyntheticSummary:
    return SyntheticSummary(
        out,
        mark["dataset_version"],
        tuple((name, split) for name, split in mark["scenes"]),
        mark["frames"],
        mark["images"],
        mark["points"],
        mark["boxes"],
        dict(mark["class_points"]),
        reused,
    )


def _existing(out: Path) -> dict[str, Any] | None:
    """The mark of the synthetic data set in ``out``, None where there is nothing yet."""
    remedy = "choose another --out folder or remove this one yourself"
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir() or out.is_symlink():
        raise OlivineError(
            "exists and is not a synthetic data set's folder; it is left alone", where=out, remedy=remedy
        )
    if not (out / MARK).exists():
        if any(out.iterdir()):
            raise OlivineError(
                "holds something that is not a synthetic data set; it is left alone", where=out, remedy=remedy
            )
        return None
    mark = read_json(out / MARK, remedy=remedy)
    if not isinstance(mark, dict) or mark.get("synthetic") is not True:
        raise OlivineError(f"{MARK} does not say that this is synthetic; it is left alone", where=out, remedy=remedy)
    return mark


def _check_space(settings: SyntheticSettings, out: Path) -> None:
    pixels = sum(w * h for w, h, _ in (c.scaled(settings.image_scale) for c in nuscenes_rig().cameras))
    need = settings.scenes * settings.frames * (830_000 + 0.3 * pixels)
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if need > free:
        raise OlivineError(
            f"{need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            where=out,
            remedy="ask for fewer --scenes or --frames or a smaller --image-scale",
        )


def _frames(
    settings: SyntheticSettings, names: list[nuscenes.SceneName], folder: Path
) -> dict[tuple[int, int], dict[str, Any]]:
    """Write every frame's files; the rows of each (scene, frame)."""
    units = [
        (settings, name, range(start, min(start + CHUNK, settings.frames)), folder)
        for name in names
        for start in range(0, settings.frames, CHUNK)
    ]
    workers = settings.workers or len(os.sched_getaffinity(0))
    workers = min(workers, len(units))
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    results = _in_turn(units) if workers <= 1 else _in_processes(units, workers)
    total = settings.scenes * settings.frames
    for scene, frame, row in track(results, "synthetic frames", total=total, unit="frame"):
        rows[scene, frame] = row
    return rows


Unit = tuple[SyntheticSettings, nuscenes.SceneName, range, Path]
Made = tuple[int, int, dict[str, Any]]


def _in_turn(units: list[Unit]) -> Iterator[Made]:
    for unit in units:
        yield from _write_unit(*unit)


def _in_processes(units: list[Unit], workers: int) -> Iterator[Made]:
    # Fresh interpreters: forking a process that runs threads (numba's, torch's) can hang the child.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting = [pool.submit(_unit_list, unit) for unit in units]
        for done in concurrent.futures.as_completed(waiting):
            yield from done.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise OlivineError(
            "a worker process died, most likely for want of memory", remedy="run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _unit_list(unit: Unit) -> list[Made]:
    return list(_write_unit(*unit))


@lru_cache(maxsize=2)
def _world(seed: int, scene: int, duration: float) -> World:
    return make_world(seed, scene, duration)


def _write_unit(settings: SyntheticSettings, name: nuscenes.SceneName, frames: range, folder: Path) -> Iterator[Made]:
    rig: Rig = nuscenes_rig()
    step = nuscenes.STEP_US * 1e-6
    world = _world(settings.seed, name.number, settings.frames * step)
    for frame in frames:
        shot = capture(
            world,
            rig,
            seconds=frame * step,
            frame=frame,
            image_scale=settings.image_scale,
            model=LidarModel(),
            keep_lost=True,
        )
        yield name.number, frame, nuscenes.write_frame(folder, name, frame, world, rig, shot)
