"""What a pre-training checkpoint says of itself to those who use its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..common import OlivineError, PathLike
from ..train.checkpoint import load_checkpoint
from ..train.mixture import NORMALISED


def progress_of(content: dict[str, Any]) -> str:
    """How far an unfinished run's checkpoint got, for people; empty where the run is finished or has no length."""
    step, steps = content.get("step"), content.get("steps")
    if step is None or not steps or step == steps:
        return ""
    return f"step {step:,} of {steps:,}: the run is not finished"


def progress_at(run: PathLike) -> str:
    """As :func:`progress_of`, of a run's folder.

    Raises:
        OlivineError: it holds no checkpoint, or a damaged one.
    """
    return progress_of(load_checkpoint(run))


def takes_normalised(content: Mapping[str, Any], where: object) -> bool:
    """Whether the network of a checkpoint's content takes :func:`normalised_intensity`, and not the raw one.

    Raises:
        OlivineError: it takes a form that an earlier version made.
    """
    form = content.get("intensity")
    if form not in (None, NORMALISED):
        raise OlivineError(
            f"takes intensities of several data sets in another form ({form}) than this version makes",
            where=where,
            remedy="train it again, or use the version that made it",
        )
    return form is not None


def exported_heads(content: dict[str, Any]) -> dict[str, Tensor]:
    """The point heads in a checkpoint, by the names that they have in exported files."""
    return {
        f"{exported}.{name.removeprefix(f'{module}.')}": tensor
        for exported, module in content.get("exported_heads", {}).items()
        for name, tensor in content.get("method_state", {}).items()
        if name.startswith(f"{module}.")
    }
