"""A tile of a sparse convolution in vector registers, as LLVM instructions for numba's compiled functions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

#: float32 lanes of a 512-bit vector.
LANES = 16
#: Rows of a tile: with two vectors each they fill half of the 32 registers and hide the latency of multiply-add.
ROWS = 8

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_SCALAR, _WORD, _SHORT = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _after(builder: Any, address: Any, count: int) -> Any:
    return builder.add(address, ir.Constant(_WORD, count)) if count else address


def _multiply_add(builder: Any) -> Any:
    name = "llvm.fma.v16f32"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), name=name)


def _accumulate(builder: Any, targets: list[Any], steps: Any, vectors: int, unroll: int, operands: Any) -> None:
    """target[r][v] += sum over steps of left[r] * right[v], with all sums in registers meanwhile.

    ``operands(step)`` gives the addresses of the left scalars, one for each row, and of the right vectors.
    """
    slots = [_at(builder, _after(builder, t, 4 * LANES * v), _VECTOR) for t in targets for v in range(vectors)]
    # Sums start from zero and are added to the target at the end: an error does not grow with what is there already.
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    before, body, done = builder.block, builder.append_basic_block("steps"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(_WORD)
    sums = [builder.phi(_VECTOR) for _ in slots]
    current = list(sums)
    fma = _multiply_add(builder)
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(_SHORT, LANES), [0] * LANES)
    for turn in range(unroll):
        lefts, right = operands(_after(builder, step, turn))
        b = [
            builder.load(_at(builder, _after(builder, right, 4 * LANES * v), _VECTOR), align=4) for v in range(vectors)
        ]
        for row, left in enumerate(lefts):
            one = builder.insert_element(undefined, builder.load(_at(builder, left, _SCALAR)), ir.Constant(_SHORT, 0))
            a = builder.shuffle_vector(one, undefined, everywhere)
            for v in range(vectors):
                current[row * vectors + v] = builder.call(fma, (a, b[v], current[row * vectors + v]))
    following = _after(builder, step, unroll)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, done)
    step.add_incoming(ir.Constant(_WORD, 0), before)
    step.add_incoming(following, body)
    for phi, last in zip(sums, current):
        phi.add_incoming(zero, before)
        phi.add_incoming(last, body)
    builder.position_at_end(done)
    for slot, value in zip(slots, current):
        builder.store(builder.fadd(builder.load(slot, align=4), value), slot, align=4)


def output_tile(vectors: int) -> Any:
    """``tile(addresses)``: eight output rows += eight input rows @ one panel of a weight.

    The addresses: eight of inputs' rows, eight of the outputs' panels, the weight's panel [inputs, 16 x vectors], and
    the number of inputs, a multiple of 4.
    """

    def typing(context: Any, addresses: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [builder.extract_value(arguments[0], i) for i in range(2 * ROWS + 2)]
            rows, targets, panel, steps = values[:ROWS], values[ROWS : 2 * ROWS], values[-2], values[-1]

            def operands(step: Any) -> tuple[list[Any], Any]:
                offset = builder.mul(step, ir.Constant(_WORD, 4))
                right = builder.add(panel, builder.mul(step, ir.Constant(_WORD, 4 * LANES * vectors)))
                return [builder.add(row, offset) for row in rows], right

            _accumulate(builder, targets, steps, vectors, 4, operands)
            return context.get_dummy_value()

        return types.void(addresses), generate

    return intrinsic(typing)


def weight_tile(vectors: int) -> Any:
    """``tile(addresses)``: eight rows of a weight's gradient += input^T @ gradient over a run of pairs.

    The addresses: the run's inputs [pairs, 8] and gradients [pairs, 16 x vectors], the target, bytes from row to row
    of the target, and the number of pairs, a multiple of 4.
    """

    def typing(context: Any, addresses: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [builder.extract_value(arguments[0], i) for i in range(5)]
            inputs, gradients, target, target_bytes, steps = values
            targets = [builder.add(target, builder.mul(ir.Constant(_WORD, r), target_bytes)) for r in range(ROWS)]

            def operands(step: Any) -> tuple[list[Any], Any]:
                left = builder.add(inputs, builder.mul(step, ir.Constant(_WORD, 4 * ROWS)))
                right = builder.add(gradients, builder.mul(step, ir.Constant(_WORD, 4 * LANES * vectors)))
                return [_after(builder, left, 4 * r) for r in range(ROWS)], right

            _accumulate(builder, targets, steps, vectors, 4, operands)
            return context.get_dummy_value()

        return types.void(addresses), generate

    return intrinsic(typing)


def copy(lanes: int) -> Any:
    """``copy(addresses)``: ``lanes`` float32 from the first address to the second."""
    kind = ir.VectorType(ir.FloatType(), lanes)

    def typing(context: Any, addresses: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, target = (builder.extract_value(arguments[0], i) for i in range(2))
            builder.store(builder.load(_at(builder, source, kind), align=4), _at(builder, target, kind), align=4)
            return context.get_dummy_value()

        return types.void(addresses), generate

    return intrinsic(typing)
