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


def sampling_probability(density: Tensor, label: Tensor, class_count: Tensor, mode: SamplingMode = "dcas") -> Tensor:
    """The probability of drawing each pair (eq. 15): P_i ∝ 1 / (D_i · F_{s_i}).

    Args:
        density: D, the distance density at each pair's point, positive [M].
        label: s, weak labels in [0, C), integer [M].
        class_count: F, number of pairs of each class, [C].
        mode: ``dcas`` uses both factors, ``density`` and ``category`` one, ``random`` neither.

    Returns:
        float64 [M], sums to 1.

    Raises:
        OlivineError: an unknown mode, a density that is not positive, or a class of ``label`` whose count is 0.
    """
    if mode not in MODES:
        raise OlivineError(f"no sampling mode {mode!r}", where="sampling", remedy=f"use one of {', '.join(MODES)}")
    log_weight = torch.zeros(label.shape, dtype=torch.float64, device=label.device)
    if len(label) == 0:
        return log_weight
    if mode in ("density", "dcas"):
        if not bool((density > 0).all()):
            raise OlivineError("a distance density is not positive", where="sampling", remedy="build the shards again")
        log_weight -= torch.log(density.double())
    if mode in ("category", "dcas"):
        frequency = class_count.double().index_select(0, label.long())
        if not bool((frequency > 0).all()):
            raise OlivineError(
                "a pair's class has the count 0", where="sampling", remedy="check the shards with --check"
            )
        log_weight -= torch.log(frequency)
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


def batch_density(xy: Tensor, voxel_size: float | None) -> Tensor:
    """Distance density of each pair over the pairs at hand, as the public code makes it.

    The public code takes the distance in the plane in whole voxels for SR-UNet and rounded to a metre for VoxelNet, with
    Silverman's bandwidth 1.06 σ N^(−1/5) over all pairs, and evaluates the Gaussian kernel density at the values that
    occur.

    Args:
        xy: the pairs' points, [M, ≥2], metres.
        voxel_size: metres; None rounds to a metre.

    Returns:
        float64 [M], 1 / voxel or 1 / metre.
    """
    distance = torch.linalg.vector_norm(xy[:, :2].double(), dim=1)
    rho = distance.round() if voxel_size is None else torch.floor(distance / voxel_size)
    value, inverse, count = torch.unique(rho, return_inverse=True, return_counts=True)
    n = len(rho)
    spread = rho.std(correction=1) if n > 1 else rho.new_ones(())
    bandwidth = (1.06 * spread * n**-0.2).clamp(min=1e-3)
    kernel = torch.exp(-0.5 * ((value[:, None] - value[None, :]) / bandwidth) ** 2) / (2 * torch.pi) ** 0.5
    return ((kernel @ count.double()) / (n * bandwidth)).index_select(0, inverse)
