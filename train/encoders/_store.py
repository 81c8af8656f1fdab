"""An encoder's maps of every image of a shard set, made once and written beside the shards (``olivine features``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...common import OlivineError, PathLike, progress, remove_leftovers
from ...common.plugins import code_of
from ...pairs.feature_maps import DTYPES, FeatureMaps
from ...pairs.shards import ShardSet, open_shards
from ..augment import BASE, augment_images, generator_of, without_augmentation
from ..build import build_encoder
from ..devices import make_fabric, torch_state
from ..encoder import ImageEncoder, find_encoder
from ..settings import PretrainSettings
from ._stored import computed_in


@dataclass(frozen=True)
class StoreSummary:
    """What :func:`store_all_maps` came to.

    Attributes:
        folders: of the maps, one for each set of shards.
        frames: whose maps are there now; ``frames_made`` by this call.
        bytes_per_frame: of the files.
        seconds, frames_per_second: of this call.
    """

    folders: list[Path]
    frames: int
    frames_made: int
    bytes_per_frame: int
    seconds: float
    frames_per_second: float


def store_all_maps(
    shards: Sequence[PathLike],
    settings: PretrainSettings,
    parent: PathLike,
    dtype: str = "float16",
    *,
    mirrored: bool = False,
    part: tuple[int, int] = (0, 1),
) -> StoreSummary:
    """:func:`store_maps` of several sets of shards, with the encoder and on the device that the settings name."""
    device = make_fabric(replace(settings, run=replace(settings.run, devices="1", nodes=1))).device
    encoder, begun = build_encoder(settings, device), time.monotonic()
    folders, frames, made, size = [], 0, 0, 0
    with torch_state(settings, device):
        for one in map(open_shards, shards):
            maps, new = store_maps(one, settings, encoder, parent, dtype, mirrored=mirrored, part=part)
            there = [n for n in range(len(one.shard_ranges)) if maps.has(n)]
            folders.append(maps.folder)
            frames += sum(len(one.shard_ranges[n]) for n in there)
            made, size = made + new, size + sum(maps.size_of(n) for n in there)
    seconds = time.monotonic() - begun
    return StoreSummary(folders, frames, made, size // max(1, frames), seconds, made / seconds)


def store_maps(
    shards: ShardSet,
    settings: PretrainSettings,
    encoder: ImageEncoder,
    parent: PathLike,
    dtype: str = "float16",
    *,
    mirrored: bool = False,
    part: tuple[int, int] = (0, 1),
) -> tuple[FeatureMaps, int]:
    """Write the encoder's maps of every image, whole; shards whose maps are there are kept.

    Any number of processes may do parts of it at once, and a process that was stopped goes on at the shard it was in.

    Args:
        shards: the frames.
        settings: of a run: size of the images.
        encoder: frozen, on its device.
        parent: the maps go into a folder in there, named by what decides them.
        dtype: ``float16``, ``float32``, or ``int8`` with a scale for each map and channel.
        mirrored: the maps of mirrored images too.
        part: (i, n): only the i-th of n parts of the shards.

    Returns:
        the maps, and the number of frames whose maps were made.

    Raises:
        OlivineError: an unknown type, shards without images, or a full disk.
    """
    if dtype not in DTYPES:
        raise OlivineError(f"no type {dtype!r} of stored maps", where="dtype", remedy=f"use {', '.join(DTYPES)}")
    if not shards.has("image"):
        raise OlivineError(
            "the shards hold no images", where=shards.path, remedy="build them with: build-pairs --images"
        )
    image, stride = settings.image, find_encoder(encoder.kind).stride
    encoder.check_size(image.height, image.width)
    identity = {
        "image_digest": shards.image_digest,
        "encoder": encoder.kind,
        "weights": encoder.digest,
        "images": [image.height, image.width],
        "map": [-(-image.height // stride), -(-image.width // stride), encoder.channels],
        "cameras": len(shards.cameras),
        "dtype": dtype,
        "mirrored": mirrored,
        **computed_in(encoder.dtype),
        **({"code": code} if (code := code_of(find_encoder(encoder.kind))) else {}),
    }
    maps = FeatureMaps.create(parent, identity)
    remove_leftovers(maps.folder)
    missing = [n for n in range(len(shards.shard_ranges)) if n % part[1] == part[0] and not maps.has(n)]
    count = sum(len(shards.shard_ranges[n]) for n in missing)
    with progress("feature maps", count, "frames") as advance:
        for number in missing:
            frames = shards.shard_ranges[number]
            maps.write(number, _maps_of(shards, frames, settings, encoder, mirrored, advance))
    return maps, count


def _maps_of(
    shards: ShardSet,
    frames: range,
    settings: PretrainSettings,
    encoder: ImageEncoder,
    mirrored: bool,
    advance: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """The maps of some frames, float32 [cameras, 1 or 2, h, w, E] each."""
    device, at_once = next(encoder.buffers()).device, settings.image.at_once or 4
    size, plain = (settings.image.height, settings.image.width), without_augmentation(settings.augment)
    for frame in frames:
        record = shards.read(frame, (*BASE, "image"))
        kept, generator = np.ones(len(record.pair_uv), bool), generator_of(0, 0, frame)
        variants = []
        for flip in (0.0, 1.0)[: 1 + mirrored]:
            made = augment_images(record, kept, size, replace(plain, flip_image=flip), generator).image
            images = torch.from_numpy(made).to(device)
            found = torch.cat([encoder(some) for some in images.split(at_once)])
            variants.append(found.permute(0, 2, 3, 1).float().cpu().numpy())
        yield np.stack(variants, 1)
        advance(1)
