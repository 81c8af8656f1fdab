"""A term between two scans that any method may add: SuperFlow's contrast of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..group import Group
from ..objectives import info_nce, segment_mean
from ..transfer import to_device


def class_contrast(group: Group, after: int, head: nn.Module, temperature: float) -> Tensor | None:
    """InfoNCE between the mean embeddings of each class in a frame and in another scan of its scene (SuperFlow, ECCV 2024).

    SuperFlow pools by image segments whose numbers mean the same class in every image, over all cameras of a frame; the
    pairs' weak labels are such numbers. Negatives are other classes and other frames, the same class in another frame
    included. Means are not normalised again. Points without a label (0) belong to none.

    Args:
        after: the other scan, as the method's needs name it, with the column ``pair_label``.
        head: a point head.
        temperature: τ.

    Returns:
        scalar; None where no class is seen in both scans of a frame.
    """
    there, classes = group.scan(after), len(group.class_count)
    if there is None:
        return None
    # On the CPU, so that nobody waits for a GPU.
    label, total = group.column("pair_label", host=True), group.frames * classes
    here_key = torch.where(label > 0, group.frame_of_pairs(host=True) * classes + label, -1)
    point, label = there.points_of_pairs(), there.column("pair_label", host=True)
    kept = torch.nonzero((label > 0) & there.inside.index_select(0, point))[:, 0]
    point, label = point.index_select(0, kept), label.index_select(0, kept)
    there_key = there.frame_of_points().index_select(0, point) * classes + label
    both = torch.bincount(here_key[here_key >= 0], minlength=total) * torch.bincount(there_key, minlength=total)
    rows = torch.nonzero(both)[:, 0]
    if not len(rows):
        return None
    value = there.at(point, head)
    means = group.points.mean_by(here_key, total, head), segment_mean(value, there_key, total)
    here, other = (mean.index_select(0, to_device(rows, mean.device)) for mean in means)
    return info_nce(here, other, temperature)
