"""Pictures and segment maps at the size the trainer crops from."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common import read_bytes
from ..common.images import open_image
from ..readers.frame import Camera

# The trainer's random crop (REFERENCE: 0.3 to 1.0 of the area, aspect 14/9 to 17/9, out to 416 x 224).
CROP_WIDTH, CROP_HEIGHT = 416, 224
CROP_AREA = 0.3
CROP_ASPECT = (14 / 9, 17 / 9)
# A factor over this saves less than half of the pixels and is not worth a second resampling.
KEEP_OVER = 0.75


def stored_size(width: int, height: int, scale: float | str = "auto") -> tuple[int, int]:
    """The size at which an image is stored.

    ``auto`` is the smallest size, at least a half of the original, at which the smallest
    crop of the augmentation still has the pixels of its output, so that no crop is
    enlarged. An image that would keep more than three quarters of its width stays as it is.

    Args:
        width, height: of the original.
        scale: ``auto``, or a number in (0, 1].

    Returns:
        (width, height), at least 1 x 1.
    """
    if isinstance(scale, str):
        area = CROP_AREA * width * height
        narrowest = math.sqrt(area * CROP_ASPECT[0])
        lowest = math.sqrt(area / CROP_ASPECT[1])
        scale = max(CROP_WIDTH / narrowest, CROP_HEIGHT / lowest, 0.5)
        if scale > KEEP_OVER:
            return width, height
        return math.ceil(width * scale), math.ceil(height * scale)
    return max(1, round(width * scale)), max(1, round(height * scale))


def scale_pixels(uv: NDArray[np.float32], original: tuple[int, int], stored: tuple[int, int]) -> NDArray[np.float32]:
    """Pixels of the original image as pixels of the stored one: u' = (u + 1/2) W'/W - 1/2."""
    factor = np.array(stored, np.float64) / np.array(original, np.float64)
    return ((uv.astype(np.float64) + 0.5) * factor - 0.5).astype(np.float32)


def scale_intrinsic(
    intrinsic: NDArray[np.float64], original: tuple[int, int], stored: tuple[int, int]
) -> NDArray[np.float64]:
    """The intrinsic matrix [3, 3] of the stored image."""
    sx, sy = stored[0] / original[0], stored[1] / original[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ intrinsic


def encode_image(path: Path, camera: Camera, size: tuple[int, int], quality: int) -> bytes:
    """A camera's image as a JPEG of ``size`` (width, height).

    A JPEG that keeps its size keeps its bytes (after a look that it decodes).

    Raises:
        OlivineError: the image is missing, truncated, or not of the size the calibration is for.
    """
    data, found, box = read_bytes(path, "download it again", what="image"), (camera.width, camera.height), None
    with open_image(data, where=path, size=found) as image:
        # Decoding straight to a half costs a third, and a DCT-scaled half keeps the pixel
        # convention. Above a half libjpeg's next step is the whole image.
        if image.format == "JPEG" and 2 * size[0] <= found[0] and 2 * size[1] <= found[1]:
            drafted = image.draft("RGB", size)
            # Sizes that do not divide are rounded up with padding; the box is the picture itself.
            box = drafted[1] if drafted else None
        image.load()
        if image.format == "JPEG" and size == found and image.mode == "RGB":
            return data
        picture = image if image.mode == "RGB" else image.convert("RGB")
    if picture.size != size or (box and box[2:] != size):
        picture = picture.resize(size, Image.Resampling.BILINEAR, box)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_segments(segment: NDArray[np.uint16], size: tuple[int, int]) -> bytes:
    """A segment map [H, W] as a 16-bit PNG of ``size``, each pixel that of the nearest original pixel."""
    height, width = segment.shape
    column = np.minimum(((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64), width - 1)
    row = np.minimum(((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64), height - 1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(segment[row][:, column], dtype=np.uint16)).save(
        buffer, "PNG", compress_level=6
    )
    return buffer.getvalue()
