"""What the tests of methods share: streets with segments, quick settings of a preset, a run that is stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch

from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import index_dataset
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings, load_settings

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


def make_streets(folder: Path) -> None:
    write_dataset(SyntheticSettings(scenes=2, frames=2, image_scale=0.1, workers=1), folder / "raw")
    _build(folder / "raw", folder, "slic", PairSettings(segments=True, clusters=1))


@pytest.fixture(scope="session")
def streets(once: Callable[..., Path]) -> Path:
    """Synthetic streets with SLIC segments and clusters of scans, each frame in a shard of its own."""
    return once("streets", make_streets) / "pairs"


@pytest.fixture(scope="session")
def streets_with_regions(once: Callable[..., Path], streets: Path) -> Path:
    """The same frames with the oracle's regions, and no images."""
    settings = PairSettings(segments=True, regions=True, images=False)
    make = partial(_build, streets.parent / "raw", segments="regions", settings=settings)
    return once("streets-with-regions", make) / "pairs"


def _build(raw: Path, folder: Path, segments: str, settings: PairSettings) -> None:
    labels = folder / "labels"
    index, _ = index_dataset(labels / "frames", "nuscenes", raw, None)
    generate_labels(index, labels, LabelSettings("oracle", segments=segments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("olivine.pairs.unit.FRAMES_PER_SHARD", 1)
        summary = build_pairs(open_store(labels), folder / "pairs", settings, split="train")
    assert not summary.failures


@pytest.fixture(scope="session")
def quick() -> Callable[..., PretrainSettings]:
    """``quick("slidr", shards, "run.steps=3", …)``: a preset with a small network, small images and two frames a step."""

    def make(preset: str, shards: Path, *changes: str) -> PretrainSettings:
        small = ["backbone.name=srunet-small", "image.encoder=small", "image.height=56", "image.width=104"]
        small += ["run.batch=2", "run.group=2", "run.steps=12", "run.accelerator=cpu", "data.workers=0"]
        small += ["voxels.size_m=0.8", "augment.crop_min_pairs=50", "augment.cuboid_min_pairs=50"]
        return load_settings(preset, [*small, f"data.shards={shards}", *changes])

    return make


@pytest.fixture
def resumes_to_the_bit(sigterm_in: Callable[[int], AbstractContextManager[None]]) -> Callable[..., None]:
    """``resumes_to_the_bit(settings, folder, then=…)``: a run stopped in its second step ends as one that was not.

    ``then`` are other settings for the rest of it, such as of loader workers.
    """

    def check(settings: PretrainSettings, folder: Path, then: PretrainSettings | None = None) -> None:
        pretrain(settings, folder / "whole")
        with sigterm_in(1):
            assert pretrain(settings, folder / "stopped").interrupted
        torch.manual_seed(99)  # another process would have another state
        assert pretrain(then or settings, folder / "stopped").resumed_from == 2
        whole, stopped = (load_checkpoint(folder / name) for name in ("whole", "stopped"))
        for part in ("backbone_state", "method_state"):
            assert whole[part].keys() == stopped[part].keys()
            assert all(torch.equal(value, stopped[part][name]) for name, value in whole[part].items())

    return check
