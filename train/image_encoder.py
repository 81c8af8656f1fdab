"""The frozen image branch: images in, dense features out.

An encoder of :mod:`.encoders` is given its weights and frozen: it never trains, so its batch norms are folded into the
convolutions before them, and the memory format is channels-last. Nothing of it goes into a checkpoint except its name
and its weights' digest.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..common import OlivineError, PathLike, sha256_file
from .encoders import Encoder, find_encoder
from .feature_map import FeatureGrid, sample_features


class ImageEncoder(nn.Module):
    """A frozen encoder: uint8 images [I, H, W, 3] → features [I, E, ceil(H/stride), ceil(W/stride)].

    Args:
        kind: its name, as :func:`~olivine.train.encoders.find_encoder` knows it.
        weights: local file; None takes the bundled ones. ``random`` gives random weights (tests, ablations).
        fold: fold batch norms into the convolutions before them.
        dtype: of the convolutions.

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
    ) -> None:
        super().__init__()
        spec = find_encoder(kind)
        self.kind, self.spec, self.channels, self.dtype = kind, spec, spec.channels, dtype
        path = Path(weights) if weights is not None else spec.bundled
        if path is None:
            raise OlivineError(
                f"the {kind} encoder needs a weights file",
                where="image.weights",
                remedy="fetch one and pass --set image.weights=FILE" + _fetch(spec),
            )
        network = spec()
        if weights == "random":
            self.digest = "random"
        else:
            self._load(network, path)
            self.digest = sha256_file(path)
        network.eval().requires_grad_(False)
        if fold:
            network.fold()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def _load(self, network: Encoder, path: Path) -> None:
        state = network.read(path)
        expected = network.state_dict()
        counters = {name for name in expected if name.endswith("num_batches_tracked")}
        missing = sorted(set(expected) - set(state) - counters)
        wrong = [n for n in expected if n in state and n not in counters and state[n].shape != expected[n].shape]
        if missing or wrong:
            named = (missing + wrong)[0]
            raise OlivineError(
                f"not the weights of a {self.kind}: {len(missing)} tensors missing, {len(wrong)} of another shape "
                f"(the first is {named})",
                where=path,
                remedy=f"give weights of a {self.kind}{_fetch(network)} or choose another --set image.encoder",
            )
        network.load_state_dict({n: state.get(n, expected[n]).to(expected[n].dtype) for n in expected})

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
            OlivineError: a size that the encoder does not accept, or features that are not what it declares.
        """
        count, height, width = image.shape[:3]
        self.check_size(height, width)
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        x = x * self.pixel_scale + self.pixel_shift  # type: ignore[operator]
        x = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):
            features: Tensor = self.network(x)
        stride = self.spec.stride
        declared = (count, self.channels, -(-height // stride), -(-width // stride))
        if features.shape != declared:
            raise OlivineError(
                f"the {self.kind} encoder declares features {list(declared)} and gives {list(features.shape)}",
                where="image.encoder",
                remedy="correct its channels or stride",
            )
        return features


def _fetch(encoder: Encoder | type[Encoder]) -> str:
    return f" ({encoder.fetch})" if encoder.fetch else ""


@torch.no_grad()
def features_at_pixels(
    encoder: ImageEncoder, image: Tensor, image_index: Tensor, uv: Tensor, grid: FeatureGrid, at_once: int = 0
) -> Tensor:
    """The encoder's features at chosen pixels.

    Images go through the encoder a few at a time, and those without a chosen pixel not at all: what is kept are the
    features at those pixels, never the maps of a whole batch.

    Args:
        image: uint8 [I, H, W, 3].
        image_index: the image of each pixel, int64 [M].
        uv: float32 [M, 2].
        grid: see :func:`~olivine.train.feature_map.sample_features`.
        at_once: images per call; 0 = automatic: 4 on a CPU, the whole batch on a GPU.

    Returns:
        float32 [M, E].
    """
    at_once = at_once or (len(image) if image.is_cuda else 4)
    size = (image.shape[1], image.shape[2])
    found, order = [image.new_zeros(0, encoder.channels, dtype=torch.float32)], [image_index[:0]]
    for some in torch.unique(image_index).split(at_once):
        members = torch.nonzero(torch.isin(image_index, some))[:, 0]
        local = torch.searchsorted(some, image_index.index_select(0, members))
        feature_map = encoder(image.index_select(0, some))
        found.append(sample_features(feature_map, local, uv.index_select(0, members), size, grid).float())
        order.append(members)
    return torch.cat(found).index_select(0, torch.argsort(torch.cat(order)))
