"""One forward pass: voxels, the 3D network, and the method's terms for each contrast group.

Nothing here knows a loss: what a method is given stands in :mod:`~olivine.train.method`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .contract import check_places, terms_of
from .group import Group
from .method import Method
from .prepare import Prepared
from .scan import scans_of
from .voxelize import VoxelSettings

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

    def forward(self, ready: Prepared, step: int, first_group: int) -> tuple[Tensor, Terms, dict[str, int]]:
        """The losses of whole contrast groups.

        Args:
            ready: their frames, a multiple of the group's (fewer only where the step has fewer).
            step: its number, for the draws.
            first_group: number of the first group within the step, over all processes and passes.

        Returns:
            the loss, scalar with gradient: the mean over the groups; each term, unweighted, its mean over the groups
            that have it; counts: pairs, and groups without a pair.
        """
        batch, clouds = ready.batch, ready.clouds
        features = self.backbone.encode(clouds)
        place = features.place.index_select(0, batch.pair_point)
        if step == 0:  # it waits for the device
            check_places(place, self.backbone)
        scans = scans_of(batch, clouds, features)
        # Every parameter has a gradient in every step, also where a group has no pair or a term is off.
        total = features.cells.feature[:1].sum() * 0
        for parameter in self.method.parameters():
            total = total + parameter.flatten()[:1].sum() * 0
        found: dict[str, list[Tensor]] = {}
        counts = {"pairs": len(place), "groups_empty": 0}
        starts = range(0, len(batch.tokens), self.group)
        edges = torch.searchsorted(batch.host.pair_frame, torch.tensor([*starts, len(batch.tokens)])).tolist()
        for number, first in enumerate(starts):
            frames = slice(first, min(first + self.group, len(batch.tokens)))
            rows = slice(edges[number], edges[number + 1])
            if rows.start == rows.stop:
                counts["groups_empty"] += 1
                continue
            key = (self.seed, step, first_group + number)
            group = Group(batch, frames, rows, place[rows], features, ready.pixels, ready.class_count, key, scans)
            for name, term in terms_of(self.method, group).items():
                found.setdefault(name, []).append(term.value)
                total = total + term.weight * term.value
        terms = {name: torch.stack([v.detach() for v in values]).mean() for name, values in found.items()}
        return total / len(starts), terms, counts
