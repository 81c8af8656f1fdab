"""Folding batch norms into the convolutions before them."""

from __future__ import annotations

from torch import nn


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into it, in place; the network must be in evaluation mode.

    Relies on the order of registration, which in torchvision's ResNets and in :class:`.small.SmallEncoder` is the order
    of use: a batch norm's convolution is the last one registered before it in the same module.
    """
    for parent in network.modules():
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
                setattr(parent, previous[0], nn.utils.fuse_conv_bn_eval(previous[1], child))
                setattr(parent, name, nn.Identity())
            previous = (name, child)
