"""What the tests of methods share: streets with segments, and quick settings of a preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import index_dataset
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset
from olivine.train.settings import PretrainSettings, load_settings


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic streets with SLIC segments and clusters of scans, each frame in a shard of its own."""
    folder = tmp_path_factory.mktemp("streets")
    write_dataset(SyntheticSettings(scenes=2, frames=2, image_scale=0.1, workers=1), folder / "raw")
    _build(folder / "raw", folder / "labels", folder / "pairs", "slic", PairSettings(segments=True, clusters=1))
    return folder / "pairs"


@pytest.fixture(scope="session")
def streets_with_regions(streets: Path) -> Path:
    """The same frames with the oracle's regions, and no images."""
    raw, folder = streets.parent / "raw", streets.parent / "regions"
    _build(raw, folder / "labels", folder / "pairs", "regions", PairSettings(segments=True, regions=True, images=False))
    return folder / "pairs"


def _build(raw: Path, labels: Path, shards: Path, segments: str, settings: PairSettings) -> None:
    index, _ = index_dataset(labels / "frames", "nuscenes", raw, None)
    generate_labels(index, labels, LabelSettings("oracle", segments=segments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("olivine.pairs.unit.FRAMES_PER_SHARD", 1)
        summary = build_pairs(open_store(labels), shards, settings, split="train")
    assert not summary.failures


@pytest.fixture(scope="session")
def quick() -> Callable[..., PretrainSettings]:
    """``quick("slidr", shards, "run.steps=3", …)``: a preset with a small network, small images and two frames a step."""

    def make(preset: str, shards: Path, *changes: str) -> PretrainSettings:
        small = ["backbone.name=srunet-small", "image.encoder=small", "image.height=56", "image.width=104"]
        small += ["run.batch=2", "run.group=2", "run.steps=12", "run.accelerator=cpu", "data.workers=0"]
        small += ["voxels.size_m=0.4", "augment.crop_min_pairs=50", "augment.cuboid_min_pairs=50"]
        return load_settings(preset, [*small, f"data.shards={shards}", *changes])

    return make
