"""Augmentation of a frame: the cloud as a whole, then each image, with the pairs kept right.

NumPy and numba only; the loader's workers import this file and no torch. Every random number comes from a generator made of
(seed, epoch, frame), so that neither the number of workers nor the order of frames changes anything. The order is the
public code's: points outside a circle, rotation, flips, cuboid, crop, image flip. Scaling, which it has not, is after flips; what stands for
another LiDAR (``corruptions.py``) comes first.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.settings import check_ranges
from .augment_kernels import count_inside, members_of_cuboid, move_pairs, turn
from .corruptions import corrupt_for_training
from .decode import decode_crop, decode_segments
from .sample import COLUMNS, STORED, Sample

if TYPE_CHECKING:
    from ..pairs.shards import FrameRecord


SENSOR: dict[str, Any] = {"beams": (0, 1, "[)"), "scale": (0, 1, "[)"), "range_noise": (0, 10), "intensity_off": (0, 1)}
"""Settings that stand for another LiDAR, and their ranges; 0 is off. Probe and fine-tuning have the same."""


@dataclass(frozen=True)
class AugmentSettings:
    """What is done to a training frame; validation frames are only resized (see :func:`without_augmentation`).

    Attributes:
        circle: (radius, lowest z, highest z) in metres: points outside are left out first, with their pairs, as the
            public code does it for VoxelNet; None leaves out none.
        rotate: rotation about z by a uniform angle in [0, 2π).
        flip_axes: flip of x and of y, each with probability ½.
        scale: the cloud is scaled by a factor from 1 − scale to 1 + scale, one for x, y and z.
        beams: largest share of the LiDAR's beams that is left out, with their pairs: each frame draws u ~ U(0, beams) and
            leaves out each beam with the probability u; see :mod:`~olivine.train.corruptions`.
        range_noise: largest standard deviation of noise along the rays, in metres; each frame draws its own up to it.
        intensity_off: probability that all points of a frame get its mean intensity.
        cuboid: side fractions of the dropped cuboid are u·(range of each axis), u ~ U(0, cuboid); 0 drops none.
        crop: random crop of each image; without it the whole image is resized.
        crop_area: least and largest fraction of the image's area.
        crop_aspect: least and largest width/height of a crop.
        crop_min_pairs, crop_min_share: a crop is kept when it holds more than this many of the image's pairs,
            or more than this share of them.
        cuboid_min_pairs: a cuboid is put back when an image that had this many pairs is left with fewer.
        flip_image: probability of a horizontal flip of each image.
        cuboid_keeps: which images count there: ``full images``, those that had that many, or ``all images``, as the
            public code has it.
        round_pixels: positions are whole pixels, made as the public code makes them: see
            :func:`~olivine.train.augment_kernels.move_pairs`.
    """

    circle: tuple[float, float, float] | None = None
    rotate: bool = True
    flip_axes: bool = True
    scale: float = 0.0
    beams: float = 0.0
    range_noise: float = 0.0
    intensity_off: float = 0.0
    cuboid: float = 0.2
    crop: bool = True
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (14 / 9, 17 / 9)
    crop_min_pairs: int = 1024
    crop_min_share: float = 0.75
    cuboid_min_pairs: int = 1024
    cuboid_keeps: Literal["full images", "all images"] = "full images"
    flip_image: float = 0.5
    round_pixels: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OlivineError: one is out of its range, or the circle holds nothing.
        """
        check_ranges("augment", self, **SENSOR, cuboid=(0, 1), flip_image=(0, 1), crop_min_share=(0, 1))
        check_ranges("augment", self, crop_min_pairs=(0, 1 << 40), cuboid_min_pairs=(0, 1 << 40))
        for name, most in (("crop_area", 1.0), ("crop_aspect", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise OlivineError(
                    f"augment.{name} is {low:g} to {high:g}",
                    remedy=f"give least and largest, over 0{' and at most 1' if most == 1 else ''}",
                )
        if self.circle is not None and not (self.circle[0] > 0 and self.circle[1] < self.circle[2]):
            raise OlivineError(
                f"augment.circle is {list(self.circle)}", remedy="give a radius and two heights, as [51.2, -5, 3]"
            )


NO_AUGMENTATION = AugmentSettings(rotate=False, flip_axes=False, scale=0.0, cuboid=0.0, crop=False, flip_image=0.0)


def without_augmentation(settings: AugmentSettings) -> AugmentSettings:
    """Whole clouds and images; the circle and the rounding of pixels stay."""
    return replace(NO_AUGMENTATION, circle=settings.circle, round_pixels=settings.round_pixels)


_CROP_ATTEMPTS = 100


def generator_of(seed: int, epoch: int, frame: int, *scan: int) -> np.random.Generator:
    """The generator of one frame in one epoch; of another scan of it with the scan's number."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, frame, *scan))))


def move_cloud(
    points: NDArray[np.float32], settings: AugmentSettings, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Rotate a cloud [N, ≥3] about z, flip x and y, and scale it at random; further columns stay. Returns a new array."""
    angle = generator.uniform(0, 2 * math.pi)
    flips = np.where(generator.random(2) < 0.5, -1.0, 1.0)
    matrix = np.eye(3)
    if settings.rotate:
        c, s = math.cos(angle), math.sin(angle)
        matrix[:2, :2] = [[c, -s], [s, c]]
    if settings.flip_axes:
        matrix[:2] *= flips[:, None]
    moved: NDArray[np.float32] = turn(points, matrix[:2, :2])
    if settings.scale > 0:  # drawn only here, so that the other numbers are the same without it
        moved[:, :3] *= np.float32(generator.uniform(1 - settings.scale, 1 + settings.scale))
    return moved


def inside_circle(points: NDArray[np.float32], circle: tuple[float, float, float] | None) -> NDArray[np.bool_]:
    """Which points [N, ≥3] lie in a circle around the sensor and between two heights, borders included; bool [N]."""
    if circle is None:
        return np.ones(len(points), bool)
    radius, low, high = circle
    x, y, z = points[:, :3].T
    inside: NDArray[np.bool_] = (x * x + y * y <= np.float32(radius * radius)) & (z >= low) & (z <= high)
    return inside


def cuboid_members(xyz: NDArray[np.float32], largest: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which points of a cloud [N, 3] lie in a random cuboid around one of them; bool [N].

    One u ~ U(0, largest) for all three axes; the sides are u times the cloud's range along each.
    """
    center = xyz[generator.integers(len(xyz))]
    inside: NDArray[np.bool_] = members_of_cuboid(xyz, center, np.float32(generator.uniform(0, largest) / 2))
    return inside


def choose_crop(
    uv: NDArray[np.float32],
    width: int,
    height: int,
    settings: AugmentSettings,
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A crop (left, top, width, height), in whole pixels, that keeps enough of an image's pairs.

    An image without pairs takes the first crop that fits. After a hundred attempts it is the whole image.

    Args:
        uv: the image's pairs, [M, 2].
    """
    low, high = math.log(settings.crop_aspect[0]), math.log(settings.crop_aspect[1])
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * generator.uniform(*settings.crop_area)
        aspect = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        corner = generator.random(2)
        if not (0 < w <= width and 0 < h <= height):
            continue
        left, top = int(corner[0] * (width - w + 1)), int(corner[1] * (height - h + 1))
        if len(uv) == 0:
            return left, top, w, h
        # The crop covers [left − ½, left + w − ½) of the pixel axis.
        held = count_inside(uv, left - 0.5, top - 0.5, left + w - 0.5, top + h - 0.5)
        if held > settings.crop_min_pairs or held > settings.crop_min_share * len(uv):
            return left, top, w, h
    return 0, 0, width, height


def drop_cuboid(
    xyz: NDArray[np.float32],
    pair_point: NDArray[np.integer],
    pair_camera: NDArray[np.uint8],
    cameras: int,
    settings: AugmentSettings,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Which points stay, bool [N], after one random cuboid is dropped, or all where that would cost too many pairs."""
    dropped = cuboid_members(xyz, settings.cuboid, generator)
    before = np.bincount(pair_camera, minlength=cameras)
    after = np.bincount(pair_camera[~dropped[pair_point]], minlength=cameras)
    enough = settings.cuboid_min_pairs
    counted = before >= enough if settings.cuboid_keeps == "full images" else before >= 0
    if (counted & (after < enough)).any() or dropped.all():
        return np.ones(len(xyz), bool)
    return ~dropped


@dataclass(frozen=True, eq=False)
class Images:
    """The images of an augmented frame.

    Attributes:
        image: uint8 [C, H, W, 3], or None.
        segment: int32 [C, H, W], −1 = no segment, or None.
        uv: float32 [M, 2], the pairs' new pixels.
        kept: bool [M], which pairs lie in their image's crop (and were there before).
        mirrored: bool [C], which images are flipped.
        crop: float64 [C, 4]: left, top, width and height as fractions of the image, mirrored where it is flipped.
    """

    image: NDArray[np.uint8] | None
    segment: NDArray[np.int32] | None
    uv: NDArray[np.float32]
    kept: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    crop: NDArray[np.float64]


def augment_images(
    record: FrameRecord,
    pair_kept: NDArray[np.bool_],
    size: tuple[int, int],
    settings: AugmentSettings,
    generator: np.random.Generator,
    columns: Container[str] = ("image",),
) -> Images:
    """Crop, resize and flip each image of a frame.

    Args:
        record: the frame.
        pair_kept: which pairs are still there, bool [M].
        size: (height, width) wanted.
        columns: which of ``image`` and ``segment`` are decoded; the pairs' places are the same without.
    """
    cameras = len(record.image_size)
    image = np.empty((cameras, *size, 3), np.uint8) if "image" in columns else None
    segment = np.empty((cameras, *size), np.int32) if "segment" in columns else None
    uv, kept, mirrored = np.empty_like(record.pair_uv), pair_kept.copy(), np.zeros(cameras, bool)
    crops = np.empty((cameras, 4))
    # Pairs are ordered by camera.
    edge = np.searchsorted(record.pair_camera, np.arange(cameras + 1))
    for c in range(cameras):
        width, height = (int(x) for x in record.image_size[c])
        mine = slice(edge[c], edge[c + 1])
        crop = (0, 0, width, height)
        if settings.crop:
            crop = choose_crop(record.pair_uv[mine][kept[mine]], width, height, settings, generator)
        mirrored[c] = flip = bool(generator.random() < settings.flip_image)
        left = width - crop[0] - crop[2] if flip else crop[0]
        crops[c] = left / width, crop[1] / height, crop[2] / width, crop[3] / height
        if image is not None:
            decode_crop(record.image[c], crop, flip, image[c])
        if segment is not None:
            segment[c] = decode_segments(record.segment[c], crop, flip, size)
        move_pairs(record.pair_uv[mine], *crop, *size, settings.round_pixels, flip, uv[mine], kept[mine])
    return Images(image, segment, uv, kept, mirrored, crops)


#: Columns that every sample has; a method's needs come on top.
BASE = ("points", "pair_point", "pair_camera", "pair_uv", "image_size")


def stored_columns(columns: Iterable[str], labels: str = "weak", base: Iterable[str] = BASE) -> tuple[str, ...]:
    """What is read of a stored frame to make a sample with ``columns`` besides ``base``."""
    named = dict.fromkeys((*base, *columns))
    if labels != "weak" and named.pop("pair_label", "absent") != "absent":
        named["point_label"] = None
    if "pair_weak_label" in named:
        named["pair_label"] = None
    return tuple(name for name in named if name in STORED)


def make_sample(
    record: FrameRecord,
    frame: int,
    size: tuple[int, int],
    settings: AugmentSettings,
    generator: np.random.Generator,
    columns: Sequence[str] = (),
    labels: str = "weak",
) -> Sample:
    """Augment one frame of a shard.

    Args:
        record: the frame, with :func:`stored_columns`.
        frame: its position in the set.
        size: (height, width) of the images wanted.
        columns: wanted besides :data:`BASE`, see :data:`~.sample.COLUMNS`.
        labels: ``weak``, or else the pairs carry their points' label.

    Raises:
        OlivineError: an image cannot be decoded, or there is no ground truth.
    """
    cloud, stays = corrupt_for_training(record.points, settings, generator)
    points = move_cloud(cloud, settings, generator)
    stays &= inside_circle(record.points, settings.circle)
    if settings.cuboid > 0 and stays.any():
        held, number = stays[record.pair_point], np.cumsum(stays) - 1
        left = points[stays, :3], number[record.pair_point[held]], record.pair_camera[held]
        stays[stays] = drop_cuboid(*left, len(record.image_size), settings, generator)
    images = augment_images(record, stays[record.pair_point], size, settings, generator, columns)
    made: dict[str, Any] = {"points": points, "image_mirrored": images.mirrored, "pair_uv": images.uv}
    made |= {"image": images.image, "segment": images.segment, "image_crop": images.crop}
    return Sample(frame, record.token, _columns(record, (*BASE, *columns), made, stays, images.kept, labels))


def scan_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """What a scan without its images has: its points, ``columns``, and the points of pairs where one is over pairs."""
    pairs = ("pair_point",) if any(COLUMNS[name].over == "pairs" for name in columns) else ()
    return tuple(dict.fromkeys(("points", *pairs, *columns)))


def make_scan(
    record: FrameRecord,
    frame: int,
    settings: AugmentSettings,
    generator: np.random.Generator,
    columns: Sequence[str] = (),
    labels: str = "weak",
) -> Sample:
    """Augment the cloud of a frame without its images; see :func:`make_sample`. Its pairs are those of the whole images.

    Args:
        columns: wanted, see :func:`scan_columns`.
    """
    cloud, stays = corrupt_for_training(record.points, settings, generator)
    points = move_cloud(cloud, settings, generator)
    stays &= inside_circle(record.points, settings.circle)
    if settings.cuboid > 0:
        dropped = cuboid_members(points[:, :3], settings.cuboid, generator)
        stays = stays if dropped.all() else stays & ~dropped
    pairs = stays[record.pair_point] if "pair_point" in columns else np.zeros(0, bool)
    return Sample(frame, record.token, _columns(record, columns, {"points": points}, stays, pairs, labels))


def _columns(
    record: FrameRecord,
    names: Iterable[str],
    made: dict[str, Any],
    stays: NDArray[np.bool_],
    pair_kept: NDArray[np.bool_],
    labels: str,
) -> dict[str, NDArray[Any]]:
    """Columns of an augmented frame: as ``made`` or else as stored, of the points and pairs that are left."""
    found: dict[str, NDArray[Any]] = {}
    value: Any
    for name in names:
        if name == "pair_point":
            value = (np.cumsum(stays) - 1)[record.pair_point[pair_kept]]
        elif name == "pair_label" and labels != "weak":
            if record.point_label is None:
                raise OlivineError("has no ground truth", where=record.token, remedy="use --set data.labels=weak")
            value = record.point_label[record.pair_point[pair_kept]]
        elif name == "pair_weak_label":
            value = record.pair_label[pair_kept]
        else:
            value = made[name] if name in made else getattr(record, name)
            kept = {"pairs": pair_kept, "points": stays}.get(COLUMNS[name].over)
            value = value if kept is None else value[kept]
        found[name] = np.asarray(value)
    return found
