"""ResNet-18 with torchvision's supervised weights."""

from __future__ import annotations

from ._resnet import ResNet


class ResNet18(ResNet):
    """512 channels at stride 4."""

    channels = 512
    torchvision_name = "resnet18"
    fetch = "torchvision, supervised: https://download.pytorch.org/models/resnet18-f37072fd.pth"
