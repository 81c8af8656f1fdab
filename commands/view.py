"""The command that shows a data set, label maps, shards or predictions live in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common import OlivineError
from . import console, defaults
from .defaults import DATA
from .options import Dataset, Json, Predictions, Root, Shown, ShownLabels, Version

if TYPE_CHECKING:
    from ..report.view import Scenes


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(view)


def view(
    run: Annotated[
        Path | None, typer.Option(help="Run folder, for its predictions (default: the newest in runs/).")
    ] = None,
    labels: ShownLabels = None,
    dataset: Dataset = None,
    root: Root = None,
    version: Version = None,
    split: Annotated[
        str | None, typer.Option(help="Only this split: train, val or test (shards: val; else all).")
    ] = None,
    shards: Shown = None,
    predictions: Predictions = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 shows it to the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8080,
    as_json: Json = False,
) -> None:
    """Show frames live in a browser: points and images together, one slider for time. Ctrl-C ends it.

    What is named is shown; else shards, else label maps, else the data set. It needs viser: pip install viser

    Example: olivine view --root data/nuscenes
    """
    from ..report.view import Viewer

    scenes = _scenes(run, labels, dataset, root, version, split, shards, predictions, as_json)
    viewer = Viewer(scenes, host, port)
    if as_json:
        console.emit("view", {"url": viewer.url, "frames": scenes.count})
    else:
        print(f"{scenes.title}, {scenes.count:,} frames: open {viewer.url} in a browser; Ctrl-C ends it", flush=True)
    viewer.run()


def _scenes(
    run: Path | None,
    labels: Path | None,
    dataset: str | None,
    root: Path | None,
    version: str | None,
    split: str | None,
    shards: Path | None,
    predictions: Path | None,
    as_json: bool,
) -> Scenes:
    """What was named, opened; else the shards, else the label maps, else the data set that there are."""
    from ..report.contents import Sources
    from ..report.view import open_scenes

    if run is not None and not (run / "run.json").is_file():
        raise OlivineError("no run here", where=run, remedy="name the folder of a run with --run")
    folder = "*" if dataset is None else defaults.choose_labels(None, dataset)[0].name
    of_shards = not run is shards is predictions is None
    other = labels is not None or root is not None
    if of_shards or (not other and any((DATA / "pairs").glob(f"{folder}/*/manifest.json"))):
        if shards is None and dataset is not None:
            shards = DATA / "pairs" / folder
        shards, why = defaults.choose_shards(shards, split or "val")
        console.note(f"shards: {shards} ({why})", as_json)
        sources = defaults.report_sources(run, labels, dataset, shards, predictions, None)
        scenes = open_scenes(sources, root=root)
        if predictions is not None and scenes.contents.predictions is None:
            raise OlivineError(next(text for text in scenes.contents.missing if text.startswith("predictions: ")))
        for text in scenes.contents.missing:
            console.note(text, as_json)
        return scenes
    if labels is not None or (root is None and any((DATA / "labels").glob(f"{folder}/manifest.json"))):
        labels, why = defaults.choose_labels(labels, dataset)
        console.note(f"labels: {labels} ({why})", as_json)
        return open_scenes(Sources(labels=labels), root=root, split=split)
    from ..readers import open_dataset

    dataset, root, why = defaults.choose_dataset(dataset, root)
    console.note(f"data set: {root} ({why})", as_json)
    opened = open_dataset(dataset, root, version)
    return open_scenes(Sources(), opened.frames(split), opened.point_classes, root)
