"""A trained network on clouds of one's own: features of points, or their classes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common import OlivineError, PathLike
from ..common.settings import settings_from_plain
from ..train.backbone import Clouds
from ..train.checkpoint import checkpoint_file, load_backbone, load_state
from ..train.mixture import normalised_intensity
from ..train.voxelize import VoxelSettings, voxelize
from .checkpoints import takes_normalised
from .network import features_at, new_head

Points = TypeVar("Points", NDArray[Any], Tensor)


class Embedder:
    """A network from a checkpoint; ``olivine.load(path)`` makes one, and explains its arguments.

    Attributes:
        backbone: the 3D network, in evaluation mode.
        channels: width of its features.
        classes: names of the classes 1..K where the checkpoint is a fine-tuned one, else empty.
        voxels: how it cuts clouds.
    """

    def __init__(
        self,
        path: PathLike,
        device: str | torch.device = "cpu",
        intensity_offset: float = 0.0,
    ) -> None:
        path = checkpoint_file(path)
        if not math.isfinite(intensity_offset):
            raise OlivineError(f"is {intensity_offset}", where="intensity_offset", remedy="give a finite number")
        self._device, self._offset = _device(device), intensity_offset
        self.backbone, content = load_backbone(path)
        self._normalised = takes_normalised(content, path)
        self.backbone.to(self._device).eval().requires_grad_(False)
        self.channels = self.backbone.feature_channels
        voxels = settings_from_plain(VoxelSettings, content.get("voxels") or content["settings"]["voxels"], str(path))
        self.voxels = voxels if voxels.from_corner else replace(voxels, crop=False)  # as CloudExamples
        self.classes: tuple[str, ...] = ()
        self._head: torch.nn.Linear | None = None
        if "head_state" in content and content.get("kind") != "detect":  # a detector's is for boxes
            self.classes = tuple(content["data"]["classes"])
            self._head = new_head(self.channels, len(self.classes) + 1, 0).to(self._device)
            load_state(self._head, content["head_state"], path)

    @torch.no_grad()
    def _at_points(self, points: NDArray[Any] | Tensor, head: torch.nn.Module | None) -> tuple[Tensor, Tensor]:
        cloud = self._cloud(points)
        voxels = voxelize(cloud, None, self.voxels)
        seen = voxels.inverse >= 0
        of_point = torch.zeros(len(cloud), dtype=torch.int64, device=self._device)
        width = self.channels if head is None else len(self.classes) + 1
        found = torch.zeros(len(cloud), width, device=self._device)
        if bool(seen.any()):
            value = features_at(self.backbone, Clouds(cloud, of_point, voxels, self.voxels))
            value = value if head is None else head(value)
            place = torch.arange(len(cloud), device=self._device) if self.backbone.per_point else voxels.inverse
            found[seen] = value.index_select(0, place[seen]).float()
        return found, seen

    def _cloud(self, points: NDArray[Any] | Tensor) -> Tensor:
        given = points if isinstance(points, Tensor) else np.ascontiguousarray(points)
        cloud = torch.as_tensor(given).to(self._device, torch.float32, copy=True)
        if cloud.ndim != 2 or cloud.shape[1] < 4:
            raise OlivineError(f"points of shape {list(cloud.shape)}", where="points", remedy="give [N, 4 or more]")
        if wrong := int((~torch.isfinite(cloud[:, 3])).sum()):
            raise OlivineError(
                f"the intensity of {wrong:,} of {len(cloud):,} points is not finite",
                where="points",
                remedy="give these points another intensity, 0 for example, or leave them out",
            )
        if self._normalised:
            cloud[:, 3] = torch.from_numpy(normalised_intensity(cloud[:, 3].cpu().numpy())).to(cloud)
        else:
            cloud[:, 3] += self._offset
        return cloud

    def features(self, points: Points) -> Points:
        """The network's feature of each point.

        Args:
            points: floating [N, 4 or more], in metres in the LiDAR's frame, and raw intensity; NumPy or torch.

        Returns:
            float32 [N, :attr:`channels`], as ``points`` NumPy or torch. Points outside the network's range
            (:meth:`in_range`) have zeros.

        Raises:
            OlivineError: another shape, or points or intensities that are not finite.
        """
        return _like(points, self._at_points(points, None)[0])

    def in_range(self, points: Points) -> Points:
        """Which points the network sees, bool [N]; a network without a fixed grid sees all."""
        return _like(points, voxelize(self._cloud(points), None, self.voxels).inverse >= 0)

    def predict(self, points: Points) -> tuple[Points, Points]:
        """The class of each point and how sure the network is of it, for a fine-tuned network.

        Returns:
            int64 [N], 1..K as in :attr:`classes`, 0 outside the range; float32 [N], its probability.

        Raises:
            OlivineError: the checkpoint has no head for classes.
        """
        if self._head is None:
            raise OlivineError("holds no head for classes", where="predict", remedy="load a fine-tuned checkpoint")
        logit, seen = self._at_points(points, self._head)
        best = torch.softmax(logit[:, 1:], 1).max(1)
        label, sure = torch.where(seen, best.indices + 1, 0), torch.where(seen, best.values, 0.0)
        return _like(points, label), _like(points, sure)


@dataclass(frozen=True)
class EmbedSummary:
    """What was written; ``outside`` counts points beyond the network's range, whose features are 0."""

    files: int
    points: int
    channels: int
    outside: int


def _device(name: str | torch.device) -> torch.device:
    """A device that is there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OlivineError(
            f"no device {str(name)!r} here ({str(error).splitlines()[0]})", where="device", remedy="use cpu"
        ) from None
    return device


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _like(points: Points, value: Tensor) -> Points:
    return value.to(points.device) if isinstance(points, Tensor) else value.cpu().numpy()
