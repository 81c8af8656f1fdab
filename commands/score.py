"""The commands that score pre-trained weights, compare them, and take them elsewhere."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import OlivineError, check_output, check_replaceable
from . import console, defaults
from .defaults import DATA, RUNS
from .options import Checkpoint, DryRun, Json, Overwrite, Predictions, Scoring, Shown, ShownLabels, unfold

if TYPE_CHECKING:
    from ..downstream.settings import S, SegmentationSettings
    from ..train.settings import PretrainSettings


Corrupt = Annotated[
    bool, typer.Option("--corrupt", help="Also score worse clouds: fewer beams, noise, no intensity, another scale.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(unfold(probe))
    app.command()(unfold(finetune))
    app.command()(predict)
    app.command()(embed)
    app.command()(study)
    app.command()(export)
    app.command()(report)
    app.command()(figures)
    app.command("import-weights")(import_weights)


def probe(
    given: Scoring,
    beside_random: Annotated[
        bool, typer.Option("--beside-random/--no-beside-random", help="Also probe random weights, to compare.")
    ] = True,
    augment: Annotated[
        bool,
        typer.Option("--augment/--no-augment", help="Rotate and flip the clouds; without, features are computed once."),
    ] = True,
    from_head: Annotated[
        bool,
        typer.Option(
            "--from-head", help="Start from the head of a fine-tuned checkpoint, as UOV does; the scores say so."
        ),
    ] = False,
    corrupt: Corrupt = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the scores (default: <run>/probe).")] = None,
) -> None:
    """Train a linear head on the frozen backbone and score it, beside random weights.

    Example: olivine probe
    """
    from ..downstream.probe import linear_probe
    from ..downstream.robustness import linear_probe_corrupted
    from ..downstream.settings import ProbeSettings

    settings, network = _settings(ProbeSettings, given, augment=augment, head="checkpoint" if from_head else None)
    checkpoint, folder = _choose_backbone(given.checkpoint, given.as_json)
    out = out or folder / "probe"
    kind = linear_probe_corrupted if corrupt else linear_probe
    run = functools.partial(kind, random=beside_random, network=network)
    known = ("scores.json", "pre-trained", "random")
    _score("probe", run, settings, given, checkpoint, out, known, "a linear probe of {}")
    _show_corrupted(corrupt, given, out)


def finetune(
    given: Scoring,
    random: Annotated[bool, typer.Option("--random", help="Start from random weights of the same network.")] = False,
    learn_from: Annotated[
        str | None,
        typer.Option(
            help="What it learns from: truth (default), or weak: the shards' weak labels, without annotation."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="uov: its annotation-free training, 5 epochs on weak labels after pre-training.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="With weak labels: train so many times again on the network's own labels.")
    ] = 0,
    corrupt: Corrupt = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: <run>/finetune-<fraction>).")] = None,
) -> None:
    """Train the whole network on a fraction of the labels, or on weak labels alone, and score it.

    Example: olivine finetune --fraction 1
    """
    from ..downstream.finetune import finetune
    from ..downstream.robustness import finetune_corrupted
    from ..downstream.rounds import finetune_rounds
    from ..downstream.settings import FinetuneSettings

    if corrupt and rounds:
        raise OlivineError("--corrupt and --rounds", remedy="score a fine-tuning without rounds")

    settings, network = _settings(FinetuneSettings, given, preset=preset, labels=learn_from)
    if given.checkpoint is None and random and network is not None:
        checkpoint, folder = None, RUNS / network.name
    else:
        checkpoint, folder = _choose_backbone(given.checkpoint, given.as_json)
    percent = f"{settings.fraction:g}"
    name = f"finetune-{'weak-' if settings.labels == 'weak' else ''}{percent}{'-random' if random else ''}"
    out = out or folder / (f"{name}-rounds" if rounds else name)
    options: dict[str, Any] = {"random": random, "network": network}
    run: Callable[..., Any] = functools.partial(finetune_corrupted if corrupt else finetune, **options)
    known: tuple[str, ...] = ("run.json", ".run.lock")
    if rounds:
        run, known = (
            functools.partial(finetune_rounds, rounds=rounds, **options),
            ("scores.json", "round-*", "labels-*"),
        )
    what = f"a fine-tuning of {{}} on {percent} % of the {'weak ' if settings.labels == 'weak' else ''}labels"
    _score("finetune", run, settings, given, checkpoint, out, known, what)
    _show_corrupted(corrupt, given, out)


def _show_corrupted(corrupt: bool, given: Scoring, out: Path) -> None:
    if corrupt and not (given.dry_run or given.as_json):
        console.show(lambda: f"\n{(out / 'corruptions.md').read_text()}")


def _settings(
    kind: type[S], given: Scoring, preset: str | None = None, **named: Any
) -> tuple[S, PretrainSettings | None]:
    """The settings of the scored run, and the preset whose backbone and voxels the checkpoint must have."""
    from ..downstream.settings import settings_of
    from ..train.settings import load_settings

    named |= {"fraction": given.fraction, "epochs": given.epochs, "seed": given.seed}
    settings = settings_of(kind, given.set_ or [], preset, **named)
    return settings, None if given.config is None else load_settings(given.config)


def _score(
    command: str,
    run: Callable[..., Any],
    settings: SegmentationSettings,
    given: Scoring,
    checkpoint: Path | None,
    out: Path,
    known: tuple[str, ...],
    what: str,
) -> None:
    """Train and score on the shards' two splits, or say what would be done."""
    from ..downstream.benchmarks import training_frames
    from ..downstream.results import score_table
    from ..downstream.segment import open_ground

    base = _choose_labelled(given.shards, given.as_json)
    check_output(out, inputs=(checkpoint, base), known=known)
    if given.dry_run:
        ground = open_ground(base / "train", base / "val", settings.labels)
        training_frames(ground.train, settings.fraction, settings.part)
        return console.say_plan(what.format(checkpoint), out, given.as_json)
    options: dict[str, Any] = {"predictions": given.predictions, "overwrite": given.overwrite}
    found = run(checkpoint, base / "train", base / "val", out, settings, **options)
    results = found if isinstance(found, list) else [found]
    if given.as_json:
        return console.emit(command, {"results": [dataclasses.asdict(r) for r in results]}, out)
    console.show(lambda: f"\n{score_table(results)}\nscores: {out}")


def predict(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder or file of a fine-tuning (default: the newest).")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Shards, labelled or not (default: the test split, or val).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the submission (default: <run>/predictions-<split>).")
    ] = None,
    smooth: Annotated[
        str, typer.Option(help="none, or afi: smooth each frame's predictions over its surfaces.")
    ] = "none",
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write how sure the network is of each point.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a fine-tuned network's predictions for every point, in the benchmark's own format.

    Example: olivine predict --shards data/pairs/nuscenes/test
    """
    from ..downstream.predict import predict as run

    checkpoint, folder = _choose_backbone(checkpoint, as_json, "*/finetune-*")
    held_out = "test" if any((DATA / "pairs").glob("*/test/manifest.json")) else "val"
    shards, why = defaults.choose_shards(shards, held_out)
    console.note(f"shards: {shards} ({why})", as_json)
    out = out or folder / f"predictions-{shards.name}"
    check_output(out, inputs=(checkpoint, shards))
    console.finish("predict", run(checkpoint, shards, out, smooth=smooth, confidence=confidence), out, as_json)


def embed(
    points: Annotated[list[Path], typer.Argument(help="Point files: .bin, .pcd, .ply, .npy or .npz.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Folder or file of a run (default: the newest).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the features.")] = Path("embeddings"),
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of files that name none (default: x,y,z,intensity, and ring in .pcd.bin files)."),
    ] = None,
    intensity: Annotated[
        str, typer.Option(help="The column of the intensity; empty where there is none.")
    ] = "intensity",
    intensity_offset: Annotated[
        float, typer.Option(help="Added to the intensity, as the network's training shards say.")
    ] = 0.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Write a network's feature of every point of some files, one .npy file for each.

    Rows are the file's points in its order, without those that have no position (NaN). Features in the folder of another
    network, or of files that were read otherwise (columns, intensity, offset), are removed first.

    Example: olivine embed scan.pcd --checkpoint runs/cpu
    """
    import numpy as np

    from ..common import MARK, sha256_file, write_bytes
    from ..downstream.embed import Embedder, EmbedSummary, npy_bytes
    from ..downstream.written import begin_output
    from ..readers.clouds import CloudLayout, read_cloud
    from ..train.checkpoint import checkpoint_file
    from ..train.sparse.precision import float32_as

    names = [path.stem for path in points]
    if len(set(names)) < len(names):
        raise OlivineError("two point files have one name", where=str(points[0]), remedy="embed them one by one")
    checkpoint, _ = _choose_backbone(checkpoint, as_json)
    inputs = (checkpoint, *points)
    check_output(out, inputs=inputs, known=("*.npy",))
    if any(out.glob("*.npy")) and not (out / MARK).is_file():
        remedy = "choose another --out folder, or remove them where an earlier version of olivine embed wrote them"
        raise OlivineError("holds .npy files and no mark of olivine; they are left alone", where=out, remedy=remedy)
    network = Embedder(checkpoint, device, intensity_offset)
    made_by = {"checkpoint": sha256_file(checkpoint_file(checkpoint)), "offset": intensity_offset}
    made_by |= {"columns": columns or "", "intensity": intensity}
    begin_output(out, made_by, [f"{name}.npy" for name in names], inputs=inputs)
    count = outside = 0
    for path in points:
        # Four columns of floats fit nuScenes' files of five as well, and every point would be wrong.
        of_file = "x,y,z,intensity,ring" if path.name.endswith(".pcd.bin") else "x,y,z,intensity"
        layout = CloudLayout(columns=tuple((columns or of_file).split(",")), intensity=intensity)
        cloud = read_cloud(path, layout)
        try:
            with float32_as():
                feature, beyond = network.features(cloud), ~network.in_range(cloud)
        except OlivineError as error:
            raise OlivineError(f"{path}: {error}") from None
        write_bytes(out / f"{path.stem}.npy", npy_bytes(feature))
        count, outside = count + len(cloud), outside + int(np.count_nonzero(beyond))
    console.finish("embed", EmbedSummary(len(points), count, network.channels, outside), out, as_json)


def _choose_backbone(checkpoint: Path | None, as_json: bool, runs: str = "*") -> tuple[Path, Path]:
    """The checkpoint and its run's folder."""
    checkpoint, why = defaults.choose_checkpoint(checkpoint, runs)
    console.note(f"checkpoint: {checkpoint} ({why})", as_json)
    return checkpoint, checkpoint if checkpoint.is_dir() else checkpoint.parent


def _choose_labelled(shards: Path | None, as_json: bool) -> Path:
    """The folder with train/ and val/ shards."""
    base, why = defaults.choose_shards(shards, "train")
    base = base.parent if base.name in ("train", "val") else base
    there = [split for split in ("train", "val") if (base / split / "manifest.json").is_file()]
    if len(there) == 1:
        raise OlivineError(
            f"holds shards of {there[0]}/ alone; a head learns on train/ and is scored on val/",
            where=base,
            remedy="build the other split, of a data set that has it, or name a folder with both by --shards",
        )
    console.note(f"shards: {base}/{{train,val}} ({why})", as_json)
    return base


_STUDY = "study-demo"


def _refuse(option: str, given: Mapping[str, Any]) -> None:
    """Raise where an option was given that goes with another one no more than with nothing."""
    if wrong := [name for name, value in given.items() if value]:
        raise OlivineError(f"{wrong[0]} does not go with {option}", where="olivine study", remedy="leave it out")


def study(
    folders: Annotated[list[Path] | None, typer.Argument(help="With --merge: the folders to join.")] = None,
    config: Annotated[str, typer.Option(help="A study's YAML file, or the name of one of olivine's.")] = _STUDY,
    seed: Annotated[
        list[int] | None, typer.Option(help="Run this seed alone; give it again for more (default: all).")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Run this row alone; give it again for more (default: all).")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Folder with train/ and val/ shards (default: the study's).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study (default: runs/<name>).")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join the rows of FOLDERS, for example one seed each.")
    ] = False,
    other_processors: Annotated[
        bool,
        typer.Option("--other-processors", help="Take rows of shards that the same command made on another processor."),
    ] = False,
    power: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Run nothing: say how many seeds each claim needs to resolve so many points of mIoU."
        ),
    ] = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run a grid of switches and seeds, each pre-trained and scored, and make one table.

    Example: olivine study --config configs/study-demo.yaml --out runs/study --seed 0
    """
    from ..study.config import load_study

    if bool(folders) != merge:
        remedy = "give folders: olivine study --merge A B --out C" if merge else "to join folders add --merge"
        raise OlivineError("--merge and folders go together", where="olivine study", remedy=remedy)
    if merge:
        from ..study.run import merge_studies

        asked = {"--config": config != _STUDY, "--seed": seed, "--row": row, "--shards": shards, "--power": power}
        _refuse("--merge", asked)
        out = out or RUNS / "study"
        check_output(out, inputs=folders or [], known=("study.json",))
        if dry_run:
            return console.say_plan(f"the rows and tables of {len(folders or ())} folders", out, as_json)
        summary = merge_studies(folders or [], out, other_processors=other_processors)
    else:
        plan = load_study(config)
        plan = dataclasses.replace(plan, shards=str(shards)) if shards else plan
        out = out or RUNS / plan.name
        from ..study.run import list_study, run_study, study_power

        if power is not None:
            _refuse("--power", {"--seed": seed, "--row": row, "--shards": shards})
            if power <= 0:
                raise OlivineError(f"--power {power:g}", remedy="give points of mIoU over 0, as 2")
            needed = study_power(out, power, other_processors=other_processors)
            return console.emit("study", {"power": needed}, out) if as_json else print(needed)
        check_output(out, inputs=(plan.shards,), known=("study.json",))

        seeds = tuple(seed) if seed else plan.seeds
        if dry_run:
            lines = list_study(plan, out, seeds, row or (), other_processors=other_processors)
            if as_json:
                return console.emit("study", {"runs": lines}, out)
            for line in lines:
                print("  ".join(line.values()))
            return
        summary = run_study(plan, out, seeds, row or (), other_processors=other_processors)
    if not as_json:
        console.show(lambda: f"\n{summary.table.read_text()}")
    console.finish("study", summary, out, as_json)


def export(
    checkpoint: Checkpoint = None,
    layout: Annotated[
        str | None,
        typer.Option(help="minkowski (SLidR, OLIVINE), openpcdet, waffleiron or state_dict (default: its own)."),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--for", help="For OpenPCDet's second, pv_rcnn or centerpoint: a configuration beside the weights."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file (default: <run>/<layout>.pt, or <run>/<for>.pth).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a backbone's weights in the layout of other code bases.

    Example: olivine export --layout minkowski --out backbone.pt
    """
    from ..downstream.weights import export_backbone

    if detector is not None and layout is not None:
        raise OlivineError("--for and --layout", remedy="give one of them")
    checkpoint, folder = _choose_backbone(checkpoint, as_json)
    if detector is not None:
        from ..downstream.detection.handover import export_for

        out = out or folder / f"{detector}.pth"
        return console.finish("export", export_for(detector, checkpoint, out, overwrite=overwrite), out, as_json)
    out = out or folder / f"{layout or 'exported'}.pt"
    console.finish("export", export_backbone(checkpoint, out, layout, overwrite=overwrite), out, as_json)


def import_weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint of SLidR, OLIVINE or OpenPCDet, or an export.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="Preset or YAML file with its backbone and voxels (default, by the file: reference, voxelnet or scalr)."
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint (default: runs/<file>/last.pt).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a checkpoint from other code bases' weights, to probe, fine-tune or export.

    Example: olivine import-weights slidr.pt --config reference
    """
    from ..downstream.weights import import_weights as run
    from ..downstream.weights import preset_of
    from ..train.settings import load_settings

    settings = load_settings(config or preset_of(file), set_ or []) if config or set_ else None
    out = out or RUNS / file.stem / "last.pt"
    console.finish("import-weights", run(file, out, settings, overwrite=overwrite), out, as_json)


def report(
    run: Annotated[Path | None, typer.Option(help="Run folder (default: the newest in runs/).")] = None,
    labels: ShownLabels = None,
    dataset: Annotated[str | None, typer.Option(help="Take the labels and shards of this data set.")] = None,
    shards: Shown = None,
    predictions: Predictions = None,
    study: Annotated[
        Path | None, typer.Option(help="Folder of a study to show (default: the newest in runs/).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page, index.html, and of the pictures.")] = Path("report"),
    frames: Annotated[int, typer.Option(help="Frames to step through, the worst first.")] = 3,
    as_json: Json = False,
) -> None:
    """Write one page about labels, pairs, a run and its scores, to open or to send: report/index.html.

    It needs nothing beside it and no network. What is missing is said on it.

    Example: olivine report --out report
    """
    from ..report.page import write_report

    sources = defaults.report_sources(run, labels, dataset, shards, predictions, study)
    inputs = (sources.labels, sources.shards, sources.run, sources.predictions, sources.study, sources.label_scores)
    check_output(out, inputs=inputs)
    check_replaceable(out)
    console.finish("report", write_report(sources, out, frames=frames), out, as_json)


def figures(
    checkpoint: Checkpoint = None,
    shards: Annotated[
        Path | None, typer.Option(help="Shards whose points are shown (default: the largest val split in data/pairs).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("figures"),
    frame: Annotated[
        str | None, typer.Option(help="Of the similarity maps: a token, a scene or a number (default: the first).")
    ] = None,
    point: Annotated[
        list[int] | None,
        typer.Option(help="A point of it, by its row; give it again for more (default: of 3 classes)."),
    ] = None,
    per_class: Annotated[int, typer.Option(help="Points of each class in the t-SNE, at most.")] = 200,
    features: Annotated[
        str, typer.Option(help="heads: embeddings by the run's heads, where it has any; or backbone.")
    ] = "heads",
    suffix: Annotated[str, typer.Option(help="Of the files: png, pdf or svg.")] = "png",
    seed: Annotated[int, typer.Option(help="Of random weights, the draw of points and t-SNE.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw a paper's figures of a run beside random weights: class imbalance, similarity maps of points, t-SNE.

    Example: olivine figures --checkpoint runs/cpu --suffix pdf
    """
    from ..report.paper_figures import draw_figures

    checkpoint, _ = _choose_backbone(checkpoint, as_json)
    shards, why = defaults.choose_shards(shards, "val")
    console.note(f"shards: {shards} ({why})", as_json)
    check_output(out, inputs=(checkpoint, shards))
    check_replaceable(out)
    options: dict[str, Any] = {"per_class": per_class, "features": features, "suffix": suffix, "seed": seed}
    summary = draw_figures(checkpoint, shards, out, frame=frame, points=point or (), **options)
    console.finish("figures", summary, out, as_json)
