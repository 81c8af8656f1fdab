"""Shared memory through which loader workers hand over their arrays; the pipe carries only what points into it.

A pipe copies a frame four times, 64 KiB at a time, on cores that should decode images. A slot is taken when a frame
is asked for and comes back when the last array made of it is gone, so that a caller may keep samples as long as it
likes; when no slot is free, and for what a slot cannot hold, the pipe is used.
"""

from __future__ import annotations

import pickle
import weakref
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64


class Slots:
    """``count`` pieces of shared memory of ``size`` bytes; goes to spawned processes among their arguments."""

    def __init__(self, context: SpawnContext, count: int, size: int) -> None:
        self.size = -(-size // _ALIGNMENT) * _ALIGNMENT
        self.memory = context.RawArray("B", count * self.size)
        self.free = list(range(count))

    def take(self) -> int | None:
        """A free slot, or None."""
        return self.free.pop() if self.free else None

    def _bytes(self, slot: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.memory, np.uint8, self.size, slot * self.size)

    def put(self, value: object, slot: int | None) -> tuple[bytes, list[tuple[int, int]]]:
        """In a worker: lay the value's arrays into a slot. Returns what :meth:`get` takes besides the slot."""
        places: list[tuple[int, int]] = []
        if slot is None:
            return pickle.dumps(value, 5), places
        memory, used = self._bytes(slot), 0

        def place(buffer: pickle.PickleBuffer) -> bool:
            nonlocal used
            data = buffer.raw()
            if used + data.nbytes > self.size:
                return True  # with the rest of the pickle
            memory[used : used + data.nbytes] = data
            places.append((used, data.nbytes))
            used = -(-(used + data.nbytes) // _ALIGNMENT) * _ALIGNMENT
            return False

        return pickle.dumps(value, 5, buffer_callback=place), places

    def get(self, data: bytes, places: list[tuple[int, int]], slot: int | None) -> Any:
        """The value, its arrays lying in the slot, which is free again when they are gone."""
        if slot is None:
            return pickle.loads(data)
        memory = self._bytes(slot)
        weakref.finalize(memory, self.free.append, slot).atexit = False
        return pickle.loads(data, buffers=[memory[start : start + length] for start, length in places])
