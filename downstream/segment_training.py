"""How a head, or a backbone with a head, is trained: cross-entropy plus Lovász-Softmax, SGD, a cosine per epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..train.backbone import Backbone, Clouds
from ..train.checkpoint import load_state
from ..train.sparse.engines import MapsAhead
from .data import Examples
from .fit import Members, Plan, Training
from .losses import Truth, segmentation_loss
from .network import Segmenter
from .settings import SegmentationSettings

Input = tuple[Clouds | Tensor, Truth]


class SegmentationTraining(Training[Input]):
    """The training of a segmenter, or of a head on features that are kept.

    Args:
        model: a head, or a :class:`~olivine.downstream.network.Segmenter`; on the run's device.
        examples: what it learns from.
    """

    SCORES = "scores.json"
    RATES = "lr and backbone_lr"

    def __init__(self, model: nn.Module, examples: Examples, settings: SegmentationSettings) -> None:
        self.model, self._examples, self._maps = model, examples, MapsAhead()
        self._parts: dict[str, nn.Module] = {"head": model}
        groups = [([p for p in model.parameters() if p.requires_grad], settings.lr)]
        if isinstance(model, Segmenter):
            self._parts = {"head": model.head, "backbone": model.backbone}
            groups = [(list(model.head.parameters()), settings.lr), *_backbone_groups(model.backbone, settings)]
        self._rates = [rate for _, rate in groups]
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "lr": rate} for parameters, rate in groups],
            momentum=settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
        )

    def set_rates(self, step: int, plan: Plan) -> float:
        """See :class:`~olivine.downstream.fit.Training`."""
        factor = 0.5 * (1 + math.cos(math.pi * min(plan.epoch(step), plan.epochs) / plan.epochs))
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * factor
        return self._rates[0] * factor

    def batch(self, members: Members, following: Members) -> Input:
        """See :class:`~olivine.downstream.fit.Training`."""
        batch = self._examples.batch(members)
        if isinstance(batch.inputs, Clouds):
            self._maps(batch.inputs.tensor)
        return batch.inputs, Truth.of(batch.label)

    def loss(self, model: nn.Module, batch: Input) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`~olivine.downstream.fit.Training`."""
        inputs, truth = batch
        return segmentation_loss(model(inputs), truth), {}

    def state(self) -> dict[str, Any]:
        """See :class:`~olivine.downstream.fit.Training`."""
        return {f"{name}_state": part.state_dict() for name, part in self._parts.items()}

    def load(self, content: dict[str, Any], where: object) -> None:
        """See :class:`~olivine.downstream.fit.Training`."""
        for name, part in self._parts.items():
            load_state(part, content[f"{name}_state"], where)


def _backbone_groups(backbone: Backbone, settings: SegmentationSettings) -> list[tuple[list[nn.Parameter], float]]:
    """The backbone's parameters and their rates, layer by layer where these fall with depth."""
    if settings.layer_decay == 1:
        return [([p for p in backbone.parameters() if p.requires_grad], settings.backbone_lr)]
    layers = [[p for p in layer.parameters() if p.requires_grad] for layer in backbone.layers()]
    rates = [settings.backbone_lr * settings.layer_decay**depth for depth in reversed(range(len(layers)))]
    held = {id(p) for layer in layers for p in layer}
    apart = [p for p in backbone.parameters() if p.requires_grad and id(p) not in held]
    return [*zip(layers, rates), *([(apart, rates[0] if rates else settings.backbone_lr)] if apart else [])]
