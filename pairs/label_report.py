"""What of weak labels looks wrong, told without ground truth: where views disagree, what is missing, what competes.

It reads the pairs of a set of shards, the detections of the label store that they were made of, and the labels that the
rounds of a fine-tuning gave the same points.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, track, write_json
from ..labelgen.store import LabelStore
from .manifest import label_maps, of_other_maps, read_entries
from .round_labels import RoundAgreement, compare_rounds
from .shards import FrameRecord, ShardSet, open_shards

NO_LABEL = "no label"
DISTANCES = (0.0, 10.0, 20.0, 40.0)
"""Metres from the sensor, where a row of the table begins."""
SAME_BOX = 0.7
"""Two detections whose boxes' intersection is this part of their union are of one thing."""
NAMED = 100
"""Images that are listed by name, at most."""
_LEAST = 0.01
"""A share that differs by less from the usual one is no reason for suspicion, however alike all others are."""
REASONS = {
    "unlabelled": "share of its points without a label",
    "cameras": "share of points to which two cameras give different labels",
    "jump": "half the difference of its class shares to those of the frames before and after",
    "vote": "share of labels that the vote overrules",
    "unsure": "1 - mean score of its labels",
}
"""What a frame is suspected for."""
TELLING = ("vote", "cameras")
"""Of these the first that is known ranks the frames: where views disagree, labels are wrong (docs/labelgen.md)."""
OUTLIER = 5.0
"""The other values count only from so many usual deviations on: by less they differ for many a good reason."""


@dataclass(frozen=True)
class Suspect:
    """A frame and how far it is from the usual.

    Attributes:
        suspicion: how far a value is over the median of all frames, in their usual deviations (1.48 times the median one,
            at least 1 %; negative: under it): of :data:`TELLING` the first that is known, or an :data:`OUTLIER` that is
            further.
        reason: the name of that value, a key of :data:`REASONS`; "" where none is over the median.
        values: by those names, 0 to 1; what is not known of the frame is left out.
    """

    token: str
    scene: str
    frame: int
    suspicion: float
    reason: str
    values: dict[str, float]


@dataclass(frozen=True)
class Rivals:
    """Two labels that are given to the same things.

    Attributes:
        count: how often.
        percent: of all that the rarer of the two is given to.
    """

    one: str
    other: str
    count: int
    percent: float


@dataclass
class LabelReport:
    """What :func:`check_labels` found; shares in percent.

    Attributes:
        score: what the pairs' score is; "" where they have none.
        shares: of each label, of all pairs.
        shares_by_distance: the same from each of :data:`DISTANCES` metres on.
        camera_agreement: points that two cameras see and label, with the same label; None where there is none.
        by_cameras: the same for each two cameras: points, percent.
        vote_agreement: labels at the pairs' own pixels that the vote confirms; None without a vote.
        vote_by_class: the same for each label.
        competing: labels that another view of the same point, or the vote, gives another name to; the most frequent first.
        overlapping: the same of detections with one box; empty without a label store or detections.
        images, images_unlabelled: camera images, and those of them without any labelled pair.
        images_undetected: images in which nothing was detected; None without a label store, or where its labeler
            records no detections.
        undetected: their names, the first :data:`NAMED`.
        frames: all, the most suspicious first.
        rounds: agreement of the labels of successive rounds of ``olivine finetune --rounds``; empty without such a run.
        notes: what could not be looked at.
    """

    dataset: str
    split: str
    shards: str
    labels: str
    classes: list[str]
    score: str
    pairs: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    shares_by_distance: dict[str, dict[str, float]] = field(default_factory=dict)
    camera_agreement: float | None = None
    by_cameras: dict[str, tuple[int, float]] = field(default_factory=dict)
    vote_agreement: float | None = None
    vote_by_class: dict[str, float] = field(default_factory=dict)
    competing: list[Rivals] = field(default_factory=list)
    overlapping: list[Rivals] = field(default_factory=list)
    images: int = 0
    images_unlabelled: int = 0
    images_undetected: int | None = None
    undetected: list[str] = field(default_factory=list)
    frames: list[Suspect] = field(default_factory=list)
    rounds: list[RoundAgreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_labels(
    path: PathLike,
    store: LabelStore | None = None,
    out: PathLike | None = None,
    rounds: PathLike | None = None,
) -> LabelReport:
    """Look for weak labels that are wrong, without any ground truth.

    Args:
        path: a set of shards; those of a vote (``build-pairs --consolidate``) say most.
        store: the labels that they were made of, for their detections.
        out: folder for ``labels.json``, which holds all of the report; nothing is written without one.
        rounds: folder of an ``olivine finetune --rounds k`` on these shards, whose labels are compared round by round.

    Raises:
        OlivineError: no shards, damaged ones, or the labels or rounds of others.
    """
    shards = open_shards(path)
    if store is not None and (
        store.digest != shards.manifest["recipe"]["labels"]
        or any(of_other_maps(entry, label_maps(store, entry["scene"])) for entry in read_entries(shards.path))
    ):
        raise OlivineError(
            "holds other labels than these shards were made of",
            where=store.root,
            remedy=f"name the label folder of {shards.path} with --labels, or leave it out",
        )
    agreement = [] if rounds is None else compare_rounds(shards, rounds)
    counted = _Counts(shards)
    for frame in track(range(len(shards)), "check", unit="frame"):
        counted.add(shards.read(frame, counted.columns))
    names = [NO_LABEL, *shards.classes]
    report = LabelReport(
        shards.dataset, shards.split, shards.digest, shards.manifest["recipe"]["labels"], names, shards.score_name
    )
    counted.fill(report)
    report.rounds = agreement
    if store is not None:
        _detections(store, shards, report)
    if out is not None:
        write_json(Path(out) / "labels.json", {"kind": "label report", "reasons": REASONS, **asdict(report)})
    return report


class _Counts:
    """What is counted over frames."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards, self.size = shards, len(shards.classes) + 1
        self.voted, self.scored = shards.has("pair_pixel_label"), shards.has("pair_score")
        self.columns = ["points", "pair_point", "pair_camera", "pair_label"]
        self.columns += ["pair_pixel_label"] * self.voted + ["pair_score"] * self.scored
        cameras = len(shards.cameras)
        self.by_distance = np.zeros((len(DISTANCES), self.size), np.int64)
        self.pairs_of_labels = np.zeros((self.size, self.size), np.int64)  # what two views of one point say
        self.vote = np.zeros((self.size, self.size), np.int64)  # own label, the vote's
        self.cameras = np.zeros((cameras, cameras, 2), np.int64)  # different, same
        self.images = self.unlabelled = 0
        self.histograms: list[NDArray[np.float64]] = []
        self.suspects: list[Suspect] = []

    def add(self, record: FrameRecord) -> None:
        """Count one frame."""
        label = record.pair_pixel_label if self.voted else record.pair_label
        distance = np.linalg.norm(record.points[record.pair_point, :3].astype(np.float64), axis=1)
        row = np.digitize(distance, DISTANCES) - 1
        self.by_distance += np.bincount(row * self.size + label, minlength=self.by_distance.size).reshape(-1, self.size)
        images = np.zeros((len(self.shards.cameras), self.size), np.int64)
        np.add.at(images, (record.pair_camera, label), 1)
        self.images += len(images)
        self.unlabelled += int((images[:, 1:].sum(axis=1) == 0).sum())
        histogram = images.sum(axis=0)
        values = {"unlabelled": float(histogram[0] / max(histogram.sum(), 1))}
        different, both = self._add_cameras(record, label)
        if both:
            values["cameras"] = different / both
        if self.voted:
            known = (label > 0) & (record.pair_label > 0)
            np.add.at(self.vote, (label[known], record.pair_label[known]), 1)
            values["vote"] = float((label[known] != record.pair_label[known]).mean()) if known.any() else 0.0
        if self.scored and (sure := record.pair_score[(record.pair_label > 0) & (record.pair_score > 0)]).size:
            values["unsure"] = 1 - float(sure.mean()) / 255
        named = histogram[1:].astype(np.float64)
        self.histograms.append(named / max(named.sum(), 1))
        self.suspects.append(Suspect(record.token, record.scene, record.frame_index, 0.0, "", values))

    def _add_cameras(self, record: FrameRecord, label: NDArray[np.uint8]) -> tuple[int, int]:
        """Points that two cameras label: how many differently, and how many in all."""
        labelled = np.flatnonzero(label)
        order = labelled[np.argsort(record.pair_point[labelled], kind="stable")]
        point, camera, label = record.pair_point[order], record.pair_camera[order], label[order]
        both = point[1:] == point[:-1]
        one, other = label[:-1][both], label[1:][both]
        np.add.at(self.pairs_of_labels, (np.minimum(one, other), np.maximum(one, other)), 1)
        np.add.at(self.cameras, (camera[:-1][both], camera[1:][both], (one == other).astype(int)), 1)
        return int((one != other).sum()), len(one)

    def fill(self, report: LabelReport) -> None:
        """Enter the sums into the report."""
        names, total = report.classes, self.by_distance.sum(axis=0)
        report.pairs, report.images, report.images_unlabelled = int(total.sum()), self.images, self.unlabelled
        report.shares = _shares(total, names)
        for low, row in zip(DISTANCES, self.by_distance):
            report.shares_by_distance[f"{low:g} m"] = _shares(row, names)
        seen = self.cameras.sum(axis=(0, 1))
        report.camera_agreement = 100 * float(seen[1] / seen.sum()) if seen.sum() else None
        for a, one in enumerate(self.shards.cameras):
            for b, other in enumerate(self.shards.cameras):
                if count := int(self.cameras[a, b].sum()):
                    report.by_cameras[f"{one}, {other}"] = (count, 100 * float(self.cameras[a, b, 1] / count))
        if self.voted and self.vote.sum():
            report.vote_agreement = 100 * float(np.trace(self.vote) / self.vote.sum())
            of = self.vote.sum(axis=1)
            report.vote_by_class = {names[k]: 100 * float(self.vote[k, k] / of[k]) for k in np.flatnonzero(of)}
        clash = self.vote + self.vote.T if self.voted else self.pairs_of_labels + self.pairs_of_labels.T
        report.competing = _rivals(clash, total if self.voted else clash.sum(axis=1), names)
        report.frames = _ranked(self._with_jumps())

    def _with_jumps(self) -> list[Suspect]:
        """The frames, each with how far its class shares are from the mean of its neighbours' in the scene."""
        found = []
        for k, suspect in enumerate(self.suspects):
            near = [j for j in (k - 1, k + 1) if 0 <= j < len(self.suspects)]
            beside = [self.histograms[j] for j in near if self.suspects[j].scene == suspect.scene]
            if beside:
                jump = 0.5 * float(np.abs(self.histograms[k] - np.mean(beside, axis=0)).sum())
                suspect = replace(suspect, values={**suspect.values, "jump": jump})
            found.append(suspect)
        return found


def _shares(count: NDArray[np.int64], names: list[str]) -> dict[str, float]:
    return {name: 100 * float(n) / max(int(count.sum()), 1) for name, n in zip(names, count)}


def _rivals(clash: NDArray[np.int64], total: NDArray[np.int64], names: list[str]) -> list[Rivals]:
    """The pairs of labels in a symmetric count, the most frequent first; ``total``: of each label."""
    found = []
    for a, b in zip(*np.triu_indices(len(names), 1)):
        if count := int(clash[a, b]):
            found.append(Rivals(names[a], names[b], count, 100 * count / max(int(min(total[a], total[b])), 1)))
    return sorted(found, key=lambda rivals: (-rivals.count, rivals.one, rivals.other))


def _ranked(suspects: list[Suspect]) -> list[Suspect]:
    """The frames with their suspicion, the highest first."""
    usual: dict[str, tuple[float, float]] = {}
    for name in REASONS:
        values = np.array([s.values[name] for s in suspects if name in s.values])
        if len(values):
            middle = float(np.median(values))
            usual[name] = middle, max(1.4826 * float(np.median(np.abs(values - middle))), _LEAST)
    ranked = []
    for suspect in suspects:
        over = {name: (v - usual[name][0]) / usual[name][1] for name, v in suspect.values.items()}
        telling = next((name for name in TELLING if name in over), "")
        counts = {name: far for name, far in over.items() if name == telling or far > OUTLIER}
        worst = max(counts, key=lambda name: counts[name], default="")
        far = counts.get(worst, 0.0)
        ranked.append(replace(suspect, suspicion=far, reason=worst if far > 0 else ""))
    return sorted(ranked, key=lambda s: (-s.suspicion, s.scene, s.frame))


def _detections(store: LabelStore, shards: ShardSet, report: LabelReport) -> None:
    """Images without a detection, and classes whose boxes are the same, of the scenes of the shards."""
    clash = np.zeros((len(report.classes),) * 2, np.int64)
    total = np.zeros(len(report.classes), np.int64)
    empty: list[str] = []
    for scene in shards.scenes:
        if (record := store.unit(scene)) is None:
            report.notes.append(f"{scene} is not finished in {store.root}; its detections are not looked at")
            continue
        image, value, box = _table(record["detections"], len(report.classes), store.root / "units" / f"{scene}.json")
        total += np.bincount(value, minlength=len(total))
        for position, name in enumerate(record["images"]):
            mine = image == position
            if not mine.any():
                empty.append(name)
                continue
            one, other = np.nonzero(np.triu(_overlap(box[mine]) >= SAME_BOX, 1))
            a, b = value[mine][one], value[mine][other]
            np.add.at(clash, (a[a != b], b[a != b]), 1)
    if total.any():  # else its labeler records none
        report.images_undetected, report.undetected = len(empty), empty[:NAMED]
        report.overlapping = _rivals(clash + clash.T, total, report.classes)


def _table(
    table: dict[str, Any], labels: int, where: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Image, class and box of each detection of a unit's record.

    Raises:
        OlivineError: the record is damaged.
    """
    try:
        image, value = np.array(table["image"], np.int64), np.array(table["class"], np.int64)
        box = np.array(table["box"], np.float64).reshape(len(image), 4)
        good = len(value) == len(image) and (not len(value) or (value.min() >= 1 and value.max() < labels))
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        remedy = "delete it and run olivine labelgen again"
        raise OlivineError("holds detections that are none", where=where, remedy=remedy)
    return image, value, box


def _overlap(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [N, 4] (left, top, right, bottom), [N, N]."""
    low = np.maximum(box[:, None, :2], box[None, :, :2])
    high = np.minimum(box[:, None, 2:], box[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    area = (box[:, 2:] - box[:, :2]).prod(axis=1)
    union = area[:, None] + area[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def report_text(report: LabelReport, most: int = 10) -> str:
    """The report as tables that a person reads; of each list the first ``most``."""
    columns = [*report.shares_by_distance]
    lines = [
        *report.notes,
        f"{'labels, percent of the pairs':30} {'all':>9}" + "".join(f"{f'from {c}':>12}" for c in columns),
    ]
    for name in report.classes:
        row = [report.shares[name], *(report.shares_by_distance[c][name] for c in columns)]
        if any(row):
            lines.append(f"  {name:28} {row[0]:9.2f}" + "".join(f"{value:12.2f}" for value in row[1:]))
    if report.vote_agreement is not None:
        lines.append(f"the vote confirms {report.vote_agreement:.1f} % of the labels; least often")
        worst = sorted(report.vote_by_class.items(), key=lambda item: item[1])[:most]
        lines += [f"  {name:28} {percent:9.1f} %" for name, percent in worst]
    if report.camera_agreement is not None:
        lines.append(f"two cameras agree at {report.camera_agreement:.1f} % of the points that both label; least")
        least = sorted(report.by_cameras.items(), key=lambda item: item[1][1])[:most]
        lines += [f"  {name:40} {percent:5.1f} % of {count:,}" for name, (count, percent) in least]
    for title, found in (
        ("labels that compete for the same points", report.competing),
        ("labels that compete for the same box", report.overlapping),
    ):
        if found:
            lines.append(title)
            lines += [
                f"  {f'{r.one}, {r.other}':40} {r.count:9,} ({r.percent:.1f} % of the rarer)" for r in found[:most]
            ]
    for r in report.rounds:
        said = (
            "no point in common" if r.percent is None else f"{r.percent:.1f} % of the {r.both:,} points that both label"
        )
        lines.append(f"{r.before} and {r.after} agree at {said}; {r.after} labels {r.labelled:.1f} % of all; least")
        least = sorted(r.by_class.items(), key=lambda item: item[1][1])[:most]
        lines += [f"  {name:28} {percent:9.1f} % of {count:,}" for name, (count, percent) in least]
    lines.append(f"images without any labelled point: {report.images_unlabelled:,} of {report.images:,}")
    if report.images_undetected is not None:
        lines.append(f"images in which nothing was detected: {report.images_undetected:,}")
        lines += [f"  {name}" for name in report.undetected[:most]]
    lines.append("frames to look at first")
    for s in report.frames[:most]:
        if s.reason:
            why = f"{REASONS[s.reason]} {100 * s.values[s.reason]:.1f} %"
            lines.append(f"  {s.suspicion:6.1f}  {s.scene} frame {s.frame} ({s.token}): {why}")
    return "\n".join(lines)
