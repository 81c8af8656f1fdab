"""A small vision transformer for machines without a GPU, DINOv3's in form: stride 8, under 1 MB of weights."""

from __future__ import annotations

from pathlib import Path

from ._dinov3 import DINOv3


class SmallViT(DINOv3):
    """RGB [I, 3, H, W], normalised, → tokens [I, 96, H/8, W/8]; 4 blocks. Trained as the small encoder is."""

    channels, depth, heads = 96, 4, 3
    stride = multiple = 8
    bundled = Path(__file__).parents[1] / "weights" / "small_vit.pt"
    fetch = "python benchmarks/small_encoder.py --encoder small-vit of the repository"
