"""The consistency term over a run of the paper's schedule at reduced length: R̄, κ, and its gradient beside L_ppkt's.

The method is the trainer's own, with a preset's settings; network and pictures are made up: unit embeddings of 14 classes
that tighten around their class means from almost even to almost a point, most of it within a quarter of the warm-up, one,
or four, and pixels that come to agree with their points. Pairs of a group and drawn pairs are a quarter of the paper's.
Printed is, at some steps, the largest over classes of the resultant length of the embeddings themselves, of the moving
average's R̄ and of κ; κ that the bias correction would have given; and how hard L_kl pulls on an embedding, against
L_ppkt: the mean over its pairs of N · ‖∂L/∂x‖ (x: the head's output before it is normalised, of length 1), and the norm
of the whole gradient, where L_kl is spread over all pairs and L_ppkt over the drawn ones. Weights of the terms are left
out.

What is checked at every step against something else: R̄ by the sum that eq. 6 stands for, κ by the exact solution of
A_p(κ) = R̄ (Sra's estimate is within 2 %), both gradients by their closed forms. The claims: κ ≤ 67 throughout; gradients
within the ratio 1 while R̄ ≤ 0.63.

    python benchmarks/scr_schedule.py [--config paper] [--steps 200] [--warmups 0.25 1 4]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ive
from torch import Tensor, nn

from olivine.train.backbone import unit_rows
from olivine.train.method import Context
from olivine.train.methods.olivine import Olivine
from olivine.train.sampling import draw_without_replacement, generator_of
from olivine.train.settings import load_settings

CLASSES, P = 14, 64
TIGHT = (0.1, 0.98)
"""Resultant length of a class's embeddings at the start and at the end of the run."""
AGREE = (0.1, 0.95)
"""Share of a pixel's place around the class mean that is its point's own."""


class MadeUpGroup:
    """A contrast group of made-up embeddings, as a method sees it.

    Args:
        label: int64 [M], of the pairs.
        point, pixel: [M, P], the outputs of the heads before they are normalised.
        key: (seed, step, group).
    """

    def __init__(self, label: Tensor, point: Tensor, pixel: Tensor, key: tuple[int, int, int]) -> None:
        self.step, self.size, self.key, self.label = key[1], len(label), key, label
        self.class_count = torch.bincount(label, minlength=CLASSES)
        # The term reads the second head's, L_ppkt the first's.
        self.first, self.second = (point.clone().requires_grad_() for _ in range(2))
        self.pixel, self.points, self.pixels = pixel, self, self
        self.heads: tuple[nn.Module, nn.Module]

    def at(self, *rows: Tensor | nn.Module, dtype: torch.dtype | None = None) -> Tensor | tuple[Tensor, ...]:
        """``points.at(rows, head)`` or ``pixels.at(draw, draw)``."""
        if dtype is not None:
            return tuple(self.pixel[draw] for draw in rows)  # type: ignore[index]
        return unit_rows((self.first if rows[1] is self.heads[0] else self.second)[rows[0]])  # type: ignore[index]

    def column(self, name: str, *, host: bool = False) -> Tensor:
        """The pairs' labels."""
        assert name == "pair_label"
        return self.label

    def by_class(self, label: Tensor, classes: int, head: nn.Module) -> tuple[Tensor, Tensor]:
        """A voxel for each pair."""
        assert head is self.heads[1]
        return unit_rows(self.second), nn.functional.one_hot(label, classes)

    def generator(self, draw: int) -> torch.Generator:
        """Made of (seed, step, group, draw)."""
        return generator_of(*self.key, draw)


@dataclass(frozen=True)
class Moment:
    """A step.

    Attributes:
        length: of the embeddings' class means; ``average`` R̄ of the moving average; ``kappa`` its κ; ``corrected`` κ with
            the bias correction: the largest over the classes.
        pull: mean over pairs of N · ‖∂L_kl/∂x‖, nan before the term is on; ``pull_ppkt`` of L_ppkt.
        whole, whole_ppkt: norms of the whole gradients.
    """

    step: int
    length: float
    average: float
    kappa: float
    corrected: float
    pull: float
    pull_ppkt: float
    whole: float
    whole_ppkt: float


def embeddings(progress: float, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, points and pixels of ``pairs`` pairs after a share ``progress`` of the run: int64 [M], float32 [M, P]."""
    center = unit_rows(torch.randn(CLASSES, P, generator=torch.Generator().manual_seed(0)))
    label = torch.randint(CLASSES, (pairs,), generator=generator)
    wanted, agree = (low + (high - low) * progress for low, high in (TIGHT, AGREE))
    spread = math.sqrt(1 / wanted**2 - 1)  # of unit noise around a unit mean
    own, other = (torch.randn(pairs, P, generator=generator) / math.sqrt(P) for _ in range(2))
    point = center[label] + spread * own
    pixel = center[label] + spread * (agree * own + math.sqrt(1 - agree**2) * other)
    return label, unit_rows(point), unit_rows(pixel)


def exact_kappa(length: float) -> float:
    """The solution of A_p(κ) = I_{p/2}(κ) / I_{p/2−1}(κ) = R̄."""
    return float(brentq(lambda k: ive(P / 2, k) / ive(P / 2 - 1, k) - length, 1e-3, 1e6))


def tangential(vector: Tensor, x: Tensor) -> Tensor:
    """What is left of ``vector`` beside the unit rows ``x``."""
    return vector - (vector * x).sum(1, keepdim=True) * x


def run(config: str, steps: int, warmups: float, pairs: int = 12_000, drawn: int = 1024) -> tuple[list[Moment], int]:
    """The moments of a run and the length of its warm-up; every figure is compared with another evaluation of it.

    Args:
        warmups: the embeddings have come to 1 − 1/e of their way after so many warm-ups.
        pairs, drawn: of a group.
    """
    settings = load_settings(config)
    method_settings = replace(settings.method, wcd=False, pairs=drawn)  # type: ignore[call-arg]
    context = Context(lambda width: nn.Identity(), P, tuple(map(str, range(CLASSES))), steps, 0.1)
    method = Olivine(method_settings, context).train()
    nn.init.eye_(method.pixel_head.weight)
    nn.init.zeros_(method.pixel_head.bias)
    assert method.category_point_head is not None
    moments, means = [], []
    for step in range(steps):
        progress = 1 - math.exp(-step / (warmups * method.warmup))
        label, point, pixel = embeddings(progress, pairs, torch.Generator().manual_seed(step))
        group = MadeUpGroup(label, point, pixel, (0, step, 0))
        group.heads = (method.point_head, method.category_point_head)
        terms = method(group)
        terms["ppkt"].value.backward()
        assert group.first.grad is not None
        pull, whole = math.nan, math.nan
        if "scr" in terms:
            terms["scr"].value.backward()
            assert group.second.grad is not None
            pull = float(pairs * group.second.grad.norm(dim=1).mean())
            whole = float(group.second.grad.norm())
            direction, kappa, _ = method.statistics.parameters_of_classes()
            if method_settings.kl_average == "pairs":
                expected = -tangential((kappa[:, None] * direction)[label].float(), point) / pairs
                torch.testing.assert_close(group.second.grad, expected, rtol=1e-3, atol=1e-6)
        rows = draw_without_replacement(None, pairs, drawn, generator_of(0, step, 0, 0))
        x = point[rows].clone().requires_grad_()
        z = nn.functional.normalize(x, dim=1) @ pixel[rows].T / method_settings.temperature
        nn.functional.cross_entropy(z, torch.arange(drawn)).backward()
        assert x.grad is not None
        torch.testing.assert_close(group.first.grad[rows], x.grad, rtol=1e-3, atol=1e-6)
        method.after_step(step, lambda value: value)
        method.log(step, lambda value: value)  # begins the next step

        class_mean = torch.stack([point[label == c].double().mean(0) for c in range(CLASSES)])
        if step < method.warmup:
            means.append(class_mean)
        n, alpha = len(means), method.statistics.alpha
        weights = torch.tensor([alpha * (1 - alpha) ** (n - 1 - k) for k in range(n)], dtype=torch.float64)
        average = (weights[:, None, None] * torch.stack(means)).sum(0)
        torch.testing.assert_close(method.statistics.mean, average, rtol=1e-5, atol=1e-7)
        length = average.norm(dim=1)
        _, kappa, _ = method.statistics.parameters_of_classes()
        exact = np.array([exact_kappa(value) for value in length.tolist()])
        np.testing.assert_allclose(kappa.numpy(), exact, rtol=0.02)
        moments.append(
            Moment(
                step,
                float(class_mean.norm(dim=1).max()),
                float(length.max()),
                float(kappa.max()),
                exact_kappa(min(0.9999, float(length.max() / (1 - (1 - alpha) ** n)))),
                pull,
                float(drawn * x.grad.norm(dim=1).mean()),
                whole,
                float(x.grad.norm()),
            )
        )
    return moments, method.warmup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="paper")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--warmups", type=float, nargs="+", default=[0.25, 1.0, 4.0], help="how fast embeddings tighten"
    )
    options = parser.parse_args()
    for warmups in options.warmups:
        moments, warmup = run(options.config, options.steps, warmups)
        print(
            f"\n{options.config}, {options.steps} steps, warm-up of {warmup}; embeddings tighten in {warmups:g} warm-ups"
        )
        print("step  embeddings'     R̄      κ  corrected   pull of L_kl  of L_ppkt   ratio   of whole gradients")
        shown = {0, warmup // 4, warmup // 2, warmup - 1, *range(warmup, options.steps, max(1, options.steps // 8))}
        for m in (moments[k] for k in sorted({*shown, options.steps - 1})):
            print(
                f"{m.step:4d}  {m.length:11.3f} {m.average:6.3f} {m.kappa:6.1f} {m.corrected:10.1f} {m.pull:14.2f} "
                f"{m.pull_ppkt:10.2f} {m.pull / m.pull_ppkt:7.2f} {m.whole / m.whole_ppkt:12.2f}"
            )
        kappa, average = max(m.kappa for m in moments), max(m.average for m in moments)
        print(f"κ ≤ 67 throughout: {kappa <= 67} (largest {kappa:.1f}; R̄ at most {average:.3f})")
        on = [m for m in moments if not math.isnan(m.pull) and m.average <= 0.63]
        for name, ratios in (
            ("a pair's", [m.pull / m.pull_ppkt for m in on]),
            ("the whole gradient's", [m.whole / m.whole_ppkt for m in on]),
        ):
            print(f"{name} ratio within 1 while R̄ ≤ 0.63: {max(ratios) <= 1} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
