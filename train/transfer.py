"""Copies from the CPU to a device for which the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(value: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """The value on a device (numbers become int64); to a GPU through pinned memory, so that the host does not wait."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
