"""Two attentions of the foundation models without their large intermediate arrays: the same values, less time.

SAM's image encoder adds a position bias to 4096 x 4096 scores a head; its own code makes and
walks that array several times. GroundingDINO samples 16 places a query and head; its PyTorch
code makes an array of all samples. Both are bound by memory, on a CPU most of all.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common.compiled import compiled


class BiasedAttention(nn.Module):
    """Self-attention with SAM's decomposed relative positions (Li et al., MViTv2, section 4.1), fused.

    Takes over the parameters of segment-anything's ``Attention``; the queries go a few rows of
    the image at a time, so that the bias stays in the cache.
    """

    def __init__(self, attention: Any, rows: int) -> None:
        super().__init__()
        self.attention = attention
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window; float [B, H, W, C] in and out."""
        from segment_anything.modeling.image_encoder import get_rel_pos

        own = self.attention
        batch, height, width, _ = x.shape
        heads = own.num_heads
        # [3, B, heads, H * W, d]
        query, key, value = own.qkv(x).reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        grid = query.reshape(batch * heads, height, width, -1)
        bias_row = torch.einsum("bhwc,hkc->bhwk", grid, get_rel_pos(height, height, own.rel_pos_h))
        bias_column = torch.einsum("bhwc,wkc->bhwk", grid, get_rel_pos(width, width, own.rel_pos_w))
        pieces = []
        for start in range(0, height, self.rows):
            stop = min(start + self.rows, height)
            bias = bias_row[:, start:stop, :, :, None] + bias_column[:, start:stop, :, None, :]
            part = query[:, :, start * width : stop * width]
            bias = bias.reshape(batch, heads, -1, height * width).to(part.dtype)
            pieces.append(F.scaled_dot_product_attention(part, key, value, attn_mask=bias, scale=own.scale))
        out = torch.cat(pieces, dim=2).transpose(1, 2).reshape(batch, height, width, -1)
        return own.proj(out)


def fuse_sam_attention(sam: Any, device: torch.device) -> None:
    """Replace the attentions of a segment-anything model's image encoder, in place."""
    rows = 1 if device.type == "cpu" else 16
    for block in sam.image_encoder.blocks:
        if not isinstance(block.attn, BiasedAttention) and block.attn.use_rel_pos:
            block.attn = BiasedAttention(block.attn, rows if block.window_size == 0 else 1 << 20)


@compiled(nogil=False, parallel=True, fastmath={"contract", "reassoc", "nsz"})
def _sample(
    value: NDArray[np.float32],
    shapes: NDArray[np.int64],
    starts: NDArray[np.int64],
    location: NDArray[np.float32],
    weight: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Add up weighted bilinear samples; every output is one thread's, in one order, so the bits repeat."""
    batch, queries, heads, levels, points, _ = location.shape
    channels = value.shape[3]
    for index in numba.prange(batch * queries):
        b, q = index // queries, index % queries
        for h in range(heads):
            total = np.zeros(channels, np.float32)
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                start = starts[level]
                for p in range(points):
                    # Half-pixel centres, zeros outside (grid_sample with align_corners=False).
                    x = location[b, q, h, level, p, 0] * width - np.float32(0.5)
                    y = location[b, q, h, level, p, 1] * height - np.float32(0.5)
                    if not (x > -1 and y > -1 and x < width and y < height):
                        continue
                    left, top = int(np.floor(x)), int(np.floor(y))
                    right_share, lower_share = x - left, y - top
                    w = weight[b, q, h, level, p]
                    for dy in range(2):
                        row = top + dy
                        if row < 0 or row >= height:
                            continue
                        share_y = lower_share if dy == 1 else np.float32(1) - lower_share
                        for dx in range(2):
                            column = left + dx
                            if column < 0 or column >= width:
                                continue
                            share = w * share_y * (right_share if dx == 1 else np.float32(1) - right_share)
                            place = start + row * width + column
                            for c in range(channels):
                                total[c] += share * value[b, place, h, c]
            out[b, q, h] = total


def deformable_attention(value: Tensor, shapes: Any, location: Tensor, weight: Tensor) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, eq. 3) on a CPU.

    Args:
        value: float [B, sum of H * W, heads, C], the levels one after the other.
        shapes: int [L, 2] or a list of (H, W): the levels' sizes.
        location: float [B, Q, heads, L, P, 2], (x, y) as shares of the level.
        weight: float [B, Q, heads, L, P], sums to 1 over the last two.

    Returns:
        float [B, Q, heads * C].
    """
    sizes = np.array([[int(h), int(w)] for h, w in shapes], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]])
    out = torch.empty(*location.shape[:3], value.shape[3])
    arrays = [t.detach().float().contiguous().numpy() for t in (value, location, weight)]
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _sample(arrays[0], sizes, starts, arrays[1], arrays[2], out.numpy())
    return out.flatten(2).to(value.dtype)


@contextlib.contextmanager
def compiled_deformable_attention(device: torch.device) -> Iterator[None]:
    """Let groundingdino-py and transformers sample with :func:`deformable_attention` inside the block, on a CPU."""
    if device.type != "cpu":
        yield
        return
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, new: Callable[..., Any]) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    with contextlib.suppress(ImportError):
        from groundingdino.models.GroundingDINO import ms_deform_attn

        replace(ms_deform_attn, "multi_scale_deformable_attn_pytorch", deformable_attention)

    def forward(
        self: Any, value: Tensor, spatial: Any, sizes: Any, starts: Any, location: Tensor, weight: Tensor, step: int
    ) -> Tensor:
        return deformable_attention(value, sizes, location, weight)

    for name in ("grounding_dino", "mm_grounding_dino"):
        with contextlib.suppress(ImportError):
            modeling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            replace(modeling.MultiScaleDeformableAttention, "forward", forward)
    try:
        yield
    finally:
        for owner, name, old in replaced:
            setattr(owner, name, old)
