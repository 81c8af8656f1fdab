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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common import OlivineError, Whole, demand, package_versions, stop_signals, track, write_json
from ..common.ahead import Ahead
from ..common.settings import settings_to_plain
from ..common.together import check_same_start, ending_together
from ..pairs.shards import ShardSet
from .batch import collate
from .build import (
    backbone_arguments,
    build_model,
    classes_of_pairs,
    codes_of,
    needs_of,
    open_stream,
    open_text,
    open_validation,
)
from .checkpoint import load_checkpoint, load_state, newest_checkpoint, prune, save_checkpoint
from .contract import without_gradient
from .devices import (
    anywhere,
    make_fabric,
    naming_what_to_lower,
    over_processes,
    seed_draws,
    share_of_step,
    torch_state,
)
from .forward import Distiller, Terms
from .loader import FrameStream
from .method import Reduce
from .metrics_log import MetricsLog, memory_mib
from .mixture import NORMALISED, ShardMixture, Shards
from .pixel_features import PixelFeatures, open_pixel_features
from .prepare import Prepared, passes, prepare_pass
from .run_folder import claim, identity_of
from .schedule import build_optimizer, learning_rate
from .settings import PretrainSettings
from .sparse.modules import share_norms
from .transfer import to_device

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import Precision


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


_CONTENT = {
    "step": Whole(),
    "best": {float, None},
    "backbone_state": dict,
    "method_state": dict,
    "optimizer_state": dict,
    "precision_state?": dict,
}
"""What a run goes on from."""


@dataclass
class RunState:
    """What changes during a run, and is therefore in its checkpoints; ``precision`` has the scale of ``16-mixed``."""

    model: Distiller
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: int = 0
    best: float | None = None

    def save(self, path: Path, constant: dict[str, Any]) -> None:
        """Write a checkpoint; ``constant`` is what does not change."""
        content = {
            "step": self.step,
            "best": self.best,
            "backbone_state": self.model.backbone.state_dict(),
            "method_state": self.model.method.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            **({"precision_state": scaler} if (scaler := self.precision.state_dict()) else {}),
        }
        save_checkpoint(path, {**constant, **content})

    def restore(self, path: Path) -> None:
        """Take up where a checkpoint was written.

        Raises:
            OlivineError: it is damaged, lacks what a run goes on from, or is another run's.
        """
        remedy = "remove it, and the run goes on from its newest numbered checkpoint, or from the start"
        found = demand(load_checkpoint(path), _CONTENT, path, remedy)
        load_state(self.model.backbone, found["backbone_state"], path)
        load_state(self.model.method, found["method_state"], path, "choose the method that the run was started with")
        try:
            self.optimizer.load_state_dict(found["optimizer_state"])
        except ValueError as error:  # other groups of parameters
            raise OlivineError(f"its optimiser is another run's ({error})", where=path, remedy=remedy) from None
        if "precision_state" in found:
            self.precision.load_state_dict(found["precision_state"])
        self.step, self.best = found["step"], found["best"]


@dataclass
class Pass:
    """What one forward pass gave, see :meth:`~olivine.train.forward.Distiller.forward`, and its frames' names."""

    loss: Tensor
    terms: Terms
    counts: dict[str, int]
    frames: tuple[str, ...] = ()


def pretrain(settings: PretrainSettings, out: Path, *, resume: bool = True) -> PretrainSummary:
    """Distil an image encoder into a 3D backbone.

    Args:
        settings: the run; ``settings.data.shards`` must be set.
        out: the run's folder: ``run.json``, ``last.pt``, ``epoch-NNNN.pt``, ``best.pt``,
            ``steps.csv``, ``epochs.csv``, ``tensorboard/``.
        resume: go on where the folder holds this run, unfinished.

    Raises:
        OlivineError: settings that do not fit together or the data; a folder that holds something else; weights that
            are missing; too little memory for a step (names what to lower); a loss that is not finite (its step, frames
            and terms are in ``non-finite.json``).
    """
    out, run, started = Path(out), settings.run, time.monotonic()
    last = out / "last.pt"
    fabric = make_fabric(settings)
    rank_zero = fabric.global_rank == 0
    reduce = partial(over_processes, fabric=fabric)
    share = share_of_step(settings, fabric.global_rank, fabric.world_size)
    stream = open_stream(settings, share, fabric.world_size)
    ahead = Ahead[Prepared](fabric.device)
    named = naming_what_to_lower(settings, fabric.world_size)
    with ending_together(fabric), named, stream, torch_state(settings, fabric.device), stop_signals() as stop, ahead:
        shards = stream.shards
        pixels = open_pixel_features(settings, shards, fabric.device) if needs_of(settings).encoder else None
        names, class_count = classes_of_pairs(shards, settings)
        data: dict[str, Any] = {
            "digest": shards.digest,
            "classes": list(shards.classes),
            "point_classes": list(shards.point_classes),
            "labels": settings.data.labels,
        }
        if isinstance(shards, ShardMixture):
            data["sets"] = shards.identity
        identity = identity_of(settings, data, {} if pixels is None else pixels.identity, codes_of(settings))
        steps = run.steps if run.steps is not None else math.ceil(run.epochs * stream.count / run.batch)

        channels = 0 if pixels is None else pixels.channels
        text = open_text(settings, shards)
        if settings.data.validation:  # what does not fit is refused now, not after an epoch
            for _, held_out, _ in open_validation(settings, shards, fabric.global_rank, fabric.world_size):
                held_out.close()
        model = build_model(settings, channels, names, steps, text).to(fabric.device)
        optimizer = build_optimizer(settings, model)
        state = RunState(model, optimizer, fabric.strategy.precision)
        # Only now, when everything else has been found right.
        changed = claim(out, settings, identity, resume=resume) if rank_zero else []
        fabric.barrier()
        if fabric.world_size > 1:  # batch norm over the global batch
            share_norms(model, torch.distributed.group.WORLD)
        wrapped, optimizer = fabric.setup(model, optimizer)
        if (newest := newest_checkpoint(out)) is not None:  # after the set-up, which gives the weights their type
            state.restore(newest)
        check_same_start(fabric, state.step, [data, shards.seen])
        gone = [f"last.pt is gone, so it went on from {newest.name}"] if newest not in (None, last) else []
        constant = {
            **identity,
            "steps": steps,
            "backbone": backbone_arguments(settings),
            "exported_heads": model.method.exported,
            "voxels": settings_to_plain(settings.voxels),
            "versions": package_versions(["olivine", "torch", "numpy", "lightning-fabric"]),
        }
        if isinstance(shards, ShardMixture):
            constant["intensity"] = NORMALISED
        log = MetricsLog(out, state.step) if rank_zero else None
        resumed_from, saved_at, losses, interrupted = state.step, time.monotonic(), [], False
        untaught: list[str] = []

        def waited_s() -> float:
            return stream.waited_s if ahead.waited_s is None else ahead.waited_s

        def save(name: str) -> None:
            if rank_zero:
                state.save(out / name, constant)

        # On a GPU a thread makes the next pass ready while this one is computed.
        batches = stream.batches(state.step, steps)
        prepared = ahead(passes(batches, share.per_pass, model, pixels, class_count))
        remaining = range(state.step, steps)
        for step in track(remaining, "pretrain", unit="step") if rank_zero else remaining:
            begun = time.monotonic() - waited_s()
            try:
                ready = next(prepared)
            except OlivineError:
                # A signal that stops this process may reach its workers first. Of several processes the others may wait for
                # this one for ever: all end here.
                interrupted = stop.requested and fabric.world_size == 1
                if interrupted:
                    break
                if stop.requested:
                    save("last.pt")
                raise
            rate = learning_rate(settings, step, steps, stream.count)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            seed_draws(fabric.device, settings.seed, step, fabric.global_rank)
            done: list[Pass] = []
            for number in range(share.passes):
                ready = next(prepared) if number else ready
                first_group = (share.first + number * share.per_pass) // run.group
                with fabric.no_backward_sync(wrapped, enabled=number + 1 < share.passes):
                    loss, terms, counts = wrapped(ready, step, first_group)
                    done.append(Pass(loss, terms, counts, ready.batch.tokens))
                    fabric.backward(loss / share.passes)
            del ready, loss, terms  # their memory is free for the next ones
            if step == resumed_from:
                untaught = without_gradient(model.backbone, settings.backbone.name, fabric.world_size)
            gradient_norm = fabric.clip_gradients(
                wrapped, optimizer, max_norm=settings.optimizer.clip or math.inf, error_if_nonfinite=False
            )
            assert gradient_norm is not None
            metrics, norm = metrics_of_step(done, model.method.terms, gradient_norm, reduce, fabric.world_size)
            if not math.isfinite(metrics.get("loss", math.nan)):  # of any process: all end here
                raise _not_finite("loss", done, step, out)
            if not math.isfinite(norm) and run.precision != "16-mixed":  # there the scaler skips such a step
                raise _not_finite("gradient", done, step, out)
            optimizer.step()
            model.method.after_step(step, reduce)
            state.step = step + 1

            row = {**metrics, **model.method.log(step, reduce)}
            row |= {"memory_mib": memory_mib(fabric.device), "lr": rate, "gradient_norm": norm}
            row |= {"seconds": time.monotonic() - waited_s() - begun, "waited": waited_s()}
            losses.append(row["loss"])
            epoch, before = state.step * run.batch // stream.count, step * run.batch // stream.count
            if log is not None:
                log.add("steps", {"step": step, "epoch": before, **row})

            if epoch > before or state.step == steps:
                summary: dict[str, float] = {}
                if settings.data.validation and (state.step == steps or crossed(run.validate_epochs, before, epoch)):
                    summary = validate(settings, shards, wrapped, pixels, fabric)
                    if is_better(summary.get("validation_loss", math.nan), state.best):
                        state.best = summary["validation_loss"]
                        save("best.pt")
                if log is not None:
                    log.add("epochs", {"step": step, "epoch": epoch, **log.means_of_epoch(before), **summary})
                # Before last.pt: a run that is killed between the two makes this epoch, and its checkpoint, again.
                if rank_zero and run.checkpoint_epochs and crossed(run.checkpoint_epochs, before, epoch):
                    save(f"epoch-{epoch:04d}.pt")
                    prune(out, run.keep)
                save("last.pt")
                saved_at = time.monotonic()
            elif time.monotonic() - saved_at > run.checkpoint_minutes * 60:
                save("last.pt")
                saved_at = time.monotonic()
            if anywhere(stop.requested, fabric) and state.step < steps:
                interrupted = True
                break
        if interrupted:
            save("last.pt")
        if log is not None:
            log.close()
    mixed = [shards.note] if isinstance(shards, ShardMixture) else []
    seconds, taken, tenth = time.monotonic() - started, state.step - resumed_from, max(1, len(losses) // 10)
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
        taken / seconds,
        waited_s() / seconds,
        (*model.method.summary(), *mixed, *gone, *changed, *untaught),
    )


@torch.no_grad()
def validate(
    settings: PretrainSettings, shards: Shards, model: nn.Module, pixels: PixelFeatures | None, fabric: Fabric
) -> dict[str, float]:
    """The method's terms on held-out frames as they are stored, with the same draws every time.

    ``validation_loss`` is their weighted sum. A method leaves out terms that cannot be compared between epochs. Of several
    sets each has its own, ``validation_loss/<set>``, and the means of these have no name: every set counts the same.
    """
    found: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    for set_name, stream, steps in open_validation(settings, shards, fabric.global_rank, fabric.world_size):
        for name, value in _validate_on(stream, steps, settings, model, pixels, fabric).items():
            by_name.setdefault(name, []).append(value)
            if set_name:
                found[f"{name}/{set_name}"] = value
    return {name: _mean(values) for name, values in by_name.items()} | found


def _validate_on(
    stream: FrameStream,
    steps: int,
    settings: PretrainSettings,
    model: nn.Module,
    pixels: PixelFeatures | None,
    fabric: Fabric,
) -> dict[str, float]:
    names: tuple[str, ...] = ("loss", *model.method.terms)  # type: ignore[union-attr, misc]
    total = torch.zeros(len(names), 2, dtype=torch.float64, device=fabric.device)
    model.eval()
    with stream:
        if isinstance(stream.shards, ShardSet):
            pixels = pixels and pixels.of(stream.shards)
        # Its own frequencies: it may hold a class that the training frames do not.
        _, class_count = classes_of_pairs(stream.shards, settings)
        for step, samples in enumerate(stream.batches(0, steps)):
            ready = prepare_pass(collate(samples), model, pixels, class_count)  # type: ignore[arg-type]
            loss, terms, counts = model(ready, step, fabric.global_rank)
            if terms and not counts["groups_empty"]:
                for row, name in enumerate(names):
                    if name == "loss" or name in terms:
                        total[row] += torch.stack([terms.get(name, loss).detach().double(), total.new_ones(())])
    model.train()
    sums = over_processes(total, fabric).tolist()
    return {f"validation_{name}": value / count for name, (value, count) in zip(names, sums) if count}


def metrics_of_step(
    passes: Sequence[Pass], names: Sequence[str], norm: Tensor, reduce: Reduce, processes: int
) -> tuple[dict[str, float], float]:
    """The step's loss, terms and counts, over passes and processes, and the norm: read from the device at once.

    A term that a process lacks is left out, and so is a loss that is not a number.
    """
    values = [torch.stack([p.loss.detach() for p in passes]).mean()]
    for name in names:
        present = [p.terms[name] for p in passes if name in p.terms]
        values.append(torch.stack(present).mean() if present else values[0] * math.nan)
    counts = torch.tensor([list(p.counts.values()) for p in passes]).sum(0)
    losses = torch.stack([value.double() for value in values])
    total = reduce(torch.cat([losses, to_device(counts, losses.device).double()]))
    *found, last = torch.cat(
        [total[: len(values)] / processes, total[len(values) :], norm.detach().double()[None]]
    ).tolist()
    row = dict(zip(("loss", *(f"loss_{name}" for name in names), *passes[0].counts), found))
    return {name: value for name, value in row.items() if not math.isnan(value)}, last


def is_better(loss: float, best: float | None) -> bool:
    """Whether a validation loss is below the lowest one so far; one that is not a number never is."""
    return math.isfinite(loss) and (best is None or not loss >= best)


def crossed(every: int, before: int, epoch: int) -> bool:
    """Whether one of every so many epochs has ended since ``before``; a step may be longer than an epoch."""
    return epoch // every > before // every


def _not_finite(what: str, passes: Sequence[Pass], step: int, out: Path) -> OlivineError:
    """The error for a loss or gradient that is not finite; its frames and terms are written out."""
    path = out / "non-finite.json"
    bad = next((one for one in passes if not bool(torch.isfinite(one.loss))), passes[-1])
    terms = {name: repr(float(value)) for name, value in bad.terms.items()}
    frames = [token for one in passes for token in one.frames]
    write_json(path, {"what": what, "step": step, "frames": frames, "terms": terms, "counts": bad.counts})
    named = ", ".join(f"{name} {value}" for name, value in terms.items())
    return OlivineError(
        f"the {what} of step {step} is not finite ({named}; its frames are named there)",
        where=path,
        remedy="look at those frames, or lower optimizer.lr; last.pt is from before",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
