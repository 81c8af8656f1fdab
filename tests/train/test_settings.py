"""Promises of the settings: typed, checked, and named when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from olivine.common import OlivineError
from olivine.common.settings import flat_values, settings_from_plain, settings_to_plain, settings_to_yaml
from olivine.train.settings import PretrainSettings, load_settings, preset_names


@pytest.mark.parametrize("preset", ["paper", "reference", "cpu"])
def test_every_preset_loads_and_survives_printing(preset: str) -> None:
    assert preset in preset_names()
    settings = load_settings(preset)
    assert settings_from_plain(PretrainSettings, yaml.safe_load(settings_to_yaml(settings)), "printed") == settings
    assert settings_from_plain(PretrainSettings, settings_to_plain(settings), "plain") == settings
    assert load_settings(f"configs/{preset}.yaml") == settings


def test_the_papers_preset_is_the_papers() -> None:
    values = flat_values(load_settings("paper"))
    expected = {
        "optimizer.lr": 0.5,
        "optimizer.momentum": 0.9,
        "optimizer.dampening": 0.1,
        "optimizer.weight_decay": 1e-4,
        "run.epochs": 50,
        "run.batch": 16,
        "run.group": 4,
        "sampling.pairs": 4096,
        "sampling.mode": "dcas",
        "loss.temperature": 0.07,
        "loss.wcd_form": "paper",
        "loss.ppkt_weight": 0.5,
        "loss.wcd_weight": 0.5,
        "loss.scr_weight": 1.0,
        "loss.warmup": 0.114,
        "image.height": 224,
        "image.width": 416,
        "voxels.size_m": 0.1,
        "voxels.crop": True,
        "augment.crop_area": (0.3, 1.0),
        "augment.crop_min_pairs": 1024,
        "backbone.out_channels": 64,
    }
    assert {key: values[key] for key in expected} == expected


def test_the_reference_preset_differs_where_the_public_code_does() -> None:
    paper, reference = flat_values(load_settings("paper")), flat_values(load_settings("reference"))
    different = {key for key in paper if paper[key] != reference[key]}
    assert different == {
        "name",
        "image.dtype",
        "voxels.grid",
        "voxels.crop",
        "augment.round_pixels",
        "loss.wcd_form",
        "loss.kl_average",
        "loss.alpha",
        "loss.bias_correction",
        "sampling.frequency",
        "sampling.density",
    }


def test_set_changes_a_value_by_its_full_or_its_only_name() -> None:
    settings = load_settings("cpu", ["optimizer.lr=1e-3", "loss.scr=false", "epochs=7", "augment.crop_area=[0.5, 1]"])
    assert settings.optimizer.lr == 1e-3
    assert settings.loss.scr is False
    assert settings.run.epochs == 7
    assert settings.augment.crop_area == (0.5, 1.0)
    assert load_settings("cpu", ["run.steps=null"]).run.steps is None


@pytest.mark.parametrize(
    "change, message",
    [
        ("run.epoch=3", "did you mean 'run.epochs'"),
        ("learning_rate=1", "no setting 'learning_rate'"),
        ("losses.wcd=1", "did you mean 'loss.wcd'"),
        ("loss.scr=3", "expected true or false"),
        ("sampling.mode=uniform", r"expected random \| density"),
        ("augment.crop_area=[1]", "list of 2"),
        ("run.batch=2.5", "whole number"),
        ("run=3", "no setting 'run'"),
        ("run.epochs", "not key=value"),
        ("run.epochs=[", "not YAML"),
    ],
)
def test_a_wrong_change_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(OlivineError, match=f"(?i){message}"):
        load_settings("cpu", [change])


def test_a_wrong_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match="Use one of"):
        load_settings("papers")
    file = tmp_path / "mine.yaml"
    for text, message in [
        ("optimizer: {leer: 1}", r"optimizer\.leer.*optimizer\.lr"),
        ("run: 3", "run is a section"),
        ("- 1", "not a table"),
        ("a: [", "not YAML"),
        ("run: {epochs: many}", r"run\.epochs is 'many'"),
    ]:
        file.write_text(text)
        with pytest.raises(OlivineError, match=message) as caught:
            load_settings(file)
        assert "mine.yaml" in str(caught.value)
    file.write_text("")
    assert load_settings(file) == PretrainSettings()
