"""What a device gains by, and that all rooms ask the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from olivine.common import devices
from olivine.labelgen.encoders import resolve_precision
from olivine.train.build import build_encoder
from olivine.train.settings import load_settings

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
