"""The optimiser and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from .settings import PretrainSettings


def build_optimizer(settings: PretrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of everything that is trained."""
    rates = settings.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if rates.kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rates.lr, weight_decay=rates.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=rates.lr,
        momentum=rates.momentum,
        dampening=rates.dampening,
        weight_decay=rates.weight_decay,
        # One kernel instead of four for each piece of the weights. A CPU keeps the loop, whose bits are published, and
        # so does 16-mixed: Fabric clips no gradients that a fused optimiser is to unscale.
        fused=True if parameters[0].is_cuda and settings.run.precision != "16-mixed" else None,
    )


def learning_rate(settings: PretrainSettings, step: int, steps: int, frames: int) -> float:
    """The rate of a step: linear rise, then half a cosine to 0, changed every step or every epoch."""
    optimizer, batch = settings.optimizer, settings.run.batch
    rise = round(optimizer.warmup * steps)
    if step < rise:
        return optimizer.lr * (step + 1) / rise
    if optimizer.schedule_per == "epoch":
        done: float = (step * batch) // frames
        whole: float = max(1, math.ceil(steps * batch / frames))
        if settings.run.steps is None:
            whole = settings.run.epochs
    else:
        done, whole = step - rise, max(1, steps - rise)
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / whole)))
