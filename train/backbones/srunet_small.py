"""SR-UNet34's shape, narrow and shallow, for a CPU."""

from __future__ import annotations

from ._srunet import SRUNet, SRUNetLayout


class SRUNetSmall(SRUNet):
    """See :class:`~._srunet.SRUNet`."""

    layout = SRUNetLayout(16, (16, 32, 64, 64, 64, 32, 32, 32), (1, 1, 1, 1, 1, 1, 1, 1))
