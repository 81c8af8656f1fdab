"""The format: what is stored comes back, zarr-python reads it alike, damage is named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from olivine.common import OlivineError, sha256_file, write_json
from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.check import describe_shards
from olivine.pairs.clusters import ClusterSettings, SceneClusters
from olivine.pairs.consolidate import SceneVotes
from olivine.pairs.frames import build_frame
from olivine.pairs.layout import ARRAYS, COLUMNS
from olivine.pairs.manifest import _entry_digest
from olivine.pairs.project import look_up, project_points
from olivine.pairs.settings import ConsolidationSettings, PairSettings
from olivine.pairs.shard_writer import write_shard
from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers import open_dataset

SETTINGS = PairSettings(segments=True, regions=True, clusters=1, consolidate=1)


@pytest.fixture(scope="module")
def made(
    make_store_in: Callable[[Path], Callable[..., LabelStore]],
    add_regions: Callable[..., LabelStore],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LabelStore, Path]:
    """A data set with labels and its shards, made once."""
    folder = tmp_path_factory.mktemp("made")
    store = add_regions(make_store_in(folder)({"a": 3, "b": 2}))
    build_pairs(store, folder / "pairs", SETTINGS, split="train")
    return store, folder / "pairs"


@pytest.fixture
def built(made: tuple[LabelStore, Path], tmp_path: Path) -> tuple[LabelStore, ShardSet]:
    """The data set, and a copy of its shards that a test may damage."""
    store, pairs = made
    return store, open_shards(shutil.copytree(pairs, tmp_path / "pairs"))


def test_every_field_of_a_frame_comes_back(built: tuple[LabelStore, ShardSet]) -> None:
    store, shards = built
    frames = list(store.index().frames("train"))
    assert len(shards) == len(frames) == 5
    for i, frame in enumerate(frames):
        made, record = build_frame(frame, i, store, SETTINGS), shards[i]
        scene = next(scene for scene in store.index().scenes if scene.name == frame.scene)
        made.columns.update(SceneClusters(scene.frames(), 1, ClusterSettings()).columns(record.frame_index))
        votes = SceneVotes(scene.frames(), 1, store, SETTINGS.min_depth, ConsolidationSettings())
        made.columns.update(votes.columns(record.frame_index, made.columns))
        for name, expected in made.columns.items():
            found = getattr(record, name)
            if COLUMNS[name].over == "regions":  # as wide as the shard's fullest image
                assert not found[:, expected.shape[1] :].any()
                found = found[:, : expected.shape[1]]
            assert found == expected if COLUMNS[name].over == "images" else np.array_equal(found, expected), name
        assert {name for name in COLUMNS if getattr(record, name) is not None} == set(made.columns)
        assert (record.token, record.scene, record.split) == (frame.token, frame.scene, "train")
        assert (record.timestamp, record.bandwidth) == (frame.timestamp, made.bandwidth)
        assert np.array_equal(record.points, frame.points())
        assert record.image_bytes is not None
        assert record.image_bytes.tolist() == [len(data) for data in made.columns["image"]]
        assert record.points.flags.writeable  # a loader may turn them in place


class _Long(bytes):
    def __len__(self) -> int:
        return 1 << 30


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("points", np.broadcast_to(np.float32(1), (1 << 27, 4))),  # takes no memory
        ("image", [_Long(), _Long()]),
    ],
)
def test_a_frame_beyond_what_a_chunk_holds_is_one_line(
    column: str, values: Any, built: tuple[LabelStore, ShardSet], tmp_path: Path
) -> None:
    store, _ = built
    made = build_frame(next(store.index().frames("train")), 0, store, SETTINGS)
    large = replace(made, columns={**made.columns, column: values})
    with pytest.raises(OlivineError, match=rf"frame {made.token}.*: {column} of one frame takes 2,147,483,648 bytes"):
        write_shard(tmp_path / "large.zarr", [large], {})


def test_the_set_knows_what_is_in_it(built: tuple[LabelStore, ShardSet]) -> None:
    store, shards = built
    assert shards.classes == store.classes and shards.point_classes == ("vehicle", "ground")
    assert shards.cameras == ("CAM_FRONT", "CAM_BACK")
    assert shards.scenes == {"a": range(3), "b": range(3, 5)} and shards.shard_ranges == (range(3), range(3, 5))
    assert shards.tokens == tuple(frame.token for frame in store.index().frames())
    assert shards.class_count.tolist() == np.sum([record.class_count for record in shards], axis=0).tolist()
    assert shards.class_count.tolist() == sum(np.bincount(r.pair_label, minlength=4) for r in shards).tolist()
    assert shards.image_size.tolist() == [[64, 36], [64, 36]]
    assert shards.complete and shards.has_image and shards.has_point_label and shards.has_segment
    assert [record.index for record in shards[-2:]] == [3, 4] and shards[-1].token == shards[4].token
    with pytest.raises(IndexError):
        shards[5]


def test_zarr_python_reads_every_array_alike(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    for number, frames in enumerate(shards.shard_ranges):
        shard = shards.shard(number)
        group = zarr.open_group(str(shard.path), mode="r")
        assert set(group.array_keys()) == set(ARRAYS) == set(shard.arrays)
        for name, ours in shard.arrays.items():
            theirs = group[name][...]
            assert theirs.dtype == ARRAYS[name].dtype
            if ours.packed:
                for i in range(len(frames)):
                    assert np.array_equal(shard.frame(name, i), theirs[i]), name
            else:
                assert np.array_equal(shard.table(name), theirs), name
        assert group.attrs["schema"] == "1.1" and list(group.attrs["token"]) == list(shard.tokens)


def test_on_disk_a_tag_is_the_camera_and_then_the_label(built: tuple[LabelStore, ShardSet]) -> None:
    """As docs/shards.md says: other programs read the array, not our table."""
    store, shards = built
    frame = next(iter(store.index().frames("train")))
    group = zarr.open_group(str(shards.shard(0).path), mode="r")
    tag, own = group["pair_tag"][0], group["pair_pixel_label"][0]
    _, camera, uv = project_points(frame.points(), frame.cameras)
    assert np.array_equal(tag[: len(camera), 0], camera)
    label = np.concatenate([look_up(store.label_map(c), uv[camera == k]) for k, c in enumerate(frame.cameras)])
    assert np.array_equal(own[: len(camera)], label) and len(set(label.tolist())) > 2
    won = group["point_weak"][0][group["pair_point"][0][: len(camera)]]
    assert np.array_equal(tag[: len(camera), 1], np.where(won > 0, won, label))


def test_the_codecs_are_those_of_the_design(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    for name, layout in ARRAYS.items():
        codecs = json.loads((shards.shard(0).path / name / "zarr.json").read_text())["codecs"]
        if layout.packed:
            (sharding,) = codecs
            assert sharding["name"] == "sharding_indexed" and sharding["configuration"]["chunk_shape"][0] == 1
            assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
            codecs = sharding["configuration"]["codecs"]
        assert [codec["name"] for codec in codecs] == ["bytes", "zstd", "crc32c"]
        assert len(list((shards.shard(0).path / name / "c").rglob("*"))) == len(shards.shard(0).arrays[name].shape)


def test_attributes_say_where_frames_and_labels_come_from(built: tuple[LabelStore, ShardSet]) -> None:
    store, shards = built
    attributes = shards.shard(1).attributes
    assert attributes["scene"] == "b" and attributes["frame_index"] == [0, 1]
    assert attributes["labels"] == store.digest
    assert attributes["point_class_raw"] == [[0], [1], [2, 3]]
    assert len(attributes["bandwidth"]) == 2


def test_opening_reads_the_manifest_alone(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    for shard in shards.path.glob("*.zarr"):
        shutil.rmtree(shard)
    again = open_shards(shards.path)
    assert len(again) == 5 and again.digest == shards.digest


def test_reading_imports_neither_torch_nor_zarr_nor_numba() -> None:
    program = (
        "import sys, olivine.pairs.shards; "
        "sys.exit(' '.join({'torch', 'zarr', 'numba', 'scipy', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_set_can_be_sent_to_a_worker(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    again = pickle.loads(pickle.dumps(shards))
    assert again.digest == shards.digest and np.array_equal(again[2].points, shards[2].points)


# -- damage ----------------------------------------------------------------------------------------


def _read_all(path: Path) -> None:
    for record in open_shards(path):
        assert len(record.points)


def test_a_flipped_bit_anywhere_is_reported_with_its_file(built: tuple[LabelStore, ShardSet]) -> None:
    """Three places of every file of a shard, its metadata included."""
    _, shards = built
    shard = shards.shard(0).path
    rng = np.random.default_rng(0)
    files = [path for path in shard.rglob("*") if path.is_file()]
    assert len(files) == 2 * len(ARRAYS) + 1
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) - 1, int(rng.integers(len(whole)))}:
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(OlivineError) as error:
                _read_all(shards.path)
            assert shard.name in str(error.value) and "olivine build-pairs again" in str(error.value)
            array = path.relative_to(shard).parts[0]
            assert array == "zarr.json" or array in str(error.value)
        path.write_bytes(whole)
    _read_all(shards.path)


def test_a_flipped_bit_in_a_frame_is_reported_with_the_frame(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    array = shards.shard(0).arrays["pair_uv"]
    offset, length = (int(value) for value in array.index()[1])
    data = bytearray(array.path.read_bytes())
    data[offset + length // 2] ^= 4
    array.path.write_bytes(data)
    again = open_shards(shards.path)
    assert again.token(0) == "a-token-0000" and len(
        again.read(0, ["pair_uv"]).pair_uv
    )  # the frames before it are whole
    with pytest.raises(OlivineError, match=r"shard-00000\.zarr, array pair_uv, frame 1 \(a-token-0001\)"):
        again.read(1, ["pair_uv"])


def test_a_missing_file_is_an_error_and_never_zeros(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    for path in [p for p in shards.shard(1).path.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(OlivineError, match=r"shard-00001\.zarr.*gone"):
            open_shards(shards.path)[3]
        path.write_bytes(whole)


def test_a_truncated_file_is_an_error(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    path = shards.shard(0).arrays["points"].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OlivineError, match=r"shard-00000\.zarr.*points"):
        open_shards(shards.path)[0]


def test_a_flipped_bit_in_the_manifest_is_reported(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    path = shards.path / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            again = open_shards(shards.path)
        except OlivineError as error:
            assert "manifest.json" in str(error)
        else:  # a space that became another space
            assert again.digest == shards.digest and len(again) == 5


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    manifest["digest"] = _entry_digest(manifest)
    write_json(path / "manifest.json", manifest)


def _first(**changes: object) -> Callable[[dict], None]:
    return lambda manifest: manifest["shards"][0].update(changes)


def _file(name: str, entry: object = (1, "0")) -> Callable[[dict], None]:
    return lambda manifest: manifest["shards"][0]["files"].update({name: entry})


def _drop(*keys: str) -> Callable[[dict], None]:
    def change(manifest: dict) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _first(name="../elsewhere"),
        _first(name="/etc"),
        _first(name="shard-00001.zarr"),
        _first(number=-1),
        _first(number=2**64),
        _first(frames=0),
        _first(frames="3"),
        _first(class_count=[1]),
        _first(class_count=None),
        _first(image_size=[[1]]),
        _first(left_out=[["a"]]),
        _first(files={}),
        _first(files=[]),
        _file("../../elsewhere/zarr.json"),
        _file("points/../../../x"),
        _file("/etc/passwd"),
        _file("points/zarr.json", [1]),
        _file("points/zarr.json", ["1", "0"]),
        _drop("recipe"),
        _drop("recipe", "classes"),
        _drop("recipe", "settings", "images"),
        _drop("provenance", "packages"),
        _drop("class_count"),
        _drop("cameras"),
        lambda manifest: manifest.update(shards={}),
        lambda manifest: manifest.update(shards=[3]),
        lambda manifest: manifest.update(planned_frames=None),
        lambda manifest: manifest["recipe"].update(classes="car"),
    ],
)
def test_a_manifest_that_leads_outside_or_lacks_a_key_is_one_line(
    built: tuple[LabelStore, ShardSet], change: Callable[[dict], None]
) -> None:
    """Its digest is right: whoever wrote it knows the format."""
    _, shards = built
    _edit(shards.path, change)
    with pytest.raises(OlivineError, match=r"manifest\.json: ") as error:
        open_shards(shards.path)
    assert "\n" not in str(error.value)


def _forge(shards: ShardSet, name: str, change: Callable[[dict], object]) -> None:
    """Change a shard's metadata and enter the change, so that every digest matches."""
    path = shards.path / "shard-00000.zarr" / name
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(change(plain) or plain))
    _edit(shards.path, _file(name, [path.stat().st_size, sha256_file(path)]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("zarr.json", lambda plain: plain["attributes"]["token"].__setitem__(0, "../../outside")),
        ("zarr.json", lambda plain: plain["attributes"]["token"].__setitem__(0, "/outside")),
        ("zarr.json", lambda plain: plain["attributes"]["token"].pop()),
        ("zarr.json", lambda plain: plain["attributes"].update(token=3)),
        ("zarr.json", lambda plain: plain["attributes"].pop("bandwidth")),
        ("zarr.json", lambda plain: plain.pop("attributes")),
        ("zarr.json", lambda plain: [1]),
        ("points/zarr.json", lambda plain: plain.update(data_type="object")),
        ("points/zarr.json", lambda plain: plain.update(data_type="float64")),
        ("points/zarr.json", lambda plain: plain.update(data_type=["u1"])),
        ("points/zarr.json", lambda plain: plain.update(shape=[])),
        ("points/zarr.json", lambda plain: plain.update(shape=[3, -1, 4])),
        ("points/zarr.json", lambda plain: plain.update(shape="xyz")),
        ("points/zarr.json", lambda plain: plain.update(codecs=[])),
        ("points/zarr.json", lambda plain: plain["codecs"].__setitem__(0, "zstd")),
        ("points/zarr.json", lambda plain: plain["chunk_key_encoding"]["configuration"].update(separator="/../")),
        ("points/zarr.json", lambda plain: [1]),
        ("pair_count/zarr.json", lambda plain: plain["codecs"].__setitem__(1, {"name": "pickle"})),
    ],
)
def test_metadata_that_is_not_the_formats_is_one_line(
    built: tuple[LabelStore, ShardSet], name: str, change: Callable[[dict], object]
) -> None:
    _, shards = built
    _forge(shards, name, change)
    again = open_shards(shards.path)
    with pytest.raises(OlivineError, match=r"shard-00000\.zarr") as error:
        again[0]
    assert "\n" not in str(error.value)
    assert len(again.points(4)) == again[4].point_count  # the other shard is read


def test_a_shard_of_other_cameras_than_the_manifest_names_is_refused(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    _edit(shards.path, lambda manifest: manifest["cameras"].pop())
    with pytest.raises(OlivineError, match=r"shard-00000\.zarr: image_size has 2 columns, the manifest says 1"):
        open_shards(shards.path)[0]


def test_a_chunk_longer_than_its_file_takes_no_memory(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    array = shards.shard(0).arrays["points"]
    for offset, length in ((0, 2**62), (2**63, 16), (2**62, 2**62)):
        array._index = np.array([[offset, length]] * 3, np.uint64)
        with pytest.raises(OlivineError, match="bytes early"):
            array.frame(0, "x")


def test_an_unknown_major_schema_is_refused_and_a_newer_minor_one_read(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    _edit(shards.path, lambda manifest: manifest.update(schema="1.7"))
    assert len(open_shards(shards.path)) == 5
    _edit(shards.path, lambda manifest: manifest.update(schema="2.0"))
    with pytest.raises(OlivineError, match=r"schema 2\.0.*reads 1\.1"):
        open_shards(shards.path)


def test_the_data_sets_intensity_rule_travels_with_the_shards_and_the_points_stay_raw(
    built: tuple[LabelStore, ShardSet], kitti_world: Any
) -> None:
    assert built[1].intensity_offset == 0.0  # nuScenes
    frames = open_dataset("semantickitti", kitti_world.root).frames("train")
    shards = open_shards(kitti_world.pairs / "train")
    assert shards.intensity_offset == 1.0
    for file in shards.path.glob("*.zarr"):
        assert zarr.open_group(str(file), mode="r").attrs["intensity_offset"] == 1.0
    for i, frame in enumerate(frames):
        raw = np.fromfile(frame.root / frame.point_file, np.float32).reshape(-1, 4)
        assert np.array_equal(shards.points(i), raw)


def test_shards_from_before_the_intensity_rule_are_refused_where_the_data_set_has_one(
    built: tuple[LabelStore, ShardSet],
) -> None:
    _, shards = built
    _edit(shards.path, lambda manifest: manifest["recipe"].pop("intensity_offset"))
    assert open_shards(shards.path).intensity_offset == 0.0  # nuScenes has none
    for name in ("kitti", "semantickitti"):
        _edit(shards.path, lambda manifest, name=name: manifest["recipe"].update(dataset=name))
        again = open_shards(shards.path)  # still opens: to describe it, for instance
        with pytest.raises(OlivineError, match=f"olivine build-pairs --dataset {name} --split train") as error:
            _ = again.intensity_offset
        assert str(shards.path) in str(error.value) and "\n" not in str(error.value)
        assert describe_shards(shards.path).intensity_offset is None


def test_shards_of_two_intensity_rules_do_not_meet_in_one_set(
    make_store: Callable[..., LabelStore], tmp_path: Path
) -> None:
    store, settings = make_store({"a": 1}), PairSettings()
    build_pairs(store, tmp_path / "pairs", settings, split="train")
    other = replace(store.index(), intensity_offset=1.0)
    with pytest.raises(OlivineError, match=r"intensity_offset was 0\.0, now 1\.0"):
        build_pairs(store, tmp_path / "pairs", settings, split="train", index=other)


def test_unknown_optional_arrays_are_ignored(built: tuple[LabelStore, ShardSet]) -> None:
    _, shards = built
    group = zarr.open_group(str(shards.shard(0).path), mode="a")
    group.create_array("colour", shape=(3, 4), dtype="int16")[...] = 1
    again = open_shards(shards.path)
    assert np.array_equal(again[0].points, shards[0].points)


def test_shards_of_other_labels_than_the_manifest_says_are_refused(
    built: tuple[LabelStore, ShardSet], tmp_path: Path
) -> None:
    """A shard copied in from another set, its digests entered and all."""
    _, shards = built
    _edit(shards.path, lambda manifest: manifest["recipe"].update(labels="0" * 64))
    with pytest.raises(OlivineError, match=r"shard-00000\.zarr.*other labels"):
        open_shards(shards.path)[0]


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match="Run olivine build-pairs first"):
        open_shards(tmp_path)
    (tmp_path / "units").mkdir()
    with pytest.raises(OlivineError, match=r"unfinished.*Run olivine build-pairs again"):
        open_shards(tmp_path)


def test_a_file_that_may_not_be_read_is_no_reason_to_delete_a_good_shard(
    built: tuple[LabelStore, ShardSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = built
    chunk = shards.shard(0).arrays["points"].path
    says = r"cannot be read \(Permission denied\).*permissions"

    def refuse(true: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(path, (str, Path)) and str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return true(path, *arguments, **named)

        return call

    for owner, call, name in (
        (os, "open", str(chunk)),
        (os, "stat", str(chunk)),
        (Path, "stat", "zarr.json"),
        (Path, "read_bytes", "shard-00000.zarr/zarr.json"),
    ):
        with monkeypatch.context() as patch:
            again = open_shards(shards.path)
            patch.setattr(owner, call, refuse(getattr(owner, call), name))
            with pytest.raises(OlivineError, match=says) as caught:
                again.points(0)
            assert "delete" not in str(caught.value), call
