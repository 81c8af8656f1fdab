"""What runs on the pretend GPU, in a process of its own: ``python tasks.py TASK ARGUMENT`` prints a line of JSON."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretend
import torch
from streams import watched

from olivine.common.ahead import Ahead
from olivine.downstream import segment_training
from olivine.downstream.finetune import finetune
from olivine.downstream.probe import linear_probe
from olivine.downstream.settings import FinetuneSettings, ProbeSettings
from olivine.train import objectives, prepare
from olivine.train.checkpoint import load_checkpoint
from olivine.train.forward import Distiller
from olivine.train.loop import pretrain
from olivine.train.settings import load_settings
from olivine.train.sparse import engines

torch.set_num_threads(1)
# Kernels of Triton cannot be computed here: auto takes the general engine, as on a GPU that they do not suit.
engines._triton_problem = lambda device: "a pretended GPU"
# On a GPU the contrast is summed in larger blocks; here in those of a CPU, so that numbers can be asked to be equal.
objectives._BLOCK_VALUES["cuda"] = objectives._BLOCK_VALUES["cpu"]
APART = ("common/", "train/checkpoint.py")  # what is written


def rows(folder: Path) -> list[dict[str, str]]:
    """What steps.csv says of each step, but for times and memory."""
    with open(folder / "steps.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited", "memory_mib")} for row in table]


def run(preset: str, changes: list[str], folder: Path, device: str) -> dict[str, Any]:
    """A run of a preset on a device: its rows, and what was counted of its last whole step, by source line.

    What the step's own thread did is counted apart from what was made ready for it (``ahead``). ``races`` are what the
    sanitizer of streams found in the whole run.
    """
    settings = load_settings(preset, [*changes, f"run.accelerator={device}"])
    true, true_prepare = Distiller.forward, prepare.prepare_pass
    marks: dict[Any, list[Any]] = {pretend.log: [], pretend.log_ahead: []}

    def mark(log: pretend.Log) -> None:
        marks[log].append((log.waits + Counter({"an event": pretend.event_waits()}), log.launches.copy()))

    def forward(self: Any, *arguments: Any) -> Any:
        mark(pretend.log)
        return true(self, *arguments)

    def prepare_pass(*arguments: Any) -> Any:
        mark(pretend.log_ahead)
        made = true_prepare(*arguments)
        mark(pretend.log_ahead)
        return made

    Distiller.forward, prepare.prepare_pass = forward, prepare_pass  # type: ignore[method-assign, assignment]
    found: dict[str, Any] = {"races": []}
    try:
        if device == "cpu":
            pretrain(settings, folder)
        else:
            with pretend.pretend_gpu(strict=True), watched() as watch:
                pretrain(settings, folder)
            found |= {"races": watch.found, "streams": len(watch.kernels)}
    finally:
        Distiller.forward, prepare.prepare_pass = true, true_prepare  # type: ignore[method-assign]
    found |= {"rows": rows(folder), "refused": dict(pretend.log.refused)}
    # From the forward pass of one step to that of the next each part of a step comes once.
    for where, log in (("", pretend.log), ("ahead_", pretend.log_ahead)):
        for kind, first, last in zip(("waits", "launches"), *marks[log][-2:]):
            found[where + kind] = {k: n for k, n in (last - first).items() if not k.startswith(APART)}
    return found


def runs(wanted: dict[str, list[str]]) -> dict[str, Any]:
    """By preset and device what :func:`run` says."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            preset: {device: run(preset, changes, Path(folder) / preset / device, device) for device in ("cpu", "cuda")}
            for preset, changes in wanted.items()
        }


def resume_and_probe(changes: list[str]) -> dict[str, Any]:
    """Whether a run that was stopped ends with another's bits, and what the probe scores."""
    settings = load_settings("cpu", [*changes, "run.accelerator=cuda", "run.checkpoint_epochs=1", "run.keep=9"])
    shards = settings.data.shards
    assert shards is not None
    with tempfile.TemporaryDirectory() as name, pretend.pretend_gpu():
        whole, stopped = Path(name) / "whole", Path(name) / "stopped"
        pretrain(settings, whole)
        shutil.copytree(whole, stopped)
        early = sorted(stopped.glob("epoch-*.pt"))[0]
        (stopped / "last.pt").write_bytes(early.read_bytes())
        resumed = pretrain(settings, stopped).resumed_from
        one, other = load_checkpoint(whole), load_checkpoint(stopped)
        same = all(
            torch.equal(value, other[part][key])
            for part in ("backbone_state", "method_state")
            for key, value in one[part].items()
        )
        probe = ProbeSettings(epochs=1, batch=2, accelerator="cuda")
        results = linear_probe(whole, shards, shards, Path(name) / "probe", probe, random=False)
        return {"resumed": resumed, "same": same, "scores": [result.scores.mean_iou for result in results]}


def fine_tuning(arguments: dict[str, Any]) -> dict[str, Any]:
    """A fine-tuning by device: its rows and scores, and on the pretend GPU what its last whole step waited for.

    Args:
        arguments: ``changes`` of the preset ``cpu``, whose network it is with random weights; folder of ``shards``.
    """
    network = load_settings("cpu", arguments["changes"])
    true, marks, found = segment_training.segmentation_loss, [], {}

    def loss(*values: Any) -> Any:
        marks.append(pretend.log.waits + Counter({"an event": pretend.event_waits()}))
        return true(*values)

    segment_training.segmentation_loss = loss
    for device in ("cpu", "cuda"):
        settings = FinetuneSettings(epochs=2, batch=1, accelerator=device)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            if device == "cuda":
                stack.enter_context(pretend.pretend_gpu(strict=True))
                watch = stack.enter_context(watched())
            shards = arguments["shards"]
            result = finetune(None, shards, shards, folder, settings, random=True, network=network)
            found[device] = {"rows": rows(Path(folder)), "scores": asdict(result.scores)}
    waits = marks[-1] - marks[-2]  # from the loss of one step to that of the next
    found["cuda"] |= {"races": watch.found, "streams": len(watch.kernels), "refused": dict(pretend.log.refused)}
    return found | {"waits": {k: n for k, n in waits.items() if not k.startswith(APART)}}


def bench(changes: list[str]) -> dict[str, Any]:
    """What ``olivine bench`` measures, by the CPU and by the pretend GPU."""
    from olivine.commands.measure import measure

    found = {}
    for device in ("cpu", "cuda"):
        settings = load_settings("cpu", [*changes, "run.devices=1", f"run.accelerator={device}"])
        with pretend.pretend_gpu(strict=True) if device == "cuda" else nullcontext():
            found[device] = measure(settings, 1, 1)
    return found


def labeler(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a labeler says of two images, by device, and what its second batch on the pretend GPU waits for.

    Args:
        arguments: ``name`` of the labeler, and its settings.
    """
    from olivine.labelgen import grounded
    from olivine.labelgen.labeler import make_labeler
    from olivine.labelgen.prompts import DEFAULT_VOCABULARY
    from olivine.labelgen.settings import LabelSettings

    paths = {key: Path(value) if "/" in str(value) else value for key, value in arguments.items() if key != "name"}
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (90, 160, 3), dtype=np.uint8) for _ in range(2)]
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        settings = LabelSettings(arguments["name"], device=device, batch_size=2, boxes_per_call=32, **paths)
        made: Any = make_labeler(arguments["name"], settings, DEFAULT_VOCABULARY, Path(), Path())
        # Not strict: some of torch's own kernels of these networks read what the null device has not computed.
        with pretend.pretend_gpu() if device == "cuda" else nullcontext():
            made.prepare()
            tasks: Any = [SimpleNamespace(path=Path("image")) for _ in images]
            results = {device: made.label(tasks, images)}
            before = pretend.log.waits.copy()
            results[device] = made.label(tasks, images)
            found |= {"waits": dict(pretend.log.waits - before), "events": pretend.event_waits()}
            if device == "cuda":
                before, grounded.known_numbers = pretend.log.waits.copy(), nullcontext
                results["asking the GPU"] = made.label(tasks, images)
                found["asked"] = sum((pretend.log.waits - before).values())
        for name, result in results.items():
            found[name] = []
            for image in result.images:
                if isinstance(image, Exception):
                    raise image
                found[name].append([image.label.tolist(), [[*d.box, d.score, d.area] for d in image.detections]])
    return found


def races(_: None) -> dict[str, list[str]]:
    """What is found where a wait between the two streams is left out, or a tensor is dropped while it is in use."""
    event_wait, stream_wait = torch.cuda.Event.wait, torch.cuda.Stream.wait_event
    device, found = torch.device("cuda:0"), {}

    def of(fault: str) -> list[str]:
        dropped = threading.Event()

        def items() -> Iterator[list[torch.Tensor]]:
            for number in range(4):
                if fault == "dropped" and number:
                    dropped.wait(10)
                    dropped.clear()
                yield [torch.ones(5, device=device) * number]

        if fault == "use before it is made":
            torch.cuda.Event.wait = lambda self, stream=None: event_wait(self, stream) if stream else None
        if fault == "next made before it is used":
            torch.cuda.Stream.wait_event = lambda self, event: None
        try:
            with pretend.pretend_gpu(), watched() as watch, Ahead[Any](device) as ahead:
                for item in ahead(items()):
                    (item[0] + 1).mul_(2)
                    if fault == "dropped":
                        item.clear()
                        dropped.set()
            return watch.found
        finally:
            torch.cuda.Event.wait, torch.cuda.Stream.wait_event = event_wait, stream_wait
            dropped.set()

    for fault in ("none", "use before it is made", "next made before it is used", "dropped"):
        found[fault] = of(fault)
    return found


def faults(_: None) -> dict[str, Any]:
    """What is said of faults that are made on purpose."""

    def error(action: Any) -> str:
        try:
            action()
        except (RuntimeError, TypeError) as found:
            return str(found)
        return ""

    with pretend.pretend_gpu(strict=True) as log:
        x, y = torch.ones(4, device="cuda"), torch.ones(4)
        found: dict[str, Any] = {"mixed": error(lambda: x + y), "numpy": error(x.numpy)}
        found["generator"] = error(lambda: torch.randn(3, generator=torch.Generator(), device="cuda"))
        before = sum(log.waits.values())
        pinned, page = torch.ones(4).pin_memory(), torch.ones(4)
        for wait in (
            lambda: pinned.to("cuda", non_blocking=True),  # the only one that does not wait
            lambda: page.to("cuda", non_blocking=True),
            lambda: float(x[0]),
            lambda: x[x > 0],
            lambda: torch.repeat_interleave(x, torch.ones(4, dtype=torch.int64, device="cuda")),
            lambda: torch.tensor([1, 2], device="cuda"),
        ):
            wait()
            found.setdefault("waits", []).append(sum(log.waits.values()) - before)
            before = sum(log.waits.values())
        torch.use_deterministic_algorithms(True)
        x.median(0)
        found["refused"] = list(log.refused)
        return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
    os._exit(0)  # torch's threads of the pretended device do not always end with the process: "terminate called"
