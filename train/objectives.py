"""The methods' losses as pure functions: OLIVINE's (eq. 1, 2, 10-11, in the paper's and the public code's reading).

Those on segments (:mod:`.segment_objectives`) have their names here too.

Every function takes L2-normalised embeddings of N pairs, row i of each argument belonging to pair i, and
returns a scalar. Similarities are made and reduced in blocks of rows, so that memory is bounded for large N,
with a maximum subtracted, and in float32 at least. An empty set of pairs has no loss; callers leave it out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..common import OlivineError
from .segment_objectives import segment_contrast as segment_contrast
from .segment_objectives import segment_mean as segment_mean
from .segment_objectives import soft_target_cross_entropy as soft_target_cross_entropy
from .segment_objectives import tolerant_contrast as tolerant_contrast
from .transfer import to_device

WcdForm = Literal["paper", "reference"]
KlAverage = Literal["pairs", "classes"]

# Similarities kept at once, per block of anchors: on a CPU as many as its second cache holds, else 2^22.
_BLOCK_VALUES = {"cpu": 1 << 18}


def info_nce(point: Tensor, pixel: Tensor, temperature: float | Tensor) -> Tensor:
    """Point-pixel InfoNCE (eq. 1; the PPKT loss): −1/N Σ_i log( exp(g_i·f_i/τ) / Σ_j exp(g_i·f_j/τ) ).

    Args:
        point: g, [N, p], unit rows.
        pixel: f, [N, p], unit rows.
        temperature: τ > 0; as a tensor it may have a gradient.
    """
    g, f = _matching(point, pixel)
    # Every anchor's only positive is its own pixel: N classes of one pair each.
    return _BlockedContrast.apply(g, f, None, None, temperature, "diagonal") / len(g)


def weakly_supervised_contrast(
    point: Tensor,
    pixel: Tensor,
    label: Tensor,
    temperature: float | Tensor,
    form: WcdForm = "paper",
    weight: Tensor | None = None,
) -> Tensor:
    """Weakly-supervised contrastive distillation (eq. 2); anchors are points, the softmax runs over pixels.

    ``paper``: −1/N Σ_i 1/|A(i)| Σ_{a∈A(i)} log( exp(g'_i·f'_a/τ) / Σ_j exp(g'_i·f'_j/τ) ).
    ``reference``: −1/N Σ_i log( Σ_{a∈A(i)} exp(g'_i·f'_a/τ) / Σ_j exp(g'_i·f'_j/τ) ), as the public code.
    A(i) holds the pairs with pair i's label, i included.

    Args:
        point: g', [N, p], unit rows.
        pixel: f', [N, p], unit rows.
        label: weak labels, integer [N]; on the CPU, or they are waited for.
        temperature: τ > 0; as a tensor it may have a gradient.
        form: which of the two.
        weight: w, positive [N], relative: an anchor counts w_i times, its positives w_a times, negatives once; ours.
    """
    g, f = _matching(point, pixel)
    if label.shape != (len(g),):
        raise OlivineError(f"{tuple(label.shape)} labels for {len(g)} pairs", where="weakly_supervised_contrast")
    if form not in ("paper", "reference"):
        raise OlivineError(f"no form {form!r}", where="weakly_supervised_contrast", remedy="use paper or reference")
    if weight is not None:
        weight = (weight.to(g.dtype) * (len(g) / weight.sum()))[:, None]
    return _BlockedContrast.apply(g, f, label, weight, temperature, form) / len(g)


def class_sums(point: Tensor, pairs: Tensor) -> Tensor:
    """Σ g' over the pairs of each class, [C, p]: all that the consistency term needs of g', in which it is linear.

    Args:
        point: g' at each place, [P, p].
        pairs: how many pairs of each class have it, [P, C].
    """
    with torch.autocast(point.device.type, enabled=False):
        return pairs.to(point.dtype).T @ point


def consistency(
    sums: Tensor, number: Tensor, constant: Tensor, pull: Tensor, seen: Tensor, average: KlAverage = "pairs"
) -> Tensor:
    """Semantic-guided consistency: the divergence of each point's Dirac delta from its class's distribution.

    Mean of constant_s − pull_sᵀ g'_i. With the class's vMF these are −log C_p(κ) and κ μ (eq. 10-11); with a delta at μ,
    from which the divergence is infinite, 1 and μ. No gradient flows into them. Pairs of a class that was never
    seen are left out; with none left the loss is 0.

    Args:
        sums: Σ g' over the pairs of each class, [C, p], see :func:`class_sums`.
        number: of these pairs, [C].
        constant, pull: [C] and [C, p].
        seen: bool [C].
        average: over the pairs, or in each class and then over the classes present (the public code).
    """
    if average not in ("pairs", "classes"):
        raise OlivineError(f"no average {average!r}", where="consistency loss", remedy="use pairs or classes")
    mean = constant.detach() - (pull.detach() * sums).sum(1) / number.clamp(min=1)
    weight = seen * (number if average == "pairs" else number > 0)
    return (mean * weight).sum() / weight.sum().clamp(min=1)


def _matching(point: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    if point.shape != pixel.shape or point.ndim != 2 or len(point) == 0:
        shapes = f"point {tuple(point.shape)} and pixel {tuple(pixel.shape)}"
        raise OlivineError(f"{shapes} embeddings are not N matching rows", where="contrastive loss")
    dtype = torch.promote_types(torch.float32, torch.promote_types(point.dtype, pixel.dtype))
    return point.to(dtype), pixel.to(dtype)


class _BlockedContrast(torch.autograd.Function):
    """Σ_i of a contrastive loss, with both gradients made in the same pass over blocks of anchors.

    For logits z_ij = g_i·f_j/τ all three losses are −(target part) + logsumexp_j z_ij, and their gradient by
    z_ij is softmax(z_i)_j − t_ij with t the target's own weights: the one-hot of i (``diagonal``), uniform on
    A(i) (``paper``), or softmax restricted to A(i) (``reference``). Made at once, the [N, N] matrix is never kept.
    The gradient by τ is −Σ z_ij ∂/∂z_ij / τ = −Σ_i g_i·∂/∂g_i / τ.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, f: Tensor, *how: Any) -> Tensor:
        label, w, tau, form = how
        with torch.autocast(g.device.type, enabled=False):
            loss, grad_g, grad_f = _contrast(g, f, label, w, float(tau), form)
        if isinstance(tau, Tensor):
            ctx.by_tau = (-(g * grad_g).sum() / tau).to(tau).view_as(tau)
        ctx.save_for_backward(grad_g, grad_f)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # by create_graph: the gradients below would count as constants
            raise OlivineError("a second derivative is not known", where="contrastive loss", remedy="drop create_graph")
        grad_g, grad_f = ctx.saved_tensors
        by_tau = ctx.by_tau * gradient[0] if ctx.needs_input_grad[4] else None
        return grad_g * gradient[0], grad_f * gradient[0], None, None, by_tau, None


def _contrast(
    g: Tensor, f: Tensor, label: Tensor | None, w: Tensor | None, tau: float, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss and its gradients by ``g`` and ``f``; ``w`` [N, 1], None where all count alike."""
    n, order, bounds = len(g), None, [0, len(g)]
    target_f, target_g = f, g
    if label is not None:  # on the CPU, where the blocks below are cut
        _, inverse, count = torch.unique(label.cpu(), return_inverse=True, return_counts=True)
    if form == "reference":
        # Pairs of a class side by side: the positives of a block of anchors are a range of pixels.
        order = to_device(torch.argsort(inverse, stable=True), g.device)
        g, f, w = g[order], f[order], None if w is None else w[order]
        bounds += count.cumsum(0).tolist()[:-1]
    elif form == "paper":
        # Σ_{a∈A(i)} z_ia / |A(i)| is g_i · (mean pixel of the class) / τ: no [N, N] mask is needed.
        inverse, count = to_device(inverse, g.device), to_device(count[:, None], g.device)
        member = torch.nn.functional.one_hot(inverse, len(count)).to(g.dtype)
        total = count.to(g.dtype) if w is None else member.T @ w
        mean_f, mean_g = ((member.T @ (x if w is None else w * x)) / total for x in (f, g))
        target_f, target_g = mean_f.index_select(0, inverse), mean_g.index_select(0, inverse)
    loss = g.new_zeros((), dtype=torch.float64)
    grad_g, grad_f = torch.zeros_like(g), torch.zeros_like(f)
    if order is None:
        own = g if w is None else w * g
        loss -= (own * target_f).sum(dtype=torch.float64) / tau
        grad_g, grad_f = (-target_f, -target_g) if w is None else (-w * target_f, -w * target_g)
    rows = max(1, _BLOCK_VALUES.get(g.device.type, 1 << 22) // n)
    for low, high in pairwise(sorted(bounds)):
        for start in range(low, high, rows):
            block = slice(start, min(start + rows, high))
            z = (g[block] / tau) @ f.T
            # + logsumexp over all pixels, − logsumexp over the positives.
            sides = [(1, z, slice(n))]
            if order is not None:
                positive = z[:, low:high].clone() if w is None else z[:, low:high] + w[low:high].T.log()
                sides.insert(0, (-1, positive, slice(low, high)))
            for sign, e, pixels in sides:
                peak = e.amax(1, keepdim=True)
                total = e.sub_(peak).exp_().sum(1, keepdim=True)
                value, pull, push = peak + total.log(), sign * (e @ f[pixels]) / total, g[block] * (sign / total)
                if w is not None:
                    value, pull, push = (w[block] * x for x in (value, pull, push))
                loss += sign * value.sum(dtype=torch.float64)
                grad_g[block] += pull
                grad_f[pixels] += e.T @ push
    if order is not None:
        grad_g, grad_f = (x.index_copy(0, order, x) for x in (grad_g, grad_f))
    return loss.to(g.dtype), grad_g / tau, grad_f / tau
