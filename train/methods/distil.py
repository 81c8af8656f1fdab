"""Plain distillation, as ScaLR (CVPR 2024) has it: each point's embedding is to be the image encoder's own feature.

The loss is the mean over pairs of ‖k/|k| − q/|q|‖₂: k the 3D network's output through a head as wide as the encoder, q the
frozen feature at the pair's pixel. No temperature, no negatives, no head on the images, no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...common.settings import check_ranges
from ..backbone import unit_rows
from ..group import Group
from ..method import Context, Method, MethodSettings, Term
from ..sampling import draw_without_replacement
from ..sparse import SparseTensor

_PAIR_DRAW, _CAMERA_DRAW = 0, 1


@dataclass(frozen=True)
class DistilSettings(MethodSettings):
    """The head and the draw; the defaults are ScaLR's.

    Attributes:
        head: on the 3D network's features: a linear layer, or two with a ReLU between them (ScaLR+ has an MLP).
        width: of the MLP's hidden layer.
        cameras: images of each frame, drawn anew in each step; 0 takes all. The others do not pass the encoder.
        pairs: drawn for each contrast group, without replacement; 0 takes all.
    """

    name: str = "distil"
    head: Literal["linear", "mlp"] = "linear"
    width: int = 2048
    cameras: int = 1
    pairs: int = 0

    def __post_init__(self) -> None:
        """Check the ranges; :func:`~olivine.common.settings.check_ranges` raises."""
        check_ranges("method", self, width=(1, 1 << 20), cameras=(0, 1 << 16), pairs=(0, 1 << 40))


class MlpHead(nn.Module):
    """A hidden layer by a point head, ReLU, a linear layer."""

    def __init__(self, hidden: nn.Module, width: int, out_channels: int) -> None:
        super().__init__()
        self.hidden, self.out = hidden, nn.Linear(width, out_channels)

    def forward(self, cells: SparseTensor) -> SparseTensor:
        """[cells, C] → [cells, out_channels]."""
        feature = self.hidden(cells).feature
        return cells.replace(self.out(torch.relu(feature)))


class Distil(Method):
    """See the module."""

    Settings = DistilSettings
    terms = ("distil",)
    exported: ClassVar[dict[str, str]] = {}

    def __init__(self, settings: DistilSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.settings, channels = settings, context.pixel_channels
        self.point_head = context.point_head(channels if settings.head == "linear" else settings.width)
        if settings.head == "mlp":
            self.point_head = MlpHead(self.point_head, settings.width, channels)

    def forward(self, group: Group) -> dict[str, Term]:
        """The mean distance of unit embeddings and unit features."""
        rows = self._draw(group)
        (feature,) = group.pixels.at(rows)
        distance = group.points.at(rows, self.point_head) - unit_rows(feature)
        return {"distil": Term(torch.linalg.vector_norm(distance, dim=1).mean(), 1.0)}

    def _draw(self, group: Group) -> Tensor:
        s = self.settings
        image = group.column("pair_camera", host=True)
        rows = torch.arange(group.size)
        if s.cameras:
            place, number = torch.unique(
                torch.stack([group.frame_of_pairs(host=True), image]), dim=1, return_inverse=True
            )
            generator = group.generator(_CAMERA_DRAW)
            chosen = torch.zeros(place.shape[1], dtype=torch.bool)
            for frame in place[0].unique():
                members = torch.nonzero(place[0] == frame)[:, 0]
                chosen[members[torch.randperm(len(members), generator=generator)[: s.cameras]]] = True
            rows = torch.nonzero(chosen[number])[:, 0]
        if s.pairs:
            drawn = draw_without_replacement(None, len(rows), s.pairs, group.generator(_PAIR_DRAW))
            rows = rows[drawn]
        return rows
