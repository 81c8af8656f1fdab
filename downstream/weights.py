"""Backbones for other code bases, and from them: files in their layouts out, their published checkpoints in.

The layouts themselves, names and shapes, are all in :mod:`.layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..common import OlivineError, PathLike, check_output_file, sha256_file
from ..common.settings import settings_to_plain
from ..train.backbone import build_backbone
from ..train.build import backbone_arguments
from ..train.checkpoint import checkpoint_file, load_backbone, load_checkpoint, save_checkpoint
from ..train.settings import PretrainSettings, load_settings
from .checkpoints import exported_heads
from .layouts import export_weights, load_weights, own_layout, read_weights


@dataclass(frozen=True)
class WeightsSummary:
    """What was written.

    Attributes:
        out: the file.
        layout: of the other code base's file.
        backbone: its name here.
        voxels: what the backbone takes, for people.
        parameters: tensors written, or read.
        left_out: the heads' parameters that the layout, or a checkpoint of this package, has no place for; those of a
            head that a fine-tuning or detection trained begin with ``head.``.
    """

    out: Path
    layout: str
    backbone: str
    voxels: str
    parameters: int
    left_out: list[str]


def export_backbone(
    checkpoint: PathLike, out: PathLike, layout: str | None = None, *, overwrite: bool = False
) -> WeightsSummary:
    """Write the backbone of a run, pre-trained or fine-tuned, in another code base's layout.

    Args:
        checkpoint: run folder or file.
        layout: ``minkowski``, ``openpcdet``, ``waffleiron``, or ``state_dict`` (a plain dictionary of this package's names);
            None is the one of the first three that the backbone has.
        overwrite: replace an earlier export.

    Raises:
        OlivineError: no checkpoint of a backbone, a layout that is not the backbone's, or a file that is there.
    """
    check_output_file(out, _is_exported, overwrite=overwrite, inputs=(checkpoint_file(checkpoint),))
    network, content = load_backbone(checkpoint)
    name = content["backbone"]["name"]
    layout = layout or own_layout(network)
    heads, trained = exported_heads(content), content.get("head_state", {})
    if layout == "waffleiron" and trained and content.get("kind") != "detect":
        heads, trained = _class_head(trained), {}
    left_out = export_weights(network, out, layout, heads)
    voxels = content.get("voxels") or content["settings"]["voxels"]
    written = len(network.state_dict()) + len(heads) - len(left_out)
    left_out = [*left_out, *(f"head.{name}" for name in trained)]
    return WeightsSummary(Path(out), layout, name, _describe(voxels), written, left_out)


def _class_head(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """A fine-tuning's head as the head of a file: its classes 1..K, for class 0 is never predicted.

    Args:
        trained: ``weight`` [K + 1, C] and ``bias`` [K + 1].

    Returns:
        ``final.kernel`` [C, K] and ``final.bias`` [1, K].
    """
    return {"final.kernel": trained["weight"][1:].T.contiguous(), "final.bias": trained["bias"][None, 1:]}


_PRESETS, _OTHERWISE = {"openpcdet": "voxelnet", "waffleiron": "scalr"}, "reference"


def preset_of(path: PathLike) -> str:
    """The preset that :func:`import_weights` takes for a file where no settings are given, by the file's layout.

    Raises:
        OlivineError: no 3D network in the file.
    """
    return _PRESETS.get(read_weights(path)[0], _OTHERWISE)


def import_weights(
    path: PathLike, out: PathLike, settings: PretrainSettings | None = None, *, overwrite: bool = False
) -> WeightsSummary:
    """Make a checkpoint of this package from a published file of SLidR, OLIVINE, ScaLR or OpenPCDet, or from an export.

    Args:
        path: the file; only tensors and plain values are read.
        out: the checkpoint to write.
        settings: the backbone and voxels it was made with, which no such file says. By default the preset
            ``voxelnet`` for OpenPCDet's files, ``scalr`` for ScaLR's and ``reference`` (SR-UNet34 on cylindrical voxels, as the public code
            trains it) for the others.
        overwrite: replace a checkpoint that was imported earlier; no other.

    Raises:
        OlivineError: no 3D network in the file, another one than the settings', or a checkpoint that is there.
    """
    check_output_file(out, _is_imported, overwrite=overwrite, inputs=(path,))
    layout, weights = read_weights(path)
    settings = settings or load_settings(_PRESETS.get(layout, _OTHERWISE))
    arguments = backbone_arguments(settings)
    network = build_backbone(**arguments, seed=settings.seed)
    if layout == "openpcdet" and own_layout(network) != "openpcdet":
        raise OlivineError(
            f"holds OpenPCDet's trunk, not a {arguments['name']}", where=path, remedy="use --config voxelnet"
        )
    heads = load_weights(network, weights, layout=layout, where=path)
    left_out = [name for name in weights if name.startswith("classif.") and layout == "waffleiron" and not heads]
    voxels = settings_to_plain(settings.voxels)
    content = {
        "kind": "imported",
        "settings": settings_to_plain(settings),
        "backbone": arguments,
        "voxels": voxels,
        "backbone_state": network.state_dict(),
        "method_state": heads,
        "exported_heads": {name.partition(".")[0]: name.partition(".")[0] for name in heads},
        "source": {"file": Path(path).name, "sha256": sha256_file(path), "layout": layout},
    }
    save_checkpoint(out, content)
    loaded = len(network.state_dict()) + len(heads)
    return WeightsSummary(Path(out), layout, arguments["name"], _describe(voxels), loaded, left_out)


def _describe(voxels: dict[str, object]) -> str:
    feature = "mean" if voxels["feature"] == "mean" else "first point"
    return f"{voxels['grid']}, {voxels['size_m']} m, {feature} of channels from {voxels['first_channel']}"


def _is_exported(path: Path) -> bool:
    """Whether a file holds weights in another code base's layout."""
    try:
        read_weights(path)
    except OlivineError:
        return False
    return not _is_checkpoint(path)


def _is_imported(path: Path) -> bool:
    return _is_checkpoint(path) and load_checkpoint(path).get("kind") == "imported"


def _is_checkpoint(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except OlivineError:
        return False
    return True
