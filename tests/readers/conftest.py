"""Sample frames rewritten as a recording of one's own."""

import json
import shutil

import numpy as np
import pytest
import yaml


def tum(time_us, matrix):
    from scipy.spatial.transform import Rotation

    values = (*matrix[:3, 3], *Rotation.from_matrix(matrix[:3, :3]).as_quat())
    return " ".join([f"{time_us // 10**6}.{time_us % 10**6:06d}", *(f"{v:.17g}" for v in values)])


def matrix_of(record):
    from olivine.readers.frame import rotation_of

    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(np.array(record["rotation"])), record["translation"]
    return matrix


def keyframes_as_rig(source, folder):
    """nuScenes' tables read here, without the reader: calibration, times and poses as a user would write them."""
    tables = source / "v1.0-mini"
    data, sensors, calibrations, poses = (
        json.loads((tables / f"{name}.json").read_text())
        for name in ("sample_data", "sensor", "calibrated_sensor", "ego_pose")
    )
    sensor_of, calibration_of, pose_of = ({r["token"]: r for r in t} for t in (sensors, calibrations, poses))
    plain = {"scenes": {".": "val"}, "lidars": {}, "cameras": {}, "poses": {"file": "poses.txt"}}
    plain["matching"] = {"limit": 0.1}
    lines, names = [], {}
    for record in data:
        if not record["is_key_frame"]:
            continue
        calibration = calibration_of[record["calibrated_sensor_token"]]
        name = sensor_of[calibration["sensor_token"]]["channel"]
        lines.append(tum(record["timestamp"], matrix_of(pose_of[record["ego_pose_token"]])))
        file = source / record["filename"]
        target = folder / name / f"{record['timestamp']}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        where = {"translation": calibration["translation"], "quaternion_wxyz": calibration["rotation"]}
        sensor = {"files": f"{name}/*{file.suffix}", "unit": "us"}
        if name == "LIDAR_TOP":
            columns = ["x", "y", "z", "intensity", "ring"]
            plain["lidars"][name] = {**sensor, "columns": columns, "lidar_to_vehicle": where}
        else:
            names[name] = {**sensor, "intrinsic": calibration["camera_intrinsic"], "camera_to_vehicle": where}
    order = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
    plain["cameras"] = {name: names[name] for name in order}
    (folder / "poses.txt").write_text("# time x y z qx qy qz qw\n" + "\n".join(sorted(set(lines))) + "\n")
    (folder / "rig.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plain)), sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def rig_of_keyframes():
    """``rig_of_keyframes(root of v1.0-mini, folder)``."""
    return keyframes_as_rig
