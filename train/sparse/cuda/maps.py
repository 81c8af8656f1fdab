"""Voxel sets and kernel maps on the device, with what the kernels read of them; the host waits for the sets' sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from operator import attrgetter

import torch
import triton
from torch import Tensor

from ..coordinates import FIELD_BITS, FIELD_HALF, key_offset
from ..geometry import Triple
from . import map_kernels as kernels
from .tiles import MAP_ROWS

#: Cells of the largest kernel: they are the bits of an int32 that is not negative.
MAX_CELLS = 31
_DERIVED = ("_pair_end", "pair_start", "pairs", "_ordered")


def coarser_keys(key: Tensor, strides: Sequence[Triple]) -> list[Tensor]:
    """The ascending keys of the voxels lowered to each of the strides, with one wait for all their numbers.

    Args:
        key: int64 [N].
        strides: each along x, y, z.
    """
    rows, device = len(key), key.device
    lowered = torch.empty(len(strides), rows, dtype=torch.int64, device=device)
    grid = (triton.cdiv(rows, MAP_ROWS),)
    for level, stride in zip(lowered, strides):
        kernels.floor_keys[grid](key, level, rows, *stride, BITS=FIELD_BITS, HALF=FIELD_HALF, BLOCK=MAP_ROWS)
    lowered = torch.sort(lowered, dim=1).values
    is_new = torch.ones(lowered.shape, dtype=torch.bool, device=device)
    torch.ne(lowered[:, 1:], lowered[:, :-1], out=is_new[:, 1:])
    place = torch.cumsum(is_new, 1)
    found = torch.empty(lowered.shape, dtype=torch.int64, device=device)
    for level in range(len(strides)):
        kernels.keep_first[grid](lowered[level], place[level], found[level], rows, BLOCK=MAP_ROWS)
    # Copies, so that each set holds no more memory than it needs.
    return [found[level, :count].clone() for level, count in enumerate(place[:, -1].tolist())]


@dataclass(eq=False)
class Blocks:
    """A map's output rows in blocks, for one number of rows in a block; see :func:`.map_kernels.fill_slots`.

    Attributes:
        slots: int32 [entries, rows of a block].
        cells: int32 [entries].
        first: int32 [blocks + 1].
    """

    slots: Tensor
    cells: Tensor
    first: Tensor


@dataclass(eq=False)
class CellMap:
    """A convolution's map on the device.

    Attributes:
        table: int32 [K, M], the input row that output row m meets under cell k, or -1.
        rows_in: N.
        symmetric: whether the map is its own transpose with the cells mirrored (submanifold).
    """

    table: Tensor
    rows_in: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        self.cells, self.rows_out = self.table.shape
        self._blocks: dict[int, Blocks] = {}

    @cached_property
    def back(self) -> CellMap:
        """The same pairs from the output's rows to the input's: whose way a gradient takes. Cells are mirrored if symmetric."""
        if self.symmetric:
            return self
        inverse = torch.full((self.cells, self.rows_in), -1, dtype=torch.int32, device=self.table.device)
        kernels.invert[self._grid(self.cells)](self.table, inverse, self.rows_in, self.rows_out, BLOCK=MAP_ROWS)
        other = CellMap(inverse, self.rows_out)
        other.__dict__["back"] = self
        return other

    @cached_property
    def _pair_end(self) -> Tensor:
        """int32 [K, blocks of MAP_ROWS]: pairs up to each cell's each block, in this order."""
        blocks = triton.cdiv(self.rows_out, MAP_ROWS)
        count = torch.empty(self.cells, blocks, dtype=torch.int32, device=self.table.device)
        kernels.count_pairs[self._grid(self.cells)](self.table, count, self.rows_out, blocks, BLOCK=MAP_ROWS)
        return torch.cumsum(count.view(-1), 0, dtype=torch.int32).view(count.shape)

    @cached_property
    def pair_start(self) -> Tensor:
        """int32 [K + 1]: where each cell's pairs begin, and the end of the last's."""
        return torch.nn.functional.pad(self._pair_end[:, -1], (1, 0))

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """int32 [K · M or more], the first ``pair_start[-1]`` of which are set: input and output rows, cell after cell."""
        known = self.__dict__.get("back")
        if known is not None and known is not self and "pairs" in known.__dict__:
            return known.pairs[1], known.pairs[0]
        size = self.table.numel()
        pair_in, pair_out = (torch.empty(size, dtype=torch.int32, device=self.table.device) for _ in range(2))
        end = self._pair_end
        kernels.list_pairs[self._grid(self.cells)](
            self.table, end, pair_in, pair_out, self.rows_out, end.shape[1], BLOCK=MAP_ROWS
        )
        return pair_in, pair_out

    @cached_property
    def _ordered(self) -> tuple[Tensor, Tensor]:
        """(masks in ascending order, the output rows that they are of, int64 [M]).

        The rarest cell is the highest bit, so rows with rare cells stand together and few blocks visit those.
        """
        count = self.pair_start[1:] - self.pair_start[:-1]
        rank = torch.argsort(torch.argsort(count, descending=True, stable=True))
        mask = torch.empty(self.rows_out, dtype=torch.int32, device=self.table.device)
        kernels.mask_cells[self._grid()](self.table, rank, mask, self.rows_out, CELLS=self.cells, BLOCK=MAP_ROWS)
        ordered, order = torch.sort(mask, stable=True)
        return ordered, order

    def derivations(self) -> list[Callable[[CellMap], object]]:
        """See :meth:`~..kernel_map.KernelMap.derivations`."""
        derived: list[Callable[[CellMap], object]] = []
        for way, known in (("", self), ("back.", self.__dict__.get("back", self))):
            if known is not self or not way:
                derived += [attrgetter(way + name) for name in _DERIVED if name in known.__dict__]
                derived += [partial(_make_blocks, way=f"{way}blocks", rows=rows) for rows in known._blocks]
        return derived

    @property
    def order(self) -> Tensor:
        """int64 [M]: the output rows as blocks take them."""
        return self._ordered[1]

    def blocks(self, rows: int) -> Blocks:
        """The map in blocks of so many rows, made at the first call."""
        if rows not in self._blocks:
            mask, order = self._ordered
            device, count = self.table.device, triton.cdiv(self.rows_out, rows)
            present = torch.empty(count, dtype=torch.int32, device=device)
            kernels.count_cells[(count,)](mask, present, self.rows_out, ROWS=rows)
            first = torch.nn.functional.pad(torch.cumsum(present, 0, dtype=torch.int32), (1, 0))
            slots = torch.empty(count * self.cells, rows, dtype=torch.int32, device=device)
            cells = torch.empty(count * self.cells, dtype=torch.int32, device=device)
            kernels.fill_slots[(count,)](
                self.table, order, first, slots, cells, self.rows_out, CELLS=self.cells, ROWS=rows
            )
            self._blocks[rows] = Blocks(slots, cells, first)
        return self._blocks[rows]

    def _grid(self, *more: int) -> tuple[int, ...]:
        return (triton.cdiv(self.rows_out, MAP_ROWS), *more)


def _make_blocks(cell_map: CellMap, way: str, rows: int) -> None:
    attrgetter(way)(cell_map)(rows)


def find_map(
    key: Tensor,
    row: Tensor | None,
    wanted: Tensor,
    wanted_row: Tensor | None,
    offsets: Sequence[Triple],
    *,
    unit: int,
    symmetric: bool = False,
) -> CellMap:
    """The map between two sets of voxels: input at ``wanted`` + offset.

    Args:
        key, wanted: int64, ascending, of the input and of the output, with the rows that they belong to (None for 0, 1, …).
        offsets: cells of the kernel, x fastest; at most :data:`MAX_CELLS`.
        unit: that the z of all keys and offsets are multiples of.
        symmetric: whether input and output are one set and the offsets symmetric about their middle.
    """
    runs, length = _runs_of(offsets, unit)
    first = _key_offsets(tuple(offsets[:runs]), key.device)
    table = torch.empty(len(offsets), len(wanted), dtype=torch.int32, device=key.device)
    kernels.find_neighbors[(triton.cdiv(len(wanted), MAP_ROWS),)](
        key, wanted, first, table, len(key), len(wanted), len(key).bit_length(), unit,
        RUNS=runs, LENGTH=length, BLOCK=MAP_ROWS,
    )  # fmt: skip
    if row is not None:
        table = torch.where(table >= 0, row.int()[table.clamp(min=0).long()], -1)
    if wanted_row is not None:
        table = torch.empty_like(table).index_copy_(1, wanted_row, table)
    return CellMap(table, len(key), symmetric)


def _runs_of(offsets: Sequence[Triple], unit: int) -> tuple[int, int]:
    """(runs, length) of cells that one search finds; see :func:`.map_kernels.find_neighbors`."""
    runs = sum(offset[2] == offsets[0][2] for offset in offsets)
    # Cells farther apart than a unit may have voxels between them.
    if runs < len(offsets) and offsets[runs][2] - offsets[0][2] != unit:
        return len(offsets), 1
    return runs, len(offsets) // runs


@lru_cache(maxsize=256)
def _key_offsets(offsets: tuple[Triple, ...], device: torch.device) -> Tensor:
    """Kept on the device: a copy at every step would be a wait of the host."""
    return torch.tensor([key_offset(offset) for offset in offsets], device=device)
