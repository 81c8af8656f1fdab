"""Text, JSON and CSV from a file that anybody may have written: bounded, checked, and wrong in one line.

A file is read no further than a stated size, must be UTF-8, and may be nested no deeper than a stated depth. What a
reader needs of a value is said by :func:`demand`, so that a missing or a wrong key names the file and the key.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import OlivineError, PathLike

MAX_BYTES = 1 << 30
"""The largest JSON or CSV file: ten times the manifest of a million frames."""
MAX_DEPTH = 64
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def read_bytes(path: PathLike, remedy: str, *, what: str = "file", most: int = MAX_BYTES) -> bytes:
    """The bytes of a file; ``what`` it is, for the message where it is missing.

    Raises:
        OlivineError: it is missing, cannot be read, or has more than ``most`` bytes.
    """
    try:
        with open(path, "rb") as handle:
            # Not read(most + 1), which takes that much memory before it reads. A pipe's size is 0.
            step = max(os.fstat(handle.fileno()).st_size, 1 << 16) + 1
            data = handle.read(min(step, most + 1))
            while len(data) <= most and (more := handle.read(min(step, most + 1 - len(data)))):
                data += more
    except FileNotFoundError:
        raise OlivineError(f"no such {what}", where=path, remedy=remedy) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise OlivineError(f"cannot be read ({reason})", where=path, remedy=remedy) from None
    if len(data) > most:
        raise OlivineError(f"is larger than {most} bytes", where=path, remedy=remedy)
    return data


def read_text(path: PathLike, remedy: str, *, most: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises:
        OlivineError: as :func:`read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, remedy, most=most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OlivineError(f"is not UTF-8 text (byte {error.start})", where=path, remedy=remedy) from None


def parse_json(data: bytes | str, where: object, remedy: str = "make it again") -> Any:
    """The value of a JSON text.

    Raises:
        OlivineError: it is not JSON in UTF-8, or nested more than :data:`MAX_DEPTH` deep.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise OlivineError(f"cannot be read as JSON ({_TOO_DEEP})", where=where, remedy=remedy) from None
    except ValueError as error:
        raise OlivineError(f"cannot be read as JSON ({error})", where=where, remedy=remedy) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (value.values() if isinstance(value, dict) else value for value in level if type(value) in (dict, list))
        level = [item for items in inner for item in items if type(item) in (dict, list)]
        if not level:
            return value
    raise OlivineError(f"cannot be read as JSON ({_TOO_DEEP})", where=where, remedy=remedy)


def read_json(path: PathLike, remedy: str = "make it again", *, most: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OlivineError: the file is missing, cannot be read or is not JSON; ``remedy`` says what to do.
    """
    return parse_json(read_bytes(path, remedy, most=most), path, remedy)


def parse_csv(
    text: str, where: object, columns: Sequence[str] = (), remedy: str = "make it again"
) -> list[dict[str, str]]:
    """The rows of a CSV text with a header.

    Args:
        columns: the header must have these; it may have others.

    Raises:
        OlivineError: a column is missing or named twice, or a row has another number of fields than the header.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise OlivineError(f"cannot be read as CSV ({error})", where=where, remedy=remedy) from None
    header = rows[0] if rows else []
    if absent := [name for name in columns if name not in header]:
        raise OlivineError(f"has no column {absent[0]!r}", where=where, remedy=remedy)
    if len(set(header)) != len(header):
        raise OlivineError("has two columns of one name", where=where, remedy=remedy)
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise OlivineError(
                f"row {number} has {len(row)} fields, the header {len(header)}", where=where, remedy=remedy
            )
    return [dict(zip(header, row)) for row in rows[1:]]


def read_csv(path: PathLike, columns: Sequence[str] = (), remedy: str = "make it again") -> list[dict[str, str]]:
    """The rows of a CSV file with a header; see :func:`parse_csv`.

    Raises:
        OlivineError: the file is missing, cannot be read, is not UTF-8, or is damaged.
    """
    return parse_csv(read_text(path, remedy), path, columns, remedy)


@dataclass(frozen=True)
class Whole:
    """For :func:`demand`: a whole number from ``low`` to ``high``."""

    low: int = 0
    high: int = 2**63 - 1


def demand(value: Any, kind: Any, where: object, remedy: str = "make it again") -> Any:
    """``value``, which must be of ``kind``.

    A kind is one of

    * a type: ``str``, ``int``, ``bool``, ``list``, ``dict``; ``float`` takes whole numbers too; ``object`` takes anything,
    * :class:`Whole`, a range of whole numbers,
    * ``None``: nothing but null,
    * a set of the kinds above, of which one must fit,
    * ``[kind]``: a list of any length, ``(kind, kind)``: a list of that length,
    * ``{str: kind}``: a mapping with any keys,
    * ``{"name": kind, "other?": kind}``: a mapping with these keys; one with a ``?`` may be absent, further keys may be there.

    Raises:
        OlivineError: names the file ``where`` and the key.
    """
    if wrong := _wrong(value, kind, ()):
        raise OlivineError(wrong, where=where, remedy=remedy)
    return value


# A key is (the key it is in, its name or position), and becomes text only for an error: files have many values.
_Key = tuple[Any, ...]


def _wrong(value: Any, kind: Any, key: _Key) -> str:
    """What is wrong with a value, empty where nothing is."""
    if type(value) is kind:
        return ""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _is(key, value, "a list")
        return next((wrong for i, item in enumerate(value) if (wrong := _wrong(item, kind[0], (key, i)))), "")
    if isinstance(kind, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(kind):
            return _is(key, value, f"a list of {len(kind)}")
        both = enumerate(zip(value, kind))
        return next((wrong for i, (item, one) in both if (wrong := _wrong(item, one, (key, i)))), "")
    if isinstance(kind, dict):
        return _wrong_mapping(value, kind, key)
    kinds = kind if isinstance(kind, set) else {kind}
    return "" if any(_fits(value, one) for one in kinds) else _is(key, value, " or ".join(sorted(map(_name, kinds))))


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not object:
        return kind is bool
    if isinstance(kind, Whole):
        return isinstance(value, int) and kind.low <= value <= kind.high
    return isinstance(value, (int, float) if kind is float else kind or type(None))


def _wrong_mapping(value: Any, kind: dict[Any, Any], key: _Key) -> str:
    if not isinstance(value, dict):
        return _is(key, value, "a mapping")
    if str in kind:
        items = value.items()
        return next((wrong for name, item in items if (wrong := _wrong(item, kind[str], (key, name)))), "")
    for name, one in kind.items():
        plain = name.removesuffix("?")
        if plain not in value:
            if plain == name:
                return f"has no {_text((key, name))!r}"
        elif wrong := _wrong(value[plain], one, (key, plain)):
            return wrong
    return ""


def _name(kind: Any) -> str:
    if isinstance(kind, Whole):
        return f"a whole number from {kind.low} to {kind.high}"
    return _NAMES[kind]


_NAMES = {
    None: "nothing",
    object: "anything",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _text(key: _Key) -> str:
    if not key:
        return ""
    inside, name = _text(key[0]), key[1]
    if isinstance(name, int):
        return f"{inside}[{name}]"
    return f"{inside}.{name}" if inside else str(name)


def _is(key: _Key, value: Any, expected: str) -> str:
    text = repr(value)
    short = text if len(text) <= 40 else text[:37] + "..."
    return f"{_text(key)} is {short}, expected {expected}".strip()
