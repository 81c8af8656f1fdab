"""check-data: silent on a clean drive, and each planted fault is named."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from olivine.readers import open_dataset
from olivine.readers.check_edges import steps_in_depth
from olivine.readers.checks import CheckSettings, check_frames

SETTINGS = CheckSettings(frames=8)


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """Eight frames of one moving drive through the synthetic street."""
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    folder = tmp_path_factory.mktemp("drive") / "nuscenes"
    write_dataset(SyntheticSettings(scenes=1, frames=8, image_scale=0.2, workers=1), folder)
    return folder


@pytest.fixture(scope="module")
def frames(drive):
    return open_dataset("nuscenes", drive).frames()


def with_cameras(frames, change):
    return [replace(f, cameras=tuple(change(f, c) for c in f.cameras)) for f in frames]


def only(frames, *names):
    """The frames with some of their cameras: each costs a search."""
    return [replace(f, cameras=tuple(c for c in f.cameras if c.name in names)) for f in frames]


def reasons(frames, settings=SETTINGS):
    return [(f.unit, f.reason) for f in check_frames(frames, settings).failures]


def test_a_clean_drive_has_nothing_wrong(frames):
    found = check_frames(frames, SETTINGS)
    assert found.failures == []
    assert found.looked_at == 8 and set(found.fit) == {c.name for c in frames[0].cameras}
    assert all(least <= middle <= most < 100 for least, middle, most in found.delay.values()) and len(found.delay) == 6
    assert min(found.fit.values()) > 0.3 and min(found.share.values()) > 1 and found.speed > 2


@pytest.mark.parametrize("axis", [0, 1])
def test_an_extrinsic_rotated_by_a_degree_is_found_with_axis_and_sign(frames, axis):
    from scipy.spatial.transform import Rotation

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians(np.eye(3)[axis])).as_matrix()
    rotated = with_cameras(
        frames, lambda f, c: replace(c, lidar_to_camera=turn @ c.lidar_to_camera) if c.name == "CAM_FRONT" else c
    )
    ((unit, reason),) = reasons(only(rotated, "CAM_FRONT", "CAM_BACK"))
    assert unit == "CAM_FRONT" and "check its extrinsic" in reason
    # What would mend it is the opposite turn.
    assert f"-1.00 about {('x (right)', 'y (down)')[axis]}" in reason


def test_a_camera_clock_a_tenth_of_a_second_late_is_found(drive, rig_of_keyframes, tmp_path):
    root = rig_of_keyframes(drive, tmp_path)
    plain = yaml.safe_load((root / "rig.yaml").read_text())
    plain["matching"]["limit"], plain["poses"]["max_gap"] = 0.2, 1
    plain["cameras"]["CAM_FRONT_LEFT"]["clock_offset"] = 0.1
    (root / "rig.yaml").write_text(yaml.safe_dump(plain))
    found = open_dataset("rig", root).frames()
    ((unit, reason),) = reasons(only(found, "CAM_FRONT", "CAM_FRONT_LEFT"))
    assert unit == "CAM_FRONT_LEFT" and "ms earlier than their times say" in reason and "check its clock" in reason
    assert abs(int(reason.split(" ms")[0].split()[-1]) - 100) <= 40


def test_swapped_cameras_are_named(frames):
    other = {"CAM_FRONT": "CAM_BACK_LEFT", "CAM_BACK_LEFT": "CAM_FRONT"}

    def swap(frame, camera):
        images = {c.name: c.image for c in frame.cameras}
        return replace(camera, image=images[other.get(camera.name, camera.name)])

    ((unit, reason),) = reasons(only(with_cameras(frames, swap), "CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK"))
    assert set(unit.split(", ")) == set(other) and "they are swapped" in reason


def test_files_times_and_poses_that_are_wrong_are_named(frames, drive, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(drive, root)
    moved = [replace(f, root=root) for f in frames]
    cloud = root / frames[3].point_file
    cloud.write_bytes(cloud.read_bytes()[: cloud.stat().st_size // 40 * 20])  # half of the points
    shutil.copy(root / frames[4].cameras[1].image, root / frames[5].cameras[1].image)
    (root / frames[6].cameras[2].image).unlink()
    pose = moved[1].pose.copy()
    pose[0, 3] += 200
    moved[1] = replace(moved[1], pose=pose)
    late = moved[7].timestamp + 5_000_000
    moved[7] = replace(moved[7], timestamp=late)
    found = reasons(moved, CheckSettings(frames=2))
    said = {
        (unit, text)
        for unit, reason in found
        for text in ("truncated", "same content", "cannot be read", "jumps", "missing")
        if text in reason
    }
    assert {
        (frames[3].token, "truncated"),
        (frames[5].token, "same content"),
        (frames[6].token, "cannot be read"),
    } <= said
    assert {(frames[1].token, "jumps"), (frames[2].token, "jumps"), (frames[7].token, "missing")} <= said


def test_a_camera_that_looks_away_sees_nothing(frames):
    up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)  # the cloud is below it
    rotated = with_cameras(
        frames, lambda f, c: replace(c, lidar_to_camera=up @ up @ up @ c.lidar_to_camera) if c.name == "CAM_BACK" else c
    )
    assert any(unit == "CAM_BACK" and "it looks elsewhere" in reason for unit, reason in reasons(rotated[:2]))


def test_steps_are_where_a_ring_jumps():
    azimuth = np.radians(np.arange(0, 360, 0.4))
    distance = np.where((azimuth > 1) & (azimuth < 1.5), 8.0, 20.0)
    rings = [
        np.c_[distance * np.cos(azimuth), distance * np.sin(azimuth), distance * np.tan(e), azimuth]
        for e in (-0.1, 0.05)
    ]
    points = np.concatenate(rings).astype(np.float32)
    near = np.flatnonzero(distance == 8.0)
    assert np.flatnonzero(steps_in_depth(points)).tolist() == [
        near[0],
        near[-1],
        len(azimuth) + near[0],
        len(azimuth) + near[-1],
    ]


@pytest.mark.frames("synthetic")
def test_the_command_writes_a_page_and_ends_with_1_where_something_is_wrong(kitti_frame, tmp_path):
    shutil.copytree(kitti_frame, tmp_path / "data" / "kitti")
    command = [sys.executable, "-m", "olivine.cli", "check-data", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    assert plain["failures"] == [] and any("too few frames" in note or "poses" in note for note in plain["notes"])
    page = (tmp_path / "check-data" / "index.html").read_text()
    assert "Nothing is wrong" in page and (tmp_path / "check-data" / "view-000.jpg").is_file()
    (tmp_path / "data" / "kitti" / "sequences" / "00" / "velodyne" / "000000.bin").write_bytes(bytes(17))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "truncated point file" in done.stdout
    assert "1 things are wrong" in (tmp_path / "check-data" / "index.html").read_text()


def test_an_extrinsic_the_wrong_way_round_is_wrong_to_the_command(drive, rig_of_keyframes, tmp_path):
    root = rig_of_keyframes(drive, tmp_path / "data" / "rig")
    command = [sys.executable, "-m", "olivine.cli", "check-data", "--frames", "1", "--dataset", "rig", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["failures"] == []
    plain = yaml.safe_load((root / "rig.yaml").read_text())
    front = plain["cameras"]["CAM_FRONT"]["camera_to_vehicle"]
    front["quaternion_wxyz"] = [front["quaternion_wxyz"][0], *(-v for v in front["quaternion_wxyz"][1:])]
    (root / "rig.yaml").write_text(yaml.safe_dump(plain))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["failures"][0]
    assert done.returncode == 1 and found["unit"] == "cameras.CAM_FRONT.camera_to_vehicle"
    assert "it is given the other way round" in found["reason"]
    assert "Nothing is wrong" not in (tmp_path / "check-data" / "index.html").read_text()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_frames_edges_fit_best_where_its_calibration_puts_them(nuscenes_keyframe, axis):
    """The figures for the real frame are in docs/own-data.md."""
    from olivine.readers.check_edges import fit_when_rotated

    (frame,) = open_dataset("nuscenes", nuscenes_keyframe).frames()
    fit = {}
    for degrees in (-2, -1, 0, 1, 2):
        turn = [0.0, 0.0, 0.0]
        turn[axis] = degrees
        fit[degrees] = fit_when_rotated(frame, turn)
    assert max(fit, key=fit.get) == 0 or fit[0] > 0.98 * max(fit.values())
    assert fit[0] > 1.2 * fit[-2] and fit[0] > 1.2 * fit[2]
