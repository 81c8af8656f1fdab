"""The loops around a tile, compiled by numba for each width of panel (one or two vectors)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .fused_tile import LANES, copy, output_tile, weight_tile

# Pairs that all panels of a cell's weight see before the next pairs, so that their rows stay in a near cache.
_RUN = 64
# Output rows that all cells of a small weight visit before the next rows; and what small means, in numbers.
_BAND, _SMALL_WEIGHT = 1024, 1 << 19
# The same for the weights' gradient, whose pairs are first copied side by side.
_GRADIENT_RUN = 128


def _make(vectors: int) -> tuple[Any, Any]:
    tile, gradient_tile = output_tile(vectors), weight_tile(vectors)
    panel = LANES * vectors
    copy_tile, copy_panel = copy(8), copy(LANES * vectors)

    @numba.njit(nogil=True)
    def outputs(source, weight, in_index, out_index, groups, first, last, out):  # type: ignore[no-untyped-def]
        inputs, columns = source.shape[1], out.shape[1]
        # Addresses are unsigned, and unsigned plus signed would be floating point.
        a, c, w = np.int64(source.ctypes.data), np.int64(out.ctypes.data), np.int64(weight.ctypes.data)
        spare = np.zeros(panel, np.float32)
        nowhere = np.int64(spare.ctypes.data)
        # All cells of a band of rows before the next band, where the weights are smaller than the features.
        band = _BAND if len(weight) * inputs * columns <= _SMALL_WEIGHT else last - first
        for top in range(first, last, max(band, 1)):
            bottom = min(top + band, last)
            for g in range(len(groups)):
                cell, start, end = groups[g, 0], groups[g, 1], groups[g, 2]
                low = start + np.searchsorted(out_index[start:end], top)
                high = start + np.searchsorted(out_index[start:end], bottom)
                for run in range(low, high, _RUN):
                    stop = min(run + _RUN, high)
                    for p in range(columns // panel):
                        b = w + (cell * columns + p * panel) * inputs * 4
                        d = c + p * panel * 4
                        t = run
                        while t + 8 <= stop:
                            tile(
                                (
                                    a + in_index[t] * inputs * 4,
                                    a + in_index[t + 1] * inputs * 4,
                                    a + in_index[t + 2] * inputs * 4,
                                    a + in_index[t + 3] * inputs * 4,
                                    a + in_index[t + 4] * inputs * 4,
                                    a + in_index[t + 5] * inputs * 4,
                                    a + in_index[t + 6] * inputs * 4,
                                    a + in_index[t + 7] * inputs * 4,
                                    d + out_index[t] * columns * 4,
                                    d + out_index[t + 1] * columns * 4,
                                    d + out_index[t + 2] * columns * 4,
                                    d + out_index[t + 3] * columns * 4,
                                    d + out_index[t + 4] * columns * 4,
                                    d + out_index[t + 5] * columns * 4,
                                    d + out_index[t + 6] * columns * 4,
                                    d + out_index[t + 7] * columns * 4,
                                    b,
                                    inputs,
                                )
                            )
                            t += 8
                        if t < stop:
                            n = stop - t
                            # The rows that are missing read the first pair again and write where nobody looks.
                            r1, r2, r3 = t + 1 if n > 1 else t, t + 2 if n > 2 else t, t + 3 if n > 3 else t
                            r4, r5, r6 = t + 4 if n > 4 else t, t + 5 if n > 5 else t, t + 6 if n > 6 else t
                            tile(
                                (
                                    a + in_index[t] * inputs * 4,
                                    a + in_index[r1] * inputs * 4,
                                    a + in_index[r2] * inputs * 4,
                                    a + in_index[r3] * inputs * 4,
                                    a + in_index[r4] * inputs * 4,
                                    a + in_index[r5] * inputs * 4,
                                    a + in_index[r6] * inputs * 4,
                                    a + in_index[t] * inputs * 4,
                                    d + out_index[t] * columns * 4,
                                    d + out_index[r1] * columns * 4 if n > 1 else nowhere,
                                    d + out_index[r2] * columns * 4 if n > 2 else nowhere,
                                    d + out_index[r3] * columns * 4 if n > 3 else nowhere,
                                    d + out_index[r4] * columns * 4 if n > 4 else nowhere,
                                    d + out_index[r5] * columns * 4 if n > 5 else nowhere,
                                    d + out_index[r6] * columns * 4 if n > 6 else nowhere,
                                    nowhere,
                                    b,
                                    inputs,
                                )
                            )

    @numba.njit(nogil=True)
    def weights(source, gradient, in_index, out_index, groups, first, last, out):  # type: ignore[no-untyped-def]
        inputs, columns = source.shape[1], gradient.shape[1]
        tiles, panels = (last - first) // 8, columns // panel
        left = np.zeros((tiles, _GRADIENT_RUN, 8), np.float32)
        right = np.zeros((panels, _GRADIENT_RUN, panel), np.float32)
        a, b, c = np.int64(left.ctypes.data), np.int64(right.ctypes.data), np.int64(out.ctypes.data)
        x, y = np.int64(source.ctypes.data) + first * 4, np.int64(gradient.ctypes.data)
        for g in range(len(groups)):
            cell, start, end = groups[g, 0], groups[g, 1], groups[g, 2]
            for run in range(start, end, _GRADIENT_RUN):
                count = min(_GRADIENT_RUN, end - run)
                for n in range(count):
                    row, other = x + in_index[run + n] * inputs * 4, y + out_index[run + n] * columns * 4
                    for t in range(tiles):
                        copy_tile((row + t * 32, a + (t * _GRADIENT_RUN + n) * 32))
                    for p in range(panels):
                        copy_panel((other + p * panel * 4, b + (p * _GRADIENT_RUN + n) * panel * 4))
                steps = (count + 3) // 4 * 4
                for n in range(count, steps):
                    left[:, n] = 0
                    right[:, n] = 0
                for p in range(panels):
                    for t in range(tiles):
                        gradient_tile(
                            (
                                a + t * _GRADIENT_RUN * 32,
                                b + p * _GRADIENT_RUN * panel * 4,
                                c + ((cell * inputs + first + 8 * t) * columns + p * panel) * 4,
                                columns * 4,
                                steps,
                            )
                        )

    return outputs, weights


#: (loop over outputs, loop over weights) for panels of one and of two vectors.
LOOPS = {LANES: _make(1), 2 * LANES: _make(2)}
