"""The frame index: what was written is what is read, and nothing in it leads out of the data set."""

import json
from dataclasses import replace

import numpy as np
import pytest

from olivine.common import OlivineError, digest
from olivine.readers.frame import MAX_DISTANCE, Camera, Frame
from olivine.readers.index import open_index, write_index


def frame(root, number=0, **changes):
    turn = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.1], [0, 0, 0, 1]], np.float64)
    camera = Camera("CAM_FRONT", f"samples/CAM_FRONT/{number}.jpg", 64, 36, np.eye(3), turn)
    made = Frame(
        "nuscenes", "v0", root, f"token-{number}", "scene-1", "train", number, f"samples/{number}.bin", 4, np.eye(4), (camera,)
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def folder(tmp_path):
    frames = [frame(tmp_path, 0), frame(tmp_path, 1)]
    write_index(tmp_path / "frames", frames, dataset="nuscenes", version="v0", root=tmp_path)
    return tmp_path / "frames"


def rewrite(folder, change):
    """Change the first frame as a program would that knows the format, digests included."""
    lines = (folder / "scene-1.jsonl").read_text().splitlines()
    plain = json.loads(lines[0])
    lines[0] = json.dumps(change(plain) or plain)
    text = "".join(f"{line}\n" for line in lines)
    (folder / "scene-1.jsonl").write_text(text)
    table = json.loads((folder / "index.json").read_text())
    table["scenes"][0]["digest"] = digest(text)
    del table["digest"]
    (folder / "index.json").write_text(json.dumps(table))


def test_two_images_that_would_share_a_label_map_are_refused(tmp_path):
    one = frame(tmp_path)
    camera = one.cameras[0]
    same = replace(one, cameras=(camera, replace(camera, name="CAM_2")))  # one image seen twice has one map
    write_index(tmp_path / "frames", [same], dataset="nuscenes", version="v0", root=tmp_path)
    for image in ("samples/CAM_FRONT/0.png", "sweeps/CAM_FRONT/0.jpg"):
        both = replace(one, cameras=(camera, replace(camera, name="CAM_2", image=image)))
        with pytest.raises(
            OlivineError, match=rf"samples/CAM_FRONT/0\.jpg and {image} would share one label map, CAM_FRONT/0\."
        ):
            write_index(tmp_path / "frames", [both], dataset="nuscenes", version="v0", root=tmp_path)


def test_every_changed_byte_of_a_scene_is_found(folder):
    path = folder / "scene-1.jsonl"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 200):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        with pytest.raises(OlivineError, match=r"scene-1\.jsonl"):
            open_index(folder).scenes[0].frames()
    path.write_bytes(data)
    assert [f.token for f in open_index(folder).frames()] == ["token-0", "token-1"]


def test_every_changed_value_of_the_table_is_found(folder):
    path = folder / "index.json"
    plain = json.loads(path.read_text())
    scene = plain["scenes"][0]
    for change in (
        {"scenes": [{**scene, "split": "val"}]},
        {"scenes": [{**scene, "frames": 1}]},
        {"scenes": []},
        {"version": "v1"},
        {"point_classes": ["car"]},
        {"fingerprint": "x"},
    ):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(OlivineError, match=r"index\.json: damaged: its content does not match its digest"):
            open_index(folder)
    path.write_text(json.dumps({**plain, "root": "/elsewhere"}))  # a data set may move
    assert open_index(folder).digest == digest({k: plain[k] for k in ("dataset", "version", "point_classes", "scenes")})


def test_an_index_without_a_digest_of_its_own_is_read(folder):
    path = folder / "index.json"
    plain = json.loads(path.read_text())
    before = open_index(folder).digest
    del plain["digest"]
    path.write_text(json.dumps(plain))
    assert open_index(folder).digest == before


@pytest.mark.parametrize("place", ["../../etc/x.jpg", "/etc/x.jpg", "samples/../../x.jpg", "", "a\0b"])
@pytest.mark.parametrize("key", ["image", "point_file", "point_label_file", "truth_folder", "scene", "token"])
def test_a_path_that_leads_out_of_the_data_set_is_refused(folder, key, place):
    def change(plain):
        (plain["cameras"][0] if key == "image" else plain)[key] = place

    rewrite(folder, change)
    with pytest.raises(OlivineError, match=r"scene-1\.jsonl line 1: names the path"):
        open_index(folder).scenes[0].frames()


def test_a_reader_that_gives_such_a_path_is_refused_when_the_index_is_written(tmp_path):
    bad = frame(tmp_path, point_file="../x.bin")
    with pytest.raises(OlivineError, match=r"names the path '\.\./x\.bin'"):
        write_index(tmp_path / "frames", [bad], dataset="nuscenes", version="v0", root=tmp_path)
    with pytest.raises(OlivineError, match="names the scene 'a/b'"):
        write_index(
            tmp_path / "frames", [frame(tmp_path, scene="a/b")], dataset="nuscenes", version="v0", root=tmp_path
        )
    assert not (tmp_path / "frames").exists()


def test_a_scene_in_the_table_names_no_file_elsewhere(folder):
    path = folder / "index.json"
    plain = json.loads(path.read_text())
    del plain["digest"]
    for name in ("../scene-1", "/scene-1", "a/scene-1", "", 3):
        plain["scenes"][0]["name"] = name
        path.write_text(json.dumps(plain))
        with pytest.raises(OlivineError, match=r"index\.json: "):
            open_index(folder)


def _drop(key):
    return lambda plain: plain.pop(key) and None


def _put(key, value):
    return lambda plain: {**plain, key: value}


def _camera(key, value):
    return lambda plain: {**plain, "cameras": [{**plain["cameras"][0], key: value}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("token"), "has no 'token'"),
        (_drop("cameras"), "has no 'cameras'"),
        (_put("timestamp", "now"), "timestamp is 'now'"),
        (_put("timestamp", 2**70), "timestamp is"),
        (_put("point_columns", 3), "point_columns is 3"),
        (_put("pose", [1, 2]), "not a frame"),
        (_put("pose", [[]] * 16), "not a frame"),
        (_put("pose", [10**400] * 16), "not a frame"),
        (_put("point_label_lookup", [300]), "not a frame"),
        (_put("point_label_bytes", 2), "point_label_bytes is 2"),
        (_put("extra", 1), "not a frame"),
        (_camera("width", -5), r"cameras\[0\]\.width is -5"),
        (_camera("intrinsic", ["x"] * 9), "not a frame"),
        (_camera("intrinsic", [float("nan")] * 9), "the calibration of CAM_FRONT in frame token-0 is not finite"),
        (_camera("lidar_to_camera", [1e999] * 16), "the calibration of CAM_FRONT in frame token-0 is not finite"),
        (_camera("image", "samples"), "names the camera 'CAM_FRONT' with samples"),
        (lambda plain: [1], "expected a mapping"),
    ],
)
def test_a_wrong_frame_is_named_by_file_line_and_key(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(OlivineError, match=rf"scene-1\.jsonl line 1: .*{message}") as error:
        open_index(folder).scenes[0].frames()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"[]", b"{}", b"\xff", b'{"schema": "1.0"}', b'{"schema": ["1.0"]}', b"[" * 9999])
def test_a_table_that_is_none_is_one_line(folder, data):
    (folder / "index.json").write_bytes(data)
    with pytest.raises(OlivineError, match=r"index\.json: "):
        open_index(folder)


@pytest.mark.parametrize("value", [1e38, -1e38, 1.5e5])
def test_a_point_too_far_to_be_one_is_named(tmp_path, value):
    points = np.zeros((9, 4), np.float32)
    points[:, 0] = MAX_DISTANCE
    made = frame(tmp_path)
    (tmp_path / "samples").mkdir()
    points.tofile(tmp_path / made.point_file)
    assert len(made.points()) == 9
    points[7, 2] = value
    points.tofile(tmp_path / made.point_file)
    with pytest.raises(OlivineError, match=r"0\.bin: 1 points are over 100000 m away \(the first is point 7\)"):
        made.points()


def test_a_root_with_a_null_character_is_refused(folder):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "root": "a\0b"}))
    with pytest.raises(OlivineError, match=r"index\.json: names a root with a null character"):
        open_index(folder)
