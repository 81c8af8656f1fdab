"""Promises of a run whose passes are made ready in a thread, as on a GPU: here on a CPU, with its bits."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from olivine.common import OlivineError
from olivine.common.ahead import THREADED
from olivine.train import prepare
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings
from olivine.train.sparse import engines

Settings = Callable[..., PretrainSettings]
TIMES = ("seconds", "waited", "memory_mib")


@pytest.fixture
def threaded() -> Iterator[None]:
    """Threads on a CPU too; none is left over."""
    before = threading.active_count()
    THREADED.add("cpu")
    yield
    THREADED.remove("cpu")
    assert not [thread for thread in threading.enumerate() if thread.name == "one-ahead"]
    assert threading.active_count() <= before


@pytest.fixture(scope="module")
def plain(small_shards: Path, small_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without the thread, with two passes a step."""
    out = tmp_path_factory.mktemp("plain")
    pretrain(small_settings(small_shards, "run.accumulate=2"), out)
    return out


def check_same(found: Path, expected: Path) -> None:
    one, other = load_checkpoint(found), load_checkpoint(expected)
    for part in ("backbone_state", "method_state", "optimizer_state"):
        a, b = torch.utils._pytree.tree_leaves(one[part]), torch.utils._pytree.tree_leaves(other[part])
        assert len(a) == len(b) > 10 or part != "backbone_state"
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
    tables = []
    for folder in (found, expected):
        with open(folder / "steps.csv", newline="") as handle:
            tables.append([{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(handle)])
    assert tables[0] == tables[1]


def test_the_thread_changes_no_bit(
    threaded: None,
    plain: Path,
    small_shards: Path,
    small_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, followed, true, true_follow = [], [], prepare.prepare_pass, engines.follow_plan

    def prepare_pass(*arguments: Any) -> prepare.Prepared:
        names.append(threading.current_thread().name)
        return true(*arguments)

    def follow_plan(*arguments: Any) -> None:
        followed.append(len(names))
        true_follow(*arguments)

    monkeypatch.setattr(prepare, "prepare_pass", prepare_pass)
    monkeypatch.setattr(engines, "follow_plan", follow_plan)
    pretrain(small_settings(small_shards, "run.accumulate=2"), tmp_path)
    assert names == ["one-ahead"] * 12
    assert followed == list(range(3, 13))  # in every pass from the third on
    check_same(tmp_path, plain)


def test_a_run_stopped_by_a_signal_and_resumed_ends_with_the_same_bits(
    threaded: None,
    plain: Path,
    small_shards: Path,
    small_settings: Settings,
    tmp_path: Path,
    sigterm_in: Callable[[int], AbstractContextManager[None]],
) -> None:
    settings = small_settings(small_shards, "run.accumulate=2", "data.workers=1")
    with sigterm_in(2):
        first = pretrain(settings, tmp_path)
    assert first.interrupted and first.step == 3
    assert pretrain(settings, tmp_path).resumed_from == 3
    check_same(tmp_path, plain)


def test_an_error_in_the_thread_is_that_of_its_step(
    threaded: None,
    small_shards: Path,
    small_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, true = [], prepare.check_labels

    def check_labels(*arguments: Any) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise OlivineError("a pair carries class 77", where="this frame", remedy="build the shards again")
        true(*arguments)

    monkeypatch.setattr(prepare, "check_labels", check_labels)
    with pytest.raises(OlivineError, match="this frame: a pair carries class 77"):
        pretrain(small_settings(small_shards), tmp_path)
    with open(tmp_path / "steps.csv", newline="") as handle:
        assert [row["step"] for row in csv.DictReader(handle)] == ["0", "1"]
