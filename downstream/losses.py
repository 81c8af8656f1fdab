"""Losses of the segmentation protocols: cross-entropy and Lovász-Softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Truth:
    """The labels of a batch's places that count. Their number is not known before a GPU has counted them.

    Attributes:
        place: int64 [N], the places with a label.
        label: int64 [N], from 1 on.
        present: int64 [P], the labels that are among them, ascending.
    """

    place: Tensor
    label: Tensor
    present: Tensor

    @classmethod
    def of(cls, label: Tensor) -> Truth:
        """Of the labels of all places, int64 [V], 0 = ignored."""
        place = label.nonzero().squeeze(1)
        label = label.index_select(0, place)
        return cls(place, label, torch.unique(label))


def lovasz_softmax(probability: Tensor, label: Tensor, present: Tensor) -> Tensor:
    """Lovász-Softmax over the classes present, scalar.

    The convex closure of one minus the Jaccard index of each class, averaged over the classes that
    ``label`` holds (Berman et al., "The Lovász-Softmax loss", CVPR 2018, eq. 8 and 9).

    Args:
        probability: [N, C], rows that sum to one.
        label: int64 [N] in [0, C).
        present: int64 [P], the labels that are among them.
    """
    if label.numel() == 0:
        return probability.sum() * 0.0
    # Class by class, so that the sort runs along contiguous memory.
    truth = (present[:, None] == label[None, :]).to(probability.dtype)
    error = (truth - probability.t().index_select(0, present)).abs()
    order = falling_order(error.detach())
    error = error.gather(1, order)
    truth = truth.gather(1, order)
    # Jaccard index after the first i points of the falling order; its increments are the
    # gradient of the Lovász extension.
    total = truth.sum(dim=1, keepdim=True)
    intersection = total - truth.cumsum(1)
    union = total + (1.0 - truth).cumsum(1)
    jaccard = 1.0 - intersection / union
    gradient = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (error * gradient).sum(dim=1).mean()


def falling_order(error: Tensor) -> Tensor:
    """Where the numbers of each row stand when they fall; equal ones stay in their order. Not negative, [R, N] -> int64.

    A CPU sorts whole numbers faster than pairs of a number and its place: a float32 that is not negative
    is ordered like its bits, and the place fits beside them.
    """
    if error.device.type != "cpu" or error.dtype != torch.float32:
        return error.sort(dim=1, descending=True, stable=True).indices
    place = np.arange(error.shape[1])
    key = (~error.contiguous().numpy().view(np.uint32)).astype(np.uint64) << np.uint64(32) | place.astype(np.uint64)
    key.sort(axis=1)
    return torch.from_numpy((key & np.uint64(0xFFFFFFFF)).view(np.int64))


def segmentation_loss(logit: Tensor, truth: Truth) -> Tensor:
    """Cross-entropy plus Lovász-Softmax, one to one, over the places with a label; scalar.

    Args:
        logit: of all places, [V, K + 1].
        truth: their labels.
    """
    logit, label = logit.index_select(0, truth.place), truth.label
    if label.numel() == 0:
        return logit.sum() * 0.0
    return functional.cross_entropy(logit, label) + lovasz_softmax(logit.softmax(1), label, truth.present)
