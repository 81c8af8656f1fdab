"""Compile a loop over arrays with numba, kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """A decorator that compiles a function, without the GIL; ``options`` are numba's.

    The machine code is kept beside the module, or in the user's cache. Where neither can be written (a read-only
    installation, no home), numba refuses the function; then it is compiled again in each process.
    """
    import numba

    options = {"nogil": True, **options}

    def compile_(function: F) -> F:
        try:
            made = numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            made = numba.njit(**options)(function)
        return cast(F, made)

    return compile_
