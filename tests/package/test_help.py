"""Every help: its defaults are in it at any width of the terminal, its options are in groups where there are many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from olivine.cli import app
from olivine.commands.options import MANY, PANELS


def commands() -> dict[str, Any]:
    def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*path, name))
            else:
                yield " ".join((*path, name)), command

    return dict(walk(typer.main.get_command(app), ()))


COMMANDS = commands()


def described(said: str, option: str, begins: str) -> str:
    """What a help says of an option: the text in the last column, on its line and those that go on below, no blanks."""
    lines = said.splitlines()
    first = next(k for k, line in enumerate(lines) if re.match(rf"│ {option}[ ,│]", line))
    column = lines[first].index(begins)
    text = lines[first][column:-1]
    for line in lines[first + 1 :]:
        if line.startswith(("│ -", "╰")):
            break
        text += line[column:-1]
    return "".join(text.split())


@pytest.mark.parametrize("width", ["80", "100", "160"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_shows_every_option_with_its_default(name, width, olivine, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    said = olivine(*name.split(), "--help", cwd=tmp_path, check=True).stdout
    for option in COMMANDS[name].params:
        if getattr(option, "hidden", False) or not option.opts[0].startswith("-"):
            continue
        text = option.help or ""
        found = described(said, option.opts[0], text.split()[0][:8])
        default = option.default
        if default in (None, False, []):
            assert found.startswith("".join(text.split())), option.opts[0]
            continue
        shown = option.opts[0].removeprefix("--") if default is True else str(default)
        assert found == "".join(f"{text} [default: {shown}]".split()), f"{option.opts[0]} does not say {default!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_shows_all_that_is_said_of_the_command(name, olivine, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    said = olivine(*name.split(), "--help", cwd=tmp_path, check=True).stdout
    assert "".join((COMMANDS[name].help or "").split()) in "".join(said.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_without_a_value_says_what_is_taken_instead_or_changes_nothing(name):
    """What is None by default either names what is taken then, or switches on something that is off."""
    chosen = ("out", "labels", "shards", "checkpoint", "run", "root", "version", "dataset")
    for option in COMMANDS[name].params:
        said = option.help or ""
        if option.name in chosen and option.default is None and option.opts[0].startswith("-"):
            assert "default" in said or re.match(r"Take the|The data set's folder, if", said), (
                f"{name} {option.opts[0]}"
            )


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if len(c.params) > MANY + 1 and " " not in n])
def test_many_options_are_in_groups_of_which_none_is_long(name):
    groups: dict[str, int] = {}
    for option in COMMANDS[name].params:
        if not getattr(option, "hidden", False):
            panel = getattr(option, "rich_help_panel", None) or "Options"
            groups[panel] = groups.get(panel, 0) + 1
    assert len(groups) > 1
    assert set(groups) <= {"Options", "Arguments", *PANELS}
    assert max(groups.values()) <= 14


def test_the_names_in_the_groups_are_parameters_of_some_command():
    known = {option.name for command in COMMANDS.values() for option in command.params}
    named = [name for names in PANELS.values() for name in names]
    assert set(named) <= known and len(set(named)) == len(named)


def test_the_main_help_lists_every_command(olivine, tmp_path):
    said = olivine(cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    for name in COMMANDS:
        assert name.split()[0] in said.stdout
