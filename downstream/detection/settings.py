"""The settings of a detection run; the defaults are OpenPCDet's ``second.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...common import OlivineError
from ...common.settings import check_ranges
from ...train.settings import PretrainSettings, RunSettings
from ...train.voxelize import VoxelSettings
from .anchors import KITTI_ANCHORS, AnchorSettings
from .schedule import CycleSettings
from .second import VOXELS, PlaneSettings, Selection

# Keys that change how a run is carried out but nothing of what it computes: a resumed run may change them.
INCIDENTAL = ("accelerator", "devices", "nodes", "threads", "workers", "checkpoint_minutes")


_LEAST_MOMENTUM, _MOST_MOMENTUM, _TOTAL_MOMENTUM = 0.01, 0.1, 20.0


def norm_momentum_of(steps: int) -> float:
    """The momentum of batch normalisation in a run of so many steps: 20 over the steps, from 0.01 to 0.1.

    With OpenPCDet's 0.01 the running statistics still hold 13 % of their first values (mean 0, variance 1) after 200 steps, and
    a detector whose loss is near 0 in training finds nothing afterwards.
    """
    return min(max(_TOTAL_MOMENTUM / steps, _LEAST_MOMENTUM), _MOST_MOMENTUM)


@dataclass(frozen=True)
class DetectionSettings:
    """What decides the training of SECOND on a trunk, and what is found.

    Attributes:
        preset: of the voxels, ``second`` (0.05 x 0.05 x 0.1 m) or ``pretraining`` (0.1 x 0.1 x 0.2 m).
        any_voxels: take a checkpoint's weights also where it was trained with voxels of another size.
        range_m: x low, y low, z low, x high, y high, z high; None is the preset's.
        intensity: ``trunk`` has the form in which trunks are pre-trained (KITTI's + 1, or that of several data sets); ``raw``
            is as the files have it, which is what OpenPCDet gives to a detector.
        classes: some of Car, Pedestrian, Cyclist.
        fraction: percent of the training frames: every k-th, from the first.
        epochs: passes over those frames, rounded up to whole batches.
        batch: frames of a step over all processes, at most all.
        lr: the highest rate of the cycle.
        weight_decay: of all parameters, decoupled from the gradient (AdamW).
        clip: largest gradient norm.
        norm_momentum: weight of a step in the running statistics of batch normalisation; None takes OpenPCDet's 0.01 from 2,000
            steps on, and more in a shorter run; see :func:`norm_momentum_of`.
        sampled: ground-truth sampling fills a scene up to so many objects of Car, Pedestrian and Cyclist; 0 adds none.
        least_points: an object with fewer points is not put into other scenes.
        flip: mirror the scene left to right, every other time.
        rotate_deg: largest rotation about z, either way.
        scale: largest relative change of the size, either way.
        train_voxels, test_voxels: of a cloud at most.
        plane_layers, plane_channels, plane_up_channels: of the 2D backbone.
        score, iou: least score of a detection; a box that overlaps a better one by more goes.
        seed: of the head, the order, the augmentation and random weights.
        accelerator, devices, nodes: as Lightning Fabric takes them.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``, as Lightning Fabric takes it.
        threads: CPU threads; 0 leaves PyTorch's choice.
        workers: threads that make scenes ahead; 0 makes them in between. Changes no result.
        checkpoint_minutes: ``last.pt`` is written at least this often, and at the end.
    """

    preset: Literal["second", "pretraining"] = "second"
    any_voxels: bool = False
    range_m: tuple[float, float, float, float, float, float] | None = None
    intensity: Literal["trunk", "raw"] = "trunk"
    classes: tuple[str, ...] = ("Car", "Pedestrian", "Cyclist")
    fraction: float = 100.0
    epochs: int = 80
    batch: int = 4
    lr: float = 0.003
    weight_decay: float = 0.01
    clip: float = 10.0
    norm_momentum: float | None = None
    sampled: tuple[int, int, int] = (20, 15, 15)
    least_points: int = 5
    flip: bool = True
    rotate_deg: float = 45.0
    scale: float = 0.05
    train_voxels: int = 16_000
    test_voxels: int = 40_000
    plane_layers: tuple[int, int] = (5, 5)
    plane_channels: tuple[int, int] = (128, 256)
    plane_up_channels: tuple[int, int] = (256, 256)
    score: float = 0.1
    iou: float = 0.01
    seed: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    threads: int = 0
    workers: int = 2
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OlivineError: a value is out of range; names it.
        """
        most = 1 << 30
        check_ranges("detect", self, fraction=(0, 100, "(]"), epochs=(1, most), batch=(1, 1 << 16), lr=(0, 1e6))
        check_ranges("detect", self, weight_decay=(0, 1e6), clip=(0, 1e30, "(]"), norm_momentum=(0, 1, "(]"))
        check_ranges("detect", self, rotate_deg=(0, 180), scale=(0, 1, "[)"))
        check_ranges("detect", self, train_voxels=(1, most), test_voxels=(1, most), score=(0, 1), iou=(0, 1))
        check_ranges("detect", self, least_points=(1, most), seed=(0, most), workers=(0, 256), threads=(0, 4096))
        known = [anchor.name for anchor in KITTI_ANCHORS]
        wrong = [name for name in self.classes if name not in known or self.classes.count(name) > 1]
        if wrong or not self.classes:
            raise OlivineError(
                f"the class {wrong[0]!r} is unknown or named twice" if wrong else "no class",
                where="classes",
                remedy=f"name some of {', '.join(known)}",
            )
        if min(self.sampled) < 0:
            raise OlivineError(f"sampled is {list(self.sampled)}", remedy="use 0 or more of each class")
        for name, low, high in (("layers", 0, 64), ("channels", 1, 4096), ("up_channels", 1, 4096)):
            value = getattr(self, f"plane_{name}")
            if not low <= min(value) <= max(value) <= high:
                raise OlivineError(f"plane_{name} is {list(value)}", remedy=f"use numbers from {low} to {high}")
        every = 100 / self.fraction
        if abs(every - round(every)) > 1e-6 * every:
            raise OlivineError(
                f"{self.fraction:g} % is not every k-th frame", where="fraction", remedy="use 5, 10, 20, 50 or 100"
            )

    @property
    def anchors(self) -> tuple[AnchorSettings, ...]:
        """Those of the classes, in their order."""
        known = {anchor.name: anchor for anchor in KITTI_ANCHORS}
        return tuple(known[name] for name in self.classes)

    @property
    def fill(self) -> tuple[int, ...]:
        """Up to how many objects of each class ground-truth sampling fills a scene."""
        given = {anchor.name: count for anchor, count in zip(KITTI_ANCHORS, self.sampled)}
        return tuple(given[name] for name in self.classes)

    def voxel_settings(self) -> VoxelSettings:
        """Those of the preset, with :attr:`range_m`."""
        preset = VOXELS[self.preset]
        return preset if self.range_m is None else replace(preset, range_m=self.range_m)

    @property
    def plane(self) -> PlaneSettings:
        """The 2D backbone's."""
        return PlaneSettings(self.plane_layers, self.plane_channels, self.plane_up_channels)

    @property
    def cycle(self) -> CycleSettings:
        """The optimiser's."""
        return CycleSettings(lr=self.lr, weight_decay=self.weight_decay, clip=self.clip)

    @property
    def selection(self) -> Selection:
        """Which boxes are kept."""
        return Selection(score=self.score, iou=self.iou)

    def as_run(self) -> PretrainSettings:
        """Seed and devices in the form that the pre-training's machinery takes."""
        run = RunSettings(
            accelerator=self.accelerator,
            devices=self.devices,
            nodes=self.nodes,
            precision=self.precision,
            threads=self.threads,
        )
        return PretrainSettings(seed=self.seed, run=run)
