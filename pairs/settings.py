"""The settings of ``olivine build-pairs``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..common import OlivineError
from ..common.settings import settings_to_plain
from .clusters import ClusterSettings


@dataclass(frozen=True)
class ConsolidationSettings:
    """How the labels of several frames vote, see :mod:`olivine.pairs.consolidate`.

    Attributes:
        voxel: edge of the smallest place, metres; twice as long from each of the distances ``doubled`` on, metres.
        sizes: of the places of a point, each twice as long as the one before.
        half_say: sum of the images' weights, 1 / sqrt(metre), at which a voxel has half of the full say.
        own_frame: how many times as much the votes of the frame itself weigh.
        compared: votes of an image for one class that must be compared with other images' to be judged by that alone; with
            fewer, more by the mean over all.
        nearest: metres; nearer points weigh as at this distance.
        fastest: metres a second; two frames of a scene whose poses are farther apart than this allows do not fit together.
        ground_height: metres over the lowest point around from which on a class of ground has no vote.
        ground_cell: metres, edge of the cells in which the lowest point is looked for.
        box_margin: metres that an annotated box is grown by; its lowest part of as much is left out, for the ground.
    """

    voxel: float = 0.2
    sizes: int = 3
    doubled: tuple[float, ...] = (20.0, 40.0)
    half_say: float = 0.3
    own_frame: float = 1.5
    compared: float = 50.0
    nearest: float = 5.0
    fastest: float = 100.0
    ground_height: float = 0.3
    ground_cell: float = 1.0
    box_margin: float = 0.1


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
        consolidate: n, to let the labels of the frames t - n to t + n vote for those of frame t, see
            :mod:`olivine.pairs.consolidate`; 0 for the labels at the pairs' own pixels.
        tracks: with ``consolidate``, let the points in annotated boxes vote along the box's track. It uses annotation.
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
    consolidate: int = 0
    tracks: bool = False
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
        if not 0 <= self.consolidate <= 1000:
            raise OlivineError(f"consolidate {self.consolidate}", remedy="give the frames on each side that vote, or 0")
        if self.tracks and not self.consolidate:
            raise OlivineError("tracks without consolidate", remedy="tracks are for the vote: set consolidate too")
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
        if self.consolidate:
            plain["consolidation_settings"] = settings_to_plain(ConsolidationSettings())
        else:
            del plain["consolidate"]
        if not self.tracks:
            del plain["tracks"]
        if not self.regions:
            del plain["regions"]
        return plain
