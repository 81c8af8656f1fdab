"""Items of an iterator, each made in a thread while the one before it is in use; on a GPU on a stream of the thread's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: Types of devices whose work is made ready in a thread. On a CPU the thread would take time from the step itself.
THREADED = {"cuda"}


class Ahead(Generic[T]):
    """Makes one item ahead of who takes them. ``ahead(items)`` is the iterator to take them from.

    An error is raised where its item is taken. A context manager: when it is left the thread has ended.

    Args:
        device: that the items' tensors are on.

    Attributes:
        waited_s: seconds that were waited for items; None where no thread makes them.
    """

    # A GPU's memory that is freed is used again at once on the stream that it was taken on, whatever another stream still
    # does with it. So the thread's stream waits, before it makes an item, for all that was done with the item before the
    # last, and that item is kept until the last one is there.

    def __init__(self, device: torch.device) -> None:
        self._device, self._threaded = device, device.type in THREADED
        self.waited_s = 0.0 if self._threaded else None
        self._wanted: SimpleQueue[torch.cuda.Event | bool] = SimpleQueue()  # False: no more
        self._made: SimpleQueue[tuple[Any, torch.cuda.Event | None, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._wanted.put(False)
            self._thread.join()
            self._thread = None

    def __call__(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; the first of them is begun now. Only one iterator at a time."""
        if not self._threaded:
            return items
        self.__exit__()
        self._wanted, self._made = SimpleQueue(), SimpleQueue()
        self._wanted.put(self._done())
        self._thread = threading.Thread(target=self._work, args=(items,), name="one-ahead", daemon=True)
        self._thread.start()
        return self._take()

    def _take(self) -> Iterator[T]:
        while True:
            self._wanted.put(self._done())  # before the wait: the next item is begun as soon as this one is there
            begun = time.monotonic()
            item, made, error = self._made.get()
            assert self.waited_s is not None
            self.waited_s += time.monotonic() - begun
            if error is not None:
                raise error
            if item is None:
                return
            if made is not None:
                made.wait()
            yield item  # which is kept here until the next one is there; see above

    def _done(self) -> torch.cuda.Event | bool:
        """An event after all that this thread has asked of the GPU."""
        if self._device.type != "cuda":
            return True
        import torch

        return torch.cuda.current_stream(self._device).record_event()

    def _work(self, items: Iterator[T]) -> None:
        import torch

        own = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        try:
            with nullcontext() if own is None else torch.cuda.stream(own):
                while (done := self._wanted.get()) is not False:
                    if own is not None and not isinstance(done, bool):
                        own.wait_event(done)
                    item = next(items, None)
                    self._made.put((item, None if own is None else own.record_event(), None))
                    if item is None:
                        return
        except BaseException as error:  # whatever it is, it belongs to who waits for the item
            self._made.put((None, None, error))
