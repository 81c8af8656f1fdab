"""Label maps on disk.

| path | what |
|---|---|
| `manifest.json` | prompts, labeler and its settings, SHA-256 of the weights, package versions, data set |
| `frames/` | the index of the data set's frames |
| `<camera key>.png` | the label map: palette PNG, uint8, the image's size, 0 = no label, then the classes |
| `segments/<camera key>.png` | optional: 16-bit PNG, each pixel's segment, 0 = none |
| `units/<scene>.json` | a finished unit: its images, their SHA-256, detections, pixel counts |
| `units/.<scene>/` | an unfinished unit's finished batches |
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common import OlivineError, PathLike, digest, read_json
from ..readers.frame import Camera, FrameIndex, open_index

SCHEMA = "1.0"
MANIFEST = "manifest.json"
_AGAIN = "run olivine labelgen again; it makes what is missing"

# Close to the colours people know from nuScenes-lidarseg and Cityscapes pictures.
_COLORS = {
    "barrier": (112, 128, 144),
    "bicycle": (220, 20, 60),
    "bus": (255, 127, 80),
    "car": (255, 158, 0),
    "motorcycle": (255, 61, 99),
    "pedestrian": (0, 0, 230),
    "traffic cone": (47, 79, 79),
    "truck": (255, 99, 71),
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "terrain": (152, 251, 152),
    "vegetation": (0, 175, 0),
    "building": (222, 184, 135),
}


def class_colors(classes: tuple[str, ...]) -> NDArray[np.uint8]:
    """A colour for each value of a label map, uint8 [K + 1, 3]; 0 is black."""
    colors = [(0, 0, 0)]
    for position, name in enumerate(classes):
        hue = (position * 0.618034) % 1.0  # the golden ratio keeps neighbours apart
        spread = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.95))
        colors.append(_COLORS.get(name, (spread[0], spread[1], spread[2])))
    return np.array(colors, np.uint8)


def encode_label_map(label: NDArray[np.uint8], classes: tuple[str, ...]) -> bytes:
    """The bytes of a label map's palette PNG.

    Args:
        label: uint8 [H, W], values 0..K.
        classes: names of the values 1..K, for the palette.
    """
    image = Image.fromarray(label)
    image.putpalette(class_colors(classes).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def encode_segment_map(segment: NDArray[np.uint16]) -> bytes:
    """The bytes of a segment map's 16-bit PNG; ``segment`` is uint16 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(segment).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def read_values(path: Path, remedy: str) -> NDArray[Any]:
    """A single-channel image's values, uint8 or uint16 [H, W].

    Raises:
        OlivineError: the file is missing, truncated, or has colours instead of values.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1", "I;16", "I"):
                raise OlivineError(
                    f"has {image.mode} colours, not one value per pixel",
                    where=path,
                    remedy="save it as a palette or grey PNG",
                )
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except FileNotFoundError:
        raise OlivineError("no such label map", where=path, remedy=remedy) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise OlivineError(f"cannot be read ({error})", where=path, remedy=remedy) from None
    if values.dtype == np.int32:  # Pillow before 11 opens 16-bit PNG as 32-bit
        values = values.astype(np.uint16)
    return values


def check_size(values: NDArray[Any], camera: Camera, path: Path, remedy: str) -> None:
    """Raise unless ``values`` [H, W] has the size of the camera's image."""
    height, width = values.shape[:2]
    if (height, width) != (camera.height, camera.width):
        raise OlivineError(
            f"is {width}x{height}, the image of {camera.name} is {camera.width}x{camera.height}",
            where=path,
            remedy=remedy,
        )


@dataclass(frozen=True)
class LabelStore:
    """Label maps, for reading.

    Attributes:
        root: the label folder.
        manifest: as written.
        classes: names of the values 1..K.
        digest: SHA-256 of the manifest's content.
    """

    root: Path
    manifest: dict[str, Any] = field(repr=False)
    classes: tuple[str, ...]
    digest: str

    def label_path(self, camera: Camera) -> Path:
        """The file of an image's label map."""
        return self.root / f"{camera.key}.png"

    def segment_path(self, camera: Camera) -> Path:
        """The file of an image's segment map."""
        return self.root / "segments" / f"{camera.key}.png"

    def label_map(self, camera: Camera) -> NDArray[np.uint8]:
        """An image's label map, uint8 [H, W]: 0 = no label, i = ``classes[i - 1]``.

        Raises:
            OlivineError: it is missing, truncated, of another size than the image, or holds a value beyond the classes.
        """
        path = self.label_path(camera)
        values = read_values(path, _AGAIN)
        check_size(values, camera, path, "delete it and run olivine labelgen again")
        if values.dtype != np.uint8 or int(values.max()) > len(self.classes):
            raise OlivineError(
                f"holds the value {int(values.max())}, the manifest has {len(self.classes)} classes",
                where=path,
                remedy="delete it and run olivine labelgen again",
            )
        return values

    def segment_map(self, camera: Camera) -> NDArray[np.uint16] | None:
        """Each pixel's segment, uint16 [H, W], 0 = none; None where the store has no segments.

        Raises:
            OlivineError: as :meth:`label_map`.
        """
        if self.manifest["settings"].get("segments", "none") == "none":
            return None
        path = self.segment_path(camera)
        values = read_values(path, _AGAIN)
        check_size(values, camera, path, "delete it and run olivine labelgen again")
        return values.astype(np.uint16)

    def index(self, root: PathLike | None = None) -> FrameIndex:
        """The index of the data set's frames.

        Args:
            root: where the data set is now, if it has moved since.
        """
        return open_index(self.root / "frames", root)

    def unit(self, scene: str) -> dict[str, Any] | None:
        """The record of a finished unit, None where it is not finished."""
        path = self.root / "units" / f"{scene}.json"
        return read_json(path, "delete it and run olivine labelgen again") if path.exists() else None


def open_store(path: PathLike) -> LabelStore:
    """Open a label folder.

    Raises:
        OlivineError: there is no manifest, or it has a schema this version does not read.
    """
    root = Path(path)
    manifest = read_json(root / MANIFEST, remedy="run olivine labelgen first, or name the label folder with --labels")
    schema = str(manifest.get("schema", "")) if isinstance(manifest, dict) else ""
    if schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError(
            f"label store of schema {schema or 'unknown'}, this olivine reads {SCHEMA}",
            where=root / MANIFEST,
            remedy="make the labels again with olivine labelgen --overwrite",
        )
    return LabelStore(root, manifest, tuple(manifest["classes"]), digest(manifest))
