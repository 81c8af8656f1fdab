"""The versions of transformers and numpy that olivine says it runs with: an environment of each pair, and what runs in it.

An environment is a folder with the packages that differ; a .pth file shows it all others of the environment that the tests
run in. pip takes the newest version of each range, so this also tells when a new one breaks something.

    OLIVINE_PYTHONS=/opt/venv312/bin/python:/opt/venv313/bin/python make soak

runs the same, and the tests of readers, pairs and training, with other interpreters too: of environments that hold
olivine's dependencies and pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.soak

TRANSFORMERS = {"transformers4": "transformers>=4.57,<5", "transformers5": "transformers>=5,<6"}
NUMPY = {"numpy1": "numpy>=1.26,<2", "numpy2": "numpy>=2,<3"}
NAMES = [
    f"{t}-{n}" for t in TRANSFORMERS for n in NUMPY
]  # transformers 4 first: it writes the weights as the hub has them
SHORT = (
    *("labelgen/test_mm_grounded_sam2.py", "labelgen/test_grounded_sam_hq.py", "labelgen/test_sam3.py"),
    *(
        "labelgen/test_sam_clip.py",
        "labelgen/test_same_output.py",
        "labelgen/test_scores.py",
        "readers/test_nuscenes.py",
    ),
)
# What other Pythons run besides: readers and pairs whole, training where it meets other packages.
PLAIN = (
    *("readers", "pairs", "train/test_step.py", "train/test_pixel_features.py", "train/test_waffle_iron.py"),
    *("train/test_loader.py", "train/test_processes.py", "train/test_vit_encoders.py", "downstream/test_finetune.py"),
)
LABELERS = ("grounded-sam", "hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2", "sam-clip", "sam-siglip")


def pythons_of(variable: str) -> dict[str, Path]:
    """The interpreters that a variable of the environment names, by their versions, as ``python3.13``."""
    code = "import sys; print(f'python{sys.version_info[0]}.{sys.version_info[1]}')"
    paths = [Path(path) for path in os.environ.get(variable, "").split(os.pathsep) if path]
    return {subprocess.check_output([path, "-c", code], text=True).strip(): path for path in paths}


PYTHONS = pythons_of("OLIVINE_PYTHONS")


class Stack:
    """The environments made so far, and a folder that they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "path").mkdir()
        (folder / "path" / "olivine").symlink_to(ROOT)

    def python(self, name: str) -> Path:
        """An environment's interpreter; pip makes what is not there yet."""
        place = self.folder / name
        if name in PYTHONS:
            place.mkdir(exist_ok=True)
            return PYTHONS[name]
        python = place / "venv" / "bin" / "python"
        if not place.exists():
            venv.create(place / "venv")
            packages = next((place / "venv" / "lib").glob("python*/site-packages"))
            (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
            wanted = [TRANSFORMERS[name.split("-")[0]], NUMPY[name.split("-")[1]]]
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--upgrade", *wanted]
            done = subprocess.run([*map(str, pip)], capture_output=True, text=True, check=False)
            (place / "pip.txt").write_text(done.stderr)
            if done.returncode:
                (place / "failed").touch()
        if (place / "failed").exists():
            pytest.skip(f"pip cannot install {name}: {(place / 'pip.txt').read_text().strip().splitlines()[-1]}")
        return python

    def run(self, name: str, *arguments: object, cwd: Path) -> str:
        """What an environment's interpreter prints; it must end well."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))},
            "PYTHONPATH": str(self.folder / "path"), "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1",
            "OLIVINE_STACK": str(self.folder), "OLIVINE_STACK_NAME": name,
        }  # fmt: skip
        command = [str(self.python(name)), "-W", "ignore", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {arguments}\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def tests(self, name: str, *files: str) -> str:
        """Run test files in an environment."""
        return self.run(name, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not soak", *files, cwd=ROOT / "tests")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack"))


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_has_the_versions_that_its_name_says(stack: Stack, name: str, tmp_path: Path) -> None:
    code = (
        "import numpy, torch, transformers; print(f'transformers{transformers.__version__}-numpy{numpy.__version__}')"
    )
    found = stack.run(name, "-c", code, cwd=tmp_path).strip()
    for part, wanted in zip(found.split("-"), name.split("-"), strict=True):
        assert part.split(".")[0] == wanted, found
    print(found)


@pytest.mark.parametrize("name", PYTHONS)
def test_other_pythons_pass_the_tests_of_readers_pairs_and_training(stack: Stack, name: str) -> None:
    assert " passed" in stack.tests(name, *PLAIN)


@pytest.mark.parametrize("name", [*NAMES, *PYTHONS])
def test_the_labelers_pass_their_tests(stack: Stack, name: str) -> None:
    printed = stack.tests(name, *SHORT)
    assert ("has no SAM 3" in printed) == name.startswith("transformers4"), printed[-1000:]


@pytest.mark.parametrize("name", [*NAMES, *PYTHONS])
def test_the_pipeline_runs(stack: Stack, name: str, tmp_path: Path) -> None:
    def olivine(*arguments: object) -> None:
        stack.run(name, "-m", "olivine", *arguments, cwd=tmp_path)

    olivine("synth", "--scenes", 10, "--frames", 1, "--image-scale", 0.05, "--workers", 1)
    olivine("labelgen", "--dataset", "nuscenes")
    olivine("build-pairs", "--workers", 1)
    olivine("pretrain", "--set", "run.steps=4", "--set", "method.pairs=256", "--set", "method.scr=false")
    olivine("probe", "--no-augment", "--epochs", 1)
    olivine("report")
    assert (tmp_path / "report" / "index.html").stat().st_size > 100_000
    olivine("doctor", "--quick")


def test_all_environments_draw_the_same_maps_from_the_same_weights(stack: Stack) -> None:
    for name in (*NAMES, *PYTHONS):
        stack.tests(name, "labelgen/stack_maps.py")
    for labeler in LABELERS:
        maps = {name: np.load(stack.folder / name / f"{labeler}.npy") for name in (*NAMES, *PYTHONS)}
        first = maps[NAMES[0]]
        for name, other in maps.items():
            # Other versions add in another order: a mask's border may move by a pixel.
            differing = np.count_nonzero(first != other)
            assert differing < 1e-3 * np.count_nonzero(first), f"{labeler}: {name} differs at {differing} pixels"
