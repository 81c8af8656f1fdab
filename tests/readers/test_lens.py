"""Lenses against OpenCV's own projection, its inverse, and the field beyond which a polynomial turns back."""

import pickle

import cv2
import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.readers.frame import Camera
from olivine.readers.lens import field_limit, rays_of
from olivine.readers.project import project_points

INTRINSIC = np.array([[640.0, 0, 655.3], [0, 642.5, 358.1], [0, 0, 1]])
LENSES = {
    "four": ("brown-conrady", (-0.31, 0.12, 0.0011, -0.0007)),
    "five": ("brown-conrady", (-0.37, 0.2, -0.0009, 0.0013, -0.06)),
    "rational": ("brown-conrady", (0.4, -0.2, 0.0006, -0.0003, 0.02, 0.75, -0.1, 0.03)),
    "thin prism": ("brown-conrady", (-0.3, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.002, -0.001, 0.0015, 0.0005)),
    "fisheye": ("fisheye", (-0.013, 0.004, -0.002, 0.0003)),
    "wide fisheye": ("fisheye", (0.08, -0.03, 0.01, -0.002)),
}


def turned():
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.array([1.2, -1.21, 1.19]))[0]
    matrix[:3, 3] = (0.1, -0.3, -0.2)
    return matrix


def camera(model, distortion):
    return Camera("front", "front/0.jpg", 1280, 720, INTRINSIC, turned(), model, distortion)


def opencv(points, view):
    """OpenCV's pixels of points in the LiDAR frame, float64 [N, 2]."""
    rotation = cv2.Rodrigues(view.lidar_to_camera[:3, :3])[0]
    translation = view.lidar_to_camera[:3, 3].copy()
    coefficients = np.array(view.distortion)
    given = np.ascontiguousarray(points[:, None, :3], np.float64)
    if view.model == "fisheye":
        return cv2.fisheye.projectPoints(given, rotation, translation, view.intrinsic, coefficients)[0][:, 0]
    return cv2.projectPoints(given, rotation, translation, view.intrinsic, coefficients)[0][:, 0]


@pytest.mark.parametrize("lens", LENSES)
def test_pixels_are_opencvs(lens):
    view = camera(*LENSES[lens])
    points = np.random.default_rng(0).normal(0, 30, (50_000, 4)).astype(np.float32)
    point, _, uv = project_points(points, [view])
    theirs = opencv(points.astype(np.float64), view)
    assert len(point) > 2000
    assert np.abs(theirs[point] - uv).max() < 1e-3
    # And none is missing that lies in the image, but for those that the polynomial folds back.
    seen = points[:, :3].astype(np.float64) @ view.lidar_to_camera[:3, :3].T + view.lidar_to_camera[:3, 3]
    depth = np.where(seen[:, 2] > 1, seen[:, 2], np.nan)
    field = (seen[:, 0] / depth) ** 2 + (seen[:, 1] / depth) ** 2 <= field_limit(view.model, view.distortion)
    inside = (theirs > 1e-3).all(1) & (theirs < np.array([1279, 719]) - 1e-3).all(1) & field
    assert set(np.flatnonzero(inside)) <= set(point.tolist())


@pytest.mark.parametrize("lens", LENSES)
def test_the_inverse_leads_every_pixel_back(lens):
    view = camera(*LENSES[lens])
    points = np.random.default_rng(1).normal(0, 30, (20_000, 4)).astype(np.float32)
    point, _, uv = project_points(points, [view])
    rays = rays_of(uv, view.intrinsic, view.model, view.distortion)
    seen = points[point, :3].astype(np.float64) @ view.lidar_to_camera[:3, :3].T + view.lidar_to_camera[:3, 3]
    # Pixels are stored in float32; where the polynomial is about to turn, a pixel says little about the ray.
    ray = seen[:, :2] / seen[:, 2:]
    steep = (ray**2).sum(1) < 0.6 * field_limit(view.model, view.distortion)
    assert steep.sum() > 1000 and np.abs(rays - ray)[steep].max() < 1e-5 and not np.isnan(rays).any()
    again = np.c_[rays, np.ones(len(rays))] * seen[:, 2:]
    upright = Camera("front", "front/0.jpg", 1280, 720, INTRINSIC, np.eye(4), view.model, view.distortion)
    assert np.abs(opencv(again, upright) - uv).max() < 1e-3


def test_points_beyond_the_field_are_not_folded_into_the_image():
    view = camera("brown-conrady", (-0.35, 0.0, 0.0, 0.0))
    limit = field_limit(view.model, view.distortion)
    assert limit == pytest.approx(1 / (3 * 0.35), rel=1e-3)  # d/dr r (1 + k r²) = 0
    straight = np.linalg.inv(view.lidar_to_camera)
    # Rays of 70 degrees, which the polynomial puts near the middle of the image.
    angle = np.linspace(0, 2 * np.pi, 60)
    ray = np.c_[np.tan(np.radians(60)) * np.c_[np.cos(angle), np.sin(angle)], np.ones(60)] * 10
    points = (ray @ straight[:3, :3].T + straight[:3, 3]).astype(np.float32)
    folded = opencv(points.astype(np.float64), view)
    assert ((folded > 0) & (folded < (1279, 719))).all(1).any()
    assert len(project_points(points, [view])[0]) == 0


def test_cameras_with_and_without_a_lens_stand_side_by_side():
    points = np.random.default_rng(2).normal(0, 30, (5000, 4)).astype(np.float32)
    views = [camera("pinhole", ()), camera(*LENSES["five"]), camera("pinhole", ()), camera(*LENSES["fisheye"])]
    point, which, uv = project_points(points, views)
    alone = [project_points(points, [view]) for view in views]
    assert np.array_equal(point, np.concatenate([found[0] for found in alone]))
    assert np.array_equal(uv, np.concatenate([found[2] for found in alone]))
    assert np.array_equal(which, np.repeat(np.arange(4), [len(found[0]) for found in alone]))


def test_a_lens_goes_with_its_camera():
    view = camera(*LENSES["five"])
    copy = pickle.loads(pickle.dumps(view))
    assert (copy.model, copy.distortion) == (view.model, view.distortion)


@pytest.mark.parametrize(
    ("model", "distortion", "says"),
    [
        ("pinhole", [0.1], "1 coefficients, pinhole has 0"),
        ("brown-conrady", [0.1] * 3, "3 coefficients, brown-conrady has 4 or 5 or 8 or 12"),
        ("fisheye", [0.1, 0.1, 0.1, float("nan")], "fisheye has 4"),
        ("omnidirectional", [], "use one of pinhole, brown-conrady, fisheye"),
    ],
)
def test_a_lens_that_is_none_is_one_line(model, distortion, says):
    from olivine.readers.frame import check_lens

    with pytest.raises(OlivineError, match=r"rig\.yaml: ") as error:
        check_lens(model, distortion, "rig.yaml")
    assert says in str(error.value).replace("Use", "use")
