"""One run of the segmentation protocols, probe or fine-tuning: train on a fraction of the labels, score every point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..common import OlivineError, PathLike, check_output, read_json, sha256_file
from ..common.settings import settings_to_plain
from ..pairs.shards import ShardSet, open_shards
from ..train.checkpoint import load_checkpoint
from ..train.devices import over_processes
from ..train.mixture import NORMALISED
from ..train.run_folder import claim, lock
from ..train.sparse.precision import float32_as
from .benchmarks import PredictionWriter, training_frames, uses_cameras
from .data import CloudExamples, Examples, FrozenFeatures, KeptFeatures, check_reaches_every_point
from .fit import Plan, fit
from .metrics import confusion_matrix, counts_by_class, scores
from .network import Segmenter, Source
from .predict import predicted_points
from .results import Result, read_result, write_results
from .segment_training import SegmentationTraining
from .settings import INCIDENTAL, SegmentationSettings
from .weak import WeakLabels

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from .rounds import OwnLabels


@dataclass(frozen=True)
class Ground:
    """The labelled frames of a run: shards to train on and to score on, with the same classes."""

    train: ShardSet
    validation: ShardSet

    @property
    def classes(self) -> tuple[str, ...]:
        """The point classes that are scored."""
        return self.validation.point_classes

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common."""
        digests = {"digest": self.train.digest, "validation": self.validation.digest}
        return {**digests, "classes": list(self.classes)}


def open_ground(train: PathLike, validation: PathLike, labels: str = "truth") -> Ground:
    """Two folders of shards with point labels.

    Args:
        labels: with ``weak`` those to train on need none.

    Raises:
        OlivineError: no point labels, no frame, or other classes.
    """
    ground = Ground(open_shards(train), open_shards(validation))
    for shards in (ground.train, ground.validation)[labels == "weak" :]:
        if not shards.point_classes or not shards.has_point_label:
            raise OlivineError(
                "the shards have no point labels",
                where=shards.path,
                remedy="build them from a data set with point labels; olivine synth makes one",
            )
    unlabelled = labels == "weak" and not ground.train.point_classes
    if not unlabelled and ground.train.point_classes != ground.validation.point_classes:
        raise OlivineError(
            "the validation shards have other point classes than the training shards",
            where=validation,
            remedy="build both from one data set",
        )
    return ground


@float32_as()
def segment(
    source: Source,
    ground: Ground,
    out: Path,
    settings: SegmentationSettings,
    fabric: Fabric,
    *,
    predictions: Path | None = None,
    overwrite: bool = False,
    taught: OwnLabels | None = None,
    kept: KeptFeatures | None = None,
) -> Result:
    """Train and score one backbone; what is finished in ``out`` is not done again.

    Args:
        taught: labels to learn from instead of the shards'.
        kept: a frozen backbone's features, from another head on the same backbone, shards and labels.

    Raises:
        OlivineError: settings, checkpoint and shards that do not fit, or a folder that holds something else.
        KeyboardInterrupt: stopped by a signal; the same call goes on.
    """
    device, rank, world = fabric.device, fabric.global_rank, fabric.world_size
    frames = training_frames(ground.train, settings.fraction, settings.part)
    dataset, classes = ground.train.dataset, ground.classes
    plan = Plan(frames, settings.length(), settings.batch_of(ground.train.benchmark.batch, len(frames), world))
    kind = "probe" if settings.frozen else "finetune"
    plain = settings_to_plain(settings)
    data = ground.identity | ({} if taught is None else {"taught": taught.identity})
    identity = {"kind": kind, "settings": plain, "data": data, "source": source.identity}
    raw = ground.validation.shard(0).attributes["point_class_raw"]
    backbone = source.build(settings.seed, settings.drop_path).to(device)
    head = source.build_head(backbone.feature_channels, classes, settings.seed, settings.head).to(device)
    per_point, augment = backbone.per_point, settings.as_augmentation()
    check_reaches_every_point(source.voxels, per_point, source.path)
    writer = None
    if predictions is not None:
        cameras = uses_cameras(source.identity["sha256"], settings.labels)
        writer = PredictionWriter(predictions, ground.validation, classes, raw, pre_trained=cameras)
    weak = WeakLabels(ground.train, classes, settings.least_score) if settings.labels == "weak" else None
    form: dict[str, Any] = {"per_point": per_point, "normalised": source.normalised}
    clouds = CloudExamples(ground.train, source.voxels, device, augment, settings.seed, label_of=taught or weak, **form)
    held_out = CloudExamples(ground.validation, source.voxels, device, **form)
    model: nn.Module = head
    train: Examples = clouds
    validation: Examples = held_out
    if settings.frozen:
        train = FrozenFeatures(clouds, backbone, kept or KeptFeatures(settings.memory), "train")
        validation = FrozenFeatures(held_out, backbone, kept or KeptFeatures(0), "validation")
    else:
        model = Segmenter(backbone, head)
    if rank == 0:
        if overwrite:
            read = (source.path or None, ground.train.path, ground.validation.path)
            discard(out, kind, read)
        # The share of own labels that are kept decides nothing where there are none.
        free = INCIDENTAL if taught is not None else (*INCIDENTAL, "surest")
        claim(out, settings, identity, resume=True, incidental=free)
    fabric.barrier()
    finished = out / "scores.json"
    if writer is None and finished.is_file() and load_checkpoint(out)["step"] == plan.steps:
        return read_result(finished)
    voxels = settings_to_plain(source.voxels)
    labels = {"dataset": dataset, "point_class_raw": raw}
    network = {"backbone": source.arguments, "voxels": voxels, "method_state": {}}  # no heads for embeddings
    constant = {**identity, **network, "labels": labels} | ({"intensity": NORMALISED} if source.normalised else {})
    training = SegmentationTraining(model, train, settings)
    model = fit(training, plan, settings, out, constant, fabric, f"{kind}, {source.name}")

    if writer is not None and rank == 0:
        writer.begin(sha256_file(out / "last.pt"), smooth="none")
    fabric.barrier()
    scored = range(rank, len(ground.validation), world)
    by_scene = _evaluate(model, validation, ground.validation, scored, writer, f"scoring {source.name}")
    by_scene = over_processes(torch.from_numpy(by_scene).to(device), fabric).cpu().numpy()
    confusion = by_scene.sum(0)
    result = Result(
        name=source.name if settings.frozen else f"fine-tuned, {source.name}",
        source=source.path if source.state is not None else "",
        scores=scores(confusion, classes, ground.validation.benchmark.mean_over),
        classes=classes,
        confusion=confusion.tolist(),
        by_scene=dict(zip(ground.validation.scenes, (counts_by_class(one, classes) for one in by_scene), strict=True)),
        settings=asdict(settings),
        train_frames=len(frames),
        validation_frames=len(ground.validation),
        provenance={
            "backbone": source.arguments["name"],
            "train_shards": ground.train.digest,
            "validation_shards": ground.validation.digest,
            "steps": plan.steps,
            "batch": plan.batch,
        },
        notes=(
            *source.notes,
            *_head_note(source, settings),
            *_incomplete(ground, settings.fraction),
            *_other_batch(ground, settings, plan.batch, len(frames)),
            *_untaught(weak, ground.train),
            *([] if taught is None else [taught.note]),
        ),
        labels_mean_iou=None if weak is None else _score_labels(ground.validation),
    )
    if rank == 0:
        if writer is not None:
            writer.finish()
        write_results(out, [result])
    return result


SCORES = ("scores.json", "scores.md", "confusion.csv", "corruptions.json", "corruptions.md")
"""Of a run, or of a probe's two."""
_FILES = ("last.pt", "steps.csv", "epochs.csv", *SCORES)


def discard(out: Path, kind: str, inputs: Iterable[PathLike | None]) -> bool:
    """Remove the files of the run that ``out`` holds but for ``run.json``, and no other file; whether it holds one.

    Args:
        kind: of the runs that may go; another kind is left alone.
        inputs: what the new run reads; a folder that holds one of them is left alone.

    Raises:
        OlivineError: the folder holds something else than such a run.
    """
    path, remedy = out / "run.json", "choose another --out"
    if not path.is_file():
        return False
    found = read_json(path, remedy)
    if not isinstance(found, dict) or found.get("kind") != kind:
        held = found.get("kind") if isinstance(found, dict) else "unknown run"
        raise OlivineError(f"holds a {held}, no {kind}; it is left alone", where=out, remedy=remedy)
    check_output(out, inputs=inputs, known=("run.json",))
    lock(out)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    for events in (out / "tensorboard").glob("events.out.tfevents.*"):
        events.unlink()
    return True


def _evaluate(
    model: nn.Module,
    examples: Examples,
    shards: ShardSet,
    frames: range,
    writer: PredictionWriter | None,
    title: str,
) -> NDArray[np.int64]:
    """The confusion matrices over every original point of some frames, by scene, int64 [scenes, K + 1, K + 1]."""
    count, scenes = len(shards.point_classes), shards.scenes.values()
    scene_of = np.repeat(np.arange(len(scenes)), [len(frames) for frames in scenes])
    confusion = np.zeros((len(scenes), count + 1, count + 1), np.int64)
    for frame, predicted, _ in predicted_points(model, examples, frames, title):
        truth = shards.point_label(frame)
        assert truth is not None
        confusion[scene_of[frame]] += confusion_matrix(truth, predicted, count)
        if writer is not None:
            writer.write(frame, predicted)
    return confusion


def _score_labels(shards: ShardSet) -> float:
    """Mean IoU of a set's own weak labels over every labelled point: what a network that they teach has to be above."""
    weak, classes = WeakLabels(shards, shards.point_classes), shards.point_classes
    confusion = np.zeros((len(classes) + 1,) * 2, np.int64)
    for frame in range(len(shards)):
        truth = shards.point_label(frame)
        assert truth is not None
        confusion += confusion_matrix(truth, weak(frame), len(classes))
    return scores(confusion, classes).mean_iou


def _head_note(source: Source, settings: SegmentationSettings) -> list[str]:
    if settings.head == "new" or source.state is None:
        return []
    return ["the head starts from the checkpoint's own, which has seen these classes, not from a new one"]


def _untaught(weak: WeakLabels | None, shards: ShardSet) -> list[str]:
    if weak is None:
        return []
    absent = f"; no prompt is {', '.join(weak.absent)}, counted as never found" if weak.absent else ""
    how = "that followed annotated boxes over time" if shards.uses_boxes else "without annotation"
    return [f"trained on weak labels, {how}{absent}"]


def _incomplete(ground: Ground, fraction: float) -> list[str]:
    notes = [shards.lacks for shards in (ground.train, ground.validation) if not shards.complete]
    if fraction < 100 and not ground.train.complete:
        notes[0] += f"; {fraction:g} % was counted over those, and is not the published subset"
    return notes


def _other_batch(ground: Ground, settings: SegmentationSettings, batch: int, frames: int) -> list[str]:
    """A note where the benchmark's batch was made smaller to divide over the devices."""
    usual = settings.batch_of(ground.train.benchmark.batch, frames, 1)
    return [f"{batch} frames a step and not {usual}, which do not divide over the devices"] if batch < usual else []
