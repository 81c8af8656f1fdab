"""Open an image that anybody may have made: only JPEG and PNG, its size known before it is decoded, errors in one line."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import OlivineError, PathLike
from .reading import read_bytes

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 20_000 * 20_000
"""An image of more pixels is not decoded: 1.2 GB as RGB, 1.6 GB while Pillow works on it."""
COLOURS = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
"""Modes that mean a picture in 8 bits a channel."""
VALUES = ("P", "L", "1", "I;16", "I")
"""Modes with one value for each pixel."""
_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
# What Pillow's decoders raise on damaged bytes; DecompressionBombError is none of these, and is never reached.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@contextlib.contextmanager
def open_image(
    source: PathLike | bytes,
    *,
    where: object = None,
    formats: tuple[str, ...] = ("JPEG", "PNG"),
    size: tuple[int, int] | None = None,
    modes: tuple[str, ...] = COLOURS,
    remedy: str = "download it again",
) -> Iterator[Image.Image]:
    """A Pillow image for the length of a block, in which it is decoded.

    The format is told by the first bytes, never by the name, and Pillow's other formats are out of reach: it would start
    Ghostscript for an EPS file that is called ``.jpg``. Nothing is decoded before the size is known to be right.

    Args:
        source: a file, or its bytes.
        where: for messages; the file itself without it.
        formats: of ``JPEG`` and ``PNG``, those that are read.
        size: (width, height) that the image must have; without it, it may have up to :data:`MAX_PIXELS`.
        modes: Pillow's modes that are accepted: :data:`COLOURS`, or :data:`VALUES` for a map of values.
        remedy: what to do about a file that is missing or damaged.

    Raises:
        OlivineError: the file is missing, unreadable, of another format, size or mode, with an EXIF orientation other than 1,
            animated, damaged or truncated.
            Errors of :data:`OlivineError`'s type that are raised in the block pass as they are.
    """
    from PIL import JpegImagePlugin, PngImagePlugin

    where = where if where is not None or isinstance(source, bytes) else source
    data = source if isinstance(source, bytes) else read_bytes(source, remedy, what="image")
    if (found := next((name for name in formats if data.startswith(_MAGIC[name])), None)) is None:
        what = f"is no {' or '.join(formats)} image" if data else "is empty"
        raise OlivineError(what, where=where, remedy=remedy)
    plugin = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile}[found]
    try:
        # Not Image.open: its limit of pixels is the process's, and over half of it a warning goes to the terminal.
        with plugin(io.BytesIO(data)) as image:
            width, height = image.size
            if size is not None and (width, height) != tuple(size):
                raise OlivineError(
                    f"is {width}x{height}, not {size[0]}x{size[1]}",
                    where=where,
                    remedy="check that it belongs to this data set",
                )
            if width * height > MAX_PIXELS:
                raise OlivineError(
                    f"has {width}x{height} pixels; at most {MAX_PIXELS:,} are read",
                    where=where,
                    remedy="make it smaller",
                )
            if modes == COLOURS and found == "PNG" and data[24] == 16:  # IHDR: Pillow would give the upper 8 bits alone
                raise OlivineError(
                    "has 16 bits a channel",
                    where=where,
                    remedy="save it with 8 bits a channel, its values scaled to 0 … 255",
                )
            if image.mode not in modes:
                what = "one value per pixel" if modes == VALUES else "8 bits a channel"
                raise OlivineError(f"has {image.mode} colours, not {what}", where=where, remedy=f"save it with {what}")
            if found == "PNG" and getattr(image, "is_animated", False):
                raise OlivineError("is an animation", where=where, remedy="save its first picture alone")
            if (orientation := _orientation(image)) > 1:
                raise OlivineError(
                    f"has the EXIF orientation {orientation}: viewers and OpenCV show other pixels than are stored",
                    where=where,
                    remedy="save the pixels upright and drop the flag (ImageMagick: mogrify -auto-orient), and calibrate on those",
                )
            yield image
    except OlivineError:
        raise
    except MemoryError:
        raise OlivineError(
            "does not fit into memory", where=where, remedy="free some memory, or make it smaller"
        ) from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OlivineError(f"the image cannot be read ({reason})", where=where, remedy=remedy) from None


def _orientation(image: Image.Image) -> int:
    """An image's orientation as EXIF has it, 1 (as stored) to 8; 1 too where it has none or one that cannot be read."""
    from PIL import Image

    if not (data := image.info.get("exif")):
        return 1
    exif, value = Image.Exif(), None
    with contextlib.suppress(*_DAMAGE):
        exif.load(data)
        value = exif.get(0x0112)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def image_size(path: PathLike, remedy: str = "download it again") -> tuple[int, int]:
    """(width, height) of an image file; its pixels are not decoded.

    Raises:
        OlivineError: as :func:`open_image`.
    """
    with open_image(path, remedy=remedy) as image:
        width, height = image.size
        return width, height
