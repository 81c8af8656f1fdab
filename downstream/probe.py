"""Linear probe: a linear head on the frozen backbone, scored at every original point.

Protocol of REFERENCE (OLIVINE, section 4.2): backbone in evaluation mode, head alone, SGD at 0.05 with a cosine to
0, 50 epochs, cross-entropy plus Lovász-Softmax over the labelled voxels; evaluation through the inverse voxel index.
The clouds are not augmented, so that each frame's features are computed once (the public code rotates and flips).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..common import OlivineError, PathLike, track
from ..pairs.shards import ShardSet, open_shards
from ..train.backbones import build_backbone
from ..train.checkpoint import load_backbone
from ..train.settings import PretrainSettings, settings_from_plain
from ..train.sparse import SparseTensor
from ..train.voxelize import voxelize
from .losses import segmentation_loss
from .metrics import confusion_matrix, scores
from .results import ProbeResult, write_results


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of :func:`linear_probe`.

    Attributes:
        epochs: passes over the training frames.
        batch: frames of a step; at most a tenth of the frames, so that small sets get steps enough.
        lr, momentum, dampening, weight_decay: of the head's SGD.
        seed: of the head, of the order and of the random weights.
        memory: bytes of features kept; beyond it they are computed again in each epoch.
    """

    epochs: int = 50
    batch: int = 16
    lr: float = 0.05
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    memory: int = 2 << 30


@dataclass(frozen=True)
class _Frame:
    """A frame's frozen features: [V, C] per voxel, the voxel's label [V], the voxel of each point, the points' truth."""

    feature: Tensor
    label: Tensor
    inverse: Tensor
    truth: np.ndarray


class _Features(Sequence[_Frame]):
    """The frozen features of a set of frames, computed once while they fit into memory."""

    def __init__(self, backbone: nn.Module, settings: PretrainSettings, records: ShardSet, memory: int) -> None:
        self._backbone, self._settings, self._records = backbone, settings, records
        self._kept: dict[int, _Frame] = {}
        self._memory = memory

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        frame = self._kept.get(index)
        if frame is None:
            frame = self._compute(index)
            self._memory -= frame.feature.numel() * frame.feature.element_size()
            if self._memory > 0:
                self._kept[index] = frame
        return frame

    @torch.no_grad()
    def _compute(self, index: int) -> _Frame:
        record = self._records[index]
        points = torch.from_numpy(np.array(record.points))
        voxels = voxelize(points, [len(points)], replace(self._settings.voxels, crop=False))
        feature = self._backbone.features(SparseTensor(voxels.feature, voxels.coordinate)).feature  # type: ignore[operator]
        truth = np.array(record.point_label)
        label = torch.from_numpy(truth).long().index_select(0, voxels.first)
        return _Frame(feature, label, voxels.inverse, truth)


def linear_probe(
    checkpoint: PathLike,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: ProbeSettings | None = None,
    *,
    random: bool = True,
) -> list[ProbeResult]:
    """Probe a checkpoint, and random weights of the same network beside it.

    Args:
        checkpoint: run folder or checkpoint file.
        train, validation: folders of shards with point labels.
        out: folder of ``scores.json`` and ``scores.md``.
        random: also probe random weights.

    Raises:
        OlivineError: the shards have no point labels, or the checkpoint is not of a backbone.
    """
    settings = settings or ProbeSettings()
    sets = open_shards(train), open_shards(validation)
    for records, folder in zip(sets, (train, validation)):
        if not records.point_classes:
            raise OlivineError(
                "the shards have no point labels",
                where=folder,
                remedy="build them from a data set with ground truth (nuScenes-lidarseg, SemanticKITTI, olivine synth)",
            )
    if sets[0].point_classes != sets[1].point_classes:
        raise OlivineError("the validation shards have other point classes", where=validation)
    pretrained, content = load_backbone(checkpoint)
    run = settings_from_plain(PretrainSettings, content["settings"], str(checkpoint))
    results = []
    if random:
        fresh = build_backbone(**content["backbone"], seed=settings.seed)
        results.append(_probe_one("random weights", "", fresh, run, sets, settings))
    results.append(_probe_one("pre-trained", str(checkpoint), pretrained, run, sets, settings))
    write_results(Path(out), results)
    return results


def _probe_one(
    name: str,
    source: str,
    backbone: nn.Module,
    run: PretrainSettings,
    sets: tuple[ShardSet, ShardSet],
    settings: ProbeSettings,
) -> ProbeResult:
    backbone.eval().requires_grad_(False)
    train, validation = (_Features(backbone, run, records, settings.memory) for records in sets)
    classes = sets[0].point_classes
    head = _train_head(name, train, len(classes) + 1, settings)
    confusion = np.zeros((len(classes) + 1,) * 2, np.int64)
    for frame in track(validation, f"scoring {name}", unit="frames"):
        with torch.no_grad():
            # Class 0 is never predicted, as the devkits' scorers require.
            predicted = head(frame.feature)[:, 1:].argmax(1) + 1
            at_points = predicted.index_select(0, frame.inverse).numpy()
        confusion += confusion_matrix(frame.truth, at_points, len(classes))
    return ProbeResult(
        name=name,
        source=source,
        scores=scores(confusion, classes),
        settings=asdict(settings),
        train_frames=len(train),
        validation_frames=len(validation),
        provenance={
            "backbone": run.backbone.name,
            "train_shards": sets[0].digest,
            "validation_shards": sets[1].digest,
        },
    )


def _train_head(name: str, frames: _Features, outputs: int, settings: ProbeSettings) -> nn.Linear:
    generator = torch.Generator().manual_seed(settings.seed)
    width = frames[0].feature.shape[1]
    head = nn.Linear(width, outputs)
    with torch.no_grad():
        bound = width**-0.5
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        dampening=settings.dampening,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    batch = max(1, min(settings.batch, len(frames) // 10))
    for _ in track(range(settings.epochs), f"probing {name}", unit="epochs"):
        for chosen in _batches(len(frames), batch, generator):
            members = [frames[i] for i in chosen]
            loss = segmentation_loss(
                head(torch.cat([m.feature for m in members])), torch.cat([m.label for m in members])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return head


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count, size):
        yield order[start : start + size]
