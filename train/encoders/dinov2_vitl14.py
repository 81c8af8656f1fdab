"""DINOv2 ViT-L/14, the teacher of ScaLR."""

from __future__ import annotations

from ._dinov2 import DINOv2


class DINOv2Large(DINOv2):
    """1,024 channels at stride 14; 24 blocks."""

    channels, depth, heads = 1024, 24, 16
    published = "dinov2-vitl14"
