"""What a device gains by, and that all rooms ask the same function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from olivine.common import devices
from olivine.labelgen.encoders import resolve_precision
from olivine.train.build import build_encoder
from olivine.train.settings import choose_preset, load_settings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "gains"),
    [
        ("fma avx2", False),
        ("avx512f avx512_vnni", False),
        ("avx512f avx512_bf16 fma", True),
        ("amx_tile amx_bf16", True),
    ],
)
def test_labeller_and_trainer_take_bfloat16_on_the_same_processors(
    flags: str, gains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: spectre_v1\n")
    monkeypatch.setattr(devices, "_PROCESSOR", tmp_path / "cpuinfo")
    encoder = build_encoder(load_settings("cpu", ["image.dtype=auto"]), CPU)
    wanted = torch.bfloat16 if gains else torch.float32
    assert next(encoder.network.parameters()).dtype == wanted
    assert getattr(torch, resolve_precision("auto", CPU)) == wanted


def test_a_processor_that_says_nothing_of_itself_takes_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_PROCESSOR", tmp_path / "absent")
    assert resolve_precision("auto", CPU) == "float32"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is printed of a device."""
    monkeypatch.setattr(devices, "_told", set())

    def tell(*arguments: object) -> str:
        devices.tell_of_device(*arguments)  # type: ignore[arg-type]
        return capsys.readouterr().err

    return tell


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_torch_cannot_use_is_told_once_and_no_gpu_is_silent(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_DEVICES", tmp_path)
    assert told(CPU, "auto") == ""
    assert choose_preset() == ("cpu", "no GPU is here")
    (tmp_path / "nvidiactl").touch()
    assert told(CPU, "auto") == ""
    (tmp_path / "nvidia0").touch()

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert "torch cannot use the GPU" in choose_preset()[1]
    assert told(CPU, "cpu") == ""  # asked for
    line = told(CPU, "auto")
    assert line.count("\n") == 1
    assert line.startswith("olivine: this runs on the CPU: torch cannot use the GPU")
    assert "driver on your system is too old (found version 11040)" in line
    assert told(CPU, "auto") == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.gpu_problem() is None


def test_a_gpu_without_bfloat16_and_one_that_others_use_are_told(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, free = torch.device("cuda", 0), 79 << 30
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert told(device, "auto", "32-true") == ""
    assert "Tesla T4 has no bfloat16: bf16-mixed is emulated and slow" in told(device, "auto", "bf16-mixed")
    free = 30 << 30
    assert "other programs hold 50 of the 80 GiB of Tesla T4" in told(device, "auto", "32-true")
