"""Promises of the losses (eq. 1, 2, 10): values and gradients against plain float64 loops, on easy and hard inputs."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

import olivine.train.objectives as objectives
from olivine.common import OlivineError
from olivine.train.objectives import class_sums, consistency, info_nce, weakly_supervised_contrast
from olivine.train.vmf import log_normalizer

TAU = 0.07


def unit(n: int, p: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, p, generator=generator, dtype=torch.float64), dim=1)


# --- the equations, pair by pair ---------------------------------------------------------------------------------


def plain_info_nce(g: Tensor, f: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(g)):
        ratio = torch.exp(g[i] @ f[i] / TAU) / sum(torch.exp(g[i] @ f[j] / TAU) for j in range(len(f)))
        total = total - torch.log(ratio)
    return total / len(g)


def plain_wcd(g: Tensor, f: Tensor, label: Tensor, form: str, w: Tensor | None = None) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    w = torch.ones(len(g), dtype=torch.float64) if w is None else w / w.mean()
    for i in range(len(g)):
        weight = [torch.exp(g[i] @ f[j] / TAU) for j in range(len(f))]
        same = [j for j in range(len(f)) if label[j] == label[i]]
        if form == "paper":
            total = total - w[i] * sum(w[j] * torch.log(weight[j] / sum(weight)) for j in same) / sum(
                w[j] for j in same
            )
        else:
            total = total - w[i] * torch.log(sum(w[j] * weight[j] for j in same) / sum(weight))
    return total / len(g)


def plain_vmf(g: Tensor, label: Tensor, direction: Tensor, kappa: Tensor, seen: Tensor, average: str) -> Tensor:
    p = g.shape[1]
    values: dict[int, list[Tensor]] = {}
    for i in range(len(g)):
        c = int(label[i])
        if not seen[c]:
            continue
        with mpmath.workdps(50):
            k, v = mpmath.mpf(float(kappa[c])), mpmath.mpf(p) / 2 - 1
            constant = mpmath.gamma(v + 1) * mpmath.mpf(2) ** v / (2 * mpmath.pi) ** (mpmath.mpf(p) / 2)
            if k > 0:
                constant = k**v / ((2 * mpmath.pi) ** (mpmath.mpf(p) / 2) * mpmath.besseli(v, k))
            log_constant = float(mpmath.log(constant))
        values.setdefault(c, []).append(-log_constant - kappa[c] * (direction[c] @ g[i]))
    if average == "classes":
        return sum(sum(v) / len(v) for v in values.values()) / len(values)
    every = [x for v in values.values() for x in v]
    return sum(every) / len(every)


def by_class(g: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums over each class's pairs and their number, where every pair has an embedding of its own."""
    pairs = torch.nn.functional.one_hot(label, classes)
    return class_sums(g, pairs), pairs.sum(0)


LABELS = {
    "random": torch.tensor([3, 1, 1, 0, 3, 3, 7, 1, 0, 3, 1, 7, 3, 3, 0]),
    "one class": torch.full((15,), 4),
    "every class once": torch.arange(15),
}


def compare(found, expected, inputs: list[Tensor], rel: float = 1e-9) -> None:  # type: ignore[no-untyped-def]
    """Same value and same gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    again = [x.clone().requires_grad_() for x in inputs]
    a, b = found(*leaves), expected(*again)
    assert a.item() == pytest.approx(b.item(), rel=rel, abs=1e-10)
    for x, y in zip(torch.autograd.grad(a, leaves), torch.autograd.grad(b, again)):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


EMBEDDINGS = {
    "random": (unit(15, 8, 1), unit(15, 8, 2)),
    "identical": (unit(1, 8, 1).expand(15, 8).contiguous(), unit(1, 8, 1).expand(15, 8).contiguous()),
    "opposite": (unit(1, 8, 1).expand(15, 8).contiguous(), -unit(1, 8, 1).expand(15, 8).contiguous()),
    "aligned": (unit(15, 8, 1), unit(15, 8, 1)),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_info_nce_is_equation_1(kind: str) -> None:
    compare(lambda g, f: info_nce(g, f, TAU), plain_info_nce, list(EMBEDDINGS[kind]))


@pytest.mark.parametrize("form", ["paper", "reference"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_the_weakly_supervised_contrast_is_equation_2_in_both_readings(kind: str, labels: str, form: str) -> None:
    label = LABELS[labels]
    compare(
        lambda g, f: weakly_supervised_contrast(g, f, label, TAU, form),  # type: ignore[arg-type]
        lambda g, f: plain_wcd(g, f, label, form),
        list(EMBEDDINGS[kind]),
    )


@pytest.mark.parametrize("form", ["paper", "reference"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_weights_count_anchors_and_positives_so_many_times(kind: str, labels: str, form: str) -> None:
    label, w = LABELS[labels], torch.linspace(0.05, 3, 15, dtype=torch.float64)
    compare(
        lambda g, f: weakly_supervised_contrast(g, f, label, TAU, form, 7 * w),  # type: ignore[arg-type]
        lambda g, f: plain_wcd(g, f, label, form, w),
        list(EMBEDDINGS[kind]),
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["paper", "reference", "diagonal"])
def test_a_temperature_that_is_learnt_has_its_gradient_and_no_second_one(form: str, weighted: bool) -> None:
    g, f = (x.clone().requires_grad_() for x in EMBEDDINGS["random"])
    weight = torch.linspace(0.5, 2, len(g), dtype=torch.float64) if weighted else None

    def loss(tau: Tensor | float) -> Tensor:
        if form == "diagonal":
            return info_nce(g, f, tau)
        return weakly_supervised_contrast(g, f, LABELS["random"], tau, form, weight)  # type: ignore[arg-type]

    tau, step = torch.tensor(0.1, dtype=torch.float64, requires_grad=True), 1e-6
    (found,) = torch.autograd.grad(loss(tau), tau)
    assert found.item() == pytest.approx((loss(0.1 + step) - loss(0.1 - step)).item() / (2 * step), rel=1e-6)
    with pytest.raises(OlivineError, match="a second derivative is not known"):
        torch.autograd.grad(loss(0.1), g, create_graph=True)


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_weights_that_are_all_alike_change_no_bit(form: str) -> None:
    g, f, label = unit(101, 16, 5).float(), unit(101, 16, 6).float(), torch.arange(101) % 7
    plain = weakly_supervised_contrast(g, f, label, TAU, form)  # type: ignore[arg-type]
    assert weakly_supervised_contrast(g, f, label, TAU, form, torch.ones(101)) == plain  # type: ignore[arg-type]


def test_with_every_class_once_both_readings_are_info_nce() -> None:
    g, f = EMBEDDINGS["random"]
    expected = info_nce(g, f, TAU)
    for form in ("paper", "reference"):
        torch.testing.assert_close(weakly_supervised_contrast(g, f, torch.arange(15), TAU, form), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["diagonal", "paper", "reference"])
def test_blocks_of_anchors_change_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g, f, label = unit(101, 16, 5), unit(101, 16, 6), torch.arange(101) % 7

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return info_nce(a, b, TAU) if form == "diagonal" else weakly_supervised_contrast(a, b, label, TAU, form)  # type: ignore[arg-type]

    whole = [x.requires_grad_() for x in (g.clone(), f.clone())]
    value = loss(*whole)
    gradient = torch.autograd.grad(value, whole)
    monkeypatch.setitem(objectives._BLOCK_VALUES, "cpu", 700)
    blocked = loss(*whole)
    torch.testing.assert_close(blocked, value)
    for a, b in zip(torch.autograd.grad(blocked, whole), gradient):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("average", ["pairs", "classes"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 43.0, 299.0, 1e4, 1e6])
def test_the_consistency_loss_is_equation_10_from_kappa_0_to_a_million(scale: float, average: str) -> None:
    g, label = unit(15, 64, 3), LABELS["random"]
    direction = unit(8, 64, 4)
    kappa = scale * torch.linspace(0.5, 1, 8, dtype=torch.float64)
    log_c = log_normalizer(kappa, 64)
    seen = torch.tensor([True, True, True, False, True, True, True, True])
    compare(
        lambda x: consistency(*by_class(x, label, 8), -log_c, kappa[:, None] * direction, seen, average),  # type: ignore[arg-type]
        lambda x: plain_vmf(x, label, direction, kappa, seen, average),
        [g],
    )


def test_no_gradient_reaches_the_statistics_and_unseen_classes_count_nothing() -> None:
    g, label = unit(6, 8, 1).requires_grad_(), torch.tensor([2, 2, 2, 2, 2, 2])
    direction, kappa = unit(3, 8, 2).requires_grad_(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    seen, pull = torch.tensor([True, True, True]), kappa[:, None] * direction
    consistency(*by_class(g, label, 3), kappa, pull, seen).backward()
    assert direction.grad is None and kappa.grad is None and g.grad is not None
    nothing = consistency(*by_class(g, label, 3), kappa, pull, torch.tensor([True, True, False]))
    assert nothing.item() == 0


def test_the_dirac_ablation_is_the_mean_cosine_distance() -> None:
    g, label, direction = unit(15, 8, 1), LABELS["random"], unit(8, 8, 9)
    expected = torch.stack([1 - direction[label[i]] @ g[i] for i in range(15)]).mean()
    found = consistency(*by_class(g, label, 8), torch.ones(8), direction, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("average", ["pairs", "classes"])
@pytest.mark.parametrize("distribution", ["vmf", "dirac"])
def test_the_consistency_of_pairs_that_share_embeddings_is_that_of_their_gathered_rows(
    distribution: str, average: str
) -> None:
    """Some places have many pairs, of several classes, some none; class 5 is in no pair, class 2 was never seen."""
    generator = torch.Generator().manual_seed(7)
    place, label = (torch.randint(0, n, (900,), generator=generator) for n in (70, 5))
    direction, kappa = unit(6, 16, 4), 60 * torch.linspace(0.1, 1, 6, dtype=torch.float64)
    seen, log_c = torch.tensor([True, True, False, True, True, True]), log_normalizer(kappa, 16)
    pairs = torch.zeros(90, 6, dtype=torch.int64)
    for row, c in zip(place.tolist(), label.tolist()):
        pairs[row, c] += 1

    def found(x: Tensor) -> Tensor:
        constant, pull = (-log_c, kappa[:, None] * direction) if distribution == "vmf" else (torch.ones(6), direction)
        return consistency(class_sums(x, pairs), pairs.sum(0), constant, pull, seen, average)  # type: ignore[arg-type]

    def gathered(x: Tensor) -> Tensor:
        cosine = (direction[label] * x[place]).sum(1)
        value = 1 - cosine if distribution == "dirac" else -log_c[label] - kappa[label] * cosine
        parts = [value[label == c] for c in range(6) if seen[c] and bool((label == c).any())]
        return torch.cat(parts).mean() if average == "pairs" else torch.stack([part.mean() for part in parts]).mean()

    one, other = (unit(90, 16, 5).requires_grad_() for _ in range(2))
    a, b = found(one), gathered(other)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)
    gradients = torch.autograd.grad(a, one)[0], torch.autograd.grad(b, other)[0]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    assert not bool(gradients[0][70:].any()) and bool(gradients[0][:70].any())


def test_float32_at_4096_pairs_agrees_with_float64() -> None:
    g, f, label = unit(4096, 64, 1), unit(4096, 64, 2), torch.arange(4096) % 14
    f = torch.nn.functional.normalize(g + 0.3 * f, dim=1)
    for form in ("paper", "reference"):
        wide = weakly_supervised_contrast(g, f, label, TAU, form)  # type: ignore[arg-type]
        narrow = weakly_supervised_contrast(g.float(), f.float(), label, TAU, form)  # type: ignore[arg-type]
        assert narrow.dtype == torch.float32
        assert narrow.item() == pytest.approx(wide.item(), rel=1e-5)
    assert info_nce(g.float(), f.float(), TAU).item() == pytest.approx(info_nce(g, f, TAU).item(), rel=1e-5)


def test_under_autocast_the_losses_stay_in_float32() -> None:
    g, f = unit(64, 16, 1).float(), unit(64, 16, 2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = info_nce(g, f, TAU)
    torch.testing.assert_close(cast, info_nce(g, f, TAU))


def test_a_sharp_temperature_does_not_overflow() -> None:
    g = unit(32, 16, 1).float().requires_grad_()
    loss = weakly_supervised_contrast(g, g.detach(), torch.arange(32) % 3, 1e-3, "reference")
    loss.backward()
    assert math.isfinite(loss.item()) and g.grad is not None and torch.isfinite(g.grad).all()


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(OlivineError, match="matching rows"):
        info_nce(unit(4, 8, 1), unit(5, 8, 1), TAU)
    with pytest.raises(OlivineError, match="labels"):
        weakly_supervised_contrast(unit(4, 8, 1), unit(4, 8, 1), torch.zeros(3), TAU)
    with pytest.raises(OlivineError, match="paper or reference"):
        weakly_supervised_contrast(unit(4, 8, 1), unit(4, 8, 1), torch.zeros(4), TAU, "other")  # type: ignore[arg-type]
