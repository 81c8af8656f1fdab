"""What a run is made of, built from its settings: devices, data, encoder, network, schedule."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common import OlivineError
from .augment import NO_AUGMENTATION
from .backbones import build_backbone
from .heads import PixelHeads
from .image_encoder import ImageEncoder
from .loader import FrameStream, StreamSettings
from .settings import PretrainSettings
from .sparse.engines import engine_problem
from .sparse.memory import keeper
from .step import Distiller

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ..pairs.shards import ShardSet


def make_fabric(settings: PretrainSettings) -> Fabric:
    """Lightning Fabric, launched. Under ``torchrun`` the number of devices and nodes is torchrun's.

    Raises:
        OlivineError: a device that is not there.
    """
    from lightning_fabric import Fabric

    run = settings.run
    devices: int | str = int(run.devices) if run.devices.isdigit() else run.devices
    nodes = run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = (
        nodes > 1 or (isinstance(devices, int) and devices > 1) or (devices == "auto" and _gpus(run.accelerator) > 1)
    )
    try:
        with warnings.catch_warnings():
            # On a machine with SLURM's commands Fabric advises srun at every start; docs/cluster.md has our way.
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            fabric = Fabric(
                accelerator=run.accelerator,
                devices=devices,
                num_nodes=nodes,
                precision=run.precision,  # type: ignore[arg-type]
                strategy="ddp" if several else "auto",
            )
        fabric.launch()
    except OlivineError:
        raise
    except Exception as error:  # Fabric has no exception type of its own for a device that is not there
        raise OlivineError(
            f"the devices asked for cannot be had ({(str(error).splitlines() or [''])[0]})",
            where=f"run.accelerator={run.accelerator}, run.devices={run.devices}, run.precision={run.precision}",
            remedy="choose others, for example --set run.accelerator=cpu",
        ) from None
    return fabric


def _gpus(accelerator: str) -> int:
    return torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0


@dataclass(frozen=True)
class Share:
    """This process's part of every step: frames [first, last) of the batch, in ``passes`` of ``per_pass`` frames."""

    first: int
    last: int
    per_pass: int
    passes: int


def share_of_step(settings: PretrainSettings, rank: int, world: int) -> Share:
    """How a step's frames fall on processes and passes: whole contrast groups, the same number everywhere.

    Raises:
        OlivineError: they do not divide.
    """
    run = settings.run
    parts = world * run.accumulate
    if (
        run.batch % parts
        or (parts > 1 and (run.batch // parts) % run.group)
        or (run.batch % run.group and run.batch > run.group)
    ):
        raise OlivineError(
            f"a batch of {run.batch} frames in groups of {run.group} does not divide over {world} processes times "
            f"{run.accumulate} passes",
            where="run.batch",
            remedy=f"use a multiple of {run.group * parts}",
        )
    per_pass = run.batch // parts
    first = rank * per_pass * run.accumulate
    return Share(first, first + per_pass * run.accumulate, per_pass, run.accumulate)


def open_stream(settings: PretrainSettings, share: Share, world: int) -> FrameStream:
    """The training frames.

    Raises:
        OlivineError: no shards given, or fewer of them than processes.
    """
    if not settings.data.shards:
        raise OlivineError("no shards given", where="data.shards", remedy="pass the folder that build-pairs wrote")
    stream = FrameStream(
        settings.data.shards,
        StreamSettings(
            settings.seed,
            settings.run.batch,
            (share.first, share.last),
            (settings.image.height, settings.image.width),
            settings.augment,
            pictures=settings.image.stored is None,
        ),
        workers=settings.data.workers,
        prefetch=settings.data.prefetch,
    )
    if world > len(stream.shards.shard_ranges):
        stream.close()
        raise OlivineError(
            f"{world} processes for {len(stream.shards.shard_ranges)} shards",
            where=settings.data.shards,
            remedy="use fewer processes",
        )
    return stream


def open_validation(settings: PretrainSettings, rank: int, world: int) -> tuple[FrameStream, int]:
    """The held-out frames as stored, this process's part of each batch of ``world`` groups, and the number of steps."""
    group = settings.run.group
    assert settings.data.validation is not None
    stream = FrameStream(
        settings.data.validation,
        StreamSettings(
            settings.seed,
            group * world,
            (group * rank, group * (rank + 1)),
            (settings.image.height, settings.image.width),
            NO_AUGMENTATION,
            shuffle=False,
        ),
    )
    frames = min(stream.count, settings.run.validate_frames)
    return stream, max(1, frames // (group * world))


def pair_class_count(shards: ShardSet, settings: PretrainSettings) -> Tensor:
    """Pairs of each class over the data set, label 0 first, int64 [C].

    With ``data.labels=truth`` the classes are the points' and their counts unknown: zeros (the draws then take the
    frequency of the group at hand).

    Raises:
        OlivineError: ground truth asked for where the shards hold none.
    """
    if settings.data.labels == "weak":
        return torch.as_tensor(shards.class_count, dtype=torch.int64)
    if not shards.point_classes:
        raise OlivineError(
            "the shards hold no ground truth", where=settings.data.shards, remedy="use --set data.labels=weak"
        )
    return torch.zeros(len(shards.point_classes) + 1, dtype=torch.int64)


def build_encoder(settings: PretrainSettings, device: torch.device) -> ImageEncoder:
    """The frozen image encoder on its device."""
    image = settings.image
    name = image.dtype if image.dtype != "auto" else "bfloat16" if gains_by_bfloat16(device) else "float32"
    return ImageEncoder(image.encoder, image.weights, dtype=getattr(torch, name)).to(device)


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether the frozen encoder runs faster in bfloat16 here: a GPU that has it, or a CPU with AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = Path("/proc/cpuinfo")
    return device.type == "cpu" and processor.is_file() and " amx_bf16 " in processor.read_text().replace("\n", " ")


def backbone_arguments(settings: PretrainSettings) -> dict[str, Any]:
    """Arguments of ``build_backbone`` for this run, as a checkpoint keeps them."""
    return {
        "name": settings.backbone.name,
        "in_channels": settings.voxels.feature_channels,
        "out_channels": settings.backbone.out_channels,
    }


def seeded_backbone(settings: PretrainSettings, seed: int) -> nn.Module:
    """The 3D network with weights from a seed."""
    return build_backbone(**backbone_arguments(settings), seed=seed)


def build_model(settings: PretrainSettings, encoder_channels: int) -> Distiller:
    """The network to train, initialised from the run's seed."""
    backbone = seeded_backbone(settings, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        heads = PixelHeads(encoder_channels, settings.backbone.out_channels, decoupled=settings.loss.decoupled_heads)
    if not settings.loss.decoupled_heads:
        backbone.final_class_level.requires_grad_(False)
    problem = engine_problem(settings.backbone.engine)
    if problem:
        raise OlivineError(problem)
    shape = settings.voxels.shape if settings.voxels.from_corner else None
    return Distiller(backbone, heads, shape=shape, engine=settings.backbone.engine)


def build_optimizer(settings: PretrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of everything that is trained."""
    rates = settings.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if rates.kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rates.lr, weight_decay=rates.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=rates.lr,
        momentum=rates.momentum,
        dampening=rates.dampening,
        weight_decay=rates.weight_decay,
    )


def learning_rate(settings: PretrainSettings, step: int, steps: int, frames: int) -> float:
    """The rate of a step: linear rise, then half a cosine to 0, changed every step or every epoch."""
    optimizer, batch = settings.optimizer, settings.run.batch
    rise = round(optimizer.warmup * steps)
    if step < rise:
        return optimizer.lr * (step + 1) / rise
    if optimizer.schedule_per == "epoch":
        done: float = (step * batch) // frames
        whole: float = max(1, math.ceil(steps * batch / frames))
        if settings.run.steps is None:
            whole = settings.run.epochs
    else:
        done, whole = step - rise, max(1, steps - rise)
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / whole)))


class StopRequest:
    """Whether a signal asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request that the loop sees at the end of its step.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, _: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.requested = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def torch_state(settings: PretrainSettings, device: torch.device) -> Iterator[None]:
    """Deterministic algorithms and the number of threads for the length of a run, after which kept memory is given back."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    if settings.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)
        torch.set_num_threads(threads)
        keeper.release()
