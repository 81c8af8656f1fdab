"""Frames for the page: what a sample of them says about pairs and labels, which ones are shown, and what is shown of each."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, track
from ..pairs.shards import FrameRecord, ShardSet
from ..readers.frame import Frame
from .contents import Contents
from .shown import BACKGROUND, UNSEEN_COLOR, Shown, ShownCamera, StoreFrames, modes, show_frame, show_record

EDGES = (0, 10, 20, 30, 40, 50, np.inf)
"""Of the bins of distance, metres."""
SAMPLE = 100
"""Most frames that are read for statistics and the ranking."""
_WIDTH = 1280  # pixels of an image on the page, at most


@dataclass
class Statistics:
    """What a sample of frames says; D bins of distance, K weak classes.

    Attributes:
        frames: how many were read, of how many.
        points, seen: points, and those that a camera sees, [D].
        pairs: by distance and weak label, [D, K + 1].
        right, known: pairs whose true class is a prompt, and those of them whose weak label is it, [D, K + 1] by truth.
        twice, agreeing: pairs of pairs of one point in two cameras, and those with one label.
        scores: for the ranking: frame and value, in [0, 1]; empty without a ranking.
        ranked_by: what the value is.
        problems: frames that could not be read.
    """

    frames: int
    of: int
    points: NDArray[np.int64]
    seen: NDArray[np.int64]
    pairs: NDArray[np.int64]
    right: NDArray[np.int64]
    known: NDArray[np.int64]
    twice: int = 0
    agreeing: int = 0
    scores: dict[int, float] = field(default_factory=dict)
    ranked_by: str = ""
    problems: list[str] = field(default_factory=list)


def prompt_values(shards: ShardSet) -> NDArray[np.uint8] | None:
    """The weak label that each true class is, uint8 [C + 1], 0 = none; None where nothing says it."""
    try:
        values = shards.prompt_of(shards.point_classes)
    except OlivineError:  # of before there was a table beside the shards
        return None
    return values if values.any() else None


def read_statistics(contents: Contents, shards: ShardSet) -> Statistics:
    """Go through at most :data:`SAMPLE` frames, evenly spread."""
    bins, size = len(EDGES) - 1, len(shards.classes) + 1
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(SAMPLE, len(shards))).round().astype(int)).tolist()
    points, seen = np.zeros((2, bins), np.int64)
    pairs, right, known = np.zeros((3, bins, size), np.int64)
    found = Statistics(0, len(shards), points, seen, pairs, right, known)
    lookup = prompt_values(shards) if shards.has_point_label else None
    columns = ("points", "point_label", "pair_point", "pair_label", "pair_camera", "point_agreement")
    for index in track(chosen, "report", unit="frame"):
        try:
            _count(found, shards.read(index, columns), lookup, index, contents)
            found.frames += 1
        except OlivineError as error:
            found.problems.append(str(error))
    return found


def _count(
    found: Statistics, record: FrameRecord, lookup: NDArray[np.uint8] | None, index: int, contents: Contents
) -> None:
    distance = np.linalg.norm(record.points[:, :3].astype(np.float64), axis=1)
    bins, size = found.pairs.shape
    place = np.clip(np.digitize(distance, EDGES) - 1, 0, bins - 1)
    seen = np.zeros(len(distance), bool)
    seen[record.pair_point] = True
    found.points += np.bincount(place, minlength=bins)
    found.seen += np.bincount(place[seen], minlength=bins)
    where = place[record.pair_point]
    found.pairs += np.bincount(where * size + record.pair_label, minlength=bins * size).reshape(bins, size)
    order = np.argsort(record.pair_point, kind="stable")
    point, label = record.pair_point[order], record.pair_label[order]
    same = point[1:] == point[:-1]
    found.twice += int(same.sum())
    found.agreeing += int((same & (label[1:] == label[:-1])).sum())
    if lookup is not None and record.point_label is not None:
        truth = lookup[record.point_label[record.pair_point]]
        known, right = truth > 0, truth == record.pair_label
        code = where * size + truth
        found.known += np.bincount(code[known], minlength=bins * size).reshape(bins, size)
        found.right += np.bincount(code[known & right], minlength=bins * size).reshape(bins, size)
        if contents.predictions is None and known.any():
            found.ranked_by = "of the pairs have their true class as weak label"
            found.scores[index] = float(right[known].mean())
    if contents.predictions is not None and record.point_label is not None and record.point_label.any():
        predicted = contents.predictions.read(index, len(distance))
        labelled = record.point_label > 0
        found.ranked_by = "of the labelled points are predicted right"
        found.scores[index] = float((predicted == record.point_label)[labelled].mean())
    elif not found.known.any() and record.point_agreement is not None:
        voted = record.point_agreement > 0
        if voted.any():
            found.ranked_by = "of the votes agree"
            found.scores[index] = float(record.point_agreement[voted].mean() / 255)


def choose_frames(found: Statistics, frames: int) -> list[tuple[int, str]]:
    """Which frames are shown, and a sentence about each: the worst first and last the median one, or evenly spread."""
    ranked = sorted(found.scores, key=lambda index: found.scores[index])
    if len(ranked) < 2:
        spread = np.unique(np.linspace(0, found.of - 1, min(frames, found.of)).round().astype(int))
        return [(int(index), "") for index in spread]
    worst = ranked[: frames if frames == 1 else frames - 1]
    median = ranked[len(ranked) // 2]
    ranks = ("the worst", "the second worst", "the third worst")
    chosen = [(index, ranks[k] if k < 3 else f"number {k + 1} from the worst") for k, index in enumerate(worst)]
    if median not in worst and frames > 1:
        chosen.append((median, "the median"))
    return [
        (index, f"{100 * found.scores[index]:.1f} % {found.ranked_by}: {rank} of {len(ranked)} frames.")
        for index, rank in chosen
    ]


@dataclass(frozen=True)
class View:
    """What the page's program is given: ``spec`` for all frames, and a text of JSON for each."""

    spec: dict[str, Any]
    frames: list[str]


def make_view(contents: Contents, shards: ShardSet | None, chosen: list[tuple[int, str]]) -> View:
    """Images, points and their values of the chosen frames; of the first label maps where there are no shards."""
    store, frames, sources = contents.labels, [], None
    if store is not None:
        sources = contents.attempt("images and overlays", lambda: StoreFrames(store))
    if shards is not None:
        for i, note in chosen:
            read = functools.partial(show_record, contents, shards, i, sources, _WIDTH)
            shown = contents.attempt("a frame", read)
            frames += [_plain(shown, note)] if shown is not None else []
        classes, point_classes, cameras = shards.classes, contents.point_classes, shards.cameras
    else:
        # Of the first that can be read: a damaged scene takes its own frames away, and no others.
        first = range(min(SAMPLE, len(sources)) if sources is not None else 0)
        tried = (contents.attempt("a frame", functools.partial(_of_store, contents, sources or (), i)) for i in first)
        found = itertools.islice((shown for shown in tried if shown is not None), len(chosen))
        frames = [_plain(shown, "") for shown in found if shown.cameras]
        classes, point_classes, cameras = store.classes if store else (), (), ()
    spec = {
        "frames": [plain["token"] for plain in frames],
        "first": "weak",
        "background": BACKGROUND,
        "unseen": UNSEEN_COLOR,
        "modes": modes(classes, point_classes, cameras),
    }
    return View(spec, [json.dumps(plain, allow_nan=False) for plain in frames])


def _of_store(contents: Contents, sources: Sequence[Frame], index: int) -> Shown:
    return show_frame(contents, sources[index], _WIDTH, points=False)


def _plain(shown: Shown, note: str) -> dict[str, Any]:
    centimetres = np.clip(np.rint(shown.points[:, :3].astype(np.float64) * 100), -32767, 32767).astype("<i2")
    return {
        "token": shown.token,
        "scene": shown.scene,
        "note": note,
        "points": _base64(centimetres),
        "values": {name: _base64(value.astype(np.uint8)) for name, value in shown.values.items()},
        "cameras": [_plain_camera(camera) for camera in shown.cameras],
    }


def _plain_camera(camera: ShownCamera) -> dict[str, Any]:
    image, overlay = camera.image, camera.overlay
    plain = {"name": camera.name, "width": image.width, "height": image.height}
    plain["image"] = _data_url(lambda file: image.save(file, "JPEG", quality=82, optimize=True), "jpeg")
    if overlay is not None:
        plain["overlay"] = _data_url(lambda file: overlay.save(file, "PNG", transparency=0, optimize=True), "png")
    fine = np.clip(camera.uv * 16, 0, 65535).astype("<u2")
    return {**plain, "point": _base64(camera.point.astype("<u4")), "uv": _base64(fine)}


def _data_url(save: Callable[[io.BytesIO], None], kind: str) -> str:
    buffer = io.BytesIO()
    save(buffer)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
