"""Distance density: the exact sum, everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.pairs.density import bandwidth_of, distance_density
from olivine.readers.frame import Frame


def exact(distance: np.ndarray, h: float, at: np.ndarray) -> np.ndarray:
    """Eq. 14 as written, in float64."""
    d = distance.astype(np.float64)
    kernel = [np.exp(-0.5 * ((d[i] - d) / h) ** 2).sum() / np.sqrt(2 * np.pi) for i in at]
    return np.array(kernel) / (len(d) * h)


def assert_exact(distance: np.ndarray, bandwidth: float | None, at: np.ndarray) -> None:
    h = bandwidth or max(1.06 * np.std(distance.astype(np.float64), ddof=1) * len(distance) ** -0.2, 1e-3)
    assert np.abs(distance_density(distance, bandwidth)[at] / exact(distance, h, at) - 1).max() < 1e-3


@pytest.mark.parametrize("bandwidth", [None, 0.001, 0.03, 1.0, 100.0])
def test_every_distance_of_the_keyframe_is_exact(keyframe: Frame, bandwidth: float | None) -> None:
    distance = np.linalg.norm(keyframe.points()[:, :3].astype(np.float64), axis=1)
    extremes = np.argsort(distance)[np.r_[:100, -300:0]]
    assert_exact(distance, bandwidth, np.union1d(extremes, np.arange(0, len(distance), 101)))


@pytest.mark.parametrize("bandwidth", [None, 0.001, 0.1, 10.0])
def test_a_million_distances_and_their_far_tail_are_exact(bandwidth: float | None) -> None:
    rng = np.random.default_rng(1)
    # A crowd, and single points four to nine of its deviations away, where errors show.
    distance = np.concatenate([rng.normal(10, 1, 999_950), 10 + np.linspace(4, 9, 50)])
    assert_exact(distance, bandwidth, np.r_[0:10, 999_950:1_000_000])


def test_a_crowd_of_equal_distances_does_not_blur_its_neighbours() -> None:
    distance = np.concatenate([np.full(500_000, 5.0), np.linspace(5, 60, 500)])
    assert_exact(distance, 0.5, np.r_[0, 500_000:500_500:5])


@pytest.mark.parametrize("bandwidth", [0.001, 0.5, 100.0])
@pytest.mark.parametrize("distance", [[3.0], [1.0, 2.0], [7.0] * 500, [0.0, 1e6], [-3.0, 4.0, 4.0005]])
def test_small_and_odd_sets_are_exact(distance: list[float], bandwidth: float) -> None:
    assert_exact(np.array(distance), bandwidth, np.arange(len(distance)))


def test_the_bandwidth_is_silvermans_with_unbiased_sigma_and_at_least_a_millimetre() -> None:
    d = np.random.default_rng(0).gamma(2, 5, 1000)
    assert bandwidth_of(d) == pytest.approx(1.06 * np.std(d, ddof=1) * 1000**-0.2, rel=1e-12)
    assert bandwidth_of(d, "scott") == pytest.approx(np.std(d, ddof=1) * 1000**-0.2, rel=1e-12)
    for few in ([], [3.0], [7.0] * 9):
        assert bandwidth_of(np.array(few)) == 1e-3


def test_it_is_a_density_as_scipys() -> None:
    from scipy.stats import gaussian_kde

    d = np.random.default_rng(0).gamma(2, 5, 2000)
    peer = gaussian_kde(d, bw_method=0.3 / np.std(d, ddof=1))(d)
    assert np.allclose(distance_density(d, 0.3), peer, rtol=1e-5)


def test_float32_in_float64_out_and_nothing_for_nothing() -> None:
    density = distance_density(np.array([1, 2, 3], np.float32))
    assert density.dtype == np.float64
    assert distance_density(np.empty(0)).shape == (0,)


@pytest.mark.parametrize(
    ("distance", "bandwidth"), [([1, np.nan], None), ([1, np.inf], 1.0), ([1, 2], 0), ([1, 2], "box")]
)
def test_what_has_no_density_is_refused(distance: list[float], bandwidth: float | str | None) -> None:
    with pytest.raises(OlivineError):
        distance_density(np.array(distance), bandwidth)
