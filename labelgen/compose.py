"""One label map from many masks: which mask covers which, decided once, painted in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_RANK = torch.int32


def paint_ranks(scores: Tensor, things: Tensor, overlap: str) -> Tensor:
    """Which mask covers which: int32 [N], 1..N, the greater covers the smaller.

    Args:
        scores: float [N], of the boxes.
        things: bool [N], whether the class is one of things.
        overlap: ``layered``: stuff first, things over it, each by rising score, equal scores
            in the detector's order; ``reference``: the detector's order (OLIVINE's public code).
    """
    count = len(scores)
    ranks = torch.empty(count, dtype=_RANK, device=scores.device)
    if overlap == "reference":
        order = torch.arange(count, device=scores.device)
    else:
        by_score = torch.argsort(scores, stable=True)
        order = by_score[torch.argsort(things[by_score].to(torch.uint8), stable=True)]
    ranks[order] = torch.arange(1, count + 1, dtype=_RANK, device=scores.device)
    return ranks


@dataclass(frozen=True, eq=False)
class Composition:
    """The painted masks.

    Attributes:
        label: uint8 [H, W], 0 where no mask is.
        segment: int32 [H, W], position among the kept masks plus one, 0 where no mask is.
        area: int64 [N], pixels of each mask before others cover it.
        kept: bool [N], False for masks that a filter dropped.
        score: float32 [H, W], the shown mask's score times its probability at the pixel, 0 where no mask is; None
            where the masks have no scores.
    """

    label: Tensor
    segment: Tensor
    area: Tensor
    kept: Tensor
    score: Tensor | None = None


def count_components(mask: Tensor) -> int:
    """Number of 4-connected components of a mask, bool [H, W]."""
    from scipy.ndimage import label

    return int(label(mask.cpu().numpy())[1])


def compose(
    masks: Iterable[Tensor],
    ranks: Tensor,
    values: Tensor,
    size: tuple[int, int],
    *,
    min_area: int = 0,
    max_components: int = 0,
    scores: Tensor | None = None,
) -> Composition:
    """Paint masks over one another.

    Args:
        masks: logits [n, H, W] in pieces, positive inside (or bool), N masks in all; each piece is looked at once and
            let go.
        ranks: int32 [N] from :func:`paint_ranks`.
        values: uint8 [N], the label of each mask.
        size: (H, W), for when there is no mask.
        min_area: drop masks under this many pixels.
        max_components: drop masks of more connected components; 0 for no limit.
        scores: float [N], 0 to 1, of the masks' classes; without them no pixel gets a score.
    """
    device = ranks.device
    top = torch.zeros(size, dtype=_RANK, device=device)
    score = None if scores is None else torch.zeros(size, device=device)
    count = len(ranks)
    area = torch.zeros(count, dtype=torch.int64, device=device)
    kept = torch.ones(count, dtype=torch.bool, device=device)
    start = 0
    for logits in masks:
        piece = logits > 0
        stop = start + len(piece)
        area[start:stop] = piece.flatten(1).sum(1)
        good = area[start:stop] >= min_area
        if max_components:
            few = [count_components(mask) <= max_components for mask in piece]
            good &= torch.tensor(few, device=device)
        kept[start:stop] = good
        weight = torch.where(good, ranks[start:stop], 0)
        before, painted = top, piece * weight[:, None, None]
        top = torch.maximum(before, painted.amax(0))
        if score is not None and scores is not None:
            shown = painted.argmax(0, keepdim=True)  # ranks differ, so it is one mask
            sure = logits.gather(0, shown)[0].sigmoid() * scores[start:stop].to(device)[shown[0]]
            score = torch.where(top > before, sure, score)
        start = stop
    value_of_rank = torch.zeros(count + 1, dtype=torch.uint8, device=device)
    value_of_rank[ranks.long()] = values
    segment_of_rank = torch.zeros(count + 1, dtype=torch.int32, device=device)
    segment_of_rank[ranks.long()] = torch.cumsum(kept, 0, dtype=torch.int32)
    flat = top.long()
    return Composition(value_of_rank[flat], segment_of_rank[flat], area, kept, score)
