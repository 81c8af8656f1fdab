"""What OLIVINE says of a step besides its losses: which pairs it drew, and whether the category embedding lives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..method import Reduce
from ..vmf import effective_rank


class OlivineLog:
    """Counts over the groups of a step.

    Args:
        labels: names of the classes, "none" first.
        pairs: wanted in each draw of a group.
    """

    def __init__(self, labels: Sequence[str], pairs: int) -> None:
        self._labels, self._pairs, self._last_rank = labels, pairs, math.inf
        self._forget()

    def _forget(self) -> None:
        self._rank = self._pull = math.nan
        self._drawn: list[Tensor] = []
        self._short, self._one_class = 0, 0

    def draw(self, label: Tensor, *sizes: int) -> None:
        """Note a group's draws: their sizes, and the labels of the draw by label."""
        self._short += min(sizes) < self._pairs
        self._one_class += bool(len(label)) and bool((label == label[0]).all())
        self._drawn.append(torch.bincount(label, minlength=len(self._labels)))

    def embedding(self, point: Tensor) -> None:
        """Note the category embeddings g' of a group, [N, p]."""
        self._rank = effective_rank(point)

    def pull(self, kappa: Tensor) -> None:
        """Note each pair's κ: ∂L_kl/∂g'_i is the κ of pair i's class, over the number of pairs."""
        self._pull = float(kappa.mean())

    def row(self, reduce: Reduce, kappa: Tensor, *, wcd: bool, scr: bool) -> dict[str, float]:
        """The columns of a row of ``steps.csv``, of all groups since the last.

        ``groups_short`` and ``groups_one_class``; with ``wcd`` each class's share of its draw; with ``scr`` each class's
        κ, ``scr_pull``, the mean κ over pairs (N times the norm of ∂L_kl/∂g'_i), and ``category_rank``, the effective
        rank of the last group's g' on this process.

        Args:
            kappa: of each class, [C].
        """
        counts = reduce(torch.tensor([self._short, self._one_class], device=kappa.device)).tolist()
        row = {"groups_short": float(counts[0]), "groups_one_class": float(counts[1])}
        if wcd:
            zero = torch.zeros(len(kappa), dtype=torch.int64, device=kappa.device)
            drawn = reduce(torch.stack([zero, *self._drawn]).sum(0)).double()
            share = (drawn / drawn.sum().clamp(min=1)).tolist()
            row |= {f"share/{name}": value for name, value in zip(self._labels, share)}
        if scr:
            row |= {f"kappa/{name}": value for name, value in zip(self._labels, kappa.tolist())}
            row |= {"scr_pull": self._pull, "category_rank": self._rank}
            if not math.isnan(self._rank):
                self._last_rank = self._rank
        self._forget()
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def summary(self) -> list[str]:
        """A collapse of the category embedding."""
        if self._last_rank >= 2:
            return []
        rank = f"its effective rank is {self._last_rank:.2f}"
        return [f"the category embedding has collapsed: {rank} (lower method.scr_weight)"]
