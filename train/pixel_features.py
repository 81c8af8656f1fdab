"""Where the frozen encoder's features at the pairs come from: the encoder itself, or a folder in which they are kept.

Without augmentation of the images the encoder says the same about a pair in every epoch of every run. A study, which
trains dozens of runs on the same frames, asks it once: :func:`store_pixel_features` writes the features of all pairs,
one file for each frame, and :class:`StoredFeatures` reads those that a step draws.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common import (
    OlivineError,
    PathLike,
    atomic_file,
    demand,
    digest,
    read_json,
    remove_leftovers,
    track,
    write_json,
)
from ..pairs.shards import ShardSet
from .augment import BASE, augment_images, generator_of, without_augmentation
from .backbone import unit_rows
from .batch import Batch
from .build import build_encoder
from .encoder import ImageEncoder
from .feature_map import FeatureGrid, features_at_pixels, sample_features
from .settings import PretrainSettings


class PixelFeatures(Protocol):
    """A source of frozen features at the pairs of a batch.

    Attributes:
        channels: E.
        identity: what decides the features' values, as plain values.
    """

    channels: int
    identity: dict[str, str]

    def __call__(self, batch: Batch, pairs: Tensor) -> Tensor:
        """Features float32 [M, E] of chosen pairs, int64 [M], rows of the batch's pairs."""

    def mean_by_segment(
        self, batch: Batch, images: slice, number: Tensor, count: int, head: nn.Module, encoder: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean unit embedding of each segment over all its pixels, [S, p], not normalised again.

        Args:
            images: rows of the batch's images.
            number: int64 [I, H, W], each pixel's segment from 0 over all these images, −1 = none.
            count: S.
            head: a linear layer E → p.
            encoder: the mean of the encoder's own features as well.

        Returns:
            the means; and [S, E], the mean feature before the head over the map's cells whose pixel (nearest, rounded
            down) is the segment's, 0 for a segment without one; without ``encoder`` [0, E].
        """


class EncodedFeatures:
    """The encoder run on the batch's images.

    Args:
        encoder: frozen.
        grid: see :func:`~olivine.train.feature_map.sample_features`.
        at_once: see :func:`~olivine.train.feature_map.features_at_pixels`.
    """

    def __init__(self, encoder: ImageEncoder, grid: FeatureGrid, at_once: int = 0) -> None:
        self._encoder, self._grid, self._at_once = encoder, grid, at_once
        self.channels = encoder.channels
        self.identity = {"kind": encoder.kind, "digest": encoder.digest}

    def __call__(self, batch: Batch, pairs: Tensor) -> Tensor:
        """See :class:`PixelFeatures`."""
        return features_at_pixels(
            self._encoder,
            batch.image,
            batch.pair_camera.index_select(0, pairs),
            batch.pair_uv.index_select(0, pairs),
            self._grid,
            self._at_once,
        )

    def mean_by_segment(
        self, batch: Batch, images: slice, number: Tensor, count: int, head: nn.Module, encoder: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PixelFeatures`. Image by image: the full-size map of one alone is kept, and made again for the gradient."""
        pixels = torch.bincount(number[number >= 0], minlength=count)
        sums = torch.zeros((), device=number.device)
        features = torch.zeros(count if encoder else 0, self.channels, device=number.device)
        cells = torch.zeros(len(features), 1, device=number.device)
        for i, segment in enumerate(number):
            feature_map = self._encoder(batch.image[images][i : i + 1])[0].permute(1, 2, 0)
            embedding = head(feature_map.to(next(head.parameters()).dtype))
            sums = sums + checkpoint(_sums_by_segment, embedding, segment, count, self._grid, use_reentrant=False)
            if encoder:
                row = _at_cells(segment, feature_map.shape[:2]).flatten()
                kept = torch.nonzero(row >= 0)[:, 0]
                value = feature_map.flatten(0, 1).index_select(0, kept)
                features = features.to(torch.promote_types(features.dtype, value.dtype))
                features.index_add_(0, row[kept], value.to(features.dtype))
                cells += torch.bincount(row[kept], minlength=count)[:, None]
        return sums / (pixels[:, None].to(sums.dtype) + 1e-6), features / (cells + 1e-6)


def _at_cells(segment: Tensor, size: Sequence[int]) -> Tensor:
    """The segment at each cell of a smaller map, by nearest as the public code resizes: [H, W] → [h, w]."""
    rows, columns = (
        torch.arange(n, device=segment.device) * whole // n for n, whole in zip(size, segment.shape, strict=True)
    )
    return segment.index_select(0, rows).index_select(1, columns)


def _sums_by_segment(embedding: Tensor, segment: Tensor, count: int, grid: FeatureGrid) -> Tensor:
    """Sum of the unit embeddings of each segment's pixels: [h, w, p], int64 [H, W] → [S, p]."""
    height, width = segment.shape
    v, u = torch.meshgrid(*(torch.arange(n, device=segment.device) for n in (height, width)), indexing="ij")
    uv = torch.stack([u.flatten(), v.flatten()], 1)
    kept = torch.nonzero(segment.flatten() >= 0)[:, 0]
    feature_map = embedding.permute(2, 0, 1)[None]
    value = sample_features(feature_map, torch.zeros_like(kept), uv[kept], (height, width), grid)
    row = segment.flatten()[kept]
    return embedding.new_zeros(count, value.shape[1]).index_add(0, row, unit_rows(value))


class StoredFeatures:
    """Features that :func:`store_pixel_features` wrote, read as they are asked for.

    Args:
        folder: of the features.
        settings: of the run; its images must not be augmented.
        shards: the run's frames.

    Raises:
        OlivineError: the run augments its images, or the folder holds other features or not all of them.
    """

    def __init__(self, folder: PathLike, settings: PretrainSettings, shards: ShardSet) -> None:
        self._folder, remedy = Path(folder), "remove the folder and store them again: olivine study"
        if settings.augment.crop or settings.augment.flip_image:
            raise OlivineError(
                "stored pixel features are of whole images, and the run augments its images",
                where="image.stored",
                remedy="set augment.crop=false and augment.flip_image=0",
            )
        if settings.data.validation is not None:
            raise OlivineError(
                "stored pixel features are of the training frames",
                where="image.stored",
                remedy="leave out data.validation",
            )
        encoder = build_encoder(settings, torch.device("cpu"))
        path = self._folder / "features.json"
        found = demand(read_json(path, "store them first: olivine study"), {"dtype": str}, path, remedy)
        wanted = _identity(settings, shards, encoder)
        different = [key for key, value in wanted.items() if found.get(key) != value]
        if different:
            key = different[0]
            raise OlivineError(
                f"{key} is {found.get(key)} there and {wanted[key]} here", where=self._folder, remedy=remedy
            )
        missing = next((i for i in range(len(shards)) if not _is_stored(self._folder, i)), None)
        if missing is not None:
            raise OlivineError(f"holds no features of frame {missing}", where=self._folder, remedy=remedy)
        self.channels = encoder.channels
        self.identity = {"kind": encoder.kind, "digest": encoder.digest, "stored": found["dtype"]}

    def __call__(self, batch: Batch, pairs: Tensor) -> Tensor:
        """See :class:`PixelFeatures`."""
        frame = batch.pair_frame.index_select(0, pairs).cpu()
        row = batch.pair_row.index_select(0, pairs).cpu()
        features = torch.empty(len(pairs), self.channels)
        for number, stored in enumerate(batch.frames):
            members = torch.nonzero(frame == number)[:, 0]
            if len(members):
                found = read_features(self._folder, stored, row.index_select(0, members).numpy())
                if found.shape[1] != self.channels:
                    raise _damaged(_file(self._folder, stored), f"has {found.shape[1]} channels, not {self.channels}")
                features.index_copy_(0, members, torch.from_numpy(found))
        return features.to(pairs.device)

    def mean_by_segment(
        self, batch: Batch, images: slice, number: Tensor, count: int, head: nn.Module, encoder: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PixelFeatures`.

        Raises:
            OlivineError: always; features are stored at pairs only.
        """
        raise OlivineError(
            "stored features are at pairs, and this method takes the mean over all pixels of a segment",
            where="image.stored",
            remedy="leave it out",
        )


def read_features(folder: Path, frame: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Stored features at some pairs of a frame, float32 [len(rows), E], each row compared with its CRC-32.

    Raises:
        OlivineError: a file is missing or damaged.
    """
    path = _file(folder, frame)
    kept, checksum = (_load(file) for file in (path, _checksum_file(path)))
    if kept.ndim != 2 or kept.dtype not in (np.float16, np.float32) or checksum.dtype != np.uint32:
        raise _damaged(path, "holds no features")
    if checksum.shape != kept.shape[:1] or (len(rows) and not 0 <= rows.min() <= rows.max() < len(kept)):
        raise _damaged(path, f"holds {len(kept)} pairs, which are not the frame's")
    found = np.ascontiguousarray(kept[rows])
    if not np.array_equal(_checksums(found), checksum[rows]):
        raise _damaged(path, "is damaged: features are not what was written")
    return found.astype(np.float32)


def _load(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError, MemoryError, BadZipFile) as error:
        raise _damaged(path, f"cannot be read ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(found, np.ndarray):
        raise _damaged(path, "holds no features")
    return found


def _damaged(path: Path, what: str) -> OlivineError:
    return OlivineError(what, where=path, remedy="delete it and run olivine study again; it makes what is missing")


def _checksums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """The CRC-32 of each row's bytes, uint32 [M]."""
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(rows)], np.uint32)


def open_pixel_features(settings: PretrainSettings, shards: ShardSet, device: torch.device) -> PixelFeatures:
    """The source that the settings name: ``image.stored``, or the encoder.

    Raises:
        OlivineError: weights or stored features that are missing or do not fit the run.
    """
    if settings.image.stored is not None:
        return StoredFeatures(settings.image.stored, settings, shards)
    image = settings.image
    return EncodedFeatures(build_encoder(settings, device), image.feature_grid, image.at_once)


def store_pixel_features(
    shards: ShardSet, settings: PretrainSettings, encoder: ImageEncoder, parent: PathLike, dtype: str = "float16"
) -> Path:
    """Write the encoder's features at every pair of every frame, images whole; frames that are there are kept.

    Args:
        shards: the frames.
        settings: of a run: size of the images, feature grid, rounding.
        encoder: frozen, on its device.
        parent: the features go into a folder in there, named by what decides them.
        dtype: ``float16`` or ``float32``.

    Returns:
        the folder: ``features.json``, ``frame-NNNNNN.npy``, [M, E], and ``frame-NNNNNN.crc.npy``, the CRC-32 of each row.
    """
    identity = {**_identity(settings, shards, encoder), "dtype": dtype}
    folder = Path(parent) / digest(identity)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    write_json(folder / "features.json", identity)
    missing = [i for i in range(len(shards)) if not _is_stored(folder, i)]
    device = next(encoder.buffers()).device
    for index in track(missing, "pixel features", unit="frames") if missing else ():
        record = shards.read(index, (*BASE, "image"))
        images = augment_images(
            record,
            np.ones(len(record.pair_uv), bool),
            (settings.image.height, settings.image.width),
            without_augmentation(settings.augment),
            generator_of(0, 0, index),
        )
        assert images.image is not None
        features = features_at_pixels(
            encoder,
            torch.from_numpy(images.image).to(device),
            torch.from_numpy(record.pair_camera.astype(np.int64)).to(device),
            torch.from_numpy(images.uv).to(device),
            settings.image.feature_grid,
            settings.image.at_once,
        )
        kept = features.cpu().numpy().astype(dtype)
        path = _file(folder, index)
        for file, values in ((_checksum_file(path), _checksums(kept)), (path, kept)):
            buffer = io.BytesIO()  # NumPy's own writer turns a full disk into an error that does not say so
            np.save(buffer, values)
            with atomic_file(file) as handle:
                handle.write(buffer.getbuffer())
    return folder


def _identity(settings: PretrainSettings, shards: ShardSet, encoder: ImageEncoder) -> dict[str, Any]:
    """What decides stored features, but for their precision."""
    image = settings.image
    return {
        "shards": shards.digest,
        "encoder": encoder.kind,
        "weights": encoder.digest,
        "pictures": [image.height, image.width],
        "feature_grid": image.feature_grid,
        "round_pixels": settings.augment.round_pixels,
    }


def _is_stored(folder: Path, frame: int) -> bool:
    path = _file(folder, frame)
    return path.is_file() and _checksum_file(path).is_file()


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".crc.npy")


def _file(folder: Path, frame: int) -> Path:
    return folder / f"frame-{frame:06d}.npy"
