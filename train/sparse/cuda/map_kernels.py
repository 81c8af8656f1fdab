"""The Triton kernels that make coarser voxel sets and kernel maps on the device, without a word from the host.

A map is a table int32 [K, M]: the input row that output row m meets under cell k, or -1. Counts stay on the device: arrays have
the largest size that can occur, and what lies behind their end is never read. Places in a table are int32: 31 cells times rows
are below 2^31 up to 69 million rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _remainder(key, shift, step, BITS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a coordinate at ``shift`` in the keys lies above the multiple of ``step`` below it, at that shift."""
    field = (key >> shift) & ((1 << BITS) - 1)
    return ((field + (step - HALF % step)) % step) << shift


@triton.jit(do_not_specialize=["rows", "step_x", "step_y", "step_z"])
def floor_keys(  # type: ignore[no-untyped-def]
    key, out, rows, step_x, step_y, step_z, BITS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """The keys of the voxels lowered to multiples of the steps; a coordinate has so many BITS in a key, with HALF added to it."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(key + m, mask=m < rows, other=0)
    rest = _remainder(own, 2 * BITS, step_x.to(tl.int64), BITS, HALF)
    rest += _remainder(own, BITS, step_y.to(tl.int64), BITS, HALF)
    rest += _remainder(own, 0, step_z.to(tl.int64), BITS, HALF)
    tl.store(out + m, own - rest, mask=m < rows)


@triton.jit(do_not_specialize=["rows"])
def keep_first(key, place, out, rows, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[place[m] - 1] = key[m] for the first of equal keys; ``place`` counts the distinct keys up to m."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(place + m, mask=m < rows, other=0)
    before = tl.load(place + m - 1, mask=(m > 0) & (m < rows), other=0)
    value = tl.load(key + m, mask=m < rows, other=0)
    tl.store(out + number - 1, value, mask=(m < rows) & (number > before))


@triton.jit(do_not_specialize=["rows_in", "rows_out", "halvings", "step"])
def find_neighbors(  # type: ignore[no-untyped-def]
    key, wanted, offset, table, rows_in, rows_out, halvings, step,
    RUNS: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table[k, m] = the row of wanted[m] + offset of cell k in the ascending keys, or -1.

    z is lowest in a key, so cells that differ in z alone (LENGTH of them, ``step`` apart) have keys that follow each other: one
    binary search of so many ``halvings`` serves a run. ``offset`` is of the runs' first cells; cell k is number
    k // RUNS of run k % RUNS. A run longer than 1 needs sets whose z are multiples of the step.
    """
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = m < rows_out
    own = tl.load(wanted + m, mask=inside, other=0)
    for run in range(RUNS):
        goal = own + tl.load(offset + run)
        low = tl.zeros((BLOCK,), tl.int32)
        high = tl.zeros((BLOCK,), tl.int32) + rows_in
        for _ in range(halvings):
            middle = (low + high) // 2
            smaller = (tl.load(key + middle, mask=inside & (middle < rows_in), other=0) < goal) & (low < high)
            low = tl.where(smaller, middle + 1, low)
            high = tl.where(smaller, high, middle)
        for number in tl.static_range(LENGTH):
            here = tl.load(key + low, mask=inside & (low < rows_in), other=-1)
            found = here == goal + number * step
            tl.store(table + (number * RUNS + run) * rows_out + m, tl.where(found, low, -1), mask=inside)
            low += found.to(tl.int32)


@triton.jit(do_not_specialize=["rows_in", "rows_out"])
def invert(table, back, rows_in, rows_out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """back[k, table[k, m]] = m; ``back`` int32 [K, rows_in] holds -1. Under one cell no two output rows meet one input row."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cell = tl.program_id(1)
    row = tl.load(table + cell * rows_out + m, mask=m < rows_out, other=-1)
    tl.store(back + cell * rows_in + row, m, mask=row >= 0)


@triton.jit(do_not_specialize=["rows_out", "blocks"])
def count_pairs(table, count, rows_out, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """count[k, b] = pairs of cell k in the b-th BLOCK of output rows."""
    block = tl.program_id(0)
    m = block * BLOCK + tl.arange(0, BLOCK)
    cell = tl.program_id(1)
    row = tl.load(table + cell * rows_out + m, mask=m < rows_out, other=-1)
    tl.store(count + cell * blocks + block, tl.sum((row >= 0).to(tl.int32), 0))


@triton.jit(do_not_specialize=["rows_out", "blocks"])
def list_pairs(table, end, pair_in, pair_out, rows_out, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pairs cell after cell, each cell's in the order of its output rows.

    ``end`` is the running sum of :func:`count_pairs`.
    """
    block = tl.program_id(0)
    m = block * BLOCK + tl.arange(0, BLOCK)
    cell = tl.program_id(1)
    row = tl.load(table + cell * rows_out + m, mask=m < rows_out, other=-1)
    found = (row >= 0).to(tl.int32)
    entry = cell * blocks + block
    start = tl.load(end + entry) - tl.sum(found, 0)
    place = start + tl.cumsum(found, 0) - found
    tl.store(pair_in + place, row, mask=row >= 0)
    tl.store(pair_out + place, m, mask=row >= 0)


@triton.jit(do_not_specialize=["rows_out"])
def mask_cells(table, rank, mask, rows_out, CELLS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """mask[m] has bit rank[k] for every cell k that output row m has."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.zeros((BLOCK,), tl.int32)
    for cell in range(CELLS):
        row = tl.load(table + cell * rows_out + m, mask=m < rows_out, other=-1)
        bits |= tl.where(row >= 0, 1 << tl.load(rank + cell).to(tl.int32), 0)
    tl.store(mask + m, bits, mask=m < rows_out)


@triton.jit(do_not_specialize=["rows_out"])
def count_cells(mask, count, rows_out, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """count[b] = cells that any row of the b-th block of ROWS has; ``mask`` is in the blocks' order."""
    block = tl.program_id(0)
    m = block * ROWS + tl.arange(0, ROWS)
    bits = tl.load(mask + m, mask=m < rows_out, other=0)
    present = tl.max((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1, axis=0)
    tl.store(count + block, tl.sum(present, 0))


@triton.jit(do_not_specialize=["rows_out"])
def fill_slots(  # type: ignore[no-untyped-def]
    table, order, first, slots, cells, rows_out, CELLS: tl.constexpr, ROWS: tl.constexpr
):
    """The cells of each block of rows, ascending, and under each the input rows (-1 for none) of the block's output rows.

    Entry j of block b is number first[b] + j of ``cells`` and of ``slots`` [entries, ROWS].
    """
    block = tl.program_id(0)
    r = tl.arange(0, ROWS)
    inside = block * ROWS + r < rows_out
    m = tl.load(order + block * ROWS + r, mask=inside, other=0)
    entry = tl.load(first + block)
    for cell in range(CELLS):
        row = tl.load(table + cell * rows_out + m, mask=inside, other=-1)
        present = tl.max(row, 0) >= 0
        tl.store(slots + entry * ROWS + r, row, mask=(r < ROWS) & present)
        tl.store(cells + entry, cell, mask=present)
        entry += present.to(tl.int32)
