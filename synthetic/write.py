"""Write a synthetic data set: frames in parallel, then the tables, all of it or nothing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..common import (
    OlivineError,
    PathLike,
    atomic_directory,
    children_ignore_ctrl_c,
    children_share_cores,
    cores,
    read_json,
    remove_leftovers,
    track,
    write_json,
)
from . import argoverse2, kitti, kitti_object, nuscenes
from .capture import capture
from .kinds import CLASSES
from .rig import Rig, kitti_rig, nuscenes_rig
from .settings import VERSION, SyntheticSettings, SyntheticSummary
from .world import World, make_world

MARK = "synthetic.json"
_FORMS: dict[str, Any] = {
    "nuscenes": nuscenes,
    "semantickitti": kitti,
    "kitti-object": kitti_object,
    "argoverse2": argoverse2,
}
CHUNK = 4
"""Frames of one unit of work: few enough to share, enough to pay for making the scene."""


def write_dataset(settings: SyntheticSettings, out: PathLike) -> SyntheticSummary:
    """Make a synthetic data set in the folder ``out``.

    The folder appears when everything in it is written. Where it already holds exactly what the settings ask for,
    nothing is done; another synthetic data set is replaced.

    Raises:
        OlivineError: ``out`` holds something that is not a synthetic data set, or the disk is too small.
    """
    out = Path(out)
    identity = _identity(settings)
    found = _existing(out)
    if found is not None and found.get("identity") == identity:
        return _summary(out, found, reused=True)
    _check_space(settings, out)
    remove_leftovers(out.absolute().parent)
    version, scenes = _scene_names(settings)
    with atomic_directory(out.absolute()) as folder:
        rows = _frames(settings, folder)
        by_scene = [[rows[k, frame] for frame in range(settings.frames)] for k in range(settings.scenes)]
        boxes = _finish(settings, folder, by_scene)
        everything = [row for frames in by_scene for row in frames]
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
            "images": len(everything) * len(_rig(settings).cameras),
            "points": sum(counts),
            "boxes": boxes,
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
    rig = _rig(settings)
    pixels = sum(w * h for w, h, _ in (c.scaled(settings.image_scale) for c in rig.cameras))
    rays = rig.lidar.columns * len(rig.lidar.elevation)
    per_pixel = 0.3 if settings.format in ("nuscenes", "argoverse2") else 1.9  # JPEG or PNG, and the masks
    need = settings.scenes * settings.frames * (23 * rays + per_pixel * pixels + 8000)
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


def _rig(settings: SyntheticSettings) -> Rig:
    return nuscenes_rig() if settings.format in ("nuscenes", "argoverse2") else kitti_rig()


def _scene_names(settings: SyntheticSettings) -> tuple[str, list[tuple[str, str]]]:
    return _FORMS[settings.format].scene_names(settings.scenes)


def _finish(settings: SyntheticSettings, folder: Path, by_scene: list[list[dict[str, Any]]]) -> int:
    """Write what goes over all frames; the number of boxes."""
    version, scenes = _scene_names(settings)
    if settings.format != "nuscenes":
        named = [(name, rows) for (name, _), rows in zip(scenes, by_scene)]
        _FORMS[settings.format].finish(folder, _rig(settings), settings.image_scale, named)
        return sum(row["boxes"] for rows in by_scene for row in rows)
    keyed = [(nuscenes.SceneName(settings.seed, k, scenes[k][0], version), rows) for k, rows in enumerate(by_scene)]
    nuscenes.write_tables(folder, version, nuscenes_rig(), settings.image_scale, keyed)
    return sum(len(row["sample_annotation"]) for rows in by_scene for row in rows)


def _frames(settings: SyntheticSettings, folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Write every frame's files; the rows of each (scene, frame)."""
    units = [
        (settings, scene, range(start, min(start + CHUNK, settings.frames)), folder)
        for scene in range(settings.scenes)
        for start in range(0, settings.frames, CHUNK)
    ]
    workers = min(settings.workers or cores(), len(units))
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    results = _in_turn(units) if workers <= 1 else _in_processes(units, workers)
    total = settings.scenes * settings.frames
    for scene, frame, row in track(results, "synthetic frames", total=total, unit="frame"):
        rows[scene, frame] = row
    return rows


Unit = tuple[SyntheticSettings, int, range, Path]
Made = tuple[int, int, dict[str, Any]]


def _in_turn(units: list[Unit]) -> Iterator[Made]:
    for unit in units:
        yield from _write_unit(*unit)


def _in_processes(units: list[Unit], workers: int) -> Iterator[Made]:
    # Fresh interpreters: forking a process that runs threads (numba's, torch's) can hang the child.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        with children_share_cores(workers), children_ignore_ctrl_c():
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


def _write_unit(settings: SyntheticSettings, scene: int, frames: range, folder: Path) -> Iterator[Made]:
    real = _FORMS[settings.format]
    rig, step = _rig(settings), real.STEP_US * 1e-6
    version, names = _scene_names(settings)
    world = _world(settings.seed, scene, settings.frames * step)
    for frame in frames:
        shot = capture(
            world,
            rig,
            seconds=frame * step,
            frame=frame,
            image_scale=settings.image_scale,
            model=real.MODEL,
            keep_lost=settings.format == "nuscenes",
        )
        if settings.format == "argoverse2":
            row = argoverse2.write_frame(folder, names[scene][0], frame, shot, names[scene][1])
        elif settings.format != "nuscenes":
            row = real.write_frame(folder, names[scene][0], frame, shot)
        else:
            name = nuscenes.SceneName(settings.seed, scene, names[scene][0], version)
            row = nuscenes.write_frame(folder, name, frame, world, rig, shot)
        yield scene, frame, row
