"""Promises of frames that a thread makes ahead, as on a GPU: here on a CPU, with the bits of a run without the thread."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import pytest
import torch

from olivine.common import OlivineError
from olivine.common.ahead import THREADED
from olivine.downstream import segment_training
from olivine.downstream.data import CloudExamples, FrozenFeatures
from olivine.downstream.finetune import finetune
from olivine.downstream.predict import predict
from olivine.downstream.probe import linear_probe
from olivine.downstream.settings import FinetuneSettings, ProbeSettings
from olivine.train.checkpoint import load_checkpoint

SHORT = FinetuneSettings(epochs=2, batch=2, lr=0.5, accelerator="cpu")
HEAD = ProbeSettings(epochs=2, batch=2, augment=False, accelerator="cpu")


@pytest.fixture
def threaded():
    """Threads on a CPU too; none is left over."""
    THREADED.add("cpu")
    yield
    THREADED.remove("cpu")
    assert not [thread for thread in threading.enumerate() if thread.name == "one-ahead"]


@pytest.fixture(scope="module")
def plain(nuscenes_world, checkpoint, tmp_path_factory):
    """A fine-tuning without the thread, and its predictions."""
    out = tmp_path_factory.mktemp("plain")
    result = finetune(checkpoint, *nuscenes_world.splits, out / "run", SHORT)
    predict(out / "run", nuscenes_world.splits[1], out / "predictions", accelerator="cpu")
    return out, result


def check_same(found, expected):
    one, other = load_checkpoint(found), load_checkpoint(expected)
    for part in ("head_state", "backbone_state", "optimizer_state"):
        a, b = (torch.utils._pytree.tree_leaves(content.get(part)) for content in (one, other))
        assert len(a) == len(b)
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def in_which_thread(monkeypatch, method, kind=CloudExamples, act=lambda number: None):
    """The names of the threads that call a method, which does something else first."""
    names, true = [], getattr(kind, method)

    def call(*arguments):
        names.append(threading.current_thread().name)
        act(len(names))
        return true(*arguments)

    monkeypatch.setattr(kind, method, call)
    return names


def test_a_fine_tuning_stopped_by_a_signal_and_resumed_and_its_predictions_have_the_same_bits(
    threaded, plain, nuscenes_world, checkpoint, tmp_path, monkeypatch
):
    names, calls, true_loss = in_which_thread(monkeypatch, "_make"), [], segment_training.segmentation_loss

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_loss(*arguments)

    monkeypatch.setattr(segment_training, "segmentation_loss", loss)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(checkpoint, *nuscenes_world.splits, out, SHORT)
    assert load_checkpoint(out)["step"] == 4
    result = finetune(checkpoint, *nuscenes_world.splits, out, SHORT)
    assert result.scores == plain[1].scores
    check_same(out, plain[0] / "run")
    predict(out, nuscenes_world.splits[1], tmp_path / "predictions", accelerator="cpu")
    files = list((plain[0] / "predictions").rglob("*.bin"))
    assert len(files) == result.validation_frames
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(plain[0])).read_bytes()
    assert set(names) == {"one-ahead"}


@pytest.mark.parametrize("augment", [False, True])
def test_a_probe_has_the_same_bits(augment, nuscenes_world, checkpoint, tmp_path, monkeypatch, request):
    settings = replace(HEAD, augment=augment)
    expected = linear_probe(checkpoint, *nuscenes_world.splits, tmp_path / "plain", settings, random=False)
    request.getfixturevalue("threaded")
    names = in_which_thread(monkeypatch, "_features", FrozenFeatures)
    found = linear_probe(checkpoint, *nuscenes_world.splits, tmp_path / "ahead", settings, random=False)
    assert found[0].scores == expected[0].scores
    check_same(tmp_path / "ahead" / "pre-trained", tmp_path / "plain" / "pre-trained")
    assert set(names) == {"one-ahead"}


def test_an_error_in_a_frame_ends_the_run_with_that_error(threaded, nuscenes_world, checkpoint, tmp_path, monkeypatch):
    def fail(number):
        if number == 3:
            raise OlivineError("this frame is broken", where="here")

    names = in_which_thread(monkeypatch, "batch", act=fail)
    with pytest.raises(OlivineError, match=r"^here: this frame is broken"):
        finetune(checkpoint, *nuscenes_world.splits, tmp_path, SHORT)
    assert names == ["one-ahead"] * 3


def test_ctrl_c_ends_a_prediction_while_its_thread_makes_a_frame(
    threaded, plain, nuscenes_world, tmp_path, monkeypatch
):
    def interrupt(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    in_which_thread(monkeypatch, "whole", act=interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(plain[0] / "run", nuscenes_world.splits[1], tmp_path, accelerator="cpu")
