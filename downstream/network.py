"""A backbone from a checkpoint, and the new linear head that turns its features into classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common import OlivineError, PathLike, demand, sha256_file
from ..common.settings import flat_values, plain, settings_from_plain, settings_to_plain
from ..train.backbone import Backbone, Clouds, build_backbone, find_backbone
from ..train.build import backbone_arguments
from ..train.checkpoint import checkpoint_file, load_checkpoint, load_state
from ..train.mixture import NORMALISED
from ..train.settings import PretrainSettings
from ..train.voxelize import VoxelSettings
from .checkpoints import progress_of, takes_normalised


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from.

    Attributes:
        name: ``pre-trained`` or ``random weights``.
        path: the checkpoint, also where only its shape is taken.
        identity: what a resumed run must have in common: the checkpoint's SHA-256, or that the weights are random.
        arguments: of ``build_backbone``.
        state: its tensors; None for random weights.
        voxels: what it was trained with.
        notes: how far an unfinished run got.
        head: of a fine-tuning, its tensors; None without one.
        classes: of that head.
        normalised: whether it was trained on normalised intensities, see :mod:`~olivine.train.mixture`.
    """

    name: str
    path: str
    identity: dict[str, Any]
    arguments: dict[str, Any]
    state: dict[str, Tensor] | None
    voxels: VoxelSettings
    notes: tuple[str, ...]
    head: dict[str, Tensor] | None = None
    classes: tuple[str, ...] = ()
    normalised: bool = False

    def build(self, seed: int, drop_path: float = 0.0) -> Backbone:
        """The network, with random weights of the seed where there are no others.

        Raises:
            OlivineError: stochastic depth asked of a network that has none.
        """
        name = self.arguments["name"]
        network = build_backbone(**{**self.arguments, **find_backbone(name).finetune_options}, seed=seed)
        if drop_path > 0:
            if not hasattr(network, "drop_path"):
                raise OlivineError(
                    f"drop_path is {drop_path:g} and {name} has no stochastic depth",
                    where=self.path,
                    remedy="leave it out, or take a WaffleIron",
                )
            network.drop_path = drop_path  # type: ignore[assignment]
        if self.state is not None:
            load_state(network, self.state, self.path)
        return network

    def build_head(self, width: int, classes: tuple[str, ...], seed: int, start: str) -> nn.Linear:
        """A linear head for 0 and some classes, new, or with ``start`` checkpoint and pre-trained weights the checkpoint's.

        Raises:
            OlivineError: the checkpoint has none, or one for other classes.
        """
        head = new_head(width, len(classes) + 1, seed)
        if start == "checkpoint" and self.state is not None:
            if self.head is None or self.classes != classes:
                what = "a head for other classes" if self.head is not None else "no head for classes"
                raise OlivineError(
                    f"holds {what}, and head=checkpoint asks for it",
                    where=self.path,
                    remedy="give a fine-tuning on this data set's classes, or leave the head new",
                )
            load_state(head, self.head, self.path)
        return head


def read_source(
    checkpoint: PathLike | None, *, random: bool = False, expected: PretrainSettings | None = None
) -> Source:
    """The backbone of a checkpoint, or random weights of the same network.

    Args:
        checkpoint: run folder or file; None only for random weights of the ``expected`` network.
        random: take random weights.
        expected: settings whose backbone and voxels the checkpoint must have.

    Raises:
        OlivineError: no checkpoint of a backbone, one of another backbone or voxels than expected.
    """
    if checkpoint is None:
        if expected is None or not random:
            raise OlivineError("no checkpoint", remedy="name one, or take random weights of a preset's network")
        return _source(backbone_arguments(expected), settings_to_plain(expected.voxels), expected.name)
    path = checkpoint_file(checkpoint)
    content = load_checkpoint(path)
    if "backbone_state" not in content:
        raise OlivineError(
            f"a {content.get('kind')}'s checkpoint holds no backbone", where=path, remedy="give the one it started from"
        )
    arguments, voxels = content["backbone"], content.get("voxels") or content["settings"]["voxels"]
    if expected is not None:
        _compare(arguments, voxels, expected, path)
    normalised = takes_normalised(content, path)
    if random:
        return _normalised(_source(arguments, voxels, path), normalised)
    progress = progress_of(content)
    notes = (f"{path} is from {progress}",) if progress else ()
    found = _source(arguments, voxels, path, content["backbone_state"], sha256_file(path), notes)
    if "head_state" in content and content.get("kind") != "detect":
        data = demand(content, {"data": {"classes": [str]}}, path, "take another checkpoint")["data"]
        found = replace(found, head=content["head_state"], classes=tuple(data["classes"]))
    return _normalised(found, normalised)


def _normalised(source: Source, normalised: bool) -> Source:
    if not normalised:
        return source
    return replace(source, normalised=True, identity={**source.identity, "intensity": NORMALISED})


def _source(
    arguments: dict[str, Any],
    voxels: dict[str, Any],
    path: PathLike,
    state: dict[str, Tensor] | None = None,
    sha256: str = "random",
    notes: tuple[str, ...] = (),
) -> Source:
    name = "random weights" if state is None else "pre-trained"
    # As run.json gives it back, or a run would not know its own.
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    identity = {"sha256": sha256, "backbone": plain, "voxels": voxels}
    settings = settings_from_plain(VoxelSettings, voxels, str(path))
    return Source(name, str(path), identity, arguments, state, settings, notes)


def _compare(arguments: dict[str, Any], voxels: dict[str, Any], expected: PretrainSettings, path: Path) -> None:
    """Raise where a checkpoint is of another network.

    The range is left out, for nothing is cropped here, and so are the first weights, which training has replaced.
    """
    ours = {f"backbone.{key}": value for key, value in backbone_arguments(expected).items() if key in arguments}
    theirs = {key: arguments[key.partition(".")[2]] for key in ours}
    theirs |= {f"voxels.{key}": value for key, value in voxels.items()}
    ours |= {key: value for key, value in flat_values(expected).items() if key.startswith("voxels.")}
    left_out = ("backbone.in_channels", "backbone.first_weights", "voxels.crop", "voxels.range_m")
    for key, value in theirs.items():
        if key not in left_out and plain(ours[key]) != plain(value):
            raise OlivineError(
                f"a checkpoint of another network: {key} is {value} there and {ours[key]} in {expected.name}",
                where=path,
                remedy="give the settings it was made with, or none",
            )


def features_at(backbone: Backbone, clouds: Clouds) -> Tensor:
    """A network's features where it is asked for classes: at every voxel, [V, C], or point, [N, C], where it is per_point.

    A voxel has those at its first point's place, as its label is its first point's.
    """
    found = backbone.encode(clouds)
    if backbone.per_point:
        return found.raw() if found.place is clouds.numbers else found.raw().index_select(0, found.place)
    voxels = clouds.voxels
    return found.raw() if found.place is voxels.inverse else found.raw()[found.place[voxels.first]]


class Segmenter(nn.Module):
    """A backbone and a linear head on its features at every place."""

    def __init__(self, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, clouds: Clouds) -> Tensor:
        """Logits [places, K + 1] of a batch of clouds."""
        logit: Tensor = self.head(features_at(self.backbone, clouds))
        return logit


def new_head(width: int, outputs: int, seed: int) -> nn.Linear:
    """A linear head with weights uniform in ± width^(−1/2) and no bias yet."""
    head = nn.Linear(width, outputs)
    with torch.no_grad():
        head.weight.uniform_(-(width**-0.5), width**-0.5, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return head
