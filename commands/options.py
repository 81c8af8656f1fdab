"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 for one a core.")]
Part = Annotated[str, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the work (from 0).")]
Place = Annotated[str, typer.Option("--executor", help="Where units are done: local (processes) or ray.")]
Address = Annotated[str | None, typer.Option(help="ray: the cluster's host:port, or auto [starts one here].")]
Merge = Annotated[bool, typer.Option("--merge", help="Make nothing: enter and check what all parts made.")]
Plan = Annotated[int, typer.Option(hidden=True, help="Print which of so many parts have work left, as JSON.")]
Folder = Annotated[Path | None, typer.Option("--weights", help="Weights folder [~/.cache/olivine/weights].")]
Names = Annotated[list[str] | None, typer.Argument(help="Models, as `olivine weights list` names them.")]
Moved = Annotated[Path | None, typer.Option(help="The data set's folder, if it has moved since labelgen.")]
Labels = Annotated[Path | None, typer.Option(help="Label folder [the largest in data/labels].")]
Checkpoint = Annotated[Path | None, typer.Option(help="Run folder or checkpoint [the newest in runs/].")]
Labelled = Annotated[Path | None, typer.Option(help="Folder with train/ and val/ shards [data/pairs/…].")]
Fraction = Annotated[float, typer.Option(help="Percent of the training labels: 1, 5, 10, 25 or 100.")]
Tuned = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as lr=0.5.")]
Network = Annotated[
    str | None, typer.Option(help="Preset or YAML file whose backbone and voxels the checkpoint must have.")
]
Predictions = Annotated[
    Path | None, typer.Option(help="Also write the validation frames' predictions here, in the benchmark's format.")
]
