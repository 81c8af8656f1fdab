"""Promises of the engine ``triton`` that its interpreter computes; ``test_interpreter.py`` runs them in a process of their own.

References are the general path in float64, which dense convolutions check (``test_convolution.py``), and formulas.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from olivine.train.backbones import build_backbone
from olivine.train.sparse import BatchNorm, Conv3d, ConvTranspose3d, SparseTensor
from olivine.train.sparse.cuda import tiles
from olivine.train.sparse.cuda.manager import TritonManager
from olivine.train.sparse.cuda.maps import CellMap
from olivine.train.sparse.engines import TorchManager
from olivine.train.sparse.kernel_map import KernelMap
from olivine.train.sparse.normalization import norm_add_relu
from tests.sparse.cuda.watched import surrounded, watched

ONE = (1, 1, 1)


def random_coordinates(seed: int, *, size: int = 7, fill: float = 0.2, ordered: bool = True) -> torch.Tensor:
    """Voxels of two clouds around the origin, in the order of their keys or shuffled."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(2, size, size, size, generator=generator) < fill
    occupied[:, 0, 0, 0] = True
    coordinate = occupied.nonzero().int()
    coordinate[:, 1:] -= size // 2
    return coordinate if ordered else coordinate[torch.randperm(len(coordinate), generator=generator)]


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the norm."""
    return float((ours.detach().double() - exact.detach().double()).norm() / exact.detach().double().norm())


def table_of(kernel_map: KernelMap) -> torch.Tensor:
    """A CPU engine's map as a table [K, M]."""
    table = torch.full((len(kernel_map.counts), kernel_map.out_count), -1, dtype=torch.int32)
    cell = torch.repeat_interleave(torch.arange(len(kernel_map.counts)), torch.tensor(kernel_map.counts))
    table[cell, kernel_map.out_index] = kernel_map.in_index.int()
    return table


@pytest.mark.parametrize("ordered", [True, False])
def test_levels_and_maps_are_the_cpu_engines(ordered):
    coordinate = random_coordinates(1, ordered=ordered)
    ours, theirs = TritonManager(2), TorchManager(2)
    own, other = ours.start(coordinate, ONE, None), theirs.start(coordinate, ONE, None)
    with watched():
        for size, dilation in (((3, 3, 3), ONE), ((3, 1, 3), (2, 1, 2)), ((1, 3, 2), ONE)):
            expected = table_of(theirs.map(other, other, size, dilation, transposed=False))
            assert torch.equal(ours._cell_map(own, own, size, dilation).table, expected), size
        for factor, size in (((2, 2, 2), (2, 2, 2)), ((2, 2, 2), (3, 3, 3)), ((2, 1, 3), (2, 1, 3))):
            coarse, known = ours.coarser(own, factor), theirs.coarser(other, factor)
            assert torch.equal(coarse.coordinate, known.coordinate)
            assert coarse.stride == known.stride
            found = ours._cell_map(own, coarse, size, ONE)
            assert torch.equal(found.table, table_of(theirs.map(other, known, size, ONE, transposed=False)))
            back = table_of(theirs.map(known, other, size, ONE, transposed=True))
            assert torch.equal(found.back.table, back)
            assert found.back.back is found
        deep, level = own, other
        for _ in range(4):
            deep, level = ours.coarser(deep, (2, 2, 2)), theirs.coarser(level, (2, 2, 2))
            assert torch.equal(deep.coordinate, level.coordinate)


def test_blocks_list_their_cells_and_rows_and_pairs_are_the_tables():
    coordinate = random_coordinates(2, size=9)
    manager = TritonManager(2)
    voxels = manager.start(coordinate, ONE, None)
    with watched():
        found = manager._cell_map(voxels, voxels, (3, 3, 3), ONE)
        blocks = found.blocks(64)
        pair_in, pair_out = found.pairs
        start = found.pair_start.tolist()
    order = found.order
    assert sorted(order.tolist()) == list(range(len(coordinate)))
    visited = 0
    for block in range(-(-len(order) // 64)):
        rows = order[block * 64 : block * 64 + 64]
        own = found.table[:, rows]
        present = [cell for cell in range(27) if bool((own[cell] >= 0).any())]
        entries = slice(int(blocks.first[block]), int(blocks.first[block + 1]))
        assert blocks.cells[entries].tolist() == present
        assert torch.equal(blocks.slots[entries, : len(rows)], own[present])
        assert (blocks.slots[entries, len(rows) :] == -1).all()
        visited += len(present)
    plain = CellMap(found.table[:, :], found.rows_in)
    plain.__dict__["_ordered"] = (torch.zeros(len(order), dtype=torch.int32), torch.arange(len(order)))
    unsorted = sum(int((block >= 0).any(1).sum()) for block in found.table.split(64, 1))
    assert visited < unsorted, "rows in the order of their masks visit fewer cells"
    for cell in range(27):
        m = (found.table[cell] >= 0).nonzero().flatten()
        assert torch.equal(pair_out[start[cell] : start[cell + 1]].long(), m)
        assert torch.equal(pair_in[start[cell] : start[cell + 1]], found.table[cell, m])


LAYERS = {
    "submanifold 16 to 16": (16, lambda: [Conv3d(16, 16, 3)]),
    "submanifold 48 to 96": (48, lambda: [Conv3d(48, 96, (3, 1, 3))]),
    "submanifold 384 to 256": (384, lambda: [Conv3d(384, 256, (3, 1, 1))]),
    "first": (1, lambda: [Conv3d(1, 32, 3, bias=True)]),
    "few channels": (5, lambda: [Conv3d(5, 16, (3, 1, 3), dilation=(1, 1, 2))]),
    "odd widths": (20, lambda: [Conv3d(20, 7, 3)]),
    "even": (16, lambda: [Conv3d(16, 16, 2)]),
    "down": (32, lambda: [Conv3d(32, 64, 2, 2)]),
    "down of size 3": (16, lambda: [Conv3d(16, 16, 3, 2)]),
    "down of size 1": (16, lambda: [Conv3d(16, 32, 1, 2)]),
    "up": (16, lambda: [Conv3d(16, 64, 2, 2), ConvTranspose3d(64, 128, 2, 2)]),
    "pointwise": (16, lambda: [Conv3d(16, 48, 1, bias=True)]),
    "padded": (16, lambda: [Conv3d(16, 32, 3, 2, padding=1)]),
    "padded in z": (16, lambda: [Conv3d(16, 16, (1, 1, 3), (1, 1, 2), padding=0)]),
}
SLOW = ("submanifold 384 to 256", "odd widths", "padded", "down of size 3")


def results(engine, dtype, channels, layers, *, ordered=True, size=5, rounded=False) -> dict[str, torch.Tensor]:
    coordinate = random_coordinates(3, size=size, ordered=ordered)
    shape = None
    if any(layer.shape.padding is not None for layer in layers):
        coordinate[:, 1:] += size // 2
        shape = (size, size, size)
    generator = torch.Generator().manual_seed(4)
    feature = torch.randn(len(coordinate), channels, generator=generator)
    if rounded:
        feature, layers = feature.half(), [copy.deepcopy(layer).half() for layer in layers]
    feature = surrounded(feature.to(dtype).requires_grad_())
    layers = [copy.deepcopy(layer).to(dtype) for layer in layers]
    for layer in layers:
        layer.kernel = nn.Parameter(surrounded(layer.kernel))
    tensor = SparseTensor(feature, coordinate, shape=shape, engine=engine)
    for layer in layers:
        tensor = layer(tensor)
    weight = torch.randn(tensor.feature.shape, generator=generator)
    tensor.feature.backward((weight.half() if rounded else weight).to(dtype))
    found = {"out": tensor.feature.detach(), "feature": feature.grad}
    for number, layer in enumerate(layers):
        found |= {f"{number} {name}": parameter.grad for name, parameter in layer.named_parameters()}
    return found


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in SLOW])
def test_values_and_gradients_are_within_1e_6_of_float64_and_the_same_bits_twice(name):
    check_layers(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", SLOW)
def test_so_are_those_of_the_slower_layers(name):
    check_layers(name)


def check_layers(name: str) -> None:
    channels, make = LAYERS[name]
    layers = make()
    ordered, size = name != "down", 6 if name == "submanifold 16 to 16" else 5
    with watched():
        ours = results("triton", torch.float32, channels, layers, ordered=ordered, size=size)
    exact = results("torch", torch.float64, channels, layers, ordered=ordered, size=size)
    again = results("triton", torch.float32, channels, layers, ordered=ordered, size=size)
    assert ours.keys() == exact.keys()
    for key, value in exact.items():
        assert ours[key].dtype == torch.float32
        assert error(ours[key], value) < 1e-6, (key, error(ours[key], value))
        assert torch.equal(ours[key], again[key]), key


def test_16_bit_products_are_summed_in_float32():
    """The interpreter multiplies float16 rightly, and bfloat16 as if its bits were whole numbers."""
    layers = [Conv3d(48, 32, 3)]
    ours = results("triton", torch.float16, 48, layers, rounded=True)
    exact = results("torch", torch.float64, 48, layers, rounded=True)
    for key, value in exact.items():
        assert ours[key].dtype == torch.float16
        # No more than the rounding of each result is lost: 2^-11 of it at most.
        assert error(ours[key], value) < 2**-11, key


def test_many_shares_of_pairs_add_up(monkeypatch):
    from olivine.train.sparse.cuda import convolution

    monkeypatch.setattr(convolution, "_SHARE", 16)
    layers = [Conv3d(16, 16, 3)]
    with watched():
        ours = results("triton", torch.float32, 16, layers, size=6)
    exact = results("torch", torch.float64, 16, layers, size=6)
    assert error(ours["0 kernel"], exact["0 kernel"]) < 1e-6


def norm_results(engine: str, dtype: torch.dtype, rows: int, channels: int, shortcut: bool, relu: bool):
    generator = torch.Generator().manual_seed(8)
    # A mean far from zero in some channels, and channels of very different widths.
    feature = torch.randn(rows, channels, generator=generator) * torch.logspace(-1, 2, channels) + torch.linspace(
        -10, 10, channels
    )
    other, weight = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    norm = nn.BatchNorm1d(channels, momentum=0.05, eps=1e-3)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
        norm.running_mean.copy_(torch.randn(channels, generator=generator))
    exact = copy.deepcopy(norm).double()(feature.double()) + (other.double() if shortcut else 0)
    # A number that is nearly zero falls on either side of the ReLU.
    weight[exact.abs() < 1e-4] = 0
    norm = norm.to(dtype)
    feature, other = (surrounded(x.to(dtype).requires_grad_()) for x in (feature, other))
    out = norm_add_relu(feature, norm, shortcut=other if shortcut else None, relu=relu, engine=engine)
    (out * weight.to(dtype)).sum().backward()
    found = {"out": out.detach(), "feature": feature.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "variance": norm.running_var}
    assert norm.num_batches_tracked == 1
    return found | ({"shortcut": other.grad} if shortcut else {})


@pytest.mark.parametrize(
    ("rows", "channels", "shortcut", "relu"),
    [(3, 16, True, True), (65, 48, False, False), (1100, 20, True, True), (1100, 32, False, True)],
)
def test_norm_shortcut_and_relu_are_within_1e_6_of_float64_and_the_same_bits_twice(rows, channels, shortcut, relu):
    with watched():
        ours = norm_results("triton", torch.float32, rows, channels, shortcut, relu)
    exact = norm_results("torch", torch.float64, rows, channels, shortcut, relu)
    again = norm_results("triton", torch.float32, rows, channels, shortcut, relu)
    for key, value in exact.items():
        # With three rows the feature's gradient is a difference of nearly equal numbers.
        assert error(ours[key], value) < (1e-6 if key != "feature" or rows > 3 else 1e-4), key
        assert torch.equal(ours[key], again[key]), key


def test_a_norm_in_evaluation_has_the_running_statistics_and_nan_stays_nan():
    norm = BatchNorm(16, rectify=True)
    with torch.no_grad():
        norm.bn.running_mean.uniform_(-1, 1)
        norm.bn.running_var.uniform_(0.5, 2)
    coordinate = random_coordinates(1)
    feature = torch.randn(len(coordinate), 16)
    feature[3, 2] = float("nan")
    norm.eval()
    with torch.no_grad(), watched():
        ours = norm(SparseTensor(feature, coordinate, engine="triton")).feature
    exact = norm.double()(SparseTensor(feature.double(), coordinate)).feature
    assert ours[3, 2].isnan()
    assert int(ours.isnan().sum()) == 1
    torch.testing.assert_close(ours, exact.float(), rtol=1e-6, atol=1e-6, equal_nan=True)


SIZES = (70, 31)


def norm_of_rows(rows: slice, dtype: torch.dtype, engine: str, group) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    feature, shortcut, weight = (torch.randn(sum(SIZES), 20, generator=generator) for _ in range(3))
    norm = nn.BatchNorm1d(20, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 20))
    norm, feature = norm.to(dtype), (feature * 3 + 100)[rows].to(dtype).requires_grad_()
    out = norm_add_relu(feature, norm, group=group, shortcut=shortcut[rows].to(dtype), engine=engine)
    out.backward(weight[rows].to(dtype))
    return [
        t.detach() for t in (out, feature.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    ]


def norm_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(SIZES))
    rows = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    torch.save(norm_of_rows(rows, torch.float32, "triton", dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.soak
def test_two_processes_with_unequal_clouds_normalise_as_one(tmp_path):
    mp.start_processes(norm_worker, (str(tmp_path),), nprocs=len(SIZES), start_method="spawn")
    exact = norm_of_rows(slice(None), torch.float64, "torch", None)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SIZES)))
    for number in (0, 1):
        assert error(torch.cat((first[number], second[number])), exact[number]) < 1e-6
    for number in (2, 3):
        assert error(first[number] + second[number], exact[number]) < 1e-6
    for number in (4, 5):
        assert error(first[number], exact[number]) < 1e-6
        assert torch.equal(first[number], second[number])


def network_results(engine: str, dtype: torch.dtype, name: str, coordinate: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    feature = torch.randn(len(coordinate), 1, generator=generator).to(dtype)
    network = build_backbone(name, in_channels=1, out_channels=32, seed=1).to(dtype)
    out = network(SparseTensor(feature, coordinate, engine=engine))
    assert out.engine == engine
    (out.feature * torch.randn(out.feature.shape, generator=generator).to(dtype)).sum().backward()
    found = {"out": out.feature.detach()} | {key: p.grad for key, p in network.named_parameters()}
    return found | {key: value.to(dtype) for key, value in network.named_buffers() if "running" in key}


#: Operators that launch nothing on a GPU.
FREE = {
    "view",
    "_unsafe_view",
    "detach",
    "t",
    "transpose",
    "slice",
    "select",
    "as_strided",
    "expand",
    "unsqueeze",
    "empty",
}
FREE |= {"_reshape_alias", "alias", "squeeze", "split", "unbind", "permute", "empty_like", "new_empty", "lift_fresh"}
FREE |= {"set_", "copy_"}  # the interpreter's own, around each launch


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def test_launches_of_srunet34_forward_and_back_stay_within_their_budget(monkeypatch):
    """Counts that may only fall: of our kernels, and of PyTorch's operators between them. Only the maps are computed."""
    launches: Counter[str] = Counter()
    maps: Counter[str] = Counter()
    real_call = interpreter.GridExecutor.__call__

    def call(self, *args, **kwargs):
        launches[self.fn.__name__] += 1
        if "map_kernels" in self.fn.__module__:
            maps[self.fn.__name__] += 1
            real_call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)
    network = build_backbone("srunet34", in_channels=1)
    coordinate = random_coordinates(6, size=5)
    tensor = SparseTensor(torch.ones(len(coordinate), 1), coordinate, engine="triton")
    with Operators() as operators:
        network(tensor).feature.sum().backward()
    assert launches.total() <= 610, launches
    assert operators.count.total() <= 350, operators.count

    # The plan of this cloud makes all maps of another one, and nothing of them is left for its pass.
    plan, coordinate = tensor.manager.plan(), random_coordinates(8, size=6)
    tensor = SparseTensor(torch.ones(len(coordinate), 1), coordinate, engine="triton")
    tensor.manager.follow(tensor.voxels, plan)
    made = maps.copy()
    assert made.total() > 60
    network(tensor).feature.sum().backward()
    assert maps == made


def check_network(name: str, coordinate: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter's time goes by programs and steps, so a program does more here than on a GPU.
    for key in tiles.CONVOLUTION:
        large = {columns: tiles.Tile(128, columns, 128, 4, 3) for columns in (16, 32, 64, 128, 256)}
        monkeypatch.setitem(tiles.CONVOLUTION, key, large)
        monkeypatch.setitem(tiles.WEIGHTS, key, tiles.Tile(512, 256, 128, 4, 3))
    monkeypatch.setattr("olivine.train.sparse.cuda.normalization.NORM_COLUMNS", 64)
    monkeypatch.setattr("olivine.train.sparse.cuda.normalization.NORM_ROWS", 128)
    monkeypatch.setattr("olivine.train.sparse.cuda.convolution.SUM_BLOCK", 1 << 13)
    ours = network_results("triton", torch.float32, name, coordinate)
    exact = network_results("torch", torch.float64, name, coordinate)
    general = network_results("torch", torch.float32, name, coordinate)
    assert ours.keys() == exact.keys()
    for key, value in exact.items():
        # Rounding grows through the layers, in either path: ours may be three times as far from float64 as the general one.
        assert error(ours[key], value) < max(3 * error(general[key], value), 1e-5), key


@pytest.mark.soak
def test_a_small_srunet_is_the_general_paths_with_the_same_weights(monkeypatch):
    check_network("srunet-small", random_coordinates(6, size=8, fill=0.1), monkeypatch)


@pytest.mark.soak
def test_srunet34_is_the_general_paths_with_the_same_weights(monkeypatch):
    check_network("srunet34", random_coordinates(7, size=9, fill=0.1), monkeypatch)
