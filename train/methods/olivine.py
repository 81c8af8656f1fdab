"""OLIVINE (NeurIPS 2024): point-pixel contrast, contrast by weak labels, and consistency with each class's distribution.

L = w₁ L_ppkt + w₂ L_sup + w₃ L_kl. L_ppkt (eq. 1, here ``ppkt``) sees a uniform draw of pairs, L_sup (eq. 2, ``wcd``)
a density- and category-aware draw (eq. 14, 15), and L_kl (eq. 10, 11, ``scr``) and the class statistics (eq. 6-9) every
pair. With ``wcd`` and ``scr`` off it is PPKT on the dilated encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...common import OlivineError
from ..backbone import unit_rows
from ..group import Group
from ..method import Context, Method, MethodSettings, Needs, Reduce, Term
from ..objectives import dirac_consistency, info_nce, vmf_consistency, weakly_supervised_contrast
from ..sampling import batch_density, draw_without_replacement, sampling_probability
from ..vmf import VmfStatistics, effective_rank

_PPKT_DRAW, _WCD_DRAW = 0, 1


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
        if not self.temperature > 0:
            raise OlivineError(f"is {self.temperature}", where="method.temperature", remedy="use a positive number")


class Olivine(Method):
    """See the module."""

    Settings = OlivineSettings
    exported: ClassVar[dict[str, str]] = {"final": "point_head", "final_class_level": "category_point_head"}

    def __init__(self, settings: OlivineSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.settings, self.voxel_size, self.labels = settings, context.voxel_size, context.label_names
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
            len(context.label_names), settings.dimension, alpha, bias_correction=settings.bias_correction
        )
        self._last_rank = math.inf
        self._forget()

    @classmethod
    def needs(cls, settings: OlivineSettings) -> Needs:
        """Labels and their counts for the terms that read them, densities where a draw is by density."""
        columns = ["pair_label"]
        if settings.wcd and settings.mode in ("density", "dcas") and settings.density == "shard":
            columns.append("pair_density")
        if settings.wcd and settings.frequency == "frame":
            columns.append("class_count")
        return Needs(tuple(columns))

    def forward(self, group: Group) -> dict[str, Term]:
        """The terms of one contrast group; in evaluation mode without ``scr``, which moves with the statistics."""
        s = self.settings
        terms: dict[str, Term] = {}
        ppkt = draw_without_replacement(None, group.size, s.pairs, group.generator(_PPKT_DRAW))
        ppkt = ppkt.to(group.class_count.device)
        wcd = self.draw_by_label(group) if s.wcd else ppkt[:0]
        ppkt_feature, wcd_feature = group.pixels.at(ppkt, wcd, dtype=self.pixel_head.weight.dtype)

        g = group.points.at(ppkt, self.point_head)
        f = unit_rows(self.pixel_head(ppkt_feature))
        terms["ppkt"] = Term(info_nce(g, f, s.temperature), s.ppkt_weight)

        label = group.column("pair_label").index_select(0, wcd)
        if len(wcd):
            g = group.points.at(wcd, self.category_point_head or self.point_head)
            f = unit_rows((self.category_pixel_head or self.pixel_head)(wcd_feature))
            terms["wcd"] = Term(weakly_supervised_contrast(g, f, label, s.temperature, s.wcd_form), s.wcd_weight)
        if s.scr and self.training:
            value = self._consistency(group)
            if value is not None:
                terms["scr"] = Term(value, s.scr_weight)
        self._note(group, ppkt, wcd, label)
        return terms

    def draw_by_label(self, group: Group) -> Tensor:
        """The pairs of ``wcd`` (eq. 15), rows of the group's pairs."""
        s, label = self.settings, group.column("pair_label")
        candidates = torch.arange(group.size, device=label.device)
        if s.background == "ignored":
            candidates = torch.nonzero(label > 0)[:, 0]
        probability = None
        if s.mode != "random" and len(candidates) > s.pairs:
            key, count = self._frequency(group, candidates)
            probability = sampling_probability(self._density(group)[candidates], key, count, s.mode)
        drawn = draw_without_replacement(probability, len(candidates), s.pairs, group.generator(_WCD_DRAW))
        return candidates[drawn.to(label.device)]

    def _frequency(self, group: Group, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates' classes and the classes' counts, as ``frequency`` says."""
        label, count = group.column("pair_label")[candidates], group.class_count
        # The counts of ground-truth classes over the data set are not known: the group's stand for them.
        if self.settings.frequency == "batch" or not bool(count.any()):
            return label, torch.bincount(label, minlength=len(count))
        if self.settings.frequency == "dataset":
            return label, count.to(label.device)
        counts = group.column("class_count")  # a class in another frame is another class
        return group.frame_of_pairs()[candidates] * counts.shape[1] + label, counts.flatten()

    def _density(self, group: Group) -> Tensor:
        if self.settings.mode == "category":
            return torch.ones(group.size, device=group.class_count.device)
        if self.settings.density == "shard":
            return group.column("pair_density")
        return batch_density(group.points_of_pairs(), self.voxel_size if self.settings.density == "batch" else None)

    def _consistency(self, group: Group) -> Tensor | None:
        """L_kl of the group's pairs once the warm-up is over; before, and where they move on, their class sums."""
        s, label = self.settings, group.column("pair_label")
        moving, begun = self._moving(group.step), group.step >= self.warmup
        if not moving and not begun:
            return None
        point = group.points.at(slice(None), self.category_point_head or self.point_head)
        if moving:
            self._observe(point.detach(), label, group.places())
        self._rank = effective_rank(point.detach())
        if not begun:
            return None
        direction, kappa, seen = self.statistics.parameters_of_classes()
        if s.background == "ignored":
            seen = seen & (torch.arange(len(seen), device=seen.device) > 0)
        # ∂L_kl/∂g' of a pair is κ of its class, over the number of pairs.
        self._pull = float((kappa * seen).index_select(0, label).mean())
        if s.distribution == "vmf":
            return vmf_consistency(point, label, direction, kappa, seen, s.kl_average)
        return dirac_consistency(point, label, direction, seen, s.kl_average)

    def _moving(self, step: int) -> bool:
        return step < self.warmup or not self.settings.freeze

    def _observe(self, point: Tensor, label: Tensor, place: Tensor) -> None:
        """Keep a group's class sums (or means) and the number of voxels of each class until the step is over."""
        classes = len(self.statistics.mean)
        sums = self.statistics.class_sums(point, label, classes)
        if self.settings.class_mean == "group":
            count = sums[:, -1:]
            sums = torch.cat([sums[:, :-1] / count.clamp(min=1), (count > 0).double()], 1)
        self._sums.append(sums)
        distinct = torch.unique(place * classes + label)
        self._places.append(torch.bincount(distinct % classes, minlength=classes))

    def after_step(self, step: int, reduce: Reduce) -> None:
        """The moving average of the class means, over all processes."""
        if self.settings.scr and self._moving(step):
            mean = self.statistics.mean
            zero, none = (
                mean.new_zeros(len(mean), self.settings.dimension + 1),
                torch.zeros_like(self.statistics.place_count),
            )
            groups = int(reduce(torch.tensor(len(self._sums), device=mean.device)))
            self.statistics.update(
                reduce(torch.stack([zero, *self._sums]).sum(0)),
                reduce(torch.stack([none, *self._places]).sum(0)),
                groups if self.settings.class_mean == "group" else 1,
            )

    def _note(self, group: Group, ppkt: Tensor, wcd: Tensor, label: Tensor) -> None:
        if not self.training:
            return
        self._short += min(len(ppkt), len(wcd) if self.settings.wcd else len(ppkt)) < self.settings.pairs
        self._one_class += bool(len(label)) and bool((label == label[0]).all())
        self._drawn.append(torch.bincount(label, minlength=len(group.class_count)))

    def _forget(self) -> None:
        self._sums: list[Tensor] = []
        self._places: list[Tensor] = []
        self._rank = self._pull = math.nan
        self._drawn: list[Tensor] = []
        self._short, self._one_class = 0, 0

    def log(self, step: int, reduce: Reduce) -> dict[str, Any]:
        """Counts of groups, each class's share of the draw and its κ; with ``scr`` how hard it pulls, and the rank of g'.

        ``scr_pull`` is the mean κ over pairs, N times the norm of ∂L_kl/∂g'_i; ``category_rank`` the effective rank of
        the pass's g' on this process.
        """
        mean = self.statistics.mean
        counts = reduce(torch.tensor([self._short, self._one_class], device=mean.device)).tolist()
        row = {"groups_short": float(counts[0]), "groups_one_class": float(counts[1])}
        if self.settings.wcd:
            zero = torch.zeros(len(mean), dtype=torch.int64, device=mean.device)
            drawn = reduce(torch.stack([zero, *self._drawn]).sum(0)).double()
            share = (drawn / drawn.sum().clamp(min=1)).tolist()
            row |= {f"share/{name}": value for name, value in zip(self.labels, share)}
        if self.settings.scr:
            kappa = self.statistics.parameters_of_classes()[1].tolist()
            row |= {f"kappa/{name}": value for name, value in zip(self.labels, kappa)}
            row |= {"scr_pull": self._pull, "category_rank": self._rank}
            if not math.isnan(self._rank):
                self._last_rank = self._rank
        self._forget()
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def summary(self) -> list[str]:
        """A collapse of the category embedding."""
        if self._last_rank >= 2:
            return []
        return [
            f"the category embedding has collapsed: its effective rank is {self._last_rank:.2f} (lower method.scr_weight)"
        ]
