"""Where the frozen encoder's features come from: the encoder itself, or a folder in which its maps are kept.

The encoder says the same about a whole image in every epoch of every run: :mod:`.encoders._store` asks it once
(``olivine features``), and :mod:`.encoders._stored` reads the maps of the images that a step draws pairs of. A mirrored
image has a map of its own: an encoder's map of it is not the mirrored map. A crop has none: its pixels are looked up in
the whole image's map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common import OlivineError
from ..pairs.shards import ShardSet, open_shards
from .backbone import unit_rows
from .batch import Batch
from .build import build_encoder
from .encoder import ImageEncoder
from .feature_map import FeatureGrid, features_at_pixels, sample_features
from .mixture import Shards
from .settings import PretrainSettings
from .transfer import to_device

_AT_ONCE = 32  # images that go through the encoder together where all maps are made ahead


class PixelFeatures:
    """A source of frozen features of a batch's images; a subclass gives the maps.

    Args:
        channels: E.
        identity: what decides the features' values, as plain values.
        grid: see :func:`~olivine.train.feature_map.sample_features`.
        at_once: maps that are in memory together; see :func:`~olivine.train.feature_map.features_at_pixels`.
    """

    def __init__(self, channels: int, identity: dict[str, str], grid: FeatureGrid, at_once: int = 0) -> None:
        self.channels, self.identity, self._grid, self._at_once = channels, identity, grid, at_once

    def maps(self, batch: Batch, images: Tensor) -> Tensor:
        """The maps of some of the batch's images, rows int64 [I'] on the CPU → [I', E, h, w]."""
        raise NotImplementedError

    def image_size(self, batch: Batch) -> tuple[int, int]:
        """(height, width) of the images that the pairs' pixels lie in, and that the maps are of."""
        raise NotImplementedError

    def of(self, shards: ShardSet) -> PixelFeatures:
        """The source for the frames of other shards."""
        return self

    def ahead(self, batch: Batch) -> PixelFeatures:
        """The source of a batch that is on the device: on a GPU with all its maps made now, unless ``at_once`` is set.

        There every image has its map, drawn or not, so that the encoder always has the same sizes.
        """
        if self._at_once or not batch.pair_frame.is_cuda:
            return self
        images = torch.arange(sum(batch.image_count))
        return KnownMaps(self, batch, torch.cat([self.maps(batch, some) for some in images.split(_AT_ONCE)]))

    def __call__(self, batch: Batch, pairs: Tensor) -> Tensor:
        """Features float32 [M, E] of chosen pairs, int64 [M], rows of the batch's pairs; on the CPU, or they are waited for."""
        chosen, size = pairs.cpu(), self.image_size(batch)
        camera, uv = (column.index_select(0, chosen) for column in (batch.host.pair_camera, batch.host.pair_uv))
        if "image_crop" in batch.columns:
            uv = in_whole_image(uv, batch.host.image_crop.index_select(0, camera), size)
        uv = to_device(uv, batch.pair_frame.device)
        return features_at_pixels(
            lambda images: self.maps(batch, images), self.channels, size, camera, uv, self._grid, self._at_once
        )

    def mean_by_segment(
        self, batch: Batch, images: slice, number: Tensor, count: int, head: nn.Module, encoder: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean unit embedding of each segment over all its pixels, [S, p], not normalised again.

        Image by image: the full-size map of one alone is kept, and made again for the gradient.

        Args:
            images: rows of the batch's images.
            number: int64 [I, H, W] on the CPU, each pixel's segment from 0 over all these images, −1 = none.
            count: S.
            head: a linear layer E → p.
            encoder: the mean of the encoder's own features as well.

        Returns:
            the means; [S, E], the mean feature before the head over the map's cells whose pixel (nearest, rounded
            down) is the segment's, 0 for a segment without one; and on the CPU how many those are, [S]. The last two
            are empty without ``encoder``.
        """
        device, size = batch.pair_frame.device, (number.shape[1], number.shape[2])
        sums = torch.zeros((), device=device)
        features = torch.zeros(count if encoder else 0, self.channels, device=device)
        pixels, cells = (torch.zeros(n, dtype=torch.int64) for n in (count, len(features)))
        for i, segment in enumerate(number):
            row_of_image = torch.tensor([images.start + i])
            crop = batch.host.image_crop[images.start + i] if "image_crop" in batch.columns else None
            feature_map = self.maps(batch, row_of_image)[0].permute(1, 2, 0)
            embedding = head(feature_map.to(next(head.parameters()).dtype))
            row, pixel = _held(segment)
            pixels += torch.bincount(row, minlength=count)
            uv = torch.stack([pixel % size[1], pixel // size[1]], 1)
            uv = uv if crop is None else in_whole_image(uv, crop[None], size)
            where = (to_device(row, device), to_device(uv, device), size)
            sums = sums + checkpoint(_sums_by_segment, embedding, *where, count, self._grid, use_reentrant=False)
            if encoder:
                row, cell = _held(_at_cells(segment, feature_map.shape[:2], crop))
                value = feature_map.flatten(0, 1).index_select(0, to_device(cell, device))
                features = features.to(torch.promote_types(features.dtype, value.dtype))
                features.index_add_(0, to_device(row, device), value.to(features.dtype))
                cells += torch.bincount(row, minlength=count)
        mean = sums / (to_device(pixels[:, None], device).to(sums.dtype) + 1e-6)
        if encoder:
            features = features / (to_device(cells[:, None], device).to(features.dtype) + 1e-6)
        return mean, features, cells


def in_whole_image(uv: Tensor, crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels [M, 2] of crops that were resized to ``size`` = (height, width), in the whole images of that size.

    Args:
        crop: of each pixel's image, float64 [M or 1, 4]: left, top, width and height as fractions of the whole image.
    """
    return ((uv + 0.5) * crop[:, 2:] + crop[:, :2] * crop.new_tensor(size).flip(0) - 0.5).float()


def _at_cells(segment: Tensor, size: Sequence[int], crop: Tensor | None) -> Tensor:
    """The segment at each cell of an image's smaller map, by nearest as the public code resizes: [H, W] → [h, w].

    With ``crop`` the segments are of a crop and the map of the whole image, whose other cells have none.
    """
    rows, columns = (
        torch.arange(n, device=segment.device) * whole // n for n, whole in zip(size, segment.shape, strict=True)
    )
    if crop is not None:
        height, width = segment.shape
        rows = ((rows + 0.5 - crop[1] * height) / crop[3]).floor().long()
        columns = ((columns + 0.5 - crop[0] * width) / crop[2]).floor().long()
        segment = nn.functional.pad(segment, (1, 1, 1, 1), value=-1)  # what lies outside
        rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
    return segment.index_select(0, rows).index_select(1, columns)


def _held(number: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers from 0 of a map, and where they stand in it, both int64 [P]; −1 is left out."""
    number = number.flatten()
    place = torch.nonzero(number >= 0)[:, 0]
    return number[place], place


def _sums_by_segment(
    embedding: Tensor, row: Tensor, uv: Tensor, size: tuple[int, int], count: int, grid: FeatureGrid
) -> Tensor:
    """Sum of the unit embeddings at each segment's pixels ``uv``: [h, w, p], int64 [P], [P, 2] → [S, p]."""
    value = sample_features(embedding.permute(2, 0, 1)[None], torch.zeros_like(row), uv, size, grid)
    return embedding.new_zeros(count, value.shape[1]).index_add(0, row, unit_rows(value))


class EncodedFeatures(PixelFeatures):
    """The encoder run on the batch's images."""

    def __init__(self, encoder: ImageEncoder, grid: FeatureGrid, at_once: int = 0) -> None:
        super().__init__(encoder.channels, {"kind": encoder.kind, "digest": encoder.digest}, grid, at_once)
        self._encoder = encoder

    def maps(self, batch: Batch, images: Tensor) -> Tensor:
        """See :class:`PixelFeatures`."""
        found: Tensor = self._encoder(batch.image.index_select(0, to_device(images, batch.image.device)))
        return found

    def image_size(self, batch: Batch) -> tuple[int, int]:
        """See :class:`PixelFeatures`."""
        return batch.image.shape[1], batch.image.shape[2]


class KnownMaps(PixelFeatures):
    """The maps of all images of one batch, [I, E, h, w], which another source gave."""

    def __init__(self, source: PixelFeatures, batch: Batch, maps: Tensor) -> None:
        super().__init__(source.channels, source.identity, source._grid)
        self._size, self._maps = source.image_size(batch), maps

    def maps(self, batch: Batch, images: Tensor) -> Tensor:
        """See :class:`PixelFeatures`."""
        return self._maps.index_select(0, to_device(images, self._maps.device))

    def image_size(self, batch: Batch) -> tuple[int, int]:
        """See :class:`PixelFeatures`."""
        return self._size


def open_pixel_features(settings: PretrainSettings, shards: Shards, device: torch.device) -> PixelFeatures:
    """The source that the settings name: ``image.stored``, or the encoder.

    Raises:
        OlivineError: weights or stored maps that are missing or do not fit the run, of the held-out frames too.
    """
    image = settings.image
    if image.stored is None:
        return EncodedFeatures(build_encoder(settings, device), image.feature_grid, image.at_once)
    if not isinstance(shards, ShardSet):
        raise OlivineError(
            "stored feature maps are of one set of shards, and the run is over several",
            where="image.stored",
            remedy="leave it out, so that the encoder runs, or train on one set",
        )
    from .encoders._stored import StoredFeatures

    stored = StoredFeatures(image.stored, settings, shards)
    if isinstance(settings.data.validation, str):
        stored.of(open_shards(settings.data.validation))
    return stored
