"""3D networks that give every voxel of a cloud a feature.

In come sparse tensors of voxel features, out go a point-pixel and a category embedding for each voxel, from two heads
over one trunk. The networks have the parameter names of the code that their published checkpoints come from, and know
nothing of losses, labels or data sets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ...common import OlivineError

if TYPE_CHECKING:
    from torch import nn

    from .srunet import SRUNet34, SRUNetSmall
    from .voxelnet import VoxelNet

__all__ = ["BACKBONES", "SRUNet34", "SRUNetSmall", "VoxelNet", "build_backbone"]

#: Names that :func:`build_backbone` knows.
BACKBONES = ("srunet34", "srunet-small", "voxelnet", "voxelnet-residual")


def build_backbone(name: str, in_channels: int | None = None, out_channels: int = 64, **options: Any) -> nn.Module:
    """A 3D network by name.

    Args:
        name: one of :data:`BACKBONES`.
        in_channels: width of a voxel's feature; by default what the network was published with (intensity for the
            U-Nets, mean x, y, z and intensity for VoxelNet).
        out_channels: width of each head's output.
        **options: further arguments of the class (``seed``, ``norm_momentum``, …).

    Raises:
        OlivineError: an unknown name.
    """
    from . import srunet, voxelnet

    builders: dict[str, Callable[..., nn.Module]] = {
        "srunet34": srunet.SRUNet34,
        "srunet-small": srunet.SRUNetSmall,
        "voxelnet": voxelnet.VoxelNet,
        "voxelnet-residual": partial(voxelnet.VoxelNet, residual=True),
    }
    if name not in builders:
        raise OlivineError(f"no backbone {name!r}", remedy=f"choose one of {', '.join(BACKBONES)}")
    default = 4 if name.startswith("voxelnet") else 1
    return builders[name](in_channels or default, out_channels, **options)


def __getattr__(name: str) -> Any:
    if name in ("SRUNet34", "SRUNetSmall"):
        from . import srunet

        return getattr(srunet, name)
    if name == "VoxelNet":
        from .voxelnet import VoxelNet

        return VoxelNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
