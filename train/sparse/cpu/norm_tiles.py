"""Batch norm's arithmetic on the channels of one voxel, as LLVM instructions for numba's compiled functions.

All arguments are addresses of float32 numbers, 16 for each vector, and last the number of vectors. Constants and sums
are arrays of one number a channel, which stay in the nearest cache while the voxels stream past.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .tiles import LANES, VECTOR, WORD, function, load, pointer

_ZERO = ir.Constant(VECTOR, [0.0] * LANES)


class _Vector:
    """The vector that is at hand, of any array by its address."""

    def __init__(self, builder: Any, offset: Any) -> None:
        self.builder, self.offset = builder, offset

    def __call__(self, address: Any) -> Any:
        return load(self.builder, self.builder.add(address, self.offset))

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, pointer(self.builder, self.builder.add(address, self.offset), VECTOR), align=4)

    def add(self, value: Any, address: Any) -> None:
        self.store(self.builder.fadd(self(address), value), address)


def _each_vector(body: Callable[..., None]) -> Any:
    """A compiled function that runs ``body(builder, vector, *addresses)`` for each of at least one vector."""

    def emit(builder: Any, values: list[Any]) -> None:
        *addresses, count = values
        before, turn, done = builder.block, builder.append_basic_block("vectors"), builder.append_basic_block("done")
        end = builder.mul(count, ir.Constant(WORD, 4 * LANES))
        builder.branch(turn)
        builder.position_at_end(turn)
        offset = builder.phi(WORD)
        body(builder, _Vector(builder, offset), *addresses)
        following = builder.add(offset, ir.Constant(WORD, 4 * LANES))
        builder.cbranch(builder.icmp_signed("<", following, end), turn, done)
        offset.add_incoming(ir.Constant(WORD, 0), before)
        offset.add_incoming(following, turn)
        builder.position_at_end(done)

    return function(emit)


def _sum(builder: Any, vector: _Vector, x: Any, total: Any) -> None:
    vector.add(vector(x), total)


def _squares(builder: Any, vector: _Vector, x: Any, center: Any, total: Any, squares: Any) -> None:
    deviation = builder.fsub(vector(x), vector(center))
    vector.add(deviation, total)
    vector.add(builder.fmul(deviation, deviation), squares)


def _normalized(
    builder: Any, vector: _Vector, x: Any, shortcut: Any, mean: Any, scale: Any, bias: Any, floor: Any, out: Any
) -> None:
    value = builder.fadd(builder.fmul(builder.fsub(vector(x), vector(mean)), vector(scale)), vector(bias))
    if shortcut is not None:
        value = builder.fadd(value, vector(shortcut))
    least = vector(floor)
    # What is not a number stays so: it is not less than anything.
    vector.store(builder.select(builder.fcmp_ordered("<", value, least), least, value), out)


def _normalize(builder: Any, vector: _Vector, x: Any, *others: Any) -> None:
    _normalized(builder, vector, x, None, *others)


def _passed(builder: Any, vector: _Vector, out: Any, gradient: Any, floor: Any) -> Any:
    """The gradient before the ReLU."""
    return builder.select(builder.fcmp_unordered(">", vector(out), vector(floor)), vector(gradient), _ZERO)


def _gradient_sums(
    builder: Any, vector: _Vector, x: Any, out: Any, gradient: Any, mean: Any, floor: Any, total: Any, along: Any
) -> None:
    g = _passed(builder, vector, out, gradient, floor)
    vector.add(g, total)
    vector.add(builder.fmul(g, builder.fsub(vector(x), vector(mean))), along)


def _gradient(
    builder: Any,
    vector: _Vector,
    x: Any,
    out: Any,
    gradient: Any,
    mean: Any,
    floor: Any,
    scale: Any,
    constant: Any,
    slope: Any,
    result: Any,
    shortcut: Any = None,
) -> None:
    g = _passed(builder, vector, out, gradient, floor)
    deviation = builder.fsub(vector(x), vector(mean))
    value = builder.fsub(builder.fmul(g, vector(scale)), vector(constant))
    vector.store(builder.fsub(value, builder.fmul(deviation, vector(slope))), result)
    if shortcut is not None:
        vector.store(g, shortcut)


#: ``add_row((x, total, vectors))``: total += x.
add_row = _each_vector(_sum)
#: ``add_deviations((x, center, total, squares, vectors))``: total += x - center, squares += (x - center)².
add_deviations = _each_vector(_squares)
#: ``normalize_row((x, mean, scale, bias, floor, out, vectors))``: out = max((x - mean) scale + bias, floor).
normalize_row = _each_vector(_normalize)
#: ``normalize_and_add_row((x, shortcut, mean, scale, bias, floor, out, vectors))``: the same with ``shortcut`` added.
normalize_and_add_row = _each_vector(_normalized)
#: ``add_gradients((x, out, gradient, mean, floor, total, along, vectors))``: total += g, along += g (x - mean), with g
#: the gradient where ``out`` is over the floor.
add_gradients = _each_vector(_gradient_sums)
#: ``gradient_row((x, out, gradient, mean, floor, scale, constant, slope, result[, shortcut], vectors))``: result = scale g -
#: constant - slope (x - mean), shortcut = g.
gradient_row = _each_vector(_gradient)
