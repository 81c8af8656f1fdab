"""ResNets of torchvision with their strides after the stem replaced by dilation, out of the usual files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ...common import OlivineError
from ...common.tensors import read_tensors
from ..encoder import Encoder, remedy_of
from ._fold import fold_batch_norms

_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNet(Encoder):
    """A dilated ResNet; a subclass says which of torchvision's."""

    stride = 4
    torchvision_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        import torchvision

        network = getattr(torchvision.models, self.torchvision_name)(weights=None)
        dilate_to_stride_4(network)
        for part in _PARTS:
            self.add_module(part, getattr(network, part))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the last stage."""
        for part in _PARTS:
            x = getattr(self, part)(x)
        return x

    def fold(self) -> None:
        """See :class:`.Encoder`."""
        fold_batch_norms(self)

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The network's own tensors out of the container formats in use: torchvision, MoCo, SwAV, DINO."""
        state = read_tensors(path, remedy_of(cls))
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
            if name.partition(".")[0] in _PARTS and isinstance(value, Tensor):
                kept[name] = value
        return kept


def dilate_to_stride_4(network: Any) -> None:
    """Replace the strides of a torchvision ResNet's stages 2-4 by dilation, in place; the weights stay as they are.

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
