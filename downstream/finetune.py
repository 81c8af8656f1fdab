"""Fine-tuning: the whole network trained on a fraction of the labels, scored at every original point.

Protocol of REFERENCE, section 2 (OLIVINE, section 4.2, after SLidR): a new 1x1x1 head, cross-entropy plus
Lovász-Softmax over the labelled voxels, SGD with rates of their own for head and backbone, a cosine to 0, rotation and
flips; the last epoch is scored, not the best.
"""

from __future__ import annotations

from pathlib import Path

from ..common import PathLike
from ..train.devices import make_fabric
from ..train.settings import PretrainSettings
from .network import read_source
from .results import Result
from .segment import open_ground, segment
from .settings import FinetuneSettings


def finetune(
    checkpoint: PathLike | None,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: FinetuneSettings | None = None,
    *,
    random: bool = False,
    network: PretrainSettings | None = None,
    predictions: PathLike | None = None,
    overwrite: bool = False,
) -> Result:
    """Fine-tune a checkpoint's backbone, or random weights of the same network, and score it.

    Args:
        checkpoint: run folder or checkpoint file; None for random weights of ``network``.
        train, validation: folders of shards with point labels; ``train`` may have none where ``settings.labels`` is weak.
        out: the run's folder: ``run.json``, ``last.pt``, ``steps.csv``, ``epochs.csv``, ``scores.json``,
            ``scores.md``, ``confusion.csv``. What is finished there is not done again.
        random: take random weights instead.
        network: settings whose backbone and voxels the checkpoint must have been made with; not checked without.
        predictions: folder to write the validation frames' predictions into, in the benchmark's format.
        overwrite: start anew where the folder holds a run, instead of going on or refusing it.

    Raises:
        OlivineError: no point labels, a fraction that leaves no frame, a checkpoint that does not fit, a folder that
            holds something else, a loss that is not finite.
        KeyboardInterrupt: stopped by a signal; the same call goes on.
    """
    settings = settings or FinetuneSettings()
    ground = open_ground(train, validation, settings.labels)
    source = read_source(checkpoint, random=random, expected=network)
    fabric = make_fabric(settings.as_run())
    where = None if predictions is None else Path(predictions)
    return segment(source, ground, Path(out), settings, fabric, predictions=where, overwrite=overwrite)
