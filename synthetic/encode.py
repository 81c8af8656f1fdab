"""Arrays to the bytes of image files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PALETTE = np.random.default_rng(7).integers(40, 256, (256, 3)).astype(np.uint8)
_PALETTE[0] = 0


def png(array: NDArray[Any]) -> bytes:
    """A mask: uint8 [H, W] as a palette PNG, uint16 [H, W] as a 16-bit grey one; uint8 [H, W, 3] as a picture."""
    if array.dtype == np.uint8 and array.ndim == 2:
        image = Image.fromarray(array, "P")
        image.putpalette(_PALETTE.tobytes())
    else:
        image = Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3 if array.ndim == 2 else 1)
    return buffer.getvalue()


def jpeg(image: NDArray[np.uint8], quality: int = 88) -> bytes:
    """A picture, uint8 [H, W, 3], as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def put(root: Path, name: str, data: bytes) -> None:
    """Write a file below ``root``."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
