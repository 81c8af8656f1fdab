"""UOV's tri-modal pre-training (TMP; Sun et al., 2024): points, regions of an open-vocabulary network, and text.

A superpoint is the points seen in a region, its embedding their mean, not normalised. It is contrasted with the features
of all regions of the contrast group (another region of the same phrase is a negative, as in the authors' code), and with
the text embeddings of all phrases, where phrases of one category share the target by their similarity. Regions' features
and texts come with the shards (``olivine build-pairs --regions``): no image network runs, no image is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...common import OlivineError
from ...common.settings import check_ranges
from ..group import Group
from ..method import Context, Method, MethodSettings, Needs, Term
from ..objectives import info_nce, soft_target_cross_entropy
from ..transfer import to_device


@dataclass(frozen=True)
class UovTmpSettings(MethodSettings):
    """UOV's two terms; the defaults are the authors'.

    Attributes:
        temperature: τ.
        own_phrase: w, the part of the text target that is the region's own phrase alone.
        region_weight, text_weight: of the two terms.
    """

    name: str = "uov-tmp"
    temperature: float = 0.07
    own_phrase: float = 0.2
    region_weight: float = 0.5
    text_weight: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges; :func:`~olivine.common.settings.check_ranges` raises."""
        check_ranges("method", self, temperature=(1e-6, 1e6), own_phrase=(0, 1))
        check_ranges("method", self, region_weight=(0, 1e6), text_weight=(0, 1e6))


class UovTmp(Method):
    """See the module."""

    Settings = UovTmpSettings
    exported: ClassVar[dict[str, str]] = {"final": "point_head"}
    terms = ("region", "text")
    text: Tensor
    target: Tensor

    def __init__(self, settings: UovTmpSettings, context: Context) -> None:
        super().__init__(settings, context)
        if context.text is None:
            raise OlivineError("a method of regions without their text table", where="needs().text")
        self.settings = settings
        self.point_head = context.point_head(context.text.dimension)
        text = torch.from_numpy(context.text.embedding)
        self.register_buffer("text", text)
        self.register_buffer("target", text_target(text, context.text.categories, settings.own_phrase))

    @classmethod
    def needs(cls, settings: UovTmpSettings) -> Needs:
        """Region maps, phrases and features; no encoder."""
        return Needs(("segment", "region_phrase", "region_feature"), encoder=False, text=True)

    def forward(self, group: Group) -> dict[str, Term]:
        """Both terms over the regions of the group's images that hold a point."""
        phrase, feature = group.column("region_phrase").long(), group.column("region_feature")
        images, room = phrase.shape
        segment = group.column("segment", host=True).long()
        if int(segment.max()) >= room:
            raise OlivineError(
                f"a region map holds the region {int(segment.max()) + 1}, there is room for {room}",
                where=", ".join(group.tokens),
                remedy="check the shards: olivine build-pairs --check",
            )
        # Regions of all images, numbered through: image · R + region.
        number = torch.where(segment >= 0, segment + room * torch.arange(images)[:, None, None], -1)
        of_pair = group.pixels.of_pairs(number)
        held = torch.unique(of_pair[of_pair >= 0])
        if not len(held):
            return {}
        held = to_device(held, phrase.device)
        superpoint = group.points.mean_by(of_pair, images * room, self.point_head).index_select(0, held)
        region = feature.flatten(0, 1).index_select(0, held).to(superpoint.dtype)
        region = torch.nn.functional.normalize(region, dim=1)
        target = self.target.index_select(0, phrase.flatten().index_select(0, held))
        settings = self.settings
        of_region = info_nce(superpoint, region, settings.temperature)
        of_text = soft_target_cross_entropy(superpoint, self.text, target, settings.temperature)
        return {"region": Term(of_region, settings.region_weight), "text": Term(of_text, settings.text_weight)}


def text_target(text: Tensor, categories: tuple[str, ...], own_phrase: float) -> Tensor:
    """The target of each phrase over all phrases, [V, V]: t = w·onehot + (1 − w)·(T Tᵀ within the category), t / Σt.

    Args:
        text: T, [V, E], unit rows.
        categories: of each phrase.
        own_phrase: w.
    """
    number = {name: k for k, name in enumerate(dict.fromkeys(categories))}
    category = torch.tensor([number[name] for name in categories])
    together = (category[:, None] == category).to(text.dtype)
    target = own_phrase * torch.eye(len(text), dtype=text.dtype) + (1 - own_phrase) * (text @ text.T) * together
    normalised: Tensor = target / target.sum(1, keepdim=True)
    return normalised
