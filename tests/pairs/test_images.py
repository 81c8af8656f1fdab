"""Stored pictures: their size, their pixels, and what is wrong with bad ones."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.pairs.images import encode_image, encode_segments, scale_intrinsic, scale_pixels, stored_size
from olivine.readers.frame import Camera


def _smallest_crop(width: int, height: int) -> tuple[float, float]:
    """The narrowest and the lowest crop of the augmentation: 0.3 of the area, aspect 14/9 to 17/9."""
    area = 0.3 * width * height
    return math.sqrt(area * 14 / 9), math.sqrt(area * 9 / 17)


def test_no_crop_of_a_nuscenes_image_is_enlarged_and_one_pixel_less_would_be() -> None:
    width, height = stored_size(1600, 900)
    assert (width, height) == (812, 457)
    narrowest, lowest = _smallest_crop(width, height)
    assert narrowest >= 416 and lowest >= 224
    assert _smallest_crop(width - 1, height - 1)[0] < 416


@pytest.mark.parametrize("size", [(1242, 375), (1241, 376), (1226, 370), (400, 225), (64, 36)])
def test_kitti_and_small_images_stay(size: tuple[int, int]) -> None:
    assert stored_size(*size) == size


def test_very_large_images_keep_at_least_a_half() -> None:
    assert stored_size(3840, 2160) == (1920, 1080)


def test_a_given_scale_is_taken() -> None:
    assert stored_size(1600, 900, 0.25) == (400, 225)


def _camera(width: int, height: int) -> Camera:
    return Camera("CAM", "samples/CAM/x.jpg", width, height, np.eye(3), np.eye(4))


def _blobs(width: int, height: int, centers: list[tuple[float, float]]) -> np.ndarray:
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    light = sum(np.exp(-((u - cu) ** 2 + (v - cv) ** 2) / (2 * 8.0**2)) for cu, cv in centers)
    return np.repeat((255 * light / np.max(light)).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("scale", [0.5, 0.5075, 0.7, 0.25])
def test_a_thing_is_where_its_scaled_pixel_says(tmp_path: Path, scale: float) -> None:
    """The centre of mass of a blob moves as u' = (u + 1/2) W'/W - 1/2, whichever decoder path is taken."""
    centre = (401.0, 203.0)
    Image.fromarray(_blobs(800, 450, [centre])).save(tmp_path / "x.jpg", quality=98)
    size = stored_size(800, 450, scale)
    data = encode_image(tmp_path / "x.jpg", _camera(800, 450), size, 95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == size
        light = np.asarray(image.convert("L"), np.float64)
    light[light < 20] = 0
    v, u = (np.indices(light.shape) * light).sum((1, 2)) / light.sum()
    expected = scale_pixels(np.array([centre], np.float32), (800, 450), size)[0]
    assert np.abs(expected - (u, v)).max() < 0.05


def test_the_stored_intrinsic_projects_to_the_scaled_pixel() -> None:
    intrinsic = np.array([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]])
    ray = np.array([0.3, -0.1, 1])
    full, small = intrinsic @ ray, scale_intrinsic(intrinsic, (1600, 900), (812, 457)) @ ray
    assert np.allclose(scale_pixels(full[None, :2].astype(np.float32), (1600, 900), (812, 457)), small[:2], atol=1e-3)


def test_a_jpeg_that_keeps_its_size_keeps_its_bytes(tmp_path: Path) -> None:
    Image.fromarray(_blobs(64, 36, [(10, 10)])).save(tmp_path / "x.jpg")
    assert encode_image(tmp_path / "x.jpg", _camera(64, 36), (64, 36), 90) == (tmp_path / "x.jpg").read_bytes()


def test_a_png_becomes_a_jpeg(tmp_path: Path) -> None:
    Image.fromarray(_blobs(64, 36, [(10, 10)])).save(tmp_path / "x.png")
    assert encode_image(tmp_path / "x.png", _camera(64, 36), (64, 36), 90)[:2] == b"\xff\xd8"


def test_bad_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with pytest.raises(OlivineError, match=r"x\.jpg: no such image"):
        encode_image(path, _camera(800, 450), (400, 225), 90)
    Image.fromarray(_blobs(800, 450, [(10, 10)])).save(path)
    with pytest.raises(OlivineError, match="800x450"):
        encode_image(path, _camera(1600, 900), (400, 225), 90)
    whole = path.read_bytes()
    for size in ((400, 225), (600, 337), (800, 450)):  # every decoder path
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OlivineError, match=r"x\.jpg.*truncated.*Download"):
            encode_image(path, _camera(800, 450), size, 90)
    path.write_bytes(b"not a picture")
    with pytest.raises(OlivineError, match=r"x\.jpg"):
        encode_image(path, _camera(800, 450), (400, 225), 90)


def test_segment_maps_are_shrunk_to_the_nearest_original_pixel() -> None:
    segment = np.arange(16, dtype=np.uint16).reshape(4, 4) * 1000
    with Image.open(io.BytesIO(encode_segments(segment, (2, 2)))) as image:
        assert np.asarray(image).tolist() == segment[1::2, 1::2].tolist()
    with Image.open(io.BytesIO(encode_segments(segment, (4, 4)))) as image:
        assert np.asarray(image).astype(int).tolist() == segment.tolist()


@pytest.mark.parametrize("scale", [0.5075, 0.5, 0.7, 0.25])
def test_a_smaller_image_averages_the_pixels_that_it_covers(tmp_path: Path, scale: float) -> None:
    """A checkerboard of single pixels becomes grey, whichever decoder path is taken; picked pixels would stay black and white."""
    board = (255 * (np.indices((450, 800)).sum(0) % 2)).astype(np.uint8)
    Image.fromarray(board).convert("RGB").save(tmp_path / "x.jpg", quality=98)
    data = encode_image(tmp_path / "x.jpg", _camera(800, 450), stored_size(800, 450, scale), 95)
    with Image.open(io.BytesIO(data)) as image:
        light = np.asarray(image.convert("L"), np.float64)[2:-2, 2:-2]
    assert abs(light.mean() - 127.5) < 2
    assert np.abs(light - 127.5).max() < 32
