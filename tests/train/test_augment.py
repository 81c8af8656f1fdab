"""Promises of the augmentation: the pairs stay right through all of it."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from olivine.common import OlivineError
from olivine.train import augment
from olivine.train.augment import (
    NO_AUGMENTATION,
    AugmentSettings,
    augment_images,
    choose_crop,
    generator_of,
    rotate_and_flip,
    without_augmentation,
)
from olivine.train.augment_kernels import move_pairs
from olivine.train.decode import decode_crop

SIZE = (56, 104)


def make_sample(record, frame, size, settings, generator, **options):  # type: ignore[no-untyped-def]
    """A sample with every column that the losses read."""
    columns = ("image", "pair_label", "pair_density", "class_count")
    return augment.make_sample(record, frame, size, settings, generator, columns, **options)


@dataclass
class Record:
    """What the trainer reads of a frame."""

    token: str
    points: NDArray[np.float32]
    point_label: NDArray[np.uint8] | None
    pair_point: NDArray[np.int32]
    pair_camera: NDArray[np.uint8]
    pair_label: NDArray[np.uint8]
    pair_uv: NDArray[np.float32]
    pair_density: NDArray[np.float32]
    image: list[bytes]
    image_size: NDArray[np.int64]
    class_count: NDArray[np.int64]
    segment: list[bytes] | None = None


def gradient_image(width: int, height: int) -> bytes:
    """Red is the column, green the row: a pixel says where it was."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rgb = np.stack([u * 255 / (width - 1), v * 255 / (height - 1), np.full(u.shape, 128.0)], -1)
    buffer = io.BytesIO()
    Image.fromarray(rgb.round().astype(np.uint8)).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def frame(pairs: int = 3000, cameras: int = 2, width: int = 400, height: int = 225) -> Record:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 20, (2000, 4)).astype(np.float32)
    points[:, 3] = np.arange(2000)  # the intensity names the point
    pair_point = rng.integers(0, 2000, pairs).astype(np.int32)
    return Record(
        "frame-0",
        points,
        (np.arange(2000) % 17).astype(np.uint8),
        pair_point,
        np.sort(rng.integers(0, cameras, pairs)).astype(np.uint8),
        rng.integers(0, 14, pairs).astype(np.uint8),
        (rng.random((pairs, 2)) * (width - 1, height - 1)).astype(np.float32),
        (pair_point + 1).astype(np.float32),  # the density names the point too
        [gradient_image(width, height)] * cameras,
        np.array([[width, height]] * cameras),
        np.full(14, 100),
    )


def test_pairs_point_at_the_same_thing_after_every_augmentation() -> None:
    record = frame()
    settings = AugmentSettings(crop_min_pairs=500, cuboid_min_pairs=500)
    for epoch in range(6):
        sample = make_sample(record, 0, SIZE, settings, generator_of(0, epoch, 0))  # type: ignore[arg-type]
        # The pair's point is the same one: its intensity and the stored density both name it.
        np.testing.assert_array_equal(sample.points[sample.pair_point, 3] + 1, sample.pair_density)
        # The pair's pixel shows what it showed: the image's colour at the new place is the old place.
        by_density = {
            (d, c, s): uv
            for d, c, s, uv in zip(record.pair_density, record.pair_camera, record.pair_label, record.pair_uv.tolist())
        }
        sure = [
            i
            for i in range(len(sample.pair_point))
            if np.sum(
                (record.pair_density == sample.pair_density[i])
                & (record.pair_camera == sample.pair_camera[i])
                & (record.pair_label == sample.pair_label[i])
            )
            == 1
        ]
        assert len(sure) > 500
        uv = sample.pair_uv[sure]
        pixel = np.rint(uv).astype(int)
        inside = ((uv > 1) & (uv < (SIZE[1] - 2, SIZE[0] - 2))).all(1)
        colour = sample.image[sample.pair_camera[sure], pixel[:, 1], pixel[:, 0]].astype(float)
        before = np.array(
            [by_density[(sample.pair_density[i], sample.pair_camera[i], sample.pair_label[i])] for i in sure]
        )
        error = np.abs(colour[:, :2] / 255 * (399, 224) - before)[inside]
        assert np.percentile(error, 99) < 4.5  # half a pixel of the small image, and JPEG's rounding


def test_a_resize_follows_the_pixel_convention() -> None:
    uv = np.array([[0, 0], [399, 224], [10.25, 20.5]], np.float32)
    found, kept = np.empty_like(uv), np.ones(3, bool)
    move_pairs(uv, 0, 0, 400, 225, 45, 80, False, False, found, kept)
    np.testing.assert_allclose(found[2], (uv[2] + 0.5) * (80 / 400, 45 / 225) - 0.5, rtol=1e-6)
    # The outer pixels' centres come to lie beyond the outer centres of the smaller image: its border.
    np.testing.assert_allclose(found[:2], [[0, 0], [79, 44]])
    assert kept.all()
    move_pairs(uv, 5, 5, 100, 100, 45, 80, False, False, found, kept)
    assert kept.tolist() == [False, False, True]


def test_a_flip_mirrors_at_the_last_column() -> None:
    record = frame(pairs=50)
    plain = replace(NO_AUGMENTATION)
    straight = make_sample(record, 0, SIZE, plain, generator_of(0, 0, 0))  # type: ignore[arg-type]
    mirrored = make_sample(record, 0, SIZE, replace(plain, flip_image=1.0), generator_of(0, 0, 0))  # type: ignore[arg-type]
    np.testing.assert_allclose(mirrored.pair_uv[:, 0], SIZE[1] - 1 - straight.pair_uv[:, 0])
    np.testing.assert_array_equal(mirrored.image, straight.image[:, :, ::-1])


def test_validation_changes_nothing_but_the_images_size() -> None:
    record = frame()
    sample = make_sample(record, 0, SIZE, NO_AUGMENTATION, generator_of(0, 0, 0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(sample.points, record.points)
    np.testing.assert_array_equal(sample.pair_point, record.pair_point)
    assert record.point_label is not None
    truth = make_sample(record, 0, SIZE, NO_AUGMENTATION, generator_of(0, 0, 0), labels="truth")
    np.testing.assert_array_equal(truth.pair_label, record.point_label[record.pair_point])


def test_rotation_and_flips_keep_distances_heights_and_the_input() -> None:
    xyz = frame().points[:, :3]
    kept = xyz.copy()
    turned = rotate_and_flip(xyz, AugmentSettings(), generator_of(3, 0, 0))
    np.testing.assert_array_equal(xyz, kept)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(xyz, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 2], xyz[:, 2])
    determinants = {
        round(
            float(
                np.linalg.det(
                    np.linalg.lstsq(xyz, rotate_and_flip(xyz, AugmentSettings(), generator_of(s, 0, 0)), rcond=None)[0]
                )
            )
        )
        for s in range(20)
    }
    assert determinants == {-1, 1}  # mirrored and not


def test_a_cloud_is_scaled_as_a_whole_and_what_was_drawn_before_stays() -> None:
    points = frame().points
    factors = []
    for seed in range(50):
        plain, scaled = (
            rotate_and_flip(points, AugmentSettings(scale=scale), generator_of(seed, 0, 0)) for scale in (0.0, 0.1)
        )
        factor = np.linalg.norm(scaled[:, :3]) / np.linalg.norm(plain[:, :3])
        np.testing.assert_allclose(scaled[:, :3], factor * plain[:, :3], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(scaled[:, 3:], points[:, 3:])
        factors.append(factor)
    assert 0.9 <= min(factors) < 0.93 and 1.07 < max(factors) <= 1.1


def test_crops_keep_to_their_area_aspect_and_pairs() -> None:
    record, settings = frame(), AugmentSettings(crop_min_pairs=100)
    members = record.pair_camera == 0
    uv = record.pair_uv[members]
    areas = []
    for seed in range(200):
        left, top, w, h = choose_crop(uv, 400, 225, settings, generator_of(seed, 0, 0))
        assert 0 <= left <= 400 - w and 0 <= top <= 225 - h
        assert 14 / 9 - 0.03 < w / h < 17 / 9 + 0.03
        inside = ((uv >= (left - 0.5, top - 0.5)) & (uv < (left + w - 0.5, top + h - 0.5))).all(1).sum()
        assert inside > 100 or inside > 0.75 * len(uv)
        areas.append(w * h / (400 * 225))
    assert min(areas) > 0.29 and max(areas) > 0.8 and max(areas) <= 1


def test_an_image_without_pairs_or_with_impossible_demands_ends() -> None:
    none = np.empty((0, 2), np.float32)
    assert choose_crop(none, 400, 225, AugmentSettings(), generator_of(0, 0, 0)) != (0, 0, 400, 225)
    corners = np.array([[0, 0], [399, 224], [0, 224], [399, 0]], np.float32)
    impossible = AugmentSettings(crop_area=(0.3, 0.4), crop_min_pairs=1024)
    assert choose_crop(corners, 400, 225, impossible, generator_of(0, 0, 0)) == (0, 0, 400, 225)


def test_a_cuboid_takes_its_points_and_their_pairs_and_is_put_back_when_it_costs_too_much() -> None:
    record = frame()
    sizes = []
    for epoch in range(20):
        sample = make_sample(
            record,
            0,
            SIZE,
            replace(NO_AUGMENTATION, cuboid=0.5, cuboid_min_pairs=0),
            generator_of(0, epoch, 0),  # type: ignore[arg-type]
        )
        gone = np.setdiff1d(record.points[:, 3], sample.points[:, 3])
        assert not np.isin(sample.pair_density - 1, gone).any()
        assert len(sample.pair_point) == np.isin(record.pair_point, gone, invert=True).sum()
        sizes.append(len(gone))
    assert max(sizes) > 50
    # 1,500 pairs an image: losing any one brings an image under the limit.
    limit = int(np.bincount(record.pair_camera).min())
    strict = replace(NO_AUGMENTATION, cuboid=1.0, cuboid_min_pairs=limit)
    kept = [len(make_sample(record, 0, SIZE, strict, generator_of(0, e, 0)).points) for e in range(5)]  # type: ignore[arg-type]
    assert 2000 in kept


def test_a_circle_is_taken_before_the_augmentation_as_the_public_code_does_for_voxelnet() -> None:
    """The same sample as of a frame that never held the other points: cuboid, crops and numbers of pairs included."""
    record = frame()
    x, y, z = record.points[:, :3].astype(np.float64).T
    inside = (np.sqrt(x**2 + y**2) <= 22) & (z >= -15) & (z <= 12)
    held = inside[record.pair_point]
    assert 300 < inside.sum() < 1500 and 300 < held.sum() < 2500
    pairs = ("pair_camera", "pair_label", "pair_uv", "pair_density")
    smaller = replace(
        record,
        points=record.points[inside],
        point_label=record.point_label[inside],  # type: ignore[index]
        pair_point=(np.cumsum(inside) - 1)[record.pair_point[held]].astype(np.int32),
        **{name: getattr(record, name)[held] for name in pairs},
    )
    settings = AugmentSettings(cuboid=0.6, cuboid_min_pairs=200, crop_min_pairs=300, cuboid_keeps="all images")
    circle = replace(settings, circle=(22, -15, 12))
    dropped = 0
    for epoch in range(8):
        expected = make_sample(smaller, 0, SIZE, settings, generator_of(0, epoch, 0))
        found = make_sample(record, 0, SIZE, circle, generator_of(0, epoch, 0))
        for name, value in expected.columns.items():
            np.testing.assert_array_equal(found.columns[name], value)
        dropped += len(expected.points) < inside.sum()
    assert dropped > 0  # some of the cuboids stayed
    # Held-out frames are cut by it too, and are whole otherwise.
    sample = make_sample(record, 0, SIZE, without_augmentation(circle), generator_of(0, 0, 0))
    np.testing.assert_array_equal(sample.points, record.points[inside])
    # A frame with nothing inside has no points and no pairs.
    nothing = make_sample(record, 0, SIZE, replace(settings, circle=(1, 1e3, 1e4)), generator_of(0, 0, 0))
    assert len(nothing.points) == len(nothing.pair_point) == 0


def test_rounded_pixels_are_the_public_codes() -> None:
    """On 100,000 random pairs: round((p − corner) · scale) of the rounded pixel, kept inside [0, W) x [0, H)."""
    rng = np.random.default_rng(4)
    uv = (rng.random((100_000, 2)) * (1599, 899)).astype(np.float32)
    left, top, w, h = 213, 97, 1001, 633
    moved, kept = np.empty_like(uv), np.ones(len(uv), bool)
    move_pairs(uv, left, top, w, h, 224, 416, True, False, moved, kept)
    theirs = np.round((np.round(uv.astype(np.float64)) - (left, top)) * (416 / w, 224 / h))
    inside = ((theirs >= 0) & (theirs < (416, 224))).all(1)
    np.testing.assert_array_equal(kept, inside)
    np.testing.assert_array_equal(moved[inside], theirs[inside])
    mirrored = np.empty_like(uv)
    move_pairs(uv, left, top, w, h, 224, 416, True, True, mirrored, np.ones(len(uv), bool))
    np.testing.assert_array_equal(mirrored[inside, 0], 415 - theirs[inside, 0])


def test_the_public_code_puts_a_cuboid_back_for_any_image_left_with_too_few() -> None:
    record = frame()
    few = int(np.bincount(record.pair_camera).max()) + 1  # no image has that many
    ours = replace(NO_AUGMENTATION, cuboid=0.5, cuboid_min_pairs=few)
    theirs = replace(ours, cuboid_keeps="all images")
    assert len(make_sample(record, 0, SIZE, ours, generator_of(0, 1, 0)).points) < 2000
    assert len(make_sample(record, 0, SIZE, theirs, generator_of(0, 1, 0)).points) == 2000


def test_rounded_pixels_are_whole_and_inside() -> None:
    record = frame()
    settings = AugmentSettings(round_pixels=True, crop_min_pairs=100)
    images = augment_images(record, np.ones(3000, bool), SIZE, settings, generator_of(0, 0, 0))  # type: ignore[arg-type]
    uv, kept = images.uv, images.kept
    np.testing.assert_array_equal(uv[kept], np.rint(uv[kept]))
    assert (uv[kept] >= 0).all() and (uv[kept] <= (SIZE[1] - 1, SIZE[0] - 1)).all()


def test_the_same_seed_epoch_and_frame_give_the_same_sample() -> None:
    record = frame()
    a = make_sample(record, 5, SIZE, AugmentSettings(), generator_of(1, 2, 5))  # type: ignore[arg-type]
    b = make_sample(record, 5, SIZE, AugmentSettings(), generator_of(1, 2, 5))  # type: ignore[arg-type]
    c = make_sample(record, 5, SIZE, AugmentSettings(), generator_of(1, 3, 5))  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.points, b.points)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.pair_uv, b.pair_uv)
    assert not np.array_equal(a.image, c.image)


def test_an_image_cut_short_is_named() -> None:
    with pytest.raises(OlivineError, match="cannot be read"):
        decode_crop(gradient_image(40, 30)[:200], (0, 0, 40, 30), False, np.empty((8, 8, 3), np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("crop", [(0, 0, 41, 31), (5, 7, 20, 13), (30, 20, 11, 11)])
def test_a_crop_is_the_bilinear_resize_of_the_public_code(mode: str, crop: tuple[int, int, int, int]) -> None:
    """torch's bilinear interpolation without antialiasing, within a grey level."""
    import torch

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((41, 31)).convert(mode)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=95)
    whole = np.asarray(Image.open(buffer).convert("RGB"))
    left, top, width, height = crop
    part = torch.from_numpy(whole[top : top + height, left : left + width].copy()).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(part, size=(17, 23), mode="bilinear", align_corners=False)[0]
    out = np.empty((17, 23, 3), np.uint8)
    decode_crop(buffer.getvalue(), crop, False, out)
    inner = (slice(2, -2), slice(2, -2))  # at a crop's border ours still sees its neighbours
    np.testing.assert_allclose(out[inner], expected.permute(1, 2, 0).numpy()[inner], atol=1.01)
    mirrored = np.empty_like(out)
    decode_crop(buffer.getvalue(), crop, True, mirrored)
    np.testing.assert_array_equal(mirrored, out[:, ::-1])


def test_an_image_of_one_pixel_and_a_crop_of_one_pixel_work() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 100, 50)).save(buffer, "JPEG", quality=100)
    out = np.empty((5, 7, 3), np.uint8)
    decode_crop(buffer.getvalue(), (0, 0, 1, 1), False, out)
    assert np.abs(out.astype(int) - (200, 100, 50)).max() < 4
    decode_crop(gradient_image(40, 30), (39, 29, 1, 1), True, out)
