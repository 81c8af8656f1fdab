"""Promises of devices: how many a run takes, and what torch is told for its length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from olivine.train import devices
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings, load_settings

Settings = Callable[..., PretrainSettings]


@pytest.mark.parametrize(
    ("batch", "group", "present", "taken"),
    [(16, 4, 8, 4), (16, 4, 6, 4), (16, 4, 3, 2), (16, 4, 1, 1), (16, 4, 4, 4), (12, 4, 8, 3), (7, 7, 8, 1)],
)
def test_a_run_takes_as_many_gpus_as_its_batch_divides_over_in_whole_groups(
    batch: int, group: int, present: int, taken: int
) -> None:
    settings = load_settings("paper", [f"run.batch={batch}", f"run.group={group}"])
    assert devices.devices_for(settings, present) == taken
    assert batch % (taken * group) == 0


def test_a_run_is_strict_and_leaves_torch_as_it_was() -> None:
    with devices.torch_state(load_settings("paper"), torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.isnan(torch.empty(1 << 20)).all()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_no_number_is_read_before_it_is_written(
    small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh memory that torch fills with NaN, and fresh memory as it comes, give the same bits."""
    monkeypatch.setattr("olivine.train.sparse.loops._switched_on", False)  # as on a GPU
    changes = ("run.steps=4", "method.warmup=0.5", "data.workers=0")
    for fill in (True, False):
        monkeypatch.setattr(devices, "FILL_FRESH_MEMORY", fill)
        pretrain(small_settings(small_shards, *changes), tmp_path / str(fill))
    filled, plain = (load_checkpoint(tmp_path / name) for name in ("True", "False"))
    for part in ("backbone_state", "method_state"):
        assert all(torch.equal(value, plain[part][name]) for name, value in filled[part].items())
