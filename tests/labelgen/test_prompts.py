"""The vocabulary: the 13 prompts, and other vocabularies from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from olivine.common import OlivineError
from olivine.downstream.weak import class_of_prompt
from olivine.labelgen.prompts import DEFAULT_VOCABULARY, load_vocabulary
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.readers.dataset import dataset_class


def test_the_13_prompts_are_the_papers_in_its_order():
    assert DEFAULT_VOCABULARY.classes == (
        "barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck",
        "road", "sidewalk", "terrain", "vegetation", "building",
    )  # fmt: skip
    assert DEFAULT_VOCABULARY.prompt_values == tuple(range(1, 14))
    assert [DEFAULT_VOCABULARY.is_thing(v) for v in range(1, 14)] == [True] * 8 + [False] * 5


def test_several_prompts_may_make_one_class(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "- {name: person, class: pedestrian}\n- car\n- {name: child, words: a  Small child, class: pedestrian}\n"
        "- {name: street, words: road surface, kind: stuff}\n"
    )
    vocabulary = load_vocabulary(path)
    assert vocabulary.classes == ("pedestrian", "car", "street")
    assert vocabulary.prompt_values == (1, 2, 1, 3)
    assert [p.words for p in vocabulary.prompts] == ["person", "car", "a small child", "road surface"]
    assert vocabulary.is_thing(1) and not vocabulary.is_thing(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car: 1\n", "a list of prompts"),
        ("[]\n", "a list of prompts"),
        ("- {words: car}\n", "prompt 1 has no name"),
        ("- {name: car, colour: red}\n", "unknown key 'colour'"),
        ("- {name: car, kind: object}\n", "kind 'object'"),
        ("- {name: car, words: ' - '}\n", "has no words"),
        ("- {name: car, words: a. b}\n", "separate prompts"),
        ("- car\n- car\n", "two prompts are named"),
        ("- car\n- {name: auto, words: CAR}\n", "collide"),
        ("- {name: a, class: x}\n- {name: b, class: x, kind: stuff}\n", "both thing and stuff"),
        ("- {name: car\n", "is not YAML"),
        ("- &a car\n- *a\n", "has an alias"),
        ("- {name: 2020-01-01}\n", "which is no plain value"),
        ("- {name: car, words: [a]}\n", r"words is \['a'\], expected a number, a whole number or text|words is"),
        ("- {name: car, kind: [thing]}\n", "kind is"),
        ("[" * 500, "nested more than 64 deep"),
    ],
)
def test_a_bad_vocabulary_file_is_named_with_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(OlivineError, match=message) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)


def test_ground_is_told_by_the_13_names_or_by_the_prompts_kind(make_world, tmp_path):
    world = make_world(1, 1)
    generate_labels(world.index, tmp_path / "plain", LabelSettings("oracle"))
    store = open_store(tmp_path / "plain")
    assert [store.classes[k - 1] for k in store.ground] == ["road", "sidewalk", "terrain"]
    (tmp_path / "own.yaml").write_text(
        "- car\n- {name: lane, class: street, kind: ground}\n- {name: road, kind: stuff}\n"
    )
    generate_labels(world.index, tmp_path / "own", LabelSettings("oracle", prompts=tmp_path / "own.yaml"))
    assert open_store(tmp_path / "own").ground == (2, 3)
    named = ("car", "driveable_surface", "manmade", "other_flat", "Parking")  # as the benchmarks name them
    assert replace(store, classes=named).ground == (2, 4, 5)


def test_the_vocabulary_of_nuscenes_16_classes_teaches_each_and_keeps_the_numbers_of_the_13(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vocabulary = load_vocabulary(Path("lidarseg16"))
    assert vocabulary.classes[:13] == DEFAULT_VOCABULARY.classes and len(vocabulary.classes) == 16
    assert vocabulary.prompts[:13] == DEFAULT_VOCABULARY.prompts
    # The order of the lidarseg challenge.
    names = [
        "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone", "trailer",
        "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation",
    ]  # fmt: skip
    nuscenes = dataset_class("nuscenes")
    assert sorted(nuscenes.prompt_of(name) for name in names) == sorted(vocabulary.classes)
    table = class_of_prompt({k: v for k, v in nuscenes.prompts.items() if v}, vocabulary.classes, names)
    assert sorted(table.tolist()) == list(range(17))
    (tmp_path / "lidarseg16").write_text("- car\n")  # a file of that name goes first
    assert load_vocabulary("lidarseg16").classes == ("car",)


def test_labels_of_a_built_in_vocabulary_are_made_by_its_name(make_world, tmp_path, monkeypatch):
    world = make_world(1, 1)
    monkeypatch.chdir(tmp_path)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", prompts=Path("lidarseg16")))
    assert open_store(tmp_path / "labels").classes[13:] == ("construction vehicle", "trailer", "other flat")


def test_a_missing_vocabulary_file_is_named(tmp_path):
    with pytest.raises(OlivineError, match=r"nowhere\.yaml"):
        load_vocabulary(tmp_path / "nowhere.yaml")
