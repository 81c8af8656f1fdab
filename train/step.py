"""One training step: which pairs each loss sees, the embeddings, the losses of each contrast group.

This is the method. Read it beside the paper's section 3: L = w₁ L_ppkt + w₂ L_sup + w₃ L_kl (eq. 14 ff.), where L_ppkt
sees a uniform draw of pairs, L_sup a density- and category-aware draw, and L_kl and the class statistics every pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common import OlivineError
from .batch import Batch, attach_to_voxels
from .heads import PixelHeads, unit_rows
from .objectives import dirac_consistency, info_nce, vmf_consistency, weakly_supervised_contrast
from .sampling import draw_without_replacement, generator_of, sampling_probability
from .settings import PretrainSettings
from .sparse import SparseTensor
from .vmf import VmfStatistics
from .voxelize import voxelize

if TYPE_CHECKING:
    from .pixel_features import PixelFeatures

_PPKT_DRAW, _SUP_DRAW = 0, 1


class Distiller(nn.Module):
    """What is trained: the 3D backbone with its point heads, and the pixel heads.

    With shared heads the first head of each branch serves both kinds of loss.

    Args:
        **voxels: ``shape`` and ``engine`` of the voxels' :class:`SparseTensor`.
    """

    def __init__(self, backbone: nn.Module, heads: PixelHeads, **voxels: Any) -> None:
        super().__init__()
        self.backbone, self.heads, self.voxels = backbone, heads, voxels

    @property
    def per_point(self) -> bool:
        """Whether embeddings are of points (VoxelNet interpolates them in its coarse map), or of voxels."""
        return hasattr(self.backbone, "point_embedding")

    def forward(
        self,
        feature: Tensor,
        coordinate: Tensor,
        points: Tensor,
        point_cloud: Tensor,
        ppkt_feature: Tensor,
        sup_feature: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of voxels (or points) and of sampled pixel features.

        Args:
            feature, coordinate: the batch's voxels, float32 [V, C] and int32 [V, 4].
            points, point_cloud: float32 [N, 4] and the cloud of each, int64 [N].
            ppkt_feature, sup_feature: encoder features [M₁, E], [M₂, E] at the pairs drawn for either loss.

        Returns:
            g, g' [V, p] with unit rows (VoxelNet's [N, p] are not normalised again); f [M₁, p]; f' [M₂, p].
        """
        outputs = self.backbone(SparseTensor(feature, coordinate, **self.voxels))
        if self.heads.category is None:
            outputs = outputs[:1] * 2
        if self.per_point:
            g, g_category = (self.backbone.point_embedding(o, points, point_cloud) for o in outputs)  # type: ignore[operator]
        else:
            g, g_category = (unit_rows(o.feature) for o in outputs)
        return g, g_category, self.heads.embed_point_pixel(ppkt_feature), self.heads.embed_category(sup_feature)


@dataclass(frozen=True)
class GroupDraw:
    """The pairs of one contrast group: all of them, and each contrastive loss's draw (rows of the batch's pairs)."""

    every: slice
    ppkt: Tensor
    sup: Tensor


@dataclass
class StepResult:
    """What a forward pass gives.

    Attributes:
        loss: scalar with gradient: the mean over the pass's contrast groups.
        terms: unweighted mean of each loss over the groups that had it.
        class_sums: see :meth:`~olivine.train.vmf.VmfStatistics.class_sums`; None with SCR off.
        drawn_per_class: int64 [C], pairs drawn for L_sup.
        counts: pairs; groups with fewer pairs than asked for; groups with one class only; groups with no pair.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    class_sums: Tensor | None
    drawn_per_class: Tensor
    counts: dict[str, int] = field(default_factory=dict)


def draw_pairs(
    batch: Batch,
    first: int,
    last: int,
    settings: PretrainSettings,
    dataset_class_count: Tensor,
    key: tuple[int, int, int],
) -> GroupDraw:
    """Choose the pairs of the contrast group that holds the batch's frames [first, last).

    Args:
        dataset_class_count: int64 [C], pairs of each class in the data set.
        key: (seed, step, number of the group in the step); decides the draw together with the pairs.
    """
    edge = torch.searchsorted(batch.pair_frame, torch.tensor([first, last], device=batch.pair_frame.device)).tolist()
    every = slice(edge[0], edge[1])
    label = batch.pair_label[every]
    wanted, device = settings.sampling.pairs, label.device
    ppkt = draw_without_replacement(None, len(label), wanted, generator_of(*key, _PPKT_DRAW))
    candidates = torch.arange(len(label), device=device)
    if settings.loss.background == "ignored":
        candidates = torch.nonzero(label > 0)[:, 0]
    mode = settings.sampling.mode
    probability = None
    if mode != "random" and len(candidates) > wanted:
        probability = sampling_probability(
            _density(batch, every, settings)[candidates],
            *_frequency(batch, every, candidates, settings, dataset_class_count),
            mode,
        )
    sup = draw_without_replacement(probability, len(candidates), wanted, generator_of(*key, _SUP_DRAW))
    return GroupDraw(every, ppkt.to(device) + every.start, candidates[sup.to(device)] + every.start)


def _frequency(
    batch: Batch, every: slice, candidates: Tensor, settings: PretrainSettings, dataset_class_count: Tensor
) -> tuple[Tensor, Tensor]:
    """The candidates' classes and the classes' counts, as ``frequency`` says (the shards count weak labels only)."""
    label = batch.pair_label[every][candidates]
    frequency = settings.sampling.frequency if settings.data.labels == "weak" else "batch"
    if frequency == "dataset":
        return label, dataset_class_count.to(label.device)
    if frequency == "frame":  # a class in another frame is another class
        frame = batch.pair_frame[every][candidates]
        return frame * batch.class_count.shape[1] + label, batch.class_count.flatten()
    return label, torch.bincount(label, minlength=len(dataset_class_count))


def _density(batch: Batch, every: slice, settings: PretrainSettings) -> Tensor:
    """Distance density of each pair of a group: the shard's, or as the public code makes it.

    The public code takes the distance in the plane in whole voxels, over the pairs of the batch, with Silverman's
    bandwidth 1.06 σ N^(−1/5), and evaluates it at the values that occur.
    """
    if settings.sampling.density == "shard":
        return batch.pair_density[every]
    xy = batch.points.index_select(0, batch.pair_point[every])[:, :2].double()
    rho = torch.floor(torch.linalg.vector_norm(xy, dim=1) / settings.voxels.size_m)
    value, inverse, count = torch.unique(rho, return_inverse=True, return_counts=True)
    n = len(rho)
    spread = rho.std(correction=1) if n > 1 else rho.new_ones(())
    bandwidth = (1.06 * spread * n**-0.2).clamp(min=1e-3)
    kernel = torch.exp(-0.5 * ((value[:, None] - value[None, :]) / bandwidth) ** 2) / (2 * torch.pi) ** 0.5
    return ((kernel @ count.double()) / (n * bandwidth)).index_select(0, inverse)


def forward_pass(
    batch: Batch,
    model: nn.Module,
    pixels: PixelFeatures,
    statistics: VmfStatistics,
    settings: PretrainSettings,
    dataset_class_count: Tensor,
    *,
    step: int,
    first_group: int,
    consistency: bool,
) -> StepResult:
    """The losses of one forward pass over whole contrast groups.

    Args:
        batch: frames, a multiple of ``run.group`` (fewer only where the step has fewer).
        model: a :class:`Distiller`, or its wrapper for data parallelism.
        pixels: the frozen encoder's features at pairs.
        statistics: of the classes; read, not changed.
        step: its number, for the draws.
        first_group: number of the first group within the step, over all processes and passes.
        consistency: whether L_kl is on (the warm-up is over).
    """
    loss_settings, classes = settings.loss, len(dataset_class_count)
    voxels = voxelize(batch.points, list(batch.point_count), settings.voxels)
    batch, pair_place = attach_to_voxels(batch, voxels)
    # Clouds left without a voxel leave no gap in the batch indices.
    clouds, cloud = torch.unique(voxels.coordinate[:, 0], return_inverse=True)
    coordinate = torch.cat([cloud[:, None].to(voxels.coordinate.dtype), voxels.coordinate[:, 1:]], 1)
    if getattr(model, "module", model).per_point:
        pair_place = batch.pair_point
    if len(batch.pair_label) and int(batch.pair_label.max()) >= classes:
        raise OlivineError(
            f"a pair carries class {int(batch.pair_label.max())}, the shards name {classes - 1}",
            where=batch.tokens[0],
            remedy="build the shards again",
        )
    size = settings.run.group
    draws = [
        draw_pairs(
            batch,
            first,
            min(first + size, len(batch.tokens)),
            settings,
            dataset_class_count,
            (settings.seed, step, first_group + number),
        )
        for number, first in enumerate(range(0, len(batch.tokens), size))
    ]
    all_ppkt = torch.cat([d.ppkt for d in draws])
    all_sup = torch.cat([d.sup for d in draws]) if loss_settings.wcd else all_ppkt[:0]
    features = pixels(batch, torch.cat([all_ppkt, all_sup]))
    g_place, g_place_category, f, f_category = model(
        voxels.feature,
        coordinate,
        batch.points,
        torch.bucketize(batch.point_cloud(), clouds.long()).clamp(max=len(clouds) - 1),
        *features.split([len(all_ppkt), len(all_sup)]),
    )
    # Every parameter has a gradient in every step, also where a group has no pair or a loss is off.
    total = (g_place[:1].sum() + g_place_category[:1].sum() + f[:1].sum() + f_category[:1].sum()) * 0
    found: dict[str, list[Tensor]] = {"ppkt": [], "wcd": [], "scr": []}
    counts = {"pairs": len(pair_place), "groups_short": 0, "groups_one_class": 0, "groups_empty": 0}
    parameters = statistics.parameters_of_classes() if consistency else None
    ppkt_start = sup_start = 0
    for draw in draws:
        ppkt = slice(ppkt_start, ppkt_start + len(draw.ppkt))
        sup = slice(sup_start, sup_start + len(draw.sup))
        ppkt_start, sup_start = ppkt.stop, sup.stop
        counts["groups_short"] += min(len(draw.ppkt), len(draw.sup)) < settings.sampling.pairs
        if len(draw.ppkt) == 0:
            counts["groups_empty"] += 1
            continue
        g = g_place.index_select(0, pair_place.index_select(0, draw.ppkt))
        found["ppkt"].append(info_nce(g, f[ppkt], loss_settings.temperature))
        total = total + loss_settings.ppkt_weight * found["ppkt"][-1]
        if loss_settings.wcd and len(draw.sup):
            label = batch.pair_label.index_select(0, draw.sup)
            counts["groups_one_class"] += bool((label == label[0]).all())
            g_category = g_place_category.index_select(0, pair_place.index_select(0, draw.sup))
            found["wcd"].append(
                weakly_supervised_contrast(
                    g_category, f_category[sup], label, loss_settings.temperature, loss_settings.wcd_form
                )
            )
            total = total + loss_settings.wcd_weight * found["wcd"][-1]
        if parameters is not None:
            direction, kappa, seen = parameters
            label = batch.pair_label[draw.every]
            if loss_settings.background == "ignored":
                seen = seen & (torch.arange(classes, device=seen.device) > 0)
            point = g_place_category.index_select(0, pair_place[draw.every])
            if loss_settings.distribution == "vmf":
                value = vmf_consistency(point, label, direction, kappa, seen, loss_settings.kl_average)
            else:
                value = dirac_consistency(point, label, direction, seen, loss_settings.kl_average)
            found["scr"].append(value)
            total = total + loss_settings.scr_weight * value
    sums = None
    if loss_settings.scr:
        every_point = g_place_category.detach().index_select(0, pair_place)
        sums = statistics.class_sums(every_point, batch.pair_label, classes)
    drawn = torch.bincount(batch.pair_label.index_select(0, all_sup), minlength=classes)
    terms = {name: torch.stack([v.detach() for v in values]).mean() for name, values in found.items() if values}
    return StepResult(total / len(draws), terms, sums, drawn, counts)
