"""The loops around a tile, compiled by numba once for all widths and kept on disk."""

from __future__ import annotations

import numba
import numpy as np

from .tiles import LANES, OUTPUT_ROWS, WEIGHT_ROWS, WEIGHT_STEPS, copy, output_tile, transpose, weight_tile

# Numbers of a panel: three quarters of a near cache of 32 KiB and more, so that a tile's rows fit beside it.
_PANEL = 8192
# Pairs that one part of a cell's weight sees before the next part, so that their rows stay in the second cache.
_RUN = 720
# The same for the weights' gradient, whose pairs are first copied side by side.
_GRADIENT_RUN = 96

_OUTPUT_1, _OUTPUT_2, _OUTPUT_3, _OUTPUT_4 = OUTPUT_ROWS[1], OUTPUT_ROWS[2], OUTPUT_ROWS[3], OUTPUT_ROWS[4]
_WEIGHT_1, _WEIGHT_2, _WEIGHT_3, _WEIGHT_4 = WEIGHT_ROWS[1], WEIGHT_ROWS[2], WEIGHT_ROWS[3], WEIGHT_ROWS[4]
_output_1, _output_2, _output_3, _output_4 = output_tile(1), output_tile(2), output_tile(3), output_tile(4)
_weight_1, _weight_2, _weight_3, _weight_4 = weight_tile(1), weight_tile(2), weight_tile(3), weight_tile(4)


@numba.njit(cache=True, nogil=True)
def _vectors(columns):  # type: ignore[no-untyped-def]
    """Vectors of a panel: the most that divide the columns."""
    for vectors in (4, 3, 2):
        if columns % (vectors * LANES) == 0:
            return vectors
    return 1


@numba.njit(cache=True, nogil=True)
def _aligned(array):  # type: ignore[no-untyped-def]
    """The first address of an array at a multiple of 64 bytes; the array has 16 numbers to spare."""
    # Addresses are unsigned, and unsigned plus signed would be floating point.
    return (np.int64(array.ctypes.data) + 63) // 64 * 64


@numba.njit(cache=True, nogil=True)
def outputs(source, kernel, transposed, in_index, out_index, groups, fresh, first, last, spare, out):  # type: ignore[no-untyped-def]
    """out[o] += source[i] @ kernel[cell] for the pairs of each group whose output rows are first..last - 1.

    Args:
        source: float32 [N, inputs].
        kernel: float32 [K, inputs, columns], or [K, columns, inputs] where ``transposed``.
        in_index, out_index: int64 [P], ascending in each group.
        groups: int64 [G, 3]: cell, first pair, end.
        fresh: the group whose outputs are written rather than added to (the first one, of all rows), or -1.
        spare: a row of ``out`` for this call alone, for what nobody wants.
        out: float32 [M and the spare rows, columns].
    """
    inputs, columns = source.shape[1], out.shape[1]
    vectors = _vectors(columns)
    panel = LANES * vectors
    rows = _OUTPUT_4 if vectors == 4 else _OUTPUT_3 if vectors == 3 else _OUTPUT_2 if vectors == 2 else _OUTPUT_1
    parts = -(-inputs * panel // _PANEL)
    chunk = -(-inputs // (parts * LANES)) * LANES
    buffer = np.empty(chunk * panel + LANES, np.float32)
    w = _aligned(buffer)
    a, c, k = np.int64(source.ctypes.data), np.int64(out.ctypes.data), np.int64(kernel.ctypes.data)
    i, o = np.int64(in_index.ctypes.data), np.int64(out_index.ctypes.data)
    # The last tile of a run: missing rows read the last pair again and write to the spare row.
    in_end, out_end = np.empty(2 * rows, np.int64), np.empty(2 * rows, np.int64)
    i_end, o_end = np.int64(in_end.ctypes.data), np.int64(out_end.ctypes.data)
    for g in range(len(groups)):
        cell, start, end = groups[g, 0], groups[g, 1], groups[g, 2]
        low = start + np.searchsorted(out_index[start:end], first)
        high = start + np.searchsorted(out_index[start:end], last)
        for run in range(low, high, _RUN):
            stop = min(run + _RUN, high)
            whole = run + (stop - run) // rows * rows
            for n in range(rows):
                present = whole + n < stop
                in_end[n] = in_index[whole + n] if present else in_index[stop - 1]
                out_end[n] = out_index[whole + n] if present else spare
            for s in range(0, inputs, chunk):
                steps = min(chunk, inputs - s)
                write = np.int64(g == fresh and s == 0)
                for p in range(0, columns, panel):
                    if transposed:
                        for v in range(0, panel, LANES):
                            for t in range(0, steps, LANES):
                                corner = k + ((cell * columns + p + v) * inputs + s + t) * 4
                                transpose((corner, inputs * 4, w + (t * panel + v) * 4, panel * 4))
                    else:
                        for t in range(steps):
                            for v in range(0, panel, LANES):
                                copy((k + ((cell * inputs + s + t) * columns + p + v) * 4, w + (t * panel + v) * 4))
                    x, y = a + s * 4, c + p * 4
                    for t in range(run, stop, rows):
                        it, ot = (i + t * 8, o + t * 8) if t < whole else (i_end, o_end)
                        ahead = i + (t + rows) * 8 if t + rows < whole else i_end
                        if vectors == 4:
                            _output_4((it, ot, ahead, x, inputs * 4, y, columns * 4, w, steps, write))
                        elif vectors == 3:
                            _output_3((it, ot, ahead, x, inputs * 4, y, columns * 4, w, steps, write))
                        elif vectors == 2:
                            _output_2((it, ot, ahead, x, inputs * 4, y, columns * 4, w, steps, write))
                        else:
                            _output_1((it, ot, ahead, x, inputs * 4, y, columns * 4, w, steps, write))
    # Only their addresses were used above: numba would free them early.
    return buffer, in_end, out_end


@numba.njit(cache=True, nogil=True)
def weights(source, gradient, in_index, out_index, groups, first, last, out):  # type: ignore[no-untyped-def]
    """out[cell, first:last] = source[i]^T @ gradient[o] over the pairs of each group.

    Args:
        source: float32 [N, inputs].
        gradient: float32 [M, columns].
        in_index, out_index, groups: as for :func:`outputs`; a cell has one group at most.
        first, last: input channels of this call, multiples of 16.
        out: float32 [K, inputs, columns]; cells of no group stay as they are.
    """
    inputs, columns = source.shape[1], gradient.shape[1]
    vectors = _vectors(columns)
    panel = LANES * vectors
    rows = _WEIGHT_4 if vectors == 4 else _WEIGHT_3 if vectors == 3 else _WEIGHT_2 if vectors == 2 else _WEIGHT_1
    left = np.empty(_GRADIENT_RUN * (last - first) + LANES, np.float32)
    right = np.empty(_GRADIENT_RUN * columns + LANES, np.float32)
    a, b, c = _aligned(left), _aligned(right), np.int64(out.ctypes.data)
    zero = np.zeros(2 * LANES, np.float32)
    nothing = _aligned(zero)
    x, y = np.int64(source.ctypes.data) + first * 4, np.int64(gradient.ctypes.data)
    # Where each vector of a pair goes: inputs in blocks of 16 channels, gradients in panels, both [pairs, width].
    lefts, rights = (last - first) // LANES, columns // LANES
    place = np.empty(rights, np.int64)
    for v in range(rights):
        place[v] = (v // vectors * panel * _GRADIENT_RUN + v % vectors * LANES) * 4
    for g in range(len(groups)):
        cell, start, end = groups[g, 0], groups[g, 1], groups[g, 2]
        for run in range(start, end, _GRADIENT_RUN):
            count = min(_GRADIENT_RUN, end - run)
            steps = -(-count // WEIGHT_STEPS) * WEIGHT_STEPS
            for n in range(count):
                row, to = x + in_index[run + n] * inputs * 4, a + n * LANES * 4
                for v in range(lefts):
                    copy((row + v * LANES * 4, to + v * _GRADIENT_RUN * LANES * 4))
                row, to = y + out_index[run + n] * columns * 4, b + n * panel * 4
                for v in range(rights):
                    copy((row + v * LANES * 4, to + place[v]))
            # Pairs of zeros fill the last turn of a tile.
            for n in range(count, steps):
                for v in range(lefts):
                    copy((nothing, a + (v * _GRADIENT_RUN + n) * LANES * 4))
                for v in range(rights):
                    copy((nothing, b + n * panel * 4 + place[v]))
            write = np.int64(run == start)
            for p in range(0, columns, panel):
                for t in range(0, last - first, rows):
                    u = a + (t // LANES * LANES * _GRADIENT_RUN + t % LANES) * 4
                    v = b + p * _GRADIENT_RUN * 4
                    d = c + ((cell * inputs + first + t) * columns + p) * 4
                    if vectors == 4:
                        _weight_4((u, v, d, columns * 4, steps, write))
                    elif vectors == 3:
                        _weight_3((u, v, d, columns * 4, steps, write))
                    elif vectors == 2:
                        _weight_2((u, v, d, columns * 4, steps, write))
                    else:
                        _weight_1((u, v, d, columns * 4, steps, write))
    # As above.
    return left, right, zero
