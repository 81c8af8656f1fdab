"""The one way this room compiles: cached on disk, without the GIL, the same floating-point rules everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

# What a compiler may do to sums and quotients; infinities keep their meaning, since a miss is one.
FAST = {"nsz", "arcp", "contract", "reassoc"}

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of scalars and arrays."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)(function))


def inlined(function: F) -> F:
    """Compile a small function into its callers."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST, inline="always")(function))
