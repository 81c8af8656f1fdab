"""One image with its label map, to try prompts and settings on before a data set is labelled."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, write_bytes
from ..common.colors import class_colors
from ..common.images import image_size, open_image
from ..readers.frame import Camera, Frame
from .labeler import ImageTask, Labelled, choose_labeler, make_labeler
from .prompts import load_vocabulary
from .settings import LabelSettings
from .views import seen_as

NEED_FRAMES = ("oracle", "import", "regions")
"""Labelers that know an image by its place in the data set and not by its pixels."""


@dataclass(frozen=True)
class PreviewSummary:
    """What one image's labels are.

    Attributes:
        out: the drawing: the image, its label map laid over it, the detections' boxes.
        labeler: that made them.
        detections: how many objects or regions.
        pixels: share of the pixels by class.
        model_seconds: of the labeler on this image, its weights loaded.
        notes: what was out of the ordinary.
    """

    out: Path
    labeler: str
    detections: int
    pixels: dict[str, float]
    model_seconds: float
    notes: tuple[str, ...] = ()


def find_image(path: Path, frames: Iterable[Frame] | None) -> ImageTask:
    """The image of a data set's frame, or, without ``frames``, a file that is of no data set.

    Raises:
        OlivineError: there is no such image.
    """
    if frames is None:
        if not path.is_file():
            raise OlivineError("no such image", where=path, remedy="check the path, from the folder you are in")
        width, height = image_size(path)
        camera = Camera("image", path.name, width, height, np.eye(3), np.eye(4))
        root = path.absolute().parent
        return ImageTask(Frame("none", "", root, path.stem, "", "train", 0, "", 4, np.eye(4), (camera,)), 0)
    for frame in frames:
        for position, camera in enumerate(frame.cameras):
            if path in (Path(camera.image), Path(camera.key)):
                return ImageTask(frame, position)
            if path.name == Path(camera.image).name and path.resolve() == frame.image_path(camera).resolve():
                return ImageTask(frame, position)
    raise OlivineError(
        "is no image of the data set", where=path, remedy="name one by its file, or by its path inside the data set"
    )


def preview_labels(task: ImageTask, root: Path, settings: LabelSettings, out: Path) -> tuple[PreviewSummary, Labelled]:
    """Label one image and draw it; the labels themselves are returned and not stored.

    Args:
        root: the data set's folder.
        out: the PNG to write.

    Raises:
        OlivineError: as :func:`~olivine.labelgen.run.generate_labels`, or the image could not be labelled.
    """
    vocabulary = load_vocabulary(settings.prompts)
    name, _ = choose_labeler(settings.labeler, root)
    labeler = seen_as(make_labeler(name, settings, vocabulary, root), settings)
    labeler.prepare()
    with open_image(task.path, size=(task.camera.width, task.camera.height)) as opened:
        image = np.asarray(opened.convert("RGB"))
    start = time.monotonic()
    result = labeler.label([task], [image] if labeler.needs_image else [])
    seconds = time.monotonic() - start
    found = result.images[0]
    if isinstance(found, OlivineError):
        raise found
    write_bytes(out, _drawing(image, found, vocabulary.classes))
    counts = np.bincount(found.label.ravel(), minlength=len(vocabulary.classes) + 1)
    names = ("no label", *vocabulary.classes)
    shares = {name: float(n) / found.label.size for name, n in zip(names, counts) if n}
    return PreviewSummary(out, name, len(found.detections), shares, seconds, result.notes), found


def _drawing(image: NDArray[np.uint8], found: Labelled, classes: tuple[str, ...]) -> bytes:
    """The image, and under it the same with label map, boxes and their scores."""
    from PIL import Image, ImageDraw

    colors = class_colors(classes)
    plain = Image.fromarray(image)
    overlay = plain.copy()
    mask = Image.fromarray(np.where(found.label > 0, 150, 0).astype(np.uint8))
    overlay.paste(Image.fromarray(colors[found.label]), (0, 0), mask)
    draw = ImageDraw.Draw(overlay)
    for one in found.detections:
        r, g, b = (int(c) for c in colors[one.value])
        draw.rectangle(one.box, outline=(r, g, b), width=2)
        name = classes[one.value - 1] if one.value else "no label"
        draw.text((one.box[0] + 3, one.box[1] + 2), f"{name} {one.score:.2f}", fill=(255, 255, 255))
    both = Image.new("RGB", (plain.width, 2 * plain.height))
    both.paste(plain, (0, 0))
    both.paste(overlay, (0, plain.height))
    buffer = io.BytesIO()
    both.save(buffer, "PNG")
    return buffer.getvalue()
