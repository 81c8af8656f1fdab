"""The settings of a pre-training run: frozen dataclasses, read from YAML, changed by ``key=value``.

Every key has a type, a unit where it has one, and a default, which is the paper's. A key that is not known, or a value
of the wrong type, is refused with the key's dotted name and the nearest right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..common import OlivineError, PathLike
from .augment import AugmentSettings
from .voxelize import VoxelSettings

S = TypeVar("S")
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
        _apply(plain, override)
    return settings_from_plain(PretrainSettings, plain, str(path))


def _apply(plain: dict[str, Any], override: str) -> None:
    """Change one value of a nested table, checked."""
    where, known = f"--set {override}", flat_keys(PretrainSettings)
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator:
        raise OlivineError("is not key=value", where=where, remedy="for example --set run.epochs=10")
    if key not in known:
        same = [name for name in known if name.endswith(f".{key}")]
        if len(same) != 1:
            raise unknown_key(PretrainSettings, key, where)
        key = same[0]
    _checked(known[key], read_yaml(text, where), key, where)
    *parents, last = key.split(".")
    place: Any = plain
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = read_yaml(text, where)


def read_yaml(text: str, where: object) -> Any:
    """A YAML document of plain values."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OlivineError(f"is not YAML ({error})", where=where, remedy="mend the line named") from None


def settings_to_plain(settings: Any) -> dict[str, Any]:
    """Nested plain values of a settings dataclass (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    result: dict[str, Any] = plain(dataclasses.asdict(settings))
    return result


def settings_to_yaml(settings: Any) -> str:
    """Settings as YAML, in the order of their definition (what ``--print-config`` prints)."""
    import yaml

    text: str = yaml.safe_dump(settings_to_plain(settings), sort_keys=False)
    return text


def flat_keys(kind: type, prefix: str = "") -> dict[str, Any]:
    """The dotted name and type of every setting of a dataclass."""
    keys: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for member in dataclasses.fields(kind):
        hint = hints[member.name]
        if dataclasses.is_dataclass(hint):
            keys.update(flat_keys(typing.cast(type, hint), f"{prefix}{member.name}."))
        else:
            keys[prefix + member.name] = hint
    return keys


def flat_values(settings: Any) -> dict[str, Any]:
    """The dotted name and value of every setting."""
    values = {}
    for key in flat_keys(type(settings)):
        value = settings
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value
    return values


def unknown_key(kind: type, key: str, where: str) -> OlivineError:
    """The error for a key that is not a setting, naming the nearest one that is."""
    known = flat_keys(kind)
    # The last part decides when the section is wrong: lr → optimizer.lr.
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.75)
    if not near:
        last = difflib.get_close_matches(key.rpartition(".")[2], by_last, 1, 0.6)
        near = [by_last[last[0]]] if last else difflib.get_close_matches(key, known, 1, 0.0)
    return OlivineError(f"no setting {key!r}", where=where, remedy=f"did you mean {near[0]!r}?")


def settings_from_plain(kind: type[S], plain: Mapping[str, Any], where: str, _prefix: str = "", _root: Any = None) -> S:
    """Build a settings dataclass from nested plain values, checking names and types.

    Raises:
        OlivineError: names the key.
    """
    root = _root or kind
    hints = typing.get_type_hints(kind)
    names = {member.name for member in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in plain.items():
        key = f"{_prefix}{name}"
        if name not in names:
            raise unknown_key(root, key, where)
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise OlivineError(f"{key} is a section, not a value", where=where, remedy=f"set {key}.… instead")
            values[name] = settings_from_plain(typing.cast(type, hint), value, where, f"{key}.", root)
        else:
            values[name] = _checked(hint, value, key, where)
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise OlivineError(f"{_prefix.rstrip('.')}: {error}", where=where, remedy="change that setting") from None


def _checked(hint: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as the type ``hint``, or an error that names the key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(next(a for a in arguments if a is not type(None)), value, key, where)
    if origin is Literal:
        if value in arguments and not (isinstance(value, bool) and value not in (True, False)):
            return value
        expected = " | ".join(str(a) for a in arguments)
    elif origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis and isinstance(value, list) else arguments
        if isinstance(value, (list, tuple)) and len(value) == len(kinds):
            return tuple(_checked(kind, item, key, where) for kind, item in zip(kinds, value))
        expected = f"a list of {len(kinds)} values"
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML reads 1e-4, without a point, as text
            try:
                return float(value)
            except ValueError:
                pass
        expected = "a number"
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        expected = "a whole number"
    elif hint is bool:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        expected = "text"
    raise OlivineError(f"{key} is {value!r}, expected {expected}", where=where, remedy=f"change {key}")
