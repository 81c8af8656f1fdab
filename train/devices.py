"""Devices and processes of a run: Lightning Fabric, what each process does of a step, determinism and threads."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common import OlivineError, memory_error, tell_of_device
from .sampling import generator_of
from .settings import PretrainSettings
from .sparse.loops import release_memory
from .sparse.precision import float32_as

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Whether torch fills fresh memory with NaN during a run: it costs a pass over every new array. Tests switch it on.
FILL_FRESH_MEMORY = False


def make_fabric(settings: PretrainSettings) -> Fabric:
    """Lightning Fabric, launched. Under ``torchrun`` the number of devices and nodes is torchrun's.

    ``run.devices=auto`` takes as many GPUs as the batch divides over, and says so where some are left over.

    Raises:
        OlivineError: a device that is not there, or several nodes and nothing that starts the others.
    """
    from lightning_fabric import Fabric

    run = settings.run
    devices: int | str = int(run.devices) if run.devices.isdigit() else run.devices
    nodes = run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif nodes > 1 and not {"NODE_RANK", "GROUP_RANK", "SLURM_NTASKS"} & set(os.environ):
        raise OlivineError(
            f"run.nodes is {nodes}, and nothing has started the other nodes; this one would wait for ever",
            remedy="start them with olivine submit, olivine launch or torchrun",
        )
    elif devices == "auto" and _gpus(run.accelerator) > 1:
        devices = devices_for(settings, _gpus(run.accelerator))
        if devices < _gpus(run.accelerator) and "LOCAL_RANK" not in os.environ:  # once, and not in Fabric's children
            print(
                f"olivine: {devices} of {_gpus(run.accelerator)} GPUs: run.batch={run.batch} in groups of {run.group} "
                "does not divide over more",
                file=sys.stderr,
                flush=True,
            )
    several = nodes > 1 or (isinstance(devices, int) and devices > 1)
    strategy: Any = "auto"
    if several:
        from lightning_fabric.strategies import DDPStrategy

        # Norms share their statistics (share_norms), so their buffers are the same everywhere without a broadcast.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        with warnings.catch_warnings():
            # On a machine with SLURM's commands Fabric advises srun at every start; docs/cluster.md has our way.
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            fabric = Fabric(
                accelerator=run.accelerator,
                devices=devices,
                num_nodes=nodes,
                precision=run.precision,  # type: ignore[arg-type]
                strategy=strategy,
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
    tell_of_device(fabric.device, run.accelerator, run.precision)
    return fabric


def devices_for(settings: PretrainSettings, present: int) -> int:
    """The largest number of devices, of those present on each node, that a step's frames divide over; at least 1."""
    for number in range(present, 1, -1):
        with contextlib.suppress(OlivineError):
            share_of_step(settings, 0, number * settings.run.nodes)
            return number
    return 1


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


@contextlib.contextmanager
def naming_what_to_lower(settings: PretrainSettings, processes: int = 1) -> Iterator[None]:
    """An error for want of tensors' memory as one that names what decides how much of it a step takes."""
    try:
        yield
    except RuntimeError as error:
        if memory_error(error) is None:
            raise
        shown, on_gpu = " ".join(str(error).split())[:160], isinstance(error, torch.OutOfMemoryError)
    else:
        return
    run, less = settings.run, max(1, settings.run.group // 2)
    parts = 2 * run.accumulate * processes
    remedy = f"take fewer frames at once: --set run.batch={less * processes} --set run.group={less}"
    if run.batch % parts == 0 and (run.batch // parts) % run.group == 0:
        remedy = f"take fewer frames at once: --set run.accumulate={2 * run.accumulate}"
    elif run.group == 1 and run.batch <= processes:
        remedy = "take larger voxels (voxels.size_m) or a smaller network"
    raise OlivineError(
        f"a step does not fit into memory with run.batch={run.batch}, run.group={run.group}, "
        f"run.accumulate={run.accumulate} ({shown})",
        remedy=remedy + ("; or fewer images: --set image.at_once=16" if on_gpu else ""),
    )


def over_processes(value: Tensor, fabric: Fabric) -> Tensor:
    """The sum over processes."""
    if fabric.world_size == 1:
        return value
    total: Tensor = fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment]
    return total


def anywhere(flag: bool, fabric: Fabric) -> bool:
    """Whether any process says so; all processes agree."""
    if fabric.world_size == 1:
        return flag
    return bool(over_processes(torch.tensor(int(flag), device=fabric.device), fabric) > 0)


def seed_draws(device: torch.device, *key: int) -> None:
    """Seed what a network draws itself (dropout, stochastic depth), so that a run that goes on draws the same.

    Args:
        device: of the network; its own generator is seeded too.
        key: non-negative, for example (seed, step, process).
    """
    generator = generator_of(*key)
    torch.set_rng_state(generator.get_state())
    if device.type == "cuda":
        torch.cuda.manual_seed(generator.initial_seed())


@contextlib.contextmanager
def torch_state(settings: PretrainSettings, device: torch.device) -> Iterator[None]:
    """Deterministic algorithms, how float32 is multiplied and the number of threads, for the length of a run.

    The state of torch's generator is afterwards as it was, see :func:`seed_draws`. An operator that has no deterministic
    algorithm on the device raises torch's error. Fresh memory is not filled with NaN: nothing reads it before it is written.
    After the run kept memory is given back.
    """
    was_filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    if settings.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = FILL_FRESH_MEMORY  # type: ignore[attr-defined]
    try:
        with float32_as(settings.run.float32_products), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)
        torch.utils.deterministic.fill_uninitialized_memory = was_filled  # type: ignore[attr-defined]
        torch.set_num_threads(threads)
        release_memory()
