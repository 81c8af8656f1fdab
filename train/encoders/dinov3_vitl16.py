"""DINOv3 ViT-L/16 of LVD-1689M."""

from __future__ import annotations

from ._dinov3 import DINOv3


class DINOv3Large(DINOv3):
    """1,024 channels at stride 16; 24 blocks."""

    channels, depth, heads = 1024, 24, 16
    published = "dinov3-vitl16"
