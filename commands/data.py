"""The commands that make data sets, label maps and shards, and fetch published weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import OlivineError, check_output, check_output_file, check_replaceable, cores
from ..synthetic.settings import FORMATS
from . import console, defaults
from .defaults import DATA
from .options import (
    Dataset,
    DryRun,
    Folder,
    Json,
    Labels,
    Moved,
    Names,
    Overwrite,
    Root,
    Units,
    Version,
    Workers,
    unfold,
)

if TYPE_CHECKING:
    from ..readers.index import FrameIndex

_LABEL_BYTES = 0.041  # of a label map, a pixel: measured on dense synthetic ones; sparser ones take less


def register(app: typer.Typer, weights: typer.Typer) -> None:
    """Add these commands to the command line, and those about weights to theirs."""
    app.command()(synth)
    app.command()(unfold(labelgen))
    app.command("score-labels")(score_labels)
    app.command("check-labels")(check_labels)
    app.command("build-pairs")(unfold(build_pairs))
    weights.command("list")(weights_list)
    weights.command("fetch")(weights_fetch)
    weights.command("check")(weights_check)


def synth(
    out: Annotated[Path | None, typer.Option(help="Folder of the new data set (default: data/<format>).")] = None,
    format: Annotated[str, typer.Option(help=f"{' or '.join(FORMATS)}.")] = FORMATS[0],
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
    from ..synthetic.settings import SyntheticSettings
    from ..synthetic.write import write_dataset

    settings = SyntheticSettings(
        format=format, scenes=scenes, frames=frames, image_scale=image_scale, seed=seed, workers=workers
    )
    out = out or DATA / format
    check_replaceable(out)
    if dry_run:
        return console.say_plan(f"{scenes} scenes of {frames} frames in {format} format", out, as_json)
    console.finish("synth", write_dataset(settings, out), out, as_json)


def labelgen(
    dataset: Dataset = None,
    root: Root = None,
    version: Version = None,
    out: Annotated[Path | None, typer.Option(help="Label folder (default: data/labels/<dataset>).")] = None,
    labeler: Annotated[
        str,
        typer.Option(
            help="auto, grounded-sam, hf-grounded-sam, grounded-sam-hq, mm-grounded-sam2, sam3, oracle, import, regions "
            "or sam-clip."
        ),
    ] = "auto",
    camseg: Annotated[Path | None, typer.Option(help="import: the folder of label maps.")] = None,
    regions: Annotated[Path | None, typer.Option(help="regions: the folder of regions, see docs/regions.md.")] = None,
    classes: Annotated[Path | None, typer.Option(help="import: a file with each value's meaning, or seem.")] = None,
    error: Annotated[str, typer.Option(help="oracle: its errors; none for exact labels.")] = "default",
    scores: Annotated[bool, typer.Option("--scores", help="Store how sure the labeler is of each pixel too.")] = False,
    scores_from: Annotated[Path | None, typer.Option(help="import: the folder of these scores, 8-bit PNG.")] = None,
    oracle_scores: Annotated[str, typer.Option(help="oracle: calibrated, or over (too sure).")] = "calibrated",
    prompts: Annotated[
        Path | None, typer.Option(help="Another vocabulary than the 13 prompts: a file, or lidarseg16.")
    ] = None,
    weights: Folder = None,
    detector: Annotated[str, typer.Option(help="GroundingDINO's size: swin-t or swin-b.")] = "swin-t",
    detector_config: Annotated[Path | None, typer.Option(help="GroundingDINO configuration.")] = None,
    detector_checkpoint: Annotated[Path | None, typer.Option(help="GroundingDINO checkpoint (hf: folder).")] = None,
    sam: Annotated[
        str, typer.Option(help="SAM's size: vit-b, vit-l, vit-h; SAM 2.1's: hiera-tiny, hiera-large.")
    ] = "vit-h",
    sam_checkpoint: Annotated[Path | None, typer.Option(help="SAM checkpoint (hf: folder).")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder with BERT's configuration and vocabulary.")] = None,
    clip: Annotated[str, typer.Option(help="sam-clip: clip-vit-l or siglip2-so400m.")] = "clip-vit-l",
    clip_checkpoint: Annotated[Path | None, typer.Option(help="sam-clip: folder of a CLIP or SigLIP.")] = None,
    phrases: Annotated[
        Path | None, typer.Option(help="sam-clip: what regions are named with (default: UOV's).")
    ] = None,
    box_threshold: Annotated[float, typer.Option(help="Lowest score of a box.")] = 0.25,
    text_threshold: Annotated[float, typer.Option(help="Lowest score of a box's best prompt.")] = 0.25,
    short_side: Annotated[int, typer.Option(help="The detector's image: short side in pixels.")] = 800,
    long_side: Annotated[int, typer.Option(help="The detector's image: longest side in pixels.")] = 1333,
    prompting: Annotated[str, typer.Option(help="combined (one caption) or separate.")] = "combined",
    overlap: Annotated[str, typer.Option(help="layered (stuff, then things) or reference.")] = "layered",
    min_area: Annotated[int, typer.Option(help="Drop masks under this many pixels.")] = 0,
    max_components: Annotated[int, typer.Option(help="Drop masks of more pieces; 0 for no limit.")] = 0,
    segments: Annotated[str, typer.Option(help="Segment maps too: none, masks, sam, slic or regions.")] = "none",
    view: Annotated[str, typer.Option(help="What the labeler sees of an image: whole, mirrored or halves.")] = "whole",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images at once: auto or a number.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the oracle's errors.")] = 0,
    limit: Annotated[int, typer.Option(help="Only the first so many scenes, to try; 0: all.")] = 0,
    preview: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Label this image alone and draw it: <image>-labels.png here.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Make a sample again and compare; writes nothing.")] = False,
    workers: Annotated[int, typer.Option(help="Processes or actors; 0 for one a GPU.")] = 0,
    units: Units = Units(),
    overwrite: Overwrite = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a label map for every camera image.

    Example: olivine labelgen --dataset nuscenes
    """
    from ..cluster.journal import logs_of
    from ..cluster.ticket import check_environment
    from ..labelgen.labeler import choose_labeler
    from ..labelgen.preview import NEED_FRAMES, find_image, preview_labels
    from ..labelgen.run import generate_labels, plan_labels
    from ..labelgen.settings import REGION_LABELERS, LabelSettings
    from ..labelgen.store import open_store
    from ..labelgen.verify import verify_labels
    from ..labelgen.work import LabelWork
    from ..readers import dataset_class, index_dataset, open_dataset

    check_environment()
    gpus = defaults.gpus()
    place = defaults.choose_executor(units.executor, units.address, workers, workers or len(gpus) or 1, gpus)
    if limit < 0:
        raise OlivineError(f"--limit {limit}", where="olivine labelgen", remedy="give the first scenes' number; 0: all")
    of_a_dataset = preview is None or labeler in ("auto", *NEED_FRAMES)
    if of_a_dataset:
        dataset, root, why = defaults.choose_dataset(dataset, root)
        out = out or DATA / "labels" / dataset_class(dataset).name
        console.note(f"data set: {root} ({why})", as_json or bool(units.plan))
    settings = LabelSettings(
        labeler=labeler,
        camseg=camseg,
        regions=regions,
        classes=classes,
        error=error,
        scores=scores,
        scores_from=scores_from,
        oracle_scores=oracle_scores,
        prompts=prompts,
        weights=weights,
        detector=detector,
        detector_config=detector_config,
        detector_checkpoint=detector_checkpoint,
        sam=sam,
        sam_checkpoint=sam_checkpoint,
        text_encoder=text_encoder,
        clip=clip,
        clip_checkpoint=clip_checkpoint,
        phrases=phrases,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        short_side=short_side,
        long_side=long_side,
        prompting=prompting,
        overlap=overlap,
        min_area=min_area,
        max_components=max_components,
        segments="regions" if labeler in REGION_LABELERS and segments == "none" else segments,
        view=view,
        device=device,
        precision=precision,
        batch_size=batch_size if batch_size == "auto" else defaults.whole_number("--batch-size", batch_size),
        seed=seed,
    )
    if preview is not None:
        if segments != "none" and labeler not in REGION_LABELERS:
            raise OlivineError(f"--segments {segments} with --preview", remedy="leave it out: segments are not drawn")
        drawing = Path(f"{preview.stem}-labels.png")
        check_output_file(drawing, lambda path: False, inputs=(preview,))
        if dry_run:
            return console.say_plan(f"the label map of {preview} by {labeler}", drawing, as_json)
        place_of = root if of_a_dataset and root is not None else preview.parent
        frames = open_dataset(dataset, place_of, version).frames() if of_a_dataset and dataset is not None else None
        seen, _ = preview_labels(find_image(preview, frames), place_of, settings, drawing)
        return console.finish("labelgen --preview", seen, drawing, as_json)
    assert dataset is not None and root is not None and out is not None
    check_output(out, inputs=(root, camseg, scores_from, regions, weights), known=("frames",))
    if dry_run:
        opened = open_dataset(dataset, root, version).frames()
        sizes = [camera.width * camera.height for camera in opened[0].cameras] if opened else []
        size = round(_LABEL_BYTES * sum(sizes) * len(opened) / 1e9, 3)
        name, why = choose_labeler(labeler, root)
        # What it needs, its weights for one, is checked here.
        LabelWork(out, name, settings, root).labeler()
        what = f"label maps for {dataset} by {name} ({why})"
        return console.say_plan(what, out, as_json, images=len(opened) * len(sizes), gigabytes=size)
    if not overwrite:
        version = _version_of_labels(out, dataset_class(dataset).name, version)
    if verify:  # which writes nothing
        index, found = open_store(out).index(root), f"as in {out / 'frames'}"
        _check_current(index, as_json)
    else:
        index, found = index_dataset(out / "frames", dataset, root, version)
    tried = dataclasses.replace(index, scenes=index.scenes[: limit or None])
    console.note(f"frames: {found}", as_json or bool(units.plan))
    if units.plan:
        print(json.dumps(plan_labels(tried, out, settings, units.plan).to_plain()))
        return
    if verify:
        return console.finish("labelgen --verify", verify_labels(tried, out, settings), None, as_json)
    options: dict[str, Any] = {"executor": place, "logs": logs_of(out), "merge_only": units.merge}
    options |= {"part": defaults.part(units.shard), "limit": limit, "overwrite": overwrite}
    summary = generate_labels(index, out, settings, **options)
    console.finish("labelgen", summary, out, as_json)


def score_labels(
    labels: Labels = None,
    dataset: Annotated[str | None, typer.Option(help="Take the labels of this data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the scores (default: <labels>-scores).")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    against: Annotated[str, typer.Option(help="auto, masks (synthetic) or points (point labels).")] = "auto",
    shards: Annotated[
        Path | None,
        typer.Option(help="Score the pairs of these shards by their points' classes (default: the label maps)."),
    ] = None,
    root: Moved = None,
    as_json: Json = False,
) -> None:
    """Score label maps against the data set's ground truth, and how well their confidence fits it.

    Example: olivine score-labels
    """
    from ..common.calibration import calibration_table
    from ..labelgen.score import score_labels as score
    from ..labelgen.store import open_store

    if shards is not None:
        from ..pairs.score import score_pairs

        pairs = score_pairs(shards)
        if pairs.calibration is not None and not as_json:
            print(calibration_table(pairs.calibration))
        return console.finish("score-labels --shards", pairs, None, as_json)
    labels, why = defaults.choose_labels(labels, dataset)
    console.note(f"labels: {labels} ({why})", as_json)
    out = out or labels.with_name(f"{labels.name}-scores")
    check_output(out, inputs=(labels, root), known=("score.json",))
    store = open_store(labels)
    _check_current(store.index(root), as_json)
    summary = score(store, out, split=split, against=against, root=root)
    if summary.calibration is not None and not as_json:
        print(calibration_table(summary.calibration))
    console.finish("score-labels", summary, out, as_json)


def _version_of_labels(labels: Path, dataset: str, version: str | None) -> str | None:
    """The data set's version that a label folder is of, where it is there; ``version`` where it is not.

    Raises:
        OlivineError: it is of another data set or version, whose list of frames would be replaced.
    """
    from ..labelgen.store import MANIFEST, read_label_manifest

    path = labels / MANIFEST
    if not path.is_file():
        return version
    data = read_label_manifest(path, "replace the labels with --overwrite").get("data")
    if data is None:
        return version
    if data["dataset"] != dataset or version not in (None, data["version"]):
        raise OlivineError(
            f"holds labels of {data['dataset']} {data['version']}, not of {dataset} {version or ''}".rstrip(),
            where=labels,
            remedy="choose another --out folder, or replace them with --overwrite",
        )
    return str(data["version"])


def _check_current(index: FrameIndex, as_json: bool) -> None:
    from ..readers import check_current

    if said := check_current(index):
        console.note(said, as_json)


def check_labels(
    shards: Annotated[
        Path | None, typer.Option(help="Shards whose labels are looked at (default: the largest train split).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="The label folder they were made of (default: none, and no detections).")
    ] = None,
    rounds: Annotated[
        Path | None, typer.Option(help="Folder of a finetune --rounds on these shards: how its rounds' labels agree.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of labels.json (default: <shards>-labels).")] = None,
    most: Annotated[int, typer.Option(help="Rows of each table.")] = 10,
    as_json: Json = False,
) -> None:
    """Say what of the weak labels looks wrong, without ground truth: views that disagree, images with nothing, rivals.

    Example: olivine check-labels --shards data/pairs/voted/train --labels data/labels/nuscenes
    """
    from ..labelgen.store import open_store
    from ..pairs.label_report import check_labels as check
    from ..pairs.label_report import report_text

    shards, why = defaults.choose_shards(shards, "train")
    console.note(f"shards: {shards} ({why})", as_json)
    out = out or shards.with_name(f"{shards.name}-labels")
    check_output(out, inputs=(shards, labels, rounds), known=("labels.json",))
    report = check(shards, None if labels is None else open_store(labels), out, rounds)
    if as_json:
        print(json.dumps({"command": "check-labels", "out": str(out), **dataclasses.asdict(report)}))
    else:
        print(f"{report_text(report, most)}\nwritten to {out / 'labels.json'}")


def weights_list(weights: Folder = None, as_json: Json = False) -> None:
    """Every model whose weights olivine can use: source, licence, size, whether it is gated, whether it is here.

    Example: olivine weights list
    """
    from ..labelgen.weights import list_weights

    rows = list_weights(weights)
    if as_json:
        return console.emit("weights list", {"models": rows})
    for row in rows:
        files = row["files"]
        known = [f["size"] for f in files if f["size"]]
        size = f"{sum(known) / 2**20:,.0f} MiB" if len(known) == len(files) else "size unknown"
        here = "here" if all(f["present"] for f in files) else "not here"
        licence = f"{row['licence']}, gated" if row["gated"] else row["licence"]
        print(f"{row['name']:18} {size:>13}  {here:9} {licence:21} {row['role']}; {row['source']}")


def weights_fetch(names: Names = None, weights: Folder = None, as_json: Json = False) -> None:
    """Fetch weights, going on where an earlier call stopped, and verify them.

    Gated files need a token: accept the licence on the page that `olivine weights list` names, and set HF_TOKEN.

    Example: olivine weights fetch swin-t bert-base-uncased vit-h
    """
    from ..labelgen.weights import fetch_weights

    summary = fetch_weights(names or [], weights)
    console.finish("weights fetch", summary, summary.folder, as_json)


def weights_check(names: Names = None, weights: Folder = None, as_json: Json = False) -> None:
    """Compare the weights that are here with their published size and SHA-256.

    Example: olivine weights check
    """
    from ..labelgen.weights import check_weights

    console.finish("weights check", check_weights(names or [], weights), None, as_json)


def build_pairs(
    labels: Labels = None,
    dataset: Annotated[str | None, typer.Option(help="Take the labels of this data set.")] = None,
    root: Moved = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the shards (default: data/pairs/<dataset>).")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test (default: every split with frames).")] = None,
    image_scale: Annotated[str, typer.Option(help="Size of the stored images: auto, or a number up to 1.")] = "auto",
    jpeg_quality: Annotated[int, typer.Option(help="Of the stored images.")] = 90,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Store the images.")] = True,
    segments: Annotated[bool, typer.Option("--segments", help="Carry the label store's segment maps.")] = False,
    regions: Annotated[bool, typer.Option("--regions", help="Carry the label store's regions.")] = False,
    clusters: Annotated[int, typer.Option(help="Cluster each scan with the one so many frames later; 0: none.")] = 0,
    consolidate: Annotated[bool, typer.Option(help="Let the labels of the frames around vote.")] = False,
    around: Annotated[
        int | None, typer.Option(help="Frames on each side that vote with --consolidate (default: 5).")
    ] = None,
    tracks: Annotated[
        bool, typer.Option("--tracks", help="With --consolidate: follow annotated boxes. It uses annotation.")
    ] = False,
    also: Annotated[
        list[Path] | None, typer.Option(help="With --consolidate: a label folder that votes too; may be given again.")
    ] = None,
    visibility: Annotated[str, typer.Option(help="none, or occlusion: drop pairs a nearer surface hides.")] = "none",
    distance: Annotated[str, typer.Option(help="Of the density: 3d or plane.")] = "3d",
    bandwidth: Annotated[str, typer.Option(help="Of the density: silverman, scott or metres.")] = "silverman",
    check: Annotated[Path | None, typer.Option(help="Verify every byte and value of a set of shards; no more.")] = None,
    describe: Annotated[Path | None, typer.Option(help="Say what is in a set of shards; no more.")] = None,
    workers: Workers = 0,
    units: Units = Units(),
    overwrite: Overwrite = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Project the label maps onto the points and write Zarr shards.

    Example: olivine build-pairs
    """
    from ..cluster.journal import logs_of
    from ..cluster.ticket import check_environment
    from ..labelgen.store import open_store
    from ..pairs.build import accounts_of, plan_pairs
    from ..pairs.build import build_pairs as build
    from ..pairs.check import check_shards, describe_shards
    from ..pairs.settings import PairSettings

    if check and describe:
        raise OlivineError("--check and --describe", where="olivine build-pairs", remedy="give one of them")
    if check:
        return console.finish("build-pairs --check", check_shards(check), None, as_json)
    if describe:
        return console.finish("build-pairs --describe", describe_shards(describe), None, as_json)
    check_environment()
    if around is not None and (around < 1 or not consolidate):
        remedy = "give at least 1, or leave out --consolidate" if consolidate else "add --consolidate"
        raise OlivineError(f"--around {around}", where="olivine build-pairs", remedy=remedy)
    if tracks and not consolidate:
        raise OlivineError("--tracks", where="olivine build-pairs", remedy="add --consolidate")
    if also and not consolidate:
        raise OlivineError(f"--also {also[0]}", where="olivine build-pairs", remedy="add --consolidate")
    place = defaults.choose_executor(units.executor, units.address, workers, workers or cores())
    settings = PairSettings(
        image_scale=image_scale if image_scale == "auto" else defaults.number("--image-scale", image_scale),
        images=images,
        jpeg_quality=jpeg_quality,
        segments=segments or regions,
        regions=regions,
        clusters=clusters,
        consolidate=(around or 5) if consolidate else 0,
        tracks=tracks,
        visibility=visibility,
        distance=distance,
        bandwidth=bandwidth if bandwidth in ("silverman", "scott") else defaults.number("--bandwidth", bandwidth),
        workers=workers or cores(),
    )
    labels, why = defaults.choose_labels(labels, dataset, also or ())
    store = open_store(labels).with_votes_of(also or ())
    index = store.index(root)
    out = out or DATA / "pairs" / index.dataset
    console.note(f"labels: {labels} ({why})", as_json or bool(units.plan))
    _check_current(index, as_json or bool(units.plan))
    splits = [split] if split else index.splits()
    for name in splits:
        check_output(out / name, inputs=(labels, index.root), known=("units", "shard-*.zarr"))
    if units.plan:
        print(json.dumps(plan_pairs(store, out, logs_of(out), settings, splits, index, units.plan).to_plain()))
        return
    if dry_run:
        from ..pairs.estimate import estimate_bytes

        counts = {name: sum(scene.frame_count for scene in index.select(name)) for name in splits}
        frames = sum(counts.values())
        size = frames * estimate_bytes(next(index.frames(splits[0])), settings) if frames else 0.0
        what = f"shards of {' and '.join(f'{n} {name} frames' for name, n in counts.items())}"
        pictures = frames * len(next(index.frames(splits[0])).cameras) if frames else 0
        return console.say_plan(what, out, as_json, images=pictures, gigabytes=round(size / 1e9, 3))
    summaries: list[tuple[str, Any]] = []
    for account in accounts_of(store, out, logs_of(out), settings, splits, index, overwrite):
        account.open()
    for name in splits:
        options: dict[str, Any] = {
            "split": name,
            "part": defaults.part(units.shard),
            "overwrite": overwrite,
            "index": index,
        }
        options |= {"executor": place, "logs": logs_of(out) / name, "merge_only": units.merge}
        summaries.append((name, build(store, out / name, settings, **options)))
        if units.merge:
            summaries.append((f"{name} --check", check_shards(out / name)))
    console.finish_many("build-pairs", summaries, out, as_json)
