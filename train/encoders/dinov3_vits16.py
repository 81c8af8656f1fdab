"""DINOv3 ViT-S/16 of LVD-1689M."""

from __future__ import annotations

from ._dinov3 import DINOv3


class DINOv3Small(DINOv3):
    """384 channels at stride 16; 12 blocks."""

    channels, depth, heads = 384, 12, 6
    published = "dinov3-vits16"
