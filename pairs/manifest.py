"""The manifest of a set of shards, and how any number of writers share it.

A finished unit has an entry ``units/shard-00000.json``; the manifest is all entries
together. A writer that has entered its unit reads all entries, writes the manifest, and
looks again: when another writer's entry came in meanwhile it goes round once more. The last
one to write has therefore seen everything, without a lock that a dead writer could hold.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import OlivineError, Whole, check_replaceable, demand, digest, inside, read_json, write_json
from ..common.settings import differences
from ..readers.benchmark import Benchmark, benchmark_from_plain
from .layout import DATASET, FORMAT, MANIFEST, SCHEMA, UNITS, check_schema, is_shard_file, shard_name

if TYPE_CHECKING:  # the trainer reads shards without it
    from ..labelgen.store import LabelStore

_AGAIN = "delete it and run olivine build-pairs again"


def entry_path(out: Path, number: int) -> Path:
    """The file of a unit's entry."""
    return out / UNITS / f"shard-{number:05d}.json"


def read_entry(out: Path, number: int) -> dict[str, Any] | None:
    """A unit's entry; None where the unit is not finished (an entry that cannot be read is none)."""
    path = entry_path(out, number)
    if not path.is_file():
        return None
    try:
        entry: dict[str, Any] = demand(read_json(path), _ENTRY, path)
        _check_files(entry, number, path)
    except OlivineError:
        return None
    return entry if entry.get("digest") == _entry_digest(entry) else None


def entered(out: Path) -> list[int]:
    """The numbers of the units that have an entry, in ascending order."""
    names = (re.fullmatch(r"shard-([0-9]+)\.json", path.name) for path in (out / UNITS).glob("shard-*.json"))
    return sorted(int(name[1]) for name in names if name)


def read_entries(out: Path) -> list[dict[str, Any]]:
    """The entries of the finished units, by ascending number."""
    return [entry for number in entered(out) if (entry := read_entry(out, number)) is not None]


_SHARD = {
    "number": Whole(),
    "scene": str,
    "first": Whole(),
    "frames": Whole(1),
    "points": Whole(),
    "pairs": Whole(),
    "class_count": [Whole()],
    "image_size": [(Whole(1), Whole(1))],
    "left_out": [(str, str)],
    "files": {str: (Whole(), str)},
}
_ENTRY = {
    **_SHARD,
    "recipe": str,
    "label_maps?": [str],
    "cameras": [str],
    "has_point_label": bool,
    "packages": {str: str},
}
_MANIFEST = {
    "recipe": {
        "dataset": str,
        "version": str,
        "split": str,
        "classes": [str],
        "point_classes": [str],
        "labels": str,
        "pair_score?": str,
        "regions?": {"model": str, "dimension": Whole(1), "phrases": Whole(1), "digest": str},
        "settings": {
            "images": bool,
            "segments": bool,
            "clusters?": Whole(),
            "cluster_settings?": {"largest": Whole(1)},
        },
    },
    "provenance": {"packages": {str: [str]}},
    "cameras": [str],
    "planned_frames": Whole(),
    "frames": Whole(),
    "points": Whole(),
    "pairs": Whole(),
    "class_count": [Whole()],
    "has_point_label": bool,
    "shards": [{**_SHARD, "name": str}],
}


def _check_files(entry: dict[str, Any], number: int, where: Path) -> None:
    """Raise unless an entry is of this number and its files lie in its shard."""
    if entry["number"] != number or entry.get("name", shard_name(number)) != shard_name(number):
        raise OlivineError(f"names the shard {entry.get('name', entry['number'])!r}", where=where, remedy=_AGAIN)
    for name in entry["files"]:
        inside(shard_name(number), name, where)
    if "zarr.json" not in entry["files"]:
        raise OlivineError(f"names no zarr.json of {shard_name(number)}", where=where, remedy=_AGAIN)


def write_entry(out: Path, entry: dict[str, Any]) -> None:
    """Enter a finished unit."""
    write_json(entry_path(out, entry["number"]), {**entry, "digest": _entry_digest(entry)})


def _entry_digest(entry: dict[str, Any]) -> str:
    return digest({key: value for key, value in entry.items() if key != "digest"})


def label_maps(store: LabelStore, scene: str) -> list[str]:
    """What a shard's entry knows the scene's label maps by: of the store and of each that votes beside it, "" = not known."""
    return [one.maps_digest(scene) for one in (store, *store.also)]


def of_other_maps(entry: dict[str, Any], maps: list[str]) -> bool:
    """Whether a shard was built of other label maps than ``maps`` (:func:`label_maps`); False where either is not known."""
    return any(mine and theirs and mine != theirs for mine, theirs in zip(entry.get("label_maps", ()), maps))


def is_whole(out: Path, entry: dict[str, Any]) -> bool:
    """Whether a unit's shard is there with all its files, each of its size."""
    folder = out / shard_name(entry["number"])
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in entry["files"].items())
    except OSError:
        return False


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a set of shards.

    Raises:
        OlivineError: there is none, it is damaged, or of a schema this version does not read.
    """
    path = out / MANIFEST
    if not path.is_file():
        started = (out / UNITS).is_dir()
        raise OlivineError(
            "an unfinished set of shards: no manifest yet" if started else "no shards here: no manifest.json",
            where=out,
            remedy="run olivine build-pairs" + (" again; it goes on where it stopped" if started else " first"),
        )
    manifest = read_json(path, _AGAIN)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise OlivineError("not a manifest of shards", where=path, remedy="name a folder made by olivine build-pairs")
    check_schema(manifest.get("schema"), path)
    if manifest.get("digest") != _entry_digest(manifest):
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=_AGAIN)
    plain: dict[str, Any] = demand(manifest, _MANIFEST, path, _AGAIN)
    for entry in plain["shards"]:
        _check_files(entry, entry["number"], path)
        if not len(entry["class_count"]) == len(plain["class_count"]) == len(plain["recipe"]["classes"]) + 1:
            raise OlivineError("counts other classes than it names", where=path, remedy=_AGAIN)
    return plain


_BENCHMARK_AGAIN = "run the same olivine build-pairs again: it keeps the shards and writes this file"


def write_benchmark(out: Path, benchmark: Benchmark) -> None:
    """Write what the data set's benchmark fixed beside the manifest, where it is not there yet."""
    with contextlib.suppress(OlivineError):
        if read_benchmark(out) == benchmark:
            return
    plain = {"benchmark": benchmark.to_plain()}
    write_json(out / DATASET, {**plain, "digest": _entry_digest(plain)})


def read_benchmark(out: Path) -> Benchmark:
    """What :func:`write_benchmark` wrote.

    Raises:
        OlivineError: there is none (the set is from before), or it is damaged.
    """
    plain = read_json(out / DATASET, _BENCHMARK_AGAIN)
    demand(plain, {"benchmark": dict, "digest": str}, out / DATASET, _BENCHMARK_AGAIN)
    if plain["digest"] != _entry_digest(plain):
        raise OlivineError(
            "damaged: its content does not match its digest", where=out / DATASET, remedy=_BENCHMARK_AGAIN
        )
    return benchmark_from_plain(plain["benchmark"], out / DATASET, _BENCHMARK_AGAIN)


def merge_manifest(
    out: Path, recipe: dict[str, Any], provenance: dict[str, Any], planned_frames: int
) -> dict[str, Any]:
    """Write the manifest of all finished units.

    Args:
        out: the folder of shards.
        recipe: what the shards are made of and how; entries of another recipe are not of this set.
        provenance: told to the reader, and no part of the set's identity.
        planned_frames: how many frames the split has.

    Returns:
        The manifest as written.
    """
    identity = digest(recipe)
    written: list[dict[str, Any]] | None = None
    manifest: dict[str, Any] = {}
    while True:
        entries = [entry for entry in read_entries(out) if entry["recipe"] == identity]
        if entries == written:
            return manifest
        manifest = _manifest_of(entries, recipe, provenance, planned_frames)
        path = out / MANIFEST
        if not path.is_file() or _damaged_or_other(out, manifest):
            write_json(path, manifest)
        written = entries


def _damaged_or_other(out: Path, manifest: dict[str, Any]) -> bool:
    try:
        return read_manifest(out) != manifest
    except OlivineError:
        return True


def _manifest_of(
    entries: list[dict[str, Any]], recipe: dict[str, Any], provenance: dict[str, Any], planned_frames: int
) -> dict[str, Any]:
    cameras = entries[0]["cameras"] if entries else []
    for entry in entries:
        if entry["cameras"] != cameras:
            raise OlivineError(
                f"has the cameras {', '.join(entry['cameras'])}, the other shards {', '.join(cameras)}",
                where=shard_name(entry["number"]),
                remedy="build each camera set into its own folder",
            )
    packages: dict[str, list[str]] = {}
    for entry in entries:
        for name, version in entry["packages"].items():
            packages[name] = sorted({*packages.get(name, []), version})
    kept = ("number", "scene", "first", "frames", "points", "pairs", "class_count", "image_size", "left_out", "files")
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "recipe": recipe,
        "provenance": {**provenance, "packages": packages},
        "cameras": cameras,
        "planned_frames": planned_frames,
        "frames": sum(entry["frames"] for entry in entries),
        "points": sum(entry["points"] for entry in entries),
        "pairs": sum(entry["pairs"] for entry in entries),
        "class_count": [sum(column) for column in zip(*(entry["class_count"] for entry in entries))],
        "has_point_label": bool(entries) and all(entry["has_point_label"] for entry in entries),
        "shards": [{"name": shard_name(entry["number"]), **{key: entry[key] for key in kept}} for entry in entries],
    }
    return {**manifest, "digest": _entry_digest(manifest)}


def refuse_other_recipe(out: Path, recipe: dict[str, Any], store: LabelStore, overwrite: bool) -> None:
    """Raise when ``out`` holds shards of another recipe, or of label maps that have been replaced; with ``overwrite``,
    remove those.

    Raises:
        OlivineError: names what differs.
    """
    identity = digest(recipe)
    numbers = entered(out)
    entries = read_entries(out)
    others = [entry["number"] for entry in entries if entry["recipe"] != identity]
    if (others or not numbers) and (out / MANIFEST).is_file() and not overwrite:
        old = read_manifest(out)["recipe"]
        if old != recipe:
            raise OlivineError(
                f"holds shards made otherwise: {_difference(old, recipe)}",
                where=out,
                remedy="choose another --out folder, or replace them with --overwrite",
            )
    if others and not overwrite:
        raise OlivineError(
            f"holds {len(others)} shards of other labels or settings",
            where=out,
            remedy="choose another --out folder, or replace them with --overwrite",
        )
    # One with left-out frames is built again anyway.
    stale = [
        entry
        for entry in entries
        if entry["number"] not in others
        and not entry["left_out"]
        and of_other_maps(entry, label_maps(store, entry["scene"]))
    ]
    if stale and not overwrite:
        raise OlivineError(
            f"{len(stale)} of its {len(entries)} shards, that of {stale[0]['scene']} the first, were built of other label "
            f"maps than {store.root} holds now",
            where=out,
            remedy="choose another --out folder, or build them again with --overwrite",
        )
    others += [entry["number"] for entry in stale]
    for number in others:
        check_replaceable(out / shard_name(number), is_shard_file)
    for number in others:
        entry_path(out, number).unlink(missing_ok=True)
        shutil.rmtree(out / shard_name(number), ignore_errors=True)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    def short(value: Any) -> str:
        return text if len(text := str(value)) <= 24 else text[:12] + "…"

    return "; ".join(f"{key} was {short(a)}, now {short(b)}" for key, a, b in differences(old, new))
