"""A detection run: SECOND trained from a checkpoint's trunk or from random weights, its result files, and their AP."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common import (
    OlivineError,
    PathLike,
    claim_output,
    demand,
    digest,
    read_json,
    sha256_file,
    track,
    write_bytes,
    write_json,
)
from ...common.ahead import Ahead
from ...common.settings import settings_from_plain, settings_to_plain
from ...train.checkpoint import checkpoint_file, load_checkpoint
from ...train.devices import make_fabric
from ...train.mixture import NORMALISED
from ...train.run_folder import claim, read_identity
from ...train.sparse.engines import MapsAhead
from ...train.sparse.precision import float32_as
from ...train.voxelize import VoxelSettings
from ..checkpoints import progress_of, takes_normalised
from ..fit import Plan, fit
from ..network import Source
from ..written import begin_output
from .kitti_eval import DIFFICULTIES, METRICS, AveragePrecision, ap_table, evaluate, read_results
from .kitti_format import read_objects, write_objects
from .scenes import Scene
from .second import Second
from .settings import INCIDENTAL, DetectionSettings
from .training import DetectionTraining, load_detector
from .training_scenes import Batch, Sample, TrainingScenes, make_batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KIND = "detect"
FOUND = ("score", "iou", "test_voxels")
"""Settings that decide what a trained detector finds, and none of its weights."""
FREE = (*FOUND, *INCIDENTAL)
"""Those that :func:`predict` may change."""


@dataclass(frozen=True)
class DetectionResult:
    """What a run scored.

    Attributes:
        name: ``pre-trained`` or ``random weights``.
        source: the checkpoint's path, empty for random weights.
        ap: percent by class, metric and difficulty, at 40 positions.
        ap_at_11: the same at 11.
        mean_ap: of 3D at moderate, at 40 positions, over the classes.
        counted: objects that count, by class and difficulty.
        settings: of the run.
        train_frames, validation_frames: frames used.
        notes: what a reader of the scores should know.
    """

    name: str
    source: str
    ap: dict[str, dict[str, dict[str, float]]]
    ap_at_11: dict[str, dict[str, dict[str, float]]]
    mean_ap: float
    counted: dict[str, dict[str, int]]
    settings: dict[str, Any]
    train_frames: int
    validation_frames: int
    notes: tuple[str, ...] = ()


@float32_as()
def detect(
    source: Source,
    train: Sequence[Scene],
    validation: Sequence[Scene],
    out: PathLike,
    settings: DetectionSettings | None = None,
) -> DetectionResult:
    """Train SECOND on a trunk and score it; what is finished in ``out`` is not done again.

    Args:
        source: the trunk; see :func:`~olivine.downstream.network.read_source`.
        train, validation: labelled scenes.
        out: the run's folder: ``run.json``, ``last.pt``, ``steps.csv``, ``epochs.csv``, ``results/`` (a file for each
            scene of ``validation``, in KITTI's format), ``ap.json``, ``ap.md``.

    Raises:
        OlivineError: a trunk of another network or other voxels, no labelled scene, labels that are wrong, a folder that holds
            something else, among it the same frames' numbers in another data set, a loss that is not finite.
        KeyboardInterrupt: stopped by a signal; the same call goes on.
    """
    settings, out = settings or DetectionSettings(), Path(out)
    train, validation = (_as_taken(scenes, source.normalised, settings) for scenes in (train, validation))
    for name, scenes in (("training", train), ("validation", validation)):
        if not scenes:
            raise OlivineError(
                f"no {name} frame", remedy="name the frames in ImageSets/train.txt and ImageSets/val.txt"
            )
    check_labels([*train, *validation])
    voxels = settings.voxel_settings()
    check_voxels(source, voxels, settings)
    fabric = make_fabric(settings.as_run())
    used = train[:: round(100 / settings.fraction)]
    batch = min(settings.batch, len(used))
    if batch % fabric.world_size:
        raise OlivineError(
            f"a batch of {batch} frames does not divide over {fabric.world_size} processes",
            where="batch",
            remedy="use another batch, or fewer devices",
        )
    plan = Plan(range(len(used)), settings.epochs, batch)
    network = Second(source.build(settings.seed), voxels, settings.plane, settings.anchors, settings.seed)
    network = network.to(fabric.device)
    data, notes = _data_of(used, validation, out)
    identity = {
        "kind": KIND,
        "settings": settings_to_plain(settings),
        "data": {**data, "classes": list(network.classes)},
        "source": source.identity,
    }
    if fabric.global_rank == 0:
        claim(out, settings, identity, resume=True, incidental=INCIDENTAL)
    fabric.barrier()
    finished = out / "ap.json"
    if finished.is_file() and load_checkpoint(out)["step"] == plan.steps:
        before = read_detection(finished)
        return replace(before, notes=(*before.notes, *notes))
    constant = {**identity, "backbone": source.arguments, "voxels": settings_to_plain(voxels), "method_state": {}}
    constant |= {"intensity": NORMALISED} if source.normalised and settings.intensity == "trunk" else {}
    ahead = TrainingScenes(used, settings, fabric.device)
    training = DetectionTraining(network, ahead, settings, plan.steps)
    try:
        fit(training, plan, settings, out, constant, fabric, f"{KIND}, {source.name}")
    finally:
        ahead.close()
    results = out / "results"
    write_results(network, validation, settings, results, fabric)
    if fabric.global_rank == 0:
        _remove_foreign(results, validation)
    fabric.barrier()
    score = score_results(results, validation, network.classes)
    result = DetectionResult(
        name=source.name,
        source=source.path if source.state is not None else "",
        **_named(score),
        settings=settings_to_plain(settings),
        train_frames=len(used),
        validation_frames=len(validation),
        notes=(*source.notes, *notes, *_seen(used, validation)),
    )
    if fabric.global_rank == 0:
        write_bytes(out / "ap.md", ap_table(score).encode())
        plain = asdict(result)
        write_json(finished, {**plain, "digest": digest(plain)})
    return result


def _seen(used: Sequence[Scene], validation: Sequence[Scene]) -> tuple[str, ...]:
    both = len({tuple(scene.fingerprint()) for scene in used} & {tuple(scene.fingerprint()) for scene in validation})
    return (f"{both} of the {len(validation)} validation frames were trained on",) if both else ()


def _data_of(used: Sequence[Scene], validation: Sequence[Scene], out: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The frames of a run as its identity has them, and a note where the run in ``out`` does not say whose they are.

    KITTI's numbers are the same in every data set of its layout, so the names alone do not say which one it was.
    """
    names = {"train": digest([s.name for s in used]), "validation": digest([s.name for s in validation])}
    remedy = "choose another --out, or remove this folder"
    if (out / "run.json").is_file() and "files" not in read_identity(out / "run.json", remedy)["data"]:
        # A run of before: it is read as it is, and goes on as what it was.
        note = f"{out} is from an earlier version, which noted the frames' numbers alone: check that it is of this data set"
        print(f"olivine: {note}", file=sys.stderr, flush=True)
        return names, (note,)
    return {**names, "files": digest([scene.fingerprint() for scene in (*used, *validation)])}, ()


def _as_taken(scenes: Sequence[Scene], normalised: bool, settings: DetectionSettings) -> list[Scene]:
    """Scenes with the intensity that a network takes."""
    if settings.intensity == "raw":
        return [replace(scene, intensity_offset=0.0, normalised=False) for scene in scenes]
    return [replace(scene, normalised=normalised) for scene in scenes]


def check_voxels(source: Source, voxels: VoxelSettings, settings: DetectionSettings) -> None:
    """Raise where a checkpoint's trunk was trained with voxels of another size or feature, unless it is asked for.

    Raises:
        OlivineError: names both sizes.
    """
    if source.state is None or settings.any_voxels:
        return
    for key in ("grid", "size_m", "height_m", "feature", "first_channel", "feature_channels"):
        theirs, ours = getattr(source.voxels, key), getattr(voxels, key)
        if theirs != ours:
            raise OlivineError(
                f"its trunk was trained with voxels.{key} {theirs}, and --set preset={settings.preset} has {ours}",
                where=source.path,
                remedy="take the other preset (second or pretraining), or --set any_voxels=true to take the weights "
                "nevertheless, as the field does",
            )


@torch.no_grad()
def write_results(
    network: Second, scenes: Sequence[Scene], settings: DetectionSettings, folder: Path, fabric: Fabric
) -> int:
    """Write the result file of this process's part of the scenes; returns how many boxes they hold."""
    names = np.array(network.classes)
    network.eval()
    count = 0
    if fabric.global_rank == 0:
        claim_output(folder)
    fabric.barrier()
    mine = scenes[fabric.global_rank :: fabric.world_size]

    maps = MapsAhead()

    def make(scene: Scene) -> Batch:
        empty = Sample(scene.points(), np.zeros((0, 7), np.float32), np.zeros(0, np.int64))
        batch = make_batch([empty], [scene.name], settings.voxel_settings(), settings.test_voxels, fabric.device)
        maps(batch.clouds.tensor)
        return batch

    with Ahead[Batch](fabric.device) as ahead:
        batches = ahead(map(make, mine))
        for scene in track(mine, "detecting", unit="frames"):
            (found,) = network.detections(network(next(batches).clouds), settings.selection)
            objects = scene.camera.objects_of(found.boxes, names[found.kind - 1].tolist(), found.score)
            write_objects(folder / f"{scene.name}.txt", objects)
            count += len(objects)
    fabric.barrier()
    return count


def _remove_foreign(folder: Path, scenes: Sequence[Scene]) -> None:
    """Remove result files that an earlier run of the same folder made of other scenes."""
    names = {scene.name for scene in scenes}
    for path in folder.glob("*.txt"):
        if path.stem not in names:
            path.unlink()


def score_results(folder: PathLike, scenes: Sequence[Scene], classes: Sequence[str]) -> AveragePrecision:
    """The AP of the result files of a folder.

    Raises:
        OlivineError: results of other frames, or a file that is wrong.
    """
    found = read_results(folder, [scene.name for scene in scenes])
    return evaluate([scene.objects() for scene in scenes], found, classes)


@dataclass(frozen=True)
class ResultFiles:
    """What was written.

    Attributes:
        frames: result files.
        boxes: in them.
        notes: what a reader should know of the checkpoint.
    """

    out: Path
    frames: int
    boxes: int
    notes: tuple[str, ...] = ()


_DETECTOR = {
    "kind": str,
    "settings": dict,
    "voxels": dict,
    "backbone": dict,
    "backbone_state": dict,
    "head_state": dict,
}


def read_detector(
    checkpoint: PathLike, changes: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], DetectionSettings]:
    """The content of a trained detector's checkpoint, and its settings with others of :data:`FREE`.

    Raises:
        OlivineError: a checkpoint of something else, a key that is not of these, or a wrong value.
    """
    path = checkpoint_file(checkpoint)
    content = load_checkpoint(path)
    if content.get("kind") != KIND:
        raise OlivineError(
            f"is a checkpoint of kind {content.get('kind')}, not of a detector",
            where=path,
            remedy="give the folder of olivine detect",
        )
    demand(content, _DETECTOR, path, "take another checkpoint")
    settings = settings_from_plain(DetectionSettings, content["settings"], str(path))
    for key in changes or ():
        if key not in FREE:
            raise OlivineError(
                f"{key} is no setting of a detector that is trained", where="--predict", remedy=f"use {', '.join(FREE)}"
            )
    plain = {**settings_to_plain(settings), **(changes or {})}
    return content, settings_from_plain(DetectionSettings, plain, "settings")


@float32_as()
def predict(checkpoint: PathLike, scenes: Sequence[Scene], out: PathLike, **changes: Any) -> ResultFiles:
    """Write a trained detector's result files, in KITTI's format, of any scenes, labelled or not.

    Args:
        checkpoint: the folder or file of a detection run.
        out: another detector's result files there, of other frames or of other changes, are removed first.
        changes: settings of :data:`FREE`.

    Raises:
        OlivineError: a checkpoint of something else, another setting, or a scene without a point in the network's range.
    """
    from ...train.backbone import build_backbone

    path = checkpoint_file(checkpoint)
    content, settings = read_detector(path, changes)
    network = Second(build_backbone(**content["backbone"]), settings.voxel_settings(), settings.plane, settings.anchors)
    load_detector(network, content, path)
    scenes = _as_taken(scenes, takes_normalised(content, path), settings)
    fabric = make_fabric(settings.as_run())
    if fabric.global_rank == 0:
        # Numbers say nothing: KITTI counts its training and its test frames from 0, and so does every set of its layout.
        made_by = {"checkpoint": sha256_file(path), "frames": digest([scene.fingerprint() for scene in scenes])}
        made_by |= {key: getattr(settings, key) for key in FOUND}
        begin_output(out, made_by, [f"{scene.name}.txt" for scene in scenes])
    boxes = write_results(network.to(fabric.device), scenes, settings, Path(out), fabric)
    progress = progress_of(content)
    return ResultFiles(Path(out), len(scenes), boxes, (f"{path} is from {progress}",) if progress else ())


def evaluate_files(folder: PathLike, scenes: Sequence[Scene], classes: Sequence[str]) -> tuple[AveragePrecision, str]:
    """The AP of anybody's result files, and its table."""
    score = score_results(folder, scenes, classes)
    return score, ap_table(score)


def _named(score: AveragePrecision) -> dict[str, Any]:
    def by_name(values: Any) -> dict[str, Any]:
        return {
            name: {
                metric: {d: float(values[c, m, k]) for k, d in enumerate(DIFFICULTIES)}
                for m, metric in enumerate(METRICS)
            }
            for c, name in enumerate(score.classes)
        }

    counted = {
        name: {d: int(score.counted[c, k]) for k, d in enumerate(DIFFICULTIES)} for c, name in enumerate(score.classes)
    }
    return {
        "ap": by_name(score.at_40),
        "ap_at_11": by_name(score.at_11),
        "mean_ap": score.mean(),
        "counted": counted,
    }


_AP = {str: {str: {str: float}}}
_RESULT = {
    "name": str,
    "source": str,
    "ap": _AP,
    "ap_at_11": _AP,
    "mean_ap": float,
    "counted": {str: dict},
    "settings": dict,
    "train_frames": int,
    "validation_frames": int,
    "notes": [str],
    "digest": str,
}


def read_detection(path: Path) -> DetectionResult:
    """The result in the ``ap.json`` of a run.

    Raises:
        OlivineError: the file is damaged.
    """
    remedy = "remove it and run the same command again"
    plain = demand(read_json(path, remedy), _RESULT, path, remedy)
    stored = plain.pop("digest")
    if stored != digest(plain):
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=remedy)
    return DetectionResult(**{**plain, "notes": tuple(plain["notes"])})


def check_labels(scenes: Sequence[Scene]) -> None:
    """Read every label file, so that what is wrong is said before anything is trained.

    Raises:
        OlivineError: names the file and the line.
    """
    for scene in scenes:
        if scene.labels is not None:
            read_objects(scene.labels)
