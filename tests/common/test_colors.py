"""Class colours that are told apart, also by the colour-blind: distances in L*a*b*, as seen with each kind of sight."""

import itertools

import numpy as np
import pytest

from olivine.common.colors import NO_LABEL, class_colors

PROMPTS = (
    "barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck", "road", "sidewalk",
    "terrain", "vegetation", "building",
)  # fmt: skip
# Machado, Oliveira, Fernandes (2009), table 1 at full severity: linear RGB as seen without one kind of cones.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
# IEC 61966-2-1: linear sRGB to XYZ, and its white.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def lab(color, sight):
    value = np.asarray(color) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    t = XYZ @ np.clip(np.asarray(sight) @ linear, 0, 1) / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, other, sight):
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight)))


@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_prompts_differ_by_20_and_those_that_are_alike_in_shape_by_40(sight):
    named = {**dict(zip(PROMPTS, class_colors(PROMPTS)[1:])), "no label": NO_LABEL}
    for one, other in itertools.combinations(named, 2):
        assert distance(named[one], named[other], SIGHTS[sight]) > 20, (one, other)
    for one, other in (("bus", "truck"), ("bicycle", "motorcycle")):
        assert distance(named[one], named[other], SIGHTS[sight]) > 40, (one, other)


def test_a_benchmarks_class_has_its_prompts_colour_and_an_unknown_one_has_a_colour():
    found = class_colors(["driveable_surface", "traffic-cone", "lighthouse", "other lighthouse"])
    np.testing.assert_array_equal(found[1:3], class_colors(["road", "traffic cone"])[1:])
    assert len({tuple(c) for c in found}) == 5
