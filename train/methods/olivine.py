"""OLIVINE (NeurIPS 2024): point-pixel contrast, contrast by weak labels, and consistency with each class's distribution.

L = w₁ L_ppkt + w₂ L_sup + w₃ L_kl. L_ppkt (eq. 1, here ``ppkt``) sees a uniform draw of pairs, L_sup (eq. 2, ``wcd``)
a density- and category-aware draw (eq. 14, 15), and L_kl (eq. 10, 11, ``scr``) and the class statistics (eq. 6-9) every
pair. With ``wcd`` and ``scr`` off it is PPKT on the dilated encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...common import OlivineError
from ...common.settings import check_ranges
from ..backbone import unit_rows
from ..group import Group
from ..method import Context, Method, MethodSettings, Needs, Reduce, Term
from ..objectives import class_sums, consistency, info_nce, weakly_supervised_contrast
from ..sampling import draw_without_replacement, sampling_probability
from ..transfer import to_device
from ._batch_density import batch_density
from ._olivine_log import OlivineLog
from ._vmf_statistics import VmfStatistics

_PPKT_DRAW, _WCD_DRAW = 0, 1
_DRAW_LABELS = {"read": "pair_label", "weak": "pair_weak_label", "before the vote": "pair_pixel_label"}


@dataclass(frozen=True)
class OlivineSettings(MethodSettings):
    """OLIVINE's terms, draws and heads; the defaults are the paper's.

    Attributes:
        dimension: p, of the embeddings.
        temperature: τ.
        pairs: drawn for each contrastive term and contrast group, without replacement.
        ppkt_weight, wcd_weight, scr_weight: w₁, w₂, w₃.
        wcd, scr: the second and third term on or off.
        wcd_form: eq. 2, or the public code's reading.
        decoupled_heads: a second pair of heads for the terms that read labels.
        background: label 0 is one more class, or is left out of those terms.
        mode: of the draw for ``wcd``; that for ``ppkt`` is uniform.
        draw_labels: what that draw knows of a pair: the label that ``wcd`` reads; the shards' weak label where it reads the
            ground truth; or the label before the vote. So one draw serves several labels. Frequencies are then the group's.
        scored_draw: that draw is also in proportion to the labels' confidence (the shards' ``pair_score``).
        least_score: that draw leaves out pairs whose label is less sure, 0 to 1.
        weigh_pairs: in ``wcd`` anchors and positives count alike, or in proportion to the labels' confidence.
        frequency: class frequency over the data set, each frame, or the group at hand.
        density: as stored in the shards, or over the group's pairs as the public code makes it: of distances in whole
            voxels (SR-UNet) or in whole metres (VoxelNet).
        distribution: of each class in ``scr``.
        kl_average: over pairs, or in each class and then over classes.
        warmup: fraction of all steps in which only the class statistics run; then ``scr`` begins.
        freeze: the statistics stay as they are after the warm-up.
        alpha: α of the moving average; None is 1 / warm-up steps.
        class_mean: z̄ moves by the mean over the global batch, or by each contrast group's, as the public code's GPUs do.
        bias_correction: of the moving average; an option of ours that makes κ and its gradient much larger.
    """

    name: str = "olivine"
    dimension: int = 64
    temperature: float = 0.07
    pairs: int = 4096
    ppkt_weight: float = 0.5
    wcd: bool = True
    wcd_weight: float = 0.5
    wcd_form: Literal["paper", "reference"] = "paper"
    decoupled_heads: bool = True
    background: Literal["class", "ignored"] = "class"
    mode: Literal["random", "density", "category", "dcas"] = "dcas"
    draw_labels: Literal["read", "weak", "before the vote"] = "read"
    scored_draw: bool = False
    least_score: float = 0.0
    weigh_pairs: Literal["alike", "score"] = "alike"
    frequency: Literal["dataset", "frame", "batch"] = "dataset"
    density: Literal["shard", "batch", "batch metres"] = "shard"
    scr: bool = True
    scr_weight: float = 1.0
    distribution: Literal["vmf", "dirac"] = "vmf"
    kl_average: Literal["pairs", "classes"] = "pairs"
    warmup: float = 0.114
    freeze: bool = True
    alpha: float | None = None
    class_mean: Literal["batch", "group"] = "batch"
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.bias_correction and self.class_mean == "group":
            raise OlivineError(
                "bias correction with the public code's class means, which have none",
                where="method.bias_correction",
                remedy="set method.bias_correction=false, or method.class_mean=batch",
            )
        if self.draw_labels != "read" and self.frequency != "batch":
            raise OlivineError(
                f"the data set's frequencies are those of the labels that are read, not of draw_labels={self.draw_labels}",
                where="method.draw_labels",
                remedy="set method.frequency=batch",
            )
        check_ranges("method", self, dimension=(2, 1 << 16), pairs=(1, 1 << 40), temperature=(0, 1e6, "(]"))
        check_ranges("method", self, ppkt_weight=(0, 1e9), wcd_weight=(0, 1e9), scr_weight=(0, 1e9))
        check_ranges("method", self, least_score=(0, 1), warmup=(0, 1), alpha=(0, 1, "(]"))


class Olivine(Method):
    """See the module."""

    Settings = OlivineSettings
    exported: ClassVar[dict[str, str]] = {"final": "point_head", "final_class_level": "category_point_head"}

    def __init__(self, settings: OlivineSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.settings, self.voxel_size = settings, context.voxel_size
        self.warmup = round(settings.warmup * context.steps) if settings.scr else 0
        if settings.scr and not (1 if settings.freeze else 0) <= self.warmup < context.steps:
            raise OlivineError(
                f"a warm-up of {self.warmup} of {context.steps} steps leaves "
                + ("no step for the class statistics" if self.warmup == 0 else "none for the consistency term"),
                where="method.warmup",
                remedy="change method.warmup, run longer, or switch the term off: --set method.scr=false",
            )
        self.terms = ("ppkt", *(("wcd",) if settings.wcd else ()), *(("scr",) if settings.scr else ()))
        both = settings.decoupled_heads
        self.point_head = context.point_head(settings.dimension)
        self.category_point_head = context.point_head(settings.dimension) if both else None
        self.pixel_head = nn.Linear(context.pixel_channels, settings.dimension)
        self.category_pixel_head = nn.Linear(context.pixel_channels, settings.dimension) if both else None
        alpha = settings.alpha if settings.alpha is not None else 1 / max(1, self.warmup)
        self.statistics = VmfStatistics(
            len(context.label_names),
            settings.dimension,
            alpha,
            by_group=settings.class_mean == "group",
            bias_correction=settings.bias_correction,
        )
        self.notes = OlivineLog(context.label_names, settings.pairs)

    @classmethod
    def needs(cls, settings: OlivineSettings) -> Needs:
        """Labels and their counts for the terms that read them, densities where a draw is by density."""
        columns = ["pair_label"]
        if settings.wcd and settings.mode in ("density", "dcas") and settings.density == "shard":
            columns.append("pair_density")
        if settings.wcd and (settings.scored_draw or settings.least_score > 0 or settings.weigh_pairs == "score"):
            columns.append("pair_score")
        if settings.wcd and settings.draw_labels != "read":
            columns.append(_DRAW_LABELS[settings.draw_labels])
        if settings.wcd and settings.frequency == "frame":
            columns.append("class_count")
        return Needs(tuple(columns))

    def forward(self, group: Group) -> dict[str, Term]:
        """The terms of one contrast group; in evaluation mode without ``scr``, which moves with the statistics."""
        s = self.settings
        terms: dict[str, Term] = {}
        ppkt = draw_without_replacement(None, group.size, s.pairs, group.generator(_PPKT_DRAW))
        wcd = self.draw_by_label(group) if s.wcd else ppkt[:0]
        ppkt_feature, wcd_feature = group.pixels.at(ppkt, wcd, dtype=self.pixel_head.weight.dtype)
        g = group.points.at(ppkt, self.point_head)
        f = unit_rows(self.pixel_head(ppkt_feature))
        terms["ppkt"] = Term(info_nce(g, f, s.temperature), s.ppkt_weight)

        label = group.column("pair_label", host=True).index_select(0, wcd)
        if len(wcd):
            g = group.points.at(wcd, self.category_point_head or self.point_head)
            f = unit_rows((self.category_pixel_head or self.pixel_head)(wcd_feature))
            score = group.column("pair_score", host=True)[wcd].float() if s.weigh_pairs == "score" else None
            weight = None if score is None else to_device(score, g.device)
            value = weakly_supervised_contrast(g, f, label, s.temperature, s.wcd_form, weight)
            terms["wcd"] = Term(value, s.wcd_weight)
        if s.scr and self.training and (consistency := self._consistency(group)) is not None:
            terms["scr"] = Term(consistency, s.scr_weight)
        if self.training:
            self.notes.draw(label, len(ppkt), *((len(wcd),) if s.wcd else ()))
        return terms

    def draw_by_label(self, group: Group) -> Tensor:
        """The pairs of ``wcd`` (eq. 15), rows of the group's pairs, on the CPU."""
        s, label = self.settings, group.column(_DRAW_LABELS[self.settings.draw_labels], host=True).long()
        candidates = torch.arange(group.size)
        if s.background == "ignored":
            candidates = candidates[label > 0]
        score = None
        if s.scored_draw or s.least_score > 0 or s.weigh_pairs == "score":
            score = group.column("pair_score", host=True)[candidates].float() / 255  # 0: not known, and never drawn
            sure = (score > 0) & (score >= s.least_score)
            candidates, score = candidates[sure], score[sure] if s.scored_draw else None
        probability = None
        if (s.mode != "random" or score is not None) and len(candidates) > s.pairs:
            density, frequency = self._density(group)[candidates], self._frequency(group, label, candidates)
            probability = sampling_probability(density, *frequency, s.mode, score)
        drawn = draw_without_replacement(probability, len(candidates), s.pairs, group.generator(_WCD_DRAW))
        return candidates[drawn]

    def _frequency(self, group: Group, label: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates' classes and the classes' counts, as ``frequency`` says."""
        label, count = label[candidates], group.class_count
        # The counts of ground-truth classes over the data set are not known: the group's stand for them.
        if self.settings.frequency == "batch" or not bool(count.any()):
            return label, torch.bincount(label, minlength=len(count))
        if self.settings.frequency == "dataset":
            return label, count.clamp(min=1)  # a true class that the weak labels lack has none
        counts = group.column("class_count", host=True)  # a class in another frame is another class
        return group.frame_of_pairs(host=True)[candidates] * counts.shape[1] + label, counts.flatten().clamp(min=1)

    def _density(self, group: Group) -> Tensor:
        if self.settings.mode == "category":
            return torch.ones(group.size)
        if self.settings.density == "shard":
            return group.column("pair_density", host=True)
        size = self.voxel_size if self.settings.density == "batch" else None
        return batch_density(group.points_of_pairs(host=True), size)

    def _consistency(self, group: Group) -> Tensor | None:
        """L_kl of the group's pairs once the warm-up is over; before, and where they move on, their class sums."""
        s = self.settings
        moving, begun = self._moving(group.step), group.step >= self.warmup
        if not moving and not begun:
            return None
        head, label = self.category_point_head or self.point_head, group.column("pair_label")
        point, pairs = group.points.by_class(label, len(group.class_count), head)
        sums, number = class_sums(point, pairs), pairs.sum(0)
        if moving:
            self.statistics.observe(sums, number, places=(pairs > 0).sum(0))
        _, kappa, seen = self.statistics.parameters_of_classes()
        if s.background == "ignored":
            seen = seen & (torch.arange(len(seen), device=seen.device) > 0)
        self.notes.group(point.detach(), pairs, kappa * (seen if begun else math.nan))
        if not begun:
            return None
        constant, pull = self.statistics.divergence(s.distribution, point.dtype)
        return consistency(sums, number, constant, pull, seen, s.kl_average)

    def _moving(self, step: int) -> bool:
        return step < self.warmup or not self.settings.freeze

    def after_step(self, step: int, reduce: Reduce) -> None:
        """The moving average of the class means, over all processes."""
        if self.settings.scr and self._moving(step):
            self.statistics.step(reduce)

    def log(self, step: int, reduce: Reduce) -> dict[str, float]:
        """See :meth:`.OlivineLog.row`."""
        kappa = self.statistics.parameters_of_classes()[1]
        return self.notes.row(reduce, kappa, wcd=self.settings.wcd, scr=self.settings.scr)

    def summary(self) -> list[str]:
        """A collapse of the category embedding."""
        return self.notes.summary()
