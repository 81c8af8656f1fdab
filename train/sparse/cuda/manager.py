"""The engine ``triton``: the geometry of :class:`~..geometry.CoordinateManager` with maps and convolutions by kernels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..convolution import matching
from ..engines import TorchManager
from ..geometry import ONE, ConvolutionShape, CoordinateSet, SortedSet, Triple, from_keys, triple
from ..kernel_map import kernel_offsets
from .convolution import convolve, suits
from .maps import CellMap, coarser_keys, find_map

#: Levels that are made together when a coarser one is first asked for, so that the host waits once for their sizes.
_LEVELS = 4


@dataclass(eq=False)
class TritonManager(TorchManager):
    """Maps and convolutions on the GPU; what the kernels do not suit is left to the general path."""

    engine: str = "triton"
    _cell_maps: dict[tuple[object, ...], CellMap] = field(default_factory=dict)
    #: Sets that no layer has asked for yet: until then a transposed convolution must not find them.
    _ahead: dict[Triple, SortedSet] = field(default_factory=dict)

    def coarser(self, source: SortedSet, factor: Triple) -> SortedSet:
        """See :meth:`~..geometry.CoordinateManager.coarser`; the next levels by the same factor are made with it."""
        stride = triple([s * f for s, f in zip(source.stride, factor)])
        if factor != ONE and stride not in self._sets:
            if stride not in self._ahead:
                strides = [
                    triple([s * f**level for s, f in zip(source.stride, factor)]) for level in range(1, _LEVELS + 1)
                ]
                with torch.cuda.device_of(source.key):
                    keys = coarser_keys(source.key, strides)
                self._ahead |= {each: from_keys(key, each) for each, key in zip(strides, keys)}
            self._sets[stride] = self._ahead[stride]
        return super().coarser(source, factor)

    def convolve(
        self, feature: Tensor, voxels: CoordinateSet, kernel: Tensor, shape: ConvolutionShape
    ) -> tuple[Tensor, CoordinateSet]:
        """See :class:`~..engines.EngineManager`."""
        kernel = kernel if kernel.ndim == 3 else kernel[None]
        feature, kernel = matching(feature, kernel)
        if not suits(feature, kernel, len(kernel)) or not isinstance(voxels, SortedSet):
            return super().convolve(feature, voxels, kernel, shape)
        with torch.cuda.device_of(feature):
            target, cell_map = self.find("_target_and_cells", voxels, shape)
            return convolve(feature, kernel, cell_map), target

    def _target_and_cells(self, voxels: SortedSet, shape: ConvolutionShape) -> tuple[SortedSet, CellMap]:
        if shape.padding is not None:
            target = self.padded_set(voxels, shape.kernel_size, shape.stride, shape.padding, shape.dilation)
            return target, self._padded_map(voxels, target, shape, shape.padding)
        if shape.transposed:
            target = self.finer(voxels, shape.stride, shape.kernel_size, shape.dilation)
            return target, self._cell_map(target, voxels, shape.kernel_size, shape.dilation).back
        target = self.coarser(voxels, shape.stride)
        return target, self._cell_map(voxels, target, shape.kernel_size, shape.dilation)

    def _cell_map(self, source: SortedSet, target: SortedSet, kernel_size: Triple, dilation: Triple) -> CellMap:
        name = (id(source), id(target), kernel_size, dilation)
        if name not in self._cell_maps:
            stride = source.stride if source.shape is None else ONE
            offsets = kernel_offsets(kernel_size, dilation, stride)
            symmetric = source is target and all(size % 2 for size in kernel_size)
            self._cell_maps[name] = find_map(
                source.key, source.row, target.key, target.row, offsets, unit=stride[2], symmetric=symmetric
            )
            self.maps_built += 1
        return self._cell_maps[name]

    def _padded_map(self, source: SortedSet, target: SortedSet, shape: ConvolutionShape, padding: Triple) -> CellMap:
        name = (id(source), id(target), shape.kernel_size, shape.dilation, padding)
        if name not in self._cell_maps:
            corner, offsets = self.corners(target, shape.kernel_size, shape.stride, padding, shape.dilation)
            self._cell_maps[name] = find_map(source.key, source.row, corner, None, offsets, unit=1)
            self.maps_built += 1
        return self._cell_maps[name]
