"""The loop that probe and fine-tuning share: cross-entropy plus Lovász-Softmax, SGD, a cosine per epoch, exact resume.

It is the pre-training's machinery (``train/loop.py``) with another loss: devices through Fabric, the same endless
stream of frames, the same kind of folder, checkpoint, tables and signals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common import OlivineError, package_versions, stop_signals, track
from ..common.ahead import Ahead
from ..common.together import ending_together
from ..train.backbone import Backbone, Clouds
from ..train.checkpoint import load_checkpoint, load_state, save_checkpoint
from ..train.devices import anywhere, over_processes, torch_state
from ..train.loader import stream_position
from ..train.metrics_log import MetricsLog
from ..train.sampling import generator_of
from ..train.sparse.engines import MapsAhead
from ..train.sparse.modules import share_norms
from .data import Examples
from .losses import Truth, segmentation_loss
from .network import Segmenter
from .settings import SegmentationSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Plan:
    """Which frames each step of a run takes.

    Attributes:
        frames: positions in the shard set.
        epochs: of the run; ``batch`` frames a step; ``steps`` of the run.
    """

    frames: Sequence[int]
    epochs: int
    batch: int

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return math.ceil(self.epochs * len(self.frames) / self.batch)

    def epoch(self, step: int) -> int:
        """The epoch that a step begins in."""
        return step * self.batch // len(self.frames)

    def members(self, step: int, seed: int, rank: int, world: int) -> list[tuple[int, int]]:
        """(epoch, frame) of a process's part of a step."""
        part = self.batch // world
        first = step * self.batch + rank * part
        places = (stream_position(len(self.frames), seed, p) for p in range(first, first + part))
        return [(epoch, self.frames[place]) for epoch, place in places]


def fit(
    model: nn.Module,
    examples: Examples,
    plan: Plan,
    settings: SegmentationSettings,
    out: Path,
    constant: dict[str, Any],
    fabric: Fabric,
    title: str,
) -> nn.Module:
    """Train a head, or a :class:`~olivine.downstream.network.Segmenter`, in a run's folder; go on where it stopped.

    Args:
        model: on the run's device; trained in place.
        constant: what a checkpoint holds besides the step and the tensors.
        title: of the progress bar.

    Returns:
        The model as Fabric wraps it.

    Raises:
        OlivineError: a loss that is not finite.
        KeyboardInterrupt: a signal asked to stop; ``last.pt`` is written.
    """
    last, steps, started, interrupted = out / "last.pt", plan.steps, 0, False
    parts: dict[str, nn.Module] = {"head": model}
    if isinstance(model, Segmenter):
        parts = {"head": model.head, "backbone": model.backbone}
    groups = [([p for p in model.parameters() if p.requires_grad], settings.lr)]
    if isinstance(model, Segmenter):
        groups = [(list(model.head.parameters()), settings.lr), *_backbone_groups(model.backbone, settings)]
    rates = [rate for _, rate in groups]
    optimizer = torch.optim.SGD(
        [{"params": parameters, "lr": rate} for parameters, rate in groups],
        momentum=settings.momentum,
        dampening=settings.dampening,
        weight_decay=settings.weight_decay,
    )
    found = load_checkpoint(last) if last.is_file() else None
    if fabric.world_size > 1:
        share_norms(model, torch.distributed.group.WORLD)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    if found is not None:  # after the set-up, which gives the weights their type
        if found["steps"] != steps:  # a batch that is chosen here depends on the number of processes
            raise OlivineError(
                f"a run of {found['steps']} steps there and {steps} here, on other devices",
                where=last,
                remedy="give the batch it was started with: --set batch=…",
            )
        for name, part in parts.items():
            load_state(part, found[f"{name}_state"], last)
        optimizer.load_state_dict(found["optimizer_state"])
        started = found["step"]
    if started == steps:
        return wrapped
    rank_zero = fabric.global_rank == 0

    def save(step: int) -> None:
        if rank_zero:
            tensors = {f"{name}_state": part.state_dict() for name, part in parts.items()}
            state = {"step": step, "steps": steps, "optimizer_state": optimizer.state_dict()}
            save_checkpoint(last, {**constant, **tensors, **state})

    (out / "scores.json").unlink(missing_ok=True)
    constant = {**constant, "versions": package_versions(["olivine", "torch", "numpy", "lightning-fabric"])}
    log, saved_at = MetricsLog(out, started) if rank_zero else None, time.monotonic()
    wrapped.train()

    maps = MapsAhead()

    def make_batch(step: int) -> tuple[Clouds | Tensor, Truth]:
        batch = examples.batch(plan.members(step, settings.seed, fabric.global_rank, fabric.world_size))
        if isinstance(batch.inputs, Clouds):
            maps(batch.inputs.tensor)
        return batch.inputs, Truth.of(batch.label)

    # The thread is the innermost: it has ended before anything else is left.
    with (
        ending_together(fabric),
        torch_state(settings.as_run(), fabric.device),
        torch.random.fork_rng(devices=[]),
        stop_signals() as stop,
        Ahead[tuple[Clouds | Tensor, Truth]](fabric.device) as ahead,
    ):
        batches = ahead(map(make_batch, range(started, steps)))
        for step in track(range(started, steps), title, unit="steps") if rank_zero else range(started, steps):
            begun, epoch = time.monotonic(), plan.epoch(step)
            factor = 0.5 * (1 + math.cos(math.pi * min(epoch, plan.epochs) / plan.epochs))
            for group, rate in zip(wrapped_optimizer.param_groups, rates):
                group["lr"] = rate * factor
            inputs, truth = next(batches)
            wrapped_optimizer.zero_grad()
            # For what a backbone draws itself (stochastic depth), so that a run that goes on draws the same.
            torch.set_rng_state(generator_of(settings.seed, step, fabric.global_rank).get_state())
            loss = segmentation_loss(wrapped(inputs), truth)
            fabric.backward(loss)
            # Only now a GPU is waited for: all that the step asks of it is under way.
            mean = float(over_processes(loss.detach(), fabric)) / fabric.world_size
            if not math.isfinite(mean):
                raise OlivineError(
                    f"the loss of step {step} is not finite", where=out, remedy="lower lr and backbone_lr"
                )
            wrapped_optimizer.step()
            if log is not None:
                row = {"step": step, "epoch": epoch, "loss": mean, "lr": settings.lr * factor}
                log.add("steps", {**row, "seconds": time.monotonic() - begun})
                if step + 1 == steps or plan.epoch(step + 1) > epoch:
                    log.add("epochs", {"step": step, "epoch": epoch, **log.means_of_epoch(epoch)})
            interrupted = anywhere(stop.requested, fabric)
            if step + 1 == steps or interrupted or time.monotonic() - saved_at > settings.checkpoint_minutes * 60:
                save(step + 1)
                saved_at = time.monotonic()
            if interrupted and step + 1 < steps:
                break
    if log is not None:
        log.close()
    if interrupted:
        raise KeyboardInterrupt
    return wrapped


def _backbone_groups(backbone: Backbone, settings: SegmentationSettings) -> list[tuple[list[nn.Parameter], float]]:
    """The backbone's parameters and their rates, layer by layer where these fall with depth."""
    if settings.layer_decay == 1:
        return [([p for p in backbone.parameters() if p.requires_grad], settings.backbone_lr)]
    layers = [[p for p in layer.parameters() if p.requires_grad] for layer in backbone.layers()]
    rates = [settings.backbone_lr * settings.layer_decay**depth for depth in reversed(range(len(layers)))]
    return list(zip(layers, rates))
