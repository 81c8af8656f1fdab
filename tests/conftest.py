"""The data the tests run on: sample frames, synthetic and real, and small synthetic data sets as shards.

A test that takes ``nuscenes_keyframe`` (or anything made of it) runs on a synthetic frame, and again on the real one
where that is at hand. ``@pytest.mark.frames("real")`` is for tests of the real frame's own figures,
``@pytest.mark.frames("synthetic")`` for slow ones that one frame is enough for.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background has Ctrl-C ignored, and our children would
    # inherit that: the tests of Ctrl-C would wait for something that cannot come.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = Path(os.environ.get("OLIVINE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data").absolute()
NO_REAL = f"no real sample data in {REAL}"
FRAMES = {"nuscenes_keyframe": "nuscenes-keyframe", "kitti_frame": "kitti-odometry-frame"}
"""The folder of each fixture that is a frame."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "frames(source, ...): run on these sample frames only, synthetic or real")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("frames")
    for name in FRAMES.keys() & set(metafunc.fixturenames):
        absent = [] if (REAL / FRAMES[name]).is_dir() else [pytest.mark.skip(reason=NO_REAL)]
        every = {"synthetic": pytest.param("synthetic"), "real": pytest.param("real", marks=absent)}
        sources = marker.args if marker else tuple(every)
        metafunc.parametrize(name, [every[s] for s in sources], indirect=True, scope="session")


#: Begun first, so that no process is left with a long file at the end.
LONG = (
    "methods/test_every_method", "gpu/test_pretend_gpu", "cuda/test_interpreter", "labelgen/test_grounded_sam", "faults/test_machine", "faults/test_full_disk",
    "downstream/test_finetune", "pairs/test_build", "package/test_outputs", "pipeline/test_sample_frames",
    "labelgen/test_parity", "train/test_loop", "train/test_processes", "downstream/test_weak", "readers/test_checks",
    "readers/test_nuscenes", "downstream/test_afi", "study/test_study", "package/test_cli", "labelgen/test_segments",
    "methods/test_uov_tmp", "labelgen/test_same_output", "downstream/test_weights", "report/test_page",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONG)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        parts = [f"{count} ({reason})" for reason, count in reasons.most_common()]
        terminalreporter.write_line(f"Cases left out: {'; '.join(parts)}")


def make_keyframe(folder: Path) -> None:
    """A synthetic nuScenes keyframe and its label maps, with what the real folders hold and nothing else."""
    from olivine.synthetic.kinds import CLASSES
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    # Of the first 40 seeds the street most like the real one: 75 boxes, and 89 % of its pairs have no label (69, 91 %).
    write_dataset(SyntheticSettings(scenes=1, frames=1, image_scale=1.0, seed=31, workers=1), folder / "world")
    keyframe, camseg = folder / "nuscenes-keyframe", folder / "nuscenes-keyframe-camseg"
    for part in ("samples", "maps", "v1.0-mini"):
        shutil.move(folder / "world" / part, keyframe / part)
    (keyframe / "v1.0-mini" / "lidarseg.json").unlink()
    table = keyframe / "v1.0-mini" / "scene.json"
    (scene,) = json.loads(table.read_text())
    table.write_text(json.dumps([scene | {"name": "scene-0103"}]))  # for validation, as the real one's
    truth = folder / "world" / "truth" / "class"
    for path in truth.rglob("*.png"):
        with Image.open(path) as image:
            label = np.asarray(image)
        # Only what an annotated box may hold is labelled in the real frame.
        objects = Image.fromarray(np.where(label < CLASSES.index("road"), label, 0).astype(np.uint8))
        objects.putpalette(np.random.default_rng(0).integers(0, 256, 3 * len(CLASSES), np.uint8).tobytes())
        target = camseg / path.relative_to(truth)
        target.parent.mkdir(parents=True, exist_ok=True)
        objects.save(target)
    shutil.rmtree(folder / "world")


def make_kitti_frame(folder: Path) -> None:
    """A synthetic frame of KITTI odometry, its points cut to the camera's view like the real one's."""
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    write_dataset(
        SyntheticSettings(format="semantickitti", scenes=1, frames=1, image_scale=1.0, workers=1), folder / "world"
    )
    frame = folder / "kitti-odometry-frame"
    shutil.move(folder / "world" / "poses", frame / "poses")
    shutil.move(folder / "world" / "sequences", frame / "sequences")
    shutil.rmtree(frame / "sequences" / "00" / "labels")
    (frame / "sequences" / "00" / "poses.txt").unlink()
    cloud = frame / "sequences" / "00" / "velodyne" / "000000.bin"
    points = np.fromfile(cloud, np.float32).reshape(-1, 4)
    points[np.abs(points[:, 1]) < 0.9 * points[:, 0]].tofile(cloud)  # 84 degrees, the camera sees 81
    shutil.rmtree(folder / "world")


def made_once(name: str, make: Callable[[Path], object], temporary: pytest.TempPathFactory) -> Path:
    """A folder that ``make`` fills, once in a run: by whichever process needs it first."""
    base = temporary.getbasetemp()
    # Each worker of pytest-xdist has a folder of its own inside the run's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once" / name
    finished = folder.with_suffix(".finished")  # made in place: what is made may hold its own path
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once("streets", make)``: a folder that ``make`` fills, once in a run. Processes share it: nobody changes it."""
    return lambda name, make: made_once(name, make, tmp_path_factory)


def synthetic_frame(name: str, temporary: pytest.TempPathFactory) -> Path:
    """The synthetic folder of a fixture of FRAMES."""
    make = {"nuscenes_keyframe": make_keyframe, "kitti_frame": make_kitti_frame}[name]
    return made_once(name, make, temporary) / FRAMES[name]


def _frame(request: pytest.FixtureRequest, temporary: pytest.TempPathFactory) -> Path:
    name = request.fixturename
    assert name is not None
    return REAL / FRAMES[name] if request.param == "real" else synthetic_frame(name, temporary)


@pytest.fixture(scope="session")
def nuscenes_keyframe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One nuScenes keyframe as v1.0-mini: six images of 1600x900 pixels and 34,688 points."""
    return _frame(request, tmp_path_factory)


@pytest.fixture(scope="session")
def keyframe_camseg(nuscenes_keyframe: Path) -> Path:
    """A label map for each image of the keyframe: its objects, by the number of their prompt."""
    return nuscenes_keyframe.with_name("nuscenes-keyframe-camseg")


@pytest.fixture(scope="session")
def kitti_frame(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One frame of KITTI odometry, sequence 00, with the points that its camera sees."""
    return _frame(request, tmp_path_factory)


@pytest.fixture(scope="session")
def published_shapes() -> dict[str, list[int]]:
    """The shape of every tensor in OLIVINE's checkpoint of SR-UNet34, by name, as read from the real file."""
    path = REAL / "srunet34_state_dict.json"
    if not path.is_file():
        pytest.skip(NO_REAL)
    shapes: dict[str, list[int]] = json.loads(path.read_text())
    return shapes


@pytest.fixture(scope="session")
def srunet34_shapes() -> dict[str, list[int]]:
    """The same table by the public code's layers, spelt out."""
    shapes: dict[str, list[int]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = [channels]
        shapes[f"{name}.bn.num_batches_tracked"] = []

    def blocks(name: str, count: int, inputs: int, channels: int) -> None:
        for k in range(count):
            first = inputs if k == 0 else channels
            shapes[f"{name}.{k}.conv1.kernel"] = [27, first, channels]
            shapes[f"{name}.{k}.conv2.kernel"] = [27, channels, channels]
            norm(f"{name}.{k}.norm1", channels)
            norm(f"{name}.{k}.norm2", channels)
            if first != channels:
                shapes[f"{name}.{k}.downsample.0.kernel"] = [first, channels]
                norm(f"{name}.{k}.downsample.1", channels)

    shapes["conv0p1s1.kernel"] = [27, 1, 32]
    norm("bn0", 32)
    down = ("conv1p1s2", 32, 32, 2), ("conv2p2s2", 32, 64, 3), ("conv3p4s2", 64, 128, 4), ("conv4p8s2", 128, 256, 6)
    for level, (name, inputs, channels, count) in enumerate(down, 1):
        shapes[f"{name}.kernel"] = [8, inputs, inputs]
        norm(f"bn{level}", inputs)
        blocks(f"block{level}", count, inputs, channels)
    # The last number is the width of the feature map that is concatenated on the way up.
    up = ("4p16s2", 256, 256, 128), ("5p8s2", 256, 128, 64), ("6p4s2", 128, 96, 32), ("7p2s2", 96, 96, 32)
    for level, (name, inputs, channels, skip) in enumerate(up, 4):
        shapes[f"convtr{name}.kernel"] = [8, inputs, channels]
        norm(f"bntr{level}", channels)
        blocks(f"block{level + 1}", 2, channels + skip, channels)
    for head in ("final", "final_class_level"):
        shapes |= {f"{head}.kernel": [96, 64], f"{head}.bias": [1, 64]}
    return shapes


@pytest.fixture(scope="session")
def olivine() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``olivine("labelgen", "--out", "x", cwd=folder)``: run a command there; a traceback is always a failure.

    It runs in this process, which has imported what a new one would take seconds to import; ``process=True`` is as a
    user runs it. With ``check=True`` it must end well.
    """
    from olivine import cli

    built = functools.cache(typer.main.get_command)  # some fifty commands, read from their functions at every call

    def here(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        out, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(cwd)
            patch.setattr("sys.argv", command)
            patch.setattr("typer.main.get_command", built)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                cli.main()
        return subprocess.CompletedProcess(command, int(ended.value.code or 0), out.getvalue(), errors.getvalue())

    def run(
        *arguments: object, cwd: Path, process: bool = False, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if process:
            command = [sys.executable, "-m", "olivine.cli", *words]
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        else:
            done = here(["olivine", *words], cwd)
        assert "Traceback" not in done.stderr, done.stderr
        assert not check or done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@dataclass(frozen=True)
class World:
    """A synthetic data set and its shards, ``pairs/train`` and ``pairs/val``."""

    root: Path
    pairs: Path

    @property
    def splits(self) -> tuple[Path, Path]:
        return self.pairs / "train", self.pairs / "val"


def make_world(folder: Path, name: str, scenes: int, frames: int, *, read_as: str | None = None) -> World:
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.settings import PairSettings
    from olivine.readers import index_dataset
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    settings = SyntheticSettings(format=name, scenes=scenes, frames=frames, image_scale=0.05, workers=1)
    write_dataset(settings, folder / name)
    index, _ = index_dataset(folder / "labels" / "frames", read_as or name, folder / name, None)
    generate_labels(index, folder / "labels", LabelSettings("oracle"))
    for split in ("train", "val"):
        summary = build_pairs(open_store(folder / "labels"), folder / "pairs" / split, PairSettings(), split=split)
        assert not summary.failures
    return World(folder / name, folder / "pairs")


@pytest.fixture(scope="session")
def build_world() -> Callable[..., World]:
    """``build_world(folder, format, scenes, frames, read_as="kitti")``."""
    return make_world


@pytest.fixture(scope="session")
def nuscenes_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The ten scenes of v1.0-mini, a frame each: eight to train on, two to score on."""
    folder = made_once("nuscenes-world", lambda f: make_world(f, "nuscenes", 10, 1), tmp_path_factory)
    return World(folder / "nuscenes", folder / "pairs")


@pytest.fixture(scope="session")
def kitti_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = made_once("kitti-world", lambda f: make_world(f, "semantickitti", 2, 2), tmp_path_factory)
    return World(folder / "semantickitti", folder / "pairs")


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    from olivine.common.settings import settings_to_plain
    from olivine.train.build import backbone_arguments, seeded_backbone
    from olivine.train.checkpoint import save_checkpoint
    from olivine.train.settings import load_settings

    """``make_checkpoint("voxels.size_m=1", seed=3)``: a checkpoint of random weights on coarse voxels."""

    def make(*changes: str, seed: int = 7, **content: object) -> Path:
        settings = load_settings("cpu", ["voxels.size_m=0.8", *changes])
        network = seeded_backbone(settings, seed)
        plain = {"settings": settings_to_plain(settings), "backbone": backbone_arguments(settings)}
        path = tmp_path_factory.mktemp("run") / "last.pt"
        plain |= {"kind": "pretrain", "step": 40, "steps": 40, "backbone_state": network.state_dict()}
        save_checkpoint(path, {**plain, **content})
        return path

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()
