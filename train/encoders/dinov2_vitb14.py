"""DINOv2 ViT-B/14, distilled from the giant one."""

from __future__ import annotations

from ._dinov2 import DINOv2


class DINOv2Base(DINOv2):
    """768 channels at stride 14; 12 blocks."""

    channels, depth, heads = 768, 12, 12
    published = "dinov2-vitb14"
