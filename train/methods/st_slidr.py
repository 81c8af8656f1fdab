"""ST-SLidR (CVPR 2023): SLidR, tolerant of negatives that look like the anchor, and balanced over what is in the images.

Two superpixels are alike by the cosine of their mean features by the frozen encoder, before the head. Of each anchor's
negatives those most like it are dropped, and anchors that are like many others weigh less. Superpixels too small for a
cell of the encoder's map have no feature there; they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...common.settings import check_ranges
from ..backbone import unit_rows
from ..group import Group
from ..method import Context, Term
from ..objectives import tolerant_contrast
from .slidr import Slidr, SlidrSettings


@dataclass(frozen=True)
class StSlidrSettings(SlidrSettings):
    """ST-SLidR's contrast; the defaults are the authors'.

    Attributes:
        quantile: share of each anchor's superpixels to drop, the anchor's own among them: with a hundred superpixels
            or fewer the authors' 0.01 drops none. 0 drops none and weighs each logit by 1 − similarity.
        count: negatives to drop instead, whatever the number of superpixels; None is by ``quantile``.
        dropped: a dropped negative keeps the logit 0, as in the authors' code, or is excluded from the sum.
        balanced: anchors like many others weigh less.
    """

    name: str = "st-slidr"
    quantile: float = 0.01
    count: int | None = None
    dropped: Literal["zero_logit", "excluded"] = "zero_logit"
    balanced: bool = True

    def __post_init__(self) -> None:
        """Check the ranges; :func:`~olivine.common.settings.check_ranges` raises."""
        super().__post_init__()
        check_ranges("method", self, quantile=(0, 1), count=(0, 1 << 40))


class StSlidr(Slidr):
    """See the module."""

    Settings = StSlidrSettings

    def __init__(self, settings: StSlidrSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.settings = settings

    def forward(self, group: Group) -> dict[str, Term]:
        """The tolerant contrast of the superpoints of the group's images with their superpixels."""
        s = self.settings
        superpoint, superpixel, feature = self.pooled(group, encoder=True)
        if not len(feature):
            return {}
        feature = unit_rows(feature)
        value = tolerant_contrast(
            superpoint,
            superpixel,
            feature @ feature.T,
            s.temperature,
            s.quantile,
            s.dropped,
            s.balanced,
            count=s.count,
        )
        return {"superpixel": Term(value, 1.0)}
