"""Linear probe: a linear head on the frozen backbone, scored at every original point.

Protocol of REFERENCE, section 2 (OLIVINE, section 4.2): the backbone in evaluation mode, the head alone trained, by
the same loop as fine-tuning. The clouds are rotated and flipped, as in the public code; without (``augment=False``) each
frame's features are computed once, which costs a small part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common import OlivineError, PathLike
from ..train.devices import make_fabric
from ..train.settings import PretrainSettings
from .data import KeptFeatures
from .network import read_source
from .results import Result, write_results
from .segment import SCORES, discard, open_ground, segment
from .settings import ProbeSettings

__all__ = ["ProbeSettings", "linear_probe"]


def linear_probe(
    checkpoint: PathLike,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: ProbeSettings | None = None,
    *,
    random: bool = True,
    network: PretrainSettings | None = None,
    predictions: PathLike | None = None,
    overwrite: bool = False,
    kept: KeptFeatures | None = None,
) -> list[Result]:
    """Probe a checkpoint, and random weights of the same network beside it.

    Args:
        checkpoint: run folder or checkpoint file.
        train, validation: folders of shards with point labels.
        out: folder of ``scores.json`` and ``scores.md``, and of a run folder for each backbone (``pre-trained``,
            ``random``; see :func:`~olivine.downstream.finetune.finetune`). What is finished there is not done again.
        random: also probe random weights; first in the list.
        network: settings whose backbone and voxels the checkpoint must have been made with; not checked without.
        predictions: folder to write the checkpoint's predictions into, in the benchmark's format.
        overwrite: start anew where the folder holds a probe, instead of going on or refusing it.
        kept: the checkpoint's features, from probes of it on the same shards and labels.

    Raises:
        OlivineError, KeyboardInterrupt: as :func:`~olivine.downstream.finetune.finetune`.
    """
    settings, out = settings or ProbeSettings(), Path(out)
    if not settings.frozen:
        raise OlivineError(
            "a probe trains the head alone", where="backbone_lr", remedy="use finetune, or backbone_lr 0"
        )
    ground = open_ground(train, validation, settings.labels)
    source = read_source(checkpoint, expected=network)
    fabric = make_fabric(settings.as_run())
    if overwrite and fabric.global_rank == 0:
        read = (checkpoint, ground.train.path, ground.validation.path)
        held = [discard(out / part, "probe", read) for part in (*(["random"] if random else []), "pre-trained")]
        for name in SCORES if any(held) else ():
            (out / name).unlink(missing_ok=True)
    results = []
    if random:
        fresh = read_source(checkpoint, random=True)
        results.append(segment(fresh, ground, out / "random", settings, fabric, overwrite=overwrite))
    where = None if predictions is None else Path(predictions)
    how: dict[str, Any] = {"predictions": where, "overwrite": overwrite, "kept": kept}
    results.append(segment(source, ground, out / "pre-trained", settings, fabric, **how))
    if fabric.global_rank == 0:
        write_results(out, results)
    return results
