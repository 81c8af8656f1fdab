"""A small study, one whose runs take no time, and one thread a process."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from olivine.study import run as study_module
from olivine.study.config import study_from_plain
from olivine.study.run import Ground

_PLAIN = {
    "name": "small",
    "shards": "nowhere",
    "ground": "make the-ground",
    "seeds": [0, 1, 2],
    "rows": {"random": None, "base": {"method.wcd": False}, "whole": {}},
    "tables": [{"title": "All", "stage": "probe", "rows": ["random", "base", "whole"], "against": "base"}],
    "claims": [{"stage": "probe", "better": "whole", "than": "base", "by": 5}],
}


@pytest.fixture
def plain():
    """A small study as it is read from a file."""
    return copy.deepcopy(_PLAIN)


@pytest.fixture
def small(plain):
    return study_from_plain(plain, "small.yaml")


@pytest.fixture
def ground():
    return Ground(SimpleNamespace(digest="t" * 64), SimpleNamespace(digest="v" * 64), "e" * 64)


@pytest.fixture
def counted(monkeypatch, ground):
    """A study whose runs take no time: the list of runs done, with scores made of row and seed."""
    done = []

    def do(study, ground, run, out):
        done.append((run.row, run.seed, run.stage))
        value = {"random": 0.1, "base": 0.3, "whole": 0.4}[run.row] + 0.01 * run.seed * (1 + (run.row == "whole"))
        return {"mean_iou": value, "frequency_weighted_iou": value, "iou": {}, "absent": ["bus"]}

    monkeypatch.setattr(study_module, "_do", do)
    monkeypatch.setattr(study_module, "open_ground", lambda study: ground)
    return done


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The networks here are tiny; one thread is fastest, also beside other work."""
    torch.set_num_threads(1)
