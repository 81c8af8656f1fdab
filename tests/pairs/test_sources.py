"""Shards of clouds and images that were exported again under the same names are not taken for those of now."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards

MakeStore = Callable[..., LabelStore]
SETTINGS = PairSettings()


def move_points(path: Path) -> None:
    """As deskewing would: another content of the same size."""
    points = np.fromfile(path, np.float32).reshape(-1, 4)
    points[len(points) // 2, 0] += 1
    points.tofile(path)
    os.utime(path, ns=(0, 0))


def paths(store: LabelStore, scene: str) -> tuple[Path, Path]:
    """The cloud and the first image of a scene's first frame."""
    frame = next(f for f in store.index().frames() if f.scene == scene)
    return frame.root / frame.point_file, frame.image_path(frame.cameras[0])


@pytest.mark.parametrize("what", ["cloud", "image"])
def test_a_cloud_or_image_exported_again_is_refused_until_its_shard_is_built_again(
    make_store: MakeStore, tmp_path: Path, what: str
) -> None:
    store, out = make_store({"a": 1, "b": 2}), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    cloud, image = paths(store, "b")
    if what == "cloud":
        move_points(cloud)
    else:
        shutil.copy(paths(store, "a")[1], image)
    name = (cloud if what == "cloud" else image).name
    with pytest.raises(OlivineError, match=rf"1 of 2 shards, that of b the first.*{name} has changed.*--overwrite"):
        build_pairs(store, out, SETTINGS, split="train")
    build_pairs(store, out, SETTINGS, split="train", overwrite=True)
    assert build_pairs(store, out, SETTINGS, split="train").frames_kept == 3
    if what == "cloud":
        assert np.array_equal(open_shards(out)[1].points, np.fromfile(cloud, np.float32).reshape(-1, 4))


def test_what_a_shard_does_not_hold_may_change(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 1}), tmp_path / "out"
    build_pairs(store, out, PairSettings(images=False), split="train")
    _, image = paths(store, "a")
    image.write_bytes(image.read_bytes() + b"\0")
    assert build_pairs(store, out, PairSettings(images=False), split="train").frames_kept == 1


def test_a_vote_is_of_the_clouds_before_and_after_too(make_store: MakeStore, tmp_path: Path) -> None:
    store, out, voted = make_store({"a": 66}, points=20), tmp_path / "out", PairSettings(consolidate=1, images=False)
    build_pairs(store, out, voted, split="train")
    frames = list(store.index().frames())
    move_points(frames[63].root / frames[63].point_file)
    with pytest.raises(OlivineError, match="2 of 2 shards"):
        build_pairs(store, out, voted, split="train")


@pytest.mark.parametrize("case", ["a copy with other times", "the data are gone", "a set from before there were notes"])
def test_shards_are_kept_where_nothing_is_known_against_them(make_store: MakeStore, tmp_path: Path, case: str) -> None:
    store, out = make_store({"a": 2}), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    digest = json.loads((out / "manifest.json").read_text())["digest"]
    files = [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]
    if case == "the data are gone":
        shutil.rmtree(tmp_path / "raw")
    for path in files if case != "the data are gone" else ():
        os.utime(path, ns=(0, 10**9))
    if case == "a set from before there were notes":
        (out / "units" / "shard-00000.sources").unlink()
        move_points(paths(store, "a")[0])
    for _ in range(2):
        assert build_pairs(store, out, SETTINGS, split="train").frames_kept == 2
    assert json.loads((out / "manifest.json").read_text())["digest"] == digest
    if case == "a copy with other times":  # noted, so that the next run reads none of them
        noted = json.loads((out / "units" / "shard-00000.sources").read_text())
        assert {time for _, time, _ in noted.values()} == {10**9}


def test_the_digest_of_a_set_knows_no_times(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    digests = []
    for number in range(2):
        for path in (tmp_path / "raw").rglob("*.bin"):
            os.utime(path, ns=(0, number * 10**9))
        build_pairs(store, tmp_path / str(number), SETTINGS, split="train")
        digests.append(json.loads((tmp_path / str(number) / "manifest.json").read_text())["digest"])
    assert digests[0] == digests[1]
