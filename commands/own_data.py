"""The commands for a recording of your own: a start of its description, and whether any data set is what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..common import check_output, check_replaceable
from . import console, defaults
from .options import Dataset, Json, Overwrite, Root, Version


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("init-rig")(init_rig)
    app.command("import-bag")(import_bag)
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


def import_bag(
    bags: Annotated[
        list[Path],
        typer.Argument(help="A ROS 2 bag's folder, an .mcap or .db3 file, or the .bag files of one recording."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the recording, for --dataset rig.")] = Path("data/rig"),
    lidar: Annotated[
        list[str] | None, typer.Option(help="Topic of a LiDAR's clouds, again for more (default: all).")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Topic of a camera's images, again for more (default: all).")
    ] = None,
    odometry: Annotated[
        str | None,
        typer.Option(
            help="Topic of the vehicle's poses; none; or kiss-icp, from the clouds (default: the only topic)."
        ),
    ] = None,
    vehicle: Annotated[
        str | None, typer.Option(help="Frame whose poses they are (default: the child frame that the odometry names).")
    ] = None,
    stamps: Annotated[str, typer.Option(help="Times: header (the sensors' own) or received.")] = "header",
    scene: Annotated[str | None, typer.Option(help="Name of the scene (default: the bag's).")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of the scene: train, val or test (default: as rig.yaml has it, else train)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the scene, if one has this name.")] = False,
    as_json: Json = False,
) -> None:
    """Write a ROS 1 or ROS 2 bag as a folder that --dataset rig reads; no ROS is needed.

    Example: olivine import-bag drive.bag --out data/rig
    """
    from ..readers.bags import BagSettings
    from ..readers.bags import import_bag as run

    settings = BagSettings(tuple(lidar or ()), tuple(camera or ()), odometry or "", vehicle or "", stamps, split or "")
    summary = run(bags, out, scene or "", settings, overwrite=overwrite)
    console.finish("import-bag", summary, out, as_json)


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
    found.failures[:0] = opened.doubts
    views = [(f"{v.camera}, frame {v.token}", v.image, v.uv, v.distance, v.edge) for v in found.views]
    write_data_page(out, f"{opened.name}: {root}", summary_of(found), found.failures, views)
    report = report_of(found)
    if as_json:
        return console.finish("check-data", report, out, as_json)
    # A line for each camera; what is left is the summary.
    print(f"\n{'camera':24}  sees of the points  edges fit  after the cloud")
    for name in report.share:
        fit = f"{report.fit[name]:.2f}" if name in report.fit else "not known"
        delay = f"{report.delay[name][1]:.0f} ms" if name in report.delay else ""
        print(f"{name:24}  {report.share[name]:16.1f} %  {fit:>9}  {delay:>15}")
    print()
    return console.finish("check-data", replace(report, share={}, fit={}, delay={}), out / "index.html", as_json)
