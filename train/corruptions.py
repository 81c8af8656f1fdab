"""What another LiDAR, or a worse one, would have measured: fewer beams, noisy ranges, no intensity, another scale.

The same functions make training clouds (``augment.beams`` and its neighbours) and the clouds of ``olivine probe --corrupt``.
NumPy only, for the loader's workers. Clouds are float32 [N, ≥4] in the LiDAR's own frame, before any rotation, with the
intensity that the network takes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .augment import AugmentSettings

Cloud = NDArray[np.float32]
Kept = NDArray[np.bool_]

_BIN_DEG = 0.05  # of the histogram of elevations
_SMOOTH_BINS = 1.5
_NEAR_M = 3.0  # nearer points, on the vehicle itself, have the elevation of no beam
_DEEPEST = 0.5  # a valley between two beams is at most so high against the lower of them


def beams_of(xyz: Cloud) -> NDArray[np.int64]:
    """The beam of each point of a spinning LiDAR's cloud [N, ≥3], int64 [N], 0 the lowest.

    Beams are the peaks in the histogram of the points' elevations, for few data sets say which beam a point is of. Of a
    cloud without such peaks they are lanes of elevation.
    """
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    place = np.degrees(np.arctan2(xyz[:, 2], distance)) / _BIN_DEG
    place = (place - place.min(initial=0)).astype(np.int64) + 1
    far = distance > _NEAR_M
    count = np.bincount(place[far], minlength=int(place.max(initial=1)) + 2).astype(float)
    reach = np.arange(-6, 7)
    weight = np.exp(-0.5 * (reach / _SMOOTH_BINS) ** 2)
    smooth = np.convolve(count, weight / weight.sum(), "same")
    peaks = (np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1).tolist()
    cuts = [a + int(np.argmin(smooth[a : b + 1])) for a, b in pairwise(peaks)]
    while cuts:  # join two peaks that are one beam, the flattest valley first
        height = [smooth[cut] / min(smooth[peaks[k]], smooth[peaks[k + 1]]) for k, cut in enumerate(cuts)]
        flattest = int(np.argmax(height))
        if height[flattest] < _DEEPEST:
            break
        peaks.pop(flattest if smooth[peaks[flattest]] < smooth[peaks[flattest + 1]] else flattest + 1)
        cuts.pop(flattest)
    return np.searchsorted(cuts, place, "right")


def every_beam(cloud: Cloud, step: int, first: int = 0) -> Kept:
    """Which points are of every ``step``-th beam, from the ``first``, bool [N]."""
    return beams_of(cloud) % step == first


def drop_beams(cloud: Cloud, share: float, generator: np.random.Generator) -> Kept:
    """Which points stay, bool [N], where each beam is left out with the probability ``share``; all where none would."""
    beam = beams_of(cloud)
    stays: Kept = (generator.random(int(beam.max(initial=0)) + 1) >= share)[beam]
    return stays if stays.any() else ~stays


def range_noise(cloud: Cloud, deviation: float, generator: np.random.Generator) -> Cloud:
    """The cloud with normal noise of a standard deviation in metres along each ray."""
    distance = np.linalg.norm(cloud[:, :3], axis=1)
    noise = generator.normal(0.0, deviation, len(cloud)) / np.maximum(distance, 1e-3)
    noisy = cloud.copy()
    noisy[:, :3] *= (1 + np.maximum(noise, -0.5)).astype(np.float32)[:, None]  # no point goes behind the sensor
    return noisy


def no_intensity(cloud: Cloud) -> Cloud:
    """The cloud with its mean intensity at every point; not 0, which is like no voxel to a sparse convolution."""
    flat = cloud.copy()
    flat[:, 3] = cloud[:, 3].mean() if len(cloud) else 0
    return flat


def scaled(cloud: Cloud, factor: float) -> Cloud:
    """The cloud with its positions times a factor."""
    larger = cloud.copy()
    larger[:, :3] *= np.float32(factor)
    return larger


def corrupt_for_training(cloud: Cloud, settings: AugmentSettings, generator: np.random.Generator) -> tuple[Cloud, Kept]:
    """A training frame's cloud, and which of its points stay, as the settings say; nothing is drawn for what is off."""
    stays = np.ones(len(cloud), bool)
    if settings.beams > 0:
        stays = drop_beams(cloud, generator.uniform(0, settings.beams), generator)
    if settings.range_noise > 0:
        cloud = range_noise(cloud, generator.uniform(0, settings.range_noise), generator)
    if settings.intensity_off > 0 and generator.random() < settings.intensity_off:
        cloud = no_intensity(cloud)
    return cloud, stays


def _whole(cloud: Cloud) -> Kept:
    return np.ones(len(cloud), bool)


#: What ``olivine probe --corrupt`` scores: the corrupted cloud, its points in their order, and which of them stay.
CORRUPTIONS: dict[str, Callable[[Cloud, np.random.Generator], tuple[Cloud, Kept]]] = {
    "every 2nd beam": lambda cloud, generator: (cloud, every_beam(cloud, 2)),
    "every 4th beam": lambda cloud, generator: (cloud, every_beam(cloud, 4)),
    "range noise 0.05 m": lambda cloud, generator: (range_noise(cloud, 0.05, generator), _whole(cloud)),
    "range noise 0.2 m": lambda cloud, generator: (range_noise(cloud, 0.2, generator), _whole(cloud)),
    "no intensity": lambda cloud, generator: (no_intensity(cloud), _whole(cloud)),
    "scale 0.9": lambda cloud, generator: (scaled(cloud, 0.9), _whole(cloud)),
    "scale 1.1": lambda cloud, generator: (scaled(cloud, 1.1), _whole(cloud)),
}
