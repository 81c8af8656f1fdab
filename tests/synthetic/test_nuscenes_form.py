"""The nuScenes form is read by nuscenes-devkit as it is, and what it says is true."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.readers import open_dataset
from olivine.synthetic.kinds import CLASSES, LIDARSEG
from olivine.synthetic.nuscenes import scene_names
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset

if find_spec("nuscenes") is None:  # imported only where a test runs: it takes seconds
    pytest.skip("nuscenes-devkit is not installed", allow_module_level=True)
SMALL = {"scenes": 2, "frames": 3, "image_scale": 0.1}


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "nuscenes"
    summary = write_dataset(SyntheticSettings(seed=3, workers=1, **SMALL), out)
    assert summary.frames == 6 and summary.images == 36 and not summary.reused
    return out


@pytest.fixture(scope="module")
def devkit(folder: Path):
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(folder), verbose=False)


def test_the_points_in_each_box_are_as_many_as_the_table_says(devkit) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    boxes = 0
    for sample in devkit.sample:
        path, found, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in found:
            assert points_in_box(box, points).sum() == devkit.get("sample_annotation", box.token)["num_lidar_pts"]
            boxes += 1
    assert boxes > 200


def test_the_points_in_a_box_carry_its_category(devkit, folder: Path) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    right = total = 0
    for sample in devkit.sample:
        token = sample["data"]["LIDAR_TOP"]
        path, found, _ = devkit.get_sample_data(token)
        points = LidarPointCloud.from_file(path).points[:3]
        label = np.fromfile(folder / devkit.get("lidarseg", token)["filename"], np.uint8)
        assert len(label) == points.shape[1]
        for box in found:
            inside = label[points_in_box(box, points)]
            right += (inside == LIDARSEG.index(box.name)).sum()
            total += (
                ~np.isin(inside, [LIDARSEG.index("flat.driveable_surface"), LIDARSEG.index("flat.sidewalk")])
            ).sum()
    assert right / total > 0.97


def test_the_devkit_draws_points_and_lidarseg_into_the_image(devkit, tmp_path: Path) -> None:
    sample = devkit.sample[1]
    points, _, image = devkit.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"]["CAM_BACK"])
    assert points.shape[1] > 3000 and image.size == (160, 90)
    devkit.get_sample_lidarseg_stats(sample["token"])
    out = tmp_path / "drawn.png"
    devkit.render_pointcloud_in_image(
        sample["token"], camera_channel="CAM_FRONT", show_lidarseg=True, out_path=str(out), verbose=False
    )
    assert out.stat().st_size > 0


def test_each_sensor_has_the_ego_pose_of_its_own_time(devkit) -> None:
    moved = []
    for sample in devkit.sample:
        records = [devkit.get("sample_data", t) for t in sample["data"].values()]
        assert len({r["timestamp"] for r in records}) == 7
        poses = [devkit.get("ego_pose", r["ego_pose_token"]) for r in records]
        assert [p["timestamp"] for p in poses] == [r["timestamp"] for r in records]
        moved.append(np.ptp([p["translation"] for p in poses], axis=0).max())
    assert max(moved) > 0.05


def test_instances_are_chained_over_time_and_move_as_their_velocity(devkit) -> None:
    lengths = []
    for instance in devkit.instance:
        token, tokens = instance["first_annotation_token"], []
        while token:
            tokens.append(token)
            token = devkit.get("sample_annotation", token)["next"]
        assert len(tokens) == instance["nbr_annotations"] and tokens[-1] == instance["last_annotation_token"]
        lengths.append(len(tokens))
    assert max(lengths) == 3
    speeds = [np.linalg.norm(devkit.box_velocity(a["token"])) for a in devkit.sample_annotation]
    speeds = [s for s in speeds if np.isfinite(s)]
    assert 2 < max(speeds) < 16, "some drive, none flies"


@pytest.mark.frames("real")
def test_calibration_is_the_real_keyframes(devkit, nuscenes_keyframe: Path) -> None:
    tables = nuscenes_keyframe / "v1.0-mini"
    channel = {s["token"]: s["channel"] for s in json.loads((tables / "sensor.json").read_text())}
    real = {channel[c["sensor_token"]]: c for c in json.loads((tables / "calibrated_sensor.json").read_text())}
    for record in devkit.calibrated_sensor:
        name = devkit.get("sensor", record["sensor_token"])["channel"]
        np.testing.assert_allclose(record["translation"], real[name]["translation"], atol=1e-9)
        np.testing.assert_allclose(record["rotation"], real[name]["rotation"], atol=1e-9)
        if name != "LIDAR_TOP":
            # u' = (u + 1/2) W'/W - 1/2 for a tenth of the size.
            grow = np.array([[10, 0, 4.5], [0, 10, 4.5], [0, 0, 1]])
            np.testing.assert_allclose(grow @ record["camera_intrinsic"], real[name]["camera_intrinsic"], atol=1e-9)


def test_masks_fit_their_images_and_name_their_classes(folder: Path) -> None:
    mark = json.loads((folder / "synthetic.json").read_text())
    assert mark["synthetic"] is True and mark["seed"] == 3 and mark["classes"] == list(CLASSES)
    seen: set[int] = set()
    for frame in open_dataset("nuscenes", folder).frames():
        assert frame.image_truth is not None
        for camera, (classes, instances) in zip(frame.cameras, frame.image_truth):
            label, instance = np.array(Image.open(classes)), np.array(Image.open(instances))
            assert label.dtype == np.uint8 and label.shape == instance.shape == (camera.height, camera.width)
            assert label.max() < len(CLASSES)
            seen |= set(np.unique(label).tolist())
            # Things have instances, and an instance is one class.
            for number in np.unique(instance[instance > 0]):
                assert len(np.unique(label[instance == number])) == 1
            assert (instance[(label >= 9)] == 0).all()
            assert (instance[(label >= 1) & (label <= 8)] > 0).all()
    assert {4, 9, 10, 12, 13} <= seen


def test_all_13_classes_occur_in_points_and_pixels(tmp_path: Path) -> None:
    out = tmp_path / "wide"
    summary = write_dataset(SyntheticSettings(scenes=10, frames=1, image_scale=0.1, workers=1), out)
    assert [name for name in CLASSES[1:] if summary.class_points[name] == 0] == []
    seen = {int(v) for p in (out / "truth/class").rglob("*.png") for v in np.unique(np.array(Image.open(p)))}
    assert seen == set(range(14))


def test_scenes_carry_names_of_the_official_splits() -> None:
    from nuscenes.utils.splits import mini_train, mini_val, train, val

    for scenes in (1, 2, 5, 10, 11, 40, 850):
        version, names = scene_names(scenes)
        assert len(names) == len({n for n, _ in names}) == scenes
        sets = {"train": mini_train, "val": mini_val} if scenes <= 10 else {"train": train, "val": val}
        assert version == ("v1.0-mini" if scenes <= 10 else "v1.0-trainval")
        assert all(name in sets[split] for name, split in names)
        assert scenes == 1 or any(split == "val" for _, split in names)


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    write_dataset(SyntheticSettings(seed=3, workers=2, **SMALL), tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)


def test_another_seed_gives_another_street(folder: Path, tmp_path: Path) -> None:
    write_dataset(SyntheticSettings(seed=4, workers=1, scenes=2, frames=1, image_scale=0.1), tmp_path / "other")
    a = next((folder / "samples/CAM_FRONT").glob("*scene-0061*"))
    b = next((tmp_path / "other/samples/CAM_FRONT").glob("*scene-0061*"))
    assert np.abs(np.array(Image.open(a), float) - np.array(Image.open(b), float)).mean() > 8
