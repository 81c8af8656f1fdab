"""torch's sanitizer of streams over the pretend GPU: what it says of the kernels that run there on several streams.

The sanitizer learns of events, waits and streams from the CUDA runtime, and of kernels from here, by the storages that
they read and write. Storages come and go as on a GPU: what is freed is used again by the next kernel of its stream, so by
then all other streams must be done with it; the sanitizer itself does not look at that.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pretend
import torch
from torch.cuda import _gpu_trace as trace
from torch.cuda import _sanitizer
from torch.cuda._sanitizer import FACTORY_FUNCTION_REGEX, EventHandler, zip_arguments

# It would note the whole stack of every kernel: our lines are enough.
_sanitizer.traceback = SimpleNamespace(  # type: ignore[attr-defined]
    StackSummary=SimpleNamespace(extract=lambda *_, **__: []), walk_stack=lambda _: ()
)


class Watch:
    """What is found wrong, each as a line, in :attr:`found`."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.kernels: dict[int, int] = defaultdict(int)
        self._handler, self._lock = EventHandler(), threading.RLock()
        #: By storage: its stream, and the last kernel of each stream that used it.
        self._used: dict[int, tuple[int, dict[int, tuple[int, str]]]] = {}
        self._freed: dict[int, list[dict[int, tuple[int, str]]]] = defaultdict(list)
        torch._C._activate_gpu_trace()
        for name in ("event_creation", "event_deletion", "event_record", "event_wait", "stream_creation"):
            getattr(trace, f"register_callback_for_{name}")(self._locked(getattr(self._handler, f"_handle_{name}")))

    def _locked(self, handle: Any) -> Any:
        def call(*arguments: Any) -> None:
            with self._lock:
                handle(*arguments)

        return call

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Tell the sanitizer of a kernel."""
        name = func._schema.name.split("::")[-1]
        if name in pretend.FREE and name not in ("set_", "resize_"):
            return  # also memory that nothing has written yet
        stream = torch.cuda.current_stream().cuda_stream
        metadata_only = bool(FACTORY_FUNCTION_REGEX.match(func._schema.name))
        with self._lock:
            read, written = set(), set()
            for argument, value in zip_arguments(func._schema, args, kwargs):
                is_write = argument.alias_info is not None and argument.alias_info.is_write
                for tensor in pretend.leaves(value):
                    if isinstance(tensor, pretend.Pretend) and (is_write or not metadata_only):
                        (written if is_write else read).add(self._storage(tensor.host, stream))
            for tensor in pretend.leaves(out):
                if isinstance(tensor, torch.Tensor):
                    written.add(self._storage(tensor, stream))
            read -= written
            aliases: dict[int, list[str]] = {key: [] for key in read | written}
            errors = self._handler._handle_kernel_launch(stream, read, written, set(), name, aliases)
            number = self._handler.seq_num
            self.kernels[stream] += 1
            line = pretend._line()
            for error in errors:
                before: Any = error.previous_access  # type: ignore[attr-defined]
                self.found.append(f"{line} {name} while {before.operator} of another stream may still run")
            for key in read | written:
                self._used[key][1][stream] = number, f"{line} {name}"
            for uses in self._freed.pop(stream, []):
                for other, (last, what) in uses.items():
                    if not self._handler.syncs.is_ordered_after(stream, last, other):
                        self.found.append(f"{line} {name} may take memory that {what} of another stream still uses")

    def _storage(self, host: torch.Tensor, stream: int) -> int:
        storage = host.untyped_storage()
        key = id(storage)
        if key not in self._used:
            self._used[key] = stream, {}
            weakref.finalize(storage, self._free, key).atexit = False
        return key

    def _free(self, key: int) -> None:
        with self._lock:
            stream, uses = self._used.pop(key)
            self._handler.tensors_accessed.accesses.pop(key, None)
            others = {other: last for other, last in uses.items() if other != stream}
            if others:
                self._freed[stream].append(others)


@contextmanager
def watched() -> Iterator[Watch]:
    """Within it, in a pretend GPU, kernels are watched."""
    watch = Watch()
    pretend.watcher = watch.kernel
    try:
        yield watch
    finally:
        pretend.watcher = None
