"""The settings of a pre-training run: frozen dataclasses, read from YAML, changed by ``key=value``.

Every key has a type, a unit where it has one, and a default, which is the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast

from ..common import OlivineError, PathLike, gpu_problem
from ..common.plugins import names_in
from ..common.settings import apply_change, check_ranges, read_yaml_file, settings_from_plain
from .augment import AugmentSettings
from .backbone import BackboneSettings, find_backbone
from .method import MethodSettings, find_method
from .released import modern, modern_changes
from .voxelize import VoxelSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class DataSettings:
    """Where the frames come from.

    Attributes:
        shards: folder of shards to train on; several as a list, or with weights as ``{FOLDER: 1, FOLDER: 0.5}``: how often an
            epoch takes each frame; see :mod:`~olivine.train.mixture`.
        validation: folder of held-out shards, several as a list, or None for no validation.
        labels: the weak labels of the pairs, the points' ground truth (an upper bound), or that in the weak labels' own
            classes: ``true prompts``.
        workers: processes that make samples; 0 makes them in the training process. Changes no result.
        prefetch: steps that workers are ahead.
    """

    shards: str | tuple[str, ...] | dict[str, float] | None = None
    validation: str | tuple[str, ...] | None = None
    labels: Literal["weak", "truth", "true prompts"] = "weak"
    workers: int = 4
    prefetch: int = 2

    def __post_init__(self) -> None:
        check_ranges("data", self, workers=(0, 1024), prefetch=(0, 1024))
        for name in ("shards", "validation"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and (not value or len(set(value)) < len(value)):
                what = "names a folder twice" if value else "is an empty list"
                raise OlivineError(f"data.{name} {what}", remedy="name each folder once")
            for folder, weight in value.items() if isinstance(value, dict) else ():
                if not 0 < weight <= 1000:
                    raise OlivineError(
                        f"data.{name}: {folder} has the weight {weight:g}", remedy="use a number over 0, at most 1000"
                    )

        if self.labels == "true prompts" and self.several:
            raise OlivineError("data.labels is true prompts, over several sets", remedy="use data.labels=truth")
        if isinstance(self.shards, str) and isinstance(self.validation, tuple):
            raise OlivineError(
                "data.validation names several sets, data.shards one", remedy="name one of each, or several of each"
            )

    @property
    def several(self) -> bool:
        """Whether the run is over several sets, with all that this means for classes and intensity."""
        return isinstance(self.shards, (tuple, dict))


@dataclass(frozen=True)
class ImageSettings:
    """The image branch.

    Attributes:
        encoder: a file of ``encoders/``, or ``package.module:Class``.
        weights: local file or folder; None takes the ones in the package or of ``olivine weights fetch``; ``random`` for
            random weights.
        height, width: size of the images in pixels, after crop and resize.
        feature_grid: where features lie in the image; see :func:`olivine.train.feature_map.sample_features`.
        dtype: of the frozen encoder; ``auto`` is bfloat16 where the device gains by it (a GPU, a CPU with AMX).
        at_once: images that go through the encoder together; 0 = automatic: 4 on a CPU, the whole batch on a GPU.
        compile: let torch compile the encoder: fewer passes over memory, after half a minute or more at the start.
        stored: folder of the encoder's maps that ``olivine features`` made, read instead of running it; None runs it.
    """

    encoder: str = "resnet50"
    weights: str | None = None
    height: int = 224
    width: int = 416
    feature_grid: Literal["align_corners", "stride", "patch"] = "align_corners"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    at_once: int = 0
    compile: bool = False
    stored: str | None = None

    def __post_init__(self) -> None:
        check_ranges("image", self, height=(1, 20_000), width=(1, 20_000), at_once=(0, 1 << 20))


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser, with a cosine schedule to 0.

    Attributes:
        kind: stochastic gradient descent, or AdamW for short runs.
        lr: at the start.
        momentum, dampening: of ``sgd`` only.
        weight_decay: of all parameters.
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

    def __post_init__(self) -> None:
        check_ranges("optimizer", self, lr=(0, 1e6), weight_decay=(0, 1e6), warmup=(0, 1))
        check_ranges("optimizer", self, momentum=(0, 1, "[)"), dampening=(0, 1), clip=(0, 1e30))


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
        float32_products: how exactly float32 factors are multiplied on a GPU (a frozen encoder's too), at least:
            ``ieee``, ``tf32x3`` (nearly so, on tensor cores) or ``tf32``; see :mod:`olivine.train.sparse.precision`.
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
    float32_products: Literal["ieee", "tf32x3", "tf32"] = "tf32x3"
    threads: int = 0
    deterministic: bool = True
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 10.0
    keep: int = 2
    validate_epochs: int = 5
    validate_frames: int = 200

    def __post_init__(self) -> None:
        most = 1 << 40
        check_ranges("run", self, epochs=(1, most), steps=(1, most), batch=(1, 1 << 16), group=(1, 1 << 16))
        check_ranges("run", self, accumulate=(1, 1 << 16), nodes=(1, 1 << 16), threads=(0, 4096))
        check_ranges("run", self, checkpoint_epochs=(0, most), checkpoint_minutes=(0, 1e9), keep=(0, most))
        check_ranges("run", self, validate_epochs=(1, most), validate_frames=(1, most))


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides a run. The same settings and data give the same run.

    The sections ``method`` and ``backbone`` have the settings of the method and the backbone that they name; build them
    with :func:`read_settings` or :func:`load_settings`.
    """

    name: str = "pretrain"
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    voxels: VoxelSettings = field(default_factory=VoxelSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        check_ranges("", self, seed=(0, (1 << 63) - 1))


# Keys that change how a run is carried out but nothing of what it computes: a resumed run may change them.
INCIDENTAL = (
    "name",
    "backbone.engine",
    "data.shards",
    "data.validation",
    "data.workers",
    "data.prefetch",
    "image.weights",
    "image.at_once",
    "image.compile",
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
    return "cpu", gpu_problem() or "no GPU is here"


def load_settings(config: PathLike, overrides: Sequence[str] = ()) -> PretrainSettings:
    """The settings of a YAML file or preset, with ``key=value`` changes.

    Args:
        config: a preset's name, a YAML file, or ``auto``.
        overrides: for example ``["method.scr=false", "run.epochs=10"]``; values are YAML. A key may be shortened to its
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
    plain = read_yaml_file(path)
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise OlivineError("is not a table of settings", where=path, remedy="see olivine pretrain --print-config")
    plain = modern(plain)
    try:
        _settings_type(plain)
    except OlivineError as error:
        raise OlivineError(str(error), where=path) from None
    changes = [new for change in overrides for new in modern_changes(change)]
    # Which method and backbone it is decides which keys there are.
    for change in sorted(changes, key=lambda change: not _NAMES.match(change)):
        apply_change(_settings_type(plain), plain, change)
        if _NAMES.match(change):  # what the file says of another method or backbone does not concern this one
            section = change.partition(".")[0].strip()
            kind = getattr(_settings_type(plain)(), section)
            plain[section] = {k: v for k, v in plain[section].items() if k in {member.name for member in fields(kind)}}
    return read_settings(plain, str(path))


def read_settings(plain: Mapping[str, Any], where: str) -> PretrainSettings:
    """Settings from nested plain values, of this or the released form.

    Raises:
        OlivineError: an unknown key or a wrong value; a key of another method is named as such.
    """
    plain = modern(plain)
    kind = _settings_type(plain)
    section = plain.get("method")
    for key in section if isinstance(section, Mapping) else ():
        if key not in _keys_of(_name(plain, "method")):
            others = [name for name in names_in("olivine.train.methods") if key in _keys_of(name)]
            if others:
                raise OlivineError(
                    f"method.{key} is a setting of {' and '.join(others)}, not of {_name(plain, 'method')}",
                    where=where,
                    remedy=f"remove it, or set method.name={others[0]}",
                )
    return settings_from_plain(kind, plain, where)


_NAMES = re.compile(r"\s*(method|backbone)\.name\s*=")
_DEFAULTS = {"method": "olivine", "backbone": "srunet34"}


def _keys_of(method: str) -> set[str]:
    return {member.name for member in fields(find_method(method).Settings)}


def _name(plain: Mapping[str, Any], section: str) -> str:
    inner = plain.get(section)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) and name else _DEFAULTS[section]


def _settings_type(plain: Mapping[str, Any]) -> type[PretrainSettings]:
    return settings_type(_name(plain, "method"), _name(plain, "backbone"))


def settings_type(method: str, backbone: str) -> type[PretrainSettings]:
    """The type of the settings of a run of this method and backbone.

    Raises:
        OlivineError: there is no such method or backbone; the nearest name is said.
    """
    of_method, of_backbone = find_method(method).Settings, find_backbone(backbone).Settings
    return _settings_of(method, cast(Any, of_method), backbone, cast(Any, of_backbone))


@lru_cache(maxsize=64)  # by the classes too, which a notebook may load again
def _settings_of(method: str, of_method: Any, backbone: str, of_backbone: Any) -> type[PretrainSettings]:
    sections = {"method": (method, of_method), "backbone": (backbone, of_backbone)}
    members: list[Any] = [
        (section, kind, field(default_factory=partial(kind, name=name))) for section, (name, kind) in sections.items()
    ]
    return make_dataclass("PretrainSettings", members, bases=(PretrainSettings,), frozen=True)
