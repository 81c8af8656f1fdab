"""Seal (NeurIPS 2023): contrast on segments of a foundation model, and consistency of objects over two scans.

Its training code is not public. What is here is the paper as far as it says it, and the reading below where it does not;
each such choice is a setting.

- ``superpixel``: SLidR's contrast, on segments that are objects (``olivine labelgen --segments sam``).
- ``temporal``: the scans t and t + n of a scene are clustered together, once, when the shards are built
  (``olivine build-pairs --clusters n``), so that an object has one number in both. Each point of an object at t is drawn to
  the object's mean embedding at t + n, away from other objects', and the other way round. Both scans pass the same
  network, with gradients in both.
- ``p2s``: each point is drawn to its own object's pooled embedding in the same scan.
- ``classes`` (off by default): SuperFlow's term, :func:`~._temporal.class_contrast`.

A frame whose scene has no frame n after it trains the first term alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...common.settings import check_ranges
from ..group import Group
from ..method import Context, Needs, Reduce, Term
from ..objectives import info_nce, segment_contrast
from ..transfer import to_device
from ._temporal import class_contrast
from .slidr import Slidr, SlidrSettings


@dataclass(frozen=True)
class SealSettings(SlidrSettings):
    """Seal's terms.

    Attributes:
        interval: n, frames from a scan to its partner; that of ``build-pairs --clusters``.
        uncovered: pixels that no segment covers are left out, or are one more segment of their image.
        anchor: in ``temporal`` each point of an object, or the object's mean.
        average: of ``temporal`` and ``p2s``, over points, or in each object and then over objects.
        pool: an object's embedding in ``p2s``: the largest value of each channel over its points, or the mean.
        superpixel_weight, temporal_weight, p2s_weight: of the terms.
        classes_weight: of SuperFlow's term. A term of weight 0 is not computed, and what it reads is not needed.
    """

    name: str = "seal"
    interval: int = 1
    uncovered: Literal["ignored", "segment"] = "ignored"
    anchor: Literal["points", "means"] = "points"
    average: Literal["points", "segments"] = "segments"
    pool: Literal["max", "mean"] = "max"
    superpixel_weight: float = 1.0
    temporal_weight: float = 1.0
    p2s_weight: float = 1.0
    classes_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges; :func:`~olivine.common.settings.check_ranges` raises."""
        most = 1e9
        check_ranges("method", self, interval=(1, 1 << 16), superpixel_weight=(0, most), temporal_weight=(0, most))
        check_ranges("method", self, p2s_weight=(0, most), classes_weight=(0, most))

    @property
    def clusters(self) -> bool:
        """Whether a term reads clusters."""
        return self.temporal_weight > 0 or self.p2s_weight > 0


class Objects(NamedTuple):
    """Points of a scan that belong to objects.

    Attributes:
        feature: unit embeddings, [N, p].
        number: the object of each, int64 [N] on the CPU, from 0; each object has a point.
    """

    feature: Tensor
    number: Tensor

    @property
    def row(self) -> Tensor:
        """``number`` beside the embeddings."""
        return to_device(self.number, self.feature.device)

    @property
    def objects(self) -> int:
        """S, the objects."""
        return int(self.number.max()) + 1

    def mean(self) -> Tensor:
        """Each object's mean embedding, [S, p], not normalised again."""
        sums = self.feature.new_zeros(self.objects, self.feature.shape[1]).index_add(0, self.row, self.feature)
        return sums / to_device(torch.bincount(self.number)[:, None], sums.device)

    def highest(self) -> Tensor:
        """The largest value of each channel over an object's points, [S, p]."""
        index = self.row[:, None].expand_as(self.feature)
        none = self.feature.new_zeros(self.objects, self.feature.shape[1])
        return none.scatter_reduce(0, index, self.feature, "amax", include_self=False)


class Seal(Slidr):
    """See the module."""

    Settings = SealSettings

    def __init__(self, settings: SealSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.settings = settings
        weights = ("superpixel", "temporal", "p2s", "classes")
        self.terms = tuple(name for name in weights if getattr(settings, f"{name}_weight") > 0)
        self._frames = self._paired = self._matched = self._seen = self._alone = 0

    @classmethod
    def needs(cls, settings: SlidrSettings) -> Needs:
        """Segment maps, and for the terms over two scans the later scan with its clusters or labels."""
        assert isinstance(settings, SealSettings)
        own, others = ["segment"], []
        if settings.clusters:
            own.append("cluster_next")
            others.append("cluster_previous")
        if settings.classes_weight > 0:
            own.append("pair_label")
            others.append("pair_label")
        return Needs(tuple(own), scans=(0, settings.interval) if others else (0,), scan_columns=tuple(others))

    def forward(self, group: Group) -> dict[str, Term]:
        """The terms of one contrast group."""
        s = self.settings
        terms: dict[str, Term] = {}
        if s.superpixel_weight > 0:
            superpoint, superpixel, _ = self.pooled(group, uncovered=s.uncovered == "segment")
            if len(superpoint):
                terms["superpixel"] = Term(info_nce(superpoint, superpixel, s.temperature), s.superpixel_weight)
        joint = list(self._objects(group)) if s.clusters else []
        if joint and s.temporal_weight > 0:
            value = torch.stack([self._temporal(*scans) + self._temporal(*scans[::-1]) for scans in joint]).mean()
            terms["temporal"] = Term(value, s.temporal_weight)
        if joint and s.p2s_weight > 0:
            value = torch.stack([self._point_to_segment(*here) for here, _ in joint]).mean()
            terms["p2s"] = Term(value, s.p2s_weight)
        if s.classes_weight > 0:
            classes = class_contrast(group, s.interval, self.point_head, s.temperature)
            if classes is not None:
                terms["classes"] = Term(classes, s.classes_weight)
        self._note(group, joint)
        return terms

    def _objects(self, group: Group) -> Iterator[tuple[Objects, Objects]]:
        """Of each frame that has a partner: both scans' points of the objects that are seen in both."""
        here, there = group.scan(0), group.scan(self.settings.interval)
        if here is None or there is None:
            return
        sides = []
        for scan, name in ((here, "cluster_next"), (there, "cluster_previous")):
            # On the CPU, so that nobody waits for a GPU.
            cluster = torch.where(scan.inside, scan.column(name, host=True).long(), -1)
            sides.append((scan, cluster, scan.frame_of_points()))
        for frame in there.frames:
            rows = [torch.nonzero((of_point == frame) & (cluster >= 0))[:, 0] for _, cluster, of_point in sides]
            found = [cluster.index_select(0, row) for (_, cluster, _), row in zip(sides, rows)]
            # A cluster may lie in one scan alone, or be cut out of one by the augmentation.
            shared = torch.unique(found[0])
            shared = shared[torch.isin(shared, found[1])]
            if not len(shared):
                continue
            both = []
            for (scan, _, _), row, cluster in zip(sides, rows, found):
                kept = torch.nonzero(torch.isin(cluster, shared))[:, 0]
                number = torch.searchsorted(shared, cluster.index_select(0, kept))
                both.append(Objects(scan.at(row.index_select(0, kept), self.point_head), number))
            yield both[0], both[1]

    def _temporal(self, here: Objects, there: Objects) -> Tensor:
        """From one scan to the other's mean embeddings."""
        s, prototype = self.settings, there.mean()
        if s.anchor == "means":
            return info_nce(here.mean(), prototype, s.temperature)
        return segment_contrast(here.feature, here.number, prototype, s.temperature, s.average)

    def _point_to_segment(self, feature: Tensor, number: Tensor) -> Tensor:
        s, objects = self.settings, Objects(feature, number)
        prototype = objects.mean() if s.pool == "mean" else objects.highest()
        return segment_contrast(feature, number, prototype, s.temperature, s.average)

    def _note(self, group: Group, joint: list[tuple[Objects, Objects]]) -> None:
        if not self.training or self.terms == ("superpixel",):
            return
        partner = group.scan(self.settings.interval)
        self._frames += group.frames
        self._paired += 0 if partner is None else len(partner.frames)
        self._matched += sum(here.objects for here, _ in joint)

    def log(self, step: int, reduce: Reduce) -> dict[str, float]:
        """``frames_paired``, frames of the step whose scene has the later scan; ``objects``, seen in both scans."""
        if self.terms == ("superpixel",):
            return {}
        counts = to_device([self._frames, self._paired, self._matched], self.pixel_head.weight.device)
        frames, paired, matched = map(int, reduce(counts).tolist())
        self._seen, self._alone = self._seen + frames, self._alone + frames - paired
        self._frames = self._paired = self._matched = 0
        return {"frames_paired": float(paired), "objects": float(matched)}

    def summary(self) -> list[str]:
        """Frames that trained without a second scan."""
        if not self._alone:
            return []
        return [
            f"{self._alone} of {self._seen} frames had no frame {self.settings.interval} after them in their scene: "
            "they trained the spatial part alone"
        ]
