"""A buffer pool: large arrays on CPUs that are used again instead of going back to the system.

Large arrays come from the system page by page and go back when they are freed, which makes a voxel dearer in a batch of
300,000 than in one of 18,000 (``benchmarks/sparse_speed.py --scaling``). torch keeps such memory for GPUs only.
"""

from __future__ import annotations

import bisect
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Numbers from which on an array is pooled (8 MiB); the C library keeps smaller ones itself.
LEAST = 1 << 21
# A free buffer is used for an array of at least this share of its size.
_FIT = 0.75


class _Pooled(np.ndarray[Any, Any]):
    """The part of a buffer that a tensor uses; when nobody uses the tensor's memory any more, the buffer is free again."""

    pool: BufferPool
    whole: np.ndarray[Any, Any]

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.pool.give_back(self.whole)


class BufferPool:
    """Free float32 buffers, by their size.

    Free buffers never add to the peak of memory in use: before a new buffer is asked of the system, free ones of its
    size go back.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray[Any, Any]] = []
        self._lock = threading.RLock()

    def empty(self, rows: int, columns: int) -> Tensor:
        """float32 [rows, columns] of any content."""
        size = rows * columns
        if size < LEAST:
            return torch.empty(rows, columns)
        with self._lock:
            place = bisect.bisect_left(self._free, size, key=len)
            if place < len(self._free) and _FIT * len(self._free[place]) <= size <= len(self._free[place]):
                whole = self._free.pop(place)
            else:
                self._release(size)
                # torch's arrays begin at multiples of 64 bytes; the bits of a matrix product may depend on that.
                whole = torch.empty(size).numpy()
        used = whole[:size].view(_Pooled)
        used.pool, used.whole = self, whole
        return torch.from_numpy(used).view(rows, columns)

    def give_back(self, whole: np.ndarray[Any, Any]) -> None:
        """Keep a buffer that nobody uses any more."""
        with self._lock:
            bisect.insort(self._free, whole, key=len)

    def release(self) -> None:
        """Give everything that is free back to the system."""
        with self._lock:
            self._free.clear()

    def _release(self, size: int) -> None:
        while self._free and size > 0:
            size -= len(self._free.pop())

    @property
    def free(self) -> int:
        """Bytes that nobody uses."""
        return sum(array.nbytes for array in self._free)


#: Of this process.
pool = BufferPool()
