"""The KITTI form is read by pykitti and by the SemanticKITTI reader as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.readers import open_dataset
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset

pykitti = pytest.importorskip("pykitti", reason="pykitti is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "kitti"
    write_dataset(SyntheticSettings(format="semantickitti", scenes=2, frames=3, image_scale=1.0, workers=1), out)
    return out


def test_pykitti_loads_it(folder: Path) -> None:
    data = pykitti.odometry(str(folder), "00")
    assert len(data) == 3 and data.get_cam2(0).size == (1242, 375)
    cloud = data.get_velo(1)
    assert 95_000 < len(cloud) < 130_000
    assert cloud[:, 3].min() >= 0 and cloud[:, 3].max() <= 1
    np.testing.assert_allclose(data.poses[0], np.eye(4), atol=1e-9)
    # Camera frame: z looks ahead, and the vehicle drives ahead.
    assert data.poses[2][2, 3] > 0.2 and abs(data.poses[2][1, 3]) < 0.2


@pytest.mark.frames("real")
def test_calibration_is_the_real_frames(folder: Path, kitti_frame: Path) -> None:
    ours, real = pykitti.odometry(str(folder), "00").calib, pykitti.odometry(str(kitti_frame), "00").calib
    for name in ("P_rect_00", "P_rect_10", "P_rect_20", "P_rect_30", "T_cam0_velo"):
        np.testing.assert_allclose(getattr(ours, name), getattr(real, name), atol=1e-6)


def test_points_projected_by_p2_fall_on_pixels_of_their_class(folder: Path) -> None:
    data = pykitti.odometry(str(folder), "00")
    right = total = 0
    for k in range(3):
        cloud = data.get_velo(k)
        truth = np.fromfile(folder / f"truth/point/00/{k:06d}.bin", np.uint8)
        mask = np.array(Image.open(folder / f"truth/class/00/image_2/{k:06d}.png"))
        local = data.calib.T_cam0_velo @ np.column_stack([cloud[:, :3], np.ones(len(cloud))]).T
        uv = data.calib.P_rect_20 @ local
        u, v = uv[0] / uv[2], uv[1] / uv[2]
        inside = (uv[2] > 1) & (u > 0) & (u < 1241) & (v > 0) & (v < 374)
        right += (mask[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)] == truth[inside]).sum()
        total += inside.sum()
    assert total > 30_000
    assert right / total > 0.95


def test_semantickitti_labels_have_official_classes_and_instances(folder: Path) -> None:
    frames = open_dataset("semantickitti", folder).frames("train")
    names = open_dataset("semantickitti", folder).point_classes
    mapped = np.concatenate([f.point_labels() for f in frames])
    present = {names[k - 1] for k in np.unique(mapped) if k}
    assert {"car", "road", "sidewalk", "building", "vegetation"} <= present
    raw = np.fromfile(folder / "sequences/00/labels/000000.label", np.uint32)
    instance, kind = raw >> 16, raw & 0xFFFF
    assert (instance[np.isin(kind, [40, 48, 50, 70, 72])] == 0).all()
    assert (instance[np.isin(kind, [10, 252, 30, 254])] > 0).all()


def test_validation_is_sequence_08(folder: Path) -> None:
    assert {f.scene for f in open_dataset("semantickitti", folder).frames("val")} == {"08"}
