"""Where the tests find the real sample data, and small synthetic ones as shards."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background has Ctrl-C ignored, and our children would
    # inherit that: the tests of Ctrl-C would wait for something that cannot come.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real sample data not here: no {path}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data."""
    return _folder("")


@pytest.fixture(scope="session")
def nuscenes_keyframe() -> Path:
    """One real nuScenes keyframe, as v1.0-mini."""
    return _folder("nuscenes-keyframe")


@pytest.fixture(scope="session")
def keyframe_camseg() -> Path:
    """A label map for each image of the keyframe."""
    return _folder("nuscenes-keyframe-camseg")


@pytest.fixture(scope="session")
def kitti_frame() -> Path:
    """One real KITTI odometry frame."""
    return _folder("kitti-odometry-frame")


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
    return make_world(tmp_path_factory.mktemp("nuscenes"), "nuscenes", 10, 1)


@pytest.fixture(scope="session")
def kitti_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("kitti"), "semantickitti", 2, 2)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    from olivine.common.settings import settings_to_plain
    from olivine.train.checkpoint import save_checkpoint
    from olivine.train.settings import load_settings
    from olivine.train.setup import backbone_arguments, seeded_backbone

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
