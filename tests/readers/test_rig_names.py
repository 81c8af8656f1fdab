"""A recording whose folders and files have names such as 00, 2024_05_01, on, 1, 2, 10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from olivine.common import OlivineError
from olivine.readers import open_dataset
from olivine.readers.recording import quoted
from olivine.readers.recording_files import in_order
from olivine.readers.recording_start import start_description

UNUSUAL = ("00", "0", "2024_05_01", "2024-05-01", "2024-13-45", "on", "No", "null", "~", "1e3", "0x1f", "1.5", "-")


def record(scene: Path, camera: str, names: Sequence[str]) -> None:
    """Clouds and images of these names; the points of the k-th cloud have x = k + 1."""
    for folder in ("lidar", camera):
        (scene / folder).mkdir(parents=True)
    for k, name in enumerate(names):
        np.full((50, 4), k + 1, "<f4").tofile(scene / "lidar" / f"{name}.bin")
        Image.new("RGB", (64, 48)).save(scene / camera / f"{name}.png")


def fill_in(root: Path) -> None:
    """The values that init-rig asks for: two of every camera, and whose KITTI poses are."""
    text = (root / "rig.yaml").read_text().replace("of: FILL IN", "of: vehicle")
    text = text.replace("intrinsic: FILL IN", "intrinsic: [50, 50, 32, 24]")
    text = text.replace("lidar_to_camera: FILL IN", "lidar_to_camera: [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]")
    (root / "rig.yaml").write_text(text)


@pytest.mark.parametrize(
    "scenes", [("00", "01"), ("2024-05-01", "2024-05-02"), ("2024_05_01", "2024_05_02"), ("off", "on")]
)
@pytest.mark.parametrize("camera", ["0", "front"])
def test_a_start_writes_names_so_that_they_are_read_as_they_are(
    scenes: Sequence[str], camera: str, tmp_path: Path
) -> None:
    for scene in scenes:
        record(tmp_path / scene, camera, ["000000", "000001"])
    assert start_description(tmp_path).scenes == scenes
    fill_in(tmp_path)
    frames = open_dataset("rig", tmp_path).frames()
    assert {frame.scene for frame in frames} == {*scenes} and frames[0].cameras[0].name == camera


@pytest.mark.parametrize("name", [*UNUSUAL, "day-1", "cams/front", "*.png", 'a "b"', "."])
def test_a_quoted_name_is_read_back(name: str) -> None:
    assert yaml.safe_load(f"{quoted(name)}: train") == {name: "train"}
    assert quoted("day-1") == "day-1"


@pytest.mark.parametrize(("written", "read"), [("00", "0"), ("on", "True")])
def test_a_name_that_is_not_read_as_text_is_said_with_what_to_do(written: str, read: str, tmp_path: Path) -> None:
    for scene in (written, "other"):
        record(tmp_path / scene, "front", ["000000"])
    start_description(tmp_path)
    fill_in(tmp_path)
    path = tmp_path / "rig.yaml"
    path.write_text(path.read_text().replace(f'"{written}"', written))
    with pytest.raises(
        OlivineError, match=rf'scenes has the name {read}, which YAML does not read as text.*quotes.*"00"'
    ):
        open_dataset("rig", tmp_path)


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """12 clouds 0, 1, … 11; the vehicle drives 1 m from each to the next."""
    record(tmp_path, "front", [str(k) for k in range(12)])
    (tmp_path / "times.txt").write_text("".join(f"{0.1 * k:.1f}\n" for k in range(12)))
    (tmp_path / "poses.txt").write_text("".join(f"1 0 0 {k} 0 1 0 0 0 0 1 0\n" for k in range(12)))
    start_description(tmp_path)
    assert yaml.safe_load((tmp_path / "rig.yaml").read_text())["lidars"]["lidar"]["times"] == "times.txt"
    fill_in(tmp_path)
    frames = open_dataset("rig", tmp_path).frames()
    assert [frame.timestamp for frame in frames] == [100_000 * k for k in range(12)]
    assert [frame.points()[0, 0] for frame in frames] == [k + 1 for k in range(12)]
    assert [frame.pose[0, 3] for frame in frames] == list(range(12))
    # A table in the order 0, 1, 10, 11, 2 of a plain listing is not taken for one in this order.
    lines = (tmp_path / "times.txt").read_text().splitlines()
    (tmp_path / "times.txt").write_text("\n".join(lines[k] for k in sorted(range(12), key=str)))
    with pytest.raises(OlivineError, match=r"times\.txt: the times go back at line 5.*in the order 0\.bin … 11\.bin"):
        open_dataset("rig", tmp_path).frames()


def test_the_last_of_ten_recordings_is_for_validation(tmp_path: Path) -> None:
    for k in range(1, 11):
        record(tmp_path / f"day-{k}", "front", ["000000"])
    start_description(tmp_path)
    scenes = yaml.safe_load((tmp_path / "rig.yaml").read_text())["scenes"]
    assert list(scenes)[:3] == ["day-1", "day-2", "day-3"] and scenes["day-10"] == "val"


def test_the_order_of_names() -> None:
    names = ["a/10.bin", "a/2.bin", "a/1.bin", "a/01.bin", "b/0.bin", "a/x2_10.bin", "a/x2_9.bin", "a/x.bin"]
    wanted = ["a/01.bin", "a/1.bin", "a/2.bin", "a/10.bin", "a/x2_9.bin", "a/x2_10.bin", "a/x.bin", "b/0.bin"]
    assert sorted(names, key=in_order) == wanted
