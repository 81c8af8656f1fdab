"""What computes the convolutions: this package in PyTorch, or MinkowskiEngine.

A tensor carries its engine, a module none: the same module computes with whatever engine its input came with, and its
weights never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...common import OlivineError
from .convolution import convolve
from .coordinates import describe
from .geometry import ConvolutionShape, CoordinateManager, CoordinateSet, SortedSet, Triple, check_start

#: Names of the engines: PyTorch alone (a CPU or CUDA), and MinkowskiEngine where it is installed.
ENGINES = ("torch", "minkowski")


class EngineManager(Protocol):
    """An engine's coordinate manager: the voxel sets of one input's descendants, and the convolutions between them."""

    @property
    def engine(self) -> str:
        """The engine's name."""

    @property
    def batch_size(self) -> int:
        """Clouds in the batch."""

    def convolve(
        self, feature: Tensor, voxels: CoordinateSet, kernel: Tensor, shape: ConvolutionShape
    ) -> tuple[Tensor, CoordinateSet]:
        """Convolve [N, C_in] on ``voxels`` with a kernel [K, C_in, C_out]: [M, C_out] on the output's voxels."""


@dataclass(eq=False)
class TorchManager(CoordinateManager):
    """The default engine: geometry and convolutions of this package."""

    engine: str = "torch"

    def convolve(
        self, feature: Tensor, voxels: CoordinateSet, kernel: Tensor, shape: ConvolutionShape
    ) -> tuple[Tensor, CoordinateSet]:
        """See :class:`EngineManager`."""
        if not isinstance(voxels, SortedSet):
            raise OlivineError("the voxels belong to another engine", where=f"coordinate {describe(voxels.coordinate)}")
        if shape.padding is not None:
            target, kernel_map = self.padded(voxels, shape.kernel_size, shape.stride, shape.padding, shape.dilation)
        else:
            if shape.transposed:
                target = self.finer(voxels, shape.stride, shape.kernel_size, shape.dilation)
            else:
                target = self.coarser(voxels, shape.stride)
            kernel_map = self.map(voxels, target, shape.kernel_size, shape.dilation, transposed=shape.transposed)
        return convolve(feature, kernel if kernel.ndim == 3 else kernel[None], kernel_map), target


def start_manager(
    engine: str, coordinate: Tensor, stride: Triple, batch_size: int | None, shape: Triple | None
) -> tuple[EngineManager, CoordinateSet]:
    """A new coordinate manager of an engine, and its first voxels.

    Raises:
        OlivineError: an unknown engine or one that is not installed; coordinates that no tensor can have.
    """
    if engine not in ENGINES:
        raise OlivineError(f"no sparse engine {engine!r}", remedy=f"choose one of {', '.join(ENGINES)}")
    size = check_start(coordinate, stride, batch_size, shape)
    if engine == "torch":
        manager = TorchManager(size)
        return manager, manager.start(coordinate, stride, shape)
    from .minkowski import MinkowskiManager

    other = MinkowskiManager(size)
    return other, other.start(coordinate, stride, shape)


def engine_problem(engine: str) -> str | None:
    """Why an engine cannot be used here, with what to do about it; None when it can."""
    if engine == "torch":
        return None
    if engine != "minkowski":
        return f"no sparse engine {engine!r}; choose one of {', '.join(ENGINES)}"
    from .minkowski import import_minkowski

    try:
        import_minkowski()
    except OlivineError as error:
        return str(error)
    return None
