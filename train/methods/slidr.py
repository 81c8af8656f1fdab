"""SLidR (CVPR 2022): contrast between superpoints and superpixels.

A superpixel is a SLIC segment of an image (``olivine labelgen --segments slic``: 150 wanted, compactness 6, sigma 3); its
superpoint is the points seen in it. Both sides are means of unit embeddings and are not normalised again, as in the
authors' code: their length lowers the contrast of mixed segments. The superpixel's mean runs over all its pixels in the
augmented crop. Negatives are all other superpixels of the contrast group's images that hold a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...common.settings import check_ranges
from ..group import Group
from ..method import Context, Method, MethodSettings, Needs, Term
from ..objectives import info_nce


@dataclass(frozen=True)
class SlidrSettings(MethodSettings):
    """SLidR's contrast; the defaults are the authors'.

    Attributes:
        dimension: of the embeddings.
        temperature: τ.
    """

    name: str = "slidr"
    dimension: int = 64
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_ranges("method", self, dimension=(1, 1 << 16), temperature=(0, 1e6, "(]"))


class Slidr(Method):
    """See the module."""

    Settings = SlidrSettings
    exported: ClassVar[dict[str, str]] = {"final": "point_head"}
    terms: tuple[str, ...] = ("superpixel",)

    def __init__(self, settings: SlidrSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.temperature = settings.temperature
        self.point_head = context.point_head(settings.dimension)
        self.pixel_head = nn.Linear(context.pixel_channels, settings.dimension)

    @classmethod
    def needs(cls, settings: SlidrSettings) -> Needs:
        """Segment maps beside the images."""
        return Needs(("segment",))

    def forward(self, group: Group) -> dict[str, Term]:
        """InfoNCE of the superpoints of the group's images with their superpixels."""
        superpoint, superpixel, _ = self.pooled(group)
        if not len(superpoint):
            return {}
        return {"superpixel": Term(info_nce(superpoint, superpixel, self.temperature), 1.0)}

    def pooled(self, group: Group, encoder: bool = False, uncovered: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The superpixels that hold a point: superpoints [S, p], superpixels [S, p]; with ``encoder`` features [S, E].

        Args:
            encoder, uncovered: see :class:`~olivine.train.group.Pixels`.
        """
        number, count = group.pixels.segments(uncovered)
        segment = group.pixels.of_pairs(number)
        held = torch.bincount(segment[segment >= 0], minlength=count).nonzero()[:, 0]
        if not len(held):
            none = self.pixel_head.weight.new_zeros(0, 1)
            return none, none, none
        superpoint = group.points.mean_by(segment, count, self.point_head)
        superpixel, feature = group.pixels.means_by_segment(self.pixel_head, encoder, uncovered)
        if encoder:
            feature = feature.index_select(0, held)
        return superpoint.index_select(0, held), superpixel.index_select(0, held), feature
