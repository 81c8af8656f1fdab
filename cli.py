"""The command line: each command chooses its folders, calls one function of a room and prints what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Failure, OlivineError, disk_error, read_json

app = typer.Typer(
    name="olivine",
    help="Image-to-LiDAR distillation: label maps, point-pixel pairs, pre-training, proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA = Path("data")
DATASETS = ("nuscenes", "semantickitti", "kitti")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 for one a core.")]
Part = Annotated[str, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the work (from 0).")]


def main() -> None:
    """Run the command line: errors become one line and an exit code (0, 1 or 2)."""
    try:
        code = app(standalone_mode=False)
    except OlivineError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted. What is finished is kept; run the same command again to go on", 1)
    except OSError as error:
        _fail(str(disk_error(error, error.filename or "output")), 1)
    except Exception as error:
        _fail_other(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_other(error: Exception) -> None:
    click_message = getattr(error, "format_message", None)
    if click_message is not None:  # what the option parser has to say
        _fail(f"{click_message().rstrip('.')}. Run the command with --help for its options", 2)
    if type(error).__name__ == "Abort":
        _fail("interrupted. What is finished is kept; run the same command again to go on", 1)
    if os.environ.get("OLIVINE_TRACEBACK"):
        raise error
    _fail(
        f"this is a bug in olivine ({type(error).__name__}: {error}). "
        "Run it again with OLIVINE_TRACEBACK=1 and report what it prints",
        2,
    )


def _fail(line: str, code: int) -> None:
    print(f"olivine: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


# -- commands ----------------------------------------------------------------------------------------------------------


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")] = DATA / "nuscenes",
    format: Annotated[str, typer.Option(help="nuscenes or semantickitti.")] = "nuscenes",
    scenes: Annotated[int, typer.Option(help="Scenes; about a quarter of them for validation.")] = 10,
    frames: Annotated[int, typer.Option(help="Frames in each scene.")] = 6,
    image_scale: Annotated[float, typer.Option(help="Image size relative to the real camera's.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Another seed, another street.")] = 0,
    workers: Workers = 0,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a synthetic data set in a real one's format.

    Example: olivine synth --scenes 10 --frames 6 --out data/nuscenes
    """
    from .synthetic.settings import SyntheticSettings
    from .synthetic.write import write_dataset

    settings = SyntheticSettings(
        format=format, scenes=scenes, frames=frames, image_scale=image_scale, seed=seed, workers=workers or _cores()
    )
    if dry_run:
        return _say_plan(f"{scenes} scenes of {frames} frames in {format} format", out, as_json)
    _finish("synth", write_dataset(settings, out), out, as_json)


@app.command()
def labelgen(
    dataset: Annotated[
        str | None, typer.Option(help="nuscenes, semantickitti or kitti; else what data/ holds.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The data set's folder [data/<dataset>].")] = None,
    version: Annotated[str | None, typer.Option(help="nuScenes version [the largest present].")] = None,
    out: Annotated[Path | None, typer.Option(help="Label folder [data/labels/<dataset>].")] = None,
    labeler: Annotated[str, typer.Option(help="auto, grounded-sam, oracle or import.")] = "auto",
    camseg: Annotated[Path | None, typer.Option(help="import: the folder of label maps.")] = None,
    classes: Annotated[Path | None, typer.Option(help="import: what each value of those maps means.")] = None,
    error: Annotated[str, typer.Option(help="oracle: its errors; none for exact labels.")] = "default",
    prompts: Annotated[Path | None, typer.Option(help="Another vocabulary than the 13 prompts.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the foundation models' weights.")] = None,
    detector_config: Annotated[Path | None, typer.Option(help="GroundingDINO configuration.")] = None,
    detector_checkpoint: Annotated[Path | None, typer.Option(help="GroundingDINO checkpoint.")] = None,
    sam_checkpoint: Annotated[Path | None, typer.Option(help="SAM checkpoint.")] = None,
    sam: Annotated[str, typer.Option(help="SAM's size: vit-b, vit-l or vit-h.")] = "vit-h",
    text_encoder: Annotated[Path | None, typer.Option(help="Folder with BERT's configuration and vocabulary.")] = None,
    overlap: Annotated[str, typer.Option(help="layered (stuff, then things) or reference.")] = "layered",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the oracle's errors.")] = 0,
    shard: Part = "0/1",
    overwrite: Overwrite = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a label map for every camera image.

    Example: olivine labelgen --dataset nuscenes
    """
    from .labelgen.run import generate_labels
    from .labelgen.settings import LabelSettings
    from .readers import index_dataset

    dataset, root, why = _choose_dataset(dataset, root)
    out = out or DATA / "labels" / dataset
    _note(f"data set: {root} ({why})", as_json)
    settings = LabelSettings(
        labeler=labeler,
        camseg=camseg,
        classes=classes,
        error=error,
        prompts=prompts,
        weights=weights,
        detector_config=detector_config,
        detector_checkpoint=detector_checkpoint,
        sam_checkpoint=sam_checkpoint,
        sam=sam,
        text_encoder=text_encoder,
        overlap=overlap,
        device=device,
        seed=seed,
    )
    if dry_run:
        return _say_plan(f"label maps for {dataset} by {labeler}", out, as_json)
    index, note = index_dataset(out / "frames", dataset, root, version)
    _note(f"frames: {note}", as_json)
    _finish("labelgen", generate_labels(index, out, settings, part=_part(shard), overwrite=overwrite), out, as_json)


@app.command("build-pairs")
def build_pairs(
    labels: Annotated[Path | None, typer.Option(help="Label folder [the largest in data/labels].")] = None,
    dataset: Annotated[str | None, typer.Option(help="Take the labels of this data set.")] = None,
    root: Annotated[Path | None, typer.Option(help="The data set's folder, if it has moved since labelgen.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the shards [data/pairs/<dataset>].")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test [every split with frames].")] = None,
    image_scale: Annotated[str, typer.Option(help="Size of the stored images: auto, or a number up to 1.")] = "auto",
    images: Annotated[bool, typer.Option("--images/--no-images", help="Store the images.")] = True,
    workers: Workers = 0,
    shard: Part = "0/1",
    overwrite: Overwrite = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Project the label maps onto the points and write Zarr shards.

    Example: olivine build-pairs
    """
    from .labelgen.store import open_store
    from .pairs.build import build_pairs as build
    from .pairs.settings import PairSettings

    labels, why = _choose_labels(labels, dataset)
    store = open_store(labels)
    index = store.index(root)
    out = out or DATA / "pairs" / index.dataset
    _note(f"labels: {labels} ({why})", as_json)
    settings = PairSettings(
        image_scale=image_scale if image_scale == "auto" else _number("--image-scale", image_scale),
        images=images,
        workers=workers or _cores(),
    )
    summaries = []
    for name in [split] if split else index.splits():
        if dry_run:
            _say_plan(f"shards of {sum(s.frame_count for s in index.select(name))} {name} frames", out / name, as_json)
            continue
        summary = build(store, out / name, settings, split=name, part=_part(shard), overwrite=overwrite, index=index)
        summaries.append((name, summary))
    _finish_many("build-pairs", summaries, out, as_json)


@app.command()
def pretrain(
    shards: Annotated[
        Path | None, typer.Option(help="Training shards [the largest train split in data/pairs].")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out shards [the val folder beside them].")] = None,
    config: Annotated[str, typer.Option(help="A preset's name, a YAML file, or auto.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run [the preset's].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [runs/<name>].")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the run's last checkpoint.")] = True,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print every setting, and stop.")] = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Distil the image encoder and the labels into a sparse 3D network.

    Example: olivine pretrain --config cpu --set epochs=20
    """
    from .train.settings import choose_preset, load_settings, settings_to_yaml

    changes = list(set_ or [])
    preset, why = choose_preset() if config == "auto" else (config, "as asked")
    _note(f"preset: {preset} ({why})", as_json or print_config)
    if print_config and shards is None:
        print(settings_to_yaml(load_settings(preset, changes)), end="")
        return
    shards, why = _choose_shards(shards, "train")
    if validation is None and (shards.parent / "val" / "manifest.json").is_file() and shards.name != "val":
        validation = shards.parent / "val"
    changes += [f"data.shards={json.dumps(str(shards))}"]
    changes += [f"data.validation={json.dumps(str(validation))}"] if validation else []
    settings = load_settings(preset, changes)
    if print_config:
        print(settings_to_yaml(settings), end="")
        return
    _note(f"shards: {shards} ({why})", as_json)
    out = out or Path("runs") / (name or settings.name)
    if dry_run:
        length = f"{settings.run.steps} steps" if settings.run.steps else f"{settings.run.epochs} epochs"
        return _say_plan(f"a run of {length} of {settings.backbone.name}", out, as_json)
    from .train.loop import pretrain as run

    _finish("pretrain", run(settings, out, resume=resume), out, as_json)


@app.command()
def probe(
    checkpoint: Annotated[Path | None, typer.Option(help="Run folder or checkpoint [the newest in runs/].")] = None,
    shards: Annotated[Path | None, typer.Option(help="Folder with train/ and val/ shards [as the run's].")] = None,
    random: Annotated[bool, typer.Option("--random/--no-random", help="Also probe random weights, to compare.")] = True,
    epochs: Annotated[int, typer.Option(help="Passes over the training shards.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the head and of the random weights.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the scores [<run>/probe].")] = None,
    as_json: Json = False,
) -> None:
    """Train a linear head on the frozen backbone and score it, beside random weights.

    Example: olivine probe
    """
    from .downstream.probe import ProbeSettings, linear_probe
    from .downstream.results import score_table

    checkpoint, why = _choose_checkpoint(checkpoint)
    _note(f"checkpoint: {checkpoint} ({why})", as_json)
    base, why = _choose_shards(shards, "train")
    base = base.parent if base.name in ("train", "val") else base
    _note(f"shards: {base}/{{train,val}} ({why})", as_json)
    out = out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "probe"
    settings = ProbeSettings(epochs=epochs, seed=seed)
    results = linear_probe(checkpoint, base / "train", base / "val", out, settings, random=random)
    if as_json:
        print(json.dumps([dataclasses.asdict(r) for r in results]))
        return
    print(score_table(results))
    print(f"scores: {out}")


@app.command()
def report(
    run: Annotated[Path | None, typer.Option(help="Run folder [the newest in runs/].")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label folder [the largest in data/labels].")] = None,
    shards: Annotated[Path | None, typer.Option(help="Shards to draw [the largest val split in data/pairs].")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("report"),
    frames: Annotated[int, typer.Option(help="Frames to draw.")] = 3,
    as_json: Json = False,
) -> None:
    """Draw label overlays, labelled points, the loss curve and the probe table.

    Example: olivine report --out report
    """
    from .report.figures import draw_report

    labels, _ = _choose_labels(labels, None)
    shards, _ = _choose_shards(shards, "val")
    folder = run or (_newest_run() if list(Path("runs").glob("*/last.pt")) else None)
    _finish("report", draw_report(labels, shards, folder, out, frames=frames), out, as_json)


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Without importing every package.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, what is missing, what would be used, and what mends it.

    Example: olivine doctor
    """
    from .doctor import examine

    findings = list(examine(quick))
    if as_json:
        print(json.dumps([f.as_dict() for f in findings]))
    else:
        for finding in findings:
            print(f"{finding.state:8} {finding.topic:17} {finding.text}")
            if finding.remedy:
                print(f"{'':26} to mend: {finding.remedy}")
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)


# -- what is taken when nothing is said --------------------------------------------------------------------------------


def _choose_dataset(dataset: str | None, root: Path | None) -> tuple[str, Path, str]:
    if dataset is not None:
        return dataset, root or DATA / dataset, "as asked"
    if root is not None:
        raise OlivineError("--root needs --dataset", remedy=f"add --dataset with one of {', '.join(DATASETS)}")
    present = [name for name in DATASETS if (DATA / name).is_dir()]
    if not present:
        raise OlivineError("no data set in data/", remedy="link one to data/nuscenes, or make one with: olivine synth")
    largest = max(present, key=lambda name: _tree_size(DATA / name))
    why = "the only data set in data/" if len(present) == 1 else f"the largest of {', '.join(present)}"
    return largest, DATA / largest, why


def _choose_labels(labels: Path | None, dataset: str | None) -> tuple[Path, str]:
    if labels is not None:
        return labels, "as asked"
    if dataset is not None:
        return DATA / "labels" / dataset, "as asked"
    return _largest(
        [p.parent for p in (DATA / "labels").glob("*/manifest.json")],
        lambda p: sum(s["frames"] for s in read_json(p / "frames" / "index.json")["scenes"]),
        "labels in data/labels",
        "run olivine labelgen first, or name the folder with --labels",
    )


def _choose_shards(shards: Path | None, split: str) -> tuple[Path, str]:
    if shards is not None:
        inner = shards / split
        return (inner if not (shards / "manifest.json").is_file() and inner.is_dir() else shards), "as asked"
    found = [p.parent for p in (DATA / "pairs").glob("*/*/manifest.json")]
    wanted = [p for p in found if p.name == split]
    chosen, why = _largest(
        wanted or found,
        lambda p: sum(s["frames"] for s in read_json(p / "manifest.json")["shards"]),
        "shards in data/pairs",
        "run olivine build-pairs first, or name the folder with --shards",
    )
    return chosen, why if wanted else f"{why}; there is no {split} split"


def _choose_checkpoint(checkpoint: Path | None) -> tuple[Path, str]:
    if checkpoint is not None:
        return checkpoint, "as asked"
    return _newest_run(), "the newest run"


def _newest_run() -> Path:
    runs = [p.parent for p in Path("runs").glob("*/last.pt")]
    if not runs:
        raise OlivineError("no run in runs/", remedy="run olivine pretrain first, or name the checkpoint")
    return max(runs, key=lambda p: (p / "last.pt").stat().st_mtime)


def _largest(found: Sequence[Path], size: Callable[[Path], int], what: str, remedy: str) -> tuple[Path, str]:
    if not found:
        raise OlivineError(f"no {what}", remedy=remedy)
    chosen = max(sorted(found), key=size)
    return chosen, f"the only {what}" if len(found) == 1 else f"the largest of {len(found)} {what}"


def _tree_size(root: Path) -> int:
    tables = [*root.glob("v1.0-*/sample.json")]
    return sum(p.stat().st_size for p in tables) if tables else sum(1 for _ in root.glob("sequences/*/velodyne/*.bin"))


def _part(text: str) -> tuple[int, int]:
    try:
        index, count = (int(v) for v in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise OlivineError(f"--shard {text}", remedy="give it as I/N with I from 0 to N-1, for example 0/4")
    return index, count


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OlivineError(f"{option} {text} is not a number", remedy=f"give {option} auto or a number") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- what is printed ---------------------------------------------------------------------------------------------------

_START = time.monotonic()
_REPEATED = ("out", "labels", "seconds")  # of a summary: printed below it for every command


def _note(text: str, as_json: bool) -> None:
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def _say_plan(what: str, out: Path, as_json: bool) -> None:
    print(json.dumps({"plan": what, "out": str(out)}) if as_json else f"would write {what} to {out}")


def _finish(command: str, summary: Any, out: Path, as_json: bool) -> None:
    _finish_many(command, [("", summary)], out, as_json)


def _finish_many(command: str, summaries: list[tuple[str, Any]], out: Path, as_json: bool) -> None:
    """Print the summaries (dataclasses whose ``failures`` are listed last); exit 1 if a unit failed."""
    rows = {name: dataclasses.asdict(summary) for name, summary in summaries}
    failures = [Failure(**f) for row in rows.values() for f in row.pop("failures", [])]
    seconds = round(time.monotonic() - _START, 1)
    if as_json:
        plain = rows[""] if list(rows) == [""] else rows
        listed = [dataclasses.asdict(f) for f in failures]
        print(
            json.dumps(
                {"command": command, "out": str(out), "seconds": seconds, **plain, "failures": listed}, default=str
            )
        )
    else:
        for name, row in rows.items():
            shown = {k: v for k, v in row.items() if v not in (None, [], (), {}, "") and k not in _REPEATED}
            print(f"{command} {name}".rstrip())
            for key, value in shown.items():
                print(f"  {key.replace('_', ' '):24} {_short(value)}")
        if rows:
            print(f"  {'seconds':24} {seconds}\n  {'written to':24} {out}")
        if failures:
            print(f"{len(failures)} failed:")
            for failure in failures:
                print(f"  {failure.unit}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v)
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
