"""The plain vision transformer of DINOv2 and DINOv3; ``_dinov2.py`` and ``_dinov3.py`` give positions and names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..encoder import Encoder


class PatchEmbedding(nn.Module):
    """One token for each patch: [I, 3, H, W] → [I, E, H/patch, W/patch]."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.proj(x)
        return tokens


class Attention(nn.Module):
    """Self-attention over all tokens; with ``angle`` the patches' queries and keys are rotated (RoPE)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, angle: Tensor | None) -> Tensor:
        """[I, T, E] → [I, T, E]; ``angle`` float32 [patches, channels of a head / 2]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angle is not None:
            q, k = rotate(q, angle), rotate(k, angle)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate pairs of channels (c, c + half) of the last tokens, those of patches: [..., T, D], [patches, D/2]."""
    prefix, patches = x[..., : -len(angle), :], x[..., -len(angle) :, :]
    a, b = patches.chunk(2, -1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([prefix, torch.cat([a * cos - b * sin, b * cos + a * sin], -1)], -2)


class LayerScale(nn.Module):
    """A gain for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a norm and scaled onto the residual stream."""

    def __init__(self, channels: int, heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=norm_eps)
        self.attn = Attention(channels, heads)
        self.ls1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=norm_eps)
        self.mlp = Mlp(channels)
        self.ls2 = LayerScale(channels)

    def forward(self, x: Tensor, angle: Tensor | None) -> Tensor:
        """[I, T, E] → [I, T, E]."""
        x = x + self.ls1(self.attn(self.norm1(x), angle))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(Encoder):
    """A vision transformer's token map: what its last block gives, before the final norm, without class token and registers.

    That is what ScaLR distils. Token (i, j) is the patch whose centre is at pixel (stride · i + (stride − 1) / 2, …), so
    the exact ``image.feature_grid`` is ``patch``. Parameters are named as in the publisher's own code.

    Attributes:
        stride: the patch, in pixels.
        depth: blocks; ``heads`` of attention; ``norm_eps`` of the layer norms.
        renamed: patterns of names in Hugging Face's files, and our names; names that match none stay.
        unused: of the file, and not of a token map.
    """

    depth: ClassVar[int]
    heads: ClassVar[int]
    norm_eps: ClassVar[float]
    renamed: ClassVar[Mapping[str, str]]
    unused: ClassVar[tuple[str, ...]] = ("mask_token", "norm.weight", "norm.bias")

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(self.channels, self.stride)
        self.cls_token = nn.Parameter(torch.randn(1, 1, self.channels) * 0.02)
        self.blocks = nn.ModuleList(Block(self.channels, self.heads, self.norm_eps) for _ in range(self.depth))

    def tokens(self, patches: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The first block's input, [I, prefix + h·w, E], of the patches' [I, h·w, E]; and the angles of attention, if any."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[I, 3, H, W] → [I, E, H/stride, W/stride]."""
        patches = self.patch_embed(x)
        height, width = patches.shape[2:]
        tokens, angle = self.tokens(patches.flatten(2).transpose(1, 2), (height, width))
        for block in self.blocks:
            tokens = block(tokens, angle)
        return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The tensors of the publisher's file or of Hugging Face's ``model.safetensors``, under the names of this network.

        Raises:
            OlivineError: see :meth:`.Encoder.read`.
        """
        state = {}
        for name, tensor in super().read(path).items():
            for pattern, ours in cls.renamed.items():
                name = re.sub(pattern, ours, name)
            state[name] = tensor
        for name in [name for name in state if name.endswith((".attn.q.weight", ".attn.q.bias"))]:
            q, others = state.pop(name), [name.replace(".attn.q.", f".attn.{part}.") for part in "kv"]
            # Where a file has no bias of the keys it is zero; a weight that is missing is found out by its shape.
            parts = [state.pop(other, torch.zeros_like(q) if name.endswith("bias") else q[:0]) for other in others]
            state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([q, *parts])
        return {name: tensor for name, tensor in state.items() if name not in cls.unused}
