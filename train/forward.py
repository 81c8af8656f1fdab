"""One forward pass: voxels, the 3D network, and the method's terms for each contrast group.

Nothing here knows a loss: what a method is given stands in :mod:`~olivine.train.method`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .backbone import Backbone, Clouds, Features
from .batch import Batch, attach_to_places, check_labels
from .group import Group
from .method import Method
from .scan import scans_of
from .voxelize import VoxelSettings, voxelize

if TYPE_CHECKING:
    from .pixel_features import PixelFeatures

Terms = dict[str, Tensor]


class Distiller(nn.Module):
    """What is trained: the 3D network and the method with its heads.

    Args:
        voxels: how points become voxels.
        group: frames of a contrast group.
        seed: of the draws.
        engine: of sparse convolutions.
    """

    def __init__(
        self, backbone: Backbone, method: Method, voxels: VoxelSettings, group: int, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__()
        self.backbone, self.method = backbone, method
        self.voxels, self.group, self.seed, self.engine = voxels, group, seed, engine

    def forward(
        self, batch: Batch, pixels: PixelFeatures | None, class_count: Tensor, step: int, first_group: int
    ) -> tuple[Tensor, Terms, dict[str, int]]:
        """The losses of whole contrast groups.

        Args:
            batch: frames, a multiple of the group's (fewer only where the step has fewer).
            pixels: the frozen encoder's features; None where the method needs none.
            class_count: int64 [C], pairs of each class in the data set, label 0 included.
            step: its number, for the draws.
            first_group: number of the first group within the step, over all processes and passes.

        Returns:
            the loss, scalar with gradient: the mean over the groups; each term, unweighted, its mean over the groups
            that have it; counts: pairs, and groups without a pair.
        """
        clouds, features = self._encode(batch)
        batch, place = attach_to_places(batch, clouds.voxels, features.place)
        check_labels(batch, len(class_count))
        scans = scans_of(batch, clouds, features)
        # Every parameter has a gradient in every step, also where a group has no pair or a term is off.
        total = features.cells.feature[:1].sum() * 0
        for parameter in self.method.parameters():
            total = total + parameter.flatten()[:1].sum() * 0
        found: dict[str, list[Tensor]] = {}
        counts = {"pairs": len(place), "groups_empty": 0}
        starts = range(0, len(batch.tokens), self.group)
        ends = torch.tensor([*starts, len(batch.tokens)], device=place.device)
        edges = torch.searchsorted(batch.pair_frame, ends).tolist()
        for number, first in enumerate(starts):
            frames = slice(first, min(first + self.group, len(batch.tokens)))
            rows = slice(edges[number], edges[number + 1])
            if rows.start == rows.stop:
                counts["groups_empty"] += 1
                continue
            key = (self.seed, step, first_group + number)
            group = Group(batch, frames, rows, place[rows], features, pixels, class_count, key, scans)
            for name, term in self.method(group).items():
                found.setdefault(name, []).append(term.value)
                total = total + term.weight * term.value
        terms = {name: torch.stack([v.detach() for v in values]).mean() for name, values in found.items()}
        return total / len(starts), terms, counts

    def _encode(self, batch: Batch) -> tuple[Clouds, Features]:
        points, count = batch.clouds()
        voxels = voxelize(points, count, self.voxels)
        # Clouds left without a voxel leave no gap in the batch indices.
        present, cloud = torch.unique(voxels.coordinate[:, 0], return_inverse=True)
        coordinate = torch.cat([cloud[:, None].to(voxels.coordinate.dtype), voxels.coordinate[:, 1:]], 1)
        feature = voxels.feature.to(next(self.backbone.parameters()).dtype)
        number = torch.arange(len(count), device=points.device)
        of_point = torch.repeat_interleave(number, torch.tensor(count, device=points.device))
        of_point = torch.bucketize(of_point, present.long()).clamp(max=len(present) - 1)
        clouds = Clouds(points, of_point, voxels.replace(coordinate, feature), self.voxels, self.engine)
        return clouds, self.backbone.encode(clouds)
