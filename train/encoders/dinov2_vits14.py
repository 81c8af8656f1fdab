"""DINOv2 ViT-S/14, distilled from the giant one."""

from __future__ import annotations

from ._dinov2 import DINOv2


class DINOv2Small(DINOv2):
    """384 channels at stride 14; 12 blocks."""

    channels, depth, heads = 384, 12, 6
    published = "dinov2-vits14"
