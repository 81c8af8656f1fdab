"""Where the tests find the real sample data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background has Ctrl-C ignored, and our children would
    # inherit that: the tests of Ctrl-C would wait for something that cannot come.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real sample data not here: no {path}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data."""
    return _folder("")


@pytest.fixture(scope="session")
def nuscenes_keyframe() -> Path:
    """One real nuScenes keyframe, as v1.0-mini."""
    return _folder("nuscenes-keyframe")


@pytest.fixture(scope="session")
def keyframe_camseg() -> Path:
    """A label map for each image of the keyframe."""
    return _folder("nuscenes-keyframe-camseg")


@pytest.fixture(scope="session")
def kitti_frame() -> Path:
    """One real KITTI odometry frame."""
    return _folder("kitti-odometry-frame")
