"""What a command takes when nothing is said, and why: the largest data set, its labels, its shards, the newest run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import OlivineError, Whole, demand, read_json

if TYPE_CHECKING:
    from ..cluster.work import Executor
    from ..report.contents import Sources

DATA = Path("data")
RUNS = Path("runs")


def choose_dataset(dataset: str | None, root: Path | None) -> tuple[str, Path, str]:
    """Name, folder and reason of the data set to read."""
    from ..readers.dataset import dataset_class, dataset_names, recognize

    if dataset is not None:
        return dataset, root or DATA / dataset_class(dataset).name, "as asked"
    names = dataset_names()
    if root is not None:
        found = recognize(root)
        if len(found) != 1:
            what = f"may be {' or '.join(found)}" if found else "no data set is recognized here"
            raise OlivineError(what, where=root, remedy=f"add --dataset with one of {', '.join(found or names)}")
        return found[0], root, f"recognized as {found[0]}"
    present = [name for name in names if (DATA / name).is_dir()]
    if not present:
        raise OlivineError(
            "no data set in data/",
            remedy=f"link one to data/NAME ({', '.join(names)}), or make one with: olivine synth",
        )
    if len(present) == 1:
        return present[0], DATA / present[0], "the only data set in data/"
    frames = {name: dataset_class(name).count(DATA / name) for name in present}
    largest = max(present, key=lambda name: frames[name])
    counts = ", ".join(f"{name} ({count} frames)" for name, count in frames.items())
    return largest, DATA / largest, f"the largest of {counts}"


def choose_labels(labels: Path | None, dataset: str | None, beside: Sequence[Path] = ()) -> tuple[Path, str]:
    """The label folder and the reason; ``beside`` are folders that it is not."""
    if labels is not None:
        return labels, "as asked"
    if dataset is not None:
        from ..readers.dataset import dataset_class

        # The name of a data set of the user's own is enough here, and not where it is read.
        name = dataset_class(dataset).name if ":" in dataset or "." in dataset else dataset
        return DATA / "labels" / name, "as asked"
    others = [path.resolve() for path in beside]
    found = [p.parent for p in (DATA / "labels").glob("*/manifest.json") if p.parent.resolve() not in others]
    return _largest(
        found,
        lambda p: _sum_of_frames(p / "frames" / "index.json", "scenes"),
        lambda p: p.name == _dataset_of(p / "frames" / "index.json", {"dataset": str}),
        f"labels in data/labels{' but those of --also' if others else ''}",
        "run olivine labelgen first, or name the folder with --labels",
        "--labels",
    )


def choose_shards(shards: Path | None, split: str) -> tuple[Path, str]:
    """The folder of shards of a split, and the reason; another split where there is none of it."""
    if shards is not None:
        inner = shards / split
        return (inner if not (shards / "manifest.json").is_file() and inner.is_dir() else shards), "as asked"
    found = [p.parent for p in (DATA / "pairs").glob("*/*/manifest.json")]
    wanted = [p for p in found if p.name == split]
    chosen, why = _largest(
        wanted or found,
        lambda p: _sum_of_frames(p / "manifest.json", "shards"),
        lambda p: p.parent.name == _dataset_of(p / "manifest.json", {"recipe": {"dataset": str}}),
        "shards in data/pairs",
        "run olivine build-pairs first, or name the folder with --shards",
        "--shards",
    )
    return chosen, why if wanted else f"{why}; there is no {split} split"


def choose_checkpoint(checkpoint: Path | None, pattern: str = "*") -> tuple[Path, str]:
    """The run folder or checkpoint, the reason, and how far it got where its run is not finished."""
    chosen, why = (newest_run(pattern), "the newest run") if checkpoint is None else (checkpoint, "as asked")
    from ..downstream.checkpoints import progress_of
    from ..train.checkpoint import load_checkpoint

    progress = progress_of(load_checkpoint(chosen))
    return chosen, f"{why}; {progress}" if progress else why


def has_run() -> bool:
    """Whether ``runs/`` holds a run with a checkpoint."""
    return any(RUNS.glob("*/last.pt"))


# Where the runs of one command are, below its folder: of several seeds, of the side that is compared, of rounds.
_BELOW = ("", "seed-*/", "pre-trained/", "pre-trained/seed-*/", "round-*/")


def newest_run(pattern: str = "*") -> Path:
    """The run in ``runs/`` that was written last.

    Args:
        pattern: of its folder; of one in a run's folder (``*/detect-*``) also those that lie in it.
    """
    below = _BELOW if "/" in pattern else ("",)
    runs = [p.parent for part in below for p in RUNS.glob(f"{pattern}/{part}last.pt")]
    if not runs:
        command = next((name for name in ("finetune", "detect") if name in pattern), "pretrain")
        what = "no run" if command == "pretrain" else f"no run of {command}"
        raise OlivineError(f"{what} in runs/", remedy=f"run olivine {command} first, or name the checkpoint")
    return max(runs, key=lambda p: (p / "last.pt").stat().st_mtime)


def report_sources(
    run: Path | None,
    labels: Path | None,
    dataset: str | None,
    shards: Path | None,
    predictions: Path | None,
    study: Path | None,
) -> Sources:
    """The folders that ``olivine report`` reads: those that are named, and what is found of the others.

    Raises:
        OlivineError: there is none at all.
    """
    from ..report.contents import Sources

    if shards is None and dataset is not None:
        shards = DATA / "pairs" / choose_labels(None, dataset)[0].name
    if shards is not None or any((DATA / "pairs").glob("*/*/manifest.json")):
        shards, _ = choose_shards(shards, "val")
    if labels is None:
        labels = _labels_of(shards, dataset)
    if run is None:
        run = newest_run() if has_run() else _newest(RUNS.glob("*/run.json"))
    if study is None:
        study = _newest(RUNS.glob("*/table.md"))
    if labels is shards is run is study is None:
        raise OlivineError(
            "nothing to report: no labels in data/labels, no shards in data/pairs, no run in runs/",
            remedy="run olivine labelgen first, or name folders: --labels, --shards, --run",
        )
    if predictions is None and run is not None and shards is not None:
        found = sorted(run.glob(f"**/predictions-{shards.name}"), key=lambda path: path.stat().st_mtime)
        predictions = found[-1] if found else None
    scores = labels.with_name(f"{labels.name}-scores") if labels is not None else None
    has_scores = scores is not None and (scores / "score.json").is_file()
    return Sources(labels, scores if has_scores else None, shards, run, predictions, study)


def _labels_of(shards: Path | None, dataset: str | None) -> Path | None:
    """The folder in ``data/labels`` that shards were made of; without shards that say it the data set's, or the largest."""
    from ..labelgen.store import open_store
    from ..pairs.manifest import read_manifest

    folders = sorted(path.parent for path in (DATA / "labels").glob("*/manifest.json"))
    made_of = None
    if shards is not None:
        with contextlib.suppress(OlivineError):  # who reads the shards is told
            made_of = read_manifest(shards)["recipe"]["labels"]
    for folder in folders if made_of is not None else ():
        with contextlib.suppress(OlivineError):
            if open_store(folder).digest == made_of:
                return folder
    if dataset is None and (made_of is not None or not folders):
        return None
    return choose_labels(None, dataset)[0]


def _newest(files: Iterable[Path]) -> Path | None:
    """The folder of the file that was written last; None where there is none."""
    found = sorted(files)
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _largest(
    found: Sequence[Path],
    size: Callable[[Path], int],
    is_named_so: Callable[[Path], bool],
    what: str,
    remedy: str,
    option: str,
) -> tuple[Path, str]:
    """The folder of the most frames, among equals the one that is named as its data set, and the reason.

    Raises:
        OlivineError: there is none, or nothing says which of several of one size is meant.
    """
    if not found:
        raise OlivineError(f"no {what}", remedy=remedy)
    frames = {path: size(path) for path in sorted(found)}
    largest = [path for path, count in frames.items() if count == max(frames.values())]
    if len(largest) == 1:
        return largest[0], f"the only {what}" if len(found) == 1 else f"the largest of {len(found)} {what}"
    named = [path for path in largest if is_named_so(path)]
    if len(named) != 1:
        folders = " and ".join(map(str, largest))
        raise OlivineError(f"{folders} hold equally many frames", remedy=f"name the one that is meant with {option}")
    return named[0], f"named as its data set, of {len(largest)} {what} with equally many frames"


def _sum_of_frames(path: Path, parts: str) -> int:
    """Frames that a manifest or index says are there; what else is in it is checked by those who read it."""
    plain = demand(read_json(path), {parts: [{"frames": Whole()}]}, path)
    return sum(part["frames"] for part in plain[parts])


def _dataset_of(path: Path, kind: dict[str, Any]) -> str:
    """The data set's name in an index or, below ``recipe``, in a manifest."""
    plain = demand(read_json(path), kind, path)
    return str(plain.get("recipe", plain)["dataset"])


def part(text: str) -> tuple[int, int]:
    """``I/N`` as a pair, checked."""
    try:
        index, count = (int(v) for v in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise OlivineError(f"--part {text}", remedy="give it as I/N with I from 0 to N-1, for example 0/4")
    return index, count


def number(option: str, text: str) -> float:
    """The number an option was given."""
    try:
        return float(text)
    except ValueError:
        raise OlivineError(f"{option} {text} is not a number", remedy=f"give {option} auto or a number") from None


def whole_number(option: str, text: str) -> int:
    """The whole number an option was given."""
    value = number(option, text)
    if not value.is_integer():  # nor NaN, nor infinite
        raise OlivineError(f"{option} {text} is not a whole number", remedy=f"give {option} auto or a whole number")
    return int(value)


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(filter(None, chosen.split(",")))
    # CUDA numbers from 0 what is there: a container may have /dev/nvidia2 and 3 alone.
    return tuple(str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def choose_executor(
    name: str, address: str | None, workers: int, processes: int, devices: tuple[str, ...] = ()
) -> Executor:
    """Where work units are done: ``local`` in so many processes (on a device each in turn), or ``ray``."""
    if name == "local":
        if address is not None:
            raise OlivineError("--address needs --executor ray", remedy="add it, or leave --address out")
        from ..cluster.local import Local

        return Local(processes, devices)
    if name != "ray":
        raise OlivineError(f"--executor {name}", remedy="choose local or ray; for SLURM: olivine submit")
    from ..cluster.ray_actors import RayCluster

    return RayCluster(address or os.environ.get("RAY_ADDRESS"), workers)
