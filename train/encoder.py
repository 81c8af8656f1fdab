"""The contract of an image encoder, and the frozen one that a run takes its pixel features from.

An encoder is one file in ``encoders/``, or a class anywhere, named by its dotted path. It brings its network, how its
weights are read, the sizes that it accepts, its stride and its dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..common import OlivineError, PathLike, sha256_file, weights_folder
from ..common.plugins import find
from ..common.tensors import check_state, read_tensors

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
        published: the name that ``olivine weights list`` has for them; they are then taken from the weights folder.
        fetch: how to get the weights, for error lines.
    """

    channels: ClassVar[int]
    stride: ClassVar[int]
    multiple: ClassVar[int] = 1
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    bundled: ClassVar[Path | None] = None
    published: ClassVar[str] = ""
    fetch: ClassVar[str] = ""

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The tensors of a weights file under the names of this network, and no others; here those of a plain state dict.

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
    how = f"olivine weights fetch {encoder.published}" if encoder.published else encoder.fetch
    return f"fetch it: {how}" if how else "check the path"


def find_encoder(name: str) -> type[Encoder]:
    """The encoder of a name.

    Raises:
        OlivineError: there is none; the nearest name is said.
    """
    return find(name, "olivine.train.encoders", Encoder, "image encoder")


def weights_file(encoder: type[Encoder], weights: PathLike | None) -> Path | None:
    """The file that ``image.weights`` means: itself, or in its folder; without it the bundled one, or the fetched one."""
    path = Path(weights) if weights is not None else encoder.bundled
    if path is None and encoder.published:
        path = weights_folder() / encoder.published
    return path / "model.safetensors" if path is not None and path.is_dir() else path


class ImageEncoder(nn.Module):
    """A frozen encoder: uint8 images [I, H, W, 3] → features [I, E, ceil(H/stride), ceil(W/stride)].

    It never trains, so its batch norms are folded into the convolutions before them, and the memory format is
    channels-last. Nothing of it goes into a checkpoint except its name and its weights' digest.

    Args:
        kind: its name, as :func:`find_encoder` knows it.
        weights: local file, or a folder with ``model.safetensors`` in it; None takes the bundled ones, or those that
            ``olivine weights fetch`` brought. ``random`` gives random weights, the same ones everywhere (tests, ablations).
        fold: fold batch norms into the convolutions before them.
        dtype: of the convolutions.
        compiled: let torch compile the network when it first runs: biases, ReLUs and sums join the products before them.

    Attributes:
        channels: E.
        digest: SHA-256 of the weights file, or ``random``.

    Raises:
        OlivineError: unknown kind; weights missing, of another network, or unreadable.
    """

    def __init__(
        self,
        kind: str,
        weights: PathLike | None = None,
        *,
        fold: bool = True,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        spec = find_encoder(kind)
        self.kind, self.spec, self.channels, self.dtype = kind, spec, spec.channels, dtype
        path = weights_file(spec, weights)
        fetch = f" ({spec.fetch})" if spec.fetch else ""
        if path is None:
            raise OlivineError(
                f"the {kind} encoder needs a weights file",
                where="image.weights",
                remedy=f"fetch one and pass --set image.weights=FILE{fetch}",
            )
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = spec()
            self.digest = "random"
        else:
            network = spec()
            own = network.state_dict()
            # A norm's counter is absent from some files and changes nothing in evaluation.
            counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
            state = {**spec.read(path), **counters}
            check_state(own, state, path, f"give weights of {kind}{fetch}, or another --set image.encoder")
            network.load_state_dict(state)
            self.digest = sha256_file(path)
        network.eval().requires_grad_(False)
        if fold:
            network.fold()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            self.network.compile()
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def check_size(self, height: int, width: int) -> None:
        """Check that the encoder accepts images of a size.

        Raises:
            OlivineError: it does not.
        """
        multiple = self.spec.multiple
        if height % multiple or width % multiple:
            near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
            raise OlivineError(
                f"the {self.kind} encoder takes sizes that are multiples of {multiple}, not {height} x {width}",
                where="image.height, image.width",
                remedy=f"for example --set image.height={near[0]} --set image.width={near[1]}",
            )

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features of images.

        Args:
            image: uint8 RGB [I, H, W, 3].

        Raises:
            OlivineError: a size that the encoder does not accept, features that are not what it declares, or a network that
                torch cannot compile.
        """
        count, height, width = image.shape[:3]
        self.check_size(height, width)
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        x = x * self.pixel_scale + self.pixel_shift  # type: ignore[operator]
        x = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        try:
            with torch.autocast(x.device.type, enabled=False):
                features: Tensor = self.network(x)
        except RuntimeError as error:
            if type(error).__module__ not in ("torch._dynamo.exc", "torch._inductor.exc"):
                raise
            raise OlivineError(
                f"torch cannot compile the {self.kind} encoder ({str(error).splitlines()[0]})",
                where="image.compile",
                remedy="install a C++ compiler (and Triton for a GPU), or leave the setting out",
            ) from error
        stride = self.spec.stride
        declared = (count, self.channels, -(-height // stride), -(-width // stride))
        if features.shape != declared:
            raise OlivineError(
                f"the {self.kind} encoder declares features {list(declared)} and gives {list(features.shape)}",
                where="image.encoder",
                remedy="correct its channels or stride",
            )
        return features
