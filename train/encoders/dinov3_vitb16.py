"""DINOv3 ViT-B/16 of LVD-1689M."""

from __future__ import annotations

from ._dinov3 import DINOv3


class DINOv3Base(DINOv3):
    """768 channels at stride 16; 12 blocks."""

    channels, depth, heads = 768, 12, 12
    published = "dinov3-vitb16"
