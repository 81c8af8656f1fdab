"""WaffleIron narrow, shallow and on coarse planes, for a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from ._waffle_iron import WaffleIron, WaffleIronSettings


@dataclass(frozen=True)
class WaffleIronSmallSettings(WaffleIronSettings):
    """The same settings with smaller defaults: planes of a metre within 51.2 m."""

    channels: int = 64
    depth: int = 6
    range_m: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    cells: tuple[int, int, int] = (102, 102, 8)
    neighbors: int = 8


class WaffleIronSmall(WaffleIron):
    """See :class:`~._waffle_iron.WaffleIron`."""

    Settings = WaffleIronSmallSettings
