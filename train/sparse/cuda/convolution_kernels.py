"""The Triton kernels of a sparse convolution: implicit matrix products over a map's slots, and the weights' gradient.

All sums are made in float32 registers in a fixed order, every result is stored by one program, and there are no atomics,
so the same input gives the same bits. Row numbers that are multiplied by a width are int64: large batches pass 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows_out"])
def convolve(  # type: ignore[no-untyped-def]
    feature, kernel, out, slots, cells, first, order, rows_out,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, MIRROR: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[order[m]] = sum over the cells k of m's block of feature[slot of (m, k)] @ kernel[k].

    The block's cells follow each other in ``cells`` from ``first[block]`` to ``first[block + 1]``, each with ROWS ``slots``:
    the input row of every output row, or -1. One loop runs over (cell, part of the channels), so that the
    loads of the next steps run beside the products of this one across cells too.

    ``kernel`` is [K, INPUTS, OUTPUTS]; where TRANSPOSED it is [K, OUTPUTS, INPUTS]. Where MIRROR >= 0, cell k has the weights of
    cell MIRROR - k: the way back of a map that is its own transpose.
    """
    block = tl.program_id(0)
    r = tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.arange(0, DEPTH)
    PARTS: tl.constexpr = INPUTS // DEPTH
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = tl.load(first + block)
    end = tl.load(first + block + 1)
    for step in range(start * PARTS, end * PARTS):
        entry = step // PARTS
        row = tl.load(slots + entry * ROWS + r)
        cell = tl.load(cells + entry)
        if MIRROR >= 0:
            cell = MIRROR - cell
        channel = (step % PARTS) * DEPTH + c
        a = tl.load(
            feature + row.to(tl.int64)[:, None] * INPUTS + channel[None, :], mask=(row >= 0)[:, None], other=0.0
        )
        weights = kernel + cell.to(tl.int64) * INPUTS * OUTPUTS
        place = n[None, :] * INPUTS + channel[:, None] if TRANSPOSED else channel[:, None] * OUTPUTS + n[None, :]
        b = tl.load(weights + place, mask=(n < OUTPUTS)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    m = block * ROWS + r
    inside = m < rows_out
    at = tl.load(order + m, mask=inside, other=0).to(tl.int64)
    tl.store(
        out + at[:, None] * OUTPUTS + n[None, :],
        total.to(out.dtype.element_ty),
        mask=inside[:, None] & (n < OUTPUTS)[None, :],
    )


@triton.jit(do_not_specialize=["share"])
def weight_gradient(  # type: ignore[no-untyped-def]
    feature, gradient, part, pair_in, pair_out, start, share,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """part[s, k] = the sum over the s-th ``share`` pairs (i, o) of cell k of feature[i]^T gradient[o].

    A share has a fixed number of pairs, so that a cell of many pairs (the middle one) is done by many programs; shares that a
    cell does not have are left unwritten, and :func:`add_shares` does not read them.
    """
    cell = tl.program_id(0)
    number = tl.program_id(1)
    begin = tl.load(start + cell) + number * share
    end = tl.minimum(begin + share, tl.load(start + cell + 1))
    if begin < end:
        TILES: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
        i = (tl.program_id(2) // TILES) * ROWS + tl.arange(0, ROWS)
        o = (tl.program_id(2) % TILES) * COLUMNS + tl.arange(0, COLUMNS)
        p = tl.arange(0, DEPTH)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(begin, end, DEPTH):
            inside = at + p < end
            x = tl.load(pair_in + at + p, mask=inside, other=0).to(tl.int64)
            y = tl.load(pair_out + at + p, mask=inside, other=0).to(tl.int64)
            a = tl.load(
                feature + x[None, :] * INPUTS + i[:, None], mask=inside[None, :] & (i < INPUTS)[:, None], other=0.0
            )
            b = tl.load(
                gradient + y[:, None] * OUTPUTS + o[None, :], mask=inside[:, None] & (o < OUTPUTS)[None, :], other=0.0
            )
            total = tl.dot(a, b, total, input_precision=PRECISION)
        place = part + (number * tl.num_programs(0) + cell).to(tl.int64) * INPUTS * OUTPUTS
        inner = (i < INPUTS)[:, None] & (o < OUTPUTS)[None, :]
        tl.store(place + i[:, None] * OUTPUTS + o[None, :], total, mask=inner)


@triton.jit(do_not_specialize=["share", "cells"])
def add_shares(part, out, start, share, cells, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[k] = the sum of cell k's shares in their order; zero for a cell without a pair. ``SIZE`` numbers a cell."""
    cell = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    shares = tl.cdiv(tl.load(start + cell + 1) - tl.load(start + cell), share)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(shares):
        at = part + (number * cells + cell).to(tl.int64) * SIZE + place
        total += tl.load(at, mask=place < SIZE, other=0.0)
    tl.store(out + cell.to(tl.int64) * SIZE + place, total.to(out.dtype.element_ty), mask=place < SIZE)


@triton.jit(do_not_specialize=["rows_out"])
def gather_cells(  # type: ignore[no-untyped-def]
    feature, table, out, rows_out, INPUTS: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[m, k * INPUTS + c] = feature[table[k, m], c], zero where there is none: [M, WIDTH], zero behind the last cell.

    A layer of few input channels is then one dense product instead of one for each cell.
    """
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    cell = column // INPUTS
    inside = (m < rows_out)[:, None] & (column < WIDTH)[None, :]
    place = cell[None, :] * rows_out + m[:, None]
    row = tl.load(table + place, mask=inside & (cell < CELLS)[None, :], other=-1).to(tl.int64)
    value = tl.load(feature + row * INPUTS + (column % INPUTS)[None, :], mask=row >= 0, other=0.0)
    tl.store(out + m.to(tl.int64)[:, None] * WIDTH + column[None, :], value, mask=inside)
