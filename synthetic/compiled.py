"""The one way this room compiles: cached on disk, without the GIL, the same floating-point rules everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..common.compiled import compiled as _compiled

# What a compiler may do to sums and quotients; infinities keep their meaning, since a miss is one.
FAST = {"nsz", "arcp", "contract", "reassoc"}

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of scalars and arrays."""
    return _compiled(error_model="numpy", fastmath=FAST)(function)


def inlined(function: F) -> F:
    """Compile a small function into its callers."""
    return _compiled(error_model="numpy", fastmath=FAST, inline="always")(function)
