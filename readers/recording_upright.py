"""Whether a camera of ``rig.yaml`` stands as cameras on vehicles do, and what it would be if it is given in another way."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def suspicion(
    at: str, given: str, to_vehicle: NDArray[np.float64], instead: Mapping[str, NDArray[np.float64]]
) -> list[str]:
    """A line where a camera does not look like one that stands upright and looks along the ground; else none.

    Args:
        at: the key of the transform, for the line.
        given: which transform it is.
        to_vehicle: float64 [4, 4], camera to vehicle, whose z is up.
        instead: what it would be if it was meant in another way, by a sentence that says so.
    """
    if not _odd(to_vehicle):
        return []
    rotation = to_vehicle[:3, :3]
    causes = []
    if not _odd(rotation.T):
        causes.append(f"it is given the other way round (is it not {given} but its inverse?)")
    causes += [why for why, matrix in instead.items() if not _odd(matrix)]
    for order in itertools.permutations(range(3)):
        permuted = rotation[:, list(order)]
        if order != (0, 1, 2) and np.linalg.det(permuted) > 0 and not _odd(permuted):
            causes.append(f"its columns are in the order {', '.join(str(k + 1) for k in order)}")
    why = f"; it would be usual if {' or if '.join(causes)}" if causes else ""
    return [
        f"{at}: the camera does not stand upright and look along the ground (camera axes: x right, y down, "
        f"z ahead; vehicle: z up){why}"
    ]


def _odd(matrix: NDArray[np.float64]) -> bool:
    down, ahead = matrix[:3, 1], matrix[:3, 2]
    return bool(down[2] > -0.5 or abs(ahead[2]) > 0.8)
