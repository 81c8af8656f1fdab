"""What computes the convolutions: this package in PyTorch or by Triton kernels on a GPU, or MinkowskiEngine.

A tensor carries its engine, a module none: the same module computes with whatever engine its input came with, and its
weights never change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...common import OlivineError
from ...common.ahead import THREADED
from .convolution import convolve
from .coordinates import describe
from .geometry import ConvolutionShape, CoordinateManager, CoordinateSet, SortedSet, Triple, check_start
from .kernel_map import KernelMap

if TYPE_CHECKING:
    from .tensor import SparseTensor

#: Names of the engines: PyTorch alone (a CPU or CUDA), Triton kernels (an NVIDIA GPU from compute capability 8.0), and
#: MinkowskiEngine where it is installed; ``auto`` takes the kernels where they run, and PyTorch elsewhere.
ENGINES = ("auto", "torch", "triton", "minkowski")
#: The oldest GPUs that have bfloat16 and TF32.
OLDEST = (8, 0)


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


@dataclass(frozen=True)
class PlannedMap:
    """A map that a network asks for.

    Attributes:
        way: the method of the manager that finds it.
        source: the input's set of voxels: a number, in the order in which the network comes to them.
        shape: of the convolution.
        derivations: what is derived of the map, see :meth:`~.kernel_map.KernelMap.derivations`.
    """

    way: str
    source: int
    shape: ConvolutionShape
    derivations: list[Callable[[Any], object]]


Plan = list[PlannedMap]
"""The maps that a network asks for, in this order."""


@dataclass(eq=False)
class TorchManager(CoordinateManager):
    """The default engine: geometry and convolutions of this package."""

    engine: str = "torch"
    #: By way, source and shape of a convolution: source, target and map.
    _asked: dict[tuple[str, int, ConvolutionShape], tuple[SortedSet, SortedSet, Any]] = field(default_factory=dict)

    def convolve(
        self, feature: Tensor, voxels: CoordinateSet, kernel: Tensor, shape: ConvolutionShape
    ) -> tuple[Tensor, CoordinateSet]:
        """See :class:`EngineManager`."""
        if not isinstance(voxels, SortedSet):
            raise OlivineError("the voxels belong to another engine", where=f"coordinate {describe(voxels.coordinate)}")
        target, kernel_map = self.find("_target_and_map", voxels, shape)
        return convolve(feature, kernel if kernel.ndim == 3 else kernel[None], kernel_map), target

    def _target_and_map(self, voxels: SortedSet, shape: ConvolutionShape) -> tuple[SortedSet, KernelMap]:
        if shape.padding is not None:
            return self.padded(voxels, shape.kernel_size, shape.stride, shape.padding, shape.dilation)
        if shape.transposed:
            target = self.finer(voxels, shape.stride, shape.kernel_size, shape.dilation)
        else:
            target = self.coarser(voxels, shape.stride)
        return target, self.map(voxels, target, shape.kernel_size, shape.dilation, transposed=shape.transposed)

    def find(self, way: str, voxels: SortedSet, shape: ConvolutionShape) -> tuple[SortedSet, Any]:
        """A convolution's output voxels and its map, found by a method of the manager where it is first asked for."""
        key = (way, id(voxels), shape)
        if key not in self._asked:
            self._asked[key] = (voxels, *getattr(self, way)(voxels, shape))
        return self._asked[key][1:]

    def plan(self) -> Plan:
        """What was asked for, in its order."""
        number: dict[int, int] = {}
        for source, target, _ in self._asked.values():
            for voxels in (source, target):
                number.setdefault(id(voxels), len(number))
        return [
            PlannedMap(way, number[source], shape, found[2].derivations())
            for (way, source, shape), found in self._asked.items()
        ]

    def follow(self, voxels: SortedSet, plan: Plan) -> None:
        """Find the maps of a plan and what is derived of them; ``voxels`` are the first ones."""
        sets = [voxels]
        for wanted in plan:
            target, found = self.find(wanted.way, sets[wanted.source], wanted.shape)
            if all(target is not known for known in sets):
                sets.append(target)
            for derive in wanted.derivations:
                derive(found)


def start_manager(
    engine: str, coordinate: Tensor, stride: Triple, batch_size: int | None, shape: Triple | None
) -> tuple[EngineManager, CoordinateSet]:
    """A new coordinate manager of an engine, and its first voxels.

    Raises:
        OlivineError: an unknown engine or one that is not installed; coordinates that no tensor can have.
    """
    if engine not in ENGINES:
        raise OlivineError(f"no sparse engine {engine!r}", remedy=f"choose one of {', '.join(ENGINES)}")
    engine, _ = choose_engine(engine, coordinate.device)
    size = check_start(coordinate, stride, batch_size, shape)
    manager: TorchManager
    if engine == "torch":
        manager = TorchManager(size)
        return manager, manager.start(coordinate, stride, shape)
    if engine == "triton":
        from .cuda.manager import TritonManager

        manager = TritonManager(size)
        return manager, manager.start(coordinate, stride, shape)
    from .minkowski import MinkowskiManager

    other = MinkowskiManager(size)
    return other, other.start(coordinate, stride, shape)


def plan_of(manager: EngineManager) -> Plan | None:
    """What a network asked of a manager; None for an engine that keeps its maps to itself."""
    return manager.plan() if isinstance(manager, TorchManager) else None


def follow_plan(manager: EngineManager, voxels: CoordinateSet, plan: Plan) -> None:
    """Find the maps of a plan, which a manager of the same engine gave, before the network asks for them."""
    assert isinstance(manager, TorchManager) and isinstance(voxels, SortedSet)
    manager.follow(voxels, plan)


class MapsAhead:
    """Kernel maps of inputs before a network asks for them: from the third input on, those that the first one needed.

    For inputs that a thread makes one ahead, in order; where there is no thread the network makes its maps.
    """

    def __init__(self) -> None:
        self._number = 0
        self._first: EngineManager | None = None
        self._plan: Plan | None = None

    def __call__(self, tensor: SparseTensor) -> None:
        """Make those of the next input."""
        if tensor.feature.device.type not in THREADED:
            return
        if self._number == 0:
            self._first = tensor.manager
        elif self._number == 2 and self._first is not None:  # only now nobody uses the first any more
            self._plan, self._first = plan_of(self._first), None
        if self._plan is not None:
            follow_plan(tensor.manager, tensor.voxels, self._plan)
        self._number += 1


def choose_engine(engine: str, device: torch.device) -> tuple[str, str]:
    """The engine that computes on a device where ``engine`` is asked for, and a line that says which and why.

    Raises:
        OlivineError: ``triton`` was asked for by name and cannot compute there.
    """
    if engine == "auto":
        problem = "a CPU" if device.type == "cpu" else _triton_problem(device)
        if problem is None:
            return "triton", f"triton, on {torch.cuda.get_device_name(device)}"
        return "torch", f"torch, as this is {problem}" if device.type == "cpu" else f"torch: {problem}"
    problem = engine_problem(engine, device) if engine == "triton" else None  # MinkowskiEngine says so when it starts
    if problem is not None:
        raise OlivineError(problem)
    return engine, f"{engine}, as asked for"


def engine_problem(engine: str, device: torch.device | None = None) -> str | None:
    """Why an engine cannot be used here, with what to do about it; None when it can.

    Args:
        device: that is to compute; None for any that is here.
    """
    if engine in ("auto", "torch"):
        return None
    if engine == "triton":
        problem = _triton_problem(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return None if problem is None else f"engine triton: {problem}; choose engine torch, or auto"
    if engine != "minkowski":
        return f"no sparse engine {engine!r}; choose one of {', '.join(ENGINES)}"
    from .minkowski import import_minkowski

    try:
        import_minkowski()
    except OlivineError as error:
        return str(error)
    return None


@cache
def _triton_problem(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device."""
    # Triton's interpreter computes kernels on a CPU, slowly: for tests.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"its kernels run on an NVIDIA GPU, not on {device.type}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with PyTorch's CUDA wheels: pip install triton"
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return "its kernels are made for NVIDIA's GPUs, not AMD's"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"{name} (compute capability {capability[0]}.{capability[1]}) has neither bfloat16 nor TF32, from 8.0 on"
    return None
