"""Calibration: by hand, and against the formula on single labels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from olivine.common.calibration import BINS, calibration_of, calibration_table, draw_reliability


def test_two_scores_by_hand() -> None:
    right = np.zeros((256, 2), int)
    right[204] = (10, 30)  # says 80 %, 75 % are right
    right[51] = (10, 0)  # says 20 %, none is
    right[0] = (100, 100)  # nothing is known
    found = calibration_of(right)
    assert (found.labels, found.said, found.right) == (50, pytest.approx(68), pytest.approx(60))
    assert found.error == pytest.approx((40 * 5 + 10 * 20) / 50)
    assert [(row.low, round(row.share)) for row in found.bins] == [(3 / BINS, 20), (12 / BINS, 80)]
    assert [row.right for row in found.levels if row.low in (0.2, 0.5, 0.8)] == [60.0, 75.0, 75.0]
    assert calibration_of(np.zeros((256, 2), int)) is None


def test_many_scores_against_the_sums_over_single_labels() -> None:
    rng = np.random.default_rng(0)
    score, drawn = rng.integers(1, 256, 5000), rng.random(5000)
    hit = drawn < (score / 255) ** 2
    right = np.zeros((256, 2), int)
    np.add.at(right, (score, hit.astype(int)), 1)
    found = calibration_of(right)
    said = score / 255
    expected = 0.0
    for k in range(15):
        inside = (said >= k / 15) & ((said < (k + 1) / 15) | (k == 14))
        expected += abs(said[inside].mean() - hit[inside].mean()) * inside.mean()
    assert found.error == pytest.approx(100 * expected)
    for row in found.levels:
        assert row.right == pytest.approx(100 * hit[said >= row.low].mean())
    with Image.open(io.BytesIO(draw_reliability(found))) as picture:
        assert picture.size[0] > 300
    assert f"expected calibration error {found.error:.2f} %" in calibration_table(found)
