"""Frames for the page: what a sample of them says about pairs and labels, which ones are shown, and what is shown of each."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, track
from ..common.colors import NO_LABEL, class_colors
from ..common.images import open_image
from ..pairs.shards import FrameRecord, ShardSet
from ..readers.dataset import dataset_class
from ..readers.frame import Camera, Frame
from .contents import Contents

EDGES = (0, 10, 20, 30, 40, 50, np.inf)
"""Of the bins of distance, metres."""
SAMPLE = 100
"""Most frames that are read for statistics and the ranking."""
UNSEEN = 255
"""A point's weak label and camera where no camera sees it."""
_WIDTH = 1280  # pixels of an image on the page, at most
_UNSEEN_COLOR = (70, 74, 80)
_BACKGROUND = (16, 19, 23)
# Okabe and Ito's colours, told apart by the colour-blind; further cameras begin anew.
_CAMERA_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


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
        source = dataset_class(shards.dataset)
        prompts = [source.prompt_of(name) for name in shards.point_classes]
    except OlivineError:
        return None
    values = [shards.classes.index(p) + 1 if p in shards.classes else 0 for p in prompts]
    return np.array([0, *values], np.uint8) if any(values) else None


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
    store, frames = contents.labels, []
    by_token: dict[str, Frame] = {}
    if store is not None:
        index = contents.attempt("images and overlays", store.index)
        wanted = None if shards is None else {shards.token(i) for i, _ in chosen}
        for frame in index.frames() if index is not None else ():
            if wanted is None or frame.token in wanted:
                by_token[frame.token] = frame
            if len(by_token) == (len(chosen) if wanted is None else len(wanted)):
                break
    if shards is not None:
        for i, note in chosen:
            read = functools.partial(_with_points, contents, shards, i, note, by_token)
            plain = contents.attempt("a frame", read)
            frames += [plain] if plain is not None else []
        classes, point_classes, cameras = shards.classes, shards.point_classes, shards.cameras
    else:
        for (_, note), frame in zip(chosen, by_token.values()):
            images = [_camera(contents, frame, c, None, np.zeros((0, 2)), np.zeros(0)) for c in frame.cameras]
            shown = [image for image in images if image is not None]
            if shown:
                frames.append(
                    {
                        "token": frame.token,
                        "scene": frame.scene,
                        "note": note,
                        "points": "",
                        "values": {},
                        "cameras": shown,
                    }
                )
        classes, point_classes, cameras = store.classes if store else (), (), ()
    spec = {
        "frames": [plain["token"] for plain in frames],
        "first": "weak",
        "background": _BACKGROUND,
        "unseen": _UNSEEN_COLOR,
        "modes": _modes(classes, point_classes, cameras),
    }
    return View(spec, [json.dumps(plain, allow_nan=False) for plain in frames])


def _modes(classes: tuple[str, ...], point_classes: tuple[str, ...], cameras: tuple[str, ...]) -> list[dict[str, Any]]:
    def colored(key: str, name: str, none: str, names: tuple[str, ...]) -> dict[str, Any]:
        colors = class_colors(names).tolist()
        return {"key": key, "name": name, "names": [none, *names], "colors": [NO_LABEL, *colors[1:]]}

    return [
        colored("weak", "weak label", "no label", classes),
        colored("truth", "ground truth", "ignored", point_classes),
        colored("prediction", "prediction", "none", point_classes),
        {"key": "confidence", "name": "confidence"},
        {
            "key": "camera",
            "name": "camera",
            "names": list(cameras),
            "colors": [_CAMERA_COLORS[k % len(_CAMERA_COLORS)] for k in range(len(cameras))],
        },
        {"key": "distance", "name": "distance"},
    ]


def _with_points(
    contents: Contents, shards: ShardSet, index: int, note: str, by_token: dict[str, Frame]
) -> dict[str, Any]:
    record = shards.record(index)
    count = len(record.points)
    values = {name: np.full(count, UNSEEN, np.uint8) for name in ("weak", "camera")}
    # Of a point in two cameras the first one's pair is shown.
    for name, column in (("weak", record.pair_label), ("camera", record.pair_camera)):
        values[name][record.pair_point[::-1]] = column[::-1]
    if record.point_label is not None:
        values["truth"] = record.point_label
    if contents.predictions is not None:
        values["prediction"] = contents.predictions.read(index, count)
        sure = contents.predictions.confidence(index, count)
        if sure is not None:
            values["confidence"] = sure
    frame = by_token.get(record.token)
    cameras = []
    for place, name in enumerate(shards.cameras):
        mine = record.pair_camera == place
        source = next((c for c in frame.cameras if c.name == name), None) if frame is not None else None
        stored = None if record.image is None else record.image[place]
        uv, point = record.pair_uv[mine], record.pair_point[mine]
        size = tuple(int(v) for v in record.image_size[place])
        shown = _camera(contents, frame, source, stored, uv, point, name, size)
        cameras += [shown] if shown is not None else []
    centimetres = np.clip(np.rint(record.points[:, :3].astype(np.float64) * 100), -32767, 32767).astype("<i2")
    return {
        "token": record.token,
        "scene": record.scene,
        "note": note,
        "points": _base64(centimetres),
        "values": {name: _base64(value.astype(np.uint8)) for name, value in values.items()},
        "cameras": cameras,
    }


def _camera(
    contents: Contents,
    frame: Frame | None,
    camera: Camera | None,
    stored: bytes | None,
    uv: NDArray[Any],
    point: NDArray[Any],
    name: str = "",
    size: tuple[int, ...] | None = None,
) -> dict[str, Any] | None:
    """An image with its overlay and points; None where neither the shards nor the data set have the image."""
    from PIL import Image

    name = name or (camera.name if camera is not None else "")
    if stored is not None:
        image = contents.attempt(f"an image of {name}", lambda: _decoded(stored))
    elif frame is not None and camera is not None:
        image = contents.attempt(f"an image of {name}", lambda: _decoded(frame.image_path(camera)))
    else:
        image = None
    if image is None:
        return None
    full = size or image.size  # what uv is in
    width = min(_WIDTH, image.width)
    scale = width / full[0]
    image = image.resize((width, max(1, round(full[1] * scale))))
    shown = {"name": name, "width": image.width, "height": image.height}
    shown["image"] = _data_url(lambda file: image.save(file, "JPEG", quality=82, optimize=True), "jpeg")
    store = contents.labels
    if store is not None and camera is not None and frame is not None:
        label = contents.attempt(f"overlay of {name}", lambda: store.label_map(camera, frame.scene))
        if label is not None:
            overlay = Image.fromarray(label).resize(image.size, Image.Resampling.NEAREST)
            overlay.putpalette(class_colors(store.classes).ravel().tolist())
            shown["overlay"] = _data_url(lambda file: overlay.save(file, "PNG", transparency=0, optimize=True), "png")
    fine = np.clip((uv + 0.5) * scale * 16, 0, 65535).astype("<u2")
    return {**shown, "point": _base64(point.astype("<u4")), "uv": _base64(fine)}


def _decoded(source: Any) -> Any:
    with open_image(source) as opened:
        return opened.convert("RGB")


def _data_url(save: Callable[[io.BytesIO], None], kind: str) -> str:
    buffer = io.BytesIO()
    save(buffer)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
