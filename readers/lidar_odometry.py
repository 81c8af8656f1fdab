"""Poses from the clouds themselves, by KISS-ICP (Vizzo et al., 2023), for recordings without odometry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError


def poses_from_clouds(clouds: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.float64]]:
    """The pose of each cloud in the frame of the first one.

    KISS-ICP's own settings, on one thread (the same clouds, the same poses). A cloud is taken as it is: the motion within
    a sweep is not undone.

    Args:
        clouds: [N, 3] or [N, 4] each, x, y, z in metres, in the order of their times.

    Yields:
        [4, 4], LiDAR → first cloud's frame.

    Raises:
        OlivineError: kiss-icp is not installed.
    """
    try:
        from kiss_icp.config import load_config
        from kiss_icp.kiss_icp import KissICP
    except ImportError as error:
        raise OlivineError(
            f"kiss-icp is not usable ({error})", remedy="install it: pip install 'olivine[odometry]'"
        ) from error
    config = load_config(None)
    config.data.deskew = False
    config.registration.max_num_threads = 1
    odometry = KissICP(config)
    for cloud in clouds:
        points = np.ascontiguousarray(cloud[:, :3], np.float64)
        odometry.register_frame(points[np.isfinite(points).all(1)], np.empty(0))
        yield odometry.last_pose.copy()
