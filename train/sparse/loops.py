"""The seam between the engine and its compiled CPU loops: the only file outside ``cpu/`` that knows of them.

Every function answers None where the loops do not apply, and the engine then computes with PyTorch alone. So the
folder ``cpu/`` can be deleted, and nothing else has to change but the results' last bits. ``docs/sparse-cpu.md``
explains how the loops work, ``benchmarks/sparse_loops.py`` prints what they buy.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor, nn

    from .kernel_map import KernelMap

#: Set this environment variable to 0 to compute without the loops.
SWITCH = "OLIVINE_FUSED"
_switched_on = os.environ.get(SWITCH, "1") != "0"


def switch(on: bool) -> None:
    """Switch all loops on or off from now on, for those who compare."""
    global _switched_on
    _switched_on = on


def available() -> bool:
    """Whether the loops run here: they are there and switched on, and the CPU has AVX-512, or AVX2 with FMA."""
    return _compiled() and _wide_vectors()


def _compiled() -> bool:
    return _switched_on and _importable()


@cache
def _importable() -> bool:
    """Whether the loops and their compiler are there."""
    try:
        importlib.import_module("numba")
        importlib.import_module(".cpu", __package__)
    except ImportError:
        return False
    return True


@cache
def _wide_vectors() -> bool:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512f", False) or (features.get("avx2", False) and features.get("fma", False)))


def convolve(feature: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor | None:
    """:func:`.convolution.convolve` without a gradient, in one pass."""
    if not available():
        return None
    from .cpu import convolution

    return convolution.convolve(feature, kernel, kernel_map) if convolution.suits(feature, kernel, kernel_map) else None


def convolution_gradients(
    feature: Tensor, kernel: Tensor, gradient: Tensor, kernel_map: KernelMap, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None] | None:
    """The gradients of :func:`convolve` for the feature and the kernel, those that are wanted."""
    if not available():
        return None
    from .cpu import convolution

    if not convolution.suits(feature, kernel, kernel_map):
        return None
    return convolution.gradients(feature, kernel, gradient, kernel_map, wanted)


def norm_add_relu(
    feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None, shortcut: Tensor | None, relu: bool
) -> Tensor | None:
    """:func:`.normalization.norm_add_relu` with its gradient, in two passes each way."""
    if not available():
        return None
    from .cpu import normalization

    return normalization.norm_add_relu(feature, norm, group, shortcut, relu)


def common_keys(keys: Tensor, queries: Tensor, shift: int) -> tuple[Tensor, Tensor] | None:
    """Where ``queries + shift`` occurs in ``keys``, both ascending: positions in ``queries`` and in ``keys``.

    These are whole numbers: the same as PyTorch's search finds, on any CPU.
    """
    if keys.device.type != "cpu" or not _compiled():
        return None
    from .cpu import merge

    return merge.common_keys(keys, queries, shift)


def release_memory() -> None:
    """Give the memory that the loops keep for their next arrays back to the system."""
    # Only where a loop has run: this comes last, also after memory was used up.
    buffers = sys.modules.get(f"{__package__}.cpu.buffer_pool")
    if buffers is not None:
        buffers.pool.release()
