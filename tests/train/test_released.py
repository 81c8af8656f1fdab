"""Run folders and checkpoints of the first released form go on as today's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from olivine.common import OlivineError
from olivine.train.checkpoint import load_checkpoint, save_checkpoint
from olivine.train.loop import pretrain
from olivine.train.released import KEYS
from olivine.train.settings import PretrainSettings

BACK = {new: old for old, new in KEYS.items()}
HEADS = {
    "point_head": ("backbone_state", "final"),
    "category_point_head": ("backbone_state", "final_class_level"),
    "pixel_head": ("heads_state", "point_pixel"),
    "category_pixel_head": ("heads_state", "category"),
    "statistics": ("vmf_state", ""),
}


def released_settings(plain: dict[str, Any]) -> dict[str, Any]:
    old: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in plain.items()}
    for key, value in old.pop("method").items():
        if f"method.{key}" in BACK:
            section, _, name = BACK[f"method.{key}"].partition(".")
            old.setdefault(section, {})[name] = value
    return old


def make_released(folder: Path) -> None:
    """Write a run's folder as the first released version wrote it."""
    content = load_checkpoint(folder)
    old = {key: value for key, value in content.items() if key not in ("method_state", "exported_heads")}
    old["settings"] = released_settings(content["settings"])
    old["backbone"] = {**content["backbone"], "out_channels": content["settings"]["method"]["dimension"]}
    old |= {"heads_state": {}, "vmf_state": {}, "random_state": torch.get_rng_state()}
    for name, tensor in content["method_state"].items():
        module, _, rest = name.partition(".")
        part, renamed = HEADS[module]
        old[part][f"{renamed}.{rest}".lstrip(".")] = tensor
    save_checkpoint(folder / "last.pt", old)
    identity = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**identity, "settings": released_settings(identity["settings"])}))


def test_a_released_run_goes_on_to_the_same_bits(
    small_shards: Path, small_settings: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    whole, settings = tmp_path / "whole", small_settings(small_shards, "run.steps=6")
    pretrain(settings, whole)
    # Back to step 3 and to the released form.
    first = tmp_path / "first"
    halved = small_settings(small_shards, "run.steps=6", "run.checkpoint_epochs=1", "run.keep=9")
    pretrain(halved, first)
    early = sorted(first.glob("epoch-*.pt"))[0]
    (first / "last.pt").write_bytes(early.read_bytes())
    make_released(first)
    assert "loss" in json.loads((first / "run.json").read_text())["settings"]
    summary = pretrain(halved, first)
    assert 0 < summary.resumed_from < 6 == summary.step
    expected, found = load_checkpoint(whole), load_checkpoint(first)
    for name in ("backbone_state", "method_state"):
        assert expected[name].keys() == found[name].keys()
        assert all(torch.equal(value, found[name][key]) for key, value in expected[name].items())


def test_a_released_run_with_other_settings_is_refused_by_todays_name(
    small_shards: Path, small_settings: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    pretrain(small_settings(small_shards, "run.steps=1"), tmp_path / "run")
    make_released(tmp_path / "run")
    with pytest.raises(OlivineError, match=r"another run: method.temperature is 0.07 there and 0.1 here"):
        pretrain(small_settings(small_shards, "run.steps=1", "method.temperature=0.1"), tmp_path / "run")
