"""Promises of the losses on segments: published values, own formulas in float64, gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from olivine.common import OlivineError
from olivine.train.objectives import (
    info_nce,
    segment_contrast,
    segment_mean,
    soft_target_cross_entropy,
    tolerant_contrast,
)

Array = NDArray[np.float64]
TAU = 0.07
EXACT = 1e-9


def unit(a: Array, axis: int) -> Array:
    return a / np.linalg.norm(a, axis=axis, keepdims=True)


def cross_entropy(z: Array, target: Array) -> Array:
    z = z - z.max(1, keepdims=True)
    return -(target * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)


def pool(segment: NDArray[np.int64], value: Array, segments: int = 21) -> Array:
    sums = np.zeros((segments, value.shape[1]))
    np.add.at(sums, segment, value)
    return sums / (np.bincount(segment, minlength=segments)[:, None] + 1e-6)


class Published:
    """The inputs on which the authors' own functions (and a second formula) were run in float64."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        segment = rng.integers(0, 7, (3, 12, 16))
        self.pixel = unit(rng.standard_normal((3, 8, 12, 16)), 1)
        self.point = unit(rng.standard_normal((40, 8)), 1)
        self.pair_point = rng.integers(0, 40, 60)
        pixel = np.stack([rng.integers(0, 3, 60), rng.integers(0, 12, 60), rng.integers(0, 16, 60)], 1)
        encoder = np.abs(rng.standard_normal((3, 10, 6, 8)))
        self.text = unit(rng.standard_normal((9, 8)), 1)
        self.regions = [(i, j, rng.integers(0, 9)) for i in range(3) for j in range(6)]
        self.region_feature = rng.standard_normal((18, 8))
        name = segment + 7 * np.arange(3)[:, None, None]
        self.of_pixel, self.of_pair = name.ravel(), name[tuple(pixel.T)]
        self.held = np.bincount(self.of_pair, minlength=21) > 0
        self.k = pool(self.of_pair, self.point[self.pair_point])
        self.q = pool(self.of_pixel, self.pixel.transpose(0, 2, 3, 1).reshape(-1, 8))
        feature = pool(name[:, ::2, ::2].ravel(), encoder.transpose(0, 2, 3, 1).reshape(-1, 10))[self.held]
        self.alpha = unit(feature, 1) @ unit(feature, 1).T


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


def tensors(*arrays: Array, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(a, dtype=dtype) for a in arrays]


def tolerant_formula(
    k: Array, q: Array, alpha: Array, low: float, balanced: bool = False, excluded: bool = False, count: int = 0
) -> float:
    """ST-SLidR's loss, written row by row."""
    n, losses, votes = len(k), [], []
    for i in range(n):
        w = 1 - np.clip(alpha[i], 0, 1)
        if count:
            others = sorted((j for j in range(n) if j != i), key=lambda j: -alpha[i, j])
            w = np.array([0.0 if j in others[:count] else 1.0 for j in range(n)])
        elif low:
            w = ((w >= np.quantile(w, low)) & (w != 0)).astype(float)
        w[i] = 1
        z = q @ k[i] / TAU * w
        kept = (w != 0) if excluded else np.ones(n, bool)
        losses.append(np.log(np.exp(z[kept]).sum()) - z[i])
        votes.append(sum(a for a in alpha[i] if a >= 0.5))
    if not balanced:
        return float(np.mean(losses))
    v = np.array(votes) - min(votes)
    weight = 1 - v / v.max() if v.max() > 0 else np.ones(n)
    return float((weight * losses).sum() / weight.sum())


def numeric_gradient(function: Callable[[Array], float], at: Array) -> Array:
    gradient, step = np.zeros_like(at), 1e-6
    for where in np.ndindex(at.shape):
        sides = []
        for sign in (1, -1):
            moved = at.copy()
            moved[where] += sign * step
            sides.append(function(moved))
        gradient[where] = (sides[0] - sides[1]) / (2 * step)
    return gradient


def test_pooling_is_a_sum_over_the_count_and_leaves_out_what_belongs_to_none(published: Published) -> None:
    point, of_pair = published.point[published.pair_point], published.of_pair
    (value,) = tensors(point)
    np.testing.assert_allclose(segment_mean(value, torch.tensor(of_pair), 21), published.k, atol=1e-14)
    none = np.where(np.arange(60) % 3 == 0, -1, of_pair)
    expected = pool(none[none >= 0], point[none >= 0])
    np.testing.assert_allclose(segment_mean(value, torch.tensor(none), 21), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("quantile", "plain", "balanced"),
    [
        (0.0, 2.961327884144, 2.929186951284),
        (0.01, 3.207975901288, 3.148645568529),
        (0.2, 3.172756188557, 3.119569019718),
    ],
)
def test_the_tolerant_contrast_has_the_values_of_the_authors_function(
    published: Published, quantile: float, plain: float, balanced: float
) -> None:
    k, q, alpha = tensors(published.k[published.held], published.q[published.held], published.alpha)
    assert tolerant_contrast(k, q, alpha, TAU, quantile).item() == pytest.approx(plain, abs=EXACT)
    assert tolerant_contrast(k, q, alpha, TAU, quantile, balanced=True).item() == pytest.approx(balanced, abs=EXACT)


def test_excluded_negatives_are_out_of_the_sum(published: Published) -> None:
    k, q, alpha = tensors(published.k[published.held], published.q[published.held], published.alpha)
    assert tolerant_contrast(k, q, alpha, TAU, 0.2, "excluded").item() == pytest.approx(3.043350419428, abs=EXACT)


SETTINGS = [
    {"quantile": 0.0},
    {"quantile": 0.01},
    {"quantile": 0.3},
    {"quantile": 0.0, "balanced": True},
    {"quantile": 0.3, "balanced": True},
    {"quantile": 0.3, "dropped": "excluded"},
    {"quantile": 0.3, "dropped": "excluded", "balanced": True},
    {"count": 3},
    {"count": 3, "dropped": "excluded", "balanced": True},
]


def by_formula(k: Array, q: Array, alpha: Array, setting: dict) -> float:  # type: ignore[type-arg]
    return tolerant_formula(
        k,
        q,
        alpha,
        setting.get("quantile", 0.0),
        setting.get("balanced", False),
        setting.get("dropped") == "excluded",
        setting.get("count", 0),
    )


def random_rows(seed: int, rows: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    feature = unit(np.abs(rng.standard_normal((rows, 6))), 1)
    return rng.standard_normal((rows, 5)) / 3, rng.standard_normal((rows, 5)) / 3, feature @ feature.T


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_tolerant_contrast_and_its_gradients_are_the_formulas(setting: dict) -> None:  # type: ignore[type-arg]
    k, q, alpha = random_rows(3, 14)
    tk, tq, ta = (x.requires_grad_() for x in tensors(k, q, alpha))
    loss = tolerant_contrast(tk, tq, ta, TAU, **setting)
    assert loss.item() == pytest.approx(by_formula(k, q, alpha, setting), abs=EXACT)
    loss.backward()
    assert ta.grad is None, "a gradient in the similarities"
    np.testing.assert_allclose(tk.grad, numeric_gradient(lambda x: by_formula(x, q, alpha, setting), k), atol=1e-8)
    np.testing.assert_allclose(tq.grad, numeric_gradient(lambda x: by_formula(k, x, alpha, setting), q), atol=1e-8)


def test_gradients_of_the_published_values_are_those_of_the_formula(published: Published) -> None:
    k, q = published.k[published.held], published.q[published.held]
    for setting in ({"quantile": 0.2}, {"quantile": 0.0, "balanced": True}, {"quantile": 0.2, "dropped": "excluded"}):
        tk, tq, ta = (x.requires_grad_() for x in tensors(k, q, published.alpha))
        tolerant_contrast(tk, tq, ta, TAU, **setting).backward()  # type: ignore[arg-type]
        for found, at, of in (
            (tk.grad, k, lambda x, s=setting: by_formula(x, q, published.alpha, s)),
            (tq.grad, q, lambda x, s=setting: by_formula(k, x, published.alpha, s)),
        ):
            np.testing.assert_allclose(found, numeric_gradient(of, at), atol=1e-8)


def test_under_a_hundred_rows_one_percent_is_slidrs_loss() -> None:
    k, q, alpha = tensors(*random_rows(4, 80))
    assert tolerant_contrast(k, q, alpha, TAU).item() == pytest.approx(info_nce(k, q, TAU).item(), abs=EXACT)


def test_one_row_and_equal_votes_divide_nothing_by_zero() -> None:
    k, q, alpha = tensors(*random_rows(5, 6))
    one = tolerant_contrast(k[:1], q[:1], alpha[:1, :1], TAU, balanced=True)
    assert one.item() == pytest.approx(0, abs=EXACT)
    apart = torch.eye(6, dtype=torch.float64)
    for equal in (apart, torch.full_like(apart, 0.8) + 0.2 * apart, torch.zeros_like(apart)):
        plain = tolerant_contrast(k, q, equal, TAU, 0.0)
        assert tolerant_contrast(k, q, equal, TAU, 0.0, balanced=True).item() == pytest.approx(plain.item(), abs=EXACT)


def test_more_negatives_than_there_are_leave_the_anchor_alone() -> None:
    k, q, alpha = tensors(*random_rows(6, 5))
    assert tolerant_contrast(k, q, alpha, TAU, dropped="excluded", count=99).item() == pytest.approx(0, abs=EXACT)
    z = (k * q).sum(1) / TAU
    zero_logits = (torch.log(z.exp() + 4) - z).mean()
    assert tolerant_contrast(k, q, alpha, TAU, count=99).item() == pytest.approx(zero_logits.item(), abs=EXACT)


def test_uovs_text_term_has_the_published_value_and_the_formulas_gradient(published: Published) -> None:
    kept = published.held & (np.arange(21) % 7 != 0)
    row = np.array([(i * 7 + j + 1, c) for i, j, c in published.regions])
    on = kept[row[:, 0]]
    phrase, text = row[on, 1], published.text
    category = np.repeat([0, 1, 2], [3, 2, 4])
    same = (category[:, None] == category[None, :]).astype(float)
    target = 0.2 * np.eye(9)[phrase] + 0.8 * (text @ text.T * same)[phrase]
    target /= target.sum(1, keepdims=True)
    k, feature = published.k[kept], unit(published.region_feature[on], 1)
    tk, anchor, share, e = tensors(k, text, target, feature)
    tk.requires_grad_()
    found = soft_target_cross_entropy(tk, anchor, share, TAU)
    assert found.item() == pytest.approx(1.079160361, abs=1e-9)
    image = info_nce(tk.detach(), e, TAU)
    assert 0.5 * image.item() + 0.5 * found.item() == pytest.approx(3.114134107548, abs=EXACT)
    found.backward()

    def formula(x: Array) -> float:
        return float(cross_entropy(x @ text.T / TAU, target).mean())

    np.testing.assert_allclose(tk.grad, numeric_gradient(formula, k), atol=1e-8)


class Scans:
    """Points of two scans and the segments that they share."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.segment = rng.integers(-1, 5, 60), rng.integers(-1, 5, 60)
        self.feature = unit(rng.standard_normal((60, 8)), 1), unit(rng.standard_normal((60, 8)), 1)

    def mean(self, scan: int) -> Array:
        f, s = self.feature[scan], self.segment[scan]
        return np.stack([f[s == i].mean(0) for i in range(5)])

    def contrast(self, scan: int, prototype: Array, average: str = "points") -> float:
        f, s, m = *tensors(self.feature[scan]), torch.tensor(self.segment[scan]), *tensors(prototype)
        return segment_contrast(f, s, m, TAU, average).item()  # type: ignore[arg-type]


def test_seals_terms_have_the_published_values() -> None:
    scans = Scans()
    means = [scans.mean(0), scans.mean(1)]
    assert scans.contrast(0, means[1]) == pytest.approx(2.303871515093, abs=EXACT)
    assert scans.contrast(0, means[1], "segments") == pytest.approx(2.251093329012, abs=EXACT)
    both = scans.contrast(0, means[1]) + scans.contrast(1, means[0])
    assert both == pytest.approx(4.674823056641, abs=EXACT)
    assert scans.contrast(0, means[0]) == pytest.approx(1.421835904712, abs=EXACT)
    assert scans.contrast(0, means[0], "segments") == pytest.approx(1.442928507812, abs=EXACT)
    f, s = scans.feature[0], scans.segment[0]
    highest = np.stack([f[s == i].max(0) for i in range(5)])
    assert scans.contrast(0, highest) == pytest.approx(2.463400699247, abs=EXACT)
    first, second = (
        segment_contrast(a, torch.arange(5), b, TAU).item()
        for a, b in (tensors(means[0], means[1]), tensors(means[1], means[0]))
    )
    assert first == pytest.approx(1.657673613361, abs=EXACT)
    assert first + second == pytest.approx(3.357228417957, abs=EXACT)


@pytest.mark.parametrize("average", ["points", "segments"])
def test_the_segment_contrasts_gradients_are_the_formulas(average: str) -> None:
    rng = np.random.default_rng(8)
    segment = rng.integers(-1, 3, 40)  # no point in the last one
    f, m = unit(rng.standard_normal((40, 5)), 1), rng.standard_normal((4, 5)) / 2

    def formula(f: Array, m: Array) -> float:
        kept = segment >= 0
        each = cross_entropy(f[kept] @ m.T / TAU, np.eye(4)[segment[kept]])
        if average == "points":
            return float(each.mean())
        return float(np.mean([each[segment[kept] == i].mean() for i in range(3)]))

    tf, tm = (x.requires_grad_() for x in tensors(f, m))
    loss = segment_contrast(tf, torch.tensor(segment), tm, TAU, average)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(formula(f, m), abs=EXACT)
    loss.backward()
    np.testing.assert_allclose(tf.grad, numeric_gradient(lambda x: formula(x, m), f), atol=1e-8)
    np.testing.assert_allclose(tm.grad, numeric_gradient(lambda x: formula(f, x), m), atol=1e-8)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_float32_and_under_autocast_they_agree_to_1e_4(autocast: bool) -> None:
    k, q, alpha = random_rows(9, 300)
    target = unit(np.abs(q), 1)
    target /= target.sum(1, keepdims=True)
    segment = torch.arange(300) % 5

    def losses(dtype: torch.dtype) -> list[float]:
        a, b, c, t = tensors(k, q, alpha, target, dtype=dtype)
        return [
            tolerant_contrast(a, b, c, TAU, 0.02).item(),
            tolerant_contrast(a, b, c, TAU, 0.02, "excluded", balanced=True).item(),
            tolerant_contrast(a, b, c, TAU, 0.0).item(),
            segment_contrast(a, segment, b[:5], TAU, "segments").item(),
            soft_target_cross_entropy(a, b[:5], t, TAU).item(),
        ]

    expected = losses(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = losses(torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_shapes_and_names_that_do_not_fit_are_refused() -> None:
    k, q, alpha = tensors(*random_rows(2, 6))
    with pytest.raises(OlivineError, match="not S matching rows"):
        tolerant_contrast(k, q, alpha[:5], TAU)
    with pytest.raises(OlivineError, match="Use zero_logit or excluded"):
        tolerant_contrast(k, q, alpha, TAU, dropped="none")  # type: ignore[arg-type]
    with pytest.raises(OlivineError, match="do not fit"):
        segment_contrast(k, torch.arange(6), q[:5], TAU)
    with pytest.raises(OlivineError, match="0 of them in one"):
        segment_contrast(k, torch.full((6,), -1), q, TAU)
    with pytest.raises(OlivineError, match="do not fit"):
        soft_target_cross_entropy(k, q, alpha[:, :5], TAU)
