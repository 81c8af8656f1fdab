"""The loop that trains a detector: Adam with a one-cycle schedule, exact resume, the machinery of the other runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common import OlivineError, package_versions, stop_signals, track
from ...common.ahead import Ahead
from ...train.checkpoint import load_checkpoint, load_state, save_checkpoint
from ...train.devices import over_processes, torch_state
from ...train.metrics_log import MetricsLog
from ...train.sparse.engines import MapsAhead
from ...train.sparse.modules import share_norms
from ..fit import Plan
from .anchors import Targets, assign
from .losses import LossWeights, detection_loss
from .schedule import rate_and_momentum
from .second import Second
from .settings import DetectionSettings, norm_momentum_of
from .training_scenes import Batch, TrainingScenes

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_AHEAD = 2  # steps whose scenes are made ahead


def head_state(network: Second) -> dict[str, torch.Tensor]:
    """All tensors of a detector but the trunk's."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("backbone_3d.")}


def load_detector(network: Second, content: dict[str, Any], where: object) -> None:
    """Put a checkpoint's tensors into a detector, all of them.

    Raises:
        OlivineError: they are another network's.
    """
    load_state(network.backbone_3d, content["backbone_state"], where)
    trunk = {n: v for n, v in network.state_dict().items() if n.startswith("backbone_3d.")}
    load_state(network, {**trunk, **content["head_state"]}, where)


def fit(
    network: Second,
    scenes: TrainingScenes,
    plan: Plan,
    settings: DetectionSettings,
    out: Path,
    constant: dict[str, Any],
    fabric: Fabric,
    title: str,
) -> None:
    """Train a detector in a run's folder; go on where it stopped.

    Args:
        network: on the run's device; trained in place.
        constant: what a checkpoint holds besides the step and the tensors.
        title: of the progress bar.

    Raises:
        OlivineError: a loss that is not finite, or a run of another length.
        KeyboardInterrupt: a signal asked to stop; ``last.pt`` is written.
    """
    last, steps, started, interrupted = out / "last.pt", plan.steps, 0, False
    cycle = settings.cycle
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=cycle.lr,
        betas=(cycle.momentum[0], cycle.beta),
        weight_decay=cycle.weight_decay,
    )
    found = load_checkpoint(last) if last.is_file() else None
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = settings.norm_momentum or norm_momentum_of(steps)
    if fabric.world_size > 1:
        share_norms(network, torch.distributed.group.WORLD)
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    if found is not None:  # after the set-up, which gives the weights their type
        if found["steps"] != steps:
            raise OlivineError(
                f"a run of {found['steps']} steps there and {steps} here", where=last, remedy="choose another --out"
            )
        load_detector(network, found, last)
        optimizer.load_state_dict(found["optimizer_state"])
        started = found["step"]
    if started == steps:
        return
    rank_zero = fabric.global_rank == 0

    def members(step: int) -> list[tuple[int, int]]:
        return plan.members(step, settings.seed, fabric.global_rank, fabric.world_size)

    maps = MapsAhead()

    def make_batches() -> Iterator[tuple[Batch, Targets]]:
        for step in range(started, steps):
            for next_step in range(step, min(step + _AHEAD, steps)):
                scenes.prepare(members(next_step))
            batch = scenes.batch(members(step))
            maps(batch.clouds.tensor)
            yield batch, assign(network.anchors, batch.boxes, batch.kinds, settings.anchors)

    def save(step: int) -> None:
        if rank_zero:
            tensors = {"backbone_state": network.backbone_3d.state_dict(), "head_state": head_state(network)}
            state = {"step": step, "steps": steps, "optimizer_state": optimizer.state_dict()}
            save_checkpoint(last, {**constant, **tensors, **state})

    (out / "ap.json").unlink(missing_ok=True)
    constant = {**constant, "versions": package_versions(["olivine", "torch", "numpy", "lightning-fabric"])}
    log, saved_at = MetricsLog(out, started) if rank_zero else None, time.monotonic()
    wrapped.train()
    anchors = network.anchors.view(-1, network.anchors.shape[-1])
    with (
        torch_state(settings.as_run(), fabric.device),
        stop_signals() as stop,
        Ahead[tuple[Batch, Targets]](fabric.device) as ahead,
    ):
        batches = ahead(make_batches())
        for step in track(range(started, steps), title, unit="steps") if rank_zero else range(started, steps):
            begun, epoch = time.monotonic(), plan.epoch(step)
            rate, momentum = rate_and_momentum(step, steps, cycle)
            for group in wrapped_optimizer.param_groups:
                group["lr"], group["betas"] = rate, (momentum, cycle.beta)
            batch, targets = next(batches)
            wrapped_optimizer.zero_grad()
            output = wrapped(batch.clouds)
            terms = detection_loss(output.logit, output.code, output.direction, targets, anchors, LossWeights())
            loss = torch.stack(list(terms.values())).sum()
            fabric.backward(loss)
            # Only now a GPU is waited for: all that the step asks of it is under way.
            values = over_processes(torch.stack([loss.detach(), *(t.detach() for t in terms.values())]), fabric)
            mean, *parts = (values / fabric.world_size).tolist()
            if not math.isfinite(mean):
                raise OlivineError(f"the loss of step {step} is not finite", where=out, remedy="lower lr")
            fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=cycle.clip, error_if_nonfinite=False)
            wrapped_optimizer.step()
            if log is not None:
                row = {"step": step, "epoch": epoch, "loss": mean, **dict(zip(terms, parts)), "lr": rate}
                log.add("steps", {**row, "seconds": time.monotonic() - begun})
                if step + 1 == steps or plan.epoch(step + 1) > epoch:
                    log.add("epochs", {"step": step, "epoch": epoch, **log.means_of_epoch(epoch)})
            interrupted = bool(over_processes(torch.tensor(int(stop.requested), device=fabric.device), fabric) > 0)
            if step + 1 == steps or interrupted or time.monotonic() - saved_at > settings.checkpoint_minutes * 60:
                save(step + 1)
                saved_at = time.monotonic()
            if interrupted and step + 1 < steps:
                break
    if log is not None:
        log.close()
    if interrupted:
        raise KeyboardInterrupt
