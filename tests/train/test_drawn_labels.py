"""The count of right labels among drawn pairs: the pairs of a real run, and the labels by hand."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers import dataset_class
from olivine.train.loop import pretrain
from olivine.train.sampling import MODES
from olivine.train.settings import PretrainSettings, load_settings


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "drawn_labels.py"
    spec = importlib.util.spec_from_file_location("drawn_labels", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["drawn_labels"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(nuscenes_world) -> ShardSet:
    return open_shards(nuscenes_world.pairs / "train")


def settings(shards: ShardSet, *changes: str) -> PretrainSettings:
    """Two contrast groups a step; crops that keep few pairs, and a range that leaves many out."""
    quick = ["run.batch=4", "run.group=2", "run.accelerator=cpu", "image.height=24", "image.width=40"]
    quick += ["method.scr=false", "method.pairs=60", "augment.crop_min_pairs=40", "augment.cuboid_min_pairs=20"]
    quick += ["voxels.size_m=1", "voxels.range_m=[-20, -20, -5, 20, 20, 3]"]
    return load_settings("cpu", [*quick, f"data.shards={shards.path}", *changes])


@pytest.mark.parametrize("mode", ["dcas", "density"])
def test_the_drawn_pairs_are_those_of_the_run(program, shards: ShardSet, mode: str, tmp_path: Path) -> None:
    chosen = settings(shards, "run.steps=3", f"method.mode={mode}")
    pretrain(chosen, tmp_path / "run")
    with open(tmp_path / "run" / "steps.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    found = program.count(shards, chosen, 3)
    drawn = found.modes[mode].by_class[:, 0]
    assert drawn.sum() == 3 * 2 * 60  # every group has more pairs than that
    share = [[float(row[f"share/{name}"]) for name in ("none", *shards.classes)] for row in rows]
    np.testing.assert_allclose(drawn / drawn.sum(), np.mean(share, 0), atol=1e-6)
    assert found.inside == sum(float(row["pairs"]) for row in rows) < found.augmented < found.stored


def test_right_labels_by_class_and_distance_are_those_counted_by_hand(program, shards: ShardSet) -> None:
    """Nothing augmented and every pair drawn: then the shards' own columns say all."""
    still = ["rotate=false", "flip_axes=false", "cuboid=0", "crop=false", "flip_image=0"]
    chosen = settings(shards, "method.pairs=1000000", *(f"augment.{change}" for change in still))
    found = program.count(shards, chosen)
    assert (found.steps, found.frames) == (2, 8)
    prompts = {name: number for number, name in enumerate(shards.classes, 1)}
    by_class, by_distance = np.zeros((len(prompts) + 1, 2), int), np.zeros((4, 2), int)
    for frame in (shards[i] for i in range(len(shards))):
        for point, weak in zip(frame.pair_point.tolist(), frame.pair_label.tolist()):
            x, y, z, _ = frame.points[point].tolist()
            if not (-20 <= x < 20 and -20 <= y < 20 and -5 <= z < 3):
                continue
            number = int(frame.point_label[point])
            prompt = dataset_class("nuscenes").prompt_of(shards.point_classes[number - 1]) if number else None
            right = prompts.get(prompt or "", 0) == weak
            distance = (x * x + y * y) ** 0.5
            place = sum(distance >= edge for edge in (10, 20, 40))
            by_class[weak] += (1, right)
            by_distance[place] += (1, right)
    for mode in MODES:
        np.testing.assert_array_equal(found.modes[mode].by_class, by_class)
        np.testing.assert_array_equal(found.modes[mode].by_distance, by_distance)
    assert 0 < by_class[:, 1].sum() < by_class[:, 0].sum() == found.inside
    share, right = program.figures(by_class, slice(None))
    assert share == 100 and right == pytest.approx(100 * by_class[:, 1].sum() / by_class[:, 0].sum())
