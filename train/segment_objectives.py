"""Losses on segments as pure functions: pooling, ST-SLidR's tolerant contrast, Seal's terms, UOV's text term.

As in :mod:`.objectives`, whose names these are, values are made in float32 at least, whatever autocast says.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..common import OlivineError
from .transfer import to_device

Dropped = Literal["zero_logit", "excluded"]
SegmentAverage = Literal["points", "segments"]


def segment_mean(feature: Tensor, segment: Tensor, segments: int) -> Tensor:
    """The mean feature of each segment: sums over (count + 1e-6), as SLidR pools; not normalised.

    Args:
        feature: [N, D].
        segment: integer [N], from 0; −1 belongs to none. On the CPU or not.
        segments: S.

    Returns:
        [S, D]; 0 for a segment without a row.
    """
    segment = to_device(segment, feature.device)
    row = torch.where(segment >= 0, segment, segments).long()  # one more, of what belongs to none
    sums = feature.new_zeros(segments + 1, feature.shape[1]).index_add(0, row, feature)[:segments]
    count = torch.zeros(segments + 1, device=row.device).index_add_(0, row, torch.ones(len(row), device=row.device))
    return sums / (count[:segments, None].to(feature.dtype) + 1e-6)


def tolerant_contrast(
    superpoint: Tensor,
    superpixel: Tensor,
    similarity: Tensor,
    temperature: float,
    quantile: float = 0.01,
    dropped: Dropped = "zero_logit",
    balanced: bool = False,
    *,
    count: int | None = None,
) -> Tensor:
    """ST-SLidR's contrast of superpoints with superpixels, tolerant of negatives that look like the anchor.

    −1/S Σ_i log( exp(z_ii) / Σ_j exp(z_ij) ) with z_ij = W_ij k_i·q_j/τ. W_ii is 1; another W_ij is 0 for a dropped
    negative and 1 for a kept one. As the authors' code has it, W = 1 − α is compared with its own row's quantile, the
    anchor's entry included: of a row of S entries the S · ``quantile`` of the largest α are dropped, the anchor's own
    among them, so that with S · ``quantile`` ≤ 1 none is and the loss is SLidR's. With ``quantile`` 0 nothing is
    dropped and W = 1 − α stays graded.

    Args:
        superpoint: k, [S, D], means of unit embeddings.
        superpixel: q, [S, D].
        similarity: α, [S, S], cosine similarity of the superpixels' features by the image encoder. No gradient.
        temperature: τ > 0.
        quantile: share of each row to drop.
        dropped: a dropped negative has the logit 0, as in the authors' code, and still adds 1 to the sum; or is
            excluded from it.
        balanced: anchors weigh 1 − v, where v_i = Σ_j α_ij over α_ij ≥ 0.5, brought to 0..1 over the rows. Where all v
            are equal (one row is enough for it), all weigh the same.
        count: drop this many negatives of each row instead, those of the largest α.

    Returns:
        scalar, float32 or wider.
    """
    k, q, alpha = _float(superpoint, superpixel, similarity.detach())
    rows = len(k)
    if k.shape != q.shape or k.ndim != 2 or rows == 0 or alpha.shape != (rows, rows):
        raise OlivineError(
            f"superpoints {tuple(k.shape)}, superpixels {tuple(q.shape)} and similarities {tuple(alpha.shape)} "
            "are not S matching rows",
            where="tolerant_contrast",
        )
    if dropped not in ("zero_logit", "excluded"):
        raise OlivineError(f"no {dropped!r}", where="tolerant_contrast", remedy="use zero_logit or excluded")
    if not 0 <= quantile <= 1 or (count is not None and count < 0):
        raise OlivineError(f"quantile {quantile}, count {count}", where="tolerant_contrast", remedy="use 0 to 1")
    with torch.autocast(k.device.type, enabled=False):
        own = torch.eye(rows, dtype=torch.bool, device=k.device)
        # Only the plain loss of the authors' code clips.
        weight = 1 - (alpha if balanced else alpha.clamp(0, 1))
        if count is not None:
            nearest = alpha.masked_fill(own, -torch.inf).topk(min(count, rows - 1), dim=1).indices
            weight = torch.ones_like(weight).scatter(1, nearest, 0.0)
        elif quantile > 0:
            weight = ((weight >= _row_quantile(weight, quantile)) & (weight != 0)).to(k.dtype)
        weight = weight.masked_fill(own, 1.0)
        z = weight * (k @ q.T / temperature)
        if dropped == "excluded":
            z = z.masked_fill(weight == 0, -torch.inf)
        loss = torch.logsumexp(z, 1) - z.diagonal()
        if not balanced:
            return loss.mean()
        share = _rarity(alpha)
        return (share * loss).sum() / share.sum()


def segment_contrast(
    point: Tensor, segment: Tensor, prototype: Tensor, temperature: float, average: SegmentAverage = "points"
) -> Tensor:
    """Seal's terms: −log( exp(f_a·m_i/τ) / Σ_j exp(f_a·m_j/τ) ) of each point a of segment i.

    Args:
        point: f, [N, D], unit rows.
        segment: i, integer [N], from 0; −1 is left out. Where it is on the CPU, nobody waits for a GPU.
        prototype: m, [S, D], one for each segment.
        temperature: τ > 0.
        average: over the points, or in each segment and then over the segments that hold a point.

    Returns:
        scalar, float32 or wider.
    """
    f, m = _float(point, prototype)
    kept = torch.nonzero(segment >= 0)[:, 0]
    row = segment.index_select(0, kept).long()
    if segment.shape != (len(f),) or f.shape[1:] != m.shape[1:] or not len(kept) or int(row.max()) >= len(m):
        raise OlivineError(
            f"{tuple(segment.shape)} segments of {tuple(f.shape)} points, {len(kept)} of them in one, "
            f"do not fit {tuple(m.shape)} prototypes",
            where="segment_contrast",
        )
    if average not in ("points", "segments"):
        raise OlivineError(f"no average {average!r}", where="segment_contrast", remedy="use points or segments")
    count = to_device(torch.bincount(row, minlength=len(m)), f.device)
    kept, row = to_device(kept, f.device), to_device(row, f.device)
    with torch.autocast(f.device.type, enabled=False):
        z = f.index_select(0, kept) @ m.T / temperature
        loss = torch.logsumexp(z, 1) - z.gather(1, row[:, None])[:, 0]
        if average == "points":
            return loss.mean()
        return (loss / count.to(loss.dtype).index_select(0, row)).sum() / (count > 0).sum()


def soft_target_cross_entropy(feature: Tensor, anchor: Tensor, target: Tensor, temperature: float) -> Tensor:
    """UOV's text term: −1/N Σ_i Σ_c t_ic log( exp(k_i·T_c/τ) / Σ_b exp(k_i·T_b/τ) ).

    Args:
        feature: k, [N, D].
        anchor: T, [C, D].
        target: t, [N, C], rows that sum to 1. No gradient.
        temperature: τ > 0.

    Returns:
        scalar, float32 or wider.
    """
    k, t, share = _float(feature, anchor, target.detach())
    if k.shape[1:] != t.shape[1:] or share.shape != (len(k), len(t)) or not len(k):
        raise OlivineError(
            f"features {tuple(k.shape)}, anchors {tuple(t.shape)} and targets {tuple(share.shape)} do not fit",
            where="soft_target_cross_entropy",
        )
    with torch.autocast(k.device.type, enabled=False):
        return -(share * torch.log_softmax(k @ t.T / temperature, 1)).sum(1).mean()


def _float(*values: Tensor) -> list[Tensor]:
    """The values in one type, float32 at least."""
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(dtype) for value in values]


def _row_quantile(value: Tensor, quantile: float) -> Tensor:
    """Linearly interpolated quantile of each row, [S, 1]. (``torch.quantile`` takes at most 16 million values.)"""
    place = quantile * (value.shape[1] - 1)
    low = int(place)
    smallest = value.topk(min(low + 2, value.shape[1]), dim=1, largest=False, sorted=True).values
    return torch.lerp(smallest[:, low], smallest[:, -1], place - low)[:, None]


def _rarity(alpha: Tensor) -> Tensor:
    """1 for the anchor that is like the fewest others, 0 for the one that is like the most; [S]."""
    vote = torch.where(alpha < 0.5, 0.0, alpha).sum(1)
    vote = vote - vote.min()
    apart = vote.max() > len(vote) * torch.finfo(vote.dtype).eps * alpha.abs().max()
    return torch.where(apart, 1 - vote / vote.max(), torch.ones_like(vote))
