"""Checkpoints: tensors and plain values only, written whole or not at all, read with ``weights_only=True``.

What a file of kind ``pretrain`` holds:

==================  ==============================================================================
``format``          ``olivine-checkpoint``; ``schema`` ``major.minor``; ``kind``
``step``, ``steps``  steps done, and of the whole run
``settings``        every setting, nested plain values
``backbone``        ``name``, ``in_channels`` and options for ``build_backbone``
``backbone_state``  its tensors, named as the network names them
``method_state``    the method's: heads, running statistics
``exported_heads``  names of heads in exported files, and the method's modules they mean
``optimizer_state``  momentum
``data``            digest of the shards, their classes, the label manifest's digest
``encoder``         kind and SHA-256 of the frozen encoder's weights
``best``            lowest validation loss so far, or None
``versions``        of the packages
==================  ==============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..common import OlivineError, PathLike, Whole, demand
from ..common.tensors import check_finite, check_state, read_tensors, write_tensors
from .backbone import Backbone, build_backbone
from .released import modern_checkpoint

FORMAT, SCHEMA = "olivine-checkpoint", "1.0"


def save_checkpoint(path: PathLike, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; ``format`` and ``schema`` are added.

    Raises:
        OlivineError: a weight is not finite (what was there stays), or the disk is full.
    """
    for part in ("backbone_state", "method_state", "head_state"):
        check_finite(content.get(part, {}), f"{path}: not written, {part}", "lower the learning rate")
    write_tensors(path, {"format": FORMAT, "schema": SCHEMA, **content})


def checkpoint_file(path: PathLike) -> Path:
    """The file meant by a checkpoint's path or by a run's folder (its last checkpoint).

    Raises:
        OlivineError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "last.pt"
    if not path.is_file():
        rounds = sorted((p.parent for p in path.parent.glob("round-*/last.pt")), key=lambda p: (len(p.name), p.name))
        remedy = (
            f"give one of its rounds, the last is {rounds[-1]}" if rounds else "give a .pt file or the folder of a run"
        )
        raise OlivineError("no such checkpoint", where=path, remedy=remedy)
    return path


_CONTENT = {
    "step?": Whole(),
    "steps?": {Whole(), None},
    "best?": {float, None},
    "kind?": str,
    "settings?": dict,
    "backbone?": {"name": str, "in_channels?": {Whole(1, 1 << 20), None}},
    "voxels?": dict,
    "data?": dict,
    "source?": dict,
    "labels?": dict,
    "exported_heads?": {str: str},
    "optimizer_state?": {"state": dict, "param_groups": [dict]},
    **{f"{part}_state?": {str: object} for part in ("backbone", "method", "head")},
}


def load_checkpoint(path: PathLike) -> dict[str, Any]:
    """Read a checkpoint of this package onto the CPU.

    Raises:
        OlivineError: no such file, truncated, not a checkpoint of this package, or of an unknown schema.
    """
    path = checkpoint_file(path)
    content = read_tensors(path, "take another, or import it: import-weights")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OlivineError(
            "is not a checkpoint of olivine", where=path, remedy="convert it first: olivine import-weights"
        )
    if str(content.get("schema")).split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError(
            f"is a checkpoint of schema {content.get('schema')}, this olivine reads {SCHEMA}",
            where=path,
            remedy="use the olivine that wrote it",
        )
    remedy = "take another checkpoint"
    demand(content, _CONTENT, path, remedy)
    if "backbone_state" in content:
        demand(content, {"backbone": dict, "settings?": {"voxels?": dict, "method?": dict}}, path, remedy)
    content = modern_checkpoint(content)
    for part in ("backbone", "method", "head"):
        for name, tensor in content.get(f"{part}_state", {}).items():
            if not isinstance(tensor, Tensor):
                raise OlivineError(f"{part}_state.{name} is no tensor", where=path, remedy=remedy)
    return content


_OTHER = "choose the backbone it was made with (--set backbone.name=…)"


def load_state(module: nn.Module, state: dict[str, Any], where: object, remedy: str = _OTHER) -> None:
    """Load tensors into a network, all of them and no other.

    Raises:
        OlivineError: they are another network's.
    """
    check_state(module.state_dict(), state, where, remedy)
    module.load_state_dict(state)


def load_backbone(path: PathLike) -> tuple[Backbone, dict[str, Any]]:
    """The 3D network of a run's folder or a checkpoint, with its weights, and the checkpoint's content.

    Raises:
        OlivineError: names the file.
    """
    path = checkpoint_file(path)
    content = load_checkpoint(path)
    if "backbone_state" not in content:
        raise OlivineError(
            f"holds a {content.get('kind')}'s head alone",
            where=path,
            remedy="give the pre-trained checkpoint it started from, or to predict classes a fine-tuned one",
        )
    try:
        network = build_backbone(**content["backbone"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:  # options it does not have
        raise OlivineError(
            f"describes a backbone that cannot be built ({error})", where=path, remedy="take another checkpoint"
        ) from None
    load_state(network, content["backbone_state"], path)
    check_finite(content.get("method_state", {}), path)
    return network, content


def _numbered(directory: Path) -> list[Path]:
    """The checkpoints ``epoch-NNNN.pt`` by number; from 10,000 on their names have another order."""
    found = {int(path.stem[6:]): path for path in directory.glob("epoch-*.pt") if path.stem[6:].isdecimal()}
    return [found[number] for number in sorted(found)]


def newest_checkpoint(directory: Path) -> Path | None:
    """What a run goes on from: ``last.pt``, or without it the newest numbered checkpoint; None where there is neither."""
    last = directory / "last.pt"
    return last if last.is_file() else next(reversed(_numbered(directory)), None)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest numbered checkpoints of a run."""
    numbered = _numbered(directory)
    for old in numbered[: max(0, len(numbered) - keep)]:
        old.unlink(missing_ok=True)
