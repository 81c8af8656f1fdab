"""DINOv2: learned positions, patches of 14 pixels (Oquab et al., 2023; facebookresearch/dinov2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ._vit import ViT

#: Patches along a side of the images that the published positions were learned on (518 pixels).
POSITIONS = 37


class DINOv2(ViT):
    """Without registers. Positions are interpolated as Hugging Face's model does, bicubic to the exact number of patches;
    the publisher's code adds a tenth of a patch to both sides, and timm smooths.
    """

    stride = multiple = 14
    norm_eps = 1e-6
    positions = POSITIONS
    renamed: ClassVar[Mapping[str, str]] = {
        r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
        r"^embeddings\.position_embeddings$": "pos_embed",
        r"^embeddings\.": "",
        r"^encoder\.layer\.": "blocks.",
        r"\.attention\.attention\.(q)uery\.|\.attention\.attention\.(k)ey\.|\.attention\.attention\.(v)alue\.": (
            r".attn.\1\2\3."
        ),
        r"\.attention\.output\.dense\.": ".attn.proj.",
        r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
        r"^layernorm\.": "norm.",
    }

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.positions**2, self.channels) * 0.02)

    def tokens(self, patches: Tensor, size: tuple[int, int]) -> tuple[Tensor, None]:
        """See :meth:`.ViT.tokens`."""
        own, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if size != (self.positions, self.positions):
            square = grid.unflatten(1, (self.positions, self.positions)).permute(0, 3, 1, 2).float()
            square = nn.functional.interpolate(square, size=size, mode="bicubic", align_corners=False)
            grid = square.flatten(2).transpose(1, 2).to(grid.dtype)
        class_token = (self.cls_token + own).expand(len(patches), -1, -1)
        return torch.cat([class_token, patches + grid], 1), None
