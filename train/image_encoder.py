"""The frozen image branch: pictures in, dense features out.

Each kind of encoder declares, beside the model, its channels, its output stride, the normalisation its weights expect
and where they come from. Batch norms are folded into the convolutions before them (the encoder never trains), and the
memory format is channels-last. Nothing of the encoder goes into a checkpoint except its name and its weights' digest.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common import OlivineError, PathLike, sha256_file
from .feature_map import FeatureGrid, sample_features
from .small_encoder import SmallEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_WEIGHTS = Path(__file__).parent / "weights" / "small_encoder.pt"


@dataclass(frozen=True)
class EncoderKind:
    """What is known about an encoder without building it.

    Attributes:
        channels: E, of its feature map.
        stride: pixels per feature.
        mean, std: normalisation of RGB in [0, 1].
        build: makes the bare network.
        bundled: the weights that come with the package, or None.
        fetch: how to get weights that do not.
    """

    channels: int
    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    build: Callable[[], nn.Module]
    bundled: Path | None
    fetch: str


def _resnet(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return dilate_to_stride_4(getattr(torchvision.models, name)(weights=None))

    return build


_MOCO_URL = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"

KINDS: dict[str, EncoderKind] = {
    "resnet50": EncoderKind(
        2048, 4, IMAGENET_MEAN, IMAGENET_STD, _resnet("resnet50"), None, f"MoCo v2, 800 epochs: {_MOCO_URL}"
    ),
    "resnet18": EncoderKind(
        512,
        4,
        IMAGENET_MEAN,
        IMAGENET_STD,
        _resnet("resnet18"),
        None,
        "torchvision, supervised: https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ),
    "small": EncoderKind(
        SmallEncoder.channels,
        SmallEncoder.stride,
        IMAGENET_MEAN,
        IMAGENET_STD,
        SmallEncoder,
        SMALL_WEIGHTS,
        "python -m olivine.train.encoder_training",
    ),
}


def dilate_to_stride_4(network: Any) -> nn.Module:
    """Replace the strides of a torchvision ResNet's stages 2-4 by dilation; the weights stay as they are.

    As torchvision's ``replace_stride_with_dilation`` does: a stage's first block keeps the dilation of the stage
    before, its others take the stage's own. Works for basic blocks too, which torchvision refuses.
    """
    dilation = 1
    for stage in (network.layer2, network.layer3, network.layer4):
        previous, dilation = dilation, dilation * 2
        for number, block in enumerate(stage):
            rate = previous if number == 0 else dilation
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
                    if module.kernel_size == (3, 3):
                        module.dilation = module.padding = (rate, rate)
    return nn.Sequential(
        network.conv1,
        network.bn1,
        network.relu,
        network.maxpool,
        network.layer1,
        network.layer2,
        network.layer3,
        network.layer4,
    )


_SEQUENTIAL_NAME = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def _backbone_state(container: Any, path: Path) -> dict[str, Tensor]:
    """A ResNet's own tensors out of the container formats in use: torchvision, MoCo, SwAV, DINO."""
    state = container
    for key in ("state_dict", "model", "teacher", "student"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise OlivineError("holds no dictionary of tensors", where=path, remedy="give a ResNet checkpoint")
    if any(".encoder_q." in f".{name}" for name in state):  # MoCo keeps a second, momentum encoder and a queue
        state = {name: value for name, value in state.items() if "encoder_q." in name}
    kept = {}
    for name, value in state.items():
        for prefix in ("module.", "encoder_q.", "backbone.", "encoder."):
            name = name.removeprefix(prefix)
        first, _, rest = name.partition(".")
        if first in _SEQUENTIAL_NAME and isinstance(value, Tensor):
            kept[f"{_SEQUENTIAL_NAME[first]}.{rest}"] = value
    return kept


def read_tensors(path: PathLike, fetch: str = "") -> Any:
    """A file of tensors and plain values, loaded with ``weights_only=True``.

    Raises:
        OlivineError: no such file, a truncated file, or one that holds code.
    """
    path = Path(path)
    remedy = f"fetch it: {fetch}" if fetch else "check the path"
    if not path.is_file():
        raise OlivineError("no such file", where=path, remedy=remedy)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "numpy" in str(error):  # MoCo's and DINO's training files carry NumPy scalars
            import numpy as np

            scalar = np.float64(0).__reduce__()[0]  # NumPy 1 and 2 keep it in modules of different names
            scalars: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
            scalars += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
            with torch.serialization.safe_globals(scalars):
                try:
                    return torch.load(path, map_location="cpu", weights_only=True)
                except (pickle.UnpicklingError, RuntimeError, EOFError) as second:
                    error = second if isinstance(second, pickle.UnpicklingError) else error
        raise OlivineError(
            f"holds more than tensors and plain values, or is not a checkpoint ({_first_line(error)})",
            where=path,
            remedy=remedy,
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise OlivineError(f"cannot be read ({_first_line(error)})", where=path, remedy=remedy) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


class ImageEncoder(nn.Module):
    """A frozen encoder: uint8 pictures [I, H, W, 3] → features [I, E, h, w].

    Args:
        kind: a key of :data:`KINDS`.
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
        if kind not in KINDS:
            raise OlivineError(
                f"no image encoder {kind!r}", where="image.encoder", remedy=f"use one of {', '.join(KINDS)}"
            )
        self.kind, self.spec, self.channels = kind, KINDS[kind], KINDS[kind].channels
        path = Path(weights) if weights is not None else self.spec.bundled
        if path is None:
            raise OlivineError(
                f"the {kind} encoder needs a weights file",
                where="image.weights",
                remedy=f"fetch one and pass --set image.weights=FILE ({self.spec.fetch})",
            )
        network = self.spec.build()
        if weights == "random":
            self.digest = "random"
        else:
            self._load(network, path)
            self.digest = sha256_file(path)
        network.eval().requires_grad_(False)
        if fold:
            network = fold_batch_norms(network)
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        scale = 1 / (255 * torch.tensor(self.spec.std))
        self.register_buffer("pixel_scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "pixel_shift",
            (-torch.tensor(self.spec.mean) / torch.tensor(self.spec.std)).view(1, 3, 1, 1),
            persistent=False,
        )

    def _load(self, network: nn.Module, path: Path) -> None:
        state = read_tensors(path, self.spec.fetch)
        if self.kind != "small":
            state = _backbone_state(state, path)
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
                remedy=f"give weights of a {self.kind} ({self.spec.fetch}) or choose another --set image.encoder",
            )
        network.load_state_dict({n: state.get(n, expected[n]).to(expected[n].dtype) for n in expected})

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def _normalised(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        x = x * self.pixel_scale + self.pixel_shift  # type: ignore[operator]
        return x.to(dtype=self.dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            image: uint8 RGB [I, H, W, 3].
        """
        x = self._normalised(image)
        with torch.autocast(x.device.type, enabled=False):
            features: Tensor = self.network(x)
        return features


@torch.no_grad()
def features_at_pixels(
    encoder: ImageEncoder, image: Tensor, image_index: Tensor, uv: Tensor, grid: FeatureGrid, at_once: int = 0
) -> Tensor:
    """The encoder's features at chosen pixels.

    Pictures go through the encoder a few at a time, and those without a chosen pixel not at all: what is kept are the
    features at those pixels, never the maps of a whole batch.

    Args:
        image: uint8 [I, H, W, 3].
        image_index: the picture of each pixel, int64 [M].
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


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution into it; same outputs in evaluation mode.

    Relies on the order of registration, which in torchvision's ResNets and in :class:`SmallEncoder` is the order of
    use: a batch norm's convolution is the last one registered before it in the same module.
    """
    for parent in network.modules():
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
                setattr(parent, previous[0], nn.utils.fuse_conv_bn_eval(previous[1], child))
                setattr(parent, name, nn.Identity())
            previous = (name, child)
    return network
