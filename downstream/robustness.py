"""How a probe's score falls on worse clouds: the head that was trained on clean ones, scored on each corruption."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, write_bytes, write_json
from ..train.augment import generator_of
from ..train.checkpoint import load_checkpoint, load_state
from ..train.corruptions import CORRUPTIONS
from ..train.devices import make_fabric, over_processes
from .data import CloudExamples, FrozenFeatures
from .metrics import confusion_matrix, scores
from .network import new_head, read_source
from .predict import predicted_points
from .probe import linear_probe
from .results import Result
from .segment import Ground, open_ground
from .settings import ProbeSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Robustness:
    """A backbone's scores on clean and corrupted validation frames.

    Attributes:
        name: of the backbone.
        clean: mean IoU.
        corrupted: mean IoU by corruption, over the points that each leaves and the classes that these have.
        kept: the share of the clean score that is left, by corruption; the clean one over the same classes.
    """

    name: str
    clean: float
    corrupted: dict[str, float]
    kept: dict[str, float]


def probe_corrupted(
    checkpoint: PathLike,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: ProbeSettings,
    results: list[Result],
) -> list[Robustness]:
    """Score finished probes on every corruption of the validation frames.

    Args:
        checkpoint, train, validation, out, settings: as :func:`~olivine.downstream.probe.linear_probe` had them.
        results: what it returned.

    Returns:
        one for each result; also written to ``corruptions.json`` and ``corruptions.md`` in ``out``.

    Raises:
        OlivineError: a probe's head is not there.
    """
    ground, out = open_ground(train, validation, settings.labels), Path(out)
    found = []
    fabric = make_fabric(settings.as_run())
    for result in results:
        source = read_source(checkpoint, random=not result.source)
        folder = out / ("pre-trained" if result.source else "random")
        head_file = load_checkpoint(folder)
        backbone = source.build(settings.seed).to(fabric.device)
        head = new_head(backbone.feature_channels, len(ground.classes) + 1, settings.seed).to(fabric.device)
        if "head_state" not in head_file:
            raise OlivineError("holds no probe's head", where=folder, remedy="run olivine probe --overwrite")
        load_state(head, head_file["head_state"], folder)
        clouds = CloudExamples(
            ground.validation, source.voxels, fabric.device, per_point=backbone.per_point, normalised=source.normalised
        )
        by_name: dict[str, float] = {}
        kept: dict[str, float] = {}
        for number, name in enumerate(CORRUPTIONS):
            examples = clouds.corrupted(partial(_corrupt, name, (settings.seed, 0, number)))
            confusion = _confusion(head, FrozenFeatures(examples, backbone, 0), examples, ground, fabric, name)
            score = scores(confusion, ground.classes, ground.validation.benchmark.mean_over)
            clean = [result.scores.iou[name] for name in score.iou]
            by_name[name] = score.mean_iou
            kept[name] = score.mean_iou * len(clean) / sum(clean) if sum(clean) else 0.0
        found.append(Robustness(result.name, result.scores.mean_iou, by_name, kept))
    if fabric.global_rank == 0:
        write_json(out / "corruptions.json", [asdict(one) for one in found])
        write_bytes(out / "corruptions.md", (corruption_table(found) + "\n").encode())
    return found


def linear_probe_corrupted(
    checkpoint: PathLike,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: ProbeSettings | None = None,
    **options: Any,
) -> list[Result]:
    """:func:`~olivine.downstream.probe.linear_probe`, and its heads on corrupted frames: :func:`probe_corrupted`."""
    settings = settings or ProbeSettings()
    results = linear_probe(checkpoint, train, validation, out, settings, **options)
    probe_corrupted(checkpoint, train, validation, out, settings, results)
    return results


def _corrupt(
    name: str, key: tuple[int, int, int], points: NDArray[np.float32], frame: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return CORRUPTIONS[name](points, generator_of(*key, frame))


def _confusion(
    head: torch.nn.Module,
    features: FrozenFeatures,
    examples: CloudExamples,
    ground: Ground,
    fabric: Fabric,
    title: str,
) -> NDArray[np.int64]:
    """The confusion matrix over every point that a corruption leaves, int64 [K + 1, K + 1]."""
    frames = range(fabric.global_rank, len(ground.validation), fabric.world_size)
    count = len(ground.classes)
    confusion = np.zeros((count + 1, count + 1), np.int64)
    for frame, predicted, _ in predicted_points(head, features, frames, title):
        confusion += confusion_matrix(examples.labels(frame), predicted, count)
    total: NDArray[np.int64] = over_processes(torch.from_numpy(confusion).to(fabric.device), fabric).cpu().numpy()
    return total


def corruption_table(found: list[Robustness]) -> str:
    """The scores as Markdown: a row for each corruption, the share of the clean score in brackets."""
    lines = [f"| mIoU | {' | '.join(one.name for one in found)} |", f"|---|{'---|' * len(found)}"]
    lines.append(f"| clean | {' | '.join(f'{100 * one.clean:.2f}' for one in found)} |")
    for name in CORRUPTIONS:
        cells = (f"{100 * one.corrupted[name]:.2f} ({100 * one.kept[name]:.0f} %)" for one in found)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
