"""The pages: every olivine line names commands and options that exist, every link leads somewhere, every page is linked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from olivine.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def olivine_lines(text: str) -> list[str]:
    """Commands in code blocks and in the text, without what follows as a comment."""
    lines = (line for line in text.splitlines() if re.match(r"\s{4,}(\S+ )*olivine [a-z]", line))
    found = [line[line.index("olivine ") :] for line in lines]
    found += re.findall(r"`(olivine [a-z][^`]*)`", text)
    return [re.split(r"\s#|\s{3,}", line)[0] for line in found]


def problem(line: str) -> str:
    """What is wrong with a command, empty where nothing is."""
    words = shlex.split(line.replace("…", "").replace("'", ""))[1:]
    words = words[: next((k for k, word in enumerate(words) if word in ("&&", "|", ">", ";")), None)]
    group = typer.main.get_command(app)
    while words and hasattr(group, "commands"):
        if words[0].startswith("-"):
            return "" if words[0] in ("--help", "--version") else f"no option {words[0]}"
        name = words.pop(0).rstrip(",.:")
        if name.isupper():
            return ""
        if name not in group.commands:
            return f"no command {name}"
        group = group.commands[name]
    if hasattr(group, "commands"):
        return ""
    known = {"-h", "--help"}
    for parameter in group.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    for k, word in enumerate(words):
        if word == "--":
            return problem(" ".join(["olivine", *words[k + 1 :]]))
        if word.startswith("--") and word.rstrip(",.").split("=")[0] not in known:
            return f"no option {word}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    wrong = [f"{line}: {found}" for line in olivine_lines(page.read_text()) if (found := problem(line))]
    assert not wrong


def test_the_check_finds_what_is_wrong() -> None:
    text = "    olivine pretrain --no-such 1   # comment\n\nand `olivine nonsense` and `olivine probe --epochs=3`\n"
    assert [problem(line) for line in olivine_lines(text)] == ["no option --no-such", "no command nonsense", ""]
    assert problem("olivine submit --nodes 2 -- labelgen --no-such") == "no option --no-such"


def anchors(page: Path) -> set[str]:
    """The places in a page that a link may name, as GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, place = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert not place or place in anchors(file), target


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"sparse-cpu.md"} <= linked


def test_the_first_hours_commands_are_the_demos() -> None:
    demo = re.findall(r"\$\(OLIVINE\) (.*)", (ROOT / "Makefile").read_text().split("demo: setup")[1].split("@echo")[0])
    lines = [line.removeprefix("olivine ").strip() for line in olivine_lines((ROOT / "docs/first-hour.md").read_text())]
    assert [line.strip() for line in demo[:6]] == lines[:6]
