"""What the networks need besides themselves: a device, a precision, texts encoded once, batches that fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..common import OlivineError, cores, gains_by_bfloat16, tell_of_device

T = TypeVar("T")
R = TypeVar("R")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        OlivineError: it is not there.
    """
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        raise OlivineError(f"--device {name} is no device", remedy="use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OlivineError(
            f"--device {name} is not there; this machine has {torch.cuda.device_count()} GPUs",
            remedy="use --device cpu",
        )
    tell_of_device(device, name)
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """The encoders' number format. ``auto`` is bfloat16 where the device multiplies in it; else float16 on a GPU and
    float32 on a CPU.
    """
    if name != "auto":
        return name
    if gains_by_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def resolve_batch_size(batch_size: int | str, device: torch.device) -> int:
    """Images at once.

    ``auto`` on a GPU is one image for each 6 GiB of its memory (a full-size Swin-B and ViT-H with
    their activations), at most 16, and a power of two; on a CPU 1, where more gain nothing.
    """
    if batch_size != "auto":
        return int(batch_size)
    if device.type != "cuda":
        return 1
    room = torch.cuda.get_device_properties(device).total_memory // (6 * 2**30)
    return 1 << (max(1, min(16, int(room))).bit_length() - 1)


@contextlib.contextmanager
def number_format(device: torch.device, precision: str) -> Iterator[None]:
    """Run what is inside in half precision where that is what ``precision`` says."""
    if precision == "float32":
        yield
    else:
        with torch.autocast(device.type, dtype=_DTYPES[precision]):
            yield


def cast_weights(network: nn.Module, precision: str) -> None:
    """Cast the weights of products once to the type that :func:`number_format` casts them to for every batch.

    Within it the network's values stay the same; outside of it the network cannot be used any more.
    """
    if precision == "float32":
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(_DTYPES[precision])


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work`` of each item, in their order, by threads where there are several: resizing an image lets others run."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(len(items), cores())) as pool:
        return list(pool.map(work, items))


class TextMemory(nn.Module):
    """A text encoder that is asked once for each caption.

    The encoder sees one row; a batch gets that row repeated, since every image of a batch
    has the same caption.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.asked = 0
        self._known: dict[tuple[int, ...], Tensor] = {}

    def forward(self, input_ids: Tensor, *rest: Any, **named: Any) -> Any:
        """The encoder's last hidden state, float [B, T, C]; every row of ``input_ids`` is the same."""
        from transformers.modeling_outputs import BaseModelOutput

        key = tuple(input_ids[0].tolist())
        if key not in self._known:
            row = [value[:1] if isinstance(value, Tensor) else value for value in rest]
            named = {name: value[:1] if isinstance(value, Tensor) else value for name, value in named.items()}
            self._known[key] = self.encoder(input_ids[:1], *row, **named)["last_hidden_state"]
            self.asked += 1
        hidden: Any = self._known[key].expand(len(input_ids), -1, -1)
        return BaseModelOutput(last_hidden_state=hidden)


def in_pieces_that_fit(work: Callable[[Sequence[T]], list[Any]], items: Sequence[T]) -> tuple[list[Any], int]:
    """``work(items)``, in halves where the device's memory does not suffice.

    Returns:
        the results in the order of the items, and the number of pieces (1: nothing was split).

    Raises:
        OlivineError: one item alone does not fit.
    """
    try:
        return work(items), 1
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise OlivineError(
                "the device's memory does not suffice for one image", remedy="use a smaller network or --device cpu"
            ) from None
    # Outside the except block: the exception holds the tensors of the failed attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    first, first_pieces = in_pieces_that_fit(work, items[:half])
    second, second_pieces = in_pieces_that_fit(work, items[half:])
    return first + second, first_pieces + second_pieces
