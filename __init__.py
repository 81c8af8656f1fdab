"""OLIVINE: image-to-LiDAR contrastive distillation with labels from visual foundation models.

What most programs need of it, imported when first asked for:

    network = olivine.load("runs/cpu")             # a run's folder or a checkpoint's file
    features = network.features(points)            # [N, 4] → [N, C], NumPy or torch
    shards = olivine.open_shards("data/pairs/nuscenes/train")
    frames = olivine.open_dataset("nuscenes", "data/nuscenes").frames("val")
    loss = olivine.info_nce(point, pixel, temperature=0.07)

docs/api.md has an example of each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .downstream.embed import Embedder

__version__ = "0.1.0"

_NAMES = {
    "open_dataset": "readers",
    "project_points": "readers.project",
    "open_shards": "pairs.shards",
    "distance_density": "pairs.density",
    "info_nce": "train.objectives",
    "weakly_supervised_contrast": "train.objectives",
    "segment_mean": "train.objectives",
    "tolerant_contrast": "train.objectives",
    "segment_contrast": "train.objectives",
    "soft_target_cross_entropy": "train.objectives",
    "sampling_probability": "train.sampling",
    "SparseTensor": "train.sparse",
    "pretrain": "train.loop",
    "load_settings": "train.settings",
}
__all__ = ["__version__", "load", *_NAMES]


def load(path: str, device: str = "cpu", intensity_offset: float = 0.0) -> Embedder:
    """The network of a run's folder or of a checkpoint, for clouds of one's own.

    Args:
        path: for example ``runs/cpu``, ``runs/cpu/finetune-1`` or an imported ``.pt`` file.
        device: of the network.
        intensity_offset: added to the points' raw intensity, as the shards that it was trained on say
            (``open_shards(…).intensity_offset``): 0 on nuScenes, 1 on KITTI.
            A network that was trained on several data sets does without: it takes intensities by the cloud's mean.

    Raises:
        OlivineError: there is no such checkpoint, or it is damaged.
    """
    from .downstream.embed import Embedder

    return Embedder(path, device, intensity_offset)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'olivine' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
