"""Frozen image encoders, found by name: ``train/encoders/<name>.py``, or a dotted path outside the package.

A file holds one subclass of :class:`Encoder`, which brings its network, how its weights are read, the sizes that it
accepts, its stride and its dimensions. :class:`~olivine.train.image_encoder.ImageEncoder` normalises images and freezes
what is found here. No file imports a heavy package but torch before the network is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ...common import OlivineError
from ...common.plugins import find, names_in
from ..tensors import read_tensors

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Encoder", "encoder_names", "find_encoder"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """What every image encoder is: normalised RGB float [I, 3, H, W] → features [I, E, ceil(H/stride), ceil(W/stride)].

    A subclass is built without arguments, with random weights.

    Attributes:
        channels: E.
        stride: pixels per feature.
        multiple: height and width of the images must be multiples of it.
        mean, std: of RGB in [0, 1], which the weights expect to be taken out of the images.
        bundled: weights that come with the package, or None.
        fetch: how to get the weights, for error lines.
    """

    channels: ClassVar[int]
    stride: ClassVar[int]
    multiple: ClassVar[int] = 1
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    bundled: ClassVar[Path | None] = None
    fetch: ClassVar[str] = ""

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The tensors of a weights file under the names of this network; here those of a plain state dict.

        Raises:
            OlivineError: the file is missing, cannot be read, or holds no tensors.
        """
        state = read_tensors(path, remedy_of(cls))
        if not isinstance(state, dict):
            raise OlivineError("holds no dictionary of tensors", where=path, remedy="give a checkpoint of the encoder")
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def fold(self) -> None:
        """Fold batch norms into the convolutions before them, where the network has any; outputs stay the same."""


def remedy_of(encoder: type[Encoder]) -> str:
    """What to do where its weights cannot be read."""
    return f"fetch it: {encoder.fetch}" if encoder.fetch else "check the path"


def encoder_names() -> list[str]:
    """Names of the encoders in this folder."""
    return names_in(__name__)


def find_encoder(name: str) -> type[Encoder]:
    """The encoder of a name: a file in this folder, or ``package.module`` or ``package.module:Class`` outside it.

    Raises:
        OlivineError: there is none, it does not import, or it is no :class:`Encoder`; names the nearest one.
    """
    return find(name, __name__, Encoder, "image encoder")
