"""--check finds what is wrong, --describe tells what is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from olivine.common import OlivineError
from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.check import bytes_by_array, check_shards, describe_shards
from olivine.pairs.manifest import merge_manifest, read_entry, read_manifest, write_entry
from olivine.pairs.settings import PairSettings
from olivine.pairs.shard_writer import file_table
from olivine.pairs.shards import open_shards


@pytest.fixture
def shards(make_store: Callable[..., LabelStore], tmp_path: Path) -> Path:
    build_pairs(make_store({"a": 3, "b": 2}), tmp_path / "pairs", PairSettings(), split="train")
    return tmp_path / "pairs"


def test_a_whole_set_passes(shards: Path) -> None:
    summary = check_shards(shards)
    assert (summary.shards, summary.frames, summary.failures, summary.strangers) == (2, 5, [], [])
    assert summary.pairs == open_shards(shards).class_count.sum() and summary.complete


def test_a_flipped_bit_and_a_missing_file_are_named_and_the_rest_is_still_checked(shards: Path) -> None:
    path = shards / "shard-00000.zarr" / "points" / "c" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    summary = check_shards(shards)
    assert [failure.unit for failure in summary.failures] == ["shard-00000.zarr/points/c/0/0/0"]
    assert "SHA-256" in summary.failures[0].reason and summary.frames == 2
    path.unlink()
    (failure,) = check_shards(shards).failures
    assert "No such file" in failure.reason


def _forge(shards: Path, array: str, change: Callable[[np.ndarray], None]) -> None:
    """Change values, and enter them so that every digest matches: what no digest can find."""
    folder = shards / "shard-00000.zarr"
    stored = zarr.open_group(str(folder), mode="a")[array]
    values = stored[...]
    change(values)
    stored[...] = values
    entry = read_entry(shards, 0)
    assert entry is not None
    write_entry(shards, {**entry, "files": file_table(folder)})
    manifest = read_manifest(shards)
    merge_manifest(shards, manifest["recipe"], {"labels": {}}, manifest["planned_frames"])


def _set(place: tuple[int | slice, ...], value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[place] = value

    return change


@pytest.mark.parametrize(
    ("array", "place", "value", "said"),
    [
        ("points", (1, 0, 0), np.nan, "not finite"),
        ("points", (1, 0, 0), 1e38, "m away"),
        ("point_label", (1, 0), 9, "point label 9 of 2"),
        ("pair_point", (1, 0), 10_000, "beyond the cloud"),
        ("pair_tag", (1, 0, 0), 7, "beyond the frame's"),
        ("pair_tag", (1, 0, 1), 3, "class_count"),
        ("pair_uv", (1, 0, 0), 500, "outside its image"),
        ("pair_uv", (1, slice(None), 0), 30.5, "calibration"),
        ("pair_density", (1, 0), 0, "density"),
        ("image", (1, 0), 0, "CAM_FRONT"),
        ("class_count", (1, 2), 77, "class_count"),
    ],
)
def test_values_that_cannot_be_are_named_with_the_frame(
    shards: Path, array: str, place: tuple[int | slice, ...], value: float, said: str
) -> None:
    _forge(shards, array, _set(place, value))
    summary = check_shards(shards)
    assert any(said in failure.reason and "frame 1 (a-token-0001)" in failure.unit for failure in summary.failures)


def test_strangers_and_missing_frames_are_told(shards: Path) -> None:
    (shards / ".shard-00009.zarr.partial-host-1-abc").mkdir()
    shutil.copytree(shards / "shard-00000.zarr", shards / "shard-00007.zarr")
    assert check_shards(shards).strangers == [".shard-00009.zarr.partial-host-1-abc", "shard-00007.zarr"]


def test_a_description_needs_the_manifest_alone(shards: Path) -> None:
    described = describe_shards(shards)
    for shard in shards.glob("*.zarr"):
        shutil.rmtree(shard)
    assert describe_shards(shards) == described
    assert (described.scenes, described.shards, described.frames) == (2, 2, "5 of 5")
    assert described.image_size == ["64x36"] and described.point_classes == ["vehicle", "ground"]
    assert sum(float(share.split()[0]) for share in described.classes.values()) == pytest.approx(100, abs=0.05)


def test_bytes_by_array_are_the_folders(shards: Path) -> None:
    sizes = bytes_by_array(open_shards(shards))
    on_disk = sum(f.stat().st_size for f in shards.glob("*.zarr/**/*") if f.is_file())
    assert sum(sizes.values()) == on_disk and sizes["image"] > 0


def test_a_folder_without_shards_says_so(tmp_path: Path) -> None:
    for function in (check_shards, describe_shards):
        with pytest.raises(OlivineError, match="Run olivine build-pairs first"):
            function(tmp_path)
