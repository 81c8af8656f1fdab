"""What a study's runs scored, and how sure differences are: over seeds, and over seeds and validation scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from .config import Claim
from .rows import Row

CONFIDENCE, POWER = 0.95, 0.8
Scores = Mapping[tuple[str, str], Mapping[int, float]]

_REDRAWN = 2000
"""Draws of seeds and scenes that an interval is made of."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its confidence interval (Student's t with n − 1 degrees of freedom).

    With one pair the interval is unbounded. ``spread`` is the standard deviation over the pairs.
    """

    mean: float
    low: float
    high: float
    pairs: int
    spread: float = 0.0

    def verdict(self, margin: float = 0.0) -> str:
        """Whether the difference is above ``margin``: ``holds``, ``does not hold``, or ``not resolved``."""
        if self.low > margin:
            return "holds"
        return "does not hold" if self.high < margin else "not resolved"


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Of two rows' scores by seed, over the seeds that both have; None where there is none."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    values = np.array([one[s] - other[s] for s in seeds])
    if len(seeds) == 1:
        return Difference(float(values[0]), -math.inf, math.inf, 1)
    from scipy.stats import t

    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = t.ppf(0.5 + CONFIDENCE / 2, len(seeds) - 1) * spread / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds), spread)


def seeds_needed(spread: float, margin: float) -> int | None:
    """The fewest seeds with which a true difference of ``margin`` is resolved with the probability POWER; None over 1,000.

    Args:
        spread: standard deviation of the differences paired by seed, in the margin's unit.

    Source: the power of Student's two-sided paired test at CONFIDENCE, by the noncentral t distribution.
    """
    from scipy.stats import nct, t

    for seeds in range(2, 1_001):
        edge = t.ppf(0.5 + CONFIDENCE / 2, seeds - 1)
        if spread == 0 or nct.sf(edge, seeds - 1, margin / spread * math.sqrt(seeds)) >= POWER:
            return seeds
    return None


@dataclass(frozen=True)
class Measures:
    """What a study's runs scored, by (row, stage) and seed.

    Attributes:
        all: mean IoU over all classes, in percent; ``classes`` over the study's own.
        scenes: points of the truth, hits and unions, int64 [scenes, 3, K]; ``chosen`` the study's own classes of the K.
    """

    all: Scores
    classes: Scores = field(default_factory=dict)
    scenes: Mapping[tuple[str, str], Mapping[int, NDArray[np.int64]]] = field(default_factory=dict)
    chosen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    @staticmethod
    def of(rows: Sequence[Row], classes: Sequence[str] = ()) -> Measures:
        """Of finished rows.

        Raises:
            OlivineError: no validation point is of one of the study's own classes; names it.
        """
        every: dict[tuple[str, str], dict[int, float]] = {}
        some: dict[tuple[str, str], dict[int, float]] = {}
        scenes: dict[tuple[str, str], dict[int, NDArray[np.int64]]] = {}
        scored = [row for row in rows if "mean_iou" in row.result]
        found = [row.result.get("by_scene", {}) for row in scored]
        names = sorted({name for one in found for scene in one.values() for name in scene})
        for row, by_scene in zip(scored, found):
            key, iou = (row.row, row.stage), row.result["iou"]
            every.setdefault(key, {})[row.seed] = 100 * row.result["mean_iou"]
            if missing := [name for name in classes if name not in iou]:
                raise OlivineError(f"no validation point is {missing[0]}", where="classes", remedy="leave it out")
            if classes:
                some.setdefault(key, {})[row.seed] = 100 * sum(iou[name] for name in classes) / len(classes)
            if by_scene:
                counts = [[by_scene[scene].get(name, (0, 0, 0)) for name in names] for scene in sorted(by_scene)]
                scenes.setdefault(key, {})[row.seed] = np.array(counts, np.int64).transpose(0, 2, 1)
        return Measures(every, some, scenes, np.isin(names, list(classes)))

    def scores(self, over: str) -> Scores:
        """The means that ``over`` asks for."""
        return self.classes if over == "classes" else self.all

    def over_scenes(
        self, pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]], over: str
    ) -> tuple[float, float] | None:
        """The 95 % interval of a difference over validation scenes and seeds, both drawn again with replacement.

        Args:
            pairs: (row, stage) and the one that it is compared with; of two pairs the first's difference over the second's.

        Returns:
            None where the runs hold no scenes, one scene, or one seed.
        """
        kept = [[self.scenes.get(key, {}) for key in pair] for pair in pairs]
        seeds = sorted(set.intersection(*(set(one) for pair in kept for one in pair)))
        if len(seeds) < 2 or len(kept[0][0][seeds[0]]) < 2:
            return None
        generator, count = np.random.default_rng(0), len(kept[0][0][seeds[0]])
        times = generator.multinomial(count, np.full(count, 1 / count), _REDRAWN)
        again = generator.integers(0, len(seeds), (_REDRAWN, len(seeds)))
        differences = np.zeros((_REDRAWN, len(seeds)))
        for sign, pair in zip((1, -1), kept):
            for part, one in zip((1, -1), pair):
                for place, seed in enumerate(seeds):
                    differences[:, place] += sign * part * self._mean_iou(np.tensordot(times, one[seed], 1), over)
        means = np.take_along_axis(differences, again, 1).mean(1)
        low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
        return float(low), float(high)

    def _mean_iou(self, counts: NDArray[np.int64], over: str) -> NDArray[np.float64]:
        """In percent, of counts [draws, 3, K]: over the classes that a draw's truth has."""
        truth, hit, union = counts[:, 0], counts[:, 1], counts[:, 2]
        present = (truth > 0) & (self.chosen if over == "classes" else True)
        iou = np.divide(hit, union, out=np.zeros(hit.shape), where=union > 0)
        mean: NDArray[np.float64] = 100 * (iou * present).sum(1) / np.maximum(present.sum(1), 1)
        return mean


def claim_pairs(claim: Claim) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """The (row, stage) that a claim compares; of an interaction two pairs."""
    other = claim.than_stage or claim.stage
    pairs = [(claim.better, claim.than), *([(claim.beyond[0], claim.beyond[1])] if claim.beyond else [])]
    return [((one, claim.stage), (two, other)) for one, two in pairs]


def claim_difference(claim: Claim, measures: Measures) -> Difference | None:
    """A claim's difference, of an interaction that of the two gains; None where it has no seed."""
    scores = measures.scores(claim.over)
    gains = []
    for one, other in claim_pairs(claim):
        first, second = scores.get(one, {}), scores.get(other, {})
        gains.append({seed: first[seed] - second[seed] for seed in set(first) & set(second)})
    return paired_difference(gains[0], gains[1] if len(gains) > 1 else dict.fromkeys(gains[0], 0.0))
