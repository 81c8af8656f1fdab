"""Importing label maps: the keyframe's, and folders that are not right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.run import generate_labels, plan_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.readers.index import write_index

pytestmark = pytest.mark.frames("synthetic")


def _copy(camseg: Path, target: Path) -> Path:
    shutil.copytree(camseg, target, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


@pytest.mark.frames("synthetic", "real")
def test_the_keyframes_label_maps_arrive_value_for_value(keyframe_index, keyframe_camseg, tmp_path):
    summary = generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("import", camseg=keyframe_camseg))
    assert (summary.images, summary.failures) == (6, [])
    store = open_store(tmp_path / "labels")
    assert len(store.classes) == 13 and store.manifest["data"] == {"dataset": "nuscenes", "version": "v1.0-mini"}
    for camera in next(keyframe_index.frames()).cameras:
        with Image.open(keyframe_camseg / f"{camera.key}.png") as original:
            assert np.array_equal(store.label_map(camera), np.asarray(original))
    assert sum(summary.pixels.values()) == pytest.approx(1)


def test_another_vocabulary_is_mapped_by_a_file(keyframe_index, keyframe_camseg, tmp_path):
    # Class 4 (car) is called 200 there, everything else is background.
    camseg = _copy(keyframe_camseg, tmp_path / "camseg")
    for path in camseg.rglob("*.png"):
        with Image.open(path) as image:
            values = np.asarray(image)
        Image.fromarray(np.where(values == 4, 200, 16).astype(np.uint8)).save(path)
    (tmp_path / "classes.yaml").write_text("200: car\n16: background\n7: truck\n")
    settings = LabelSettings("import", camseg=camseg, classes=tmp_path / "classes.yaml")
    generate_labels(keyframe_index, tmp_path / "labels", settings)
    store = open_store(tmp_path / "labels")
    for camera in next(keyframe_index.frames()).cameras:
        with Image.open(keyframe_camseg / f"{camera.key}.png") as original:
            assert np.array_equal(store.label_map(camera), np.where(np.asarray(original) == 4, 4, 0))


# The authors' order (github.com/Eaphan/OLIVINE, demo_code/utils/constants.py), and the background after it.
SEEM = (
    "barrier", "bicycle", "bus", "car", "truck", "trailer", "motorcycle", "construction_vehicle", "pedestrian",
    "traffic_cone", "road", "sidewalk", "terrain", "vegetation", "building", "other ground", "background",
)  # fmt: skip


def test_the_authors_seem_label_maps_are_read_by_the_name_of_their_class_map(keyframe_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cameras = next(keyframe_index.frames()).cameras
    values = np.zeros((900, 1600), np.uint8)
    values[:17] = np.arange(17)[:, None]
    for camera in cameras:
        path = tmp_path / "camseg" / f"{camera.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    settings = LabelSettings("import", camseg=tmp_path / "camseg", classes=Path("seem"))
    summary = generate_labels(keyframe_index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (6, [])
    store = open_store(tmp_path / "labels")
    for camera in cameras:
        found = store.label_map(camera)[:17, 0]
        for name, value in zip(SEEM, found.tolist()):
            expected = name.replace("_", " ")
            assert value == (store.classes.index(expected) + 1 if expected in store.classes else 0), name
    assert sorted(set(found.tolist())) == list(range(14))  # each of the 13 prompts, and no label

    with pytest.raises(OlivineError, match=r"sem: no such class map\. Name a YAML or JSON file, .*: seem"):
        generate_labels(
            keyframe_index, tmp_path / "other", LabelSettings("import", camseg=tmp_path, classes=Path("sem"))
        )


def _spoil_value(path: Path) -> None:
    with Image.open(path) as image:
        values = np.asarray(image).copy()
    values[5, 5] = 77
    Image.fromarray(values).save(path)


SPOILERS = {
    "no such label map": Path.unlink,
    "is 800x450, not 1600x900": lambda path: Image.new("L", (800, 450)).save(path),
    "holds the value 77, which has no meaning": _spoil_value,
    "cannot be read": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "has RGB colours": lambda path: Image.new("RGB", (1600, 900)).save(path),
}


@pytest.mark.parametrize("message", SPOILERS)
def test_a_bad_label_map_is_named_and_the_others_get_done(message, keyframe_index, keyframe_camseg, tmp_path):
    camseg = _copy(keyframe_camseg, tmp_path / "camseg")
    bad = camseg / f"{next(keyframe_index.frames()).cameras[2].key}.png"
    SPOILERS[message](bad)
    summary = generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("import", camseg=camseg))
    assert summary.images == 5
    (failure,) = summary.failures
    assert message in failure.reason and str(bad) in failure.reason

    shutil.copyfile(keyframe_camseg / bad.relative_to(camseg), bad)
    mended = generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("import", camseg=camseg))
    assert (mended.images, mended.images_kept, mended.failures) == (1, 5, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("200: lorry\n", "'lorry', which is not a class"),
        ("car: 200\n", "'car' is not a value"),
        ("", "maps no values"),
        ("3: car\n'3': bus\n", "names the value 3 a second time"),
        ("'²': car\n", "'²' is not a value"),
        ("99999999999999999999: car\n", "which is no plain value"),
        ("'99999999999999999999': car\n", "is not a value"),
        ("3: [car]\n", "is not a class"),
    ],
)
def test_a_bad_class_file_is_refused(text, message, keyframe_index, keyframe_camseg, tmp_path):
    (tmp_path / "classes.yaml").write_text(text)
    settings = LabelSettings("import", camseg=keyframe_camseg, classes=tmp_path / "classes.yaml")
    with pytest.raises(OlivineError, match=message):
        generate_labels(keyframe_index, tmp_path / "labels", settings)


def test_import_needs_a_folder_that_is_there_and_not_its_own_output(keyframe_index, keyframe_camseg, tmp_path):
    with pytest.raises(OlivineError, match="--camseg"):
        generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("import"))
    with pytest.raises(OlivineError, match="no such folder"):
        generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("import", camseg=tmp_path / "nowhere"))
    camseg = _copy(keyframe_camseg, tmp_path / "camseg")
    with pytest.raises(OlivineError, match=r"both --camseg and --out\. Choose another --out folder"):
        generate_labels(keyframe_index, camseg, LabelSettings("import", camseg=camseg))
    with pytest.raises(OlivineError, match=r"somebody else made them\. Choose another --out folder"):
        generate_labels(keyframe_index, camseg, LabelSettings("import", camseg=keyframe_camseg))


def test_label_maps_that_were_corrected_or_lie_in_another_folder_are_imported_again(make_world, tmp_path):
    world, labels = make_world(2, 2), tmp_path / "labels"
    frames, maps = list(world.index.frames()), tmp_path / "one/maps"
    generate_labels(world.index, maps, LabelSettings("oracle"))
    settings = LabelSettings("import", camseg=maps)
    first = frames[0].cameras[0]

    def correct(folder: Path, shift: int) -> np.ndarray:
        """Another map in a file of one and the same size."""
        path = folder / f"{first.key}.png"
        values = np.roll(np.asarray(Image.open(path)), shift, 0)
        Image.fromarray(values).save(path, compress_level=0)
        return values

    correct(maps, 1)
    assert generate_labels(world.index, labels, settings).images == 8
    os.utime(maps / f"{first.key}.png", ns=(1, 1))  # as in a copy
    assert generate_labels(world.index, labels, settings).images == 0
    wanted = correct(maps, 1)
    assert plan_labels(world.index, labels, settings, 2).open == (0,)
    again = generate_labels(world.index, labels, settings)
    assert (again.images, again.images_kept) == (4, 4)  # that scene's
    assert np.array_equal(open_store(labels).label_map(first), wanted)

    other = tmp_path / "two/maps"
    shutil.copytree(maps, other)
    wanted = correct(other, 1)
    assert generate_labels(world.index, labels, LabelSettings("import", camseg=other)).images == 4
    assert np.array_equal(open_store(labels).label_map(first), wanted)

    # Also where the list of images has changed: the maps of those that stay, and are what they were, are kept.
    correct(other, 1)
    fewer = [frame for frame in frames if frame != frames[3]]
    index = write_index(
        tmp_path / "fewer", fewer[:1] + fewer[2:], dataset="nuscenes", version="v1.0-mini", root=world.root
    )
    again = generate_labels(index, labels, LabelSettings("import", camseg=other))
    assert (again.images, again.images_kept) == (1, 3)


def test_olivines_label_maps_of_other_classes_are_not_taken_by_number(make_world, tmp_path):
    world, maps = make_world(1, 1), tmp_path / "maps"
    (tmp_path / "prompts.yaml").write_text("[car, {name: road, kind: stuff}]\n")
    generate_labels(world.index, maps, LabelSettings("oracle", prompts=tmp_path / "prompts.yaml"))
    settings = LabelSettings("import", camseg=maps)
    with pytest.raises(
        OlivineError, match=r"maps/manifest.json: its values mean car, road, not the prompts'\. Give the same"
    ):
        generate_labels(world.index, tmp_path / "labels", settings)
    for name, given in (
        ("same", {"prompts": tmp_path / "prompts.yaml"}),
        ("named", {"classes": tmp_path / "classes.yaml"}),
    ):
        (tmp_path / "classes.yaml").write_text("0: none\n1: car\n2: road\n")
        assert generate_labels(world.index, tmp_path / name, LabelSettings("import", camseg=maps, **given)).images == 2
    # Prompts that begin with the same classes give the values the same meaning.
    generate_labels(world.index, tmp_path / "thirteen", LabelSettings("oracle"))
    longer = LabelSettings("import", camseg=tmp_path / "thirteen", prompts=Path("lidarseg16"))
    assert generate_labels(world.index, tmp_path / "sixteen", longer).failures == []
