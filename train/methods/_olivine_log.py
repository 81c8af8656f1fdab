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
        self._group: tuple[Tensor, Tensor, Tensor] | None = None
        self._drawn: list[Tensor] = []
        self._short, self._one_class = 0, 0

    def draw(self, label: Tensor, *sizes: int) -> None:
        """Note a group's draws: their sizes, and the labels of the draw by label, on the CPU."""
        self._short += min(sizes) < self._pairs
        self._one_class += bool(len(label)) and bool((label == label[0]).all())
        self._drawn.append(torch.bincount(label, minlength=len(self._labels)))

    def group(self, point: Tensor, pairs: Tensor, kappa: Tensor) -> None:
        """Note a group's category embeddings.

        Args:
            point: g' at each place, [P, p].
            pairs: how many pairs of each class have it, [P, C].
            kappa: of each class, in the group's L_kl, [C]; nan where it has none yet.
        """
        self._group = point, pairs, kappa

    def row(self, reduce: Reduce, kappa: Tensor, *, wcd: bool, scr: bool) -> dict[str, float]:
        """The columns of a row of ``steps.csv``, of all groups since the last.

        ``groups_short`` and ``groups_one_class``; with ``wcd`` each class's share of its draw; with ``scr`` each class's
        κ, and of the last group on this process ``scr_pull``, the mean κ over its pairs (N times the norm of
        ∂L_kl/∂g'_i), and ``category_rank``, the effective rank of their g'.

        Args:
            kappa: of each class, [C].
        """
        classes = len(self._labels)
        drawn = torch.stack([torch.zeros(classes, dtype=torch.int64), *self._drawn]).sum(0)
        counts = reduce(to_device([self._short, self._one_class, *drawn.tolist()], kappa.device))
        parts = [counts[:2], counts[2:], kappa]
        if self._group is not None:
            point, pairs, own_kappa = self._group
            parts += [pairs.sum(0), own_kappa, gram_of(point, pairs.sum(1)).flatten()]
        found = torch.cat(parts).double().cpu()
        groups, drawn, kappa, *own = found.split([len(part) for part in parts])
        row = dict(zip(("groups_short", "groups_one_class"), groups.tolist()))
        if wcd:
            share = (drawn / drawn.sum().clamp(min=1)).tolist()
            row |= {f"share/{name}": value for name, value in zip(self._labels, share)}
        if scr:
            row |= {f"kappa/{name}": value for name, value in zip(self._labels, kappa.tolist())}
        if own:
            number, own_kappa, gram = own
            self._last_rank = rank_of_gram(gram.view(math.isqrt(len(gram)), -1))
            row |= {"scr_pull": float(number @ own_kappa / number.sum()), "category_rank": self._last_rank}
        self._forget()
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def summary(self) -> list[str]:
        """A collapse of the category embedding."""
        if self._last_rank >= 2:
            return []
        rank = f"its effective rank is {self._last_rank:.2f}"
        return [f"the category embedding has collapsed: {rank} (lower method.scr_weight)"]
