"""The settings of a pre-training run: frozen dataclasses, read from YAML, changed by ``key=value``.

Every key has a type, a unit where it has one, and a default, which is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..common import OlivineError, PathLike
from ..common.settings import apply_change, read_yaml, settings_from_plain
from .augment import AugmentSettings
from .voxelize import VoxelSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class DataSettings:
    """Where the frames come from.

    Attributes:
        shards: folder of shards to train on.
        validation: folder of held-out shards, or None for no validation.
        labels: the weak labels of the pairs, or the points' ground truth (an upper bound).
        workers: processes that make samples; 0 makes them in the training process. Changes no result.
        prefetch: steps that workers are ahead.
    """

    shards: str | None = None
    validation: str | None = None
    labels: Literal["weak", "truth"] = "weak"
    workers: int = 4
    prefetch: int = 2


@dataclass(frozen=True)
class BackboneSettings:
    """The 3D network.

    Attributes:
        name: as :func:`olivine.train.backbones.build_backbone` knows it.
        out_channels: p, the embeddings' dimension.
        engine: what computes the sparse convolutions; ``minkowski`` where MinkowskiEngine is installed.
    """

    name: str = "srunet34"
    out_channels: int = 64
    engine: Literal["torch", "minkowski"] = "torch"


@dataclass(frozen=True)
class ImageSettings:
    """The image branch.

    Attributes:
        encoder: a key of :data:`olivine.train.image_encoder.KINDS`.
        weights: local file; None takes the ones in the package; ``random`` for random weights.
        height, width: size of the pictures in pixels, after crop and resize.
        feature_grid: where features lie in the picture; see :func:`olivine.train.heads.sample_features`.
        dtype: of the frozen encoder; ``auto`` is bfloat16 where the device gains by it (a GPU, a CPU with AMX).
        at_once: pictures that go through the encoder together; 0 is 4 on a CPU where whole maps are made, and all otherwise.
        stored: folder of the encoder's features at every pair, read instead of running it; None runs it.
    """

    encoder: str = "resnet50"
    weights: str | None = None
    height: int = 224
    width: int = 416
    feature_grid: Literal["align_corners", "stride"] = "align_corners"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    at_once: int = 0
    stored: str | None = None


@dataclass(frozen=True)
class LossSettings:
    """The objective (eq. 1-13).

    Attributes:
        wcd, scr: weakly-supervised contrast and semantic consistency on or off.
        ppkt_weight, wcd_weight, scr_weight: w₁, w₂, w₃.
        temperature: τ.
        wcd_form: eq. 2, or the public code's reading.
        decoupled_heads: a second pair of heads for the category-level losses.
        distribution: of each class in L_kl.
        kl_average: over pairs, or in each class and then over classes.
        warmup: fraction of all steps in which only the class statistics run; afterwards L_kl is added.
        freeze: the statistics stay as they are after the warm-up.
        alpha: α of the moving average; None is 1 / warm-up steps.
        bias_correction: of the moving average.
        background: label 0 is one more class, or is left out of the category-level losses.
    """

    wcd: bool = True
    scr: bool = True
    ppkt_weight: float = 0.5
    wcd_weight: float = 0.5
    scr_weight: float = 1.0
    temperature: float = 0.07
    wcd_form: Literal["paper", "reference"] = "paper"
    decoupled_heads: bool = True
    distribution: Literal["vmf", "dirac"] = "vmf"
    kl_average: Literal["pairs", "classes"] = "pairs"
    warmup: float = 0.114
    freeze: bool = True
    alpha: float | None = None
    bias_correction: bool = True
    background: Literal["class", "ignored"] = "class"


@dataclass(frozen=True)
class SamplingSettings:
    """Which pairs the contrastive losses see (eq. 14, 15).

    Attributes:
        pairs: drawn per loss and contrast group, without replacement.
        mode: of the draw for L_sup; L_ppkt's is uniform.
        frequency: class frequency over the data set, each frame, or the group at hand.
        density: as stored in the shards, or over the group's pairs as the public code does.
    """

    pairs: int = 4096
    mode: Literal["random", "density", "category", "dcas"] = "dcas"
    frequency: Literal["dataset", "frame", "batch"] = "dataset"
    density: Literal["shard", "batch"] = "shard"


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser, with a cosine schedule to 0.

    Attributes:
        kind: stochastic gradient descent, or AdamW for short runs.
        lr: at the start.
        momentum, dampening: of ``sgd`` only.
        schedule_per: the rate changes every epoch or every step.
        warmup: fraction of all steps with a linear rise.
        clip: largest gradient norm; 0 does not clip.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.5
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 1e-4
    schedule_per: Literal["epoch", "step"] = "epoch"
    warmup: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True)
class RunSettings:
    """Length, devices, and what is written.

    Attributes:
        epochs: passes over the frames, rounded up to whole batches.
        steps: overrides ``epochs``.
        batch: frames in a step, over all processes.
        group: frames of a contrast group, within which draws and negatives are.
        accumulate: forward passes that a step is split into.
        accelerator, devices, nodes, precision: as Lightning Fabric takes them.
        threads: CPU threads; 0 leaves PyTorch's choice.
        deterministic: deterministic algorithms; on a CPU the same bits every time.
        checkpoint_epochs: a numbered checkpoint every so many epochs; 0 makes none.
        checkpoint_minutes: ``last`` is written at least this often, besides every epoch's end.
        keep: numbered checkpoints kept.
        validate_epochs: validation every so many epochs.
        validate_frames: at most so many held-out frames.
    """

    epochs: int = 50
    steps: int | None = None
    batch: int = 16
    group: int = 4
    accumulate: int = 1
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    deterministic: bool = True
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 10.0
    keep: int = 2
    validate_epochs: int = 5
    validate_frames: int = 200


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides a run. The same settings and data give the same run."""

    name: str = "pretrain"
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    voxels: VoxelSettings = field(default_factory=VoxelSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)


# Keys that change how a run is carried out but nothing of what it computes: a resumed run may change them.
INCIDENTAL = (
    "name",
    "data.shards",
    "data.validation",
    "data.workers",
    "data.prefetch",
    "image.weights",
    "image.at_once",
    "image.stored",
    "run.accelerator",
    "run.devices",
    "run.nodes",
    "run.threads",
    "run.checkpoint_epochs",
    "run.checkpoint_minutes",
    "run.keep",
    "run.validate_epochs",
    "run.validate_frames",
)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("study-"))


def choose_preset() -> tuple[str, str]:
    """What ``--config auto`` takes, and why: the paper's preset on a GPU, the CPU preset without one."""
    import torch

    if torch.cuda.is_available():
        return "paper", f"a GPU is here ({torch.cuda.get_device_name(0)})"
    return "cpu", "no GPU is here"


def load_settings(config: PathLike, overrides: Sequence[str] = ()) -> PretrainSettings:
    """The settings of a YAML file or preset, with ``key=value`` changes.

    Args:
        config: a preset's name, a YAML file, or ``auto``.
        overrides: for example ``["loss.scr=false", "run.epochs=10"]``; values are YAML. A key may be shortened to its
            last part where that is the only setting of the name (``epochs=10``).

    Raises:
        OlivineError: no such file or preset, bad YAML, an unknown key, or a value of the wrong type.
    """
    name = choose_preset()[0] if str(config) == "auto" else str(config)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name}.yaml"
    elif not path.is_file() and (CONFIGS / path.name).is_file() and path.parent.name == "configs":
        path = CONFIGS / path.name
    if not path.is_file():
        raise OlivineError(
            "no such settings file or preset", where=name, remedy=f"use one of {', '.join(preset_names())}, or a file"
        )
    plain = read_yaml(path.read_text(encoding="utf-8"), path)
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise OlivineError("is not a table of settings", where=path, remedy="see olivine pretrain --print-config")
    for override in overrides:
        apply_change(PretrainSettings, plain, override)
    return settings_from_plain(PretrainSettings, plain, str(path))
