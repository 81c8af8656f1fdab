"""SR-UNet34, the 3D network of SLidR and OLIVINE: 37,842,976 parameters with one input channel."""

from __future__ import annotations

from ._srunet import SRUNet, SRUNetLayout


class SRUNet34(SRUNet):
    """See :class:`~._srunet.SRUNet`."""

    layout = SRUNetLayout(32, (32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2))
