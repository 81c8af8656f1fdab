"""How a network's score falls on worse clouds: a finished probe or fine-tuning, scored on each corruption."""

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
from ..train.sparse.precision import float32_as
from .data import CloudExamples
from .finetune import finetune
from .metrics import confusion_matrix, scores
from .network import Segmenter, Source, new_head, read_source
from .predict import predicted_points
from .probe import linear_probe
from .results import Result
from .segment import Ground, open_ground
from .settings import FinetuneSettings, ProbeSettings, SegmentationSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ..train.settings import PretrainSettings


@dataclass(frozen=True)
class Robustness:
    """A network's scores on clean and corrupted validation frames.

    Attributes:
        name: of the result.
        clean: mean IoU.
        corrupted: mean IoU by corruption, over the points that each leaves and the classes that these have.
        kept: the share of the clean score that is left, by corruption; the clean one over the same classes.
    """

    name: str
    clean: float
    corrupted: dict[str, float]
    kept: dict[str, float]


@float32_as()
def score_corrupted(
    source: Source, run: PathLike, ground: Ground, settings: SegmentationSettings, result: Result
) -> Robustness:
    """Score a finished probe or fine-tuning on every corruption of the validation frames.

    Args:
        source: what the run started from.
        run: its folder; its head is taken, and its backbone where that was trained too.
        ground, settings: as the run had them.
        result: what it scored.

    Raises:
        OlivineError: the run's head is not there.
    """
    fabric, content = make_fabric(settings.as_run()), load_checkpoint(run)
    backbone = source.build(settings.seed)
    if "head_state" not in content:
        raise OlivineError("holds no head", where=run, remedy="run the command again with --overwrite")
    if "backbone_state" in content:
        load_state(backbone, content["backbone_state"], run)
    head = new_head(backbone.feature_channels, len(ground.classes) + 1, settings.seed)
    load_state(head, content["head_state"], run)
    model = Segmenter(backbone, head).to(fabric.device)
    form: dict[str, Any] = {"per_point": backbone.per_point, "normalised": source.normalised}
    clouds = CloudExamples(ground.validation, source.voxels, fabric.device, **form)
    by_name: dict[str, float] = {}
    kept: dict[str, float] = {}
    for number, name in enumerate(CORRUPTIONS):
        examples = clouds.corrupted(partial(_corrupt, name, (settings.seed, 0, number)))
        confusion = _confusion(model, examples, ground, fabric, name)
        score = scores(confusion, ground.classes, ground.validation.benchmark.mean_over)
        clean = [result.scores.iou[name] for name in score.iou]
        by_name[name] = score.mean_iou
        kept[name] = score.mean_iou * len(clean) / sum(clean) if sum(clean) else 0.0
    return Robustness(result.name, result.scores.mean_iou, by_name, kept)


def linear_probe_corrupted(
    checkpoint: PathLike,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: ProbeSettings,
    **options: Any,
) -> list[Result]:
    """:func:`~olivine.downstream.probe.linear_probe`, and its heads on corrupted frames.

    Also writes ``corruptions.json`` and ``corruptions.md``, one column for each result.
    """
    ground = open_ground(train, validation, settings.labels)
    results = linear_probe(checkpoint, train, validation, out, settings, **options)
    found = []
    for result in results:
        folder = Path(out) / ("pre-trained" if result.source else "random")
        source = read_source(checkpoint, random=not result.source)
        found.append(score_corrupted(source, folder, ground, settings, result))
    _write(found, Path(out), settings)
    return results


def finetune_corrupted(
    checkpoint: PathLike | None,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: FinetuneSettings,
    *,
    random: bool = False,
    network: PretrainSettings | None = None,
    **options: Any,
) -> Result:
    """:func:`~olivine.downstream.finetune.finetune`, and its network on corrupted frames, written as of a probe."""
    result = finetune(checkpoint, train, validation, out, settings, random=random, network=network, **options)
    source = read_source(checkpoint, random=random, expected=network)
    ground = open_ground(train, validation, settings.labels)
    _write([score_corrupted(source, out, ground, settings, result)], Path(out), settings)
    return result


def _write(found: list[Robustness], out: Path, settings: SegmentationSettings) -> None:
    if make_fabric(settings.as_run()).global_rank == 0:
        write_json(out / "corruptions.json", [asdict(one) for one in found])
        write_bytes(out / "corruptions.md", (corruption_table(found) + "\n").encode())


def _corrupt(
    name: str, key: tuple[int, int, int], points: NDArray[np.float32], frame: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return CORRUPTIONS[name](points, generator_of(*key, frame))


def _confusion(
    model: Segmenter, examples: CloudExamples, ground: Ground, fabric: Fabric, title: str
) -> NDArray[np.int64]:
    """The confusion matrix over every point that a corruption leaves, int64 [K + 1, K + 1]."""
    frames = range(fabric.global_rank, len(ground.validation), fabric.world_size)
    count = len(ground.classes)
    confusion = np.zeros((count + 1, count + 1), np.int64)
    for frame, predicted, _ in predicted_points(model, examples, frames, title):
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
