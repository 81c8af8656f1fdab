"""Numbers that the CPU knows stay known to it when a network brings them to a GPU: nobody waits for the GPU to read them.

The networks' packages make tensors of sizes and of a caption's tokens, bring them to the GPU, and ask the GPU for one number
after the other, hundreds of times a batch. Each such question waits for all that the GPU still has to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

#: Larger tensors are data: they are copied without a wait, but not kept.
_MOST = 1 << 13
_MADE_OF_NUMBERS = {torch.tensor, torch.as_tensor}
_FACTORIES = {torch.zeros, torch.ones, torch.full, torch.eye, torch.arange}
_READERS = {"__bool__", "__int__", "__index__", "__float__", "item", "tolist", "cpu"}
#: The size of their result depends on numbers: made on the CPU, and brought over.
_OF_UNKNOWN_SIZE = {torch.nonzero, Tensor.nonzero}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_PARTS = {int, slice, type(None), type(...)}
#: They take numbers, and would ask a tensor of one number for it.
_TAKE_NUMBERS = _FACTORIES | _INDEXING | {torch.linspace, torch.split, Tensor.split, Tensor.reshape, Tensor.view}
#: They may bring numbers to a GPU; of every other call it is asked first whether it has to do with known ones.
_LOOKED_AT = _MADE_OF_NUMBERS | _FACTORIES | {Tensor.new_tensor, Tensor.to}


class KnownNumbers(TorchFunctionMode):
    """Keeps a copy on the CPU of small tensors of whole numbers or truths that were brought to a GPU, and of what is
    computed of them alone; who asks for their numbers is answered from there. Copies to the GPU go through pinned memory.

    Values are the same with and without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()
        self._ids: set[int] = set()  # of what was known at some time: asked of each tensor of each call

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the class."""
        kwargs = kwargs or {}
        looked_at = func in _LOOKED_AT or (func in _INDEXING and not _is_a_part(args[1]))
        if not (looked_at or _any(self._ids, args) or (kwargs and _any(self._ids, kwargs.values()))):
            return func(*args, **kwargs)
        if func in _MADE_OF_NUMBERS and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return self._bring(func(*args, **{**kwargs, "device": "cpu"}), torch.device(kwargs["device"]))
        if func is Tensor.new_tensor and args[0].is_cuda:
            return self._bring(torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}), args[0].device)
        if func is Tensor.to:
            return self._to(args, kwargs)
        if func in _INDEXING and args[0].is_cuda:
            args = (args[0], tree_map(lambda x: self._bring(x, args[0].device), args[1]), *args[2:])
        made = func in _FACTORIES and torch.device(kwargs.get("device") or "cpu").type == "cuda"
        tensors = [x for x in tree_leaves(_without_slices((args, kwargs))) if isinstance(x, Tensor)]
        if func.__name__ == "__get__" or not (made or any(x in self._known for x in tensors)):
            return func(*args, **kwargs)
        numbers = args, kwargs
        if func in _TAKE_NUMBERS:
            first = () if made else args[:1]
            numbers = (*first, *_each(self._number, args[len(first) :])), _each(self._number, kwargs)
        if not all(x in self._known for x in tensors):
            for changed in (args[0] if _writes(func) else None, kwargs.get("out")):
                if isinstance(changed, Tensor):
                    self._known.pop(changed, None)
            return _call(func, *numbers)
        found = None
        if func.__name__ not in _READERS and func not in _OF_UNKNOWN_SIZE:
            found = _call(func, *numbers)
            if any(isinstance(value, Tensor) and value.numel() > _MOST for value in tree_leaves(found)):
                return found
        on_cpu = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
        host = func(*_each(self._host, args), **_each(self._host, on_cpu))
        if func.__name__ in _READERS:
            return host.clone() if isinstance(host, Tensor) else host
        if func in _OF_UNKNOWN_SIZE:
            return tree_map(lambda x: self._bring(x, tensors[0].device), host)
        for value, copy in zip(tree_leaves(found), tree_leaves(host), strict=True):
            if isinstance(value, Tensor):
                self._keep(value, copy)
        return found

    def _keep(self, value: Tensor, copy: Tensor) -> None:
        self._known[value] = copy
        self._ids.add(id(value))

    def _to(self, args: Any, kwargs: Any) -> Any:
        value, known = args[0], self._known.get(args[0])
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args[1:], **kwargs)
        onto_gpu = device is not None and device.type == "cuda"
        if onto_gpu and value.device.type == "cpu" and memory_format is None:
            return self._bring(value if dtype is None else value.to(dtype), device)
        if known is not None and device is not None and not onto_gpu:
            return known.to(dtype or known.dtype, copy=True)
        found = value.to(*args[1:], **kwargs)
        if known is not None:
            self._keep(found, known.to(dtype or known.dtype))
        return found

    def _bring(self, value: Any, device: torch.device) -> Any:
        """A tensor from the CPU on the GPU; anything else as it is."""
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        found = value.pin_memory().to(device, non_blocking=True)
        if value.numel() <= _MOST and not value.is_floating_point():
            self._keep(found, value.clone())
        return found

    def _host(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return self._known[value] if isinstance(value, Tensor) else value

    def _number(self, value: Any) -> Any:
        known = isinstance(value, Tensor) and value.dim() == 0 and value in self._known
        return self._known[value].item() if known else value


def _any(ids: set[int], values: Iterable[Any]) -> bool:
    """Whether one of the values, or what they hold, is among the ids."""
    for value in values:
        if id(value) in ids:
            return True
        kind = type(value)
        if kind is tuple or kind is list:
            if _any(ids, value):
                return True
        elif kind is slice and _any(ids, (value.start, value.stop, value.step)):
            return True
    return False


def _each(change: Callable[[Any], Any], values: Any) -> Any:
    """Each value changed, and each end of a slice."""

    def of(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(change(value.start), change(value.stop), change(value.step))
        return change(value)

    return tree_map(of, values)


def _call(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if func is Tensor.__setitem__ and isinstance(args[2], bool | int) and _is_a_part(args[1]):
        args[0][args[1]].fill_(args[2])  # torch would copy the number from the CPU, and wait
        return None
    return func(*args, **kwargs)


def _is_a_part(index: Any) -> bool:
    """Whether an index names a part of a tensor, and no single elements: numbers, slices, None and an ellipsis."""
    parts = index if type(index) is tuple else (index,)
    return all(type(x) in _PARTS for x in parts)


def _without_slices(values: Any) -> Any:
    """The same with the ends of slices instead of the slices."""
    return tree_map(lambda x: (x.start, x.stop, x.step) if isinstance(x, slice) else x, values)


def _writes(func: Callable[..., Any]) -> bool:
    name = func.__name__
    return name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


@contextmanager
def known_numbers(device: torch.device) -> Iterator[None]:
    """Within it numbers are known as :class:`KnownNumbers` says, where the device is a GPU."""
    if device.type != "cuda":
        yield
        return
    with KnownNumbers():
        yield
