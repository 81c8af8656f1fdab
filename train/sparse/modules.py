"""Layers with parameters, named and laid out as MinkowskiEngine's: ``kernel`` [K, in, out], ``bias`` [1, out]."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ...common import OlivineError
from .convolution import matching
from .geometry import ONE, ConvolutionShape, triple
from .normalization import norm_add_relu
from .tensor import SparseTensor

Size = int | tuple[int, int, int]


class _Convolution(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, shape: ConvolutionShape, bias: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.shape = in_channels, out_channels, shape
        if min(*shape.kernel_size, *shape.stride, *shape.dilation, in_channels, out_channels) < 1:
            raise OlivineError(f"sizes, strides, dilations and channels start at 1: {self.extra_repr()}")
        # Whether the layer is one matrix product on every voxel.
        self.pointwise = shape.kernel_size == ONE and shape.stride == ONE
        cells = shape.kernel_size[0] * shape.kernel_size[1] * shape.kernel_size[2]
        size = (in_channels, out_channels) if self.pointwise else (cells, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Uniform within 1 / sqrt(kernel cells x input channels), in a transposed layer output channels.

        As MinkowskiEngine's layers start. Without a generator, of the seed 0.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        other = self.in_channels if self.shape.transposed else self.out_channels
        bound = (self.kernel.numel() // other) ** -0.5
        with torch.no_grad():
            self.kernel.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The convolved tensor; its stride is ``tensor``'s times the layer's, or divided by it if transposed."""
        if self.pointwise:
            feature, kernel = matching(tensor.feature, self.kernel)
            feature, voxels = feature @ kernel, tensor.voxels
        else:
            feature, voxels = tensor.manager.convolve(tensor.feature, tensor.voxels, self.kernel, self.shape)
        if self.bias is not None:
            feature = feature + self.bias.to(feature.dtype)
        return SparseTensor.of(feature, voxels, tensor.manager)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.in_channels} -> {self.out_channels}, {self.shape}"


class Conv3d(_Convolution):
    """Sparse convolution.

    With stride 1 the output has the input's voxels (submanifold). With a larger stride and no padding coordinates
    follow MinkowskiEngine's rule, with a padding spconv's (:mod:`olivine.train.sparse.geometry`).

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, dilation: one number or one for each of x, y, z.
        padding: None for MinkowskiEngine's rule; a number or three for spconv's, which needs a tensor with a shape.
        bias: whether to add a learnt vector.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        *,
        dilation: Size = 1,
        padding: Size | None = None,
        bias: bool = False,
    ) -> None:
        shape = ConvolutionShape(
            triple(kernel_size, "kernel_size"),
            triple(stride, "stride"),
            triple(dilation, "dilation"),
            None if padding is None else triple(padding, "padding"),
        )
        super().__init__(in_channels, out_channels, shape, bias)


class ConvTranspose3d(_Convolution):
    """Transposed sparse convolution: back to the finer voxels that the tensor's coordinate manager knows.

    Where it knows none of that stride, the output has every voxel that the kernel reaches.

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, dilation: one number or one for each of x, y, z.
        bias: whether to add a learnt vector.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        *,
        dilation: Size = 1,
        bias: bool = False,
    ) -> None:
        shape = ConvolutionShape(
            triple(kernel_size, "kernel_size"), triple(stride, "stride"), triple(dilation, "dilation"), transposed=True
        )
        super().__init__(in_channels, out_channels, shape, bias)


class BatchNorm(nn.Module):
    """Batch norm over all voxels of the batch; parameters and statistics are under ``bn``, as MinkowskiEngine's.

    Args:
        channels: width.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
        rectify: whether a ReLU follows.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5, rectify: bool = False) -> None:
        super().__init__()
        self.rectify = rectify
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)
        #: Processes whose voxels are normalised together; None for this one alone (see :func:`share_norms`).
        self.group: dist.ProcessGroup | None = None

    def forward(self, tensor: SparseTensor, shortcut: SparseTensor | None = None) -> SparseTensor:
        """The normalised tensor, with ``shortcut`` (on the same voxels) added before the ReLU."""
        added = None if shortcut is None else shortcut.feature
        return tensor.replace(
            norm_add_relu(
                tensor.feature, self.bn, group=self.group, shortcut=added, relu=self.rectify, engine=tensor.engine
            )
        )


class RowBatchNorm(nn.BatchNorm1d):
    """Batch norm of rows [N, C], over the rows of all processes where :func:`share_norms` says so."""

    #: As :attr:`BatchNorm.group`.
    group: dist.ProcessGroup | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[N, C] → [N, C]."""
        return norm_add_relu(input, self, group=self.group, relu=False)


def share_norms(network: nn.Module, group: dist.ProcessGroup | None) -> int:
    """Let a network's batch norms take their training statistics over a group of processes, or over this one (None).

    For all processes pass ``torch.distributed.group.WORLD``. Returns the number of norms.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm | RowBatchNorm)]
    for norm in norms:
        norm.group = group
    return len(norms)


class ReLU(nn.Module):
    """max(x, 0) of every feature."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The tensor with max(x, 0) in place of every feature x."""
        return tensor.replace(torch.relu(tensor.feature))
