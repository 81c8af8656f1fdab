"""Sets of voxels, how coarser and finer ones follow from them, and the kernel maps between them.

All tensors that come from one input share a :class:`CoordinateManager`. It keeps every set of voxels and every kernel map that
was needed, so that a network builds each once for a batch, however many layers use it.

Two rules make coarser sets. *MinkowskiEngine's*: coordinates stay in units of the finest voxels, a tensor of stride 2
has coordinates that are multiples of 2, each voxel goes to the multiple below it (-1 to -2), and a transposed
convolution returns to the finer set that is known. *spconv's*, taken when a padding is given: coordinates are indices
of a grid of known shape, and the output has every voxel that any input reaches through the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...common import OlivineError
from .coordinates import check_coordinates, describe, floor_to, key_offset, pack, sort_keys, unique_sorted, unpack
from .kernel_map import KernelMap, Triple, kernel_offsets, strided_map, submanifold_map

ONE: Triple = (1, 1, 1)


def triple(value: int | tuple[int, ...] | list[int], name: str = "value") -> Triple:
    """``value`` for each of x, y, z: one number stands for three.

    Raises:
        OlivineError: not one or three whole numbers.
    """
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or not all(isinstance(v, int) for v in values):
        raise OlivineError(f"{name} must be a whole number or three of them (x, y, z), not {value!r}")
    return values[0], values[1], values[2]


@dataclass(eq=False)
class CoordinateSet:
    """Distinct voxels in the order of a feature's rows.

    Attributes:
        coordinate: int32 [N, 4], (batch, x, y, z).
        stride: the tensor stride along x, y, z.
        shape: the grid's size along x, y, z, where spconv's rule needs one.
    """

    coordinate: Tensor
    stride: Triple
    shape: Triple | None

    def __len__(self) -> int:
        return self.coordinate.shape[0]


@dataclass(eq=False)
class SortedSet(CoordinateSet):
    """A set with its keys, for the searches of this package.

    Attributes:
        key: int64 [N], the coordinates' keys, ascending.
        row: int64 [N], the rows that the keys belong to; None where that is 0..N-1.
    """

    key: Tensor
    row: Tensor | None


@dataclass(frozen=True)
class ConvolutionShape:
    """What a convolution does to coordinates; sizes along x, y, z.

    Attributes:
        kernel_size, stride, dilation: of the kernel.
        padding: None for MinkowskiEngine's rule, else spconv's.
        transposed: whether the layer goes back to finer voxels.
    """

    kernel_size: Triple
    stride: Triple = ONE
    dilation: Triple = ONE
    padding: Triple | None = None
    transposed: bool = False


def check_start(coordinate: Tensor, stride: Triple, batch_size: int | None, shape: Triple | None) -> int:
    """Check a new tensor's coordinates against its stride and grid, and return the number of clouds.

    Raises:
        OlivineError: coordinates that no tensor can have (see :func:`~.coordinates.check_coordinates`), or that are
            not multiples of the stride or not in the grid.
    """
    size = check_coordinates(coordinate, batch_size)
    where = f"coordinate {describe(coordinate)}"
    if stride != ONE and not torch.equal(coordinate, floor_to(coordinate, stride)):
        raise OlivineError(f"coordinates are not multiples of the stride {stride}", where=where)
    if shape is not None:
        limit = torch.tensor(shape, device=coordinate.device)
        if bool((coordinate[:, 1:] < 0).any()) or bool((coordinate[:, 1:] >= limit).any()):
            raise OlivineError(f"coordinates outside the grid of {shape} voxels", where=where)
    return size


def from_keys(key: Tensor, stride: Triple, shape: Triple | None = None) -> SortedSet:
    """The set of ascending keys, int64 [N], in their order."""
    return SortedSet(unpack(key), stride, shape, key, None)


@dataclass(eq=False)
class CoordinateManager:
    """The voxel sets and kernel maps of all tensors that descend from one input.

    Attributes:
        batch_size: clouds in the batch.
        maps_built: kernel maps that were built and not found, for those who measure.
    """

    batch_size: int
    maps_built: int = 0
    _sets: dict[tuple[object, ...], SortedSet] = field(default_factory=dict)
    _maps: dict[tuple[object, ...], KernelMap] = field(default_factory=dict)

    def start(self, coordinate: Tensor, stride: Triple, shape: Triple | None) -> SortedSet:
        """The first set, from checked coordinates (:func:`check_start`).

        Raises:
            OlivineError: two rows have the same coordinate.
        """
        key, row = sort_keys(coordinate)
        self._sets[stride] = SortedSet(coordinate, stride, shape, key, row)
        return self._sets[stride]

    def coarser(self, source: SortedSet, factor: Triple) -> SortedSet:
        """MinkowskiEngine's rule: the set whose stride is ``factor`` times ``source``'s."""
        if factor == ONE:
            return source
        stride = triple([s * f for s, f in zip(source.stride, factor)])
        if stride not in self._sets:
            self._sets[stride] = from_keys(unique_sorted(pack(floor_to(source.coordinate, stride))), stride)
        return self._sets[stride]

    def finer(self, source: SortedSet, factor: Triple, kernel_size: Triple, dilation: Triple) -> SortedSet:
        """The set whose stride is ``source``'s divided by ``factor``: the known one, or all that the kernel reaches.

        Raises:
            OlivineError: the stride is not divisible by the factor.
        """
        if any(s % f for s, f in zip(source.stride, factor)):
            raise OlivineError(
                f"a transposed convolution of stride {factor} cannot refine a tensor of stride {source.stride}",
                where=f"coordinate {describe(source.coordinate)}",
            )
        stride = triple([s // f for s, f in zip(source.stride, factor)])
        if stride not in self._sets:
            offsets = kernel_offsets(kernel_size, dilation, stride)
            key = unique_sorted(torch.cat([source.key + key_offset(offset) for offset in offsets]))
            self._sets[stride] = from_keys(key, stride)
        return self._sets[stride]

    def map(
        self, source: SortedSet, target: SortedSet, kernel_size: Triple, dilation: Triple, *, transposed: bool
    ) -> KernelMap:
        """The kernel map from ``source`` to ``target``, built at its first use.

        A transposed convolution's is the one of the convolution from ``target`` to ``source``, exchanged.
        """
        if transposed:
            return self.map(target, source, kernel_size, dilation, transposed=False).transposed
        name = (id(source), id(target), kernel_size, dilation)
        if name not in self._maps:
            offsets = kernel_offsets(kernel_size, dilation, source.stride if source.shape is None else ONE)
            if source is target and all(size % 2 for size in kernel_size):
                built = submanifold_map(source.key, source.row, offsets)
            else:
                built = strided_map(source.key, source.row, target.key, target.row, offsets)
            self._maps[name] = built
            self.maps_built += 1
        return self._maps[name]

    def padded(
        self, source: SortedSet, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
    ) -> tuple[SortedSet, KernelMap]:
        """spconv's rule: the output set and the map of a convolution with padding over a grid of known shape.

        Raises:
            OlivineError: see :meth:`padded_set`.
        """
        target = self.padded_set(source, kernel_size, stride, padding, dilation)
        name = (id(source), kernel_size, stride, padding, dilation)
        if name not in self._maps:
            corner, offsets = self.corners(target, kernel_size, stride, padding, dilation)
            self._maps[name] = strided_map(source.key, source.row, corner, None, offsets)
            self.maps_built += 1
        return target, self._maps[name]

    def padded_set(
        self, source: SortedSet, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
    ) -> SortedSet:
        """spconv's rule: the output set of a convolution with padding over a grid of known shape.

        Input i and output o meet under cell k where i = o * stride - padding + k * dilation.

        Raises:
            OlivineError: the tensor has no grid shape, or the output grid would be empty.
        """
        if source.shape is None:
            raise OlivineError(
                "a convolution with padding needs the grid's shape",
                where=f"coordinate {describe(source.coordinate)}",
                remedy="make the SparseTensor with shape=(x, y, z)",
            )
        shape = triple(
            [
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(source.shape, kernel_size, stride, padding, dilation)
            ]
        )
        if min(shape) < 1:
            raise OlivineError(f"a grid of {source.shape} voxels is smaller than the kernel {kernel_size}")
        name = (id(source), kernel_size, stride, padding, dilation)
        if name not in self._sets:
            self._sets[name] = _reached(source, kernel_size, stride, padding, dilation, shape)
        return self._sets[name]

    @staticmethod
    def corners(
        target: SortedSet, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
    ) -> tuple[Tensor, list[Triple]]:
        """Keys of where the kernel begins in the input for each output voxel, ascending, and its cells' offsets from there."""
        corner = target.coordinate * torch.tensor((1, *stride), dtype=torch.int32, device=target.key.device)
        corner -= torch.tensor((0, *padding), dtype=torch.int32, device=target.key.device)
        first = kernel_offsets(kernel_size, dilation)
        low = tuple(min(offset[axis] for offset in first) for axis in range(3))
        offsets: list[Triple] = [(x - low[0], y - low[1], z - low[2]) for x, y, z in first]
        # Scaling keeps the order of the keys, so the corners' are ascending too.
        return pack(corner), offsets


def _reached(
    source: SortedSet, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple, shape: Triple
) -> SortedSet:
    device = source.coordinate.device
    step = torch.tensor(stride, dtype=torch.int32, device=device)
    limit = torch.tensor(shape, dtype=torch.int32, device=device)
    pad = torch.tensor(padding, dtype=torch.int32, device=device)
    keys = []
    for z in range(kernel_size[2]):
        for y in range(kernel_size[1]):
            for x in range(kernel_size[0]):
                cell = torch.tensor(
                    (x * dilation[0], y * dilation[1], z * dilation[2]), dtype=torch.int32, device=device
                )
                numerator = source.coordinate[:, 1:] + pad - cell
                place = torch.div(numerator, step, rounding_mode="floor")
                fits = ((numerator == place * step) & (place >= 0) & (place < limit)).all(1)
                keys.append(pack(torch.cat((source.coordinate[:, :1], place), 1)[fits]))
    key = unique_sorted(torch.cat(keys))
    return from_keys(key, triple([a * b for a, b in zip(source.stride, stride)]), shape)
