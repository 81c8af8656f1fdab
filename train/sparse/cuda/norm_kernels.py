"""The Triton kernels of batch norm with the shortcut and the ReLU after it: two passes over the voxels each way.

Moments are [4, C] float32: the number of rows, their mean, what float32 leaves out of the mean, and their sum of squared deviations.
Each program joins the moments of its rows by Chan, Golub and LeVeque (1979) in their order, with means as differences to
the first rows' one. So nothing cancels, a large common mean costs no digits, and the same rows give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def block_moments(  # type: ignore[no-untyped-def]
    feature, part, rows, CHANNELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """part[b] = the moments of the b-th RUN of rows: [blocks, 4, C]; the mean is given as one row's value and the rest."""
    block = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    top = (block * RUN).to(tl.int64)
    base = tl.load(feature + top * CHANNELS + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros((COLUMNS,), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum(block * RUN + RUN, rows)
    for first in range(block * RUN, end, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r < end)[:, None] & (c < CHANNELS)[None, :]
        value = tl.load(feature + r.to(tl.int64)[:, None] * CHANNELS + c[None, :], mask=inside, other=0.0)
        value = tl.where(inside, value.to(tl.float32) - base[None, :], 0.0)
        own_count = tl.minimum(end - first, ROWS).to(tl.float32)
        own = tl.sum(value, 0) / own_count
        deviation = tl.where(inside, value - own[None, :], 0.0)
        total = count + own_count
        shift = own - mean
        mean += shift * (own_count / total)
        squares += tl.sum(deviation * deviation, 0) + shift * shift * (count * own_count / total)
        count = total
    place = part + block * 4 * CHANNELS + c
    tl.store(place, tl.zeros((COLUMNS,), tl.float32) + count, mask=c < CHANNELS)
    tl.store(place + CHANNELS, base, mask=c < CHANNELS)
    tl.store(place + 2 * CHANNELS, mean, mask=c < CHANNELS)
    tl.store(place + 3 * CHANNELS, squares, mask=c < CHANNELS)


@triton.jit(do_not_specialize=["blocks"])
def merge_moments(  # type: ignore[no-untyped-def]
    part, moments, running_mean, running_variance, blocks, momentum,
    UPDATE: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The moments [4, C] of all blocks (or processes) from theirs [blocks, 4, C], and the running statistics' step."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    base = tl.load(part + CHANNELS + c, mask=c < CHANNELS, other=0.0)
    total = tl.zeros((COLUMNS,), tl.float32)
    weighted = tl.zeros((COLUMNS,), tl.float32)
    for top in range(0, blocks, ROWS):
        r = top + tl.arange(0, ROWS)
        inside = (r < blocks)[:, None] & (c < CHANNELS)[None, :]
        place = part + r[:, None] * 4 * CHANNELS + c[None, :]
        count = tl.load(place, mask=inside, other=0.0)
        own = (tl.load(place + CHANNELS, mask=inside, other=0.0) - base[None, :]) + tl.load(
            place + 2 * CHANNELS, mask=inside, other=0.0
        )
        total += tl.sum(count, 0)
        weighted += tl.sum(count * own, 0)
    shifted = weighted / tl.maximum(total, 1.0)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for top in range(0, blocks, ROWS):
        r = top + tl.arange(0, ROWS)
        inside = (r < blocks)[:, None] & (c < CHANNELS)[None, :]
        place = part + r[:, None] * 4 * CHANNELS + c[None, :]
        count = tl.load(place, mask=inside, other=0.0)
        own = (tl.load(place + CHANNELS, mask=inside, other=0.0) - base[None, :]) + tl.load(
            place + 2 * CHANNELS, mask=inside, other=0.0
        )
        shift = own - shifted[None, :]
        squares += tl.sum(tl.load(place + 3 * CHANNELS, mask=inside, other=0.0) + count * shift * shift, 0)
    mean = base + shifted
    tl.store(moments + c, total, mask=c < CHANNELS)
    tl.store(moments + CHANNELS + c, mean, mask=c < CHANNELS)
    tl.store(moments + 2 * CHANNELS + c, shifted - (mean - base), mask=c < CHANNELS)
    tl.store(moments + 3 * CHANNELS + c, squares, mask=c < CHANNELS)
    if UPDATE:
        old = tl.load(running_mean + c, mask=c < CHANNELS, other=0.0)
        tl.store(running_mean + c, old + momentum * (mean - old), mask=c < CHANNELS)
        old = tl.load(running_variance + c, mask=c < CHANNELS, other=0.0)
        tl.store(running_variance + c, old + momentum * (squares / (total - 1.0) - old), mask=c < CHANNELS)


@triton.jit
def _normal(feature, moments, place, c, inside, eps, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(normalised values [ROWS, COLUMNS], 1 / standard deviation [COLUMNS])."""
    count = tl.load(moments + c, mask=c < CHANNELS, other=1.0)
    mean = tl.load(moments + CHANNELS + c, mask=c < CHANNELS, other=0.0)
    rest = tl.load(moments + 2 * CHANNELS + c, mask=c < CHANNELS, other=0.0)
    scale = tl.rsqrt(tl.load(moments + 3 * CHANNELS + c, mask=c < CHANNELS, other=1.0) / count + eps)
    value = tl.load(feature + place, mask=inside, other=0.0).to(tl.float32)
    return ((value - mean[None, :]) - rest[None, :]) * scale[None, :], scale


@triton.jit(do_not_specialize=["rows"])
def normalize(  # type: ignore[no-untyped-def]
    feature, shortcut, out, moments, weight, bias, rows, eps,
    ADD: tl.constexpr, RELU: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = max(0, normalised feature * weight + bias + shortcut), or without maximum or shortcut; NaN stays NaN."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = r.to(tl.int64)[:, None] * CHANNELS + c[None, :]
    inside = (r < rows)[:, None] & (c < CHANNELS)[None, :]
    normal, _ = _normal(feature, moments, place, c, inside, eps, CHANNELS)
    value = normal * tl.load(weight + c, mask=c < CHANNELS, other=0.0)[None, :]
    value += tl.load(bias + c, mask=c < CHANNELS, other=0.0)[None, :]
    if ADD:
        value += tl.load(shortcut + place, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_before_relu(gradient, out, place, inside, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(tl.load(out + place, mask=inside, other=0.0).to(tl.float32) <= 0, 0.0, value)
    return value


@triton.jit(do_not_specialize=["rows"])
def gradient_sums(  # type: ignore[no-untyped-def]
    feature, out, gradient, moments, part, rows, eps,
    RELU: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """part[b] = over the b-th RUN of rows the sums of the gradient before the ReLU, and of it times the normalised feature."""
    block = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    plain = tl.zeros((COLUMNS,), tl.float32)
    along = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum(block * RUN + RUN, rows)
    for top in range(block * RUN, end, ROWS):
        r = top + tl.arange(0, ROWS)
        place = r.to(tl.int64)[:, None] * CHANNELS + c[None, :]
        inside = (r < end)[:, None] & (c < CHANNELS)[None, :]
        before = _gradient_before_relu(gradient, out, place, inside, RELU)
        normal, _ = _normal(feature, moments, place, c, inside, eps, CHANNELS)
        plain += tl.sum(before, 0)
        along += tl.sum(before * normal, 0)  # the gradient is 0 in rows that are not there
    tl.store(part + block * 2 * CHANNELS + c, plain, mask=c < CHANNELS)
    tl.store(part + block * 2 * CHANNELS + CHANNELS + c, along, mask=c < CHANNELS)


@triton.jit(do_not_specialize=["rows"])
def gradients(  # type: ignore[no-untyped-def]
    feature, out, gradient, moments, sums, weight, of_feature, of_shortcut, rows, eps,
    ADD: tl.constexpr, RELU: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of feature and shortcut; ``sums`` [2, C] are :func:`gradient_sums`' over all blocks (and processes)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = r.to(tl.int64)[:, None] * CHANNELS + c[None, :]
    inside = (r < rows)[:, None] & (c < CHANNELS)[None, :]
    before = _gradient_before_relu(gradient, out, place, inside, RELU)
    if ADD:
        tl.store(of_shortcut + place, before.to(of_shortcut.dtype.element_ty), mask=inside)
    normal, scale = _normal(feature, moments, place, c, inside, eps, CHANNELS)
    count = tl.load(moments + c, mask=c < CHANNELS, other=1.0)
    plain = tl.load(sums + c, mask=c < CHANNELS, other=0.0) / count
    along = tl.load(sums + CHANNELS + c, mask=c < CHANNELS, other=0.0) / count
    factor = tl.load(weight + c, mask=c < CHANNELS, other=0.0) * scale
    result = factor[None, :] * (before - plain[None, :] - normal * along[None, :])
    tl.store(of_feature + place, result.to(of_feature.dtype.element_ty), mask=inside)
