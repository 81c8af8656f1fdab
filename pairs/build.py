"""``olivine build-pairs``: all units of a split, in parallel, resumable."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import Failure, OlivineError, PathLike, remove_leftovers, track
from ..labelgen.store import LabelStore
from ..readers.frame import FrameIndex
from .layout import FRAMES_PER_SHARD, SCHEMA, UNITS
from .manifest import is_whole, merge_manifest, read_entry, refuse_other_recipe
from .settings import PairSettings
from .unit import Unit, UnitBuilder, UnitResult, plan_units

_MERGE_EVERY = 20.0  # seconds; what a kill leaves out of the manifest, the next run enters


@dataclass(frozen=True)
class PairSummary:
    """What a run of build-pairs did, and what the folder holds after it.

    Attributes:
        frames_built: frames this run stored.
        frames_kept: frames of this run's part that were there already.
        frames_left_out: frames that could not be built; ``failures`` names each.
        shards: shards in the folder.
        frames, planned_frames: frames in the folder, and in the split.
        pairs: pairs in the folder.
        class_count: pairs of each class, by name; ``(none)`` = no label.
        bytes_per_frame: on disk.
        removed: what dead writers had left half-written.
        failures: one for each frame (or unit) that could not be done.
    """

    frames_built: int
    frames_kept: int
    frames_left_out: int
    shards: int
    frames: int
    planned_frames: int
    pairs: int
    class_count: dict[str, int]
    bytes_per_frame: int
    removed: int
    failures: list[Failure] = field(default_factory=list)


def build_pairs(
    store: LabelStore,
    out: PathLike,
    settings: PairSettings,
    *,
    split: str,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    index: FrameIndex | None = None,
) -> PairSummary:
    """Make the shards of a split.

    Work units are runs of up to 64 consecutive frames of one scene. A finished unit stays
    as it is; a unit with left-out frames is tried again. Any number of processes, on any
    number of machines with the folder in common, may each build a part (or the same one).

    Args:
        store: the label maps.
        out: the folder of shards, made where absent.
        settings: see :class:`PairSettings`.
        split: ``train``, ``val`` or ``test``.
        part: (i, n): this run builds the units i, i + n, i + 2 n, …
        overwrite: build this part's units again, and replace shards of another recipe.
        index: the data set's frames, where it has moved since the labels were made.

    Raises:
        OlivineError: the split has no frames, the folder holds shards made otherwise, the
            disk is full. What is finished stays.
    """
    out = Path(out)
    index = store.index() if index is None else index
    i, n = part
    if not 0 <= i < n:
        raise OlivineError(f"part {i} of {n}", remedy="give I/N with I from 0 to N - 1")
    units = plan_units(index, split)
    if not units:
        raise OlivineError(
            f"the data set has no {split} frames",
            where=index.root,
            remedy=f"choose one of: {', '.join(index.splits())}",
        )
    _check_labels(store, settings)
    recipe = recipe_of(store, index, settings, split)
    refuse_other_recipe(out, recipe, overwrite)
    try:
        (out / UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OlivineError(
            f"cannot be made ({error.strerror})", where=out, remedy="choose another --out folder"
        ) from None
    removed = [*remove_leftovers(out), *remove_leftovers(out / UNITS)]

    mine = units[i::n]
    waiting = mine if overwrite else [unit for unit in mine if not _finished(out, unit)]
    provenance = {"labels": store.manifest}
    planned = sum(unit.count for unit in units)
    failures: list[Failure] = []
    built = 0
    try:
        merged = time.monotonic()
        for result in _run(UnitBuilder(out, store, settings, recipe), waiting, settings.workers):
            built += result.frames
            failures += result.failures
            if time.monotonic() - merged > _MERGE_EVERY:
                merge_manifest(out, recipe, provenance, planned)
                merged = time.monotonic()
    finally:
        manifest = merge_manifest(out, recipe, provenance, planned)
    if not manifest["shards"]:
        reason = f": {failures[0].unit}: {failures[0].reason}" if failures else ""
        raise OlivineError(f"no frame of the {split} split could be built{reason}", where=out)
    size = sum(entry[0] for shard in manifest["shards"] for entry in shard["files"].values())
    return PairSummary(
        frames_built=built,
        frames_kept=sum(unit.count for unit in mine) - sum(unit.count for unit in waiting),
        frames_left_out=sum(unit.count for unit in waiting) - built,
        shards=len(manifest["shards"]),
        frames=manifest["frames"],
        planned_frames=planned,
        pairs=manifest["pairs"],
        class_count=dict(zip(("(none)", *store.classes), manifest["class_count"])),
        bytes_per_frame=size // max(manifest["frames"], 1),
        removed=len(removed),
        failures=failures,
    )


def recipe_of(store: LabelStore, index: FrameIndex, settings: PairSettings, split: str) -> dict[str, Any]:
    """What shards are made of and how: two sets with the same recipe hold the same frames."""
    return {
        "schema": SCHEMA,
        "dataset": index.dataset,
        "version": index.version,
        "split": split,
        "classes": list(store.classes),
        "point_classes": list(index.point_classes),
        "labels": store.digest,
        "index": index.digest,
        "settings": settings.recipe(),
        "frames_per_shard": FRAMES_PER_SHARD,
    }


def _check_labels(store: LabelStore, settings: PairSettings) -> None:
    if settings.segments and store.manifest.get("settings", {}).get("segments", "none") == "none":
        raise OlivineError(
            "the label store has no segment maps",
            where=store.root,
            remedy="leave out --segments, or make them with labelgen",
        )
    if not 1 <= len(store.classes) <= 255:
        raise OlivineError(
            f"{len(store.classes)} classes; a weak label is stored in one byte", where=store.root, remedy="use 1 to 255"
        )


def _finished(out: Path, unit: Unit) -> bool:
    entry = read_entry(out, unit.number)
    return entry is not None and not entry["left_out"] and entry["frames"] == unit.count and is_whole(out, entry)


def _run(builder: UnitBuilder, units: list[Unit], workers: int) -> Iterator[UnitResult]:
    """Build the units, as they come."""
    if not units:
        return
    processes = min(workers, len(units))
    if processes == 1:
        yield from track(map(builder, units), "build-pairs", len(units), "shards")
        return
    with _pool(builder, processes) as pool:
        yield from track(_completed(pool, units), "build-pairs", len(units), "shards")


def _completed(pool: ProcessPoolExecutor, units: list[Unit]) -> Iterator[UnitResult]:
    running = {pool.submit(_build, unit) for unit in units}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise OlivineError(
            "a worker process died (out of memory?)",
            remedy="run the command again with fewer --workers; what is finished is kept",
        ) from None


_builder: UnitBuilder | None = None


def _build(unit: Unit) -> UnitResult:
    assert _builder is not None
    return _builder(unit)


def _start_worker(builder: UnitBuilder) -> None:
    global _builder
    _builder = builder
    # Ctrl-C is the parent's business: it ends the workers and removes what they had begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _pool(builder: UnitBuilder, processes: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this block, however it ends, and with this process."""
    before = set(multiprocessing.active_children())
    # Spawned: a fork would inherit whatever threads and locks the caller has.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(builder,)
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
            child.join()
        remove_leftovers(builder.out)
        remove_leftovers(builder.out / UNITS)
        raise
