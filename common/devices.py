"""What a device gains by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PROCESSOR = Path("/proc/cpuinfo")


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
