"""The contract of a pre-training method: what it needs, what it is given, what it returns, and what it owns.

A method is one file in ``methods/``, or a class anywhere, named by its dotted path. The loop knows :class:`Method` alone
and no loss by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..common.plugins import find
from ..pairs.shards import TextTable
from .group import Group

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


@dataclass(frozen=True)
class MethodSettings:
    """The section ``method:`` of a run's settings; a method derives its own.

    Attributes:
        name: a file of ``methods/``, or ``package.module:Class``.
    """

    name: str = ""


@dataclass(frozen=True)
class Needs:
    """What a method reads. The loader delivers this and no more: nothing else is read or decoded.

    Attributes:
        columns: of the shards (:data:`~olivine.pairs.layout.COLUMNS`), besides clouds and the pairs' points and pixels.
        encoder: the frozen image encoder's features.
        scans: the scans of each frame, by how many frames of its scene they come after it. 0 is the frame itself; of the
            others the clouds alone are read, and ``scan_columns``.
        scan_columns: columns of the other scans, over points, pairs or frames.
        text: the phrases of the shards' regions and their embeddings, in :attr:`Context.text`.
    """

    columns: tuple[str, ...] = ()
    encoder: bool = True
    scans: tuple[int, ...] = (0,)
    scan_columns: tuple[str, ...] = ()
    text: bool = False


@dataclass(frozen=True)
class Context:
    """What a method is built for.

    Attributes:
        point_head: makes a linear layer of so many outputs on the backbone's features.
        pixel_channels: E, of the image encoder; 0 without one.
        label_names: classes of the pairs' labels, "none" first.
        steps: of the run.
        voxel_size: metres.
        text: of the shards' regions, where the method needs it.
    """

    point_head: Callable[[int], nn.Module]
    pixel_channels: int
    label_names: tuple[str, ...]
    steps: int
    voxel_size: float
    text: TextTable | None = None


class Term(NamedTuple):
    """A term of the loss: its value (scalar) and its weight."""

    value: Tensor
    weight: float


class Method(nn.Module):
    """A pre-training method: heads, criteria and running statistics. Its ``state_dict`` is all a checkpoint needs of it.

    Attributes:
        Settings: its section of the settings.
        exported: names in exported files, and the point heads that they mean.
        terms: names of the terms that :meth:`forward` may return, in the order of the tables.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    exported: ClassVar[dict[str, str]] = {}
    terms: tuple[str, ...] = ()

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__()

    @classmethod
    def needs(cls, settings: Any) -> Needs:
        """What it reads with these settings."""
        return Needs()

    def forward(self, group: Group) -> dict[str, Term]:
        """The terms of one contrast group; in evaluation mode those that are comparable between epochs."""
        raise NotImplementedError

    def after_step(self, step: int, reduce: Reduce) -> None:
        """Called once after the optimiser's step: running statistics move here."""

    def log(self, step: int, reduce: Reduce) -> dict[str, float]:
        """What a row of ``steps.csv`` says besides the losses, of the passes since the last call."""
        return {}

    def summary(self) -> list[str]:
        """What a reader of the finished run should know."""
        return []


def find_method(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        OlivineError: there is none; the nearest name is said.
    """
    return find(name, "olivine.train.methods", Method, "method")
