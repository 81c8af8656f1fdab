"""MinkowskiEngine as a second engine behind the same modules and tensors.

Only this file knows MinkowskiEngine (0.5.4 or later). Its kernels' layout is the package's own, so weights pass to it
as they are.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...common import OlivineError
from .convolution import matching
from .coordinates import sort_keys
from .geometry import ConvolutionShape, CoordinateSet, Triple


@cache
def import_minkowski() -> Any:
    """The module MinkowskiEngine.

    Raises:
        OlivineError: it is not installed, or does not import.
    """
    # It names an abstract class by where Python before 3.10 kept it.
    if not hasattr(collections, "Sequence"):
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("MinkowskiEngine")
    except (ImportError, OSError, AttributeError) as error:
        raise OlivineError(
            f"MinkowskiEngine cannot be imported ({error})",
            where="engine minkowski",
            remedy="build it with `make minkowski`, or use the engine torch",
        ) from None


@dataclass(eq=False)
class _KeyedSet(CoordinateSet):
    """A set that MinkowskiEngine's manager knows under ``key``."""

    key: Any


@dataclass(eq=False)
class MinkowskiManager:
    """MinkowskiEngine's coordinate manager behind the interface of :class:`~.engines.EngineManager`."""

    batch_size: int
    engine: str = "minkowski"
    _manager: Any = None
    _sets: dict[str, _KeyedSet] = field(default_factory=dict)

    def start(self, coordinate: Tensor, stride: Triple, shape: Triple | None) -> CoordinateSet:
        """The first set, from checked coordinates.

        Raises:
            OlivineError: two rows have the same coordinate, or a grid's shape is asked for (spconv's rule).
        """
        sort_keys(coordinate)
        if shape is not None:
            raise OlivineError(
                "MinkowskiEngine has no convolutions with padding", where="engine minkowski", remedy="use engine torch"
            )
        engine = import_minkowski()
        tensor = engine.SparseTensor(
            torch.zeros(len(coordinate), 1, device=coordinate.device),
            coordinate,
            tensor_stride=list(stride),
            device=coordinate.device,
        )
        self._manager = tensor.coordinate_manager
        first = _KeyedSet(coordinate, stride, None, tensor.coordinate_map_key)
        self._sets[str(tensor.coordinate_map_key)] = first
        return first

    def convolve(
        self, feature: Tensor, voxels: CoordinateSet, kernel: Tensor, shape: ConvolutionShape
    ) -> tuple[Tensor, CoordinateSet]:
        """See :class:`~.engines.EngineManager`; float32 and float64 only, as MinkowskiEngine."""
        engine = import_minkowski()
        if not isinstance(voxels, _KeyedSet) or shape.padding is not None:
            raise OlivineError(
                "MinkowskiEngine has no convolutions with padding", where="engine minkowski", remedy="use engine torch"
            )
        feature, kernel = matching(feature, kernel)
        generator = engine.KernelGenerator(
            kernel_size=list(shape.kernel_size), stride=list(shape.stride), dilation=list(shape.dilation), dimension=3
        )
        function = (
            engine.MinkowskiConvolutionTransposeFunction if shape.transposed else engine.MinkowskiConvolutionFunction
        )
        target = engine.CoordinateMapKey(voxels.key.get_coordinate_size())
        out = function.apply(
            feature.contiguous(),
            kernel if kernel.ndim == 3 else kernel[None],
            generator,
            # From where the package has it: importing its module by name would put the module in the place of the class.
            importlib.import_module("MinkowskiEngineBackend._C").ConvolutionMode.DEFAULT,
            voxels.key,
            target,
            self._manager,
        )
        name = str(target)
        if name not in self._sets:
            x, y, z = target.get_tensor_stride()
            self._sets[name] = _KeyedSet(self._manager.get_coordinates(target), (x, y, z), None, target)
        return out, self._sets[name]
