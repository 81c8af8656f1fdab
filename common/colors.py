"""The colour of each class, one table for the label maps' palettes, the pictures and the page.

No two of the 13 prompts are nearer to each other, or to the grey of what has no label, than 20 units of CIE L*a*b*: for
normal sight and without one of the three kinds of cones. A test computes it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NO_LABEL = (130, 130, 130)
"""Of points and pixels without a label, where black would hide them."""

_COLORS = {
    "barrier": (0, 132, 183),
    "bicycle": (123, 255, 254),
    "bus": (233, 244, 0),
    "car": (230, 92, 0),
    "motorcycle": (190, 0, 0),
    "pedestrian": (111, 0, 255),
    "traffic cone": (255, 0, 195),
    "truck": (208, 134, 111),
    "road": (130, 62, 119),
    "sidewalk": (181, 164, 255),
    "terrain": (184, 255, 116),
    "vegetation": (42, 98, 61),
    "building": (255, 198, 180),
}

# A benchmark's class takes the colour of the prompt that it is, so that both read alike.
_PROMPT_OF = {
    "driveable surface": "road",
    "manmade": "building",
    "person": "pedestrian",
    "bicyclist": "bicycle",
    "motorcyclist": "motorcycle",
    "trunk": "vegetation",
    "parking": "road",
    "fence": "barrier",
}


def class_colors(classes: Sequence[str]) -> NDArray[np.uint8]:
    """A colour for each value of a label map or of point labels, uint8 [K + 1, 3]; 0 is black.

    A class that the table does not know gets a hue of its own by its place.
    """
    colors = [(0, 0, 0)]
    for position, name in enumerate(classes):
        plain = name.replace("_", " ").replace("-", " ")
        hue = (position * 0.618034) % 1.0  # the golden ratio keeps neighbours apart
        r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.55, 0.85))
        colors.append(_COLORS.get(_PROMPT_OF.get(plain, plain), (r, g, b)))
    return np.array(colors, np.uint8)
