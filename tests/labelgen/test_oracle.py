"""The oracle: exact masks by name, and errors that do what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.labelgen.labeler import make_labeler
from olivine.labelgen.oracle import ErrorModel, image_generator, parse_error_model, spoil
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LABELERS, TAKERS, LabelSettings
from olivine.labelgen.store import open_store


def _maps(world, labels, settings):
    summary = generate_labels(world.index, labels, settings)
    assert summary.failures == []
    store = open_store(labels)
    return {c.key: store.label_map(c) for frame in world.index.frames() for c in frame.cameras}


def test_without_errors_the_maps_are_the_exact_masks_by_name(make_world, world_label, tmp_path):
    world = make_world()
    maps = _maps(world, tmp_path / "labels", LabelSettings("auto", error="none"))
    assert len(maps) == 12
    for key, label in maps.items():
        assert np.array_equal(label, world_label(world.classes[key]))


def test_auto_is_the_oracle_on_a_synthetic_data_set_only(make_world, keyframe_index, tmp_path):
    world = make_world(1, 1)
    summary = generate_labels(world.index, tmp_path / "labels", LabelSettings())
    assert summary.labeler == "oracle" and "synthetic.json" in summary.reason
    with pytest.raises(OlivineError, match="grounded-sam needs weights"):
        generate_labels(keyframe_index, tmp_path / "real", LabelSettings(weights=tmp_path / "none"))
    with pytest.raises(OlivineError, match="this is not one"):
        generate_labels(keyframe_index, tmp_path / "real", LabelSettings("oracle"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(make_world, tmp_path):
    world = make_world()
    folders = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_labels(world.index, tmp_path / name, LabelSettings("oracle", seed=seed))
        folders[name] = {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.png")}
    assert folders["a"] == folders["b"] and folders["a"] != folders["c"]


def test_detections_tell_the_instances(make_world, tmp_path):
    world = make_world(1, 1)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", error="none", segments="masks"))
    store = open_store(tmp_path / "labels")
    record = store.unit("scene-0000")
    table = record["detections"]
    for number, camera in enumerate(next(world.index.frames()).cameras):
        segment = store.segment_map(camera)
        rows = [i for i, image in enumerate(table["image"]) if image == number]
        assert int(segment.max()) == len(rows)
        for position, row in enumerate(rows, 1):
            inside = segment == position
            assert inside.sum() == table["area"][row]
            assert set(store.label_map(camera)[inside]) == {table["class"][row]}
            ys, xs = np.nonzero(inside)
            assert table["box"][row] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


CAR, ROAD, TRUCK = (DEFAULT_VOCABULARY.value(n) for n in ("car", "road", "truck"))
EXACT = ErrorModel(boundary=0, missed=0, confusion=0, leakage=0, feature=0)


def _cars(side: int, count: int = 400):
    """``count`` square cars on a road, and the regions: 1 is the road."""
    cell = side + 4
    columns = 20
    label = np.full((cell * (count // columns), cell * columns), ROAD, np.uint8)
    regions = np.ones(label.shape, np.int32)
    for i in range(count):
        row, column = cell * (i // columns) + 2, cell * (i % columns) + 2
        label[row : row + side, column : column + side] = CAR
        regions[row : row + side, column : column + side] = i + 2
    return label, regions


@pytest.mark.parametrize(("side", "rate"), [(2, 0.5 * 2 ** (-4 / 100)), (10, 0.25), (30, 0.5 * 2**-9)])
def test_instances_are_missed_by_size(side, rate):
    label, regions = _cars(side)
    spoilt, _ = spoil(
        label, regions, replace(EXACT, missed=0.5, missed_area=100), DEFAULT_VOCABULARY, np.random.default_rng(0)
    )
    lost = np.mean([(spoilt[regions == i] == 0).all() for i in range(2, 402)])
    assert lost == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / 400) + 1e-9)
    assert (spoilt[regions == 1] == ROAD).all()


def test_classes_are_confused_at_the_rate_of_the_matrix():
    label, regions = _cars(3)
    model = replace(EXACT, confusion_matrix={"car": {"truck": 0.3, "bus": 0.1}})
    spoilt, _ = spoil(label, regions, model, DEFAULT_VOCABULARY, np.random.default_rng(0))
    found = [int(spoilt[regions == i][0]) for i in range(2, 402)]
    assert np.mean([f == TRUCK for f in found]) == pytest.approx(0.3, abs=0.07)
    assert np.mean([f == DEFAULT_VOCABULARY.value("bus") for f in found]) == pytest.approx(0.1, abs=0.05)
    assert (spoilt[regions == 1] == ROAD).all()


def test_boundaries_move_by_the_displacements_standard_deviation():
    label = np.full((400, 400), ROAD, np.uint8)
    label[:, 200:] = DEFAULT_VOCABULARY.value("building")
    regions = np.where(label == ROAD, 1, 2).astype(np.int32)
    spoilt, _ = spoil(label, regions, replace(EXACT, boundary=3.0), DEFAULT_VOCABULARY, np.random.default_rng(0))
    edges = (spoilt == ROAD).sum(1) - 200
    assert np.std(edges) == pytest.approx(3.0, rel=0.35)
    assert set(np.unique(spoilt)) == set(np.unique(label))


def test_stuff_leaks_over_unlabelled_pixels_up_to_its_distance_and_not_over_things():
    label = np.zeros((60, 100), np.uint8)
    label[40:] = ROAD
    label[20:40, 40:60] = CAR
    regions = label.astype(np.int32)
    model = replace(EXACT, leakage=1.0, leakage_distance=10)
    spoilt, _ = spoil(label, regions, model, DEFAULT_VOCABULARY, np.random.default_rng(0))
    assert (spoilt[30:40, :30] == ROAD).all() and (spoilt[:29, :30] == 0).all()
    assert (spoilt[20:40, 40:60] == CAR).all()


def test_the_random_numbers_of_an_image_are_its_own():
    draws = {key: image_generator(3, key).random() for key in ("CAM_FRONT/a", "CAM_FRONT/b")}
    assert draws["CAM_FRONT/a"] != draws["CAM_FRONT/b"]
    assert (
        image_generator(3, "CAM_FRONT/a").random() == draws["CAM_FRONT/a"] != image_generator(4, "CAM_FRONT/a").random()
    )


def test_an_error_model_is_read_from_text_and_from_a_file(tmp_path):
    assert parse_error_model("none").exact and not parse_error_model("default").exact
    assert parse_error_model("boundary=1.5,missed=0.2") == replace(EXACT, boundary=1.5, missed=0.2)
    (tmp_path / "e.yaml").write_text("leakage: 0.4\nconfusion_matrix: {car: {truck: 0.2}}\n")
    assert parse_error_model(str(tmp_path / "e.yaml")) == replace(
        EXACT, leakage=0.4, confusion_matrix={"car": {"truck": 0.2}}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur=2", "no quantity 'blur'"),
        ("missed=often", "missed is 'often'"),
        ("boundary=1,missed", "'missed' has no value"),
        ("missed=2", "missed is 2"),
        ("boundary=-1", "boundary is negative"),
        ("somewhere.yaml", "no such file"),
        ("missed=nan", "missed is nan"),
        ("boundary=nan", "boundary is nan"),
        ("boundary=1e300", "boundary is 1e"),
        ("missed_area=inf", "missed_area is inf"),
        ("leakage_distance=-inf", "leakage_distance is negative"),
        ("confusion_matrix=car", "confusion_matrix: is 'car', expected a mapping"),
        ("boundary=" + "9" * 5000, "boundary is inf"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_bad_error_model_is_refused(text, message):
    with pytest.raises(OlivineError, match=message):
        parse_error_model(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "maps quantities to numbers"),
        ("boundary: .nan", "which is no plain value"),
        ("boundary: [1]", r"boundary is \[1\]"),
        ("boundary: true\nmissed: 2024-01-01", "which is no plain value"),
        ("confusion_matrix: {car: {truck: often}}", "confusion_matrix: car.truck is 'often', expected a number"),
        ("confusion_matrix: {car: 3}", "confusion_matrix: car is 3, expected a mapping"),
        ("confusion_matrix: {car: {truck: 0.7, bus: 0.7}}", "row 'car' of the confusion matrix"),
        ("a: &a [x]\nb: *a", "has an alias"),
    ],
)
def test_a_bad_file_of_an_error_model_is_refused(text, message, tmp_path):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(OlivineError, match=message):
        parse_error_model(str(tmp_path / "e.yaml"))


def test_a_confusion_matrix_of_other_classes_is_refused(make_world, tmp_path):
    world = make_world(1, 1)
    (tmp_path / "e.yaml").write_text("confusion_matrix: {car: {lorry: 0.2}}\n")
    with pytest.raises(OlivineError, match=r"e\.yaml: the confusion matrix names 'lorry'.*Use .*truck"):
        generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", error=str(tmp_path / "e.yaml")))


def test_a_synthetic_data_set_that_is_not_whole_is_named(make_world, tmp_path):
    world = make_world(1, 2)
    first, second = world.index.frames()
    first.image_truth[0][0].unlink()
    second.image_truth[1][1].write_bytes(b"no png")
    summary = generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    assert summary.images == 2
    reasons = [f.reason for f in summary.failures]
    assert any(str(first.image_truth[0][0]) in r for r in reasons)
    assert any(str(second.image_truth[1][1]) in r for r in reasons)
    (world.root / "synthetic.json").write_text('{"classes": ["", "sky"]}')
    with pytest.raises(OlivineError, match="none of the prompts' classes"):
        generate_labels(world.index, tmp_path / "again", LabelSettings("oracle"))


# Each option that some labelers do not use, with another value than its default.
GIVEN = {
    "camseg": Path("seem"), "classes": Path("seem"), "regions": Path("seem"), "phrases": Path("seem"), "clip": "siglip2-so400m",
    "clip_checkpoint": Path("seem"), "error": "none", "seed": 1, "detector": "swin-b", "detector_checkpoint": Path("seem"),
    "detector_config": Path("seem"), "text_encoder": Path("seem"), "sam": "vit-b", "sam_checkpoint": Path("seem"),
    "box_threshold": 0.0, "text_threshold": 0.5, "short_side": 96, "long_side": 2000, "prompting": "separate",
    "overlap": "reference", "min_area": 9, "max_components": 3,
}  # fmt: skip


@pytest.mark.parametrize("option", GIVEN)
def test_an_option_of_another_labeler_is_refused(option, make_world, tmp_path):
    """A folder of label maps without --labeler import gave the oracle's, or grounded-sam's, without a word."""
    settings, said = LabelSettings("auto", **{option: GIVEN[option]}), f"--{option.replace('_', '-')}"
    assert sorted(GIVEN) == sorted(TAKERS)
    for name in set(LABELERS) - {"auto"}:
        with pytest.raises(OlivineError) as caught:  # there are no weights, no folder and no synthetic data set
            make_labeler(name, replace(settings, weights=tmp_path), DEFAULT_VOCABULARY, tmp_path)
        refused = f"{said} is not for --labeler {name}. Add --labeler" in str(caught.value)
        assert refused == (name not in TAKERS[option])
    if option not in ("error", "seed"):
        with pytest.raises(OlivineError, match=f"{said} is not for --labeler oracle. Add --labeler"):
            generate_labels(make_world(1, 1).index, tmp_path / "labels", settings)


def test_segments_of_a_sam_take_its_options_beside_any_labeler(make_world, tmp_path):
    settings = LabelSettings("oracle", segments="sam", sam="vit-b", weights=tmp_path)
    with pytest.raises(OlivineError, match=r"--segments sam needs weights .*sam_vit_b"):
        generate_labels(make_world(1, 1).index, tmp_path / "labels", settings)
