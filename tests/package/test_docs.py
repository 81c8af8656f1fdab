"""The pages: what they tell to run exists, every link leads somewhere, every page is in the navigation.

That the commands run is shown by the soak test at the end; the site itself is built and read again by ``make docs``.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from olivine.cli import app
from olivine.pairs.shards import open_shards

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs" / "site"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def block_lines(text: str) -> list[str]:
    """Commands in code blocks, without what follows as a comment."""
    lines = (line for line in text.splitlines() if re.match(r"\s{4,}(\S+ )*olivine [a-z]", line))
    return [re.split(r"\s#|\s{2,}", line[line.index("olivine ") :])[0] for line in lines]


def olivine_lines(text: str) -> list[str]:
    """Commands in code blocks and in the text, without what follows as a comment."""
    return block_lines(text) + [
        re.split(r"\s#|\s{3,}", line)[0] for line in re.findall(r"`(olivine [a-z][^`]*)`", text)
    ]


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


# -- the commands run: `make soak` ---------------------------------------------------------------------------------------

LINES = sorted({line.strip() for page in PAGES for line in block_lines(page.read_text())})

# What is added to a command so that it takes seconds here; what writes much or needs long is checked by --dry-run.
SHORTER = {
    "synth": "--dry-run --out data/new",
    "features": "--dry-run",
    "study": "--dry-run",
    "detect": "--dry-run --root objects --set any_voxels=true",
    "pretrain": "--set run.steps=4 --set data.workers=0",
    "probe": "--epochs 1",
    "finetune": "--epochs 1",
    "check-data": "--frames 2",
    "figures": "--per-class 20",
    "labelgen": "--overwrite",
    "build-pairs": "--overwrite --workers 1",
}
# Those of its uses that the command refuses with what is added.
AS_THEY_ARE = ("--verify", "--preview", "--check", "--describe", "--print-config", "--dry-run")
# What stands for the pages' own names, and for what is for large data sets.
STANDS_FOR = {
    r"runs/(paper|voxelnet|no-scr)": "runs/cpu",
    r"--camseg (DIR|world/truth/class/00)": "--camseg data/nuscenes/truth/class",
    r"\[--classes FILE\]": "",
    r"\bDIR\b": "data/pairs/nuscenes/val",
    r"data/pairs/nuscenes/test": "data/pairs/nuscenes/val",
    r"data/pairs/voted": "data/pairs/nuscenes",
    r"samples/CAM_FRONT/NAME.jpg": "samples/CAM_FRONT/{image}",
    r"--labeler grounded-sam": "--labeler oracle",
    r"--verify": "--verify --scores",
    r"--seed k": "--seed 0",
    r"--point 1234": "--point 123",
    r"--fraction [15]\b": "--fraction 25",
    r"--frame scene-0103": "--frame 0",
    r"--checkpoint runs/one\b": "--checkpoint runs/cpu",
}
# Commands that do not run here, and what they need.
NEEDS = {
    "weights fetch": "the network (tests/labelgen/test_weights.py)",
    "view": "somebody who looks, until Ctrl-C (tests/report/test_view.py)",
    "bench": "minutes (tests/package/test_bench.py)",
    "import-bag": "a recording (tests/readers/test_bags.py)",
    "init-rig|check-data --dataset rig|build-pairs --check data/pairs/rig": "a recording (tests/readers/test_rig.py)",
    "import-weights": "another program's weights (tests/downstream/test_weights.py)",
    "labelgen --labeler sam-clip": "published weights (tests/labelgen/test_sam_clip.py)",
    "labelgen --labeler regions": "another program's regions (tests/labelgen/test_regions.py)",
    "labelgen --view": "published weights (tests/labelgen/test_views.py)",
    "build-pairs --consolidate --also": "labels of another view (tests/pairs/test_consolidate.py)",
    "build-pairs --regions": "label maps with regions (tests/pairs/test_regions.py)",
    "detect --(predict|evaluate)": "a trained detector, or its files (tests/downstream/detection)",
    "export --(layout openpcdet|for second)": "a run of --config voxelnet (tests/downstream/test_weights.py)",
    "export .*--layout openpcdet": "the same",
    "pretrain .*data/pairs/kitti/train": "a second data set (tests/train/test_mixture.py)",
    "finetune .*data/study-weak/voted": "a finished study",
    "study --merge": "finished studies (tests/study/test_study.py)",
    "study --config study-(weak|teachers|tuning|full)": "hours (make study-weak-ground, and so on)",
}


@pytest.fixture(scope="module")
def ground(olivine: Callable[..., Any], nuscenes_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the three commands have run on ten scenes of a frame, and what else the pages name."""
    folder = tmp_path_factory.mktemp("ground")
    (folder / "data").mkdir()
    shutil.copytree(nuscenes_world.root, folder / "data/nuscenes")
    olivine("labelgen", "--scores", cwd=folder, check=True)
    olivine("build-pairs", "--workers", 1, cwd=folder, check=True)
    olivine("pretrain", *SHORTER["pretrain"].split(), cwd=folder, check=True)
    olivine("finetune", "--epochs", 1, cwd=folder, check=True)
    olivine(
        "synth", "--format", "kitti-object", "--scenes", 4, "--frames", 1, "--out", "objects", cwd=folder, check=True
    )
    for study in ("data/study", "data/study-quarter", "data/study-scr", "streets"):
        (folder / study).mkdir()
        for name, there in {"nuscenes": "nuscenes", "labels": "labels/nuscenes", "pairs": "pairs/nuscenes"}.items():
            (folder / study / name).symlink_to(Path(*[".."] * (study.count("/") + 1), "data", there))
    points = open_shards(folder / "data/pairs/nuscenes/val").points(0)
    head = "VERSION .7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    head += f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    (folder / "scan.pcd").write_bytes(head.encode() + points.tobytes())
    return folder


def as_run_here(line: str, image: str) -> list[str]:
    """A command's words, with what makes it short."""
    for said, instead in STANDS_FOR.items():
        line = re.sub(said, instead.format(image=image), line)
    words = shlex.split(line)[1:]
    more = SHORTER.get(words[0], "").split() if not set(AS_THEY_ARE) & set(words) else []
    if words[0] == "pretrain" and more:
        # Another preset's network is large; a run of other settings has another name.
        more = ["--dry-run"] if "--config" in words and "cpu" not in words else [*more, "--name", "short"]
    if words[0] in ("labelgen", "build-pairs") and "--out" not in words and more:
        more += ["--out", "data/new"]
    if words[0] in ("probe", "finetune") and "--out" not in words:
        more += ["--out", "runs/new"]
    return [*words, *more]


@pytest.mark.soak
@pytest.mark.parametrize("line", [line for line in LINES if not re.match(rf"olivine ({'|'.join(NEEDS)})\b", line)])
def test_every_command_on_the_pages_runs_or_is_marked_with_what_it_needs(line: str, ground, olivine, tmp_path) -> None:
    place = tmp_path / "place"
    shutil.copytree(ground, place, symlinks=True)
    image = next((place / "data/nuscenes/samples/CAM_FRONT").iterdir()).name
    olivine(*as_run_here(line, image), cwd=place, check=True)


def test_what_is_marked_is_on_a_page() -> None:
    for pattern in NEEDS:
        assert any(re.match(f"olivine ({pattern})", line) for line in LINES), pattern
    for pattern in STANDS_FOR:
        assert any(re.search(pattern, line) for line in LINES), pattern


def test_the_check_of_the_site_finds_links_that_lead_nowhere_and_what_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("build_site", SITE / "build.py")
    assert found is not None and found.loader is not None
    build = importlib.util.module_from_spec(found)
    found.loader.exec_module(build)
    (tmp_path / "a.css").touch()
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="a.css"><script src="https://x.example/y.js"></script><h1 id="top">A</h1>'
        '<a href="b.html#there">b</a><a href="b.html#gone">b</a><a href="c.html">c</a><a href="#top">up</a>'
        '<a href="https://z.example/">z</a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="there">B</h2><a href="index.html">a</a>')
    wrong, outside = build.check_site(tmp_path)
    assert wrong == [
        "index.html loads https://x.example/y.js",
        "index.html: b.html#gone: that page has no such heading",
        "index.html: c.html leads nowhere",
    ]
    assert outside == {"https://z.example/": {"index.html"}}
