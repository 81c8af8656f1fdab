"""The kernels compiled for GPUs that need not be here, and what their machine code shows.

Triton's wheel brings the assembler and the disassembler. A line of the table of tiles is good where no register was moved to memory,
shared memory suffices on every GPU that takes the line, tensor cores multiply, and loads have at least two buffers.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from olivine.train.sparse.cuda import convolution_kernels, map_kernels, norm_kernels, tiles
from olivine.train.sparse.cuda.tiles import Tile

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
#: Bytes of shared memory that a block may have; the table of 8.0 is also that of 8.6, 8.9 and 12.0, which have 99 KiB.
SHARED = {80: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
#: The tensor cores' instructions.
TENSOR_CORES = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: r"UTC\w*MMA", 120: "HMMA"}
#: Whose table a GPU takes.
TABLE = {80: 80, 89: 80, 90: 90, 100: 100, 120: 80}


@dataclass(frozen=True)
class Code:
    """What was read of a compiled kernel."""

    shared: int
    stack: int
    code: str
    buffers: dict[str, int]

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}\b", self.code))


@pytest.fixture(scope="module", autouse=True)
def _fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


def compiled(kernel, types: dict[str, str], constants: dict, architecture: int, warps=4, stages=3) -> Code:
    """Compile a kernel for an architecture; pointers are multiples of 16 bytes, as torch's memory is."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    (binary,) = [path for name, path in built.metadata_group.items() if name.endswith(".cubin")]
    use, code = (
        subprocess.run([str(TOOLS / "cuobjdump"), option, binary], capture_output=True, text=True, check=True).stdout
        for option in ("--dump-resource-usage", "-sass")
    )
    buffers: dict[str, int] = {}
    for count, shape in re.findall(
        r"local_alloc\s*:\s*\(\) -> !ttg\.memdesc<(\d+)x(\d+x\d+x(?:bf16|f32))", built.asm["ttgir"]
    ):
        buffers[shape] = min(int(count), buffers.get(shape, 99))
    return Code(built.metadata.shared, int(re.search(r"STACK:(\d+)", use)[1]), code, buffers)


def convolution(architecture: int, product: str, tile: Tile, *, transposed: bool, mirror: bool = False) -> Code:
    pointer = "*bf16" if product == "half" else "*fp32"
    types = dict.fromkeys(("feature", "kernel", "out"), pointer) | {"order": "*i64", "rows_out": "i32"}
    types |= dict.fromkeys(("slots", "cells", "first"), "*i32")
    width = max(tile.columns, 96) if tile.columns >= 64 else tile.columns
    constants = {"INPUTS": max(tile.depth, 128), "OUTPUTS": width, "MIRROR": 26 if mirror else -1}
    constants |= {"TRANSPOSED": transposed, "PRECISION": "tf32" if product == "half" else product}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
    return compiled(convolution_kernels.convolve, types, constants, architecture, tile.warps, tile.stages)


def weight_gradient(architecture: int, product: str, tile: Tile) -> Code:
    pointer = "*bf16" if product == "half" else "*fp32"
    types = {"feature": pointer, "gradient": pointer, "part": "*fp32", "share": "i32"}
    types |= dict.fromkeys(("pair_in", "pair_out", "start"), "*i32")
    constants = {"INPUTS": 128, "OUTPUTS": 96, "PRECISION": "tf32" if product == "half" else product}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
    return compiled(convolution_kernels.weight_gradient, types, constants, architecture, tile.warps, tile.stages)


def check(code: Code, architecture: int, product: str) -> None:
    assert code.count("LDL") == code.count("STL") == code.stack == 0, "registers were moved to memory"
    assert code.shared <= SHARED[architecture], code.shared
    assert len(code.buffers) >= 1, "no buffers in shared memory"
    assert min(code.buffers.values()) >= 2, code.buffers
    if product == "ieee":  # tensor cores do not have it
        assert code.count("FFMA") > 0
    else:
        assert code.count(rf"{TENSOR_CORES[architecture]}") > 0


def lines(architectures, products=tiles.PRODUCTS):
    for architecture in architectures:
        for product in products:
            for columns, tile in tiles.CONVOLUTION[TABLE[architecture], product].items():
                yield pytest.param(architecture, product, tile, id=f"sm_{architecture}-{product}-{columns}")


WIDE = [p for p in lines((80, 90), ("half", "tf32")) if p.values[2].columns == 128]


@pytest.mark.parametrize(("architecture", "product", "tile"), WIDE)
def test_the_widest_convolutions_fit_and_use_tensor_cores(architecture, product, tile):
    transposed = product == "tf32" and architecture >= 90  # as the engine lays out weights there
    check(convolution(architecture, product, tile, transposed=transposed), architecture, product)


@pytest.mark.parametrize(("architecture", "product"), [(80, "half"), (90, "tf32")])
def test_the_weights_gradient_fits_and_uses_tensor_cores(architecture, product):
    tile = tiles.WEIGHTS[architecture, product]
    check(weight_gradient(architecture, product, tile), architecture, product)


@pytest.mark.soak
@pytest.mark.parametrize(("architecture", "product", "tile"), lines(SHARED))
def test_every_line_of_the_table_fits_forward_and_back(architecture, product, tile):
    forward = product in ("tf32", "tf32x3") and TABLE[architecture] >= 90
    check(convolution(architecture, product, tile, transposed=forward), architecture, product)
    check(convolution(architecture, product, tile, transposed=True, mirror=True), architecture, product)


@pytest.mark.soak
@pytest.mark.parametrize("product", tiles.PRODUCTS)
@pytest.mark.parametrize("architecture", SHARED)
def test_every_weights_gradient_fits(architecture, product):
    check(weight_gradient(architecture, product, tiles.WEIGHTS[TABLE[architecture], product]), architecture, product)


def test_the_table_has_every_product_on_every_architecture_and_tiles_divide_their_widths():
    assert tiles.CONVOLUTION.keys() == tiles.WEIGHTS.keys() == {(a, p) for a in (80, 90, 100) for p in tiles.PRODUCTS}
    for product in tiles.PRODUCTS:
        for inputs in (16, 48, 96, 160, 384):
            tile = tiles.convolution_tile(torch.device("cpu"), product, inputs, 96)
            assert inputs % tile.depth == 0
            assert tile.depth >= 16


F, P, INT = "*bf16", "*fp32", "i32"
WIDTH = {"CHANNELS": 96, "ROWS": tiles.NORM_ROWS, "COLUMNS": tiles.NORM_COLUMNS}
SMALL = {
    "block_moments": (norm_kernels, {"feature": F, "part": P, "rows": INT}, WIDTH | {"RUN": tiles.NORM_RUN}),
    "merge_moments": (
        norm_kernels,
        {"part": P, "moments": P, "running_mean": P, "running_variance": P, "blocks": INT, "momentum": "fp32"},
        WIDTH | {"UPDATE": True},
    ),
    "normalize": (
        norm_kernels,
        {"feature": F, "shortcut": F, "out": F, "moments": P, "weight": P, "bias": P, "rows": INT, "eps": "fp32"},
        WIDTH | {"ADD": True, "RELU": True},
    ),
    "gradient_sums": (
        norm_kernels,
        {"feature": F, "out": F, "gradient": F, "moments": P, "part": P, "rows": INT, "eps": "fp32"},
        WIDTH | {"RELU": True, "RUN": tiles.NORM_RUN},
    ),
    "gradients": (
        norm_kernels,
        {"feature": F, "out": F, "gradient": F, "moments": P, "sums": P, "weight": P, "of_feature": F, "of_shortcut": F,
         "rows": INT, "eps": "fp32"},
        WIDTH | {"ADD": True, "RELU": True},
    ),
    "find_neighbors": (
        map_kernels,
        {"key": "*i64", "wanted": "*i64", "offset": "*i64", "table": "*i32", "rows_in": INT, "rows_out": INT, "halvings": INT,
         "step": INT},
        {"RUNS": 9, "LENGTH": 3, "BLOCK": tiles.MAP_ROWS},
    ),
    "floor_keys": (
        map_kernels,
        {"key": "*i64", "out": "*i64", "rows": INT, "step_x": INT, "step_y": INT, "step_z": INT},
        {"BITS": 17, "HALF": 65536, "BLOCK": tiles.MAP_ROWS},
    ),
    "fill_slots": (
        map_kernels,
        {"table": "*i32", "order": "*i64", "first": "*i32", "slots": "*i32", "cells": "*i32", "rows_out": INT},
        {"CELLS": 27, "ROWS": 128},
    ),
    "list_pairs": (
        map_kernels,
        {"table": "*i32", "end": "*i32", "pair_in": "*i32", "pair_out": "*i32", "rows_out": INT, "blocks": INT},
        {"BLOCK": tiles.MAP_ROWS},
    ),
    "count_cells": (map_kernels, {"mask": "*i32", "count": "*i32", "rows_out": INT}, {"ROWS": 128}),
    "mask_cells": (
        map_kernels,
        {"table": "*i32", "rank": "*i64", "mask": "*i32", "rows_out": INT},
        {"CELLS": 27, "BLOCK": tiles.MAP_ROWS},
    ),
    "keep_first": (map_kernels, {"key": "*i64", "place": "*i64", "out": "*i64", "rows": INT}, {"BLOCK": tiles.MAP_ROWS}),
    "invert": (
        map_kernels, {"table": "*i32", "back": "*i32", "rows_in": INT, "rows_out": INT}, {"BLOCK": tiles.MAP_ROWS}
    ),
    "count_pairs": (
        map_kernels, {"table": "*i32", "count": "*i32", "rows_out": INT, "blocks": INT}, {"BLOCK": tiles.MAP_ROWS}
    ),
    "gather_cells": (
        convolution_kernels,
        {"feature": F, "table": "*i32", "out": F, "rows_out": INT},
        {"INPUTS": 1, "CELLS": 27, "WIDTH": 32, "ROWS": 64, "COLUMNS": 32},
    ),
    "add_shares": (
        convolution_kernels,
        {"part": P, "out": F, "start": "*i32", "share": INT, "cells": INT},
        {"SIZE": 96 * 96, "BLOCK": 1024},
    ),
}  # fmt: skip


def test_every_other_kernel_is_held_here():
    kernels = {
        name
        for module in (convolution_kernels, map_kernels, norm_kernels)
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.JITFunction) and not name.startswith("_")
    }
    assert kernels == SMALL.keys() | {"convolve", "weight_gradient"}


@pytest.mark.parametrize(
    "name",
    [name if name in ("find_neighbors", "gradients") else pytest.param(name, marks=pytest.mark.soak) for name in SMALL],
)
@pytest.mark.parametrize(
    "architecture", [80, pytest.param(90, marks=pytest.mark.soak), pytest.param(100, marks=pytest.mark.soak)]
)
def test_the_kernels_of_maps_and_norms_keep_their_registers(name, architecture):
    module, types, constants = SMALL[name]
    code = compiled(getattr(module, name), types, constants, architecture)
    assert code.count("LDL") == code.count("STL") == code.stack == 0
    assert code.shared <= 48 << 10
