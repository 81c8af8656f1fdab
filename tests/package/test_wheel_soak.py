"""What a pip user gets: the wheel in an environment of its own, outside the repository, through the whole pipeline.

The environment has no package of ours but the wheel. olivine's dependencies are not downloaded again: a .pth file shows it
the packages of the environment that the tests run in (.pth files in there are not read, so an editable olivine is not seen).
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.soak


def run(*command: object, cwd: Path) -> str:
    """What a command prints; it must end well, and see nothing of this checkout."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made of the sdist, and the sdist, made of what git knows."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source", cwd=folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def environment(place: Path, built: tuple[Path, Path]) -> Path:
    """The interpreter of a new environment that has the wheel."""
    venv.create(place)
    python = place / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", built[0]]
    run(*pip, cwd=place)
    where = run(python, "-c", "import olivine; print(olivine.__file__)", cwd=place).strip()
    assert Path(where).is_relative_to(packages)
    return python


@pytest.fixture(scope="module")
def python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment that has the wheel."""
    return environment(tmp_path_factory.mktemp("environment") / "venv", built)


def test_the_wheel_runs_the_whole_pipeline_outside_the_repository(python: Path, tmp_path: Path) -> None:
    olivine = python.with_name("olivine")
    short = ["--set", "run.steps=4", "--set", "method.pairs=256", "--set", "method.scr=false"]
    run(olivine, "synth", "--scenes", 10, "--frames", 1, "--image-scale", 0.05, "--workers", 1, cwd=tmp_path)
    run(olivine, "labelgen", "--dataset", "nuscenes", cwd=tmp_path)
    run(olivine, "build-pairs", "--workers", 1, cwd=tmp_path)
    run(olivine, "pretrain", *short, cwd=tmp_path)
    run(olivine, "probe", "--no-augment", "--epochs", 1, cwd=tmp_path)
    found = json.loads(run(olivine, "report", "--json", cwd=tmp_path))
    assert found["ok"] and found["frames"] == 2
    assert (tmp_path / "report/index.html").stat().st_size > 100_000
    assert run(python, "-m", "olivine", "--version", cwd=tmp_path).startswith("olivine 0.")


def test_the_viewer_is_served_from_the_wheel_with_its_extra(built, nuscenes_world, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", built)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    done = subprocess.run([*map(str, pip), f"{built[0]}[view]"], cwd=tmp_path, capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    # What viser wants and what olivine wants are both there: of this environment, or of the one that it sees.
    code = "import viser, rich, importlib.metadata as m; print(m.version('rich'), *m.requires('viser'), sep='\\n')"
    rich, *wanted = run(python, "-c", code, cwd=tmp_path).splitlines()
    for line in wanted:
        asked = Requirement(line)
        assert asked.name != "rich" or asked.specifier.contains(rich), (line, rich)
    command = [str(python.with_name("olivine")), "view", "--shards", str(nuscenes_world.pairs / "val"), "--port", "0"]
    surroundings = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=surroundings, stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        said = next(line for line in viewer.stdout if "http://" in line)
        with urllib.request.urlopen(re.search(r"http://[\d.:]+", said)[0]) as answer:  # type: ignore[index]
            page = answer.read()
        viewer.send_signal(signal.SIGINT)
        viewer.communicate()
    assert b"<html" in page and len(page) > 10_000
    assert viewer.returncode in (0, 1)


def test_tests_of_the_sdist_run_against_the_wheel(built: tuple[Path, Path], python: Path, tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    chosen = ["tests/common", "tests/package/test_help.py"]
    run(python, "-m", "pytest", "-m", "not soak", "-p", "no:cacheprovider", *chosen, cwd=source)
    for name in ("docs/api.md", "Makefile", "constraints.txt", "cluster/cluster.mk", "tests/conftest.py"):
        assert (source / name).is_file(), name
