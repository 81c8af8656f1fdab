"""Tiles of a sparse convolution in vector registers, as LLVM instructions for numba's compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

#: float32 numbers of a vector: one register of 512 bits, or two of 256.
LANES = 16
_AVX512 = bool(binding.get_host_cpu_features().get("avx512f", False))
#: Rows of an output tile by the vectors of its panel. Rows times vectors sums are held in registers: in 24 of AVX-512's
#: 32, or 12 of AVX2's 16. The wider the panel, the fewer loads for a multiply-add. No result depends on the rows.
OUTPUT_ROWS = {1: 8, 2: 12, 3: 8, 4: 6} if _AVX512 else {1: 6, 2: 3, 3: 2, 4: 1}
#: The same for the weights' gradient, whose rows are input channels and divide 16.
WEIGHT_ROWS = {1: 8, 2: 8, 3: 8, 4: 4} if _AVX512 else {1: 4, 2: 2, 3: 2, 4: 1}
#: Steps written out in one turn of a tile's loop; numbers of steps are multiples of it. An output tile's turn reads one
#: cache line of each row.
OUTPUT_STEPS, WEIGHT_STEPS = LANES, 4

VECTOR = ir.VectorType(ir.FloatType(), LANES)
_SCALAR, WORD, _SHORT = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_Emit = Callable[[Any, list[Any]], None]


def function(emit: _Emit) -> Any:
    """A function for compiled code of one tuple of 64-bit integers (addresses and counts), without a result."""

    def typing(context: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(builder, [builder.extract_value(arguments[0], i) for i in range(len(numbers))])
            return context.get_dummy_value()

        return types.void(numbers), generate

    return intrinsic(typing)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """A pointer to ``kind`` from an address."""
    return builder.inttoptr(address, kind.as_pointer())


def _after(builder: Any, address: Any, count: int) -> Any:
    return builder.add(address, ir.Constant(WORD, count)) if count else address


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(WORD, factor))


def load(builder: Any, address: Any) -> Any:
    """The vector at an address, which may be any multiple of 4."""
    return builder.load(pointer(builder, address, VECTOR), align=4)


def _multiply_add(builder: Any) -> Any:
    name = "llvm.fma.v16f32"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), name=name)


def _everywhere(builder: Any, address: Any) -> Any:
    """The scalar at an address in all lanes."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, builder.load(pointer(builder, address, _SCALAR)), ir.Constant(_SHORT, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_SHORT, LANES), [0] * LANES))


def _prefetch(builder: Any, address: Any) -> None:
    name = "llvm.prefetch.p0i8"
    byte = ir.IntType(8).as_pointer()
    known = builder.module.globals.get(name)
    kind = ir.FunctionType(ir.VoidType(), [byte, _SHORT, _SHORT, _SHORT])
    # To read, into the nearest cache, of data.
    builder.call(
        known or ir.Function(builder.module, kind, name=name),
        [builder.inttoptr(address, byte), *(ir.Constant(_SHORT, n) for n in (0, 3, 1))],
    )


def _accumulate(
    builder: Any,
    targets: list[Any],
    steps: Any,
    vectors: int,
    fresh: Any,
    operands: Any,
    unroll: int,
    ahead: Callable[[int, Any], None] | None = None,
) -> None:
    """target[r][v] += sum over steps of left[r] * right[v], with all sums in registers meanwhile.

    ``operands(step)`` gives the addresses of the left scalars, one for each row, and of the right vectors. Where
    ``fresh`` is not 0 the target is written without being read. ``ahead(turn, step)`` may fetch what comes later.
    """
    sums_at = [pointer(builder, _after(builder, t, 4 * LANES * v), VECTOR) for t in targets for v in range(vectors)]
    # Sums start from zero and are added to the target at the end: an error does not grow with what is there already.
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    before, body, done = builder.block, builder.append_basic_block("steps"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(WORD)
    sums = [builder.phi(VECTOR) for _ in sums_at]
    current = list(sums)
    fma = _multiply_add(builder)
    for turn in range(unroll):
        if ahead is not None:
            ahead(turn, step)
        lefts, right = operands(_after(builder, step, turn))
        b = [load(builder, _after(builder, right, 4 * LANES * v)) for v in range(vectors)]
        for row, left in enumerate(lefts):
            a = _everywhere(builder, left)
            for v in range(vectors):
                current[row * vectors + v] = builder.call(fma, (a, b[v], current[row * vectors + v]))
    following = _after(builder, step, unroll)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, done)
    step.add_incoming(ir.Constant(WORD, 0), before)
    step.add_incoming(following, body)
    for phi, last in zip(sums, current):
        phi.add_incoming(zero, before)
        phi.add_incoming(last, body)
    builder.position_at_end(done)
    with builder.if_else(builder.icmp_signed("!=", fresh, ir.Constant(WORD, 0))) as (then, otherwise):
        with then:
            for place, value in zip(sums_at, current):
                builder.store(value, place, align=4)
        with otherwise:
            for place, value in zip(sums_at, current):
                builder.store(builder.fadd(builder.load(place, align=4), value), place, align=4)


def output_tile(vectors: int) -> Any:
    """``tile((in_rows, out_rows, next, source, source_row, out, out_row, panel, steps, fresh))``: rows += rows @ panel.

    All are addresses or sizes in bytes: of as many int64 row numbers as ``OUTPUT_ROWS`` says (inputs', outputs', and
    the inputs' of the next tile, which are fetched into the cache meanwhile), of the first number of input row 0 and
    bytes from row to row, the same for the output, of the panel [steps, 16 x vectors], the number of steps (input
    channels), and whether outputs are to be written rather than added to.
    """
    rows = OUTPUT_ROWS[vectors]

    def emit(builder: Any, values: list[Any]) -> None:
        in_rows, out_rows, next_rows, source, source_row, out, out_row, panel, steps, fresh = values

        def lines(numbers: Any, base: Any, size: Any) -> list[Any]:
            at = [builder.load(pointer(builder, _after(builder, numbers, 8 * r), WORD)) for r in range(rows)]
            return [builder.add(base, builder.mul(row, size)) for row in at]

        inputs, targets = lines(in_rows, source, source_row), lines(out_rows, out, out_row)
        following = lines(next_rows, source, source_row)
        for target in targets:
            for v in range(vectors):
                _prefetch(builder, _after(builder, target, 4 * LANES * v))

        def ahead(turn: int, step: Any) -> None:
            if turn < rows:
                _prefetch(builder, builder.add(following[turn], _times(builder, step, 4)))

        def operands(step: Any) -> tuple[list[Any], Any]:
            offset = _times(builder, step, 4)
            right = builder.add(panel, _times(builder, step, 4 * LANES * vectors))
            return [builder.add(row, offset) for row in inputs], right

        _accumulate(builder, targets, steps, vectors, fresh, operands, OUTPUT_STEPS, ahead)

    return function(emit)


def weight_tile(vectors: int) -> Any:
    """``tile((inputs, gradients, target, target_row, steps, fresh))``: rows of a weight's gradient += input^T @ gradient.

    All are addresses or sizes in bytes: of the first input channel of the tile in a run's inputs [pairs, 16], of the
    gradients [pairs, 16 x vectors], of the target and from row to row of it, the number of pairs, and whether the target
    is to be written.
    """
    rows = WEIGHT_ROWS[vectors]

    def emit(builder: Any, values: list[Any]) -> None:
        inputs, gradients, target, target_row, steps, fresh = values
        targets = [builder.add(target, _times(builder, target_row, r)) for r in range(rows)]

        def operands(step: Any) -> tuple[list[Any], Any]:
            left = builder.add(inputs, _times(builder, step, 4 * LANES))
            right = builder.add(gradients, _times(builder, step, 4 * LANES * vectors))
            return [_after(builder, left, 4 * r) for r in range(rows)], right

        _accumulate(builder, targets, steps, vectors, fresh, operands, WEIGHT_STEPS)

    return function(emit)


def _emit_copy(builder: Any, values: list[Any]) -> None:
    source, target = values
    builder.store(load(builder, source), pointer(builder, target, VECTOR), align=4)


#: ``copy((source, target))``: 16 float32 from one address to another.
copy = function(_emit_copy)


def _emit_transpose(builder: Any, values: list[Any]) -> None:
    source, source_row, target, target_row = values
    rows = [load(builder, builder.add(source, _times(builder, source_row, r))) for r in range(LANES)]
    # Blocks off the diagonal change places, of half the size each time (Eklundh 1972).
    for size in (8, 4, 2, 1):
        low = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
        high = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
        low, high = (ir.Constant(ir.VectorType(_SHORT, LANES), mask) for mask in (low, high))
        for r in range(LANES):
            if not r & size:
                a, b = rows[r], rows[r + size]
                rows[r], rows[r + size] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
    for r, row in enumerate(rows):
        builder.store(row, pointer(builder, builder.add(target, _times(builder, target_row, r)), VECTOR), align=4)


#: ``transpose((source, source_row, target, target_row))``: 16 x 16 float32 transposed; addresses, and bytes from row to row.
transpose = function(_emit_transpose)
