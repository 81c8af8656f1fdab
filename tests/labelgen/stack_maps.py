"""Label maps of one set of weights, to be compared between environments; run by ``tests/package/test_stack_soak.py``.

``$OLIVINE_STACK`` is a folder that the environments share: the first one writes the weights there, and each writes its maps.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from olivine.labelgen.run import generate_labels
from olivine.labelgen.segments import SamSegments
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store

PHRASES = [("sedan", "car", "car"), ("asphalt", "road", "road"), ("oak", "vegetation", "vegetation")]
NETWORKS = ("grounded-sam", "hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2", "sam-clip", "sam-siglip")


@pytest.fixture(scope="module")
def weights(tiny_networks, tiny_folders, mm_folders, high_quality, clip_folders, sure_sam) -> Path:
    folder = Path(os.environ["OLIVINE_STACK"]) / "weights"
    if not folder.exists():
        part = folder.with_name("part")
        shutil.copytree(tiny_networks.sam_checkpoint.parent, part / "original")
        shutil.copytree(tiny_folders.detector.parent, part / "hf")
        shutil.copytree(mm_folders, part / "mm")
        shutil.copytree(high_quality, part / "hq")
        shutil.copytree(clip_folders, part / "clip")
        shutil.copyfile(sure_sam, part / "sure.pth")
        rows = [{"phrase": p, "category": c, "class": k} for p, c, k in PHRASES]
        (part / "phrases.json").write_text(json.dumps(rows))
        part.rename(folder)
    return folder


def _settings(name: str, weights: Path) -> LabelSettings:
    files: dict[str, dict[str, object]] = {
        "grounded-sam": {
            "detector_config": weights / "original" / "small.py",
            "detector_checkpoint": weights / "original" / "detector.pth",
            "sam_checkpoint": weights / "original" / "sam.pth",
            "text_encoder": weights / "original" / "bert",
        },
        "hf-grounded-sam": {
            "detector_checkpoint": weights / "hf" / "detector",
            "sam_checkpoint": weights / "hf" / "sam",
        },
        "grounded-sam-hq": {"detector_checkpoint": weights / "hf" / "detector", "sam_checkpoint": weights / "hq"},
        "mm-grounded-sam2": {
            "detector_checkpoint": weights / "mm" / "detector",
            "sam_checkpoint": weights / "mm" / "sam",
        },
        "sam-clip": {
            "sam_checkpoint": weights / "sure.pth",
            "clip_checkpoint": weights / "clip" / "clip",
            "phrases": weights / "phrases.json",
            "segments": "regions",
        },
    }
    files["sam-siglip"] = {**files["sam-clip"], "clip_checkpoint": weights / "clip" / "siglip"}
    shared: dict[str, object] = {"short_side": 160, "long_side": 320, "device": "cpu", "precision": "float32"}
    labeler = "sam-clip" if name == "sam-siglip" else name
    return LabelSettings(labeler, batch_size=2, **shared, **files[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_draw(name: str, weights: Path, make_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamSegments, "points_per_side", 3)
    world = make_world(1, 2, {"CAM_FRONT": (320, 192)})
    summary = generate_labels(world.index, tmp_path / "labels", _settings(name, weights))
    assert (summary.images, summary.failures) == (2, [])
    store = open_store(tmp_path / "labels")
    maps = [store.label_map(camera) for frame in world.index.frames() for camera in frame.cameras]
    assert all(label.any() for label in maps)
    np.save(Path(os.environ["OLIVINE_STACK"]) / os.environ["OLIVINE_STACK_NAME"] / f"{name}.npy", np.stack(maps))
