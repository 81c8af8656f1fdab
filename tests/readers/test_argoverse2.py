"""Argoverse 2 Sensor: its tables' poses and cameras by a formula of their own, exact masks, boxes, and damaged files."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import feather
from scipy.spatial.transform import Rotation

from olivine.common import OlivineError
from olivine.readers import open_dataset, recognize
from olivine.readers.project import project_points
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("argoverse2") / "set"
    write_dataset(SyntheticSettings(format="argoverse2", scenes=2, frames=2, image_scale=0.15, workers=1), out)
    return out


def rows(path: Path) -> list[dict[str, object]]:
    return feather.read_table(path).to_pylist()


def rigid(row: dict) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([row[k] for k in ("qx", "qy", "qz", "qw")]).as_matrix()
    matrix[:3, 3] = [row[k] for k in ("tx_m", "ty_m", "tz_m")]
    return matrix


def test_splits_are_the_folders_and_the_set_is_recognized(folder: Path) -> None:
    dataset = open_dataset("argoverse2", folder)
    assert recognize(folder) == ["argoverse2"] and dataset.note == "1 train logs, 1 val logs"
    assert [len(dataset.frames(split)) for split in ("train", "val", "test")] == [2, 2, 0]
    assert type(dataset).count(folder) == 4
    assert max(len(pickle.dumps(frame)) for frame in dataset.frames()) <= 3072


def test_pixels_are_the_tables_transforms_of_the_files_points(folder: Path) -> None:
    """From the vehicle at the sweep through the city to the vehicle at the image, then into the camera."""
    for frame in open_dataset("argoverse2", folder).frames():
        log = folder / frame.split / frame.scene
        sweep = int(Path(frame.point_file).stem)
        raw = feather.read_table(folder / frame.point_file)
        ego = np.column_stack([raw.column(k).to_numpy().astype(float) for k in "xyz"] + [np.ones(len(raw))])
        mounts = {row["sensor_name"]: rigid(row) for row in rows(log / "calibration" / "egovehicle_SE3_sensor.feather")}
        lenses = {row["sensor_name"]: row for row in rows(log / "calibration" / "intrinsics.feather")}
        poses = {row["timestamp_ns"]: rigid(row) for row in rows(log / "city_SE3_egovehicle.feather")}
        points = frame.points()
        expected = ego @ np.linalg.inv(mounts["up_lidar"]).T
        np.testing.assert_allclose(points[:, :3], expected[:, :3], atol=1e-4)
        np.testing.assert_array_equal(points[:, 3], raw.column("intensity").to_numpy())
        np.testing.assert_allclose(frame.pose, poses[sweep] @ mounts["up_lidar"], atol=1e-9)
        point, camera, uv = project_points(points, frame.cameras)
        assert len(frame.cameras) == 6 and len(point) > 3000
        for number, view in enumerate(frame.cameras):
            taken, lens = int(Path(view.image).stem), lenses[view.name]
            there = ego @ (np.linalg.inv(mounts[view.name]) @ np.linalg.inv(poses[taken]) @ poses[sweep]).T
            u = lens["fx_px"] * there[:, 0] / there[:, 2] + lens["cx_px"]
            v = lens["fy_px"] * there[:, 1] / there[:, 2] + lens["cy_px"]
            mine = camera == number
            np.testing.assert_allclose(uv[mine], np.column_stack([u, v])[point[mine]], atol=1e-2)


def test_points_lie_on_what_they_are_in_the_images(folder: Path) -> None:
    right = total = 0
    for frame in open_dataset("argoverse2", folder).frames():
        assert frame.image_truth is not None
        truth = np.fromfile(folder / "truth" / "point" / Path(frame.point_file).with_suffix(".bin"), np.uint8)
        point, camera, uv = project_points(frame.points(), frame.cameras)
        for number, (mask, _) in enumerate(frame.image_truth):
            mine = camera == number
            u, v = np.rint(uv[mine]).astype(int).T
            seen = np.asarray(Image.open(mask))[v, u]
            right, total = right + int((seen == truth[point[mine]]).sum()), total + int(mine.sum())
    assert right > 0.9 * total


def test_boxes_hold_the_points_they_say(folder: Path) -> None:
    found = 0
    for frame in open_dataset("argoverse2", folder).frames():
        xyz, boxes = frame.points()[:, :3].astype(float), frame.boxes()
        assert boxes is not None
        for box in boxes:
            turn = Rotation.from_quat(np.roll(box.rotation, -1)).as_matrix()
            inside = (np.abs((xyz - box.center) @ turn) <= np.array(box.size) / 2 + 0.1).all(1).sum()
            assert inside >= 0.9 * box.point_count
            found += box.point_count > 20
            assert box.track.startswith(box.category)
    assert found >= 2


def test_a_thing_has_one_track_in_all_frames_whether_it_moves_or_not(folder: Path) -> None:
    frames = open_dataset("argoverse2", folder).frames()
    tracks = [{box.track for box in frame.boxes() or []} for frame in frames]
    first, second = (tracks[k] for k, frame in enumerate(frames) if frame.scene == frames[0].scene)
    assert len(first & second) > 0.8 * min(len(first), len(second))  # the rest comes into view, or leaves it
    assert all(len(names) == len(frame.boxes() or []) for names, frame in zip(tracks, frames))


def test_what_is_missing_or_damaged_is_one_line(folder: Path, tmp_path: Path) -> None:
    def broken(change: str, match: str, edit) -> None:  # type: ignore[no-untyped-def]
        root = tmp_path / change
        shutil.copytree(folder, root)
        (log,) = (root / "train").iterdir()
        edit(log)
        with pytest.raises(OlivineError, match=match):
            open_dataset("argoverse2", root).frames("train")[0].points()

    def without_column(log: Path) -> None:
        path = log / "calibration" / "intrinsics.feather"
        feather.write_feather(feather.read_table(path).drop_columns(["fx_px"]), path)

    def without_lidar(log: Path) -> None:
        path = log / "calibration" / "egovehicle_SE3_sensor.feather"
        table = feather.read_table(path)
        feather.write_feather(table.slice(1), path)

    def truncated(log: Path) -> None:
        path = min((log / "sensors" / "lidar").glob("*.feather"))
        path.write_bytes(path.read_bytes()[:100])

    broken(
        "poses",
        r"city_SE3_egovehicle\.feather: cannot be read",
        lambda log: (log / "city_SE3_egovehicle.feather").unlink(),
    )
    broken("column", "has no column fx_px; it has sensor_name", without_column)
    broken("lidar", "has no up_lidar; it has ring_front_center", without_lidar)
    broken("cloud", r"lidar/\d+\.feather: cannot be read", truncated)
    broken("images", "no images of a ring camera", lambda log: shutil.rmtree(log / "sensors" / "cameras"))
    broken("name", "is not named by its time", lambda log: (log / "sensors" / "lidar" / "a.feather").write_bytes(b""))
    with pytest.raises(OlivineError, match="no Argoverse 2 Sensor logs here"):
        open_dataset("argoverse2", tmp_path)
