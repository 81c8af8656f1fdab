"""What OLIVINE says of a step besides its losses: which pairs it drew, and whether the category embedding lives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..method import Reduce
from ..transfer import to_device
from ..vmf import gram_of, rank_of_gram


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
        # What is on the device stays there until the row is made: a step waits for it once.
        self._gram: Tensor | None = None
        self._pull: Tensor | None = None
        self._drawn: list[Tensor] = []
        self._short, self._one_class = 0, 0

    def draw(self, label: Tensor, *sizes: int) -> None:
        """Note a group's draws: their sizes, and the labels of the draw by label, on the CPU."""
        self._short += min(sizes) < self._pairs
        self._one_class += bool(len(label)) and bool((label == label[0]).all())
        self._drawn.append(torch.bincount(label, minlength=len(self._labels)))

    def embedding(self, point: Tensor) -> None:
        """Note the category embeddings g' of a group, [N, p]."""
        self._gram = gram_of(point)

    def pull(self, kappa: Tensor) -> None:
        """Note each pair's κ: ∂L_kl/∂g'_i is the κ of pair i's class, over the number of pairs."""
        self._pull = kappa.mean()

    def row(self, reduce: Reduce, kappa: Tensor, *, wcd: bool, scr: bool) -> dict[str, float]:
        """The columns of a row of ``steps.csv``, of all groups since the last.

        ``groups_short`` and ``groups_one_class``; with ``wcd`` each class's share of its draw; with ``scr`` each class's
        κ, ``scr_pull``, the mean κ over pairs (N times the norm of ∂L_kl/∂g'_i), and ``category_rank``, the effective
        rank of the last group's g' on this process.

        Args:
            kappa: of each class, [C].
        """
        classes = len(self._labels)
        drawn = torch.stack([torch.zeros(classes, dtype=torch.int64), *self._drawn]).sum(0)
        counts = reduce(to_device([self._short, self._one_class, *drawn.tolist()], kappa.device))
        none = kappa.new_full((1,), math.nan)
        parts = [counts.double(), kappa.double(), none if self._pull is None else self._pull[None]]
        found = torch.cat(parts if self._gram is None else [*parts, self._gram.flatten()]).cpu()
        short, one_class, *_ = found.tolist()
        row = {"groups_short": short, "groups_one_class": one_class}
        if wcd:
            drawn = found[2 : 2 + classes]
            share = (drawn / drawn.sum().clamp(min=1)).tolist()
            row |= {f"share/{name}": value for name, value in zip(self._labels, share)}
        if scr:
            values = found[2 + classes : 3 + 2 * classes].tolist()
            row |= {f"kappa/{name}": value for name, value in zip(self._labels, values)}
            row |= {"scr_pull": values[-1], "category_rank": math.nan}
            if self._gram is not None:
                row["category_rank"] = rank_of_gram(found[3 + 2 * classes :].view_as(self._gram))
                self._last_rank = row["category_rank"]
        self._forget()
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def summary(self) -> list[str]:
        """A collapse of the category embedding."""
        if self._last_rank >= 2:
            return []
        rank = f"its effective rank is {self._last_rank:.2f}"
        return [f"the category embedding has collapsed: {rank} (lower method.scr_weight)"]
