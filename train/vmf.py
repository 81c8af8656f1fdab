"""The von Mises-Fisher distribution on the unit sphere of R^p (OLIVINE, eq. 3-5, 13).

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


def effective_rank(feature: Tensor) -> float:
    """exp of the entropy of the normalised squared singular values of [N, p] (Roy and Vetterli, 2007): 1 to p."""
    return rank_of_gram(gram_of(feature, feature.new_ones(len(feature))))


def gram_of(feature: Tensor, number: Tensor) -> Tensor:
    """FᵀF, [p, p], of features [R, p] each of which stands for ``number`` [R] rows of F."""
    return feature.T @ (number.to(feature.dtype)[:, None] * feature)


def rank_of_gram(gram: Tensor) -> float:
    """The effective rank of features by their :func:`gram_of`, found on the CPU."""
    value = torch.linalg.eigvalsh(gram.cpu().double()).clamp(min=0)
    share = value / value.sum().clamp(min=1e-300)
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-300))).sum()))
