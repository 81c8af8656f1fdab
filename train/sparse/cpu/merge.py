"""Keys that two ascending lists have in common: a merge join, one walk along both."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


def common_keys(keys: Tensor, queries: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """:func:`common` of tensors on a CPU."""
    position, place = common(keys.numpy(), queries.numpy(), shift)
    return torch.from_numpy(position), torch.from_numpy(place)


@numba.njit(cache=True, nogil=True)
def common(keys, queries, shift):  # type: ignore[no-untyped-def]
    """Where queries + shift occur among keys.

    Args:
        keys, queries: int64 [N], [M], ascending, each number once.
        shift: added to every query.

    Returns:
        int64 [P], [P]: positions in ``queries``, ascending, and in ``keys``.
    """
    size = min(len(keys), len(queries))
    position, place = np.empty(size, np.int64), np.empty(size, np.int64)
    found, k = 0, 0
    for q in range(len(queries)):
        wanted = queries[q] + shift
        while k < len(keys) and keys[k] < wanted:
            k += 1
        if k == len(keys):
            break
        if keys[k] == wanted:
            position[found], place[found] = q, k
            found += 1
    return position[:found].copy(), place[:found].copy()
