"""Write docs/settings.md from the settings' dataclasses: every key with its type, default and meaning.

    python docs/site/settings_page.py

``tests/package/test_docs.py`` fails where the page is not what this writes.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from olivine.common.plugins import names_in
from olivine.common.settings import flat_values
from olivine.downstream.detection.settings import DetectionSettings
from olivine.downstream.settings import PRESETS, FinetuneSettings, ProbeSettings
from olivine.train.backbone import BackboneSettings, find_backbone
from olivine.train.method import MethodSettings, find_method
from olivine.train.settings import CONFIGS, PretrainSettings, load_settings, preset_names

PAGE = Path(__file__).resolve().parents[1] / "settings.md"
SECTIONS = {
    "data": "the frames",
    "voxels": "points to voxels",
    "image": "the image branch",
    "augment": "augmentation",
    "optimizer": "the optimiser",
    "run": "length, devices, what is written",
}
INTRODUCTION = """\
# Settings

Every setting of a training, with its default. This page is written by `python docs/site/settings_page.py` from the code's
own dataclasses, and a test keeps it so. What is not here is an option of a command: `olivine COMMAND --help`
([the command line](command-line.md)).

A YAML file names settings by section, and the command line changes one:

    olivine pretrain --config paper --set run.epochs=10 --set method.scr=false
    olivine pretrain --config paper --print-config      # the resolved settings, as YAML

A key may be shortened to its last part where that is the only setting of the name (`--set epochs=10`). A key that is not
known is refused with the nearest that is.
"""


def meanings(kind: type) -> dict[str, str]:
    """What the ``Attributes`` of a dataclass' docstrings, and of those that it derives from, say of each name."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = (base.__doc__ or "").partition("Attributes:\n")[2]
        names: list[str] = []
        for line in text.split("\n\n")[0].splitlines():
            entry = re.match(r"        (\w+(?:, \w+)*): (.*)", line)
            if entry:
                names = entry[1].split(", ")
                # What is said of several names has them in front.
                together = f"{', '.join(f'`{name}`' for name in names)}: " if len(names) > 1 else ""
                found |= dict.fromkeys(names, together + entry[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: plain(text.strip()) for name, text in found.items()}


def plain(text: str) -> str:
    """A docstring's text as Markdown and YAML: roles and double backticks become code, bars are escaped, None is null."""
    text = re.sub(r"\bNone\b", "null", text)
    text = re.sub(r":\w+:`~?\.*([^`]*)`", lambda role: f"`{role[1].removeprefix('olivine.')}`", text)
    return text.replace("``", "`").replace("|", "\\|")


def type_name(hint: Any) -> str:
    """A type as a user of YAML would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else type_name(kind) for kind in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_name(arguments[0])}"
        return f"{len(arguments)} {type_name(arguments[0])}s"
    if origin is dict:
        return f"table of {type_name(arguments[1])}"
    return {bool: "true, false", int: "whole number", float: "number", str: "text"}[hint]


def value_name(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(value_name, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(kind: type, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The settings of a dataclass as a Markdown table.

    Raises:
        KeyError: a setting that no docstring explains.
    """
    said, hints, default = meanings(kind), typing.get_type_hints(kind), kind()
    yield from ("| key | is | default | means |", "|---|---|---|---|")
    for member in dataclasses.fields(kind):
        if member.name not in without and not dataclasses.is_dataclass(hints[member.name]):
            value = value_name(getattr(default, member.name))
            yield f"| `{member.name}` | {type_name(hints[member.name])} | `{value}` | {said[member.name]} |"


def own(kind: type, base: type) -> tuple[str, ...]:
    """The settings that a dataclass has beyond those of its base."""
    return tuple(m.name for m in dataclasses.fields(kind) if m.name not in {b.name for b in dataclasses.fields(base)})


def choices(section: str, find: Any, base: type) -> Iterator[str]:
    """A table for each method or backbone that has settings of its own."""
    names = names_in(f"olivine.train.{section}s")
    kinds = {name: find(name).Settings for name in names}
    bare = [name for name in names if not own(kinds[name], base)]
    if bare:
        yield f"Without settings of their own: {', '.join(f'`{name}`' for name in bare)}."
    for kind in dict.fromkeys(kinds.values()):
        same = [name for name in names if kinds[name] is kind and name not in bare]
        if same:
            yield ""
            yield f"### {section}.name: {', '.join(same)}"
            yield ""
            yield from table(kind, tuple(member.name for member in dataclasses.fields(base)))


def presets() -> Iterator[str]:
    """What each preset changes against the defaults of its method and backbone."""
    for name in preset_names():
        settings = load_settings(name)
        given = [key for key in flat_keys_of(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())) if key != "name"]
        values = flat_values(settings)
        kind = type(settings)
        standard = flat_values(kind())
        changed = [key for key in given if values[key] != standard[key] or key.endswith(".name")]
        said = ", ".join(f"`{key}={value_name(values[key])}`" for key in changed)
        yield f"| `{name}` | {said or 'the defaults'} |"


def flat_keys_of(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested tables."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from flat_keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def page() -> str:
    """The whole page."""
    lines = [
        INTRODUCTION,
        "## Pre-training",
        "",
        "At the top: `name` of the run (default: the preset's) and `seed`.",
        "",
    ]
    for section, what in SECTIONS.items():
        kind = typing.get_type_hints(PretrainSettings)[section]
        lines += [f"### {section}: {what}", "", *table(kind), ""]
    lines += ["## Methods", "", "`method.name` chooses one; its settings are the section `method`.", ""]
    lines += [*choices("method", find_method, MethodSettings), "", "## Backbones", ""]
    lines += ["`backbone.name` chooses one, and `backbone.engine` what computes its sparse convolutions"]
    lines += ["([sparse.md](sparse.md)).", "", *choices("backbone", find_backbone, BackboneSettings), ""]
    lines += ["## Presets", "", "What `--config NAME` changes against the defaults above (`configs/NAME.yaml`):", ""]
    lines += ["| preset | settings |", "|---|---|", *presets(), ""]
    lines += ["## Probe and fine-tuning", "", "`olivine probe --set` and `olivine finetune --set`:", ""]
    lines += [*table(ProbeSettings), ""]
    finetune, probe = FinetuneSettings(), ProbeSettings()
    other = [m.name for m in dataclasses.fields(finetune) if getattr(finetune, m.name) != getattr(probe, m.name)]
    said = ", ".join(f"`{name}={value_name(getattr(finetune, name))}`" for name in other)
    lines += [f"These are the probe's defaults; fine-tuning has {said}."]
    for name, changes in PRESETS.items():
        said = ", ".join(f"`{key}={value_name(value)}`" for key, value in changes.items())
        lines += [f"`olivine finetune --preset {name}` has {said}."]
    lines += [""]
    lines += [
        "## Detection",
        "",
        "`olivine detect --set`, see [detection.md](detection.md):",
        "",
        *table(DetectionSettings),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
