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
from ..transfer import to_device


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
        """The superpixels that hold a point: superpoints [S, p], superpixels [S, p], and features, empty or [S, E].

        Args:
            encoder: with the encoder's own features, and without the superpixels that have none.
            uncovered: see :class:`~olivine.train.group.Pixels`.
        """
        _, of_pair, count = group.pixels.segments(uncovered)
        if not count:
            none = self.pixel_head.weight.new_zeros(0, 1)
            return none, none, none
        superpoint = group.points.mean_by(of_pair, count, self.point_head)
        superpixel, feature, cells = group.pixels.means_by_segment(self.pixel_head, encoder, uncovered)
        if not encoder:
            return superpoint, superpixel, feature
        present = to_device(torch.nonzero(cells)[:, 0], feature.device)
        return (
            superpoint.index_select(0, present),
            superpixel.index_select(0, present),
            feature.index_select(0, present),
        )
