"""The commands about many machines: a stage on SLURM, pre-training on Ray, how far jobs are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .defaults import DATA
from .options import Address, Json


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    stage = {"ignore_unknown_options": True}  # they are those of the stage
    app.command(context_settings=stage)(submit)
    app.command(context_settings=stage)(launch)
    app.command()(status)


def submit(
    command: Annotated[list[str], typer.Argument(help="labelgen, build-pairs or pretrain, with its options.")],
    partition: Annotated[str | None, typer.Option(help="SLURM's partition (default: its default).")] = None,
    nodes: Annotated[int, typer.Option(help="Machines at once.")] = 1,
    gpus: Annotated[int, typer.Option(help="On each machine; processes where it has none.")] = 0,
    cpus: Annotated[
        int | None,
        typer.Option(help="Cores of one task (default: 1; pretrain on GPUs: each process and its loader's workers)."),
    ] = None,
    parts: Annotated[int, typer.Option(help="Array tasks; 0 for four a place.")] = 0,
    time: Annotated[str | None, typer.Option(help="Limit of one job (default: the partition's).")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Come back when the last job has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a stage to SLURM: an array over its parts, and a job that merges and checks; pretrain by torchrun.

    Example: olivine submit --partition gpu --nodes 4 --gpus 8 -- labelgen --dataset nuscenes
    """
    from ..cluster.slurm import SlurmSettings, submit

    settings = SlurmSettings(partition, nodes, gpus, cpus, parts, time, wait)
    summary = submit(command, settings)
    console.finish("submit", summary, summary.logs, as_json)


def launch(
    command: Annotated[list[str], typer.Argument(help="pretrain, with its options.")],
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="On each machine; processes where it has none.")] = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Run pretrain by torchrun on the machines of a Ray cluster.

    Example: olivine launch --nodes 2 --gpus 8 --address auto -- pretrain --config paper
    """
    from ..cluster.ray_torchrun import launch

    summary = launch(command, nodes, max(1, gpus), address, say=lambda text: console.note(text, as_json))
    console.finish("launch", summary, summary.logs, as_json)


def status(
    folder: Annotated[Path, typer.Argument(help="What a stage writes to, or a folder above.")] = DATA,
    watch: Annotated[bool, typer.Option("--watch", help="A progress bar, until nothing is left.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is done, running and failed of the jobs that write here, from any terminal.

    Example: olivine status data/labels/nuscenes --watch
    """
    from ..cluster.status import find_jobs, read_status, watch_jobs

    found = watch_jobs(folder) if watch else [read_status(job) for job in find_jobs(folder)]
    left = sum(status.unfinished for status in found)
    if watch and left:
        console.note(f"nobody works on the {left} units that are left; run the stage again for them", as_json)
    console.finish_many("status", [(str(s.out), s) for s in found], None, as_json)
