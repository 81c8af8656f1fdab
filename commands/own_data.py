"""The commands for a recording of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import Json, Overwrite


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("init-rig")(init_rig)


def init_rig(
    folder: Annotated[Path, typer.Argument(help="The folder with the point files and images.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a commented rig.yaml for a recording of your own, from the files in its folder.

    Example: olivine init-rig data/rig
    """
    from ..readers.recording_start import start_description

    summary = start_description(folder, overwrite=overwrite)
    console.finish("init-rig", summary, summary.out, as_json)
