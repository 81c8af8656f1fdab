"""What a study runs: rows of switches, seeds, stages, the tables to make of them. Read from YAML and checked.

name: study-demo
shards: data/pairs/nuscenes        # holds train/ and val/
ground: olivine synth && …         # the command that makes them
preset: cpu
seeds: [0, 1, 2]
features: stored                   # the frozen encoder's maps of whole images, computed once; or encoder
set: {run.steps: 300}              # for every row; null in a row: its preset's own
probe: {epochs: 20, augment: false}  # a frame's features are computed once, not in every epoch
probes: 3                          # heads of seeds of their own whose mean is a run's score; 1 without
classes: [car, vegetation]         # those with points enough, whose mean tables and claims with "over: classes" take
finetune: {fraction: 1, streets: 2}  # on so many parts of the labels, others for each seed; none without
# Several, each a stage with a name of its own:
# finetune: {weak: {labels: weak}, voted: {labels: weak, shards: ../voted, rounds: 1}, truth: {rows: [random, whole]}}
rows:
  random: null                     # weights from the seed, not pre-trained
  InfoNCE: {method.wcd: false, method.scr: false}
  whole: {}
  UOV-TMP: {method.name: uov-tmp, data.shards: ../regions}  # its own train/, of the same frames: beside the study's shards
tables:
  - {title: Table 5, stage: probe, rows: [random, InfoNCE, whole], against: InfoNCE}
claims:
  - {stage: probe, better: whole, than: InfoNCE, by: 5}
  - {stage: probe, better: whole, than: WCD, beyond: [SCR, InfoNCE]}  # the first gain over the second: an interaction
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..common import OlivineError, PathLike
from ..common.settings import read_yaml_file, settings_from_plain, settings_to_plain
from ..downstream.settings import FinetuneSettings, ProbeSettings
from ..train.released import KEYS
from ..train.settings import CONFIGS, PretrainSettings, load_settings, read_settings


@dataclass(frozen=True)
class Table:
    """Rows shown together, each against one of them.

    Attributes:
        title: above the table.
        stage: whose mean IoU: ``probe``, ``finetune``, or a fine-tuning's name.
        rows: names, in order.
        against: the row that differences are taken from.
        over: the mean IoU over all classes, or over the study's ``classes``.
    """

    title: str = ""
    stage: str = "probe"
    rows: tuple[str, ...] = ()
    against: str = ""
    over: Literal["all", "classes"] = "all"


@dataclass(frozen=True)
class Finetuning:
    """One way to fine-tune.

    Attributes:
        rows: that are fine-tuned so; empty for all.
        settings: of the training.
        shards: folder of the labels that it learns from and is scored on, from the study's ``shards`` on; "" for those.
        rounds: of the network's own labels, see :func:`~olivine.downstream.rounds.finetune_rounds`.
        streets: parts of the labels (see ``SegmentationSettings.part``) that each seed is fine-tuned on, in turn and on
            others than the seed before; their mean is a run's score. 0 for the published part, for every seed.
    """

    settings: FinetuneSettings
    shards: str = ""
    rounds: int = 0
    rows: tuple[str, ...] = ()
    streets: int = 0


@dataclass(frozen=True)
class Claim:
    """What the study is to show: row ``better`` over row ``than`` by more than ``by`` points of mean IoU.

    Attributes:
        than_stage: of ``than``, where it is another stage than ``better``'s.
        beyond: two rows whose gain, the first over the second, is taken from that of ``better`` over ``than``: an
            interaction.
        over: as of a table.
    """

    stage: str = "probe"
    better: str = ""
    than: str = ""
    by: float = 0.0
    than_stage: str = ""
    beyond: tuple[str, ...] = ()
    over: Literal["all", "classes"] = "all"


@dataclass(frozen=True)
class _Plain:
    """The YAML's scalar part, for its checks."""

    name: str = "study"
    shards: str = "data/pairs/nuscenes"
    ground: str = "olivine build-pairs"
    preset: str = "cpu"
    seeds: tuple[int, ...] = (0,)
    features: Literal["stored", "encoder"] = "stored"
    probes: int = 1
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Apart:
    """What a fine-tuning of a study has besides its settings."""

    shards: str = ""
    rounds: int = 0
    rows: tuple[str, ...] = ()
    streets: int = 0


@dataclass(frozen=True)
class StudySettings:
    """A study.

    Attributes:
        name: of the study.
        shards: folder that holds ``train`` and ``val``; ``ground`` the command that makes them.
        seeds: of the runs.
        features: ``stored``, the encoder's maps of whole images read from files; or ``encoder``.
        rows: name → settings of its pre-training (seed 0; shards where it names its own, from ``shards`` on); None for
            random weights.
        random: settings of the random weights' network.
        probe: of the linear probe; ``probes`` how many heads, of seeds of their own, whose mean is a run's score.
        classes: those that ``over: classes`` means.
        finetune: name of the stage → fine-tuning; empty for none.
        tables, claims: what is made of the scores.
        plain: as read, for the record.
    """

    name: str
    shards: str
    ground: str
    seeds: tuple[int, ...]
    features: str
    rows: dict[str, PretrainSettings | None]
    random: PretrainSettings
    probe: ProbeSettings
    probes: int
    classes: tuple[str, ...]
    finetune: dict[str, Finetuning]
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    plain: dict[str, Any] = field(repr=False)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a pre-trained row."""
        return ("pretrain", "probe", *self.finetune)


def load_study(config: PathLike) -> StudySettings:
    """Read a study's YAML: a file, or the name of one that comes with the package.

    Raises:
        OlivineError: no such file; a key, row or switch that is not known (the nearest is named); a wrong value.
    """
    path = Path(config)
    if not path.is_file():
        path = CONFIGS / Path(str(config)).with_suffix(".yaml").name
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in CONFIGS.glob("study-*.yaml")))
        raise OlivineError("no such study", where=config, remedy=f"use one of {there}, or a file")
    plain = read_yaml_file(path)
    if not isinstance(plain, dict):
        raise OlivineError("is not a table of settings", where=path, remedy="see configs/study-demo.yaml")
    return study_from_plain(plain, str(path))


def study_from_plain(plain: dict[str, Any], where: str) -> StudySettings:
    """A study from the plain values of its YAML; see :func:`load_study`."""
    apart = ("rows", "set", "tables", "claims", "finetune", "probe")
    known = settings_from_plain(_Plain, {k: v for k, v in plain.items() if k not in apart}, where)
    rows = _mapping(plain.get("rows"), "rows", where)
    if not rows:
        raise OlivineError("names no rows", where=where, remedy="see configs/study-demo.yaml")
    if not known.seeds or len(set(known.seeds)) != len(known.seeds) or min(known.seeds) < 0:
        raise OlivineError(f"seeds are {list(known.seeds)}", where=where, remedy="give different numbers from 0 on")
    base = settings_to_plain(load_settings(known.preset))
    if known.features == "stored":
        base["augment"] |= {"crop": False, "flip_image": 0.0}
    everywhere = _mapping(plain.get("set"), "set", where)
    slugs = [slug(str(name)) for name in rows]
    if len(set(slugs)) != len(slugs):
        raise OlivineError("two rows have names that make one file name", where=where, remedy="rename one")

    def settings(name: str, changes: Mapping[str, Any]) -> PretrainSettings:
        place = f"{where}: row {name!r}" if name else f"{where}: set"
        taken = {key: v for key, v in everywhere.items() if changes.get(key, v) is not None}
        own = {key: v for key, v in changes.items() if v is not None or key not in everywhere}
        found = read_settings(_changed(base, {**taken, **own}, place), place)
        return replace(found, run=_on_one_device(found.run, f"{place}: run"))

    tables = tuple(_part(Table, t, "tables", where) for t in plain.get("tables") or ())
    claims = tuple(_part(Claim, c, "claims", where) for c in plain.get("claims") or ())
    finetune = _finetunings(plain.get("finetune"), where)
    if known.probes < 1:
        raise OlivineError(f"{known.probes} probes", where=where, remedy="give at least 1")
    for part in (*tables, *claims):
        if part.over == "classes" and not known.classes:
            raise OlivineError("over: classes, and no classes", where=where, remedy="name them: classes: [car, …]")
    if wrong := [c.beyond for c in claims if len(c.beyond) not in (0, 2)]:
        raise OlivineError(f"beyond is {list(wrong[0])}", where=where, remedy="give two rows, the better one first")
    named = [(t.stage, [*t.rows, t.against]) for t in tables] + [(c.stage, [c.better, *c.beyond]) for c in claims]
    named += [(c.than_stage or c.stage, [c.than]) for c in claims]
    named += [(stage, list(one.rows)) for stage, one in finetune.items()]
    for stage, names in named:
        if stage != "probe" and stage not in finetune:
            there = ", ".join(("probe", *finetune))
            raise OlivineError(f"no stage {stage!r}", where=where, remedy=f"use {there}, or add it under finetune")
        for name in names:
            if name not in rows:
                raise _unknown_row(name, rows, where)
    return StudySettings(
        known.name,
        known.shards,
        known.ground,
        known.seeds,
        known.features,
        {str(name): None if v is None else settings(name, _mapping(v, name, where)) for name, v in rows.items()},
        settings("", {}),
        _on_one_device(
            settings_from_plain(ProbeSettings, _mapping(plain.get("probe"), "probe", where), f"{where}: probe"),
            f"{where}: probe",
        ),
        known.probes,
        known.classes,
        finetune,
        tables,
        claims,
        plain,
    )


def _finetunings(value: Any, where: str) -> dict[str, Finetuning]:
    """The stages of the section ``finetune``: one without a name, or several with names."""
    plain = _mapping(value, "finetune", where)
    if value is None:
        return {}
    if not plain or not all(isinstance(one, Mapping) for one in plain.values()):
        plain = {"finetune": plain}
    found = {}
    for name, one in plain.items():
        place = f"{where}: finetune" + ("" if name == "finetune" else f" {name!r}")
        if str(name) in ("pretrain", "probe") or slug(str(name)) != str(name):
            raise OlivineError("cannot be a stage's name", where=place, remedy="use another, of letters and digits")
        change = dict(one)
        apart = {key: change.pop(key) for key in ("shards", "rounds", "rows", "streets") if key in change}
        kept = settings_from_plain(_Apart, apart, place)
        settings = _on_one_device(settings_from_plain(FinetuneSettings, change, place), place)
        found[str(name)] = Finetuning(settings, kept.shards, kept.rounds, kept.rows, kept.streets)
        if kept.rounds < 0 or (kept.rounds and found[str(name)].settings.labels != "weak"):
            raise OlivineError(f"{kept.rounds} rounds", where=place, remedy="rounds are for labels: weak, from 1 on")
        parts = round(100 / settings.fraction)
        if kept.streets < 0 or (kept.streets and not 1 < parts >= kept.streets):
            raise OlivineError(
                f"{kept.streets} streets of {settings.fraction:g} %, which has {parts} part" + "s" * (parts > 1),
                where=place,
                remedy="give fewer, or take a smaller fraction",
            )
    return found


def _on_one_device(settings: Any, where: str) -> Any:
    """Settings whose ``devices`` are 1: processes that one run has started would each begin another row."""
    if settings.devices not in ("auto", "1") or settings.nodes != 1:
        raise OlivineError(
            f"devices is {settings.devices} and nodes {settings.nodes}; a run of a study has one device",
            where=where,
            remedy="leave them out, and start olivine study once for each GPU (CUDA_VISIBLE_DEVICES=0, 1, …): "
            "they share the rows",
        )
    return replace(settings, devices="1")


def slug(name: str) -> str:
    """A row's name as part of a file name; the plus sign, which names rows, is kept."""
    return re.sub(r"[^A-Za-z0-9+]+", "-", name).strip("-")


def _changed(base: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nested plain settings with dotted keys changed."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    changes = {KEYS.get(str(key), str(key)): value for key, value in changes.items()}
    for section in ("method", "backbone"):  # another one has other settings
        if changes.get(f"{section}.name", result.get(section, {}).get("name")) != result.get(section, {}).get("name"):
            result[section] = {}
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        if "." in section:
            raise OlivineError(f"no setting {key!r}", where=where, remedy="see olivine pretrain --print-config")
        place = result.setdefault(section, {}) if section else result
        if not isinstance(place, dict):
            raise OlivineError(f"{section} is a value, not a section", where=where, remedy=f"set {section}")
        place[last] = value
    return result


def _mapping(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OlivineError(f"{key} is {value!r}, expected names with values", where=where, remedy=f"change {key}")
    return value


def _part(kind: Any, value: Any, key: str, where: str) -> Any:
    return settings_from_plain(kind, _mapping(value, key, where), f"{where}: {key}")


def _unknown_row(name: str, rows: Mapping[str, Any], where: str) -> OlivineError:
    import difflib

    near = difflib.get_close_matches(name, list(rows), 1, 0.0)
    return OlivineError(f"no row {name!r}", where=where, remedy=f"did you mean {near[0]!r}?")
