"""Sparse 3D convolutions in plain PyTorch, for voxels of LiDAR clouds, on a CPU or a GPU.

In come features and integer coordinates of occupied voxels (:class:`SparseTensor`), out go the same after
convolutions whose kernel maps are built once for each cloud and shared by all layers. Three places hold the three
concerns: geometry (``coordinates``, ``kernel_map``, ``geometry``), operations on arrays (``convolution``, ``operations``) and
modules with parameters (``modules``); ``engines`` says what computes the convolutions; ``loops`` is the
seam to the compiled CPU loops in ``cpu/``. The room knows nothing of points, labels, losses or data sets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modules import BatchNorm, Conv3d, ConvTranspose3d, ReLU, share_norms
    from .operations import concatenate, to_dense
    from .tensor import SparseTensor

__all__ = ["BatchNorm", "Conv3d", "ConvTranspose3d", "ReLU", "SparseTensor", "concatenate", "share_norms", "to_dense"]

_HOME = {
    "SparseTensor": "tensor",
    "Conv3d": "modules",
    "ConvTranspose3d": "modules",
    "BatchNorm": "modules",
    "ReLU": "modules",
    "share_norms": "modules",
    "concatenate": "operations",
    "to_dense": "operations",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
