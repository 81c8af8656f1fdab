"""3D networks, one file each, found by name; see :mod:`olivine.train.backbone` for the contract.

The networks have the parameter names of the code that their published checkpoints come from, and know nothing of losses,
labels or data sets. A file whose name begins with ``_`` is shared by several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .srunet34 import SRUNet34
    from .srunet_small import SRUNetSmall
    from .voxelnet import VoxelNet

__all__ = ["SRUNet34", "SRUNetSmall", "VoxelNet", "build_backbone"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = {"SRUNet34": ".srunet34", "SRUNetSmall": ".srunet_small", "VoxelNet": ".voxelnet", "build_backbone": ""}
    if name not in home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "olivine.train.backbone" if name == "build_backbone" else f"{__name__}{home[name]}"
    return getattr(import_module(module), name)
