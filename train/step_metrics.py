"""What is logged of a step, over all processes."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .settings import PretrainSettings
from .step import StepResult
from .vmf import VmfStatistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def step_row(
    results: Sequence[StepResult],
    statistics: VmfStatistics,
    class_count: Tensor,
    classes: list[str],
    settings: PretrainSettings,
    fabric: Fabric,
) -> dict[str, float]:
    """A step's metrics, over all processes."""
    names = ["ppkt", "wcd", "scr"]
    values = [torch.stack([r.loss.detach() for r in results]).mean()]
    present = [[r.terms[name] for r in results if name in r.terms] for name in names]
    values += [torch.stack(p).mean() if p else values[0] * math.nan for p in present]
    mean = over_processes(torch.stack(values).double(), fabric) / fabric.world_size
    row = dict(zip(["loss", *(f"loss_{name}" for name in names)], mean.tolist()))
    row = {name: value for name, value in row.items() if not math.isnan(value)}
    counts = torch.tensor([list(r.counts.values()) for r in results], device=fabric.device).sum(0)
    row |= dict(zip(results[0].counts, map(float, over_processes(counts, fabric).tolist())))
    drawn = over_processes(torch.stack([r.drawn_per_class for r in results]).sum(0), fabric).double()
    if settings.data.labels == "weak":
        share = (drawn / drawn.sum().clamp(min=1)).tolist()
        kappa = statistics.parameters_of_classes()[1].tolist()
        for number, name in enumerate(["none", *classes]):
            if settings.loss.wcd:
                row[f"share/{name}"] = share[number]
            if settings.loss.scr:
                row[f"kappa/{name}"] = kappa[number]
    row["memory_mib"] = (
        torch.cuda.max_memory_allocated(fabric.device) / 2**20
        if fabric.device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    return row


def over_processes(value: Tensor, fabric: Fabric) -> Tensor:
    """The sum over processes."""
    if fabric.world_size == 1:
        return value
    total: Tensor = fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment]
    return total
