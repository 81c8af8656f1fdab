"""Things found by their name: a file in one of the package's folders, or a class outside it by its dotted path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import TypeVar

from .errors import OlivineError
from .files import sha256_file

T = TypeVar("T")


def code_of(kind: type) -> str:
    """SHA-256 of the file that holds a class of the user's; empty for one of this package, and where there is no file."""
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    try:
        return sha256_file(inspect.getfile(kind))
    except (OSError, TypeError):
        return ""


def names_in(package: str, without: Sequence[str] = ()) -> list[str]:
    """The names that :func:`find` knows in a package: its modules but for some, with hyphens for underscores."""
    folder = importlib.import_module(package).__path__
    modules = (m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in modules if name not in without)


def find(name: str, package: str, base: type[T], what: str, without: Sequence[str] = ()) -> type[T]:
    """The class that ``name`` means.

    Args:
        name: of a module in ``package`` (``srunet-small`` is ``srunet_small.py``), or ``some.module:Class``, or
            ``some.module`` outside it.
        base: the class that it must derive from; of a module the one such class that is defined there, or the one
            that its ``PLUGIN`` names.
        what: for the error: ``method``, ``backbone`` …
        without: modules of ``package`` that are none.

    Raises:
        OlivineError: nothing of that name (the nearest is named), or a module that holds no such class.
    """
    path, _, attribute = name.partition(":")
    known = names_in(package, without)
    inside = "." not in path and not attribute
    if inside and name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)
        hint = f"did you mean {near[0]!r}? There are {', '.join(known)}; " if near else ""
        raise OlivineError(f"no {what} {name!r}", remedy=f"{hint}or give a class of your own as package.module:Class")
    try:
        module = importlib.import_module(f"{package}.{path.replace('-', '_')}" if inside else path)
    except Exception as error:  # whatever a file of the user's raises
        raise OlivineError(
            f"the {what} {name!r} cannot be imported ({type(error).__name__}: {error})",
            remedy="put its folder on PYTHONPATH, or fix the file",
        ) from error
    attribute = attribute or getattr(module, "PLUGIN", "")
    if attribute:
        found = [getattr(module, attribute, None)]
    else:
        found = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    fitting = [value for value in found if isinstance(value, type) and issubclass(value, base) and value is not base]
    if len(fitting) != 1:
        raise OlivineError(
            f"{module.__name__} holds {len(fitting)} {what}s ({base.__name__} classes), not one",
            where=name,
            remedy=f"name the class: {path}:Class",
        )
    return fitting[0]
