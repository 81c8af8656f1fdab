"""The small convolutional image encoder for machines without a GPU: stride 4, under 1 MB of weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..encoder import Encoder
from ._fold import fold_batch_norms


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip, the second dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))


class SmallEncoder(Encoder):
    """RGB [I, 3, H, W], normalised, → features [I, 64, ceil(H/4), ceil(W/4)].

    Growing dilation (1, 2, 4) gives a receptive field of some 90 pixels without a coarser map. Features are
    standardised at the end: without a common direction, embeddings of different places start apart.
    """

    channels = 64
    stride = 4
    bundled = Path(__file__).parents[1] / "weights" / "small_encoder.pt"
    fetch = "python benchmarks/small_encoder.py of the repository"

    def __init__(self) -> None:
        super().__init__()
        width = self.channels
        self.conv1 = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(24, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(_Residual(width, 1), _Residual(width, 2), _Residual(width, 4))
        self.standard = nn.BatchNorm2d(width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch of images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        features: Tensor = self.standard(self.blocks(x))
        return features

    def fold(self) -> None:
        """See :class:`.Encoder`."""
        fold_batch_norms(self)
