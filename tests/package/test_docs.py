"""The pages: what they tell to run exists, every link leads somewhere, every page is in the navigation.

That the commands run is shown by ``test_docs_soak.py``; the site itself is built and read again by ``make docs``.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main

from olivine.cli import app

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs" / "site"
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


def shell_lines(text: str) -> list[str]:
    """Lines of code blocks, and code in the text, that are commands of a shell other than olivine's own."""
    known = r"(?:make|python|pytest|pip|torchrun) "
    found = re.findall(rf"^ {{4,}}((?:[A-Z_]+=\S+ )*{known}.*)$", text, re.MULTILINE)
    found += re.findall(rf"`((?:[A-Z_]+=\S+ )*{known}[^`]*)`", text)
    return [re.split(r"\s#|\s{3,}", line)[0] for line in found]


def shell_problem(line: str, page: Path) -> str:
    """What is wrong with a command of make, python, pytest, pip or torchrun, empty where nothing is."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    words = words[: next((k for k, word in enumerate(words) if word in ("&&", "|", ">", ";")), None)]
    if words[:3] == ["python", "-m", "pytest"]:
        words = words[2:]
    program, words = words[0], words[1:]
    if program == "make":
        rules = (ROOT / "Makefile").read_text() + (ROOT / "cluster" / "cluster.mk").read_text()
        patterns = [
            name.replace("%", ".*") for name in re.findall(r"^([\w%-]+)(?: [\w%-]+)*:(?!=)", rules, re.MULTILINE)
        ]
        patterns += re.findall(r"^STAGES := (.*)$", rules, re.MULTILINE)[0].split()
        lost = [word for word in words if not any(re.fullmatch(pattern, word) for pattern in patterns)]
        return f"no target {lost[0]}" if lost else ""
    if program == "pytest":
        files = [word for word in words if word.startswith("tests")]
        lost = [word for word in files if not (ROOT / word).exists()]
        if lost:
            return f"no {lost[0]}"
        where = [ROOT / word for word in files]
        tests = [f for path in where for f in ([path] if path.is_file() else path.rglob("test_*.py"))]
        text = " ".join([path.stem + path.read_text() for path in tests])
        wanted = re.findall(r"\w+", words[words.index("-k") + 1]) if "-k" in words else []
        lost = [word for word in wanted if word not in ("and", "or", "not") and word not in text]
        return f"no test named {lost[0]}" if lost else ""
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [name for word in words for name in re.findall(r"^(?:olivine|\.)\[(.*)\]$", word)]
        lost = [name for names in named for name in names.split(",") if name not in extras]
        return f"no extra {lost[0]}" if lost else ""
    if "-m" in words:  # python or torchrun
        module, after = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if importlib.util.find_spec(module) is None:
            return f"no module {module}"
        return problem(" ".join(["olivine", *map(shlex.quote, after)])) if module == "olivine.cli" else ""
    script = ROOT / words[0]
    if not script.is_file():
        return "" if "OpenPCDet" in page.read_text() and words[0] in ("train.py", "test.py") else f"no {words[0]}"
    lost = [word for word in words if word.startswith("--") and f'"{word}"' not in script.read_text()]
    return f"no option {lost[0]}" if lost else ""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_other_command_on_a_page_names_targets_files_tests_and_extras_that_exist(page: Path) -> None:
    lines = shell_lines(page.read_text())
    wrong = [f"{line}: {found}" for line in lines if "…" not in line and (found := shell_problem(line, page))]
    assert not wrong


def test_that_check_finds_what_is_wrong() -> None:
    said = {
        "make nonsense": "no target nonsense",
        "make study-weak-ground": "",
        "pytest tests/nonsense.py": "no tests/nonsense.py",
        "pytest tests/readers/test_checks.py -k no_such_thing": "no test named no_such_thing",
        "pip install '.[nonsense]'": "no extra nonsense",
        "A=1 python -m pytest -m soak tests/reliability -s": "",
        "python benchmarks/nonsense.py": "no benchmarks/nonsense.py",
        "python benchmarks/lens_speed.py --nonsense": "no option --nonsense",
        "torchrun --nproc-per-node=4 -m olivine.cli pretrain --nonsense": "no option --nonsense",
    }
    assert {line: shell_problem(line, ROOT / "README.md") for line in said} == said
    assert shell_lines("    make x   # why\n\nand `pytest tests/y.py`") == ["make x", "pytest tests/y.py"]


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
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    found = importlib.util.spec_from_file_location("site_configuration", SITE / "conf.py")
    assert found is not None and found.loader is not None
    configuration = importlib.util.module_from_spec(found)
    found.loader.exec_module(configuration)
    named = [name for names in configuration.NAVIGATION.values() for name in names]
    assert sorted((ROOT / "docs" / f"{name}.md").resolve() for name in named) == sorted(
        page for page in PAGES if page.name != "README.md"
    )


def test_the_page_of_settings_is_the_codes_own() -> None:
    found = importlib.util.spec_from_file_location("settings_page", SITE / "settings_page.py")
    assert found is not None and found.loader is not None
    writer = importlib.util.module_from_spec(found)
    found.loader.exec_module(writer)
    assert writer.PAGE.read_text() == writer.page(), "run: python docs/site/settings_page.py"
    rows = re.findall(r"^\| `\w+` \|.*\|(.*)\|$", writer.page(), re.MULTILINE)
    assert len(rows) > 100 and all("``" not in row and ":class:" not in row for row in rows)


def test_the_first_hours_commands_are_the_demos() -> None:
    demo = re.findall(r"\$\(OLIVINE\) (.*)", (ROOT / "Makefile").read_text().split("demo: setup")[1].split("@echo")[0])
    lines = [line.removeprefix("olivine ").strip() for line in olivine_lines((ROOT / "docs/first-hour.md").read_text())]
    assert [line.strip() for line in demo[:6]] == lines[:6]


# The rest is of `make soak`: the pages' commands run, each page's one after the other, in a folder where the three commands
# have run.

# What is added to a command so that it takes seconds here; what writes much or needs long is checked by --dry-run.
SHORTER = {
    "synth": "--dry-run",
    "features": "--dry-run",
    "study": "--dry-run",
    "detect": "--dry-run",
    "pretrain": "--set run.steps=2 --set run.batch=2 --set method.pairs=256 --set data.workers=0",
    "probe": "--epochs 1",
    "finetune": "--epochs 1",
    "check-data": "--frames 2",
}
# What stands for the pages' own names.
STANDS_FOR = {
    "samples/CAM_FRONT/NAME.jpg": "data/nuscenes/{image}",
    "runs/paper": "runs/cpu",
    "runs/uov-tmp/finetune-weak-100": "runs/cpu",
    "[--classes FILE]": "",
    "--camseg DIR": "--camseg data/nuscenes/truth/class",
    "--shards DIR": "--shards data/pairs/nuscenes/val",
    "--check DIR": "--check data/pairs/nuscenes/val",
    "--describe DIR": "--describe data/pairs/nuscenes/val",
    "--seed k": "--seed 0",
    "--labeler grounded-sam": "--labeler oracle",
}
# Commands that cannot run here, and what they need. With --dry-run, where they have it, each says so in a line.
NEEDS = {
    "weights fetch": "the network (tests/labelgen/test_weights.py)",
    "view": "somebody who looks: it serves until Ctrl-C (tests/report/test_view.py)",
    "import-bag": "a recording (tests/readers/test_bags.py)",
}
