"""The times and poses of a recording: whose each line of a table is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from olivine.common import OlivineError
from olivine.readers import open_dataset
from olivine.readers.checks import check_frames
from olivine.readers.recording_start import start_description

COUNT = 5


@pytest.fixture
def drive(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Five clouds and images with a table of times; the k-th cloud has x = k + 1, and its KITTI pose x = k."""
    (tmp_path / "lidar").mkdir()
    (tmp_path / "front").mkdir()
    for k in range(COUNT):
        np.full((50, 4), k + 1, "<f4").tofile(tmp_path / "lidar" / f"{k:06d}.bin")
        Image.new("RGB", (64, 48), (k, 0, 0)).save(tmp_path / "front" / f"{k:06d}.png")
    (tmp_path / "times.txt").write_text("".join(f"{0.1 * k:.1f}\n" for k in range(COUNT)))
    (tmp_path / "poses.txt").write_text("".join(f"1 0 0 {k} 0 1 0 0 0 0 1 0\n" for k in range(COUNT)))
    plain: dict[str, Any] = {
        "lidars": {"top": {"files": "lidar/*.bin", "times": "times.txt"}},
        "cameras": {
            "front": {
                "files": "front/*.png",
                "times": "times.txt",
                "intrinsic": [40, 40, 31.5, 23.5],
                "lidar_to_camera": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]],
            }
        },
        "poses": {"file": "poses.txt", "format": "kitti"},
    }
    write(tmp_path, plain)
    return tmp_path, plain


def write(root: Path, plain: dict[str, Any]) -> None:
    (root / "rig.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plain)), sort_keys=False))


def test_a_table_of_times_alone_that_goes_back_is_refused(drive: tuple[Path, dict[str, Any]]) -> None:
    """As where a clock is set back on the way: frames would be mixed up without a word."""
    root, _ = drive
    (root / "times.txt").write_text("0.0\n0.1\n0.2\n0.05\n0.15\n")
    with pytest.raises(OlivineError, match=r"times\.txt: the times go back at line 4.*two scenes.*name, time") as error:
        open_dataset("rig", root).frames()
    assert "\n" not in str(error.value)


def test_dates_are_times(drive: tuple[Path, dict[str, Any]]) -> None:
    """As KITTI's raw recordings have them, with a date and a time of day, and as ISO 8601 has them, with a zone."""
    root, plain = drive
    clock = ["13:02:59.800000", "13:02:59.900000", "13:03:00.000000", "13:03:00.100000", "13:03:00.200000"]
    (root / "times.txt").write_text("".join(f"2011-09-26 {time}789\n" for time in clock))
    plain["cameras"]["front"]["times"] = "front.csv"
    zoned = "".join(f"{k:06d}.png,2011-09-26T15:{time[3:]}+02:00\n" for k, time in enumerate(clock))
    (root / "front.csv").write_text(zoned)
    write(root, plain)
    frames = open_dataset("rig", root).frames()
    assert [frame.timestamp for frame in frames] == [1317042179800000 + 100000 * k for k in range(COUNT)]
    (root / "times.txt").write_text("".join(f"2011-09-26 {time}\n" for time in ["25:00:00", *clock[1:]]))
    with pytest.raises(OlivineError, match=r"times\.txt line 1: '2011-09-26T25:00:00' is no time"):
        open_dataset("rig", root).frames()


def test_init_rig_finds_tables_of_dates(tmp_path: Path) -> None:
    """The folders of a raw drive of KITTI: every sensor's files in data/, their times beside it."""
    drive = tmp_path / "2011_09_26_drive_0001_sync"
    for sensor in ("image_02", "velodyne_points"):
        (drive / sensor / "data").mkdir(parents=True)
        for table in ("timestamps.txt", "timestamps_end.txt"):
            (drive / sensor / table).write_text("".join(f"2011-09-26 13:02:2{k}.964389445\n" for k in range(3)))
    for k in range(3):
        np.full((50, 4), k + 1, "<f4").tofile(drive / "velodyne_points" / "data" / f"{k:010d}.bin")
        Image.new("RGB", (64, 48)).save(drive / "image_02" / "data" / f"{k:010d}.png")
    start_description(tmp_path)
    plain = yaml.safe_load((tmp_path / "rig.yaml").read_text())
    for sensor in (*plain["lidars"].values(), *plain["cameras"].values()):
        assert Path(sensor["times"]).name == "timestamps.txt" and "unit" not in sensor


def test_the_line_of_a_kitti_table_goes_with_its_file_whatever_the_times(drive: tuple[Path, dict[str, Any]]) -> None:
    root, _ = drive
    times = (0.0, 0.1, 0.2, 0.05, 0.15)
    (root / "times.txt").write_text("".join(f"{k:06d} {time}\n" for k, time in enumerate(times)))
    frames = open_dataset("rig", root).frames()
    assert [frame.points()[0, 0] for frame in frames] == [1, 4, 2, 5, 3]
    assert [frame.pose[0, 3] for frame in frames] == [0, 3, 1, 4, 2]


def test_whose_kitti_poses_are_is_asked_for(drive: tuple[Path, dict[str, Any]]) -> None:
    root, plain = drive
    summary = start_description(root, overwrite=True)
    assert summary.to_fill_in[-1] == "poses.of"
    assert yaml.safe_load((root / "rig.yaml").read_text())["poses"]["of"] == "FILL IN"
    plain["poses"]["of"] = "FILL IN"
    write(root, plain)
    with pytest.raises(
        OlivineError, match=r"poses\.of is not filled in. Name whose poses they are: vehicle, top, front"
    ):
        open_dataset("rig", root)


@pytest.mark.parametrize(("of", "rises"), [("front", False), ("vehicle", True)])
def test_a_vehicle_that_rises_straight_up_is_said(drive: tuple[Path, dict[str, Any]], of: str, rises: bool) -> None:
    """KITTI's poses are a camera's, whose z is ahead: taken for the vehicle's they rise at 10 m/s."""
    root, plain = drive
    (root / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {k}\n" for k in range(COUNT)))
    plain["poses"]["of"] = of
    write(root, plain)
    said = [failure.reason for failure in check_frames(open_dataset("rig", root).frames()).failures]
    assert any("100 % of its motion by the poses is straight up or down" in reason for reason in said) == rises


@pytest.mark.parametrize(
    ("first", "table", "clock"),
    [
        (0, True, {"times": "velodyne_points/timestamps.txt", "unit": "s"}),  # KITTI raw's names
        (0, False, {"times": "number", "rate": 10}),
        (1_700_000_000, True, {"times": "velodyne_points/timestamps.txt", "unit": "s"}),
        (1_700_000_000, False, {"times": "name", "unit": "s"}),
        (1_700_000_000_000_000_000, True, {"times": "name", "unit": "ns"}),
    ],
)
def test_a_name_that_counts_is_not_taken_for_a_time(
    tmp_path: Path, first: int, table: bool, clock: dict[str, Any]
) -> None:
    for folder in ("velodyne_points/data", "image_02/data"):
        (tmp_path / folder).mkdir(parents=True)
        if table:
            lines = "".join(f"{0.1037 * k:.6f}\n" for k in range(3))
            (tmp_path / folder).with_name("timestamps.txt").write_text(lines)
    for k in range(3):
        np.full((50, 4), k + 1, "<f4").tofile(tmp_path / f"velodyne_points/data/{first + k:010d}.bin")
        Image.new("RGB", (64, 48), (k, 0, 0)).save(tmp_path / f"image_02/data/{first + k:010d}.png")
    start_description(tmp_path)
    (lidar,) = yaml.safe_load((tmp_path / "rig.yaml").read_text())["lidars"].values()
    assert {key: lidar[key] for key in clock} == clock


def test_a_table_with_the_time_first_is_told_the_order(drive: tuple[Path, dict[str, Any]]) -> None:
    root, _ = drive
    (root / "times.txt").write_text("".join(f"{0.1 * k:.1f} front/{k:06d}.png\n" for k in range(COUNT)))
    with pytest.raises(
        OlivineError, match=r"times\.txt: line 1 has 'front/000000\.png' where the time.*file name, time"
    ):
        open_dataset("rig", root).frames()
    (root / "times.txt").write_text("0.0\n0.1\nlater\n0.3\n0.4\n")
    with pytest.raises(OlivineError, match=r"times\.txt line 3: 'later' is no time"):
        open_dataset("rig", root).frames()


def test_suffixes_in_capitals_are_found_and_read(drive: tuple[Path, dict[str, Any]]) -> None:
    root, plain = drive
    for path in [*(root / "lidar").iterdir(), *(root / "front").iterdir()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    assert start_description(root, overwrite=True).cameras == ("front",)
    written = yaml.safe_load((root / "rig.yaml").read_text())
    plain["lidars"]["top"]["files"] = written["lidars"]["lidar"]["files"]
    plain["cameras"]["front"]["files"] = written["cameras"]["front"]["files"]
    write(root, plain)
    frames = open_dataset("rig", root).frames()
    assert [len(frame.points()) for frame in frames] == [50] * COUNT
    assert frames[0].cameras[0].image == "front/000000.PNG"
