"""What shards will take on disk, before they are built, from one frame."""

from __future__ import annotations

from ..readers.frame import Frame
from ..readers.project import project_points
from .images import stored_size
from .settings import PairSettings

# Bytes as measured with `build-pairs --json` on synthetic and real nuScenes and KITTI frames: 12.3 to 12.9 a point, 13.0
# to 13.7 a pair, 0.20 to 0.34 a stored pixel at the default JPEG quality of 90.
_POINT, _PAIR, _PIXEL = 12.7, 13.4, 0.28


def estimate_bytes(frame: Frame, settings: PairSettings) -> float:
    """About how many bytes a frame like this one takes; segments, regions and clusters are not counted."""
    points = frame.points()
    pairs = len(project_points(points, frame.cameras)[0])
    pixels = 0
    for camera in frame.cameras if settings.images else ():
        width, height = stored_size(camera.width, camera.height, settings.image_scale)
        pixels += width * height
    return _POINT * len(points) + _PAIR * pairs + _PIXEL * pixels
