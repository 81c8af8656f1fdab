"""What a device gains by, and what a user should know of it before a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PROCESSOR, _DEVICES = Path("/proc/cpuinfo"), Path("/dev")
_OTHERS_GIB = 2
"""What a GPU's own context takes of its memory, at most; more is another program's."""
_told: set[str] = set()


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16: a GPU that has it, or a CPU with AVX-512 BF16 or AMX (Linux).

    Elsewhere bfloat16 is emulated, and slower than float32.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not _PROCESSOR.is_file():
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_PROCESSOR.read_text().split())


def gpu_problem() -> str | None:
    """Why torch cannot use the GPU that is here; None where it can, where none is, or where it is hidden on purpose."""
    import torch

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or hidden or not any(_DEVICES.glob("nvidia[0-9]*")):
        return None
    try:
        torch.cuda.init()
        problem = "CUDA finds no device"
    except (RuntimeError, AssertionError) as error:  # a driver that is too old, or a torch without CUDA
        problem = " ".join(str(error).split())[:200]
    return f"torch cannot use the GPU that is here ({problem})"


def tell_of_device(device: torch.device, asked: str, precision: str = "") -> None:
    """Print what is not as a user may think, each line once.

    Args:
        asked: ``auto``, where the device has been chosen.
        precision: Fabric's.
    """
    import torch

    lines = []
    if device.type == "cpu" and asked == "auto" and (problem := gpu_problem()) is not None:
        lines.append(f"this runs on the CPU: {problem}; see olivine doctor")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if precision.startswith("bf16") and not gains_by_bfloat16(device):
            lines.append(f"{name} has no bfloat16: {precision} is emulated and slow; take 16-mixed or 32-true")
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        if total - free > _OTHERS_GIB + torch.cuda.memory_reserved(device) / 2**30:
            lines.append(
                f"other programs hold {total - free:.0f} of the {total:.0f} GiB of {name}; this run shares it with them"
            )
    for line in lines:
        if line not in _told:
            _told.add(line)
            print(f"olivine: {line}", file=sys.stderr, flush=True)
