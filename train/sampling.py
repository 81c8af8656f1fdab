"""Which pairs a loss sees (OLIVINE, eq. 15), and draws without replacement that repeat.

A draw depends on (seed, step, group) and on the pairs alone, not on the device, the process or the order
in which groups are worked on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..common import OlivineError

SamplingMode = Literal["random", "density", "category", "dcas"]
MODES: tuple[SamplingMode, ...] = ("random", "density", "category", "dcas")


def sampling_probability(
    density: Tensor, label: Tensor, class_count: Tensor, mode: SamplingMode = "dcas", score: Tensor | None = None
) -> Tensor:
    """The probability of drawing each pair (eq. 15): P_i ∝ 1 / (D_i · F_{s_i}); with ``score`` P_i ∝ c_i / (D_i · F_{s_i}).

    Args:
        density: D, the distance density at each pair's point, positive [M].
        label: s, weak labels in [0, C), integer [M].
        class_count: F, number of pairs of each class, [C].
        mode: ``dcas`` uses both factors, ``density`` and ``category`` one, ``random`` neither.
        score: c, the confidence of each label, positive [M]; ours, not the paper's.

    Returns:
        float64 [M], sums to 1.

    Raises:
        OlivineError: an unknown mode, a density that is not positive, or a class of ``label`` whose count is 0.
    """
    if mode not in MODES:
        raise OlivineError(f"no sampling mode {mode!r}", where="sampling", remedy=f"use one of {', '.join(MODES)}")
    log_weight = torch.zeros(label.shape, dtype=torch.float64, device=label.device)
    if mode in ("density", "dcas"):
        if not bool((density > 0).all()):
            raise OlivineError("a distance density is not positive", where="sampling", remedy="build the shards again")
        log_weight -= torch.log(density.double())
    if mode in ("category", "dcas"):
        frequency = class_count.double().index_select(0, label.long())
        if not bool((frequency > 0).all()):
            raise OlivineError("a pair's class has the count 0", where="sampling", remedy="run build-pairs --check")
        log_weight -= torch.log(frequency)
    if score is not None:
        log_weight += torch.log(score.double())
    return torch.softmax(log_weight, 0)


def generator_of(*key: int) -> torch.Generator:
    """A CPU generator seeded by a tuple of non-negative integers, for example (seed, step, group)."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def draw_without_replacement(probability: Tensor | None, total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``min(count, total)`` different pairs, one after the other in proportion to ``probability``.

    The successive draw is done at once by exponential keys (Efraimidis and Spirakis, 2006): the smallest
    E_i / P_i win, E_i standard exponential. Pairs of probability 0 are drawn last.

    Args:
        probability: [total], or None for a uniform draw.
        total: number of pairs.
        count: how many to draw.
        generator: a CPU generator.

    Returns:
        int64 [min(count, total)] on the CPU, ascending.
    """
    if count >= total:
        return torch.arange(total)
    key = torch.empty(total, dtype=torch.float64).exponential_(generator=generator)
    if probability is not None:
        key = key / probability.detach().cpu().double()
    return torch.topk(key, count, largest=False, sorted=False).indices.sort().values
