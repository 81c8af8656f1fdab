"""WaffleIron (Puy et al., ICCV 2023; valeoai/WaffleIron): 2D convolutions on planes and MLPs on points, in plain PyTorch.

One token for each voxel, made of its point and of its neighbours. A block mixes tokens in space, flattened onto the cells of
a plane (xy, xz and yz in turn) where two depth-wise convolutions run, and then mixes channels. Parameters have the names and
shapes of the public code, so that its checkpoints load (``downstream/layouts.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...common import OlivineError
from ...common.settings import check_ranges
from ..backbone import Backbone, BackboneSettings, Clouds, Features
from ..sparse.modules import Conv3d, RowBatchNorm

#: The axes of the planes, in the order in which blocks take them.
PLANES = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class WaffleIronSettings(BackboneSettings):
    """Size and grids; the defaults are WaffleIron-48-768's, as ScaLR has it (valeoai/ScaLR, WI_768_pretrain).

    Attributes:
        channels: of a token.
        depth: how many blocks.
        norm: of the blocks: ``layer`` as ScaLR, ``batch`` as WaffleIron's first models.
        range_m: (x low, y low, z low, x high, y high, z high) that the planes cover; what lies outside counts to the
            outermost cells.
        cells: along x, y, z.
        neighbors: of a point, for its token.
        intensity_mean, intensity_std: of the data set's intensities (nuScenes), taken out of them.
    """

    channels: int = 768
    depth: int = 48
    norm: Literal["layer", "batch"] = "layer"
    range_m: tuple[float, float, float, float, float, float] = (-64.0, -64.0, -8.0, 64.0, 64.0, 8.0)
    cells: tuple[int, int, int] = (256, 256, 32)
    neighbors: int = 16
    intensity_mean: float = 18.742355
    intensity_std: float = 22.04632

    def __post_init__(self) -> None:
        """Check the ranges; :func:`~olivine.common.settings.check_ranges` raises."""
        check_ranges("backbone", self, channels=(1, 1 << 16), depth=(1, 1 << 12), neighbors=(1, 1 << 10))
        check_ranges("backbone", self, intensity_std=(0, 1e9, "(]"))
        if min(self.cells) < 1 or not all(low < high for low, high in zip(self.range_m[:3], self.range_m[3:])):
            raise OlivineError(
                f"cells {list(self.cells)} of {list(self.range_m)} m", where="backbone.cells, backbone.range_m"
            )


def _linear(x: Tensor, layer: nn.Conv1d | nn.Conv2d) -> Tensor:
    """A convolution over single points as a matrix product on rows, [N, in] → [N, out]."""
    return nn.functional.linear(x, layer.weight.flatten(1), layer.bias)


class Embedding(nn.Module):
    """A token of each point: [N, in] and its neighbours' rows [N, K] → [N, C]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = RowBatchNorm(in_channels)
        self.conv1 = nn.Conv1d(in_channels, channels, 1)
        self.conv2 = nn.Sequential(
            RowBatchNorm(in_channels),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            RowBatchNorm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        self.final = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x: Tensor, neighbor: Tensor) -> Tensor:
        """See the class; what is said of neighbours is their difference to the point, and the largest of each channel."""
        x = self.norm(x)
        before, first, between, relu, last = self.conv2
        apart = x.index_select(0, neighbor.flatten()) - x.repeat_interleave(neighbor.shape[1], 0)
        around = _linear(relu(between(_linear(before(apart), first))), last)  # type: ignore[arg-type]
        around = around.unflatten(0, neighbor.shape).max(1).values
        return _linear(torch.cat([_linear(x, self.conv1), around], 1), self.final)


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.LayerNorm(channels) if kind == "layer" else RowBatchNorm(channels)


def _scale(channels: int) -> nn.Conv1d:
    """A gain for each channel (LayerScale), kept as the public code keeps it."""
    return nn.Conv1d(channels, channels, 1, bias=False, groups=channels)


def _add(x: Tensor, residual: Tensor, gain: Tensor | None) -> Tensor:
    return x + (residual if gain is None else residual * gain.to(residual.dtype))


class ChannelMix(nn.Module):
    """An MLP on each token beside the identity."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        self.mlp = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, channels, 1))
        self.scale = _scale(channels)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """[N, C] → [N, C]; ``gain`` [N, 1] of what is added, see :meth:`WaffleIron.gains`."""
        first, relu, last = self.mlp
        mixed = _linear(relu(_linear(self.norm(x), first)), last)  # type: ignore[arg-type]
        return _add(x, mixed * self.scale.weight.flatten(), gain)


class SpatialMix(nn.Module):
    """Two depth-wise 3x3 convolutions on a plane beside the identity."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        self.ffn = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )
        self.scale = _scale(channels)

    def forward(self, x: Tensor, plane: Plane, gain: Tensor | None = None) -> Tensor:
        """[N, C] → [N, C]; ``gain`` [N, 1] of what is added, see :meth:`WaffleIron.gains`."""
        cells = self.ffn(plane.flatten(self.norm(x)))
        return _add(x, plane.inflate(cells) * self.scale.weight.flatten(), gain)


class Plane:
    """Where the tokens of a batch of clouds lie on a plane.

    Args:
        cell: int64 [N], the cell of each token over all clouds, row-major.
        size: (clouds, rows, columns).
    """

    def __init__(self, cell: Tensor, size: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.cell, self.size = cell, size
        count = torch.bincount(cell, minlength=size[0] * size[1] * size[2]).to(dtype)
        self.share = (1 / (count + 1e-6)).index_select(0, cell)[:, None]

    def flatten(self, x: Tensor) -> Tensor:
        """The mean of each cell's tokens, 0 in empty cells: [N, C] → [clouds, C, rows, columns]."""
        clouds, rows, columns = self.size
        cells = x.new_zeros(clouds * rows * columns, x.shape[1]).index_add(0, self.cell, x * self.share.to(x.dtype))
        return cells.unflatten(0, self.size).permute(0, 3, 1, 2)

    def inflate(self, cells: Tensor) -> Tensor:
        """The cell of each token: [clouds, C, rows, columns] → [N, C]."""
        return cells.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.cell)


class Blocks(nn.Module):
    """All blocks, named as in the public code."""

    def __init__(self, channels: int, depth: int, norm: str) -> None:
        super().__init__()
        self.channel_mix = nn.ModuleList(ChannelMix(channels, norm) for _ in range(depth))
        self.spatial_mix = nn.ModuleList(SpatialMix(channels, norm) for _ in range(depth))

    def forward(self, x: Tensor, planes: list[Plane], gains: Iterator[Tensor | None] | None = None) -> Tensor:
        """[N, C] → [N, C]; ``gains``: of each block's two halves in turn, see :meth:`WaffleIron.gains`."""
        gains = repeat(None) if gains is None else gains
        for number, (spatial, channel) in enumerate(zip(self.spatial_mix, self.channel_mix)):
            x = spatial(x, planes[number % len(planes)], next(gains))
            x = channel(x, next(gains))
        return x


class WaffleIron(Backbone):
    """See the module.

    Args:
        in_channels: of a voxel's feature: 4 for (x, y, z, intensity), 3 for (x, y, z), a network without intensity.
        seed: of the initial weights, or the generator that they are drawn from.
        **options: see :class:`WaffleIronSettings`.

    Attributes:
        drop_path: probability that training leaves out what half a block adds to a cloud's tokens (stochastic depth).

    Raises:
        OlivineError: another number of input channels.
    """

    default_channels = 4
    Settings: ClassVar[type[WaffleIronSettings]] = WaffleIronSettings

    def __init__(self, in_channels: int = 4, *, seed: int | torch.Generator = 0, **options: Any) -> None:
        super().__init__()
        if in_channels not in (3, 4):
            raise OlivineError(
                f"WaffleIron takes voxels' (x, y, z, intensity) or (x, y, z), not {in_channels} columns",
                where="voxels.feature_channels",
                remedy="set voxels.first_channel=0 and voxels.feature_channels=4, or 3 without intensity",
            )
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        self.settings = self.Settings(**options)
        self.feature_channels = channels = self.settings.channels
        self.drop_path = 0.0
        self.embed = Embedding(in_channels + 1, channels)
        self.waffleiron = Blocks(channels, self.settings.depth, self.settings.norm)
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):  # as PyTorch draws them, which the public code leaves so
                bound = (module.weight[0].numel()) ** -0.5
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def new_head(self, out_channels: int, generator: torch.Generator) -> Conv3d:
        """A linear layer with bias."""
        head = Conv3d(self.feature_channels, out_channels, 1, bias=True)
        head.reset_parameters(generator)
        return head

    def layers(self) -> list[nn.Module]:
        """The embedding, then each block's two halves."""
        blocks = zip(self.waffleiron.spatial_mix, self.waffleiron.channel_mix)
        return [self.embed, *(nn.ModuleList(block) for block in blocks)]

    def encode(self, clouds: Clouds) -> Features:
        """A feature for each voxel; a point's place is its voxel."""
        xyz, cloud = clouds.voxels.feature[:, :3].float(), clouds.voxels.coordinate[:, 0].long()
        feature = self.tokens(clouds.voxels.feature, xyz, cloud)
        return Features(clouds.tensor.replace(feature), clouds.voxels.inverse)

    def tokens(self, feature: Tensor, xyz: Tensor, cloud: Tensor) -> Tensor:
        """The features of points: (x, y, z[, intensity]) [N, 3 or 4], xyz float32 [N, 3], cloud int64 [N] → [N, C]."""
        columns = [xyz.to(feature.dtype), torch.linalg.vector_norm(xyz, dim=1, keepdim=True).to(feature.dtype)]
        if self.embed.norm.num_features == 5:
            columns.insert(0, (feature[:, 3:4] - self.settings.intensity_mean) / self.settings.intensity_std)
        tokens = self.embed(torch.cat(columns, 1), nearest(xyz, cloud, self.settings.neighbors))
        found: Tensor = self.waffleiron(tokens, self.planes(xyz, cloud), self.gains(cloud))
        return found

    def gains(self, cloud: Tensor) -> Iterator[Tensor] | None:
        """Of each block's two halves in turn the factor of what it adds to each token, [N, 1]: 0 for clouds that leave
        it out, and 1 / (1 − p) for the others, so that the mean stays. None where nothing is left out.

        PyTorch's generator of the CPU draws them, for each cloud on its own; who trains seeds it.
        """
        if not self.training or self.drop_path == 0:
            return None
        clouds, halves = int(cloud[-1]) + 1 if len(cloud) else 0, 2 * self.settings.depth
        kept = (torch.rand(halves, clouds) >= self.drop_path).to(cloud.device)
        return (half.index_select(0, cloud)[:, None] for half in kept / (1 - self.drop_path))

    def planes(self, xyz: Tensor, cloud: Tensor) -> list[Plane]:
        """The cells of points on the three planes."""
        settings, count = self.settings, int(cloud[-1]) + 1 if len(cloud) else 0
        low, high = torch.tensor(settings.range_m, dtype=torch.float64, device=xyz.device).split(3)
        number = torch.tensor(settings.cells, device=xyz.device)
        place = ((xyz.double() - low) / ((high - low) / number)).floor().long()
        place = torch.minimum(place.clamp(min=0), number - 1)
        planes = []
        for a, b in PLANES:
            rows, columns = settings.cells[a], settings.cells[b]
            cell = (cloud * rows + place[:, a]) * columns + place[:, b]
            planes.append(Plane(cell, (count, rows, columns), xyz.dtype))
        return planes


def nearest(xyz: Tensor, cloud: Tensor, count: int) -> Tensor:
    """The ``count`` nearest other points of each point's own cloud, int64 [N, count]; itself where there are fewer.

    Args:
        xyz: float32 [N, 3].
        cloud: int64 [N], ascending.
    """
    from scipy.spatial import cKDTree

    points, edges = xyz.detach().cpu().numpy(), np.flatnonzero(np.diff(cloud.cpu().numpy(), prepend=-1))
    found = np.empty((len(points), count), np.int64)
    for first, last in zip(edges, [*edges[1:], len(points)]):
        _, row = cKDTree(points[first:last]).query(points[first:last], k=count + 1, workers=-1)
        row = row[:, 1:]
        own = np.arange(last - first)[:, None]
        found[first:last] = first + np.where(row == last - first, own, row)
    return torch.from_numpy(found).to(xyz.device)
