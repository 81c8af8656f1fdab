"""One frame to look at, for the page and the viewer: its points with what is known of each, its images with label maps."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..common import PathLike
from ..common.colors import NO_LABEL, class_colors
from ..common.images import open_image
from ..labelgen.store import LabelStore
from ..pairs.shards import ShardSet
from ..readers.frame import Camera, Frame
from .contents import Contents

if TYPE_CHECKING:
    from PIL import Image

UNSEEN = 255
"""A point's weak label and camera where no camera sees it."""
UNSEEN_COLOR = (70, 74, 80)
BACKGROUND = (16, 19, 23)
# Okabe and Ito's colours, told apart by the colour-blind; further cameras begin anew.
_CAMERA_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


@dataclass(frozen=True, eq=False)
class ShownCamera:
    """A camera's image, and the points that it sees.

    Attributes:
        image: RGB, scaled to the width that was asked for at most.
        overlay: the label map in the classes' colours, of the image's size; None where there is none.
        point: int [M], positions in the cloud.
        uv: float [M, 2], where they are in ``image``: in pixels, a pixel's edges at whole numbers.
        intrinsic: float64 [3, 3], of the full image of ``size`` (width, height).
        lidar_to_camera: float64 [4, 4].
    """

    name: str
    image: Image.Image
    overlay: Image.Image | None
    point: NDArray[np.integer]
    uv: NDArray[np.floating]
    size: tuple[int, int]
    intrinsic: NDArray[np.float64]
    lidar_to_camera: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame.

    Attributes:
        points: float32 [N, 4]: x, y, z in metres, raw intensity.
        values: uint8 [N] by the ``key`` of :func:`modes`: ``weak`` and ``camera`` (both :data:`UNSEEN` where no camera sees
            the point, the first camera's where several do), ``truth``, ``prediction``, ``confidence``; those that there are.
    """

    token: str
    scene: str
    points: NDArray[np.float32]
    values: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    cameras: list[ShownCamera] = field(default_factory=list)


class StoreFrames(Sequence[Frame]):
    """The frames that a folder of label maps is of; a scene's are read when one of them is asked for.

    Args:
        root: the data set's folder, if it has moved.
        split: of the frames; all without one.

    Raises:
        OlivineError: the index of the frames is missing or damaged.
    """

    def __init__(self, store: LabelStore, root: PathLike | None = None, split: str | None = None) -> None:
        index = store.index(root)
        self.point_classes = index.point_classes
        self._scenes = index.select(split)
        self._stops = np.cumsum([scene.frame_count for scene in self._scenes]).tolist()
        self._by_name = {scene.name: number for number, scene in enumerate(self._scenes)}
        self._read = functools.lru_cache(maxsize=4)(lambda number: self._scenes[number].frames())

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | Sequence[Frame]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        number = bisect.bisect_right(self._stops, index)
        frame: Frame = self._read(number)[index - (self._stops[number - 1] if number else 0)]
        return frame

    def find(self, scene: str, token: str) -> Frame | None:
        """The frame of a token; None where the scene has none."""
        number = self._by_name.get(scene)
        return None if number is None else next((f for f in self._read(number) if f.token == token), None)


def modes(classes: tuple[str, ...], point_classes: tuple[str, ...], cameras: tuple[str, ...]) -> list[dict[str, Any]]:
    """What can colour the points: ``key``, ``name`` and, unless it is a share of 255, ``names`` and ``colors`` by value."""

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


def show_record(contents: Contents, shards: ShardSet, index: int, sources: StoreFrames | None, width: int) -> Shown:
    """A frame of the shards, with the label maps of ``sources`` where it is one of theirs.

    Args:
        contents: its label maps and predictions are shown; an image or label map that cannot be read is noted there.
        width: pixels of an image, at most.

    Raises:
        OlivineError: the shard is gone or damaged, or the predictions are.
    """
    record = shards.record(index)
    count = len(record.points)
    values = _of_pairs(count, record.pair_point, record.pair_label, record.pair_camera)
    if record.point_label is not None:
        values["truth"] = record.point_label
    if contents.predictions is not None:
        values["prediction"] = contents.predictions.read(index, count)
        sure = contents.predictions.confidence(index, count)
        if sure is not None:
            values["confidence"] = sure
    frame = None
    if sources is not None:
        frame = contents.attempt("images and overlays", lambda: sources.find(record.scene, record.token))
    cameras = []
    for place, name in enumerate(shards.cameras):
        mine = record.pair_camera == place
        source = next((c for c in frame.cameras if c.name == name), None) if frame is not None else None
        stored = None if record.image is None else record.image[place]
        image = _image(contents, name, stored, frame, source)
        if image is None:
            continue
        w, h = (int(v) for v in record.image_size[place])
        image, uv = _fit(image, (w, h), record.pair_uv[mine], width)
        overlay = _overlay(contents, _label_map(contents, frame, source), image)
        calibration = record.intrinsic[place], record.lidar_to_camera[place]
        cameras.append(ShownCamera(name, image, overlay, record.pair_point[mine], uv, (w, h), *calibration))
    return Shown(record.token, record.scene, record.points, values, cameras)


def show_frame(contents: Contents, frame: Frame, width: int, points: bool = True) -> Shown:
    """A frame of a data set, with its label maps where there are some.

    Args:
        contents: its label maps are shown; an image or label map that cannot be read is noted there.
        width: pixels of an image, at most.
        points: whether the cloud is read; without, only images are shown.

    Raises:
        OlivineError: the cloud or its ground truth cannot be read.
    """
    from ..readers.project import look_up, project_points

    cloud = frame.points() if points else np.zeros((0, 4), np.float32)
    truth = frame.point_labels() if points else None
    pair_point, pair_camera, pair_uv = project_points(cloud, frame.cameras)
    label = np.zeros(len(pair_point), np.uint8)
    cameras = []
    for place, camera in enumerate(frame.cameras):
        mine = pair_camera == place
        label_map = _label_map(contents, frame, camera)
        if label_map is not None:
            label[mine] = look_up(label_map, pair_uv[mine])
        image = _image(contents, camera.name, None, frame, camera)
        if image is None:
            continue
        size = (camera.width, camera.height)
        image, uv = _fit(image, size, pair_uv[mine], width)
        overlay = _overlay(contents, label_map, image)
        calibration = camera.intrinsic, camera.lidar_to_camera
        cameras.append(ShownCamera(camera.name, image, overlay, pair_point[mine], uv, size, *calibration))
    values = _of_pairs(len(cloud), pair_point, label, pair_camera)
    if contents.labels is None:
        del values["weak"]
    if truth is not None:
        values["truth"] = truth
    return Shown(frame.token, frame.scene, cloud, values, cameras)


def _of_pairs(
    count: int, point: NDArray[np.int32], label: NDArray[np.uint8], camera: NDArray[np.uint8]
) -> dict[str, NDArray[np.uint8]]:
    values = {name: np.full(count, UNSEEN, np.uint8) for name in ("weak", "camera")}
    # Of a point in two cameras the first one's pair is shown.
    for name, column in (("weak", label), ("camera", camera)):
        values[name][point[::-1]] = column[::-1]
    return values


def _image(
    contents: Contents, name: str, stored: bytes | None, frame: Frame | None, camera: Camera | None
) -> Image.Image | None:
    """The shards' image, else the data set's; None where neither is there."""
    if stored is not None:
        return contents.attempt(f"an image of {name}", lambda: _decoded(stored))
    if frame is not None and camera is not None:
        return contents.attempt(f"an image of {name}", lambda: _decoded(frame.image_path(camera)))
    return None


def _decoded(source: Any) -> Image.Image:
    with open_image(source) as opened:
        return opened.convert("RGB")


def _fit(
    image: Image.Image, size: tuple[int, int], uv: NDArray[np.float32], width: int
) -> tuple[Image.Image, NDArray[np.floating]]:
    """The image of at most this width, and where positions of the image of ``size`` are in it."""
    width = min(width, image.width)
    scale = width / size[0]
    return image.resize((width, max(1, round(size[1] * scale)))), (uv + 0.5) * scale


def _label_map(contents: Contents, frame: Frame | None, camera: Camera | None) -> NDArray[np.uint8] | None:
    store = contents.labels
    if store is None or frame is None or camera is None:
        return None
    return contents.attempt(f"overlay of {camera.name}", lambda: store.label_map(camera, frame.scene))


def _overlay(contents: Contents, label: NDArray[np.uint8] | None, image: Image.Image) -> Image.Image | None:
    from PIL import Image

    if label is None or contents.labels is None:
        return None
    overlay = Image.fromarray(label).resize(image.size, Image.Resampling.NEAREST)
    overlay.putpalette(class_colors(contents.labels.classes).ravel().tolist())
    return overlay
