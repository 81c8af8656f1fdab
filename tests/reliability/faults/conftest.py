"""A machine with faults: commands as child processes, on a file system of a chosen size, with a fault at a chosen moment.

A child is forked from a process that has imported everything, so that a case takes a second and thousands are possible.
What it does is the whole command, errors and exit code included. Where the file system cannot be mounted (no root), the
cases that need it are left out.
"""

import contextlib
import csv
import faulthandler
import hashlib
import importlib
import importlib.util
import io
import mmap
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

Before = Callable[[], object]
HANGS = 120
"""Seconds after which a command is taken for hung."""

STUDY = """name: tiny
shards: data/pairs/nuscenes
preset: cpu
seeds: [0]
set: {run.steps: 2, method.pairs: 64, method.scr: false}
probe: {epochs: 1}
finetune: {fraction: 100, epochs: 1}
rows:
  random: null
  whole: {}
tables:
  - {title: T, stage: probe, rows: [random, whole], against: random}
"""
SHORT = ("--set", "run.steps=3", "--set", "method.pairs=64", "--set", "run.checkpoint_epochs=1")
TINY_DETECTOR = tuple(
    word
    for setting in (
        *(
            "preset=pretraining",
            "range_m=[0,-12.8,-5,25.6,12.8,3]",
            "classes=[Car]",
            "batch=1",
            "score=0.005",
            "workers=0",
        ),
        *("plane_layers=[0,0]", "plane_channels=[4,4]", "plane_up_channels=[4,4]"),
    )
    for word in ("--set", setting)
)
STAGES: dict[str, tuple[str, ...]] = {
    "synth": ("synth", "--scenes", "1", "--frames", "1", "--image-scale", "0.05", "--workers", "1", "--out", "out"),
    "labelgen": ("labelgen", "--segments", "slic", "--out", "out"),
    "score-labels": ("score-labels", "--out", "out"),
    "build-pairs": ("build-pairs", "--workers", "1", "--segments", "--out", "out"),
    "pretrain": ("pretrain", "--config", "cpu", *SHORT, "--set", "method.scr=false", "--out", "out"),
    **{
        f"pretrain-{name}": ("pretrain", "--config", "cpu", *SHORT[:2], "--set", f"method.name={name}", "--out", "out")
        for name in ("slidr", "st-slidr", "seal", "distil")
    },
    "pretrain-uov-tmp": (
        *("pretrain", "--config", "cpu", *SHORT[:2], "--set", "method.name=uov-tmp"),
        *("--shards", "data/pairs-regions/train", "--out", "out"),
    ),
    "features": ("features", "--config", "cpu", "--out", "out"),
    "probe": ("probe", "--checkpoint", "runs/cpu", "--epochs", "1", "--out", "out"),
    "finetune": ("finetune", "--checkpoint", "runs/cpu", "--epochs", "2", "--out", "out"),
    "predict": ("predict", "--checkpoint", "runs/cpu/finetune-100", "--out", "out"),
    "study": ("study", "--config", "study.yaml", "--out", "out"),
    "export": ("export", "--checkpoint", "runs/cpu", "--out", "out/backbone.pt"),
    "import-weights": ("import-weights", "data/backbone.pt", "--config", "cpu", "--out", "out/last.pt"),
    "report": ("report", "--run", "runs/cpu", "--frames", "1", "--out", "out"),
    "figures": ("figures", "--checkpoint", "runs/cpu", "--per-class", "5", "--out", "out"),
    "embed": (
        "embed",
        "data/scan.bin",
        "--columns",
        "x,y,z,intensity,ring",
        "--checkpoint",
        "runs/cpu",
        "--out",
        "out",
    ),
    "check-labels": ("check-labels", "--shards", "data/pairs/nuscenes/train", "--out", "out"),
    "import-bag": ("import-bag", "data/drive", "--out", "out", "--overwrite"),
    "detect": ("detect", "--random", "--root", "data/objects", "--epochs", "1", *TINY_DETECTOR, "--out", "out"),
}
"""Every command that writes, in a working folder with ``data``, ``runs`` and ``study.yaml``; it writes to ``out``."""

METHODS = ("slidr", "st-slidr", "seal", "distil", "uov-tmp")
GROUPS: dict[str, tuple[str, ...]] = {
    # Pre-training by other methods differs in nothing that these faults meet, but for one of them.
    "every": tuple(s for s in STAGES if s not in {f"pretrain-{m}" for m in METHODS[1:]}),
    "resumed": (
        *("labelgen", "build-pairs", "pretrain", *(f"pretrain-{m}" for m in METHODS), "finetune", "probe", "study"),
        *("features", "detect", "figures", "embed", "check-labels", "import-bag"),
    ),
}
"""Which stages a test is run with; see :func:`pytest_generate_tests`."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    line = (
        "stages(*quick, of='every'): run with each stage of a group of GROUPS; with those not named in make soak only"
    )
    config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked ``stages`` gets each ``stage`` of the group.

    One that takes ``depth`` too is run with "few" cases of the quick stages, and in make soak with "all" of every stage.
    """
    mark = metafunc.definition.get_closest_marker("stages")
    if mark is None:
        return
    of = GROUPS[mark.kwargs.get("of", "every")]
    if "depth" in metafunc.fixturenames:
        deep = [pytest.param("all", stage, marks=pytest.mark.soak) for stage in of]
        metafunc.parametrize(("depth", "stage"), [*(("few", stage) for stage in mark.args), *deep])
    else:
        rest = [pytest.param(stage, marks=pytest.mark.soak) for stage in of if stage not in mark.args]
        metafunc.parametrize("stage", [*mark.args, *rest])


REGIONS = (
    ("labelgen", "--segments", "regions", "--out", "data/labels-regions"),
    ("build-pairs", "--labels", "data/labels-regions", "--workers", "1", "--regions", "--out", "data/pairs-regions"),
)
"""What pretrain-uov-tmp reads besides."""
OBJECTS = (
    "synth",
    "--format",
    "kitti-object",
    "--scenes",
    "2",
    "--frames",
    "2",
    "--image-scale",
    "0.2",
    "--workers",
    "1",
)
"""What detect reads, but for the folder."""
_GROWING = ("steps.csv", "epochs.csv", "last.pt", "best.pt", "manifest.json", "study.json")
_GROWING += ("table.csv", "table.md", "table.png")  # of a study: what is finished so far
"""Files that are written more than once in a run: each time whole, and at its end the same."""


@dataclass(frozen=True)
class Done:
    """What became of a command; ``code`` is negative for a signal, None where it hung."""

    code: int | None
    output: str
    errors: str
    seconds: float

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.output + self.errors

    def is_one_line(self) -> bool:
        """Whether it failed as promised: one line of error, or a list of units that failed, and no traceback."""
        # Of a command that takes long there are also lines of progress.
        lines = [
            line for line in self.errors.splitlines() if line.strip() and not re.search(r": [\d,]+/[\d,]+, ", line)
        ]
        told = len(lines) == 1 and lines[0].startswith("olivine: ") if lines else " failed:" in self.output
        return self.code in (1, 2) and told and "Traceback" not in self.said and "a bug in olivine" not in self.said


class Machine:
    """Runs commands, with faults.

    Args:
        root: a folder, in a test of a full disk a small file system; cases run in ``root/case``.
        world: what they read.
    """

    def __init__(self, root: Path, world: Path) -> None:
        self.root, self.case, self.world = root, root / "case", world
        self.said = world.with_name("said")
        self._count = mmap.mmap(-1, 8)  # shared with the children
        self.stages = STAGES

    def clean(self) -> None:
        """An empty working folder with its inputs."""
        for path in self.root.iterdir():
            shutil.rmtree(path)
        self.case.mkdir()
        for name in ("data", "runs", "study.yaml"):
            (self.case / name).symlink_to(self.world / name)

    def start(self, arguments: tuple[str, ...], before: Before = lambda: None) -> tuple[int, Path, float]:
        """Start a command; for :meth:`wait`."""
        said = self.said / f"{time.monotonic_ns()}"
        said.mkdir(parents=True)
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._child(arguments, before, said)
        return pid, said, begun

    def _child(self, arguments: tuple[str, ...], before: Before, said: Path) -> None:
        code = 99
        try:
            os.setsid()
            os.chdir(self.case)
            for number, name in ((1, "output"), (2, "errors")):
                os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            faulthandler.dump_traceback_later(HANGS - 5, file=2)  # where it hung
            sys.argv = ["olivine", *arguments]
            before()
            from olivine import cli

            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            # Whatever happens, the child does not go on as the test that started it.
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(code)

    def wait(self, started: tuple[int, Path, float], seconds: float = HANGS) -> Done:
        """What became of a command; one that goes on for so many seconds is stopped and has no exit code."""
        pid, said, begun = started
        hung = False
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - begun > seconds:
                hung = True
                os.killpg(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                break
            time.sleep(0.005)
        output, errors = ((said / name).read_text() if (said / name).exists() else "" for name in ("output", "errors"))
        shutil.rmtree(said)
        return Done(None if hung else os.waitstatus_to_exitcode(ended[1]), output, errors, time.monotonic() - begun)

    def run(self, stage: str, before: Before = lambda: None, *extra: str, seconds: float = HANGS) -> Done:
        """A command of :data:`STAGES` from beginning to end."""
        return self.wait(self.start((*STAGES[stage], *extra), before), seconds)

    def kill(self, stage: str, after: float) -> bool:
        """Start a command and kill it, and all its children, after some seconds; whether it was still running."""
        pid, said, _ = self.start(STAGES[stage])
        time.sleep(after)
        alive = os.waitpid(pid, os.WNOHANG)[0] == 0
        if alive:
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(said)
        return alive

    def at_change(self, number: int, what: int | None) -> Before:
        """A fault at a command's ``number``-th change of the file system below :attr:`root`, from 1.

        Changes are: a file opened for writing, a folder made, a rename, a sync, a file removed.

        Args:
            what: an ``errno``, with which this change and every one after it fails (but removing); None: SIGKILL.
        """

        def before() -> None:
            self._count[:] = bytes(8)
            count = 0
            root, written = os.fspath(self.root), os.O_WRONLY | os.O_RDWR | os.O_CREAT

            def meet(path: object, removal: bool = False) -> None:
                nonlocal count
                if not isinstance(path, (str, bytes, os.PathLike)):
                    return
                if not os.path.abspath(os.fsdecode(path)).startswith(root) or (removal and what is not None):
                    return
                count += 1
                self._count[:] = count.to_bytes(8, "little")
                if count < number:
                    return
                if what is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(what, os.strerror(what or 0), os.fsdecode(path))

            def hook(event: str, arguments: tuple) -> None:
                opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & written
                if opened or event in ("os.mkdir", "os.rename", "os.link"):
                    meet(arguments[0])
                elif event in ("os.remove", "os.rmdir"):
                    meet(arguments[0], removal=True)

            fsync = os.fsync

            def synced(handle: int) -> None:
                meet(os.readlink(f"/proc/self/fd/{handle}"))
                fsync(handle)

            os.fsync = synced
            sys.addaudithook(hook)

        return before

    @property
    def changes(self) -> int:
        """How many changes the last command made that :meth:`at_change` watched."""
        return int.from_bytes(self._count[:], "little")

    def tree(self) -> dict[str, str]:
        """SHA-256 of every file that a command left, but for times, host names and logs."""
        found = {}
        for path in sorted(self.case.rglob("*")):
            name = path.relative_to(self.case).as_posix()
            parts = Path(name).parts
            if (
                path.is_symlink()
                or not path.is_file()
                or path.suffix == ".lock"
                or parts[-1] in ("times.csv", "cost.md")
            ):
                continue
            if any(part == "tensorboard" or part.endswith(".logs") for part in parts):
                continue
            data = path.read_bytes()
            if parts[-1] in ("steps.csv", "epochs.csv"):
                rows = list(csv.DictReader(io.StringIO(data.decode())))
                kept = [{k: v for k, v in row.items() if k not in ("seconds", "waited", "memory_mib")} for row in rows]
                data = repr(kept).encode()
            found[name] = hashlib.sha256(data).hexdigest()
        return found

    def leftovers(self) -> list[str]:
        """What is there under a half-written name."""
        return [path.name for path in self.root.rglob("*.partial-*")]

    def reference(self, stage: str) -> tuple[dict[str, str], float]:
        """What the command leaves where nothing goes wrong, and its seconds."""
        self.clean()
        done = self.run(stage)
        assert done.code == 0, done.said
        return self.tree(), done.seconds

    def wrong(self, expected: dict[str, str]) -> list[str]:
        """Files that have their final name and not the content that they have at the end."""
        different = [name for name, found in self.tree().items() if expected.get(name) != found]
        # Hidden folders hold the parts of what is unfinished; older numbered checkpoints are gone at the end.
        return [
            n
            for n in different
            if Path(n).name not in _GROWING
            and not any(p[0] == "." for p in Path(n).parts)
            and not (Path(n).match("epoch-*.pt") and n not in expected)
        ]


def _everything() -> None:
    """Import what the commands import when they run."""
    import olivine

    names = [module.name for module in pkgutil.walk_packages(olivine.__path__, "olivine.")]
    ours = [name for name in names if name.split(".")[1] not in ("tests", "benchmarks") and "ray" not in name]
    others = [
        "nuscenes.nuscenes", "zarr.codecs", "matplotlib.figure", "matplotlib.backends.backend_agg", "scipy.stats", "lightning_fabric",
        "tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer", "skimage.segmentation",
    ]  # fmt: skip
    for name in (*ours, *others):
        with contextlib.suppress(ImportError):  # an optional package of theirs is not installed
            importlib.import_module(name)
    # OpenBLAS takes its buffer at the first product, and tries for ever where there is no memory for it.
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))


@pytest.fixture(scope="session")
def world(request, tmp_path_factory) -> Path:
    """Everything that a command reads, made by the commands themselves: two scenes of two frames, images of 80 x 45."""
    import torch

    torch.set_num_threads(1)
    _everything()
    folder = tmp_path_factory.mktemp("faults") / "world"
    folder.mkdir()
    maker = Machine(folder.parent, folder)
    maker.case = folder
    (folder / "study.yaml").write_text(STUDY)
    tiny = ("--scenes", "2", "--frames", "2", "--image-scale", "0.05", "--workers", "1")
    for arguments in [
        ("synth", *tiny),
        ("labelgen", "--segments", "slic"),
        ("build-pairs", "--workers", "1", "--segments", "--clusters", "1"),
        *((*REGIONS, (*OBJECTS, "--out", "data/objects")) if request.config.option.markexpr == "soak" else ()),
        ("pretrain", *SHORT, "--set", "method.scr=false"),
        ("finetune", "--epochs", "1"),
        ("export", "--out", "data/backbone.pt"),
    ]:
        done = maker.wait(maker.start(arguments))
        assert done.code == 0, (arguments, done.said)
    shutil.copy(sorted((folder / "data/nuscenes/samples/LIDAR_TOP").iterdir())[0], folder / "data/scan.bin")
    with contextlib.suppress(ImportError):  # rosbags is an optional package; a test of import-bag then fails
        _write_bag(folder / "data/drive")
    return folder


def _write_bag(path: Path) -> None:
    """The short drive of the tests of import-bag, as an .mcap file in a folder."""
    spec = importlib.util.spec_from_file_location("bags", Path(__file__).parents[2] / "readers" / "test_bags.py")
    assert spec is not None and spec.loader is not None
    bags = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bags)
    bags.write(path, bags.Drive(), "mcap")


@pytest.fixture
def machine(world, tmp_path) -> Machine:
    """On a folder of the test's own."""
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine", world)


class Disk(Machine):
    """A machine on a file system of its own, whose size can be changed."""

    def resize(self, options: str) -> None:
        """Mount options of tmpfs, such as ``size=64k``."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.root)], check=True, capture_output=True)

    @property
    def used(self) -> tuple[int, int]:
        """(bytes, inodes) in use."""
        state = os.statvfs(self.root)
        return (state.f_blocks - state.f_bfree) * state.f_frsize, state.f_files - state.f_ffree


@pytest.fixture
def disk(world, tmp_path) -> Iterator[Disk]:
    """A machine on a small file system (tmpfs)."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield Disk(place, world)
    subprocess.run(["umount", "-l", str(place)], check=False)
