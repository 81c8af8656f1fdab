"""The options that several commands share: one by one, and in groups that :func:`unfold` puts on the command line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 for one a core.")]
Address = Annotated[str | None, typer.Option(help="ray: the cluster's host:port, or auto (default: starts one here).")]
Folder = Annotated[Path | None, typer.Option("--weights", help="Weights folder (default: ~/.cache/olivine/weights).")]
Names = Annotated[list[str] | None, typer.Argument(help="Models, as `olivine weights list` names them.")]
Dataset = Annotated[str | None, typer.Option(help="Its name, or package.module:Class (default: what data/ holds).")]
Root = Annotated[Path | None, typer.Option(help="The data set's folder (default: data/<dataset>).")]
Version = Annotated[str | None, typer.Option(help="Of the data set, where it has several (default: the largest).")]
Moved = Annotated[Path | None, typer.Option(help="The data set's folder, if it has moved since labelgen.")]
Labels = Annotated[Path | None, typer.Option(help="Label folder (default: the largest in data/labels).")]
ShownLabels = Annotated[
    Path | None, typer.Option(help="Label folder (default: the one in data/labels that the shards were made of).")
]
Shown = Annotated[Path | None, typer.Option(help="Shards to show (default: the largest val split in data/pairs).")]
Predictions = Annotated[
    Path | None, typer.Option(help="What olivine predict wrote for these shards (default: the run's newest).")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Run folder or checkpoint (default: the newest in runs/).")]


@dataclass(frozen=True)
class Units:
    """Where the units of a stage's work are done, and which of them."""

    executor: Annotated[str, typer.Option(help="Where units are done: local (processes) or ray.")] = "local"
    address: Address = None
    merge: Annotated[bool, typer.Option("--merge", help="Do no work; collect and verify what all parts made.")] = False
    plan: Annotated[int, typer.Option(hidden=True, help="Print which of so many parts have work left, as JSON.")] = 0
    shard: Annotated[
        str, typer.Option("--part", metavar="I/N", help="Only the I-th of N parts of the work (from 0).")
    ] = "0/1"


@dataclass(frozen=True)
class Scoring:
    """What probe and fine-tuning are given."""

    checkpoint: Checkpoint = None
    shards: Annotated[Path | None, typer.Option(help="Folder with train/ and val/ shards (default: data/pairs/…).")] = (
        None
    )
    fraction: Annotated[float, typer.Option(help="Percent of the training labels: 1, 5, 10, 25 or 100.")] = 100
    epochs: Annotated[int | None, typer.Option(help="Passes over the training frames (default: 50; 100 at 1 %).")] = (
        None
    )
    seed: Annotated[int, typer.Option(help="Of the head, the order, the augmentation and random weights.")] = 0
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as lr=0.5.")
    ] = None
    config: Annotated[
        str | None, typer.Option(help="Preset or YAML file whose backbone and voxels the checkpoint must have.")
    ] = None
    predictions: Annotated[
        Path | None, typer.Option(help="Also write the validation frames' predictions here, in the benchmark's format.")
    ] = None
    overwrite: Overwrite = False
    as_json: Json = False
    dry_run: DryRun = False


PANELS: dict[str, tuple[str, ...]] = {
    "What is read": (
        *(
            "dataset",
            "root",
            "version",
            "split",
            "labels",
            "shards",
            "validation",
            "checkpoint",
            "run",
            "study",
            "limit",
        ),
        *(
            "camseg",
            "regions",
            "classes",
            "prompts",
            "phrases",
            "points",
            "against",
            "columns",
            "intensity",
            "fraction",
        ),
    ),
    "What is written": (
        *(
            "out",
            "overwrite",
            "as_json",
            "dry_run",
            "images",
            "image_scale",
            "jpeg_quality",
            "predictions",
            "confidence",
        ),
        *("preview", "verify", "check", "describe", "print_config", "name", "layout", "resume"),
    ),
    "Models and their weights": (
        *("labeler", "error", "weights", "detector", "detector_config", "detector_checkpoint", "sam", "sam_checkpoint"),
        *("text_encoder", "clip", "clip_checkpoint"),
    ),
    "Where it runs": (
        *("workers", "executor", "address", "merge", "plan", "shard", "part", "device", "precision", "batch_size"),
        *("engine", "partition", "nodes", "gpus", "cpus", "parts", "time", "wait"),
    ),
}
"""Groups of options in the help, by the names of the commands' parameters; the others come first."""
MANY = 8
"""A command with more options than this shows them in groups."""


def in_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose help shows its options in the groups of :data:`PANELS`, where it has many."""
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    if len(signature.parameters) <= MANY:
        return command
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}

    def placed(parameter: inspect.Parameter) -> inspect.Parameter:
        hint = hints[parameter.name]
        kind, *metadata = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        # A copy: one option may be several commands'.
        metadata = [copy.copy(m) for m in metadata]
        for option in metadata:
            if hasattr(option, "rich_help_panel"):
                option.rich_help_panel = panel_of.get(parameter.name)
        return parameter.replace(annotation=Annotated[(kind, *metadata)] if metadata else kind)

    @functools.wraps(command)
    def grouped(**values: Any) -> None:
        command(**values)

    parameters = [placed(parameter) for parameter in signature.parameters.values()]
    grouped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return grouped


def unfold(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of the kinds above are given option by option, in the place of the parameter."""
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        kind = groups[parameter.name]
        inner = typing.get_type_hints(kind, include_extras=True)
        members = dataclasses.fields(kind)
        parameters += [parameter.replace(name=m.name, annotation=inner[m.name], default=m.default) for m in members]

    @functools.wraps(command)
    def unfolded(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{member.name: values.pop(member.name) for member in dataclasses.fields(kind)})
        command(**values)

    unfolded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    unfolded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return unfolded
