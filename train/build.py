"""What a run is made of, built from its settings: frames, encoder, network and method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common import OlivineError, gains_by_bfloat16
from ..common.plugins import code_of
from ..pairs.shards import check_unchanged, open_shards
from .augment import without_augmentation
from .backbone import Backbone, build_backbone, find_backbone
from .devices import Share
from .encoder import ImageEncoder, find_encoder
from .forward import Distiller
from .loader import FrameStream, StreamSettings
from .method import Context, Needs, find_method
from .mixture import ShardMixture, Shards, held_out_sets, weights_of
from .sample import check_columns
from .settings import PretrainSettings
from .sparse.engines import engine_problem

if TYPE_CHECKING:
    from ..pairs.shards import TextTable


def needs_of(settings: PretrainSettings) -> Needs:
    """What the run's method needs.

    Raises:
        OlivineError: a column that there is not; the nearest is said.
    """
    needs = find_method(settings.method.name).needs(settings.method)
    check_columns(needs.columns, needs.scan_columns)
    return needs


def codes_of(settings: PretrainSettings) -> dict[str, str]:
    """SHA-256 of the files of the method, backbone and encoder that are classes of one's own, by their names."""
    kinds = {
        settings.method.name: find_method(settings.method.name),
        settings.backbone.name: find_backbone(settings.backbone.name),
        settings.image.encoder: find_encoder(settings.image.encoder),
    }
    return {name: code for name, kind in kinds.items() if (code := code_of(kind))}


def columns_of(settings: PretrainSettings) -> tuple[str, ...]:
    """What the loader delivers for a run besides clouds and the pairs' points and pixels."""
    needs, stored = needs_of(settings), settings.image.stored is not None
    of_stored = ("image_mirrored", "image_crop") if settings.augment.crop else ("image_mirrored",)
    return (*needs.columns, *(() if not needs.encoder else of_stored if stored else ("image",)))


def open_stream(settings: PretrainSettings, share: Share, world: int) -> FrameStream:
    """The training frames.

    Raises:
        OlivineError: no shards given, or fewer of them than processes.
    """
    data = settings.data
    if not data.shards:
        raise OlivineError("no shards given", where="data.shards", remedy="pass the folder that build-pairs wrote")
    what = _stream_settings(settings, settings.run.batch, (share.first, share.last))
    source = data.shards if isinstance(data.shards, str) else ShardMixture(weights_of(data.shards))
    stream = FrameStream(source, what, workers=data.workers, prefetch=data.prefetch)
    if world > len(stream.shards.shard_ranges):
        stream.close()
        raise OlivineError(
            f"{world} processes for {len(stream.shards.shard_ranges)} shards",
            where=stream.path,
            remedy="use fewer processes",
        )
    return stream


def _stream_settings(settings: PretrainSettings, batch: int, part: tuple[int, int]) -> StreamSettings:
    needs = needs_of(settings)
    return StreamSettings(
        settings.seed,
        batch,
        part,
        (settings.image.height, settings.image.width),
        settings.augment,
        columns=columns_of(settings),
        labels=settings.data.labels,
        scans=tuple(n for n in needs.scans if n),
        scan_columns=needs.scan_columns,
    )


def open_validation(
    settings: PretrainSettings, shards: Shards, rank: int, world: int
) -> Iterator[tuple[str, FrameStream, int]]:
    """Each set of held-out frames as stored: its name where training is over several sets, this process's part of each batch
    of ``world`` groups, and the number of steps.

    Args:
        shards: trained on; their classes are those of the held-out ones, which stay as they were first ``seen`` with them.
    """
    group = settings.run.group
    assert settings.data.validation is not None
    what = _stream_settings(settings, group * world, (group * rank, group * (rank + 1)))
    what = replace(what, augment=without_augmentation(settings.augment), shuffle=False)
    for path, name in held_out_sets(settings.data.validation, shards):
        stream = FrameStream(path, what)
        check_unchanged(stream.path, stream.shards.digest, shards.seen)
        frames = min(stream.count, settings.run.validate_frames)
        yield name, stream, max(1, frames // (group * world))


def open_text(settings: PretrainSettings, shards: Shards) -> TextTable | None:
    """The text table of the regions, where the run's method needs it.

    Raises:
        OlivineError: there is none, or the held-out shards have another one.
    """
    if not needs_of(settings).text:
        return None
    text = shards.text
    if isinstance(settings.data.validation, str):
        other = open_shards(settings.data.validation).text
        if other.digest != text.digest:
            raise OlivineError(
                f"regions with the text table of {other.model} (digest {other.digest[:12]}), the training shards have that "
                f"of {text.model} (digest {text.digest[:12]})",
                where=settings.data.validation,
                remedy="build both from one label folder",
            )
    return text


def classes_of_pairs(shards: Shards, settings: PretrainSettings) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes of the pairs' labels, "none" first, and the pairs of each over the data set, int64 [C].

    With ``data.labels=truth`` the classes are the points' and their counts unknown: zeros (the draws then take the
    frequency of the group at hand). ``true prompts`` are counted as the weak labels are.

    Raises:
        OlivineError: ground truth asked for where the shards hold none.
    """
    if settings.data.labels != "weak" and not shards.point_classes:
        raise OlivineError("the shards hold no ground truth", where=shards.path, remedy="use --set data.labels=weak")
    if settings.data.labels == "truth":
        return ("none", *shards.point_classes), torch.zeros(len(shards.point_classes) + 1, dtype=torch.int64)
    prompts = settings.data.labels == "true prompts" and not isinstance(shards, ShardMixture)
    if prompts and not shards.prompt_of(shards.point_classes).any():  # type: ignore[union-attr]
        raise OlivineError("no prompt is a class of the points", where=shards.path, remedy="use data.labels=truth")
    return ("none", *shards.classes), torch.as_tensor(shards.class_count, dtype=torch.int64)


def build_encoder(settings: PretrainSettings, device: torch.device) -> ImageEncoder:
    """The frozen image encoder on its device."""
    image = settings.image
    name = image.dtype if image.dtype != "auto" else "bfloat16" if gains_by_bfloat16(device) else "float32"
    dtype, compiled = getattr(torch, name), image.compile
    encoder = ImageEncoder(image.encoder, image.weights, dtype=dtype, compiled=compiled).to(device)
    encoder.check_size(image.height, image.width)
    return encoder


def backbone_arguments(settings: PretrainSettings) -> dict[str, Any]:
    """Arguments of ``build_backbone`` for this run, as a checkpoint keeps them."""
    return {
        "name": settings.backbone.name,
        "in_channels": settings.voxels.feature_channels,
        **settings.backbone.options,
    }


def seeded_backbone(settings: PretrainSettings, seed: int | torch.Generator) -> Backbone:
    """The 3D network with weights from a seed."""
    return build_backbone(**backbone_arguments(settings), seed=seed)


def build_model(
    settings: PretrainSettings,
    pixel_channels: int,
    labels: tuple[str, ...],
    steps: int,
    text: TextTable | None = None,
) -> Distiller:
    """The network and the method to train, initialised from the run's seed.

    Args:
        pixel_channels: of the image encoder; 0 without one.
        labels: see :func:`classes_of_pairs`.
        steps: of the run.
        text: of the shards' regions; None where the method needs none.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    backbone = seeded_backbone(settings, generator)
    context = Context(
        lambda out_channels: backbone.new_head(out_channels, generator),
        pixel_channels,
        labels,
        steps,
        settings.voxels.size_m,
        text,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method = find_method(settings.method.name)(settings.method, context)
    problem = engine_problem(settings.backbone.engine)
    if problem:
        raise OlivineError(problem)
    return Distiller(
        backbone, method, settings.voxels, settings.run.group, settings.seed, engine=settings.backbone.engine
    )
