"""The losses of an anchor head: focal for the classes, smooth L1 for the boxes, cross-entropy for the direction.

Source: SECOND (Yan et al., Sensors 2018, section 3.3), with the constants of OpenPCDet's ``second.yaml``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, smooth_l1_loss

from .anchors import Targets
from .boxes import wrap

DIRECTION_OFFSET = 0.78539
"""Radians: a heading in [offset, offset + π) has direction 0."""
_ALPHA, _GAMMA, _BETA = 0.25, 2.0, 1 / 9


@dataclass(frozen=True)
class LossWeights:
    """The weights of the three terms."""

    classes: float = 1.0
    boxes: float = 2.0
    direction: float = 0.2


def focal(logit: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss of each logit, α = 0.25 and γ = 2 (Lin et al., 2017); ``target`` 0 or 1, of the same shape."""
    p = torch.sigmoid(logit)
    wrong = target * (1 - p) + (1 - target) * p
    alpha = target * _ALPHA + (1 - target) * (1 - _ALPHA)
    return alpha * wrong**_GAMMA * binary_cross_entropy_with_logits(logit, target, reduction="none")


def box_loss(code: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 (β = 1/9) of each number of codes [..., 7]; of the heading, of the sine of the difference.

    The sine cannot tell a heading from its opposite; the direction's term does.
    """
    turn, wanted = code[..., 6:], target[..., 6:]
    ours = torch.cat((code[..., :6], torch.sin(turn) * torch.cos(wanted)), -1)
    theirs = torch.cat((target[..., :6], torch.cos(turn) * torch.sin(wanted)), -1)
    return smooth_l1_loss(ours, theirs, reduction="none", beta=_BETA)


def direction_of(heading: Tensor, directions: int = 2) -> Tensor:
    """The direction of headings in radians, int64: which part of the circle, counted from :data:`DIRECTION_OFFSET`."""
    turn = wrap(heading - DIRECTION_OFFSET, 2 * math.pi, 0.0)
    return torch.floor(turn / (2 * math.pi / directions)).long().clamp(0, directions - 1)


def detection_loss(
    logit: Tensor, code: Tensor, direction: Tensor, targets: Targets, anchors: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """The terms of the loss, weighted: ``classes``, ``boxes``, ``direction``.

    Each is summed over the anchors of a cloud, over the number of its matched anchors (at least 1), and averaged over the
    clouds.

    Args:
        logit: [B, A, classes]; code [B, A, 7]; direction [B, A, directions]: the head's output.
        anchors: [A, 7].
    """
    matched = targets.label > 0
    per_anchor = 1 / matched.sum(1, keepdim=True).clamp(min=1).to(logit.dtype)
    clouds = len(logit)
    wanted = one_hot(targets.label.clamp(min=0), logit.shape[2] + 1)[..., 1:].to(logit.dtype)
    used = (targets.label >= 0).to(logit.dtype) * per_anchor
    weight = matched.to(logit.dtype) * per_anchor
    heading = targets.code[..., 6] + anchors[:, 6]
    turn = cross_entropy(direction.transpose(1, 2), direction_of(heading, direction.shape[2]), reduction="none")
    return {
        "classes": weights.classes * (focal(logit, wanted) * used[..., None]).sum() / clouds,
        "boxes": weights.boxes * (box_loss(code, targets.code) * weight[..., None]).sum() / clouds,
        "direction": weights.direction * (turn * weight).sum() / clouds,
    }
