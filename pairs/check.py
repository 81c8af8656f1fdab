"""``olivine build-pairs --check`` and ``--describe``: is a set of shards whole, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common import Failure, OlivineError, PathLike, sha256_file, track
from ..common.images import VALUES, open_image
from ..labelgen.text_table import TEXT_FILES
from ..readers.frame import MAX_DISTANCE
from ..readers.lens import distort, lens_numbers
from .layout import DATASET, MANIFEST, UNITS
from .shards import FrameRecord, ShardSet, open_shards

# Stored pixels are float32; a pixel that is a hundredth off was not made by this calibration.
_PIXEL_TOLERANCE = 0.02


@dataclass(frozen=True)
class CheckSummary:
    """What a check has read, and what is wrong.

    Attributes:
        shards, frames, pairs, bytes: looked at.
        complete: whether every frame of the split is here.
        strangers: what lies in the folder without belonging to the set.
        failures: one for each thing that is wrong.
    """

    shards: int
    frames: int
    pairs: int
    bytes: int
    complete: bool
    strangers: list[str]
    failures: list[Failure] = field(default_factory=list)


def check_shards(path: PathLike) -> CheckSummary:
    """Compare every byte of a set with its digests, and every value with what it may be.

    Raises:
        OlivineError: there is no manifest, or it cannot be read.
    """
    shards = open_shards(path)
    failures: list[Failure] = []
    entries = shards.manifest["shards"]
    frames = pairs = size = 0
    class_count = np.zeros_like(shards.class_count)
    for number in track(range(len(entries)), "check", unit="shards"):
        entry, members = entries[number], shards.shard_ranges[number]
        wrong = list(_wrong_files(shards.path / entry["name"], entry["files"]))
        failures += wrong
        if wrong:
            continue
        size += sum(length for length, _ in entry["files"].values())
        counted = np.zeros_like(class_count)
        points = 0
        for index in members:
            try:
                record = shards[index]
            except OlivineError as error:
                failures.append(Failure(f"{entry['name']} frame {index - members.start}", str(error)))
                continue
            unit = f"{entry['name']} frame {index - members.start} ({record.token})"
            failures += [Failure(unit, reason) for reason in _wrong_values(record, shards)]
            frames += 1
            pairs += record.pair_count
            points += record.point_count
            counted += record.class_count
        class_count += counted
        for name, found in (("class_count", counted.tolist()), ("points", points)):
            if found != entry[name]:
                failures.append(Failure(entry["name"], f"{name} is {found}, the manifest says {entry[name]}"))
    if not failures and class_count.tolist() != shards.class_count.tolist():
        failures.append(Failure(MANIFEST, "its class counts are not the sum of the shards'"))
    if shards.has_regions:
        try:
            _ = shards.text
        except OlivineError as error:
            failures.append(Failure(TEXT_FILES[0], str(error)))
    return CheckSummary(len(entries), frames, pairs, size, shards.complete, _strangers(shards), failures)


def _wrong_files(folder: Path, files: dict[str, list[Any]]) -> Iterator[Failure]:
    for name, (size, sha256) in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
            good = found == size and sha256_file(path) == sha256
        except OSError as error:
            yield Failure(f"{folder.name}/{name}", f"cannot be read ({error.strerror})")
            continue
        if not good:
            what = (
                "its SHA-256 is not the manifest's" if found == size else f"has {found} bytes, was written with {size}"
            )
            yield Failure(f"{folder.name}/{name}", f"{what}. Delete {folder} and run olivine build-pairs again")


def _wrong_values(record: FrameRecord, shards: ShardSet) -> Iterator[str]:
    """What is wrong with a frame's values, one line each."""
    cameras = len(record.image_size)
    if not np.isfinite(record.points).all():
        yield "points are not finite"
    elif np.abs(record.points[:, :3]).max(initial=0) > MAX_DISTANCE:
        yield f"points are over {MAX_DISTANCE:g} m away"
    if record.point_label is not None and record.point_label.max(initial=0) > len(shards.point_classes):
        yield f"point label {record.point_label.max()} of {len(shards.point_classes)} classes"
    for name in ("cluster_previous", "cluster_next"):
        column = getattr(record, name)
        if shards.has(name) != (column is not None):
            yield f"{name} is {'missing' if column is None else 'there, and the manifest has no clusters'}"
        elif column is not None and not -1 <= column.min(initial=0) <= column.max(initial=0) < shards.cluster_count:
            yield f"{name} holds {column.min()} to {column.max()}, clusters are numbered 0 to {shards.cluster_count - 1}"
    yield from _wrong_regions(record, shards)
    if not np.array_equal(np.bincount(record.pair_label, minlength=len(shards.classes) + 1), record.class_count):
        yield "class_count is not what the pairs' labels count to"
    if not record.pair_count:
        return
    if record.pair_point.min() < 0 or record.pair_point.max() >= record.point_count:
        yield "a pair names a point beyond the cloud"
        return
    if record.pair_camera.max() >= cameras:
        yield "a pair names a camera beyond the frame's"
        return
    if (np.diff(record.pair_camera.astype(np.int64) * record.point_count + record.pair_point) <= 0).any():
        yield "pairs are not ordered by camera and point"
    if not (np.isfinite(record.pair_density).all() and record.pair_density.min() > 0):
        yield "a density is not positive"
    size = record.image_size[record.pair_camera]
    if not ((record.pair_uv > -0.5) & (record.pair_uv < size - 0.5)).all():
        yield "a pair's pixel is outside its image"
    off = _reprojection_error(record, shards.lenses(record.index))
    if off > _PIXEL_TOLERANCE:
        yield f"pixels are up to {off:.3g} px from where the calibration projects their points"
    for c, data in enumerate(record.image or []):
        width, height = record.image_size[c].tolist()
        if wrong := _wrong_image(data, (width, height), f"the image of camera {shards.cameras[c]}"):
            yield wrong


def _wrong_regions(record: FrameRecord, shards: ShardSet) -> Iterator[str]:
    known = shards.manifest["recipe"].get("regions")
    columns = (record.region_count, record.region_phrase, record.region_feature)
    if known is None or any(column is None for column in columns):
        if known is not None:
            yield "the regions are missing, and the manifest has some"
        return
    count, phrase, feature = columns
    if feature.shape[2] != known["dimension"]:
        yield f"regions' features are of dimension {feature.shape[2]}, the text table of {known['dimension']}"
    if phrase.max(initial=0) >= known["phrases"]:
        yield f"a region has the phrase {phrase.max()}, the text table {known['phrases']}, from 0"
    for c, data in enumerate(record.segment or []):
        if not 0 <= count[c] <= phrase.shape[1]:
            yield f"camera {shards.cameras[c]} has {count[c]} regions, there is room for {phrase.shape[1]}"
            continue
        length = np.linalg.norm(feature[c, : count[c]].astype(np.float64), axis=1)
        if not (np.abs(length - 1) < 0.01).all():
            yield f"a feature of camera {shards.cameras[c]} is not of length 1"
        try:
            where = f"the region map of camera {shards.cameras[c]}"
            with open_image(data, where=where, formats=("PNG",), modes=VALUES) as image:
                largest = int(np.asarray(image, np.int32).max(initial=0))
        except OlivineError as error:
            yield str(error)
            continue
        if largest > count[c]:
            yield f"the map of camera {shards.cameras[c]} holds the region {largest}, and there are {count[c]} features"


def _wrong_image(data: bytes, size: tuple[int, int], where: str) -> str:
    try:
        with open_image(data, where=where, formats=("JPEG",), size=size):
            return ""
    except OlivineError as error:
        return str(error)


def _reprojection_error(record: FrameRecord, lenses: list[tuple[str, tuple[float, ...]]] | None) -> float:
    worst = 0.0
    for c in range(len(record.image_size)):
        mine = record.pair_camera == c
        if not mine.any():
            continue
        xyz = record.points[record.pair_point[mine], :3].astype(np.float64)
        transform = record.lidar_to_camera[c]
        ray = xyz @ transform[:3, :3].T + transform[:3, 3]
        if lenses is not None:
            lens = lens_numbers(*lenses[c])
            ray = np.array([(*distort(*lens, x, y), 1.0) for x, y in ray[:, :2] / ray[:, 2:]])
        ray = ray @ record.intrinsic[c].T
        worst = max(worst, float(np.abs(ray[:, :2] / ray[:, 2:] - record.pair_uv[mine]).max()))
    return worst


def _strangers(shards: ShardSet) -> list[str]:
    known = {
        MANIFEST,
        UNITS,
        DATASET,
        *(TEXT_FILES if shards.has_regions else ()),
        *(entry["name"] for entry in shards.manifest["shards"]),
    }
    return sorted(path.name for path in shards.path.iterdir() if path.name not in known)


@dataclass(frozen=True)
class Description:
    """What is in a set of shards; see :func:`describe_shards`. ``intensity_offset`` is None before schema 1.1."""

    dataset: str
    split: str
    scenes: int
    shards: int
    frames: str
    points_per_frame: float
    pairs_per_frame: float
    cameras: list[str]
    image_size: list[str]
    classes: dict[str, str]
    point_classes: list[str]
    intensity_offset: float | None
    bytes_per_frame: dict[str, int]
    left_out: list[str]
    settings: dict[str, Any]
    pair_score: str
    labels: str
    packages: dict[str, str]
    digest: str


def describe_shards(path: PathLike) -> Description:
    """What a set of shards holds and what it was made of, from its manifest alone.

    Raises:
        OlivineError: there is no manifest, or it cannot be read.
    """
    shards = open_shards(path)
    manifest = shards.manifest
    frames = max(len(shards), 1)
    total = max(int(shards.class_count.sum()), 1)
    sizes = shards.image_size.tolist() if manifest["shards"] else []
    return Description(
        dataset=f"{shards.dataset} {manifest['recipe']['version']}".strip(),
        split=shards.split,
        scenes=len(shards.scenes),
        shards=len(manifest["shards"]),
        frames=f"{len(shards)} of {manifest['planned_frames']}",
        points_per_frame=round(manifest["points"] / frames, 1),
        pairs_per_frame=round(manifest["pairs"] / frames, 1),
        cameras=list(shards.cameras),
        image_size=sorted({f"{width}x{height}" for width, height in sizes}) if shards.has_image else [],
        classes={
            name: f"{100 * count / total:.2f} %"
            for name, count in zip(("(none)", *shards.classes), shards.class_count.tolist())
        },
        point_classes=list(shards.point_classes) if shards.has_point_label else [],
        intensity_offset=manifest["recipe"].get("intensity_offset"),
        bytes_per_frame={name: round(size / frames) for name, size in bytes_by_array(shards).items()},
        left_out=[f"{unit}: {reason}" for entry in manifest["shards"] for unit, reason in entry["left_out"]],
        settings=manifest["recipe"]["settings"],
        pair_score=shards.score_name,
        labels=manifest["recipe"]["labels"],
        packages={name: ", ".join(versions) for name, versions in manifest["provenance"]["packages"].items()},
        digest=shards.digest,
    )


def bytes_by_array(shards: ShardSet) -> dict[str, int]:
    """Bytes on disk of each array over the whole set, largest first; metadata counts with its array."""
    sizes: dict[str, int] = {}
    for entry in shards.manifest["shards"]:
        for name, (size, _) in entry["files"].items():
            array = name.split("/")[0] if "/" in name else "attributes"
            sizes[array] = sizes.get(array, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
