"""The settings of ``olivine build-pairs``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..common import OlivineError
from .clusters import ClusterSettings


@dataclass(frozen=True)
class PairSettings:
    """How shards are made.

    Attributes:
        image_scale: size of the stored images relative to the data set's: ``auto`` (see
            :func:`olivine.pairs.images.stored_size`), or a number in (0, 1].
        images: store the images; without them a set can be probed, not pre-trained on.
        jpeg_quality: of the stored images, 1..95.
        segments: carry the label store's segment maps.
        regions: carry the phrases and features of the store's regions, whose maps are its segment maps.
        clusters: n, to cluster each scan together with the scan n frames later, see :mod:`olivine.pairs.clusters`;
            0 for none.
        min_depth: metres; nearer points are seen by no camera.
        distance: ``3d`` (from the sensor) or ``plane`` (in x and y), for the density.
        bandwidth: of the density: ``silverman``, ``scott`` or metres.
        visibility: ``none``, or ``occlusion`` to drop pairs that a nearer surface hides.
        workers: processes. Changes no byte of the result.
    """

    image_scale: float | str = "auto"
    images: bool = True
    jpeg_quality: int = 90
    segments: bool = False
    regions: bool = False
    clusters: int = 0
    min_depth: float = 1.0
    distance: str = "3d"
    bandwidth: float | str = "silverman"
    visibility: str = "none"
    workers: int = 1

    def __post_init__(self) -> None:
        scale = self.image_scale
        if scale != "auto" and (isinstance(scale, str) or not 0 < scale <= 1):
            raise OlivineError(f"image_scale {scale!r}", remedy="give auto, or a number over 0 and at most 1")
        if not 1 <= self.jpeg_quality <= 95:
            raise OlivineError(f"jpeg_quality {self.jpeg_quality}", remedy="give a number from 1 to 95")
        if self.distance not in ("3d", "plane"):
            raise OlivineError(f"distance {self.distance!r}", remedy="choose 3d or plane")
        rule = self.bandwidth
        if rule not in ("silverman", "scott") and (isinstance(rule, str) or not rule > 0):
            raise OlivineError(f"bandwidth {rule!r}", remedy="choose silverman, scott or a positive number of metres")
        if self.visibility not in ("none", "occlusion"):
            raise OlivineError(f"visibility {self.visibility!r}", remedy="choose none or occlusion")
        if self.regions and not self.segments:
            raise OlivineError("regions without segments", remedy="regions need their maps: set segments too")
        if not 0 <= self.clusters <= 1000:
            raise OlivineError(f"clusters {self.clusters}", remedy="give the frames from a scan to its partner, or 0")
        if not self.min_depth > 0:
            raise OlivineError(f"min_depth {self.min_depth}", remedy="give a positive number of metres")
        if self.workers < 1:
            raise OlivineError(f"{self.workers} workers", remedy="give at least 1")

    def recipe(self) -> dict[str, Any]:
        """The settings that shape the shards, as plain values."""
        plain = asdict(self)
        del plain["workers"]
        # What is off is not named, so that sets from before it existed are still the same sets.
        if self.clusters:
            plain["cluster_settings"] = asdict(ClusterSettings())
        else:
            del plain["clusters"]
        if not self.regions:
            del plain["regions"]
        return plain
