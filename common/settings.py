"""Settings as frozen dataclasses: read from YAML, changed by ``key=value``, checked by name and type.

A key that is not known, or a value of the wrong type, is refused with the key's dotted name and the nearest right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from .errors import OlivineError, PathLike
from .reading import MAX_DEPTH, read_text

MAX_YAML = 1 << 20
"""Characters in a YAML document."""
S = TypeVar("S")


def apply_change(kind: type, plain: dict[str, Any], change: str) -> None:
    """Change one value of a nested table of settings of the dataclass ``kind``, checked.

    Args:
        change: ``key=value``; the value is YAML, the key may be shortened to its last part where that is unique.

    Raises:
        OlivineError: names the key.
    """
    where, known = f"--set {change}", flat_keys(kind)
    key, separator, text = change.partition("=")
    key = key.strip()
    if not separator:
        raise OlivineError("is not key=value", where=where, remedy="for example --set run.epochs=10")
    if key not in known:
        same = [name for name in known if name.endswith(f".{key}")]
        if len(same) != 1:
            raise unknown_key(kind, key, where)
        key = same[0]
    _checked(known[key], read_yaml(text, where), key, where)
    *parents, last = key.split(".")
    place: Any = plain
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = read_yaml(text, where)


def read_yaml(text: str, where: object) -> Any:
    """A YAML document of plain values: null, true and false, finite numbers, text, lists and mappings.

    Raises:
        OlivineError: it is not YAML, longer than :data:`MAX_YAML`, nested more than :data:`MAX_DEPTH` deep, names a key
            twice, has an alias (a few bytes of them can stand for gigabytes), or holds a date, an infinite number, NaN,
            a number over 2**63 or a value with a tag.
    """
    import yaml

    remedy = "fix the line named"
    if len(text) > MAX_YAML:
        raise OlivineError(f"is larger than {MAX_YAML} characters", where=where, remedy="name a file of settings")
    try:
        node = _compose(text, where)
        value = _plain_yaml(node, where, yaml.constructor.SafeConstructor()) if node is not None else None
    except yaml.YAMLError as error:
        raise OlivineError(f"is not YAML ({error})", where=where, remedy=remedy) from None
    return value


def _compose(text: str, where: object) -> Any:
    """The tree of nodes of a YAML document; its bounds are checked while it is built."""
    import yaml

    class Bounded(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            line = f"line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                raise OlivineError(f"{line} has an alias (*{event.anchor})", where=where, remedy="write the value out")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise OlivineError(
                    f"{line} is nested more than {MAX_DEPTH} deep", where=where, remedy="name a file of settings"
                )
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    loader = Bounded(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


_YAML_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


def _plain_yaml(node: Any, where: object, make: Any) -> Any:
    """The plain value of a node."""
    import yaml

    line = f"line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _plain_yaml(key_node, where, make) if isinstance(key_node, yaml.ScalarNode) else ()
            if not isinstance(key, (str, int, float, type(None))):
                raise OlivineError(f"{line} has a key that is no text", where=where, remedy="fix that line")
            if key in values:
                at = f"line {key_node.start_mark.line + 1}"
                raise OlivineError(f"{at} names {key!r} a second time", where=where, remedy="remove one of the two")
            values[key] = _plain_yaml(value_node, where, make)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_plain_yaml(item, where, make) for item in node.value]
    value = None
    if fits := isinstance(node, yaml.ScalarNode) and node.tag in _YAML_SCALARS:
        try:
            value = make.construct_object(node)
        except (ValueError, KeyError, OverflowError):
            fits = False
    if isinstance(value, float) and not math.isfinite(value):
        fits = False
    if isinstance(value, int) and abs(value) >= 2**63:
        fits = False
    if not fits:
        text = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else node.tag
        raise OlivineError(
            f"{line} has {text!r}, which is no plain value ({node.tag.rpartition(':')[2]})",
            where=where,
            remedy="write text in quotes, or a finite number",
        )
    return value


def read_yaml_file(path: PathLike, remedy: str = "check the path") -> Any:
    """The value in a YAML (or JSON) file that a person wrote; see :func:`read_yaml`.

    Raises:
        OlivineError: the file is missing, cannot be read, is not UTF-8, or is not such YAML.
    """
    return read_yaml(read_text(path, remedy, most=4 * MAX_YAML), path)


def check_ranges(section: str, settings: Any, **ranges: tuple[float, float] | tuple[float, float, str]) -> None:
    """Check that settings lie between two values; None passes, NaN does not.

    Both ends are included, but for those that a third item opens: ``(0, 1, "[)")`` leaves out 1, ``"(]"`` leaves out 0.

    Raises:
        OlivineError: names the key.
    """
    for name, (low, high, *brackets) in ranges.items():
        value = getattr(settings, name)
        ends = str(brackets[0]) if brackets else "[]"
        outside = (low if ends[0] == "(" else None, high if ends[1] == ")" else None)
        if value is not None and (not low <= value <= high or value in outside):
            key = f"{section}.{name}" if section else name
            wanted = f"from {low:g} to {high:g}" if ends == "[]" else f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
            raise OlivineError(f"{key} is {value}", remedy=f"use a number {wanted}")


def settings_to_plain(settings: Any) -> dict[str, Any]:
    """Nested plain values of a settings dataclass (tuples become lists)."""
    result: dict[str, Any] = plain(dataclasses.asdict(settings))
    return result


def plain(value: Any) -> Any:
    """A setting's value as JSON and YAML have it: lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def settings_to_yaml(settings: Any) -> str:
    """Settings as YAML, in the order of their definition (what ``--print-config`` prints)."""
    import yaml

    text: str = yaml.safe_dump(settings_to_plain(settings), sort_keys=False)
    return text


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys under which two nested tables differ, in order, with the value in each (None where there is none)."""
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def flat_keys(kind: type, prefix: str = "") -> dict[str, Any]:
    """The dotted name and type of every setting of a dataclass."""
    keys: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for member in dataclasses.fields(kind):
        hint = hints[member.name]
        if dataclasses.is_dataclass(hint):
            keys.update(flat_keys(typing.cast(type, hint), f"{prefix}{member.name}."))
        else:
            keys[prefix + member.name] = hint
    return keys


def flat_values(settings: Any) -> dict[str, Any]:
    """The dotted name and value of every setting."""
    values = {}
    for key in flat_keys(type(settings)):
        value = settings
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value
    return values


def unknown_key(kind: type, key: str, where: str) -> OlivineError:
    """The error for a key that is not a setting, naming the nearest one that is."""
    known = flat_keys(kind)
    # The last part decides when the section is wrong: lr → optimizer.lr.
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.75)
    if not near:
        last = difflib.get_close_matches(key.rpartition(".")[2], by_last, 1, 0.6)
        near = [by_last[last[0]]] if last else difflib.get_close_matches(key, known, 1, 0.0)
    return OlivineError(f"no setting {key!r}", where=where, remedy=f"did you mean {near[0]!r}?")


def settings_from_plain(kind: type[S], plain: Mapping[str, Any], where: str, _prefix: str = "", _root: Any = None) -> S:
    """Build a settings dataclass from nested plain values, checking names and types.

    Raises:
        OlivineError: names the key.
    """
    root = _root or kind
    hints = typing.get_type_hints(kind)
    names = {member.name for member in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in plain.items():
        key = f"{_prefix}{name}"
        if name not in names:
            raise unknown_key(root, key, where)
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise OlivineError(f"{key} is a section, not a value", where=where, remedy=f"set {key}.… instead")
            values[name] = settings_from_plain(typing.cast(type, hint), value, where, f"{key}.", root)
        else:
            values[name] = _checked(hint, value, key, where)
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise OlivineError(f"{_prefix.rstrip('.')}: {error}", where=where, remedy="change that setting") from None


def _checked(hint: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as the type ``hint``, or an error that names the key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        # Of several kinds the one for a list or a table where the value is one.
        shape = dict if isinstance(value, Mapping) else tuple if isinstance(value, (list, tuple)) else None
        choices = [a for a in arguments if a is not type(None)]
        fitting = next((kind for kind in choices if typing.get_origin(kind) is shape), choices[0])
        return _checked(fitting, value, key, where)
    if origin is Literal:
        if value in arguments and not (isinstance(value, bool) and value not in (True, False)):
            return value
        expected = " | ".join(str(a) for a in arguments)
    elif origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis and isinstance(value, list) else arguments
        if isinstance(value, (list, tuple)) and len(value) == len(kinds):
            return tuple(_checked(kind, item, key, where) for kind, item in zip(kinds, value))
        expected = f"a list of {len(kinds)} values"
    elif origin is dict:
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {name: _checked(arguments[1], item, f"{key}: {name}", where) for name, item in value.items()}
        expected = "a table"
    elif hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:  # YAML reads 1e-4, without a point, as text
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        expected = "a number"
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        expected = "a whole number"
    elif hint is bool:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        expected = "text"
    raise OlivineError(f"{key} is {value!r}, expected {expected}", where=where, remedy=f"change {key}")
