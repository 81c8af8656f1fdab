"""``olivine build-pairs``: all units of a split, in parallel, resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..cluster.journal import Account, Journal
from ..cluster.local import Local
from ..cluster.plan import Plan
from ..cluster.work import Executor, Job, WorkUnit, execute
from ..common import Failure, OlivineError, PathLike, disk_error, remove_leftovers
from ..labelgen.store import LabelStore
from ..labelgen.text_table import write_text_table
from ..readers.index import FrameIndex
from .clusters import hdbscan_class
from .layout import FRAMES_PER_SHARD, SCHEMA, UNITS, VOTE_SCORE
from .manifest import merge_manifest, refuse_other_recipe, write_benchmark
from .settings import PairSettings
from .sources import refuse_changed_files
from .unit import Unit, UnitBuilder, UnitResult, finished, packages_of, plan_units

_MISSING = "not built, or not whole; run build-pairs again, its log says why it failed"
_MERGE_EVERY = 20.0  # seconds; what a kill leaves out of the manifest, the next run enters
_MERGE_SHARE = 0.05  # of the time, at most, goes into merging: the manifest of a million frames takes a minute


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
        labels_changed: pairs of this run's frames whose label the vote changed; None without ``--consolidate``.
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
    labels_changed: int | None
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
    executor: Executor | None = None,
    logs: Path | None = None,
    merge_only: bool = False,
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
        executor: where units are done; ``settings.workers`` processes here without one.
        logs: the folder for the job's account, see :mod:`olivine.cluster.journal`.
        merge_only: build nothing; enter what other runs built, and name the units that are missing.

    Raises:
        OlivineError: the split has no frames, the folder holds shards made otherwise or of files that have changed, the
            disk is full. What is finished stays.
    """
    # Absolute: other machines and processes have other working folders.
    out, store = Path(out).absolute(), store.absolute()
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
    refuse_other_recipe(out, recipe, store, overwrite)
    mine = units[i::n]
    stored = [] if overwrite else [unit for unit in mine if finished(out, unit)]
    refuse_changed_files(out, index.root, stored)
    numbers = {unit.number for unit in stored}
    waiting = [unit for unit in mine if unit.number not in numbers]
    if waiting and settings.clusters and not merge_only:
        hdbscan_class()
    try:
        (out / UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from None
    removed = _clean(out)
    prompts = {name: prompt for name, prompt in index.source.prompts.items() if prompt in store.classes}
    benchmark = index.source.benchmark(index.version)
    write_benchmark(out, replace(benchmark, prompts=prompts))
    if settings.regions:
        write_text_table(out, store.text)

    provenance = {"labels": store.manifest}
    planned, expected = (sum(unit.count for unit in part) for part in (units, waiting))
    failures: list[Failure] = []
    built = kept = changed = 0
    if merge_only:
        failures += [Failure(unit.name, _MISSING) for unit in waiting]
        waiting = []
    job: Job[Unit, UnitResult] = Job(
        "build-pairs",
        partial(UnitBuilder, out, store, settings, recipe, overwrite),
        noun="frame",
        paths=(out, store.root, *(one.root for one in store.also), index.root),
        packages=packages_of(settings),
        lost=lambda writer: _clean(out, writer),
    )
    rows = (WorkUnit(unit.key, unit.count, unit) for unit in waiting)
    executor = executor or Local(max(1, min(settings.workers, len(waiting))))
    try:
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(logs, job.name, out, len(units))) if logs and waiting else None
            outcomes = execute(job, rows, executor, total=sum(unit.count for unit in waiting), journal=journal)
            due = time.monotonic() + _MERGE_EVERY
            for outcome in stack.enter_context(closing(outcomes)):
                if outcome.result is None:
                    failures.append(Failure(outcome.unit.content.name, outcome.error))
                    continue
                built += outcome.result.frames
                kept += outcome.result.kept
                changed += outcome.result.changed
                failures += outcome.result.failures
                if (begun := time.monotonic()) > due:
                    merge_manifest(out, recipe, provenance, planned)
                    ended = time.monotonic()
                    due = ended + max(_MERGE_EVERY, (ended - begun) / _MERGE_SHARE)
    finally:
        manifest = merge_manifest(out, recipe, provenance, planned)
    size = sum(entry[0] for shard in manifest["shards"] for entry in shard["files"].values())
    return PairSummary(
        frames_built=built,
        frames_kept=sum(unit.count for unit in mine) - expected + kept,
        frames_left_out=expected - built - kept,
        shards=len(manifest["shards"]),
        frames=manifest["frames"],
        planned_frames=planned,
        pairs=manifest["pairs"],
        labels_changed=changed if settings.consolidate else None,
        class_count=dict(zip(("(none)", *store.classes), manifest["class_count"])),
        bytes_per_frame=size // max(manifest["frames"], 1),
        removed=len(removed),
        failures=failures,
    )


def plan_pairs(
    store: LabelStore,
    out: Path,
    logs: Path,
    settings: PairSettings,
    splits: Sequence[str],
    index: FrameIndex,
    parts: int,
) -> Plan:
    """What of some splits is left, cut into parts; the arguments are checked as :func:`build_pairs` does."""
    accounts = accounts_of(store, out, logs, settings, splits, index)
    rows = [
        (account, [finished(account.out, unit) for unit in plan_units(index, split)])
        for account, split in zip(accounts, splits)
    ]
    if settings.clusters:
        hdbscan_class()
    roots = (store.root, *(one.root for one in store.also), index.root)
    return Plan.of(logs, rows, parts, roots, packages_of(settings))


def accounts_of(
    store: LabelStore,
    out: Path,
    logs: Path,
    settings: PairSettings,
    splits: Sequence[str],
    index: FrameIndex,
    overwrite: bool = False,
) -> list[Account]:
    """The account of each split; the arguments are checked as :func:`build_pairs` does."""
    _check_labels(store, settings)
    for split in splits if not overwrite else ():
        refuse_other_recipe(out / split, recipe_of(store, index, settings, split), store, overwrite=False)
        stored = [unit for unit in plan_units(index, split) if finished(out / split, unit)]
        refuse_changed_files(out / split, index.root, stored)
    return [Account(logs / s, "build-pairs", out / s, len(plan_units(index, s))) for s in splits]


def _clean(out: Path, writer: str | None = None) -> list[Path]:
    return [*remove_leftovers(out, writer), *remove_leftovers(out / UNITS, writer)]


def recipe_of(store: LabelStore, index: FrameIndex, settings: PairSettings, split: str) -> dict[str, Any]:
    """What shards are made of and how: two sets with the same recipe hold the same frames."""
    # What is off is not named, so that sets from before it existed are still the same sets.
    regions = {"regions": store.text.identity()} if settings.regions else {}
    scores = {"pair_score": score_name(store, settings)} if store.scores else {}
    also = {"labels_that_vote_too": [one.digest for one in store.also]} if store.also else {}
    return {
        **regions,
        **scores,
        **also,
        "schema": SCHEMA,
        "dataset": index.dataset,
        "version": index.version,
        "split": split,
        "classes": list(store.classes),
        "point_classes": list(index.point_classes),
        "intensity_offset": index.intensity_offset,
        "labels": store.digest,
        "index": index.digest,
        "settings": settings.recipe(),
        "frames_per_shard": FRAMES_PER_SHARD,
    }


def score_name(store: LabelStore, settings: PairSettings) -> str:
    """What ``pair_score`` is in shards of a store with scores."""
    return (
        f"{VOTE_SCORE}, weighed by the labeler's scores" if settings.consolidate else f"of the labeler: {store.scores}"
    )


def _check_labels(store: LabelStore, settings: PairSettings) -> None:
    if store.also and not settings.consolidate:
        raise OlivineError(
            "its labels are to vote, and there is no vote", where=store.also[0].root, remedy="add --consolidate"
        )
    if settings.segments and store.manifest.get("settings", {}).get("segments", "none") == "none":
        raise OlivineError(
            "the label store has no segment maps",
            where=store.root,
            remedy="leave out --segments, or make them with labelgen",
        )
    if settings.regions and "regions" not in store.manifest["settings"]:
        raise OlivineError(
            "the label store has no regions",
            where=store.root,
            remedy="leave out --regions, or make them with olivine labelgen --labeler regions --regions DIR (or sam-clip)",
        )
    if not 1 <= len(store.classes) <= 255:
        raise OlivineError(
            f"{len(store.classes)} classes; a weak label is stored in one byte", where=store.root, remedy="use 1 to 255"
        )
