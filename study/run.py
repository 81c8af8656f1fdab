"""A grid of runs over switches and seeds: pre-train, linear probe, fine-tune on few labels; one folder, one table.

Every finished run is one JSON row with the digest of its configuration, so that a study goes on where it stopped and
never takes a row of another configuration. :func:`run_study` runs, :func:`merge_studies` joins the rows of folders.

What the folder holds: ``study.json`` (the study as read), ``rows/`` (see ``rows.py``), ``runs/`` (a run folder
for each pre-training, named with its digest), ``features/`` (the frozen encoder's, see ``train/pixel_features.py``),
``table.md``, ``table.csv``, ``table.png``, ``settings.md``, ``cost.md`` (of the pre-trainings made here), and ``times.csv``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..common import (
    Failure,
    OlivineError,
    PathLike,
    demand,
    disk_error,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
)
from ..common.locks import HeldError, locked
from ..common.settings import flat_values, settings_to_plain
from ..downstream.data import KeptFeatures
from ..downstream.finetune import finetune
from ..downstream.probe import linear_probe
from ..downstream.results import Result
from ..downstream.rounds import finetune_rounds
from ..downstream.settings import INCIDENTAL as HOW
from ..downstream.settings import SegmentationSettings
from ..pairs.shards import ShardSet, open_shards
from ..train.augment import SENSOR
from ..train.build import backbone_arguments, build_encoder, codes_of, needs_of, seeded_backbone
from ..train.checkpoint import save_checkpoint
from ..train.encoders._store import store_maps
from ..train.loop import pretrain
from ..train.metrics_log import forget_peak_memory
from ..train.settings import INCIDENTAL, PretrainSettings
from .config import Finetuning, StudySettings, slug, study_from_plain
from .cost import cost_table
from .measures import Measures
from .picture import draw_study
from .rows import Row, Run, check_held_out, find_row, read_rows, write_row
from .table import as_csv, as_markdown, facts_of, power_table, settings_table

# Settings younger than rows that may be kept, and what is unnamed of them: such rows' digests stay what they are.
_YOUNGER = {"method.draw_labels": "read"}
# What decides random weights and how they are probed; the rest of a pre-training's settings does not.
_NETWORK = ("backbone.", "voxels.")


@dataclass(frozen=True)
class StudySummary:
    """What a call did.

    Attributes:
        runs: of the study, for the seeds asked for; ``done`` by this call, ``kept`` from before.
        table, picture: the files.
        failures: runs that could not be done.
        held_by_others: runs that another process is at, in the same folder.
    """

    out: Path
    runs: int
    done: int
    kept: int
    table: Path
    picture: Path
    failures: list[Failure] = field(default_factory=list)
    held_by_others: int = 0


@dataclass(frozen=True)
class Ground:
    """The shards of a study, opened, and the encoder's weights.

    Attributes:
        encoders: weights' digests of rows with another encoder than the study's, by its name and weights.
        others: training shards that rows and fine-tunings name.
        held_out: validation shards that fine-tunings name.
    """

    train: ShardSet
    validation: ShardSet
    encoder: str
    others: Mapping[str, ShardSet] = field(default_factory=dict)
    held_out: Mapping[str, ShardSet] = field(default_factory=dict)
    encoders: Mapping[tuple[str, str | None], str] = field(default_factory=dict)

    def encoder_of(self, settings: PretrainSettings) -> str:
        """The digest of the weights of a row's encoder."""
        return self.encoders.get((settings.image.encoder, settings.image.weights), self.encoder)

    def train_of(self, settings: PretrainSettings) -> ShardSet:
        """The shards that a row is pre-trained on."""
        own = settings.data.shards
        return self.others[own] if isinstance(own, str) and own else self.train

    def digests(self, shards: str = "") -> dict[str, str]:
        """What decides a score besides the settings: of the study's shards, or of those that a fine-tuning names."""
        train, validation = self.others.get(shards, self.train), self.held_out.get(shards, self.validation)
        return {"train": train.digest, "validation": validation.digest}


def open_ground(study: StudySettings) -> Ground:
    """The shards that the study names.

    Raises:
        OlivineError: they are not there (names the command that makes them), or hold no point labels; a row's own are of
            other frames.
    """
    folder = Path(study.shards)

    def shards(path: Path) -> ShardSet:
        if not (path / "manifest.json").is_file():
            raise OlivineError("no shards here", where=path, remedy=f"make them: {study.ground}")
        return open_shards(path)

    train, validation = (shards(folder / split) for split in ("train", "val"))
    if not train.point_classes:
        raise OlivineError("the shards have no point labels", where=folder, remedy=f"make others: {study.ground}")
    if missing := [name for name in study.classes if name not in validation.point_classes]:
        raise OlivineError(
            f"classes names {missing[0]!r}, which the shards do not",
            where=validation.path,
            remedy=f"use some of {', '.join(validation.point_classes)}",
        )
    given = [settings.data for settings in study.rows.values() if settings is not None]
    if any(data.several for data in given):
        raise OlivineError(
            "a row of a study is pre-trained on one set of shards",
            where="data.shards",
            remedy="run olivine pretrain over several sets, and olivine probe on each",
        )
    tuned = {one.shards for one in study.finetune.values()} - {""}
    named = {data.shards for data in given if isinstance(data.shards, str)} - {""} | tuned
    others = {name: shards(folder / name / "train") for name in sorted(named)}
    held_out = {name: shards(folder / name / "val") for name in sorted(tuned)}
    pairs = [(train, found) for found in others.values()] + [(validation, found) for found in held_out.values()]
    for own, found in pairs:
        if found.tokens != own.tokens:
            raise OlivineError(
                f"the frames are not those of {own.path}", where=found.path, remedy=f"make both: {study.ground}"
            )
    kinds = {(one.image.encoder, one.image.weights): one for one in study.rows.values() if one is not None}
    encoders = {kind: build_encoder(one, torch.device("cpu")).digest for kind, one in kinds.items()}
    encoder = build_encoder(study.random, torch.device("cpu")).digest
    return Ground(train, validation, encoder, others, held_out, encoders)


def plan_study(study: StudySettings, ground: Ground, seeds: Sequence[int], rows: Sequence[str] = ()) -> Iterator[Run]:
    """Every run of the study for some seeds and rows (none: all), seed by seed and row by row, in the order of doing.

    Raises:
        OlivineError: a negative seed, or a row that the study has not.
    """
    unknown = [row for row in rows if row not in study.rows]
    if unknown:
        raise OlivineError(f"no row {unknown[0]!r}", where="olivine study", remedy=f"rows are {', '.join(study.rows)}")
    for seed in seeds:
        if seed < 0:
            raise OlivineError(f"seed {seed} is negative", where="olivine study", remedy="give a number from 0 on")
        for name, settings in study.rows.items():
            if rows and name not in rows:
                continue
            before = _pretraining(study, ground, settings)
            for stage in study.stages:
                if stage == "pretrain" and settings is not None:
                    yield Run(name, seed, stage, before)
                elif stage == "probe":
                    decisive = _decisive(study.probe) | ({"probes": study.probes} if study.probes > 1 else {})
                    yield Run(name, seed, stage, {"pretrain": before, stage: decisive, **ground.digests()})
                elif stage != "pretrain" and name in (study.finetune[stage].rows or (name,)):
                    how = study.finetune[stage]
                    apart = {"rounds": how.rounds, "streets": how.streets}
                    decisive = _decisive(how.settings) | {key: value for key, value in apart.items() if value}
                    digests = ground.digests(how.shards)
                    yield Run(name, seed, stage, {"pretrain": before, "finetune": decisive, **digests})


def _pretraining(study: StudySettings, ground: Ground, settings: PretrainSettings | None) -> dict[str, Any]:
    """What decides a row's weights, but for the seed."""
    if settings is None:
        decisive = {k: v for k, v in flat_values(study.random).items() if k.startswith(_NETWORK)}
        own = {name: code for name, code in codes_of(study.random).items() if name == study.random.backbone.name}
        return {"random": True, "settings": decisive} | ({"code": own} if own else {})
    decisive = {k: v for k, v in flat_values(settings).items() if k not in INCIDENTAL and k != "seed"}
    decisive = {k: v for k, v in decisive.items() if _YOUNGER.get(k) != v}
    decisive = {k: list(v) if isinstance(v, tuple) else v for k, v in decisive.items()}
    encoder = {"weights": ground.encoder_of(settings), "features": study.features}
    code = {"code": codes} if (codes := codes_of(settings)) else {}
    return {"settings": decisive, "encoder": encoder, "train": ground.train_of(settings).digest, **code}


def _decisive(settings: SegmentationSettings) -> dict[str, Any]:
    younger = (*SENSOR, "part", "drop_path")  # of which rows that may be kept know nothing
    unnamed = {*HOW, "seed", *(name for name in younger if not getattr(settings, name))}
    return {key: value for key, value in asdict(settings).items() if key not in unnamed}


def run_study(
    study: StudySettings,
    out: PathLike,
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] = (),
    *,
    other_processors: bool = False,
) -> StudySummary:
    """Do what is left of a study, and make its table.

    Processes that are given the same folder share its rows: each takes what no other is at.

    Args:
        study: see :func:`~olivine.study.config.load_study`.
        out: the study's folder.
        seeds, rows: run these only; by default the study's. The table has all that the folder holds.
        other_processors: a row and seed that is whole on the shards of another processor, see
            :func:`~olivine.study.rows.read_rows`, is not run again.

    Raises:
        OlivineError: the shards or weights are missing, the folder cannot be written, or it holds rows of other shards than
            those of another processor.
        KeyboardInterrupt: what is finished stays, and the run at hand goes on from its checkpoint.
    """
    out, seeds = Path(out), study.seeds if seeds is None else seeds
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OlivineError(
            "torchrun started several processes of one study, and a run of it has one",
            where="olivine study",
            remedy="start it without torchrun, once for each GPU (CUDA_VISIBLE_DEVICES=0, 1, …): they share the rows",
        )
    ground = open_ground(study)
    runs = list(plan_study(study, ground, seeds, rows))
    write_json(out / "study.json", study.plain)  # first: by it the folder is known as a study's
    (out / "rows").mkdir(exist_ok=True)
    remove_leftovers(out / "rows")
    numbered = [(f"{number}/{len(runs)}", run) for number, run in enumerate(runs, 1)]
    left = [list(group) for _, group in groupby(numbered, key=lambda one: (one[1].row, one[1].seed))]
    if other_processors:
        left = [group for group in left if not all(find_row(out, run, other_processors=True) for _, run in group)]
    done, failures = 0, list[Failure]()
    for _ in range(2):  # again those of a process that has ended meanwhile
        held = []
        for group in left:
            try:
                more, failed = _do_row(study, ground, group, out)
            except HeldError:
                held.append(group)
                continue
            done, failures = done + more, failures + failed
        left = held
    others = sum(find_row(out, run) is None for group in left for _, run in group)
    kept = len(runs) - done - len(failures) - others
    # One process at a time, so that the last to end reads the rows of all.
    with locked(out / ".table.lock", wait_for="the table, which another process writes"):
        # Rows of other seeds that this very study made earlier belong into the table as well.
        every = list(plan_study(study, ground, sorted({*study.seeds, *seeds})))
        found = [(run.file(out), find_row(out, run, other_processors=other_processors)) for run in every]
        finished = [(path, row) for path, row in found if row is not None]
        check_held_out(finished)
        table, picture = write_table(study, [row for _, row in finished], out)
        costs: dict[str, list[Path]] = {}
        for run in every:
            if run.stage == "pretrain":
                costs.setdefault(run.row, []).append(out / "runs" / _folder_name(study, ground, run))
        write_bytes(out / "cost.md", cost_table(costs).encode())
    return StudySummary(out, len(runs), done, kept, table, picture, failures, others)


def _do_row(
    study: StudySettings, ground: Ground, runs: Sequence[tuple[str, Run]], out: Path
) -> tuple[int, list[Failure]]:
    """Do what is left of one row and seed: how many runs were done, and what failed.

    Raises:
        HeldError: another process is at this row and seed.
    """
    done, failures, broken = 0, list[Failure](), False
    if all(find_row(out, run) for _, run in runs):
        return done, failures
    folder = out / "runs" / _folder_name(study, ground, runs[0][1])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".row.lock"):
        for number, run in runs:
            if find_row(out, run) is not None:
                continue
            if broken:
                failures.append(Failure(run.unit, "the pre-training before it could not be done"))
                continue
            started = time.monotonic()
            try:
                result = _do(study, ground, run, out)
            except OlivineError as error:
                failures.append(Failure(run.unit, str(error)))
                broken = run.stage == "pretrain"
                continue
            write_row(out, run, result)
            _note_time(out, run, time.monotonic() - started, number)
            done += 1
    return done, failures


def list_study(
    study: StudySettings,
    out: PathLike,
    seeds: Sequence[int],
    rows: Sequence[str] = (),
    *,
    other_processors: bool = False,
) -> list[dict[str, str]]:
    """What :func:`run_study` would do: each run, whether it is done, its digest, and the row's own switches."""
    switches = study.plain["rows"]
    return [
        {
            "run": run.unit,
            "state": "to do" if find_row(Path(out), run, other_processors=other_processors) is None else "done",
            "configuration": run.digest[:16],
            "switches": ", ".join(f"{k}={v}" for k, v in (switches[run.row] or {}).items()) or "–",
        }
        for run in plan_study(study, open_ground(study), seeds, rows)
    ]


def study_power(out: PathLike, points: float, *, other_processors: bool = False) -> str:
    """How many seeds each claim of a study's folder needs, see :func:`~olivine.study.table.power_table`.

    Raises:
        OlivineError: the folder holds no study.
    """
    path, remedy = Path(out) / "study.json", "name a folder that olivine study wrote"
    study = study_from_plain(demand(read_json(path, remedy), dict, path, remedy), str(path))
    rows = read_rows([Path(out)], other_processors=other_processors)
    return power_table(study, Measures.of(rows, study.classes), points)


def merge_studies(folders: Sequence[PathLike], out: PathLike, *, other_processors: bool = False) -> StudySummary:
    """Join the rows of folders of one study, for example one seed each, and make the table.

    Args:
        other_processors: see :func:`~olivine.study.rows.read_rows`; the table says which seeds are of which shards.

    Raises:
        OlivineError: a folder holds no study or another one, rows of different configurations, or a seed that none names.
    """
    places, out = [Path(folder) for folder in folders], Path(out)
    remedy = "name folders that olivine study wrote"
    plain = [demand(read_json(path, remedy), dict, path, remedy) for path in (place / "study.json" for place in places)]
    for place, other in zip(places[1:], plain[1:]):
        if {**other, "seeds": None} != {**plain[0], "seeds": None}:
            raise OlivineError(
                f"holds another study than {places[0]}", where=place, remedy="merge folders of one study"
            )
    plans = [study_from_plain(one, str(place / "study.json")) for place, one in zip(places, plain)]
    study, planned = plans[0], sorted({seed for plan in plans for seed in plan.seeds})
    rows = read_rows(places, other_processors=other_processors)
    for row in rows:
        if row.seed not in planned:
            raise OlivineError(
                f"{row.row}, {row.stage} is of seed {row.seed}, which the study has not",
                where=next(place for place in places if Run(row.row, row.seed, row.stage, {}).file(place).is_file()),
                remedy=f"leave the folder out, or add the seed to the study's file (seeds: {planned}) and run it there",
            )
    for row in rows:
        write_row(out, Run(row.row, row.seed, row.stage, row.configuration), row.result)
    write_json(out / "study.json", {**plain[0], "seeds": planned})
    table, picture = write_table(study, rows, out)
    return StudySummary(out, len(rows), 0, len(rows), table, picture)


def write_table(study: StudySettings, rows: Sequence[Row], out: Path) -> tuple[Path, Path]:
    """``table.md``, ``table.csv`` and ``table.png`` of some rows."""
    measures = Measures.of(rows, study.classes)
    table, picture = out / "table.md", out / "table.png"
    write_bytes(table, as_markdown(study, measures, facts_of(study, rows)).encode())
    write_bytes(out / "table.csv", as_csv(rows).encode())
    write_bytes(out / "settings.md", settings_table(study).encode())
    if study.tables:
        write_bytes(picture, draw_study(study, measures))
    return table, picture


def _do(study: StudySettings, ground: Ground, run: Run, out: Path) -> dict[str, Any]:
    """Carry out one run; its result as plain values."""
    settings = study.rows[run.row]
    folder = out / "runs" / _folder_name(study, ground, run)
    if run.stage == "pretrain":
        assert settings is not None
        return _pretrain(study, ground, settings, run.seed, folder, out)
    if settings is None and not (folder / "last.pt").is_file():
        _save_random(replace(study.random, seed=run.seed), folder / "last.pt")
    scored = folder / f"{run.stage}-{run.digest[:8]}"
    if run.stage == "probe":
        shards = Path(study.shards)
        where = (folder, shards / "train", shards / "val")
        results = []
        kept = KeptFeatures(study.probe.memory) if study.probes > 1 else None
        for number in range(study.probes):
            place = scored / f"probe-{number}" if study.probes > 1 else scored
            probe = replace(study.probe, seed=run.seed + number * _APART)
            results.append(linear_probe(*where, place, probe, random=False, kept=kept)[0])
    else:
        how = study.finetune[run.stage]
        places = [scored / f"street-{number}" for number in range(how.streets)] or [scored]
        results = [
            _finetune(how, Path(study.shards), folder, place, run.seed, run.seed * how.streets + number)
            for number, place in enumerate(places)
        ]
    weak = results[0].labels_mean_iou
    return mean_result(results) | ({} if weak is None else {"labels_mean_iou": weak})


_APART = 1_000_003
"""Between the seeds of a run's probes: further than a study's seeds."""


def mean_result(results: Sequence[Result]) -> dict[str, Any]:
    """Scores of one network's probes or fine-tunings as plain values: their means, and the scenes' counts added up."""
    plain = [asdict(one.scores) for one in results]
    mean = {key: _mean([one[key] for one in plain]) for key in plain[0]}
    scenes: dict[str, dict[str, list[int]]] = {name: {} for name in results[0].by_scene}
    for one in results:
        for name, counts in one.by_scene.items():
            for kind, count in counts.items():
                before = scenes[name].get(kind, [0] * len(count))
                scenes[name][kind] = [a + b for a, b in zip(before, count)]
    return {**mean, "absent": list(results[0].scores.absent), "by_scene": scenes}


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers, of a dictionary's numbers; of anything else the first."""
    if isinstance(values[0], dict):
        return {key: _mean([one[key] for one in values]) for key in values[0]}
    if isinstance(values[0], float) and len(values) > 1:
        return sum(values) / len(values)
    return values[0]


def _finetune(how: Finetuning, shards: Path, folder: Path, scored: Path, seed: int, street: int) -> Result:
    """One fine-tuning, on the ``street``-th part of the labels; of rounds the last counts."""
    where = (folder, shards / how.shards / "train", shards / how.shards / "val", scored)
    part = (how.settings.part + street) % round(100 / how.settings.fraction)
    settings = replace(how.settings, seed=seed, part=part)
    if how.rounds:
        return finetune_rounds(*where, settings, rounds=how.rounds)[-1]
    return finetune(*where, settings)


def _pretrain(
    study: StudySettings, ground: Ground, settings: PretrainSettings, seed: int, folder: Path, out: Path
) -> dict[str, Any]:
    train = ground.train_of(settings)
    settings = replace(settings, seed=seed, data=replace(settings.data, shards=str(train.path)))
    if study.features == "stored" and needs_of(settings).encoder:
        encoder = build_encoder(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        features = out / "features"
        features.mkdir(exist_ok=True)
        with locked(features / ".maps.lock", wait_for="the encoder's maps of the images, which another process makes"):
            stored = store_maps(train, settings, encoder, features)[0].folder
        settings = replace(settings, image=replace(settings.image, stored=str(stored)))
    forget_peak_memory()
    summary = pretrain(settings, folder)
    if summary.interrupted:
        raise KeyboardInterrupt
    return {"steps": summary.steps}


def _folder_name(study: StudySettings, ground: Ground, run: Run) -> str:
    before = Run(run.row, run.seed, "pretrain", _pretraining(study, ground, study.rows[run.row]))
    return f"{slug(run.row)}.seed-{run.seed}.{before.digest[:8]}"


def _save_random(settings: PretrainSettings, path: Path) -> None:
    """A checkpoint of random weights, so that they are probed and fine-tuned like any other."""
    network = seeded_backbone(settings, settings.seed)
    content = {"settings": settings_to_plain(settings), "backbone": backbone_arguments(settings)}
    save_checkpoint(
        path, {"kind": "pretrain", "step": 0, **content, "backbone_state": network.state_dict(), "method_state": {}}
    )


def _note_time(out: Path, run: Run, seconds: float, of: str) -> None:
    """A line of the log: durations are no part of a row, which is compared and merged."""
    path = out / "times.csv"
    try:
        with open(path, "a", encoding="utf-8") as log:
            log.write(f"{slug(run.row)},{run.seed},{run.stage},{seconds:.1f},{of}\n")
    except OSError as error:
        raise disk_error(error, path) from error
