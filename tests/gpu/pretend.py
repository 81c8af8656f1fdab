"""Tensors on a pretend GPU: they are on ``cuda:0`` for torch and hold their numbers on the CPU.

Every operator on them is computed on the CPU, under the rules of a CUDA device: operands on two devices are refused, and
each kernel launch and each operator for which the host waits is counted, with the source line that asked for it. With
``strict`` torch's own CUDA operator is called beside it, on the null device: it computes nothing, and refuses what it
refuses on a GPU (types, shapes, and algorithms that are not deterministic).

Import this module first: inference mode does not go together with tensors like these, so it becomes ``no_grad`` here.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing

import olivine

OURS = f"{Path(olivine.__file__).parent}/"
APART = tuple(f"{OURS}{name}/" for name in ("tests", ".venv"))
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
torch.inference_mode = lambda mode=True: torch.no_grad()(mode) if callable(mode) else torch.no_grad()

#: The host waits for their result: a number, or the size of what they return.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "masked_select",
    "bincount",
}
WAITING |= {"equal", "is_nonzero", "_linalg_eigh", "histc"}
#: They launch nothing.
FREE = {"view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze"}
FREE |= {"squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "empty", "empty_like"}
FREE |= {"empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "is_same_size", "diagonal", "unfold"}
FREE |= {"lift_fresh", "set_", "resize_", "record_stream", "_has_compatible_shallow_copy_type"}
#: Kernels of one call, where they are several.
KERNELS = {"sort": 4, "_unique2": 8, "nonzero": 3, "bincount": 4, "unique_consecutive": 5, "masked_select": 4}
KERNELS |= {"repeat_interleave": 3, "topk": 2, "native_batch_norm": 2, "native_batch_norm_backward": 2}
KERNELS |= {"cudnn_batch_norm": 2, "cudnn_batch_norm_backward": 2, "argsort": 4, "isin": 6, "aminmax": 2}
#: Operands on two devices are in order.
MIXED = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "_foreach_copy_", "is_same_size", "set_"}
MIXED |= {"_has_compatible_shallow_copy_type"}
#: Not called on the null device: they need numbers, which are not there, or cuDNN.
NO_SHADOW = WAITING | {
    "_to_copy",
    "copy_",
    "lift_fresh",
    "convolution",
    "convolution_backward",
    "record_stream",
    "set_",
}
NO_SHADOW |= {"repeat_interleave", "isin", "cudnn_batch_norm", "cudnn_batch_norm_backward", "resize_", "_fused_sgd_"}


#: CUDA's own, which a CPU has not.
ATTENTIONS = {
    name: getattr(torch.ops.aten, name).default
    for name in (f"_scaled_dot_product_{kind}_attention" for kind in ("efficient", "flash", "cudnn"))
}


class Log:
    """What was counted: by source line, launches and waits; refusals that torch itself would make."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.strict = False


log = Log()
#: Of the thread that makes the next step ready.
log_ahead = Log()
#: Told of every kernel, where set: function, arguments, what it returned. See ``streams.py``.
watcher: Callable[[Any, Any, Any, Any], None] | None = None
_runtime = ctypes.CDLL(None)


def event_waits() -> int:
    """Waits of this thread for events and streams, which are calls of the runtime and of no operator."""
    return int(_runtime.nullcuda_waits())


def _log() -> Log:
    return log_ahead if threading.current_thread().name == "one-ahead" else log


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS) and not name.startswith(APART):
            return f"{name[len(OURS) :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "(torch)"


class Pretend(torch.Tensor):
    """A tensor on the pretend device; ``host`` holds its numbers."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Pretend:
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made: Pretend = torch.Tensor._make_wrapper_subclass(cls, host.size(), device=CUDA, **layout)  # type: ignore[attr-defined]
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Pretend({self.host!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: Any) -> Any:
        new: Any = Pretend(self.host.detach().clone())
        return torch.nn.Parameter(new, self.requires_grad) if isinstance(self, torch.nn.Parameter) else new

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.__reduce_ex__(protocol)


def leaves(value: Any) -> Iterator[Any]:
    """What an operator's arguments or results hold, as torch's tree_leaves; that one took much of a run's time."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)([_map(change, each) for each in value])
    if isinstance(value, dict):
        return {key: _map(change, each) for key, each in value.items()}
    return change(value)


def _wrap(value: Any) -> Any:
    return Pretend(value) if isinstance(value, torch.Tensor) and not isinstance(value, Pretend) else value


def _host(value: Any) -> Any:
    if isinstance(value, Pretend):
        return value.host
    return CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[-1]
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if any(x.is_cuda and not isinstance(x, Pretend) for x in tensors):  # torch.tensor(…, device="cuda") comes here made
        line = _line()
        if name == "lift_fresh":
            _log().waits[f"{line} torch.tensor on the device"] += 1
        args, kwargs = _map(lambda x: _wrap(x.cpu()) if _is_real(x) else x, (args, kwargs))
        if name == "lift_fresh":
            return args[0]
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    device = kwargs.get("device")
    if device is None:
        device = next((a for a, s in zip(args, func._schema.arguments) if s.name == "device"), None)
    to_cuda = device is not None and torch.device(device).type == "cuda"
    pretend = [x for x in tensors if isinstance(x, Pretend)]
    if name == "is_pinned" or name == "_pin_memory" or not (pretend or to_cuda):
        return func(*args, **kwargs)
    line = _line()
    if pretend and name not in MIXED and any(x.dim() and not isinstance(x, Pretend) for x in tensors):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found cuda:0 and cpu ({line})")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu' ({line})")
    _count(name, args, kwargs, device, to_cuda, line)
    if log.strict and name not in NO_SHADOW and not _has_mask(name, args):
        _shadow(func, name, args, kwargs, line)
    host_args, host_kwargs = _map(_host, (args, kwargs))
    if host_kwargs.get("pin_memory"):
        host_kwargs["pin_memory"] = False
    out = func(*host_args, **host_kwargs) if name not in ATTENTIONS else _attention(name, host_args, host_kwargs)
    if watcher is not None:
        watcher(func, args, kwargs, out)
    if pretend and device is not None and not to_cuda:
        return out  # a copy to the host
    if name == "copy_" and not isinstance(args[0], Pretend):
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, _map(_wrap, out))


def _attention(name: str, args: Any, kwargs: Any) -> Any:
    """A fused attention of CUDA, as a CPU computes it, with nothing for its gradient."""
    mask = args[3] if isinstance(args[3], torch.Tensor) else None
    out = torch.nn.functional.scaled_dot_product_attention(*args[:3], attn_mask=mask, scale=kwargs.get("scale"))
    nothing = torch.zeros(0)
    return (out, *(nothing if "Tensor" in str(value.type) else 0 for value in ATTENTIONS[name]._schema.returns[1:]))


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_cuda and not isinstance(value, Pretend)


def _has_mask(name: str, args: Any) -> bool:
    return name in ("index", "index_put_", "_index_put_impl_") and any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    )


def _count(name: str, args: Any, kwargs: dict[str, Any], device: Any, to_cuda: bool, line: str) -> None:
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        target_on_gpu = isinstance(args[0], Pretend) if name == "copy_" else to_cuda or device is None
        if isinstance(source, Pretend) and target_on_gpu:
            _log().launches[f"{line} {name}"] += 1
            return
        held = args[0] if name == "copy_" and not target_on_gpu else source
        pinned = held.is_pinned() if not isinstance(held, Pretend) else False
        without_wait = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if not (pinned and without_wait):
            way = "to the device" if target_on_gpu else "to the host"
            _log().waits[f"{line} a copy {way}{'' if pinned else ', not pinned'}"] += 1
        return
    indices = args[1] if name in ("index", "index_put_", "_index_put_impl_") else ()
    if any(isinstance(i, torch.Tensor) and not isinstance(i, Pretend) for i in indices):
        _log().waits[f"{line} {name} by indices on the CPU"] += 1
    if name in WAITING or _has_mask(name, args) or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _log().waits[f"{line} {name}"] += 1
    if name not in FREE and not name.startswith("sym_"):
        _log().launches[f"{line} {name}"] += KERNELS.get(name, 1)


_shadowed: set[Any] = set()


def _shadow(func: Any, name: str, args: Any, kwargs: Any, line: str) -> None:
    """The same call on real CUDA tensors of the null device: once of each operator, line and kind of tensors."""
    kinds = [(x.dtype, x.dim()) if isinstance(x, torch.Tensor) else type(x) for x in leaves((args, kwargs))]
    known = func, line, tuple(kinds)
    if known in _shadowed:
        return
    _shadowed.add(known)

    def real(value: Any) -> Any:
        if not isinstance(value, Pretend):
            return value
        host = value.host
        extent = sum((n - 1) * s for n, s in zip(host.size(), host.stride())) + 1 if host.numel() else 0
        return torch.empty(extent, dtype=host.dtype, device=CUDA).as_strided(host.size(), host.stride())

    with _disable_current_modes(), torch._C._DisableTorchDispatch(), torch.no_grad():
        real_args, real_kwargs = _map(real, (args, kwargs))
        try:
            func(*real_args, **real_kwargs)
        except Exception as error:
            log.refused[f"{line} {name}: {str(error).splitlines()[0][:160]}"] += 1


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretend_gpu(*, strict: bool = False) -> Iterator[Log]:
    """Within it ``cuda:0`` is the pretend device; its log starts empty."""
    assert torch.cuda.is_available(), "preload the null runtime"
    for each in (log, log_ahead):
        each.__init__()  # type: ignore[misc]
    _shadowed.clear()
    log.strict = strict
    # A module's tensors cannot be filled with these, so .to() puts others in their place: once.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    plain_to = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if torch._C._nn._parse_to(*args, **kwargs)[1] is None and any(
            isinstance(p, Pretend) for p in self.parameters()
        ):
            return self
        return plain_to(self, *args, **kwargs)

    torch.nn.Module.to = to  # type: ignore[method-assign, assignment]
    plain_run = threading.Thread.run

    def run(self: threading.Thread) -> None:
        with _Mode():  # a mode is a thread's own
            plain_run(self)

    threading.Thread.run = run  # type: ignore[method-assign]
    # Optimisers and norms take tensors of these types together.
    several = [
        sys.modules[f"torch.{name}"]._foreach_supported_types for name in ("utils._foreach_utils", "optim.optimizer")
    ]
    for types in several:
        types.append(Pretend)
    try:
        with _Mode():
            yield log
    finally:
        torch.nn.Module.to = plain_to  # type: ignore[method-assign]
        threading.Thread.run = plain_run  # type: ignore[method-assign]
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        for types in several:
            types.remove(Pretend)
