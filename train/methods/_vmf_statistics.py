"""OLIVINE's running statistics: the mean embedding of each class, and the von Mises-Fisher distribution it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..method import Reduce
from ..vmf import estimate_kappa, log_normalizer


class VmfStatistics(nn.Module):
    """The running mean of each class's category-level point features and what follows from it (eq. 6-9, 13).

    z̄_c ← (1−α) z̄_c + α · mean{ g'_i : s_i = c }, from zero, in float64. A class moves only in a step that
    holds it, and one that was seen in fewer than two voxels has no distribution. R̄ stays under 1 − (1−α)^n, n the
    class's number of updates: after 1/α steps 0.632 and κ ≤ 67 for p = 64 (68 where that is 50 steps, 72 at 10). With
    ``bias_correction``, which neither paper nor public code has, the mean is divided by that bound.

    Args:
        class_count: number of classes, label 0 included.
        channels: p, the dimension of the embeddings.
        alpha: α in (0, 1].
        by_group: z̄_c moves as the public code moves it, see :meth:`update`.
        max_kappa: upper bound of κ; keeps R̄ = 1 (a collapsed class) finite.
    """

    mean: Tensor
    update_count: Tensor
    place_count: Tensor

    def __init__(
        self,
        class_count: int,
        channels: int,
        alpha: float,
        *,
        by_group: bool = False,
        bias_correction: bool = False,
        max_kappa: float = 1e6,
    ) -> None:
        super().__init__()
        self.alpha, self.by_group, self.bias_correction, self.max_kappa = alpha, by_group, bias_correction, max_kappa
        self._sums: list[Tensor] = []
        self._places: list[Tensor] = []
        self._made: dict[str, Any] = {}
        self.register_buffer("mean", torch.zeros(class_count, channels, dtype=torch.float64))
        self.register_buffer("update_count", torch.zeros(class_count, dtype=torch.int64))
        self.register_buffer("place_count", torch.zeros(class_count, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VmfStatistics:
        """To another device, but to no other type: in bfloat16 α of a change is lost beside the mean."""
        mean = self.mean
        super()._apply(fn, recurse)
        self.mean = mean.to(self.mean.device)
        return self

    def observe(self, sums: Tensor, number: Tensor, places: Tensor) -> None:
        """Keep a contrast group's pairs for :meth:`step`. Sums add over processes; means do not.

        Args:
            sums: Σ g' over the pairs of each class, [C, p].
            number: of these pairs, [C].
            places: int64 [C], voxels that each class was seen in.
        """
        sums, count = sums.detach().double(), number.double()[:, None]
        if self.by_group:
            sums, count = sums / count.clamp(min=1), (count > 0).double()
        self._sums.append(torch.cat([sums, count], 1))
        self._places.append(places)

    def step(self, reduce: Reduce) -> None:
        """Move by what was observed since the last step in all processes."""
        none = self.mean.new_zeros(len(self.mean), self.mean.shape[1] + 1)
        groups = int(reduce(torch.tensor(len(self._sums), device=none.device))) if self.by_group else 1
        sums = reduce(torch.stack([none, *self._sums]).sum(0))
        places = reduce(torch.stack([torch.zeros_like(self.place_count), *self._places]).sum(0))
        self.update(sums, places, groups)
        self._sums, self._places = [], []

    @torch.no_grad()
    def update(self, sums: Tensor, places: Tensor, groups: int = 1) -> None:
        """One step of the exponential moving average.

        Args:
            sums: float64 [C, p + 1]: of each class's features, and its pairs, over the global batch; or, with
                several ``groups``, of the class's mean in each group that holds it, and of 1 for each such group.
            places: int64 [C], voxels that each class was seen in.
            groups: the public code averages the z̄_c of its GPUs, of which one without the class keeps its own: each
                contrast group then moves it by α / groups.
        """
        count = sums[:, -1]
        seen = count > 0
        weight = self.alpha * (count / groups if groups > 1 else seen.double())
        mean = sums[:, :-1] / count.clamp(min=1)[:, None]
        self.mean.copy_(
            torch.where(seen[:, None], (1 - weight[:, None]) * self.mean + weight[:, None] * mean, self.mean)
        )
        self.update_count += seen
        self.place_count += places

    def parameters_of_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean directions μ float64 [C, p], concentrations κ float64 [C], and which classes have them, bool [C].

        A class that was seen in fewer than two voxels has μ = 0 and κ = 0.
        """
        found: tuple[Tensor, Tensor, Tensor] = self._once("classes", self._classes)
        return found

    def divergence(self, distribution: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Each class's constant [C] and pull [C, p] in :func:`~..objectives.consistency`, as ``vmf`` or ``dirac``."""

        def make() -> tuple[Tensor, Tensor]:
            direction, kappa, _ = self.parameters_of_classes()
            if distribution == "dirac":
                return torch.ones_like(kappa, dtype=dtype), direction.to(dtype)
            return -log_normalizer(kappa, direction.shape[1]).to(dtype), (kappa[:, None] * direction).to(dtype)

        found: tuple[Tensor, Tensor] = self._once(f"{distribution} {dtype}", make)
        return found

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What follows from the statistics, made again only where they have changed (their tensors count their changes)."""
        state = tuple((id(value), value._version) for value in self.buffers())
        if self._made.get("state") != state:
            self._made = {"state": state}
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.mean
        if self.bias_correction:
            weight = 1 - (1 - self.alpha) ** self.update_count.double()
            mean = mean / weight.clamp(min=1e-300)[:, None]
        length = torch.linalg.vector_norm(mean, dim=1)
        seen = (self.place_count > 1) & (length > 0)
        direction = mean / length.clamp(min=1e-300)[:, None]
        kappa = estimate_kappa(length.clamp(max=1.0), mean.shape[1]).clamp(max=self.max_kappa)
        return direction * seen[:, None], torch.where(seen, kappa, torch.zeros_like(kappa)), seen
