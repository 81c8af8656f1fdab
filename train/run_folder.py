"""A run's folder: which run it holds, and whether this one may go on in it.

``run.json`` is the run's identity: its kind, its settings, the digest and classes of its shards, and the weights that it
starts from or distils (``source``, ``encoder``). While a run writes there, its process holds a lock on ``.run.lock``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..common import OlivineError, demand, read_json, remove_leftovers, write_json
from ..common.locks import HeldError, take_lock
from ..common.settings import flat_values, plain, settings_to_plain
from .released import modern_run
from .settings import INCIDENTAL, PretrainSettings


def identity_of(
    settings: PretrainSettings, data: dict[str, Any], encoder: dict[str, str], code: dict[str, str]
) -> dict[str, Any]:
    """What makes this run this run; ``code`` is kept to say that it has changed, see :func:`~olivine.train.build.codes_of`."""
    identity = {"kind": "pretrain", "settings": settings_to_plain(settings), "data": data, "encoder": encoder}
    return identity | ({"code": code} if code else {})


_LOCK = ".run.lock"
_held: dict[str, IO[str]] = {}


def lock(out: Path) -> None:
    """Hold the folder's lock until this process ends or claims another folder, for it runs one run at a time.

    A file that a dead process left behind holds nobody up.

    Raises:
        OlivineError: another process writes there; names it.
    """
    path = out / _LOCK
    key = str(path.resolve())
    if key in _held and path.exists():
        return
    while _held:
        _held.popitem()[1].close()
    try:
        handle = take_lock(path)
    except HeldError as holder:
        raise OlivineError(
            f"another run writes here ({holder})", where=out, remedy="wait for it, end it, or choose another --out"
        ) from None
    if handle is not None:
        _held[key] = handle


def read_identity(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a ``run.json``.

    Raises:
        OlivineError: it is missing or damaged.
    """
    kind = {"kind": str, "settings": {"method?": dict, "backbone?": dict}, "data": dict}
    found: dict[str, Any] = modern_run(demand(read_json(path, remedy), kind, path, remedy))
    return found


def claim(
    out: Path, settings: Any, identity: dict[str, Any], *, resume: bool, incidental: Sequence[str] = INCIDENTAL
) -> list[str]:
    """Make ``out`` this run's folder, or check that it is.

    Args:
        settings: the run's settings dataclass; ``incidental`` its keys that may change when a run is resumed.
        identity: see :func:`identity_of`.

    Returns:
        a note where a class of one's own has changed since the run began; it is also printed, for the run goes on.

    Raises:
        OlivineError: it holds something else; the first thing that differs is named.
    """
    remedy = "choose another --out, or remove this folder"
    if out.exists() and not out.is_dir():
        raise OlivineError("is a file", where=out, remedy=remedy)
    path = out / "run.json"
    if not path.is_file():
        if out.is_dir() and any(not name.name.startswith(".") for name in out.iterdir()):
            raise OlivineError("is not empty and holds no run", where=out, remedy=remedy)
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        write_json(path, identity)
        return []
    lock(out)
    remove_leftovers(out)
    if not resume:
        raise OlivineError("holds a run already", where=out, remedy=f"{remedy}, or resume it")
    if not any(out.glob("*.pt")):  # nothing of that run is left to lose
        write_json(path, identity)
        return []
    found = read_identity(path, remedy)
    difference = _difference(found, settings, identity, incidental)
    if difference:
        raise OlivineError(f"holds another run: {difference}", where=out, remedy=remedy)
    before, now = (one.get("code", {}) for one in (found, identity))
    notes = [
        f"the file of {name} has changed since this run began"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    for note in notes:
        print(f"olivine: {note}; it goes on with what is there now", file=sys.stderr, flush=True)
    return notes


def _difference(found: dict[str, Any], settings: Any, identity: dict[str, Any], incidental: Sequence[str]) -> str:
    if found.get("kind") != identity["kind"]:
        return f"a {found.get('kind')}"
    for key, value in flat_values(settings).items():
        if key in incidental:
            continue
        there: Any = found["settings"]
        for part in key.split("."):
            there = there.get(part) if isinstance(there, dict) else None
        if there != plain(value):
            return f"{key} is {there} there and {value} here"
    if found["data"].get("classes") != identity["data"].get("classes"):
        return "its shards have other prompts"
    if found["data"] != identity["data"]:
        return "its frames are others, or have changed"
    if found.get("encoder") != identity.get("encoder"):
        return "its image encoder has other weights"
    if found.get("source") != identity.get("source"):
        return "it starts from another checkpoint"
    return ""
