"""ResNet-50, the paper's encoder: MoCo v2 weights of 800 epochs, or any of the containers that :mod:`._resnet` reads."""

from __future__ import annotations

from ._resnet import ResNet


class ResNet50(ResNet):
    """2048 channels at stride 4."""

    channels = 2048
    torchvision_name = "resnet50"
    fetch = (
        "MoCo v2, 800 epochs: "
        "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"
    )
