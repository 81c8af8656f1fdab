"""3D networks that give every voxel of a cloud a feature.

In come sparse tensors of voxel features, out go a point-pixel and a category embedding for each voxel, from two heads
over one trunk. The networks have the parameter names of the code that their published checkpoints come from, and know
nothing of losses, labels or data sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...common import OlivineError

if TYPE_CHECKING:
    from torch import nn

    from .srunet import SRUNet34, SRUNetSmall

__all__ = ["BACKBONES", "SRUNet34", "SRUNetSmall", "build_backbone"]

#: Names that :func:`build_backbone` knows.
BACKBONES = ("srunet34", "srunet-small")


def build_backbone(name: str, in_channels: int = 1, out_channels: int = 64, **options: Any) -> nn.Module:
    """A 3D network by name.

    Args:
        name: one of :data:`BACKBONES`.
        in_channels: width of a voxel's feature.
        out_channels: width of each head's output.
        **options: further arguments of the class (``seed``, ``norm_momentum``, …).

    Raises:
        OlivineError: an unknown name.
    """
    from . import srunet

    builders = {"srunet34": srunet.SRUNet34, "srunet-small": srunet.SRUNetSmall}
    if name not in builders:
        raise OlivineError(f"no backbone {name!r}", remedy=f"choose one of {', '.join(BACKBONES)}")
    return builders[name](in_channels, out_channels, **options)


def __getattr__(name: str) -> Any:
    if name in ("SRUNet34", "SRUNetSmall"):
        from . import srunet

        return getattr(srunet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
