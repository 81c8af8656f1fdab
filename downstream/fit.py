"""The loop that probe, fine-tuning and detection share: what is trained differs, how a run stops and goes on does not.

It is the pre-training's machinery (``train/loop.py``) with another loss: devices through Fabric, the same endless
stream of frames, the same kind of folder, checkpoint, tables and signals.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..common import OlivineError, package_versions, stop_signals, track
from ..common.ahead import Ahead
from ..common.together import check_same_start, ending_together
from ..train.checkpoint import load_checkpoint, save_checkpoint
from ..train.devices import anywhere, over_processes, seed_draws, torch_state
from ..train.loader import stream_position
from ..train.metrics_log import MetricsLog
from ..train.settings import PretrainSettings
from ..train.sparse.modules import share_norms

if TYPE_CHECKING:
    from lightning_fabric import Fabric

B = TypeVar("B")
Members = list[tuple[int, int]]
"""(epoch, frame) of a process's part of a step."""


@dataclass(frozen=True)
class Plan:
    """Which frames each step of a run takes.

    Attributes:
        frames: positions in the training set.
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

    def members(self, step: int, seed: int, rank: int, world: int) -> Members:
        """A process's part of a step."""
        part = self.batch // world
        first = step * self.batch + rank * part
        places = (stream_position(len(self.frames), seed, p) for p in range(first, first + part))
        return [(epoch, self.frames[place]) for epoch, place in places]


class Training(ABC, Generic[B]):
    """What :func:`fit` trains: a network with its batches, loss and rates.

    Attributes:
        model: on the run's device; trained in place.
        optimizer: of its parameters.
        clip: largest gradient norm; None leaves gradients as they are.
        SCORES: the file in the run's folder that more training makes outdated.
        RATES: the settings to lower where a loss is not finite.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float | None = None
    SCORES: ClassVar[str]
    RATES: ClassVar[str]

    @abstractmethod
    def set_rates(self, step: int, plan: Plan) -> float:
        """Give the optimiser the rates of a step; returns the one that is logged."""

    @abstractmethod
    def batch(self, members: Members, following: Members) -> B:
        """The input of a step, made in a thread while the step before it is computed.

        Args:
            members: the step's frames.
            following: those of the next step; empty at the end.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: B) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch by the model as Fabric wraps it, and the loss's terms by name, which are logged."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The network's tensors as a checkpoint holds them."""

    @abstractmethod
    def load(self, content: dict[str, Any], where: object) -> None:
        """Take the tensors of a checkpoint.

        Raises:
            OlivineError: they are another network's.
        """


class FitSettings(Protocol):
    """What the loop reads of a run's settings."""

    @property
    def seed(self) -> int:
        """Of the order of frames and of what a network draws."""

    @property
    def checkpoint_minutes(self) -> float:
        """``last.pt`` is written at least this often."""

    def as_run(self) -> PretrainSettings:
        """Seed and devices in the form that the pre-training's machinery takes."""


def fit(
    training: Training[B],
    plan: Plan,
    settings: FitSettings,
    out: Path,
    constant: dict[str, Any],
    fabric: Fabric,
    title: str,
) -> nn.Module:
    """Train in a run's folder; go on where it stopped.

    Args:
        constant: what a checkpoint holds besides the step and the tensors.
        title: of the progress bar.

    Returns:
        The model as Fabric wraps it.

    Raises:
        OlivineError: a loss that is not finite, or a run of another length.
        KeyboardInterrupt: a signal asked to stop; ``last.pt`` is written.
    """
    last, steps, started, interrupted = out / "last.pt", plan.steps, 0, False
    rank, world, precision = fabric.global_rank, fabric.world_size, fabric.strategy.precision
    found = load_checkpoint(last) if last.is_file() else None
    if world > 1:
        share_norms(training.model, torch.distributed.group.WORLD)
    model, optimizer = fabric.setup(training.model, training.optimizer)
    if found is not None:  # after the set-up, which gives the weights their type
        if found["steps"] != steps:  # a batch that is chosen here depends on the number of processes
            raise OlivineError(
                f"a run of {found['steps']} steps there and {steps} here",
                where=last,
                remedy="give the batch and the epochs that it was started with (--set batch=…), or choose another --out",
            )
        training.load(found, last)
        training.optimizer.load_state_dict(found["optimizer_state"])
        if "precision_state" in found:
            precision.load_state_dict(found["precision_state"])
        started = found["step"]
    with ending_together(fabric):
        check_same_start(fabric, started, constant.get("data"))
    if started == steps:
        return model

    def save(step: int) -> None:
        if rank == 0:
            state = {"step": step, "steps": steps, "optimizer_state": training.optimizer.state_dict()}
            state |= {"precision_state": scaler} if (scaler := precision.state_dict()) else {}
            save_checkpoint(last, {**constant, **training.state(), **state})

    def members(step: int) -> Members:
        return plan.members(step, settings.seed, rank, world) if step < steps else []

    (out / training.SCORES).unlink(missing_ok=True)
    constant = {**constant, "versions": package_versions(["olivine", "torch", "numpy", "lightning-fabric"])}
    log, saved_at = MetricsLog(out, started) if rank == 0 else None, time.monotonic()
    model.train()
    # The thread is the innermost: it has ended before anything else is left.
    with (
        ending_together(fabric),
        torch_state(settings.as_run(), fabric.device),
        stop_signals() as stop,
        Ahead[B](fabric.device) as ahead,
    ):
        batches = ahead(training.batch(members(step), members(step + 1)) for step in range(started, steps))
        for step in track(range(started, steps), title, unit="steps") if rank == 0 else range(started, steps):
            begun, epoch = time.monotonic(), plan.epoch(step)
            rate = training.set_rates(step, plan)
            batch = next(batches)
            optimizer.zero_grad()
            seed_draws(fabric.device, settings.seed, step, rank)
            loss, terms = training.loss(model, batch)
            fabric.backward(loss)
            # Only now a GPU is waited for: all that the step asks of it is under way.
            sums = over_processes(torch.stack([loss.detach(), *(term.detach() for term in terms.values())]), fabric)
            mean, *parts = (sums / world).tolist()
            if not math.isfinite(mean):
                raise OlivineError(
                    f"the loss of step {step} is not finite", where=out, remedy=f"lower {training.RATES}"
                )
            if training.clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=training.clip, error_if_nonfinite=False)
            optimizer.step()
            if log is not None:
                row = {"step": step, "epoch": epoch, "loss": mean, **dict(zip(terms, parts)), "lr": rate}
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
    return model
