"""Reading camera images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common import OlivineError
from .labeler import ImageTask


def read_image(task: ImageTask) -> NDArray[np.uint8]:
    """An image's pixels, uint8 [H, W, 3] RGB.

    Raises:
        OlivineError: the file is missing or truncated, or has another size than the data set says.
    """
    camera, path = task.camera, task.path
    try:
        with Image.open(path) as image:
            if image.size != (camera.width, camera.height):
                raise OlivineError(
                    f"is {image.size[0]}x{image.size[1]}, the data set says {camera.width}x{camera.height}",
                    where=path,
                    remedy="download the image again",
                )
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise OlivineError("no such image", where=path, remedy="download the data set's camera images again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise OlivineError(f"cannot be decoded ({error})", where=path, remedy="download the image again") from None
