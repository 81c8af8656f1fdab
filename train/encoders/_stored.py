"""An encoder's maps that ``olivine features`` stored, as a run's source of pixel features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common import OlivineError, PathLike, sha256_file
from ...common.plugins import code_of
from ...pairs.feature_maps import find_maps
from ...pairs.shards import ShardSet
from ..batch import Batch
from ..encoder import find_encoder, weights_file
from ..pixel_features import PixelFeatures
from ..settings import PretrainSettings
from ..transfer import to_device


def computed_in(dtype: torch.dtype) -> dict[str, str]:
    """What stored maps say of the type that their encoder computed in, where that is not float32."""
    return {} if dtype == torch.float32 else {"computed": str(dtype).removeprefix("torch.")}


class StoredFeatures(PixelFeatures):
    """Maps that ``olivine features`` wrote, read as they are asked for; the encoder's weights are not needed.

    Where the run crops its images, pairs and segments are those of the crops, and their features are the whole image's at
    the same places: the encoder has not seen the crop at its own size, and has seen what is around it.

    Args:
        folder: of the maps, or the folder that holds it.
        settings: of the run.
        shards: the run's frames.

    Raises:
        OlivineError: the run mirrors its images and no mirrored maps are stored; or the folder holds other maps or not all of
            them.
    """

    def __init__(self, folder: PathLike, settings: PretrainSettings, shards: ShardSet) -> None:
        self._folder, self._settings, self._shards, image = folder, settings, shards, settings.image
        wanted: dict[str, Any] = {
            "image_digest": shards.image_digest,
            "encoder": image.encoder,
            "images": [image.height, image.width],
        }
        file = None if image.weights is None else weights_file(find_encoder(image.encoder), image.weights)
        if file is not None:
            wanted["weights"] = "random" if image.weights == "random" else sha256_file(file)
        if image.dtype != "auto":
            wanted["computed"] = computed_in(getattr(torch, image.dtype)).get("computed")
        if code := code_of(find_encoder(image.encoder)):
            wanted["code"] = code
        if settings.augment.flip_image:
            wanted["mirrored"] = True
        self._maps = find_maps(folder, wanted)
        missing = next((n for n in range(len(shards.shard_ranges)) if not self._maps.has(n)), None)
        if missing is not None:
            raise OlivineError(
                f"holds no maps of shard {missing}", where=self._maps.folder, remedy="run olivine features again"
            )
        found = self._maps.identity
        identity = {"kind": found["encoder"], "digest": found["weights"], "stored": found["dtype"]}
        super().__init__(self._maps.channels, identity, image.feature_grid, image.at_once)

    def of(self, shards: ShardSet) -> StoredFeatures:
        """See :class:`PixelFeatures`."""
        return StoredFeatures(self._folder, self._settings, shards)

    def maps(self, batch: Batch, images: Tensor) -> Tensor:
        """See :class:`PixelFeatures`."""
        edges = np.cumsum((0, *batch.image_count))
        found = []
        for row, mirrored in zip(images.tolist(), batch.host.image_mirrored.index_select(0, images).tolist()):
            number = int(np.searchsorted(edges, row, "right")) - 1
            frame = batch.frames[number]
            shard = next(n for n, frames in enumerate(self._shards.shard_ranges) if frame in frames)
            place = frame - self._shards.shard_ranges[shard].start
            found.append(torch.from_numpy(self._maps.read(shard, place, int(row - edges[number]), bool(mirrored))))
        return to_device(torch.stack(found), batch.pair_frame.device).permute(0, 3, 1, 2)

    def image_size(self, batch: Batch) -> tuple[int, int]:
        """See :class:`PixelFeatures`."""
        return self._settings.image.height, self._settings.image.width
