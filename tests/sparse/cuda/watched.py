"""Triton's interpreter with watched memory: what a GPU would not forgive and the interpreter does not notice.

Use in a process that has ``TRITON_INTERPRET=1`` from its start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

#: Numbers before and after every array.
BORDER = 64
#: What fresh integer memory holds: as a row number it lies far outside every array.
GARBAGE = 1 << 29


def _garbage(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((count,), float("nan") if dtype.is_floating_point else GARBAGE, dtype=dtype, device=device)


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose neighbours in memory are NaN: reading over an edge spoils the result."""
    memory = _garbage(tensor.numel() + 2 * BORDER, tensor.dtype, tensor.device)
    copy = memory[BORDER : BORDER + tensor.numel()].view(tensor.shape)
    copy.copy_(tensor.detach())
    return copy.requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Arrays of ``torch.empty`` hold garbage, with borders that must stay; no address is stored to by two programs of a launch.

    Nor by two lanes of one store. A violation fails the test.
    """
    arrays: list[tuple[torch.Tensor, torch.Tensor]] = []
    stores: list[tuple[int, np.ndarray]] = []
    program = [0]
    real_empty, builder = torch.empty, interpreter.interpreter_builder
    real_store, real_place = builder.create_masked_store, builder.set_grid_idx
    real_call = interpreter.GridExecutor.__call__

    def empty(*size, dtype=None, device=None, **rest):
        wanted = real_empty(*size, dtype=dtype, device="meta", **rest)
        count = wanted.numel()
        memory = real_empty(count + 2 * BORDER, dtype=wanted.dtype)
        memory.fill_(float("nan") if wanted.dtype.is_floating_point else GARBAGE)
        arrays.append((memory, memory.clone()))
        return memory[BORDER : BORDER + count].view(wanted.shape)

    def store(pointers, value, mask, *rest):
        address = np.broadcast_to(pointers.data, np.broadcast(pointers.data, mask.data).shape)
        stores.append((program[0], address[np.broadcast_to(mask.data.astype(bool), address.shape)]))
        return real_store(pointers, value, mask, *rest)

    def place(x, y, z):
        program[0] += 1
        return real_place(x, y, z)

    def call(self, *args, **kwargs):
        stores.clear()
        result = real_call(self, *args, **kwargs)
        by_program: dict[int, list[np.ndarray]] = {}
        for number, address in stores:
            assert len(np.unique(address)) == address.size, f"{self.fn.__name__}: two lanes store to one address"
            by_program.setdefault(number, []).append(address)
        own = [np.unique(np.concatenate(parts)) for parts in by_program.values()]
        every = np.concatenate(own) if own else np.empty(0)
        assert len(np.unique(every)) == every.size, f"{self.fn.__name__}: two programs store to one address"
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(builder, "create_masked_store", store)
        patch.setattr(builder, "set_grid_idx", place)
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield
    for memory, before in arrays:
        for edge in (slice(0, BORDER), slice(len(memory) - BORDER, None)):
            np.testing.assert_array_equal(memory[edge].float(), before[edge].float(), "a store beyond an array's edge")
