"""A class for every original point: of frames while they are scored, or of any shards by a fine-tuned network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..common import Failure, OlivineError, PathLike, demand, sha256_file, track
from ..common.ahead import Ahead
from ..common.settings import settings_from_plain
from ..pairs.shards import ShardSet, open_shards
from ..train.backbone import Clouds
from ..train.checkpoint import checkpoint_file, load_backbone, load_state
from ..train.devices import make_fabric
from ..train.sparse.engines import MapsAhead
from ..train.sparse.precision import float32_as
from ..train.voxelize import VoxelSettings
from . import afi
from .benchmarks import PredictionWriter, uses_cameras
from .checkpoints import progress_of, takes_normalised
from .data import CloudExamples, Example, Examples, check_reaches_every_point
from .network import Segmenter, new_head
from .settings import FinetuneSettings

SMOOTHINGS = ("none", "afi")


@dataclass(frozen=True)
class PredictSummary:
    """What was written.

    Attributes:
        frames, points: predicted.
        shares: percent of the points given each class.
        changed: percent of the points that smoothing gave another class; None without it.
        notes: what a reader should know of the checkpoint.
        failures: shards that lack frames, which a submission lacks then.
    """

    out: Path
    frames: int
    points: int
    shares: dict[str, float]
    changed: float | None = None
    notes: tuple[str, ...] = ()
    failures: list[Failure] = field(default_factory=list)


_FINETUNED = {
    "data": {"classes": [str]},
    "settings": dict,
    "labels": {"dataset": str, "point_class_raw": list},
    "voxels": dict,
    "source": {"sha256": str},
}


@torch.no_grad()
def predicted_points(
    model: nn.Module, examples: Examples, frames: range, title: str
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Each frame with the class 1..K of its every original point, int64 [N], and its probability, float32 [N].

    Class 0 is never predicted, as the devkits' scorers require.
    """
    model.eval()
    maps = MapsAhead()

    def make(frame: int) -> Example:
        example = examples.whole(frame)
        if isinstance(example.inputs, Clouds):
            maps(example.inputs.tensor)
        return example

    with Ahead[Example](next(model.parameters()).device) as ahead:
        made = ahead(map(make, frames))
        for frame in track(frames, title, unit="frames"):
            example = next(made)
            best = torch.softmax(model(example.inputs)[:, 1:].float(), 1).max(1)
            predicted, sure = (
                value.index_select(0, example.inverse).cpu().numpy() for value in (best.indices + 1, best.values)
            )
            yield frame, predicted, sure


@float32_as()
def predict(
    checkpoint: PathLike,
    shards: PathLike,
    out: PathLike,
    *,
    smooth: str = "none",
    confidence: bool = False,
    accelerator: str = "auto",
) -> PredictSummary:
    """Write a fine-tuned network's predictions for shards, labelled or not, in the benchmark's format.

    Args:
        checkpoint: folder or file of a fine-tuning.
        shards: folder of shards, for example of the test split.
        out: the submission's folder; see :class:`~olivine.downstream.benchmarks.PredictionWriter`. Another network's
            predictions there, or those smoothed otherwise, are removed first.
        smooth: ``none``, or ``afi`` to smooth each frame's predictions, see :mod:`~olivine.downstream.afi`.
        confidence: also write how sure the network is of each point: ``confidence/<token>.bin``, uint8, 255 = certain;
            of its own class where smoothing gives the point another.
        accelerator: as Lightning Fabric takes it; one device.

    Raises:
        OlivineError: the checkpoint is of no fine-tuning, or of another data set's classes.
    """
    if smooth not in SMOOTHINGS:
        raise OlivineError(f"--smooth {smooth}", remedy=f"choose one of {', '.join(SMOOTHINGS)}")
    path, frames = checkpoint_file(checkpoint), open_shards(shards)
    model, clouds, content = read_segmenter(path, frames, accelerator)
    classes = tuple(content["data"]["classes"])
    raw = content["labels"]["point_class_raw"]
    cameras = uses_cameras(content["source"]["sha256"], content["settings"].get("labels", "truth"))
    writer = PredictionWriter(Path(out), frames, classes, raw, pre_trained=cameras, confidence=confidence)
    writer.begin(sha256_file(path), smooth=smooth)
    count, changed = np.zeros(len(classes) + 1, np.int64), 0
    for frame, predicted, sure in predicted_points(model, clouds, range(len(frames)), "predict"):
        if smooth == "afi":
            before, predicted = (
                predicted,
                afi.smooth(frames.points(frame)[:, :3], predicted, classes, frames.benchmark.ground),
            )
            changed += int((predicted != before).sum())
        writer.write(frame, predicted)
        if confidence:
            writer.write_confidence(frame, sure)
        count += np.bincount(predicted, minlength=len(count))
    writer.finish()
    total = int(count.sum())
    shares = {name: 100 * int(n) / max(1, total) for name, n in zip(classes, count[1:])}
    progress = progress_of(content)
    notes = (progress,) if progress else ()
    failures = [Failure("the other frames", frames.lacks)] if frames.lacks else []
    share = None if smooth == "none" else 100 * changed / max(1, total)
    return PredictSummary(Path(out), len(frames), total, shares, share, notes, failures)


def read_segmenter(
    path: Path, frames: ShardSet, accelerator: str = "auto"
) -> tuple[Segmenter, CloudExamples, dict[str, Any]]:
    """A fine-tuned network on one device, shards as it takes them, and what else its checkpoint holds.

    Raises:
        OlivineError: the checkpoint is of no fine-tuning, or of another data set's classes.
    """
    backbone, content = load_backbone(path)
    if content.get("kind") == "detect":
        raise OlivineError("is a detector's", where=path, remedy="its boxes are written by: olivine detect --predict")
    if "head_state" not in content:
        raise OlivineError(
            "holds no head for classes", where=path, remedy="give a fine-tuned one: olivine finetune makes them"
        )
    demand(content, _FINETUNED, path, "take another checkpoint")
    classes = tuple(content["data"]["classes"])
    if frames.dataset != content["labels"]["dataset"] or frames.point_classes not in ((), classes):
        raise OlivineError(
            f"was trained on the classes of {content['labels']['dataset']}, these shards are {frames.dataset}'s",
            where=path,
            remedy="fine-tune on this data set",
        )
    device = make_fabric(FinetuneSettings(accelerator=accelerator, devices="1").as_run()).device
    head = new_head(backbone.feature_channels, len(classes) + 1, 0)
    load_state(head, content["head_state"], path)
    model = Segmenter(backbone, head).to(device)
    voxels = settings_from_plain(VoxelSettings, content["voxels"], str(path))
    check_reaches_every_point(voxels, backbone.per_point, path)
    normalised = takes_normalised(content, path)
    clouds = CloudExamples(frames, voxels, device, per_point=backbone.per_point, normalised=normalised)
    return model, clouds, content
