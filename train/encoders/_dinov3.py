"""DINOv3: rotary positions, four registers, patches of 16 pixels (Siméoni et al., 2025; facebookresearch/dinov3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ._vit import ViT

#: Base of the rotations' periods.
BASE = 100.0


class DINOv3(ViT):
    """Reads the files of Hugging Face."""

    stride = multiple = 16
    norm_eps = 1e-5
    registers = 4
    renamed: ClassVar[Mapping[str, str]] = {
        r"^embeddings\.patch_embeddings\.": "patch_embed.proj.",
        r"^embeddings\.": "",
        r"^(?:model\.)?layer\.": "blocks.",
        r"\.attention\.([qkv])_proj\.": r".attn.\1.",
        r"\.attention\.o_proj\.": ".attn.proj.",
        r"\.mlp\.up_proj\.": ".mlp.fc1.",
        r"\.mlp\.down_proj\.": ".mlp.fc2.",
        r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    }

    def __init__(self) -> None:
        super().__init__()
        self.register_tokens = nn.Parameter(torch.randn(1, self.registers, self.channels) * 0.02)

    def tokens(self, patches: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See :meth:`.ViT.tokens`."""
        prefix = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(patches), -1, -1)
        return torch.cat([prefix, patches], 1), angles(size, self.channels // self.heads, patches.device)


def angles(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Angles of RoPE for h x w patches, float32 [h·w, channels / 2]: those of the rows, then those of the columns.

    A patch's centre has a place in (−1, 1) along each side; quarter-channel c turns by 2π · place / BASE^(4c / channels).
    """
    period = BASE ** (torch.arange(channels // 4, dtype=torch.float32, device=device) * 4 / channels)
    row, column = (
        ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n * 2 - 1)[:, None] * 2 * math.pi / period
        for n in size
    )
    parts = row[:, None].expand(-1, size[1], -1), column[None].expand(size[0], -1, -1)
    return torch.cat(parts, 2).flatten(0, 1)
