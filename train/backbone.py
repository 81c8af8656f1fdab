"""The contract of a 3D network: clouds in, features out, and the way from its cells to voxels or points.

A backbone is one file in ``backbones/``, or a class anywhere, named by its dotted path. It owns no heads: a method brings
its own, made by :meth:`Backbone.new_head`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..common.plugins import find
from .sparse import SparseTensor
from .voxelize import Voxels, VoxelSettings


@dataclass(frozen=True)
class BackboneSettings:
    """The section ``backbone:`` of a run's settings; a backbone with options of its own derives from it.

    Attributes:
        name: a file of ``backbones/``, or ``package.module:Class``.
        engine: what computes sparse convolutions (:data:`~.sparse.engines.ENGINES`).
    """

    name: str = "srunet34"
    engine: str = "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What the backbone's class takes besides widths, seed and engine."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "engine")}


class Clouds:
    """A batch of clouds and their voxels. (No dataclass: wrappers for precision would copy its tensors one by one.)

    Attributes:
        points: float32 [N, 4].
        cloud: int64 [N], the cloud of each point, from 0 without a gap.
        voxels: see :func:`~olivine.train.voxelize.voxelize`; their batch indices are those of ``cloud``.
        settings: that the voxels were made with.
        engine: of sparse convolutions.
        inside: bool [N] on the CPU, the points that have a voxel; None where nobody asks.
    """

    inside: Tensor | None = None

    def __init__(
        self, points: Tensor, cloud: Tensor, voxels: Voxels, settings: VoxelSettings, engine: str = "auto"
    ) -> None:
        self.points, self.cloud, self.voxels, self.settings, self.engine = points, cloud, voxels, settings, engine

    @cached_property
    def tensor(self) -> SparseTensor:
        """The voxels as a network takes them."""
        shape = self.settings.shape if self.settings.from_corner else None
        return SparseTensor(self.voxels.feature, self.voxels.coordinate, shape=shape, engine=self.engine)

    @cached_property
    def numbers(self) -> Tensor:
        """int64 [N], the points' own numbers: their places where a network interpolates."""
        return torch.arange(len(self.points), device=self.points.device)


class Features:
    """What a backbone made of clouds: a feature in each of its cells, to be asked for at places.

    Args:
        cells: the features; a head is a linear layer on them.
        place: int64 [N], the place of each point, −1 where it has no voxel; every other point has a place. Places are
            the voxels in any order, coarser cells, or the points where the network interpolates.
        to_places: from values in cells [cells, p] to values at places [places, p].
    """

    def __init__(self, cells: SparseTensor, place: Tensor, to_places: Callable[[Tensor], Tensor] | None = None) -> None:
        self.cells, self.place = cells, place
        self._to_places = to_places or (lambda value: value)
        self._embedded: dict[nn.Module, Tensor] = {}

    def embed(self, head: nn.Module) -> Tensor:
        """Embeddings at every place, [places, p]: rows of unit length in the cells, then brought to places.

        Each head's are made when first asked for, and kept.
        """
        if head not in self._embedded:
            self._embedded[head] = self._to_places(unit_rows(head(self.cells).feature))
        return self._embedded[head]

    def raw(self) -> Tensor:
        """The features themselves at every place, [places, C]."""
        return self._to_places(self.cells.feature)


class Backbone(nn.Module):
    """A 3D network. Its class takes ``in_channels``, its settings' options, and ``seed``: what its weights are drawn from.

    Attributes:
        Settings: its section of the settings.
        default_channels: width of a voxel's feature that it was published with.
        finetune_options: what its class takes in fine-tuning besides its settings' options.
        per_point: whether its places are the points, all of them, and not the voxels.
        feature_channels: width of its features.
    """

    Settings: ClassVar[type[BackboneSettings]] = BackboneSettings
    default_channels: ClassVar[int] = 1
    finetune_options: ClassVar[dict[str, Any]] = {}
    per_point: ClassVar[bool] = False
    feature_channels: int

    def encode(self, clouds: Clouds) -> Features:
        """The features of a batch of clouds."""
        raise NotImplementedError

    def new_head(self, out_channels: int, generator: torch.Generator) -> nn.Module:
        """A linear layer on its features, with weights drawn from a generator."""
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """Its parts from input to output, for learning rates that fall with depth; by default its children in order.

        A parameter that none of them holds learns as the first does.
        """
        return list(self.children())


def unit_rows(feature: Tensor) -> Tensor:
    """L2-normalise rows, in float32 at least."""
    return nn.functional.normalize(feature.to(torch.promote_types(torch.float32, feature.dtype)), dim=1)


def find_backbone(name: str) -> type[Backbone]:
    """The backbone of a name.

    Raises:
        OlivineError: there is none; the nearest name is said.
    """
    return find(name, "olivine.train.backbones", Backbone, "backbone")


def build_backbone(name: str, in_channels: int | None = None, **options: Any) -> Backbone:
    """A 3D network by name.

    Args:
        in_channels: width of a voxel's feature; by default what the network was published with.
        **options: ``seed``, a number or a generator that the class is given as a generator; and its settings' options.

    Raises:
        OlivineError: an unknown name.
    """
    kind, seed = find_backbone(name), options.pop("seed", 0)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    # For weights that a class of the user's leaves to PyTorch.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        return kind(in_channels or kind.default_channels, seed=generator, **options)
