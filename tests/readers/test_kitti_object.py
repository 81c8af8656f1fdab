"""KITTI's object benchmark: the split, P2 · R0_rect · Tr, and boxes around the things that they name."""

import shutil

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.readers import open_dataset, recognize
from olivine.readers.kitti_object import official_training_frames
from olivine.readers.project import project_points
from olivine.synthetic.kinds import CLASSES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    out = tmp_path_factory.mktemp("object") / "set"
    write_dataset(SyntheticSettings(format="kitti-object", scenes=2, frames=2, image_scale=0.1, workers=1), out)
    return out


def numbers(path):
    lines = (line.split(":") for line in path.read_text().splitlines() if ":" in line)
    return {key: np.array(values.split(), float) for key, values in lines}


def test_the_split_is_the_fields():
    training = official_training_frames()
    assert (training.sum(), (~training).sum()) == (3712, 3769)
    # The lists that the field's code bases carry begin and end so.
    assert np.flatnonzero(training)[:8].tolist() == [0, 3, 7, 9, 10, 11, 12, 13]
    assert np.flatnonzero(~training)[:5].tolist() == [1, 2, 4, 5, 6]
    assert (np.flatnonzero(training)[-1], np.flatnonzero(~training)[-1]) == (7479, 7480)


def test_frames_are_split_by_the_lists_in_the_folder_and_else_by_the_fields(folder, tmp_path):
    dataset = open_dataset("kitti-object", folder)
    assert [f.token for f in dataset.frames("train")] == ["training/000000", "training/000001"]
    assert [f.token for f in dataset.frames("val")] == ["training/001000", "training/001001"]
    assert recognize(folder) == ["kitti-object"] and dataset.note == "2 train, 2 val"
    shutil.copytree(folder, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "ImageSets")
    dataset = open_dataset("kitti-object", tmp_path / "set")
    named = {f.token[-6:]: f.split for f in dataset.frames()}
    assert named == {"000000": "train", "000001": "val", "001000": "train", "001001": "train"}


def test_a_list_of_ones_own_does_not_put_frames_into_both_splits(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    lists = tmp_path / "set" / "ImageSets"
    (lists / "train.txt").write_text("000000\n000001\n")
    (lists / "val.txt").unlink()
    with pytest.raises(OlivineError, match=r"train\.txt: names 1 frames that are in the official val.*val\.txt too"):
        open_dataset("kitti-object", tmp_path / "set")
    (lists / "train.txt").write_text("000000\n")  # alone it is a smaller part of the official split
    assert open_dataset("kitti-object", tmp_path / "set").note == "1 train, 1 val"
    (lists / "train.txt").write_text("000000\n000000\n")
    with pytest.raises(OlivineError, match=r"train\.txt: names frame 000000 twice"):
        open_dataset("kitti-object", tmp_path / "set")


def test_pixels_are_p2_r0_tr_of_the_points(folder):
    for frame in open_dataset("kitti-object", folder).frames():
        number = frame.token[-6:]
        raw = np.fromfile(folder / "training" / "velodyne" / f"{number}.bin", np.float32).reshape(-1, 4)
        assert np.array_equal(frame.points(), raw)
        given = numbers(folder / "training" / "calib" / f"{number}.txt")
        rectify, to_camera = np.eye(4), np.eye(4)
        rectify[:3, :3], to_camera[:3] = given["R0_rect"].reshape(3, 3), given["Tr_velo_to_cam"].reshape(3, 4)
        seen = np.c_[raw[:, :3], np.ones(len(raw))] @ (given["P2"].reshape(3, 4) @ rectify @ to_camera).T
        point, _, uv = project_points(raw, frame.cameras)
        assert len(point) > 1000
        assert np.abs(seen[point, :2] / seen[point, 2:] - uv).max() < 1e-3


def test_boxes_hold_the_points_of_what_they_name_and_stand_as_the_fields_formula_has_them(folder):
    right, all_inside, boxes = 0, 0, 0
    for frame in open_dataset("kitti-object", folder).frames():
        number = frame.token[-6:]
        kinds = np.fromfile(folder / "truth" / "point" / "training" / "velodyne" / f"{number}.bin", np.uint8)
        xyz = frame.points()[:, :3].astype(np.float64)
        lines = [line.split() for line in (folder / "training" / "label_2" / f"{number}.txt").read_text().splitlines()]
        to_camera = np.vstack(
            [numbers(folder / "training" / "calib" / f"{number}.txt")["Tr_velo_to_cam"].reshape(3, 4), [0, 0, 0, 1]]
        )
        for box, line in zip(frame.boxes(), lines, strict=True):
            h, w, length, x, y, z, turn = (float(v) for v in line[8:])
            assert box.size == (length, w, h) and box.category == line[0]
            # As OpenPCDet: bottom centre into the LiDAR, half a height up, heading −(ry + π/2). Tr tilts by half a degree.
            bottom = (np.linalg.inv(to_camera) @ [x, y, z, 1])[:3]
            assert np.allclose(np.array(box.center), bottom + np.array([0, 0, h / 2]), atol=0.03)
            c, s = np.cos(-(turn + np.pi / 2)), np.sin(-(turn + np.pi / 2))
            local = (xyz - box.center) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            inside = (np.abs(local) <= np.array(box.size) / 2).all(1)
            assert abs(int(inside.sum()) - box.point_count) <= 10 + 0.1 * box.point_count
            if line[0] == "Car" and inside.sum() >= 30:
                boxes += 1
                all_inside += int(inside.sum())
                right += int((kinds[inside] == CLASSES.index("car")).sum())
    assert boxes > 5 and right > 0.85 * all_inside


def test_it_goes_into_shards(folder, tmp_path):
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.check import check_shards
    from olivine.pairs.settings import PairSettings
    from olivine.readers import index_dataset

    index, _ = index_dataset(tmp_path / "labels" / "frames", "kitti-object", folder)
    assert index.intensity_offset == 1
    generate_labels(index, tmp_path / "labels", LabelSettings("oracle"))
    summary = build_pairs(open_store(tmp_path / "labels"), tmp_path / "pairs", PairSettings(), split="train")
    assert summary.frames == 2 and summary.pairs > 1000 and not summary.failures
    assert check_shards(tmp_path / "pairs").failures == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: shutil.rmtree(root / "training" / "velodyne"), "no KITTI object data here"),
        (lambda root: (root / "training" / "calib" / "000000.txt").unlink(), r"000000\.txt: no such file"),
        (lambda root: (root / "training" / "calib" / "000000.txt").write_text("P2: 1 2 3\n"), "has no P2 of 12 numbers"),
        (lambda root: (root / "training" / "calib" / "000000.txt").write_text("P2: a\n"), "P2 is not numbers"),
        (lambda root: (root / "training" / "image_2" / "000000.png").unlink(), r"000000\.png: no such image"),
        (lambda root: (root / "training" / "velodyne" / "001000.bin").unlink(), r"val\.txt: names frame 001000"),
        (lambda root: (root / "training" / "velodyne" / "first.bin").write_bytes(b""), "is not named by its number"),
        (lambda root: (root / "training" / "label_2" / "000000.txt").write_text("Car 1 2\n"), "is no object of 15 values"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder, tmp_path, damage, says):
    shutil.copytree(folder, tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(OlivineError, match=says) as error:
        _ = [f.boxes() for f in open_dataset("kitti-object", tmp_path / "set").frames()]
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
