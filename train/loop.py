"""The pre-training loop.

Read :func:`pretrain` from top to bottom: it is the whole run. Devices, precision and data parallelism are Lightning
Fabric's; the order of data, the draws, the schedule and what a checkpoint holds are ours, because they decide whether a
run that was stopped ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..common import OlivineError, package_versions, track, write_json
from ..common.settings import settings_to_plain
from .augment import Sample
from .batch import collate
from .checkpoint import load_checkpoint, load_state, prune, save_checkpoint
from .metrics_log import MetricsLog
from .pixel_features import PixelFeatures, open_pixel_features
from .run_folder import claim, identity_of
from .settings import PretrainSettings
from .setup import (
    backbone_arguments,
    build_model,
    build_optimizer,
    learning_rate,
    make_fabric,
    open_stream,
    open_validation,
    pair_class_count,
    share_of_step,
    stop_signals,
    torch_state,
)
from .sparse.modules import share_norms
from .step import Distiller, StepResult, forward_pass
from .step_metrics import over_processes, step_row
from .vmf import VmfStatistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class PretrainSummary:
    """What a run came to.

    Attributes:
        out: the run's folder; ``checkpoint`` the last checkpoint in it.
        step, steps: done, and of the whole run.
        resumed_from: the step this call started at; equal to ``steps`` where there was nothing to do.
        interrupted: stopped by a signal before the end; the same command goes on.
        first_loss, last_loss: mean loss over the first and last tenth of this call's steps, nan where it made none.
        seconds, steps_per_second, waiting_share: of this call; the share of its time spent waiting for data.
        notes: what was replaced or left out.
    """

    out: Path
    checkpoint: Path
    step: int
    steps: int
    resumed_from: int
    interrupted: bool
    first_loss: float
    last_loss: float
    seconds: float
    steps_per_second: float
    waiting_share: float
    notes: tuple[str, ...] = ()


@dataclass
class RunState:
    """What changes during a run, and is therefore in its checkpoints."""

    model: Distiller
    optimizer: torch.optim.Optimizer
    statistics: VmfStatistics
    step: int = 0
    best: float | None = None

    def save(self, path: Path, constant: dict[str, Any]) -> None:
        """Write a checkpoint; ``constant`` is what does not change."""
        content = {
            "step": self.step,
            "best": self.best,
            "backbone_state": self.model.backbone.state_dict(),
            "heads_state": self.model.heads.state_dict(),
            "vmf_state": self.statistics.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        save_checkpoint(path, {**constant, **content})

    def restore(self, path: Path) -> None:
        """Take up where a checkpoint was written."""
        found = load_checkpoint(path)
        load_state(self.model.backbone, found["backbone_state"], path)
        load_state(self.model.heads, found["heads_state"], path)
        self.statistics.load_state_dict(found["vmf_state"])
        self.optimizer.load_state_dict(found["optimizer_state"])
        torch.set_rng_state(found["random_state"])
        self.step, self.best = found["step"], found["best"]


def pretrain(settings: PretrainSettings, out: Path, *, resume: bool = True) -> PretrainSummary:
    """Distil an image encoder into a 3D backbone.

    Args:
        settings: the run; ``settings.data.shards`` must be set.
        out: the run's folder: ``run.json``, ``last.pt``, ``epoch-NNNN.pt``, ``best.pt``,
            ``steps.csv``, ``epochs.csv``, ``tensorboard/``.
        resume: go on where the folder holds this run, unfinished.

    Raises:
        OlivineError: settings that do not fit together or the data; a folder that holds something else; weights that
            are missing; a loss that is not finite (its step, frames and terms are in ``non-finite.json``).
    """
    out, run, started = Path(out), settings.run, time.monotonic()
    last = out / "last.pt"
    fabric = make_fabric(settings)
    chief = fabric.global_rank == 0
    share = share_of_step(settings, fabric.global_rank, fabric.world_size)
    stream = open_stream(settings, share, fabric.world_size)
    with stream, torch_state(settings, fabric.device), stop_signals() as stop:
        shards = stream.shards
        pixels = open_pixel_features(settings, shards, fabric.device)
        class_count = pair_class_count(shards, settings)
        data = {
            "digest": shards.digest,
            "classes": list(shards.classes),
            "point_classes": list(shards.point_classes),
            "labels": settings.data.labels,
        }
        identity = identity_of(settings, data, pixels.identity)
        # Length of the run, and of the warm-up in which only the class statistics run.
        steps = run.steps if run.steps is not None else math.ceil(run.epochs * stream.count / run.batch)
        warmup = round(settings.loss.warmup * steps) if settings.loss.scr else 0
        alpha = settings.loss.alpha if settings.loss.alpha is not None else 1 / max(1, warmup)

        model = build_model(settings, pixels.channels).to(fabric.device)
        optimizer = build_optimizer(settings, model)
        statistics = VmfStatistics(
            len(class_count),
            settings.backbone.out_channels,
            alpha,
            bias_correction=settings.loss.bias_correction,
        ).to(fabric.device)
        state = RunState(model, optimizer, statistics)
        if chief:  # only now, when everything else has been found right
            claim(out, settings, identity, resume=resume)
        fabric.barrier()
        if last.is_file():
            state.restore(last)
        if fabric.world_size > 1:  # batch norm over the global batch
            share_norms(model, torch.distributed.group.WORLD)
        wrapped, optimizer = fabric.setup(model, optimizer)
        constant = {
            **identity,
            "steps": steps,
            "backbone": backbone_arguments(settings),
            "voxels": settings_to_plain(settings.voxels),
            "versions": package_versions(["olivine", "torch", "numpy", "lightning-fabric"]),
        }
        log = MetricsLog(out, state.step) if chief else None
        resumed_from, saved_at, losses, interrupted = state.step, time.monotonic(), [], False

        def save(name: str) -> None:
            if chief:
                state.save(out / name, constant)

        batches = stream.batches(state.step, steps)
        remaining = range(state.step, steps)
        for step in track(remaining, "pretrain", unit="step") if chief else remaining:
            try:
                samples = next(batches)
            except OlivineError:
                if not stop.requested:
                    raise
                interrupted = True  # the signal that stops this process reached its workers first
                break
            begun = time.monotonic()
            rate = learning_rate(settings, step, steps, stream.count)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            results: list[StepResult] = []
            for number in range(share.passes):
                first = number * share.per_pass
                batch = collate(samples[first : first + share.per_pass], settings.data.labels).to(fabric.device)
                with fabric.no_backward_sync(wrapped, enabled=number + 1 < share.passes):
                    result = forward_pass(
                        batch,
                        wrapped,
                        pixels,
                        statistics,
                        settings,
                        class_count,
                        step=step,
                        first_group=(share.first + first) // run.group,
                        consistency=settings.loss.scr and step >= warmup,
                    )
                    results.append(result)
                    if not bool(torch.isfinite(result.loss)):
                        raise _not_finite("loss", results, samples, step, out)
                    fabric.backward(result.loss / share.passes)
            norm = float(
                fabric.clip_gradients(  # type: ignore[arg-type]
                    wrapped, optimizer, max_norm=settings.optimizer.clip or math.inf, error_if_nonfinite=False
                )
            )
            if not math.isfinite(norm) and run.precision != "16-mixed":  # there the scaler skips such a step
                raise _not_finite("gradient", results, samples, step, out)
            optimizer.step()
            if settings.loss.scr and (step < warmup or not settings.loss.freeze):
                sums = torch.stack([r.class_sums for r in results if r.class_sums is not None]).sum(0)
                statistics.update(over_processes(sums, fabric))
            state.step = step + 1

            row = step_row(results, statistics, class_count, list(shards.classes), settings, fabric)
            row |= {"lr": rate, "gradient_norm": norm, "seconds": time.monotonic() - begun, "waited": stream.waited_s}
            losses.append(row["loss"])
            epoch, before = state.step * run.batch // stream.count, step * run.batch // stream.count
            if log is not None:
                log.add("steps", {"step": step, "epoch": before, **row})

            if epoch > before or state.step == steps:
                summary: dict[str, float] = {}
                if settings.data.validation and (state.step == steps or epoch % run.validate_epochs == 0):
                    summary = validate(settings, wrapped, pixels, statistics, fabric)
                    if state.best is None or summary["validation_loss"] < state.best:
                        state.best = summary["validation_loss"]
                        save("best.pt")
                if log is not None:
                    log.add("epochs", {"step": step, "epoch": epoch, **log.means_of_epoch(before), **summary})
                save("last.pt")
                if chief and run.checkpoint_epochs and epoch % run.checkpoint_epochs == 0:
                    save(f"epoch-{epoch:04d}.pt")
                    prune(out, run.keep)
                saved_at = time.monotonic()
            elif time.monotonic() - saved_at > run.checkpoint_minutes * 60:
                save("last.pt")
                saved_at = time.monotonic()
            if _anywhere(stop.requested, fabric) and state.step < steps:
                interrupted = True
                break
        if interrupted:
            save("last.pt")
        if log is not None:
            log.close()
    seconds, done, tenth = time.monotonic() - started, state.step - resumed_from, max(1, len(losses) // 10)
    return PretrainSummary(
        out,
        last,
        state.step,
        steps,
        resumed_from,
        interrupted,
        _mean(losses[:tenth]),
        _mean(losses[-tenth:]),
        seconds,
        done / seconds,
        stream.waited_s / seconds,
    )


@torch.no_grad()
def validate(
    settings: PretrainSettings,
    model: nn.Module,
    pixels: PixelFeatures,
    statistics: VmfStatistics,
    fabric: Fabric,
) -> dict[str, float]:
    """The contrastive losses on held-out frames as they are stored, with the same draws every time.

    ``validation_loss`` is w₁ L_ppkt + w₂ L_sup: L_kl is left out, because it is not comparable before and after the
    statistics freeze.
    """
    stream, steps = open_validation(settings, fabric.global_rank, fabric.world_size)
    total = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    model.eval()
    with stream:
        # Its own frequencies: it may hold a class that the training frames do not.
        class_count = pair_class_count(stream.shards, settings)
        for step, samples in enumerate(stream.batches(0, steps)):
            batch = collate(samples, settings.data.labels).to(fabric.device)
            terms = forward_pass(
                batch,
                model,
                pixels,
                statistics,
                settings,
                class_count,
                step=step,
                first_group=fabric.global_rank,
                consistency=False,
            ).terms
            if "ppkt" in terms:
                total += torch.stack([terms["ppkt"], terms.get("wcd", terms["ppkt"] * 0), terms["ppkt"] * 0 + 1])
    model.train()
    ppkt, wcd, count = over_processes(total, fabric).tolist()
    ppkt, wcd = ppkt / max(count, 1), wcd / max(count, 1)
    weights = settings.loss
    return {
        "validation_ppkt": ppkt,
        "validation_wcd": wcd,
        "validation_loss": weights.ppkt_weight * ppkt + weights.wcd * weights.wcd_weight * wcd,
    }


def _not_finite(
    what: str, results: Sequence[StepResult], samples: Sequence[Sample], step: int, out: Path
) -> OlivineError:
    """The error for a loss or gradient that is not finite; its frames and terms are written out."""
    path = out / "non-finite.json"
    terms = {name: repr(float(value)) for name, value in results[-1].terms.items()}
    frames = [sample.token for sample in samples]
    write_json(path, {"what": what, "step": step, "frames": frames, "terms": terms, "counts": results[-1].counts})
    named = ", ".join(f"{name} {value}" for name, value in terms.items())
    return OlivineError(
        f"the {what} of step {step} is not finite ({named}; its frames are named there)",
        where=path,
        remedy="look at those frames, or lower optimizer.lr; last.pt is from before",
    )


def _anywhere(flag: bool, fabric: Fabric) -> bool:
    """Whether any process says so; all processes agree."""
    if fabric.world_size == 1:
        return flag
    return bool(over_processes(torch.tensor(int(flag), device=fabric.device), fabric) > 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
