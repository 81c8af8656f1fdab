"""Promises of the von Mises-Fisher functions (eq. 3-5, 10-13), against mpmath."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import mpmath
import pytest
import torch

from olivine.train.methods._vmf_statistics import VmfStatistics
from olivine.train.vmf import effective_rank, estimate_kappa, gram_of, log_normalizer, rank_of_gram

KAPPAS = [10.0**e for e in (-6, -5, -4, -3, -2, -1, -0.3, 0, 0.5, 1, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6)]


def exact_log_normalizer(kappa: float, p: int) -> mpmath.mpf:
    with mpmath.workdps(60):
        k, v = mpmath.mpf(kappa), mpmath.mpf(p) / 2 - 1
        return v * mpmath.log(k) - mpmath.mpf(p) / 2 * mpmath.log(2 * mpmath.pi) - mpmath.log(mpmath.besseli(v, k))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_log_normalizer_in_64_dimensions_is_right_to_a_billionth(kappa: float) -> None:
    found = log_normalizer(torch.tensor(kappa, dtype=torch.float64), 64).item()
    exact = exact_log_normalizer(kappa, 64)
    assert abs((found - exact) / exact) < 1e-12


# Of 768 and 4,096 dimensions the scaled Bessel function underflows up to a κ of about 90 and 1,100.
@pytest.mark.parametrize("p", [2, 3, 16, 17, 64, 128, 768, 4096])
def test_the_log_normalizer_in_other_dimensions(p: int) -> None:
    values = torch.tensor([1e-6, 1e-2, 0.999, 1.0, 30.0, 85.0, 95.0, 299.0, 1050.0, 1150.0, 1e4, 1e6])
    found = log_normalizer(values.double().view(3, 4), p)
    assert found.shape == (3, 4)
    for value, one in zip(values.double().tolist(), found.flatten().tolist()):
        exact = exact_log_normalizer(value, p)
        assert abs(one - exact) < 1e-11 * max(1, abs(exact)), value


def test_at_zero_the_density_is_uniform() -> None:
    area = 2 * math.pi**32 / math.gamma(32)  # of the unit sphere in R^64
    found = log_normalizer(torch.zeros(3, dtype=torch.float64), 64)
    torch.testing.assert_close(found, torch.full((3,), -math.log(area), dtype=torch.float64))


def test_the_density_integrates_to_one_in_three_dimensions() -> None:
    kappa = 4.0
    cosine = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    density = torch.exp(log_normalizer(torch.tensor(kappa, dtype=torch.float64), 3) + kappa * cosine)
    assert 2 * math.pi * torch.trapezoid(density, cosine).item() == pytest.approx(1, abs=1e-9)


def test_float32_in_gives_float32_out_without_overflow() -> None:
    found = log_normalizer(torch.tensor([1e-6, 1.0, 1e6]), 64)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_sras_estimate_is_the_papers_formula_and_close_to_the_solution() -> None:
    for r in (0.05, 0.3, 0.5, 0.9, 0.99):
        kappa = estimate_kappa(torch.tensor(r, dtype=torch.float64), 64)
        assert kappa.item() == pytest.approx(r * (64 - r**2) / (1 - r**2), rel=1e-12)
        solution = mpmath.besseli(32, kappa.item()) / mpmath.besseli(31, kappa.item())  # A_p(κ), eq. 12
        assert float(solution) == pytest.approx(r, abs=2e-3)
    assert estimate_kappa(torch.tensor(0.0), 64) == 0
    assert estimate_kappa(torch.tensor(1.0), 64) == math.inf


def unit(n: int, p: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, p, generator=generator), dim=1)


def sums_of(g: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    """Sum of the embeddings and number of pairs of each class, float64 [classes, p + 1]."""
    wide = torch.nn.functional.pad(g.double(), (0, 1), value=1)
    return torch.zeros(classes, wide.shape[1], dtype=torch.float64).index_add_(0, label, wide)


def test_the_moving_average_follows_its_definition_and_unseen_classes_are_left_out() -> None:
    statistics = VmfStatistics(4, 8, alpha=0.1, bias_correction=False)
    expected = [torch.zeros(8, dtype=torch.float64) for _ in range(4)]
    for step in range(12):
        g, label = unit(50, 8, step), torch.arange(50) % 3  # class 3 never occurs
        if step % 2:
            g, label = g[label != 2], label[label != 2]  # class 2 every other step
        sums = sums_of(g, label, 4)
        statistics.update(sums, sums[:, -1].long())
        for c in label.unique().tolist():
            expected[c] = 0.9 * expected[c] + 0.1 * g[label == c].double().mean(0)
    torch.testing.assert_close(statistics.mean, torch.stack(expected))
    assert statistics.update_count.tolist() == [12, 12, 6, 0]
    direction, kappa, seen = statistics.parameters_of_classes()
    assert seen.tolist() == [True, True, True, False]
    assert torch.isfinite(kappa).all() and kappa[3] == 0
    r = expected[0].norm()
    assert kappa[0].item() == pytest.approx(float(r * (8 - r**2) / (1 - r**2)))
    torch.testing.assert_close(direction[0], expected[0] / r)


def test_bias_correction_recovers_a_constant_mean_and_the_reference_reading_is_bounded() -> None:
    g = unit(1, 16, 3)
    corrected, plain = VmfStatistics(1, 16, 1e-4, bias_correction=True), VmfStatistics(1, 16, 1e-4)
    for statistics in (corrected, plain):
        for _ in range(100):
            sums = sums_of(g, torch.zeros(1, dtype=torch.int64), 1)
            statistics.update(sums, torch.ones(1, dtype=torch.int64))
    assert corrected.parameters_of_classes()[1].item() > 1e4  # R̄ = 1: a collapsed class, and still finite
    assert math.isfinite(corrected.parameters_of_classes()[1].item())
    assert plain.mean.norm().item() == pytest.approx(1 - (1 - 1e-4) ** 100)


@pytest.mark.parametrize("steps", [50, 1000])
def test_after_a_warm_up_kappa_is_at_most_67_however_long_and_however_tight(steps: int) -> None:
    """α = 1 / steps, embeddings that tighten to a point as training takes them there (p = 64)."""
    statistics = VmfStatistics(3, 64, 1 / steps)
    center = unit(3, 64, 0)
    for step in range(steps):
        spread = 0.3 * (1 - step / steps)
        label = torch.arange(300) % 3
        noise = torch.randn(300, 64, generator=torch.Generator().manual_seed(step))
        g = torch.nn.functional.normalize(center[label] + spread * noise, dim=1)
        sums = sums_of(g, label, 3)
        statistics.update(sums, sums[:, -1].long())
    _, kappa, seen = statistics.parameters_of_classes()
    assert seen.all() and kappa.max() <= 67
    # At R̄ = 0.63 the pull of L_kl on an embedding is κ over the number of pairs; L_ppkt's is at most 2 / τ = 28.6.
    assert kappa.max() / (2 / 0.07) < 2.4


def test_over_a_run_of_the_papers_schedule_kappa_stays_bounded() -> None:
    """The program compares R̄, κ and both gradients with other evaluations of them at every step."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "scr_schedule.py"
    spec = importlib.util.spec_from_file_location("scr_schedule", path)
    assert spec is not None and spec.loader is not None
    program = sys.modules["scr_schedule"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    moments, warmup = program.run("paper", 100, 1.0, 2400, 256)
    assert warmup == 11 and [math.isnan(m.pull) for m in moments] == [True] * 11 + [False] * 89
    assert moments[-1].length > 0.95 and max(m.average for m in moments) <= 0.63
    assert max(m.kappa for m in moments) <= 67


def test_the_public_codes_average_over_gpus_of_which_one_lacks_a_class() -> None:
    """Four processes keep a z̄_c of their own, and average them after each step; class 1 is seen by the first alone."""
    alpha, theirs = 0.05, torch.zeros(2, 8, dtype=torch.float64)
    ours = VmfStatistics(2, 8, alpha)
    for step in range(40):
        copies, total, places = [], torch.zeros(2, 9, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
        for gpu in range(4):
            g = unit(20, 8, 100 * step + gpu)
            label = (torch.arange(20) % 2) * (gpu == 0)
            own = theirs.clone()
            for c in label.unique().tolist():
                own[c] = (1 - alpha) * own[c] + alpha * g[label == c].double().mean(0)
            copies.append(own)
            sums = sums_of(g, label, 2)
            count = sums[:, -1:]
            total += torch.cat([sums[:, :-1] / count.clamp(min=1), (count > 0).double()], 1)
            places += count[:, 0].long()
        theirs = torch.stack(copies).mean(0)
        ours.update(total, places, groups=4)
    torch.testing.assert_close(ours.mean, theirs)


def test_a_class_seen_in_one_voxel_has_no_distribution() -> None:
    statistics = VmfStatistics(2, 8, 0.1, bias_correction=True)
    g = unit(2, 8, 0)
    sums = sums_of(g, torch.tensor([0, 1]), 2)
    statistics.update(sums, torch.tensor([2, 1]))
    _, kappa, seen = statistics.parameters_of_classes()
    assert seen.tolist() == [True, False] and kappa[1] == 0


def test_the_effective_rank_of_rows_that_stand_for_several_is_that_of_all() -> None:
    g, number = unit(50, 8, 3), torch.arange(50) % 4
    found = rank_of_gram(gram_of(g, number))
    assert found == pytest.approx(effective_rank(g.repeat_interleave(number, 0)), rel=1e-5)
    assert abs(found - effective_rank(g)) > 0.01


def test_the_effective_rank_is_the_number_of_even_directions() -> None:
    eye = torch.eye(6, 10).repeat(7, 1)
    assert effective_rank(eye) == pytest.approx(6)
    assert effective_rank(torch.ones(5, 10)) == pytest.approx(1)
