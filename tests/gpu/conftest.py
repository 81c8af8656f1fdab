"""A pretend GPU: a CUDA runtime that computes nothing, for programs that run on it in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _conftest(folder: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conftest_of_{folder}", HERE.parent / folder / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_methods = _conftest("train/methods")
streets, streets_with_regions = _methods.streets, _methods.streets_with_regions
_labelgen = _conftest("labelgen")
tiny_networks, tiny_folders, mm_folders = _labelgen.tiny_networks, _labelgen.tiny_folders, _labelgen.mm_folders


def _include_folder(packages: Path) -> Path | None:
    """CUDA's headers, which Triton brings."""
    folder = packages / "triton/backends/nvidia/include"
    return folder if (folder / "crt/host_defines.h").is_file() else None


def _build(folder: Path, torch_lib: Path, include: Path) -> None:
    """Compile nullcuda.c with an empty function for every other one that torch's libraries ask CUDA for."""
    names: set[str] = set()
    for library in ("libc10_cuda", "libtorch_cuda", "libtorch_python", "libtorch_cuda_linalg", "libcaffe2_nvrtc"):
        path = torch_lib / f"{library}.so"
        if path.is_file():
            table = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
            names |= set(re.findall(r" U ((?:cuda|cu|cublas|cublasLt)[A-Z]\w+)", table.stdout))
    written = set(re.findall(r"\b(cu\w+)\(", (HERE / "nullcuda.c").read_text()))
    empty = "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names - written))
    folder.mkdir()
    (folder / "empty.c").write_text(empty)
    # It stands for the driver's library as well, which torch looks up by this name.
    command = ["gcc", "-O1", "-shared", "-fPIC", "-w", f"-I{include}", "-Wl,-soname,libcuda.so.1"]
    sources = [str(HERE / "nullcuda.c"), str(folder / "empty.c")]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1"), *sources], check=True)


@pytest.fixture(scope="session")
def null_cuda(once: Callable[..., Path]) -> Path:
    """The library to preload; skips where there is no gcc or torch is built without CUDA."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    lib = Path(torch.origin).parent / "lib"
    include = _include_folder(lib.parents[1])
    if include is None or not (lib / "libc10_cuda.so").is_file():
        pytest.skip("torch is built without CUDA")
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("no gcc and nm to build a pretend GPU with")
    return once("null-cuda", lambda folder: _build(folder, lib, include)) / "libcuda.so.1"


@pytest.fixture(scope="session")
def on_pretend_gpu(null_cuda: Path) -> Callable[..., Any]:
    """``on_pretend_gpu("runs", argument)``: what ``tasks.py`` prints of a task, in a process with the pretend GPU."""

    def run(task: str, argument: object) -> Any:
        settings = {"OMP_NUM_THREADS": "1", "OLIVINE_FUSED": "0", "LD_PRELOAD": str(null_cuda)}
        command = [sys.executable, str(HERE / "tasks.py"), task, json.dumps(argument)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, **settings}
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
