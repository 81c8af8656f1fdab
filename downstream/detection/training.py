"""How a detector is trained: Adam with a one-cycle schedule, OpenPCDet's losses; the loop is :func:`olivine.downstream.fit.fit`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...train.checkpoint import load_state
from ...train.sparse.engines import MapsAhead
from ..fit import Members, Plan, Training
from .anchors import Targets, assign
from .losses import LossWeights, detection_loss
from .schedule import rate_and_momentum
from .second import Second
from .settings import DetectionSettings, norm_momentum_of
from .training_scenes import Batch, TrainingScenes


def head_state(network: Second) -> dict[str, Tensor]:
    """All tensors of a detector but the trunk's."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("backbone_3d.")}


def load_detector(network: Second, content: dict[str, Any], where: object) -> None:
    """Put a checkpoint's tensors into a detector, all of them.

    Raises:
        OlivineError: they are another network's.
    """
    load_state(network.backbone_3d, content["backbone_state"], where)
    trunk = {n: v for n, v in network.state_dict().items() if n.startswith("backbone_3d.")}
    load_state(network, {**trunk, **content["head_state"]}, where)


class DetectionTraining(Training[tuple[Batch, Targets]]):
    """The training of a detector.

    Args:
        network: on the run's device.
        scenes: the batches of the run.
        steps: of the run, for the momentum of batch normalisation.
    """

    SCORES = "ap.json"
    RATES = "lr"

    def __init__(self, network: Second, scenes: TrainingScenes, settings: DetectionSettings, steps: int) -> None:
        self.model: Second = network
        self.clip, self._cycle = settings.cycle.clip, settings.cycle
        self.optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=self._cycle.lr,
            betas=(self._cycle.momentum[0], self._cycle.beta),
            weight_decay=self._cycle.weight_decay,
        )
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = settings.norm_momentum or norm_momentum_of(steps)
        self._scenes, self._settings, self._maps = scenes, settings, MapsAhead()
        self._anchors = network.anchors.view(-1, network.anchors.shape[-1])

    def set_rates(self, step: int, plan: Plan) -> float:
        """See :class:`~olivine.downstream.fit.Training`."""
        rate, momentum = rate_and_momentum(step, plan.steps, self._cycle)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, self._cycle.beta)
        return rate

    def batch(self, members: Members, following: Members) -> tuple[Batch, Targets]:
        """See :class:`~olivine.downstream.fit.Training`."""
        self._scenes.prepare([*members, *following])
        batch = self._scenes.batch(members)
        self._maps(batch.clouds.tensor)
        return batch, assign(self.model.anchors, batch.boxes, batch.kinds, self._settings.anchors)

    def loss(self, model: nn.Module, batch: tuple[Batch, Targets]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`~olivine.downstream.fit.Training`."""
        scenes, targets = batch
        output = model(scenes.clouds)
        terms = detection_loss(output.logit, output.code, output.direction, targets, self._anchors, LossWeights())
        return torch.stack(list(terms.values())).sum(), terms

    def state(self) -> dict[str, Any]:
        """See :class:`~olivine.downstream.fit.Training`."""
        return {"backbone_state": self.model.backbone_3d.state_dict(), "head_state": head_state(self.model)}

    def load(self, content: dict[str, Any], where: object) -> None:
        """See :class:`~olivine.downstream.fit.Training`."""
        load_detector(self.model, content, where)
