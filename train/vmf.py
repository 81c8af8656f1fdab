"""The von Mises-Fisher distribution on the unit sphere of R^p (OLIVINE, eq. 3-5, 10-13).

Everything is evaluated in float64 whatever comes in, because log C_p spans hundreds of nats, and
returned in the argument's own floating-point type.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, ive
from torch import Tensor

# ive(v, x) = I_v(x) exp(-x) underflows where x is small for its order; below this the power series takes over.
_LEAST = 1e-280


def log_normalizer(kappa: Tensor, p: int) -> Tensor:
    """log C_p(κ), the log of the von Mises-Fisher density's normaliser (eq. 4).

    C_p(κ) = κ^{p/2−1} / ( (2π)^{p/2} I_{p/2−1}(κ) ); at κ = 0 it is the uniform density on the sphere.

    Args:
        kappa: concentrations >= 0, any shape. No gradient goes back to them.
        p: dimension of the space, at least 2.

    Returns:
        same shape, type and device as ``kappa``; for p = 64 and κ from 1e-6 to 1e6 right to 1e-9 in float64.
    """
    x = kappa.detach().double().cpu().numpy().reshape(-1)
    log = -(p / 2) * math.log(2 * math.pi) - _log_scaled_bessel(p / 2 - 1, x)
    return torch.from_numpy(log).view(kappa.shape).to(kappa)


def _log_scaled_bessel(order: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log( I_v(x) / x^v ) for v, x >= 0, [N]; finite at x = 0 (eq. 5)."""
    scaled = ive(order, x)
    small = (x < 1) | (scaled < _LEAST)
    large_x, small_x = x[~small], x[small]
    # I_v(x) / x^v = 1 / (2^v Γ(v+1)) Σ_k (x²/4)^k / (k! (v+1)…(v+k)); all terms are positive.
    term = np.ones_like(small_x)
    total, k = term, 0
    while np.any(term > 1e-17 * total):
        k += 1
        term = term * (small_x * small_x / (4 * k * (order + k)))
        total = total + term
    log = np.empty_like(x)
    log[small] = np.log(total) - order * math.log(2) - gammaln(order + 1)
    log[~small] = np.log(scaled[~small]) + large_x - order * np.log(large_x)
    return log


def estimate_kappa(resultant_length: Tensor, p: int) -> Tensor:
    """Sra's estimate of the concentration from the mean resultant length (eq. 13).

    κ̂ = R̄ (p − R̄²) / (1 − R̄²), which approximates the solution of A_p(κ) = R̄.

    Args:
        resultant_length: R̄ in [0, 1], any shape; 1 gives infinity.
        p: dimension of the space.

    Returns:
        same shape and type.
    """
    r = resultant_length
    return r * (p - r * r) / ((1 - r) * (1 + r))


class VmfStatistics(torch.nn.Module):
    """The running mean of each class's category-level point features and what follows from it (eq. 6-9, 13).

    z̄_c ← (1−α) z̄_c + α · mean{ g'_i : s_i = c }, from zero, in float64. A class moves only in a step that
    holds it. With ``bias_correction`` the mean is divided by 1 − (1−α)^n, n the class's number of updates;
    without it R̄ stays under 1 − (1−α)^n, as in the public code.

    Args:
        class_count: number of classes, label 0 included.
        channels: p, the dimension of the embeddings.
        alpha: α in (0, 1].
        max_kappa: upper bound of κ; keeps R̄ = 1 (a collapsed class) finite.
    """

    mean: Tensor
    update_count: Tensor

    def __init__(
        self, class_count: int, channels: int, alpha: float, *, bias_correction: bool = True, max_kappa: float = 1e6
    ) -> None:
        super().__init__()
        self.alpha, self.bias_correction, self.max_kappa = alpha, bias_correction, max_kappa
        self.register_buffer("mean", torch.zeros(class_count, channels, dtype=torch.float64))
        self.register_buffer("update_count", torch.zeros(class_count, dtype=torch.int64))

    @staticmethod
    def class_sums(feature: Tensor, label: Tensor, class_count: int) -> Tensor:
        """Sum of the features and number of pairs of each class, float64 [class_count, p + 1].

        Sums add over processes; means do not. So these are what is reduced.
        """
        wide = torch.cat([feature.detach().double(), feature.new_ones(len(feature), 1, dtype=torch.float64)], 1)
        # One matrix product: index_add's order of additions is not fixed on every device.
        member = torch.nn.functional.one_hot(label.long(), class_count).double()
        return member.T @ wide

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """One step of the exponential moving average from (global) ``class_sums``."""
        count = sums[:, -1]
        seen = count > 0
        batch_mean = sums[:, :-1] / count.clamp(min=1)[:, None]
        moved = (1 - self.alpha) * self.mean + self.alpha * batch_mean
        self.mean.copy_(torch.where(seen[:, None], moved, self.mean))
        self.update_count += seen

    def parameters_of_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean directions μ float64 [C, p], concentrations κ float64 [C], and which classes were ever seen, bool [C].

        An unseen class has μ = 0 and κ = 0.
        """
        mean = self.mean
        if self.bias_correction:
            weight = 1 - (1 - self.alpha) ** self.update_count.double()
            mean = mean / weight.clamp(min=1e-300)[:, None]
        length = torch.linalg.vector_norm(mean, dim=1)
        seen = (self.update_count > 0) & (length > 0)
        direction = mean / length.clamp(min=1e-300)[:, None]
        kappa = estimate_kappa(length.clamp(max=1.0), mean.shape[1]).clamp(max=self.max_kappa)
        return direction * seen[:, None], torch.where(seen, kappa, torch.zeros_like(kappa)), seen
