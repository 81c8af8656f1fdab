"""Promises of the settings: typed, checked, and named when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from olivine.common import OlivineError
from olivine.common.settings import flat_values, settings_to_plain, settings_to_yaml
from olivine.train.settings import load_settings, preset_names, read_settings


@pytest.mark.parametrize("preset", ["paper", "reference", "voxelnet", "voxelnet-reference", "cpu"])
def test_every_preset_loads_and_survives_printing(preset: str) -> None:
    assert preset in preset_names()
    settings = load_settings(preset)
    assert read_settings(yaml.safe_load(settings_to_yaml(settings)), "printed") == settings
    assert read_settings(settings_to_plain(settings), "plain") == settings
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
        "method.pairs": 4096,
        "method.mode": "dcas",
        "method.temperature": 0.07,
        "method.wcd_form": "paper",
        "method.ppkt_weight": 0.5,
        "method.wcd_weight": 0.5,
        "method.scr_weight": 1.0,
        "method.warmup": 0.114,
        "image.height": 224,
        "image.width": 416,
        "voxels.size_m": 0.1,
        "voxels.crop": True,
        "augment.crop_area": (0.3, 1.0),
        "augment.crop_min_pairs": 1024,
        "method.dimension": 64,
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
        "method.wcd_form",
        "method.kl_average",
        "method.alpha",
        "method.class_mean",
        "method.warmup",
        "augment.cuboid_keeps",
        "method.frequency",
        "method.density",
    }


def test_voxelnets_reference_differs_from_voxelnet_as_the_public_code_does() -> None:
    paper, reference = (flat_values(load_settings(name)) for name in ("paper", "reference"))
    plain, theirs = (flat_values(load_settings(name)) for name in ("voxelnet", "voxelnet-reference"))
    different = {key for key in plain if plain[key] != theirs[key]}
    shared = {key for key in paper if paper[key] != reference[key]} - {"voxels.grid", "voxels.crop"}
    assert different == shared | {"augment.circle"}
    assert all(theirs[key] == reference[key] for key in shared - {"name", "method.density"})
    assert theirs["augment.circle"] == (51.2, -5, 3) and theirs["method.density"] == "batch metres"
    assert theirs["method.kl_average"] == "classes"


def test_set_changes_a_value_by_its_full_or_its_only_name() -> None:
    settings = load_settings("cpu", ["optimizer.lr=1e-3", "method.scr=false", "epochs=7", "augment.crop_area=[0.5, 1]"])
    assert settings.optimizer.lr == 1e-3
    assert settings.method.scr is False
    assert settings.run.epochs == 7
    assert settings.augment.crop_area == (0.5, 1.0)
    assert load_settings("cpu", ["run.steps=null"]).run.steps is None


@pytest.mark.parametrize(
    "change, message",
    [
        ("run.epoch=3", "did you mean 'run.epochs'"),
        ("learning_rate=1", "no setting 'learning_rate'"),
        ("methods.wcd=1", "did you mean 'method.wcd'"),
        ("method.name=slodr", "did you mean 'slidr'"),
        ("backbone.name=srunet43", "did you mean 'srunet34'"),
        ("method.scr=3", "expected true or false"),
        ("method.mode=uniform", r"expected random \| density"),
        ("augment.crop_area=[1]", "list of 2"),
        ("augment.circle=[51.2, 3, -5]", r"augment.circle is \[51.2, 3.0, -5.0\]. Give a radius and two heights"),
        ("run.batch=2.5", "whole number"),
        ("run=3", "no setting 'run'"),
        ("run.epochs", "not key=value"),
        ("run.epochs=[", "not YAML"),
    ],
)
def test_a_wrong_change_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(OlivineError, match=f"(?i){message}"):
        load_settings("cpu", [change])


@pytest.mark.parametrize(
    "change, wanted",
    [
        ("method.temperature=0", r"in \(0, 1e\+06\]"),
        ("method.temperature=-0.07", r"in \(0, 1e\+06\]"),
        ("method.pairs=0", "from 1 to"),
        ("method.dimension=1", "from 2 to"),
        ("method.ppkt_weight=-1", "from 0 to"),
        ("method.wcd_weight=-0.5", "from 0 to"),
        ("method.scr_weight=1e10", "from 0 to"),
        ("method.warmup=1.5", "from 0 to 1"),
        ("method.alpha=0", r"in \(0, 1\]"),
        ("optimizer.momentum=1", r"in \[0, 1\)"),
        ("optimizer.lr=-1", "from 0 to"),
        ("voxels.size_m=0", r"in \(0, 1e\+06\]"),
        ("voxels.feature_channels=0", "from 1 to"),
        ("augment.flip_image=2", "from 0 to 1"),
        ("augment.crop_area=[0.5, 0.4]", "least and largest"),
        ("augment.crop_aspect=[0, 1]", "least and largest"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_that_names_the_key_and_the_range(change: str, wanted: str) -> None:
    with pytest.raises(OlivineError, match=f"{change.partition('=')[0]} is .*{wanted}") as refused:
        load_settings("cpu", [change])
    assert "\n" not in str(refused.value)
    with pytest.raises(OlivineError, match=r"method\.temperature is 0"):
        load_settings("slidr", ["method.temperature=0"])


def test_the_ends_of_a_range_are_allowed_where_they_mean_something() -> None:
    changes = [
        "method.alpha=1",
        "optimizer.momentum=0",
        "method.scr_weight=0",
        "augment.cuboid=0",
        "augment.crop_area=[1, 1]",
    ]
    values = flat_values(load_settings("paper", changes))
    assert (values["method.alpha"], values["optimizer.momentum"], values["augment.cuboid"]) == (1, 0, 0)


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
    assert load_settings(file) == read_settings({}, "defaults")


def test_settings_of_the_released_form_are_todays(tmp_path: Path) -> None:
    """Sections ``loss`` and ``sampling``, the embeddings' dimension in the backbone, in a file and in --set."""
    file = tmp_path / "old.yaml"
    file.write_text(
        "backbone: {name: srunet-small, out_channels: 32}\nloss: {wcd: false, scr_weight: 0.5}\nsampling: {pairs: 7}\n"
    )
    settings = load_settings(file, ["loss.temperature=0.1", "sampling.mode=random", "backbone.name=voxelnet-residual"])
    values = flat_values(settings)
    expected = {"wcd": False, "scr_weight": 0.5, "pairs": 7, "temperature": 0.1, "mode": "random", "dimension": 32}
    assert {key: values[f"method.{key}"] for key in expected} == expected
    assert (values["backbone.name"], values["backbone.residual"]) == ("voxelnet", True)


def test_a_setting_of_another_method_is_named_with_its_method(tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text("method: {name: slidr, wcd_form: paper}\n")
    with pytest.raises(OlivineError, match=r"method\.wcd_form is a setting of olivine, not of slidr"):
        load_settings(file)
