"""The long promises of every method: it runs on a keyframe with its authors' sizes, and its probe is above random weights."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import olivine.labelgen
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import open_dataset
from olivine.readers.frame import Frame
from olivine.readers.index import write_index
from olivine.study.config import load_study
from olivine.study.rows import read_rows
from olivine.study.run import run_study
from olivine.train.loop import pretrain
from olivine.train.metrics_log import MetricsLog
from olivine.train.settings import load_settings

pytestmark = pytest.mark.soak

UOV_PHRASES = Path(olivine.labelgen.__file__).parent / "data" / "uov.json"

PRESETS = ("ppkt", "slidr", "st-slidr", "seal", "uov-tmp", "distil")


@pytest.fixture(scope="module")
def two_scans(nuscenes_keyframe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Frame]]:
    """A keyframe, and one of the same rig half a second later: the same things, seen a metre further on."""
    root = tmp_path_factory.mktemp("two-scans") / "raw"
    shutil.copytree(nuscenes_keyframe, root)
    (first,) = open_dataset("nuscenes", root).frames()
    points = np.fromfile(root / first.point_file, np.float32).reshape(-1, first.point_columns)
    step = np.eye(4)
    step[0, 3] = 1.0  # x of the LiDAR's frame
    rng = np.random.default_rng(0)
    points[:, :3] += rng.normal(0, 0.01, (len(points), 3)).astype(np.float32) - step[:3, 3].astype(np.float32)
    name = f"{first.point_file}.later.bin"
    (root / name).parent.chmod(0o755)
    points.tofile(root / name)
    later = replace(
        first,
        token=f"{first.token[:-1]}-",
        timestamp=first.timestamp + 500_000,
        point_file=name,
        pose=first.pose @ step,
        point_label_file=None,
    )
    return root, [replace(first, point_label_file=None), later]


def _build(scans: tuple[Path, list[Frame]], labels: LabelSettings, settings: PairSettings, folder: Path) -> Path:
    root, frames = scans
    index = write_index(folder / "labels" / "frames", frames, dataset="nuscenes", version="v1.0-mini", root=root)
    assert not generate_labels(index, folder / "labels", labels).failures
    summary = build_pairs(open_store(folder / "labels"), folder / "pairs", settings, split=frames[0].split)
    assert not summary.failures
    return folder / "pairs"


@pytest.fixture(scope="module")
def slic_shards(two_scans: tuple[Path, list[Frame]], keyframe_camseg: Path, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """Both scans with SLIC segments and clusters."""
    labels = LabelSettings("import", camseg=keyframe_camseg, segments="slic")
    settings = PairSettings(segments=True, clusters=1, workers=1)
    return _build(two_scans, labels, settings, tmp_path_factory.mktemp("slic"))


@pytest.fixture(scope="module")
def region_shards(two_scans: tuple[Path, list[Frame]], tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """Both scans with regions of CLIP's width, each of a phrase of UOV's; nobody's features: blocks of the images."""
    folder = tmp_path_factory.mktemp("regions")
    rng = np.random.default_rng(0)
    made = folder / "made"
    made.mkdir()
    (made / "regions.json").write_text('{"model": "random"}')
    (made / "text.json").write_text(json.dumps({"model": "random", "phrases": json.loads(UOV_PHRASES.read_text())}))
    text = rng.standard_normal((175, 768))
    np.save(made / "text.npy", text)
    for camera in two_scans[1][0].cameras:
        phrase = rng.choice(175, 48, replace=False)
        rows, columns = np.arange(camera.height) * 6 // camera.height, np.arange(camera.width) * 8 // camera.width
        path = made / f"{camera.key}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((1 + rows[:, None] * 8 + columns).astype(np.uint8)).save(path)
        np.savez(path.with_suffix(".npz"), phrase=phrase, feature=text[phrase] + rng.standard_normal((48, 768)))
    settings = PairSettings(segments=True, regions=True, images=False, workers=1)
    return _build(two_scans, LabelSettings("regions", regions=made, segments="regions"), settings, folder)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_keyframe_passes_with_the_authors_sizes(
    preset: str, slic_shards: Path, region_shards: Path, tmp_path: Path
) -> None:
    """SR-UNet34, ResNet-50 with random weights, images of the preset's size; UOV's 175 phrases of 768 numbers."""
    shards = region_shards if preset == "uov-tmp" else slic_shards
    changes = ["image.weights=random", "run.steps=1", "run.batch=2", "run.group=2", "data.workers=0"]
    settings = load_settings(preset, [*changes, "run.accelerator=cpu", f"data.shards={shards}"])
    pretrain(settings, tmp_path / "run")
    (row,) = MetricsLog.read(tmp_path / "run" / "steps.csv")
    terms = {name: float(value) for name, value in row.items() if name.startswith("loss_") and value}
    assert terms and all(math.isfinite(value) for value in terms.values())
    print(preset, {name: round(value, 3) for name, value in terms.items()}, f"{float(row['memory_mib']):.0f} MiB")
    if preset == "seal":
        assert set(terms) == {"loss_superpixel", "loss_temporal", "loss_p2s"}
        assert float(row["frames_paired"]) == 1 and float(row["objects"]) > 5
    if preset == "uov-tmp":
        assert set(terms) == {"loss_region", "loss_text"}


def test_every_methods_probe_is_above_random_weights_by_three_seeds(tmp_path: Path) -> None:
    """The small study of methods as a user makes it, with the commands that it names."""
    study = load_study("study-methods-small")
    command = study.ground.replace("olivine ", f"{sys.executable} -m olivine.cli ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    summary = run_study(replace(study, shards=str(tmp_path / study.shards)), tmp_path / "study")
    assert not summary.failures
    print(summary.table.read_text(), (tmp_path / "study" / "cost.md").read_text(), sep="\n")
    scores: dict[str, list[float]] = {}
    for row in read_rows([tmp_path / "study"]):
        if row.stage == "probe":
            scores.setdefault(row.row, []).append(row.result["mean_iou"])
    assert all(len(values) == 3 for values in scores.values())
    random = np.mean(scores.pop("random"))
    assert {name: np.mean(values) for name, values in scores.items() if np.mean(values) <= random} == {}
