"""Reading camera images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.images import open_image
from .labeler import ImageTask


def read_image(task: ImageTask) -> NDArray[np.uint8]:
    """An image's pixels, uint8 [H, W, 3] RGB.

    Raises:
        OlivineError: as :func:`~olivine.common.images.open_image`; the size is the data set's.
    """
    camera = task.camera
    with open_image(task.path, size=(camera.width, camera.height), remedy="download the image again") as image:
        return np.asarray(image.convert("RGB"))
