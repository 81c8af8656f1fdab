"""What can be asked of the synthetic world, checked before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..common import OlivineError

FORMATS = ("nuscenes", "semantickitti", "kitti-object", "argoverse2")
VERSION = "1.1"
"""Of the world: it changes when the same seed gives another world."""


@dataclass(frozen=True)
class SyntheticSettings:
    """Settings of ``olivine synth``.

    Attributes:
        format: ``nuscenes``, ``semantickitti``, ``kitti-object`` or ``argoverse2``.
        scenes: scenes (nuScenes) or sequences (SemanticKITTI); about every fourth is for validation.
        frames: annotated frames of a scene, half a second apart (nuScenes) or a tenth (SemanticKITTI).
        image_scale: of the images' sides against the real camera's; intrinsics follow.
        seed: of everything; the same seed gives the same bytes.
        workers: processes; 0 = one for each core.
    """

    format: str = "nuscenes"
    scenes: int = 10
    frames: int = 8
    image_scale: float = 0.25
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OlivineError: a value is out of range; names it.
        """
        if self.format not in FORMATS:
            raise OlivineError(
                f"unknown format {self.format!r}", where="--format", remedy=f"choose {' or '.join(FORMATS)}"
            )
        limit = 850 if self.format == "nuscenes" else 11
        _whole("--scenes", self.scenes, 1, limit)
        _whole("--frames", self.frames, 1, 1000)
        _whole("--seed", self.seed, 0, 2**31 - 1)
        _whole("--workers", self.workers, 0, 1024)
        if not math.isfinite(self.image_scale) or not 0.02 <= self.image_scale <= 4:
            raise OlivineError(
                f"image scale {self.image_scale} is not between 0.02 and 4", where="--image-scale", remedy="try 0.25"
            )


def _whole(name: str, value: int, low: int, high: int) -> None:
    if int(value) != value or not low <= value <= high:
        raise OlivineError(f"{value} is not a whole number from {low} to {high}", where=name, remedy="choose another")


@dataclass(frozen=True)
class SyntheticSummary:
    """What :func:`~olivine.synthetic.write.write_dataset` made.

    Attributes:
        out: the folder.
        dataset_version: ``v1.0-mini``, ``v1.0-trainval``, or the SemanticKITTI form's ``sequences``.
        scenes: name of each scene and its split, in order.
        frames, images, points, boxes: how many were written.
        class_points: LiDAR points of each prompt class, the ignored ones under "other".
        reused: True where the folder already held exactly this and nothing was written.
    """

    out: Path
    dataset_version: str
    scenes: tuple[tuple[str, str], ...]
    frames: int
    images: int
    points: int
    boxes: int
    class_points: dict[str, int] = field(default_factory=dict)
    reused: bool = False
