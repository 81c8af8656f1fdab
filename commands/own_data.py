"""The commands for a recording of your own: a start of its description, and whether any data set is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import check_output, check_replaceable
from . import console, defaults
from .options import Dataset, Json, Overwrite, Root, Version


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("init-rig")(init_rig)
    app.command("check-data")(check_data)


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


def check_data(
    dataset: Dataset = None,
    root: Root = None,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, val or test.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("check-data"),
    frames: Annotated[int, typer.Option(help="Frames whose points are held against their images.")] = 24,
    as_json: Json = False,
) -> None:
    """Check a data set's calibration, times, poses and files before anything is spent on it.

    Example: olivine check-data --dataset rig
    """
    from ..readers import open_dataset
    from ..readers.checks import CheckSettings, check_frames, report_of, summary_of
    from ..report.data_page import write_data_page

    dataset, root, why = defaults.choose_dataset(dataset, root)
    console.note(f"data set: {root} ({why})", as_json)
    check_output(out, inputs=(root,))
    check_replaceable(out)
    opened = open_dataset(dataset, root, version)
    found = check_frames(opened.frames(split), CheckSettings(frames=frames))
    found.notes.insert(0, opened.note)
    views = [(f"{v.camera}, frame {v.token}", v.image, v.uv, v.distance, v.edge) for v in found.views]
    write_data_page(out, f"{opened.name}: {root}", summary_of(found), found.failures, views)
    console.finish("check-data", report_of(found), out, as_json)
