"""The settings of a probe and of a fine-tuning run, with the published values as defaults (REFERENCE, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from ..common import OlivineError
from ..common.settings import check_ranges, read_yaml, settings_from_plain
from ..train.augment import NO_AUGMENTATION, SENSOR, AugmentSettings
from ..train.settings import PretrainSettings, RunSettings

S = TypeVar("S")

PRESETS: dict[str, dict[str, Any]] = {"uov": {"labels": "weak", "epochs": 5, "lr": 2.0, "backbone_lr": 0.02}}
"""Published settings of a fine-tuning, by name. ``uov``: annotation-free training after UOV's pre-training, by its code."""

# Keys that change how a run is carried out but nothing of what it computes: a resumed run may change them.
INCIDENTAL = ("accelerator", "devices", "nodes", "threads", "checkpoint_minutes", "memory")


@dataclass(frozen=True)
class SegmentationSettings:
    """What decides the training of a linear head on a backbone, frozen or not.

    Attributes:
        fraction: percent of the training frames, by the benchmark's published rule; see
            :func:`~olivine.downstream.benchmarks.training_frames`.
        part: which part of the training frames the fraction is: 0 the published one, 1 the scenes or frames after, and so on.
        labels: what is learnt from: the points' ground truth, or their weak labels, for which the training frames need no
            annotation (see :mod:`olivine.downstream.weak`). The ground truth is scored on in either case.
        head: ``new``, or the ``checkpoint``'s own to start from, where that is a fine-tuning on the same classes, as UOV's
            probe does after its annotation-free training.
        least_score: weak labels of less confidence are none, 0 to 1: the share of the vote, or the labeler's score.
        surest: of the points that the network before gives a class, the share that keeps it in a round: those that it is
            surest of.
        epochs: passes over those frames, rounded up to whole batches; None is 100 at 1 % and 50 above.
        batch: frames of a step over all processes; None is what is published for the benchmark, but at most a tenth
            of the frames, so that small sets get steps enough.
        lr, backbone_lr: at the start, of the head and of the backbone; 0 freezes the backbone in evaluation mode.
        layer_decay: the backbone's last layer has ``backbone_lr``, each layer before it so many times that of the next.
        drop_path: stochastic depth of a WaffleIron: the probability that in training a cloud's tokens skip half a block,
            drawn for each step, cloud and half block (ScaLR fine-tunes with 0.2); 0 is off, as with a frozen backbone.
        augment: rotation about z and flips of x and y, drawn for each frame and epoch.
        beams, range_noise, intensity_off, scale: what stands for another LiDAR, drawn for each frame and epoch; as in
            :class:`~olivine.train.augment.AugmentSettings`, 0 is off.
        momentum, dampening, weight_decay: of SGD; the rates fall with a cosine to 0, changed every epoch.
        seed: of the head, of the order, of the augmentation and of random weights.
        accelerator, devices, nodes, precision: as Lightning Fabric takes them.
        threads: CPU threads; 0 leaves PyTorch's choice.
        checkpoint_minutes: ``last.pt`` is written at least this often, and at the end.
        memory: bytes of a frozen backbone's features that are kept where nothing is augmented; beyond it they are
            computed again in each epoch.
    """

    fraction: float = 100.0
    part: int = 0
    labels: Literal["truth", "weak"] = "truth"
    head: Literal["new", "checkpoint"] = "new"
    least_score: float = 0.0
    surest: float = 0.5
    epochs: int | None = None
    batch: int | None = None
    lr: float = 0.05
    backbone_lr: float = 0.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    augment: bool = False
    beams: float = 0.0
    range_noise: float = 0.0
    intensity_off: float = 0.0
    scale: float = 0.0
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    checkpoint_minutes: float = 10.0
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OlivineError: a value is out of range; names it.
        """
        least = {"epochs": 1, "batch": 1, "lr": 0, "backbone_lr": 0, "momentum": 0, "weight_decay": 0, "seed": 0}
        for member in fields(self):
            value = getattr(self, member.name)
            if member.name in least and value is not None and not value >= least[member.name]:
                raise OlivineError(f"{member.name} is {value}", remedy=f"use at least {least[member.name]}")
        for name in ("surest", "least_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise OlivineError(f"{name} is {getattr(self, name)}", where=name, remedy="give a number from 0 to 1")
        if self.least_score > 0 and self.labels != "weak":
            raise OlivineError(
                f"least_score is {self.least_score:g} and the labels are the truth",
                remedy="add labels=weak, or leave it out",
            )
        check_ranges("", self, **SENSOR, drop_path=(0, 1, "[)"))
        if self.drop_path > 0 and self.frozen:
            raise OlivineError(
                f"drop_path is {self.drop_path:g} and the backbone is frozen", remedy="leave it out, or fine-tune"
            )
        if not 0 < self.layer_decay <= 1:
            raise OlivineError(f"layer_decay is {self.layer_decay}", remedy="use over 0 and at most 1")
        if not 0 < self.fraction <= 100:
            raise OlivineError(f"a fraction of {self.fraction:g} %", where="fraction", remedy="use 1, 5, 10, 25 or 100")

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is."""
        return self.backbone_lr == 0

    def length(self) -> int:
        """Epochs of the run."""
        return self.epochs or (100 if self.fraction == 1 else 50)

    def batch_of(self, published: int, frames: int, processes: int) -> int:
        """Frames of a step; ``published``: what the benchmark's own runs take.

        Raises:
            OlivineError: they do not divide over the processes.
        """
        if self.batch is None:
            batch = max(1, min(published, frames // 10)) // processes * processes
        else:
            batch = min(self.batch, frames)
        if batch == 0 or batch % processes:
            raise OlivineError(
                f"a batch of {batch or self.batch or frames} frames does not divide over {processes} processes",
                where="batch",
                remedy="use another batch, or fewer devices",
            )
        return batch

    def as_augmentation(self) -> AugmentSettings:
        """What is done to a training cloud, in the pre-training's form."""
        sensor = {name: getattr(self, name) for name in SENSOR}
        return replace(NO_AUGMENTATION, rotate=self.augment, flip_axes=self.augment, **sensor)

    def as_run(self) -> PretrainSettings:
        """Seed and devices in the form that the pre-training's machinery takes."""
        run = RunSettings(
            # Where the frames decide the batch, it is made a multiple of any number of devices: this is one of most.
            batch=self.batch or 55_440,
            group=1,
            accelerator=self.accelerator,
            devices=self.devices,
            nodes=self.nodes,
            precision=self.precision,
            threads=self.threads,
        )
        return PretrainSettings(seed=self.seed, run=run)


@dataclass(frozen=True)
class ProbeSettings(SegmentationSettings):
    """Linear probe: the head alone. Without ``augment`` a frame's features are computed once, not in every epoch."""

    augment: bool = True


@dataclass(frozen=True)
class FinetuneSettings(SegmentationSettings):
    """Fine-tuning: the whole network; one of the public configurations has ``backbone_lr`` 0.02."""

    lr: float = 2.0
    backbone_lr: float = 0.05
    augment: bool = True


def settings_of(kind: type[S], changes: Sequence[str], preset: str | None = None, **named: Any) -> S:
    """Settings from ``key=value`` changes (values are YAML), from named values that are not None, and from a preset.

    Raises:
        OlivineError: an unknown preset or key, or a wrong value.
    """
    if preset is not None and preset not in PRESETS:
        raise OlivineError(f"--preset {preset}", remedy=f"choose one of {', '.join(PRESETS)}")
    plain = {**PRESETS.get(preset or "", {}), **{name: value for name, value in named.items() if value is not None}}
    return settings_from_plain(kind, {**plain, **plain_changes(changes)}, "settings")


def plain_changes(changes: Sequence[str]) -> dict[str, Any]:
    """The plain values of ``key=value`` changes (values are YAML), by key.

    Raises:
        OlivineError: one is not of this form.
    """
    plain = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise OlivineError("is not key=value", where=f"--set {change}", remedy="for example --set lr=0.5")
        plain[key.strip()] = read_yaml(text, f"--set {change}")
    return plain
