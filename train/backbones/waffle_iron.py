"""WaffleIron-48-768, the 3D network of ScaLR: 59 million parameters."""

from __future__ import annotations

from ._waffle_iron import WaffleIron


class WaffleIron48x768(WaffleIron):
    """See :class:`~._waffle_iron.WaffleIron`; other widths and depths are settings."""
