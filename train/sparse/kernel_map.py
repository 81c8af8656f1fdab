"""Which input voxel meets which output voxel under which cell of a kernel.

A convolution is, for each cell k of the kernel, out[o] += in[i] @ W[k] over the pairs (i, o) of that cell. A
:class:`KernelMap` lists the pairs cell by cell (for one matrix product per cell), and for each output row the pairs
that end there (for a sum in a fixed order, so that results repeat bit for bit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor

from ...common import OlivineError
from . import loops
from .coordinates import MAX_REACH, key_offset

Triple = tuple[int, int, int]
_DERIVED = ("groups", "gathered", "pairs_of_output", "pair_end")


def kernel_offsets(kernel_size: Triple, dilation: Triple = (1, 1, 1), stride: Triple = (1, 1, 1)) -> list[Triple]:
    """Offsets of a kernel's cells from its output voxel, in the order of the weights: x fastest, z slowest.

    An odd axis is centred (-1, 0, 1 for size 3), an even one starts at the output voxel (0, 1 for size 2), both
    times dilation and the input's tensor stride. This is MinkowskiEngine's order.

    Raises:
        OlivineError: the kernel reaches farther than coordinates' keys have room for.
    """
    axes = []
    for size, rate, step in zip(kernel_size, dilation, stride):
        first = -(size // 2) if size % 2 else 0
        axes.append([(first + i) * rate * step for i in range(size)])
    if max(max(abs(axis[0]), abs(axis[-1])) for axis in axes) > MAX_REACH:
        raise OlivineError(
            f"a kernel of {kernel_size}, dilation {dilation}, at tensor stride {stride} reaches over {MAX_REACH} voxels"
        )
    return [(x, y, z) for z in axes[2] for y in axes[1] for x in axes[0]]


class KernelMap:
    """Pairs of a convolution, cell by cell.

    Attributes:
        in_index, out_index: int64 [P], rows of the input and output feature, cell after cell.
        counts: pairs of each cell, K numbers that sum to P.
        cells: the kernel cell whose weight each group of pairs uses: 0..K-1, reversed for a transposed symmetric map.
        in_count, out_count: rows of input and output.
        ascending: whether each group's pairs ascend in both rows (they do where both tensors' rows are sorted).
        identity: the group whose pairs are (0, 0), (1, 1), … over all rows, or -1.
    """

    def __init__(
        self,
        in_index: Tensor,
        out_index: Tensor,
        counts: Sequence[int],
        *,
        in_count: int,
        out_count: int,
        identity: int = -1,
        symmetric: bool = False,
        ascending: bool = False,
    ) -> None:
        self.in_index = in_index
        self.out_index = out_index
        self.counts = tuple(counts)
        self.cells: tuple[int, ...] = tuple(range(len(self.counts)))
        self.in_count = in_count
        self.out_count = out_count
        self.identity = identity
        self.symmetric = symmetric
        self.ascending = ascending

    @cached_property
    def groups(self) -> tuple[tuple[int, int, int, int], ...]:
        """(cell, first pair, end, first gathered row) of every group that has pairs.

        The identity group's rows need no gathering; its last number is -1.
        """
        result, start, gathered = [], 0, 0
        for group, (cell, count) in enumerate(zip(self.cells, self.counts)):
            if count and group == self.identity:
                result.append((cell, start, start + count, -1))
            elif count:
                result.append((cell, start, start + count, gathered))
                gathered += count
            start += count
        return tuple(result)

    @cached_property
    def gathered(self) -> tuple[Tensor, Tensor]:
        """``in_index`` and ``out_index`` without the identity group's pairs."""
        if self.identity < 0:
            return self.in_index, self.out_index
        start = sum(self.counts[: self.identity])
        end = start + self.counts[self.identity]
        return (
            torch.cat((self.in_index[:start], self.in_index[end:])),
            torch.cat((self.out_index[:start], self.out_index[end:])),
        )

    @cached_property
    def pairs_of_output(self) -> tuple[Tensor, Tensor]:
        """For each output row its pairs: positions int64 [P], and where each row's begin and end, int64 [out + 1]."""
        return _pairs_of_row(self.out_index, self.counts, self.out_count)

    @cached_property
    def pair_end(self) -> Tensor:
        """int64 [out]: pairs of each output row and of all rows before it."""
        return torch.bincount(self.out_index, minlength=self.out_count).cumsum(0)

    def derivations(self) -> list[Callable[[KernelMap], object]]:
        """What has been derived of this map so far: functions that derive the same of another one."""
        derived = [name for name in _DERIVED if name in self.__dict__]
        if "transposed" in self.__dict__:
            derived += [f"transposed.{name}" for name in _DERIVED if name in self.transposed.__dict__]
        return [attrgetter(name) for name in derived]

    @cached_property
    def transposed(self) -> KernelMap:
        """The same pairs with input and output exchanged.

        A symmetric map (submanifold: whenever (i, o) is a pair of cell k, (o, i) is one of the mirrored cell) is its
        own transpose with the cells mirrored, so nothing is built.
        """
        if self.symmetric:
            other = KernelMap(
                self.in_index,
                self.out_index,
                self.counts,
                in_count=self.in_count,
                out_count=self.out_count,
                identity=self.identity,
                symmetric=True,
                ascending=self.ascending,
            )
            other.cells = tuple(reversed(self.cells))
            other.__dict__["pairs_of_output"] = self.pairs_of_output
            other.__dict__["gathered"] = self.gathered
        else:
            other = KernelMap(
                self.out_index,
                self.in_index,
                self.counts,
                in_count=self.out_count,
                out_count=self.in_count,
                identity=self.identity,
                ascending=self.ascending,
            )
        other.__dict__["transposed"] = self
        return other


def _pairs_of_row(row: Tensor, counts: Sequence[int], row_count: int) -> tuple[Tensor, Tensor]:
    # A row meets a cell at most once, so a table [rows, cells] of pair positions, read row by row, lists the pairs by
    # row and then by cell. It needs no sort.
    cells = len(counts)
    device = row.device
    table = torch.full((row_count * cells,), -1, dtype=torch.int32, device=device)
    cell = torch.repeat_interleave(torch.arange(cells, device=device), torch.tensor(counts, device=device))
    table[row * cells + cell] = torch.arange(len(row), dtype=torch.int32, device=device)
    present = table >= 0
    end = torch.zeros(row_count + 1, dtype=torch.int64, device=device)
    torch.cumsum(present.view(row_count, cells).sum(1), 0, out=end[1:])
    return table[present].long(), end


def _find(sorted_key: Tensor, query: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Positions in ``query`` where ``query + shift`` occurs in ``sorted_key``, and where; both lists ascend."""
    compiled = loops.common_keys(sorted_key, query, shift)
    if compiled is not None:
        return compiled
    wanted = query + shift
    place = torch.searchsorted(sorted_key, wanted)
    hit = sorted_key[place.clamp_(max=len(sorted_key) - 1)] == wanted
    position = torch.nonzero(hit).flatten()
    return position, place.index_select(0, position)


def submanifold_map(sorted_key: Tensor, row: Tensor | None, offsets: Sequence[Triple]) -> KernelMap:
    """The map of a stride-1 convolution of odd size whose output voxels are its input voxels.

    Args:
        sorted_key: int64 [N], ascending; ``row`` the rows they belong to, None for 0..N-1.
        offsets: cells of the kernel, symmetric about their middle.
    """
    total, count = len(offsets), len(sorted_key)
    middle = total // 2
    ins: list[Tensor] = [torch.empty(0)] * total
    outs: list[Tensor] = [torch.empty(0)] * total
    for cell in range(middle):
        at, neighbour = _find(sorted_key, sorted_key, key_offset(offsets[cell]))
        if row is not None:
            at, neighbour = row[at], row[neighbour]
        # The mirrored cell sees the same pairs from the other side.
        ins[cell] = outs[total - 1 - cell] = neighbour
        outs[cell] = ins[total - 1 - cell] = at
    ins[middle] = outs[middle] = torch.arange(count, device=sorted_key.device)
    return KernelMap(
        torch.cat(ins),
        torch.cat(outs),
        [len(part) for part in ins],
        in_count=count,
        out_count=count,
        identity=middle,
        symmetric=True,
        ascending=row is None,
    )


def strided_map(
    in_key: Tensor, in_row: Tensor | None, out_key: Tensor, out_row: Tensor | None, offsets: Sequence[Triple]
) -> KernelMap:
    """The map between two sets of voxels: input at output + offset.

    Args:
        in_key, out_key: int64, ascending, with the rows they belong to (None for 0, 1, …).
        offsets: cells of the kernel.
    """
    ins, outs = [], []
    for offset in offsets:
        at, found = _find(in_key, out_key, key_offset(offset))
        outs.append(at if out_row is None else out_row[at])
        ins.append(found if in_row is None else in_row[found])
    return KernelMap(
        torch.cat(ins),
        torch.cat(outs),
        [len(part) for part in ins],
        in_count=len(in_key),
        out_count=len(out_key),
        ascending=in_row is None and out_row is None,
    )
