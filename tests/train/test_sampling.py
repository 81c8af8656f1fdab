"""Promises of the draws (eq. 15)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from olivine.common import OlivineError
from olivine.train.methods._batch_density import batch_density
from olivine.train.sampling import draw_without_replacement, generator_of, sampling_probability

D = torch.tensor([0.5, 0.1, 0.01, 0.2, 0.2, 1e-8])
S = torch.tensor([1, 1, 0, 3, 3, 1])
F = torch.tensor([10, 300, 0, 7])


@pytest.mark.parametrize(
    "mode, weight",
    [
        ("random", [1, 1, 1, 1, 1, 1]),
        ("density", [1 / d for d in D.double().tolist()]),
        ("category", [1 / F[s].item() for s in S]),
        ("dcas", [1 / (d * F[s].item()) for d, s in zip(D.double().tolist(), S)]),
    ],
)
def test_the_probability_is_equation_15(mode: str, weight: list[float]) -> None:
    found = sampling_probability(D, S, F, mode)  # type: ignore[arg-type]
    expected = torch.tensor(weight, dtype=torch.float64) / sum(weight)
    torch.testing.assert_close(found, expected)
    assert found.sum().item() == pytest.approx(1)


def test_a_confidence_is_one_more_factor_of_the_probability() -> None:
    score = torch.tensor([1.0, 0.5, 0.1, 0.25, 1.0, 0.75])
    weight = score.double() / D.double() / torch.tensor([300.0, 300, 10, 7, 7, 300]).double()
    found = sampling_probability(D, S, F, "dcas", score)
    torch.testing.assert_close(found, weight / weight.sum())
    torch.testing.assert_close(sampling_probability(D, S, F, "random", score), score.double() / score.double().sum())


def test_no_pairs_give_no_probabilities() -> None:
    assert sampling_probability(D[:0], S[:0], F).shape == (0,)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(OlivineError, match="one of random"):
        sampling_probability(D, S, F, "uniform")  # type: ignore[arg-type]
    with pytest.raises(OlivineError, match="not positive"):
        sampling_probability(D * 0, S, F)
    with pytest.raises(OlivineError, match="count 0"):
        sampling_probability(D, S * 0 + 2, F)


@pytest.mark.parametrize("voxel_size", [0.1, None])
def test_the_density_over_a_batch_is_scipys_of_whole_distances(voxel_size: float | None) -> None:
    """Of whole voxels, or rounded to a metre (None); Silverman's bandwidth as the public code writes it."""
    xy = np.random.default_rng(0).normal(0, 20, (3000, 2)).astype(np.float32)
    distance = np.hypot(*xy.T.astype(np.float64))
    whole = np.rint(distance) if voxel_size is None else np.floor(distance / voxel_size)
    # SciPy's factor times the unbiased standard deviation is the bandwidth.
    expected = stats.gaussian_kde(whole, 1.06 * len(whole) ** -0.2)(whole)
    np.testing.assert_allclose(batch_density(torch.from_numpy(xy), voxel_size).numpy(), expected, rtol=1e-10)


def test_a_draw_repeats_and_has_no_pair_twice() -> None:
    p = sampling_probability(D, S, F)
    first = draw_without_replacement(p, 6, 4, generator_of(1, 2, 3))
    assert first.tolist() == draw_without_replacement(p, 6, 4, generator_of(1, 2, 3)).tolist()
    assert len(set(first.tolist())) == 4
    assert any(
        draw_without_replacement(p, 6, 4, generator_of(1, 2, g)).tolist() != first.tolist() for g in range(4, 20)
    )


def test_fewer_pairs_than_asked_for_are_all_taken() -> None:
    assert draw_without_replacement(None, 3, 10, generator_of(0)).tolist() == [0, 1, 2]
    assert draw_without_replacement(None, 0, 10, generator_of(0)).tolist() == []


def test_the_draw_is_successive_sampling_without_replacement() -> None:
    """The probability of each unordered pair is P_i P_j (1/(1−P_i) + 1/(1−P_j)), as drawing one after the other has it."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    generator, n = generator_of(7), 20_000
    count: dict[tuple[int, ...], int] = {}
    for _ in range(n):
        key = tuple(draw_without_replacement(torch.from_numpy(p), 4, 2, generator).tolist())
        count[key] = count.get(key, 0) + 1
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = np.array([p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs])
    observed = np.array([count.get(pair, 0) for pair in pairs])
    assert stats.chisquare(observed, expected / expected.sum() * n).pvalue > 1e-4
