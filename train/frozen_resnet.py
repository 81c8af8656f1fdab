"""A frozen ResNet of bottleneck blocks on CPUs, float32, with features only where they are asked for.

A ResNet-50 dilated to stride 4 spends its time in 3x3 convolutions of 256 and 512 channels and in 1x1 convolutions
of up to 2048. torch's convolutions reach about three quarters of the speed of its matrix products here, and bias, sum
and ReLU are passes of their own over maps of tens of megabytes. In this file

- a map is a matrix of positions by channels, and a 1x1 convolution a matrix product that adds to the shortcut in place,
  a run of positions at a time, so that bias, ReLU and the next block's first product find the run in the cache;
- wide 3x3 convolutions go by Winograd's minimal filtering (:mod:`.winograd`);
- the last blocks are computed only at the positions from which those asked for are made;
- a thread takes whole pictures, so that what a picture gives does not depend on the number of threads, as long as there
  are no more of them than pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .sparse.fused import available as has_wide_vectors
from .winograd import Workspace, convolve, transform_kernel

#: Channels of a 3x3 convolution from which on Winograd's way is the faster one.
WINOGRAD_CHANNELS = 256
#: Numbers of a map that pass through a block's end together.
_RUN = 2**20
#: Share of a map's positions up to which choosing them costs less than computing all.
_WORTH = 0.93


def available() -> bool:
    """Whether this way of computing is the faster one here: on CPUs with 512-bit vectors, if not switched off."""
    return has_wide_vectors() and torch.backends.mkl.is_available()


class _Block:
    """The matrices of a bottleneck; those of 1x1 convolutions are views of the network's own."""

    def __init__(self, block: Any) -> None:
        self.narrow, self.narrow_bias = _matrix(block.conv1), block.conv1.bias
        self.middle: nn.Conv2d = block.conv2
        self.dilation: int = block.conv2.dilation[0]
        by_winograd = self.middle.in_channels >= WINOGRAD_CHANNELS
        self.kernel = transform_kernel(self.middle.weight) if by_winograd else None
        self.widen, self.bias = _matrix(block.conv3), block.conv3.bias
        self.shortcut = None
        if block.downsample is not None:
            self.shortcut = _matrix(block.downsample[0])
            self.bias = self.bias + block.downsample[0].bias

    def between(self, narrow: Tensor, wanted: Tensor | None, size: tuple[int, int], workspace: Workspace) -> Tensor:
        """The 3x3 convolution with bias and ReLU before and behind it, [h·w + 1, C] → [h·w, C], good where wanted."""
        from .winograd_loops import add_bias_and_rectify

        bias = self.middle.bias
        assert bias is not None
        if self.kernel is not None:
            out = workspace.take("between", size[0] * size[1], len(bias))
            mask = None
            if wanted is not None:
                mask = np.zeros(size, bool)
                mask.reshape(-1)[wanted.numpy()] = True
            convolve(narrow, self.narrow_bias, self.kernel, bias, out, size, self.dilation, workspace, mask)
            return out
        add_bias_and_rectify(narrow[:-1].numpy(), self.narrow_bias.numpy())
        x = narrow[:-1].view(1, *size, -1).permute(0, 3, 1, 2)
        return self.middle(x).relu_().permute(0, 2, 3, 1).reshape(-1, len(bias))


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as [C_in, C_out]."""
    return convolution.weight.flatten(1).t()


class FrozenResNet:
    """A network's features, computed in another order.

    Args:
        network: torchvision's stem and stages of bottlenecks in one sequence, batch norms folded, no stride after the
            stem. Its weights are shared and must not change any more.
    """

    def __init__(self, network: Any) -> None:
        with torch.no_grad():
            self._stem = network[:4]
            self._blocks = [_Block(block) for stage in network[4:] for block in stage]

    @staticmethod
    def map_size(height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture's map: the stem halves twice, rounding up."""
        return -(-height // 4), -(-width // 4)

    def __call__(self, pictures: Tensor, cells: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Features of pictures.

        Args:
            pictures: normalised, float32 [I, 3, H, W].
            cells: for each picture the cells asked for, row times width plus column, int64 [K]; None is all.

        Returns:
            for each picture float32 [K, E].
        """
        wanted = cells or [None] * len(pictures)
        found: dict[int, Tensor] = {}
        threads = torch.get_num_threads()
        workers = max(min(threads, len(pictures)), 1)
        waiting, lock = iter(range(len(pictures))), threading.Lock()

        def work() -> None:
            torch.set_num_threads(threads // workers)  # each thread has a setting of its own
            workspace = Workspace()
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                found[number] = self._features(pictures[number : number + 1], wanted[number], workspace)

        try:
            if workers == 1:
                work()
            else:
                with ThreadPoolExecutor(workers, thread_name_prefix="olivine-resnet") as pool:
                    for future in [pool.submit(work) for _ in range(workers)]:
                        future.result()
        finally:
            torch.set_num_threads(threads)
        return [found[number] for number in range(len(pictures))]

    @torch.no_grad()
    def _features(self, picture: Tensor, cells: Tensor | None, workspace: Workspace) -> Tensor:
        from .winograd_loops import add_bias_and_rectify

        x: Tensor = self._stem(picture)
        size = (x.shape[2], x.shape[3])
        area = size[0] * size[1]
        x = x.permute(0, 2, 3, 1).reshape(area, -1)
        wanted = self._wanted(cells, size)
        narrow = workspace.take("narrow", area + 1, self._blocks[0].narrow.shape[1])
        torch.mm(x, self._blocks[0].narrow, out=narrow[:-1])
        places: Tensor | None = None  # the row of x that holds each position; None where it holds all
        side = 0  # of the two places for a map, the one that x is in
        for number, block in enumerate(self._blocks):
            here = wanted[number]
            y = block.between(narrow, here, size, workspace)
            following = self._blocks[number + 1] if number + 1 < len(self._blocks) else None
            if following is not None:
                narrow = workspace.take("narrow", area + 1, following.narrow.shape[1])
            wide = x
            if here is not None or block.shortcut is not None:
                side = 1 - side
                wide = workspace.take(f"wide {side}", area if here is None else len(here), len(block.bias))
            if here is not None and following is not None:
                narrow.fill_(-torch.inf)  # 0 behind the ReLU, in tiles that reach beyond what is wanted
            length = max(_RUN // len(block.bias), 1)
            for first in range(0, len(wide), length):
                run = slice(first, min(first + length, len(wide)))
                some_x, some_y, some = x[run], y[run], wide[run]
                if here is not None:
                    rows = here[run] if places is None else places[here[run]]
                    to = some if block.shortcut is None else workspace.take("some x", len(rows), x.shape[1])
                    some_x = torch.index_select(x, 0, rows, out=to)
                    to = workspace.take("some y", len(rows), y.shape[1])
                    some_y = torch.index_select(y, 0, here[run], out=to)
                if block.shortcut is not None:
                    torch.mm(some_x, block.shortcut, out=some)
                some.addmm_(some_y, block.widen)
                add_bias_and_rectify(some.numpy(), block.bias.numpy())
                if following is None:
                    continue
                if here is None:
                    torch.mm(some, following.narrow, out=narrow[run])
                else:
                    to = workspace.take("some", len(some), narrow.shape[1])
                    narrow.index_copy_(0, here[run], torch.mm(some, following.narrow, out=to))
            if here is not None:
                places = torch.zeros(area, dtype=torch.int64)
                places[here] = torch.arange(len(here))
            x = wide
        return x.clone()  # the workspace goes to the next picture

    def _wanted(self, cells: Tensor | None, size: tuple[int, int]) -> list[Tensor | None]:
        """The positions at which each block's output is needed for the cells: theirs, grown by kernel after kernel."""
        wanted: list[Tensor | None] = [None] * len(self._blocks)
        if cells is None:
            return wanted
        wanted[-1] = cells
        mask = torch.zeros(size, dtype=torch.bool)
        mask.view(-1)[cells] = True
        for number in range(len(self._blocks) - 1, 0, -1):
            reach = self._blocks[number].dilation
            high = mask.clone()
            high[reach:] |= mask[:-reach]
            high[:-reach] |= mask[reach:]
            wide = high.clone()
            wide[:, reach:] |= high[:, :-reach]
            wide[:, :-reach] |= high[:, reach:]
            mask = wide
            positions = torch.nonzero(mask.view(-1))[:, 0]
            if len(positions) > _WORTH * mask.numel():
                break
            wanted[number - 1] = positions
        return wanted
