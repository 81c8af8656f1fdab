"""Adam with a one-cycle schedule: the rate rises and falls, the momentum falls and rises, each along half a cosine.

Source: Smith and Topin, 2018, with the shape that OpenPCDet's ``adam_onecycle`` gives it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CycleSettings:
    """The cycle.

    Attributes:
        lr: the highest rate.
        start: the first rate is ``lr`` over this; the last is that over 10,000.
        rise: the fraction of the steps in which the rate rises.
        momentum: Adam's β₁ at the ends and at the highest rate.
        beta: Adam's β₂.
        weight_decay: of all parameters, decoupled from the gradient (AdamW).
        clip: largest gradient norm.
    """

    lr: float = 0.003
    start: float = 10.0
    rise: float = 0.4
    momentum: tuple[float, float] = (0.95, 0.85)
    beta: float = 0.99
    weight_decay: float = 0.01
    clip: float = 10.0


def rate_and_momentum(step: int, steps: int, settings: CycleSettings) -> tuple[float, float]:
    """The learning rate and β₁ of a step of so many, from 0."""
    top, low = settings.lr, settings.lr / settings.start
    outer, inner = settings.momentum
    rising = int(settings.rise * steps)
    if step < rising:
        part = step / rising
        return _cosine(low, top, part), _cosine(outer, inner, part)
    part = (step - rising) / max(1, steps - rising)
    return _cosine(top, low / 1e4, part), _cosine(inner, outer, part)


def _cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * part))
