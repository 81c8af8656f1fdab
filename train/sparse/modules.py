"""Layers with parameters, named and laid out as MinkowskiEngine's: ``kernel`` [K, in, out], ``bias`` [1, out]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...common import OlivineError
from . import operations
from .geometry import ONE, Triple, triple
from .tensor import SparseTensor

Size = int | tuple[int, int, int]


class _Convolution(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size, dilation: Size, bias: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple(kernel_size, "kernel_size")
        self.step = triple(stride, "stride")
        self.dilation = triple(dilation, "dilation")
        if min(*self.kernel_size, *self.step, *self.dilation, in_channels, out_channels) < 1:
            raise OlivineError(f"sizes, strides, dilations and channels start at 1: {self._describe()}")
        cells = self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]
        shape = (in_channels, out_channels) if self.pointwise else (cells, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    @property
    def pointwise(self) -> bool:
        """Whether the layer is one matrix product on every voxel."""
        return self.kernel_size == ONE and self.step == ONE

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Uniform within 1 / sqrt(kernel cells x input channels); without a generator, of the seed 0."""
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        bound = (self.kernel.numel() // self.out_channels) ** -0.5
        with torch.no_grad():
            self.kernel.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def _with_bias(self, feature: Tensor) -> Tensor:
        return feature if self.bias is None else feature + self.bias.to(feature.dtype)

    def _describe(self) -> str:
        return (
            f"{self.in_channels} -> {self.out_channels}, kernel {self.kernel_size}, stride {self.step}, "
            f"dilation {self.dilation}"
        )

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return self._describe()


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
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, bias)
        self.padding: Triple | None = None if padding is None else triple(padding, "padding")

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The convolved tensor, at ``tensor.stride`` times the layer's stride."""
        if self.padding is None and self.pointwise:
            (feature, kernel) = operations.matching(tensor.feature, self.kernel)
            return tensor.replace(self._with_bias(feature @ kernel))
        family = tensor.family
        if self.padding is not None:
            target, kernel_map = family.padded(tensor.voxels, self.kernel_size, self.step, self.padding, self.dilation)
        else:
            target = family.coarser(tensor.voxels, self.step)
            kernel_map = family.map(tensor.voxels, target, self.kernel_size, self.dilation, transposed=False)
        kernel = self.kernel if self.kernel.ndim == 3 else self.kernel[None]
        feature = self._with_bias(operations.convolve(tensor.feature, kernel, kernel_map))
        return SparseTensor.of(feature, target, family)


class ConvTranspose3d(_Convolution):
    """Transposed sparse convolution: back to the finer voxels that the tensor's family knows.

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
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, bias)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The tensor at ``tensor.stride`` divided by the layer's stride."""
        family = tensor.family
        target = family.finer(tensor.voxels, self.step, self.kernel_size, self.dilation)
        kernel_map = family.map(tensor.voxels, target, self.kernel_size, self.dilation, transposed=True)
        kernel = self.kernel if self.kernel.ndim == 3 else self.kernel[None]
        feature = self._with_bias(operations.convolve(tensor.feature, kernel, kernel_map))
        return SparseTensor.of(feature, target, family)


class BatchNorm(nn.Module):
    """Batch norm over all voxels of the batch; parameters and statistics are under ``bn``, as MinkowskiEngine's.

    Args:
        channels: width.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The normalised tensor."""
        return tensor.replace(operations.batch_norm(tensor.feature, self.bn))


class ReLU(nn.Module):
    """max(x, 0) of every feature."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The rectified tensor."""
        return tensor.replace(torch.relu(tensor.feature))
