"""The seam to the compiled CPU loops: they can be switched off or deleted, and nothing else knows of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from olivine.train.sparse import kernel_map, loops

ROOT = Path(__file__).resolve().parents[2]

STEPS = """
import hashlib, os, sys
import lightning_fabric, numba, torch  # once, for both of the processes that are forked from here

def step(way):
    os.environ[sys.argv[1]] = "0" if way == "off" else "1"
    if way == "deleted":
        sys.modules["olivine.train.sparse.cpu"] = None  # importing it raises, as without the folder
    from olivine.train.backbones import build_backbone
    from olivine.train.sparse import SparseTensor, loops
    from olivine.train.devices import torch_state
    from olivine.train.settings import load_settings

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    coordinate = (torch.rand(2, 24, 24, 6, generator=generator) < 0.2).nonzero().int()
    network = build_backbone("srunet-small")
    network.heads = torch.nn.ModuleList([network.new_head(64, generator) for _ in range(2)])
    with torch_state(load_settings("cpu"), torch.device("cpu")):
        feature = network(SparseTensor(torch.rand(len(coordinate), 1, generator=generator), coordinate))
        point, category = (head(feature) for head in network.heads)
        (point.feature.square().sum() + category.feature.sum()).backward()
    result = hashlib.sha256(point.feature.detach().numpy().tobytes())
    for parameter in network.parameters():
        result.update(parameter.grad.numpy().tobytes())
    cpu = any(name.startswith("olivine.train.sparse.cpu.") for name in sys.modules)
    print(loops.available(), cpu, result.hexdigest(), flush=True)

for way in ("off", "deleted"):
    child = os.fork()
    if child == 0:
        step(way)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, way
"""


def test_a_network_trains_the_same_with_the_loops_switched_off_and_with_their_folder_deleted() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, loops.SWITCH], check=True, capture_output=True, text=True)
    off, deleted = (line.split() for line in done.stdout.splitlines())
    assert off[:2] == ["False", "False"]
    assert off == deleted


def test_no_other_file_of_the_package_knows_the_loops_folder() -> None:
    listed = [path for room in ("train", "downstream", "study", "commands") for path in (ROOT / room).rglob("*.py")]
    inside = ROOT / "train" / "sparse" / "cpu"
    knowing = {path.relative_to(ROOT).as_posix() for path in listed if inside not in path.parents and names_it(path)}
    assert knowing == {"train/sparse/loops.py"}


def names_it(path: Path) -> bool:
    text = path.read_text(errors="replace")
    return any(name in text for name in ("sparse.cpu", "from .cpu", "import cpu", '".cpu"'))


@pytest.mark.parametrize("shift", [-7, 0, 1, 40])
def test_the_search_of_keys_finds_what_pytorch_finds(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, queries = (torch.unique(torch.randint(0, 500, (300,), generator=generator)) for _ in range(2))
    compiled = kernel_map._find(keys, queries, shift)
    monkeypatch.setattr(loops, "common_keys", lambda *_: None)
    for ours, expected in zip(compiled, kernel_map._find(keys, queries, shift)):
        assert torch.equal(ours, expected)
