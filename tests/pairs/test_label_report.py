"""What looks wrong without ground truth: counts against plain loops, and planted errors that are found."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from olivine.common import OlivineError, write_json
from olivine.labelgen.store import LabelStore, encode_label_map, write_record
from olivine.pairs.build import build_pairs
from olivine.pairs.label_report import DISTANCES, REASONS, _Counts, check_labels, report_text
from olivine.pairs.manifest import write_benchmark
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers.benchmark import Benchmark
from olivine.readers.frame import Frame
from olivine.readers.index import write_index

MakeStore = Callable[..., LabelStore]
FRAMES, ODD = 7, 3


def overlapping(store: LabelStore, planted: Callable[[np.ndarray], np.ndarray] = lambda label: label) -> None:
    """Both cameras of all frames look ahead at the first cloud; left of each picture is 1, right is 3, but for errors.

    The maps of frame ``ODD`` are ``planted``.
    """
    index, rng = store.index(), np.random.default_rng(1)
    frames = [frame for scene in index.scenes for frame in scene.frames()]
    cloud = (frames[0].root / frames[0].point_file).read_bytes()
    labels = (frames[0].root / str(frames[0].point_label_file)).read_bytes()
    changed: list[Frame] = []
    for k, frame in enumerate(frames):
        (frame.root / frame.point_file).write_bytes(cloud)
        (frame.root / str(frame.point_label_file)).write_bytes(labels)
        front, back = frame.cameras
        cameras = (front, replace(front, name=back.name, image=back.image))
        for camera in cameras:
            label = np.where(np.arange(camera.width) < camera.width // 2, 1, 3) * np.ones((camera.height, 1))
            wrong = rng.random(label.shape) < 0.1
            label[wrong] = rng.integers(0, 4, int(wrong.sum()))
            label = (planted(label) if k == ODD else label).astype(np.uint8)
            store.label_path(camera).write_bytes(encode_label_map(label, store.classes))
        changed.append(replace(frame, cameras=cameras))
    write_index(
        store.root / "frames", changed, dataset="nuscenes", version="v0", root=index.root,
        point_classes=index.point_classes,
    )  # fmt: skip


def test_counts_are_those_of_plain_loops(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 3, "b": 2})
    overlapping(store)
    build_pairs(store, tmp_path / "pairs", PairSettings(), split="train")
    report, shards = check_labels(tmp_path / "pairs", store, tmp_path / "out"), open_shards(tmp_path / "pairs")
    names = ["no label", *shards.classes]
    far = collections.Counter()
    same = different = 0
    rivals: collections.Counter = collections.Counter()
    for record in shards:
        given = collections.defaultdict(list)
        for point, label in zip(record.pair_point, record.pair_label):
            far[sum(np.linalg.norm(record.points[point, :3]) >= low for low in DISTANCES) - 1, names[label]] += 1
            if label:
                given[point].append(names[label])
        for labels in given.values():
            if len(labels) == 2:
                same += labels[0] == labels[1]
                different += labels[0] != labels[1]
                if labels[0] != labels[1]:
                    rivals[frozenset(labels)] += 1
    for k, low in enumerate(DISTANCES):
        total = sum(far[k, name] for name in names)
        for name in names:
            share = report.shares_by_distance[f"{low:g} m"][name]
            assert share == pytest.approx(100 * far[k, name] / max(total, 1))
    assert report.camera_agreement == pytest.approx(100 * same / (same + different)) and different > 10
    assert report.by_cameras == {"CAM_FRONT, CAM_BACK": (same + different, pytest.approx(report.camera_agreement))}
    assert {frozenset((r.one, r.other)): r.count for r in report.competing} == dict(rivals)
    assert [r.count for r in report.competing] == sorted(rivals.values(), reverse=True)
    assert (report.images, report.images_unlabelled, report.vote_agreement) == (10, 0, None)
    plain = json.loads((tmp_path / "out/labels.json").read_text())
    assert plain["reasons"] == REASONS and plain["frames"] == [asdict(s) for s in report.frames]
    assert len(report.frames) == 5 and "two cameras agree" in report_text(report)


PLANTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unlabelled": lambda label: np.where(np.random.default_rng(0).random(label.shape) < 0.9, 0, label),
    "vote": lambda label: np.choose(label.astype(int), [0, 3, 3, 1]),  # left and right are swapped
    "jump": lambda label: np.full(label.shape, 2),
}


def test_two_cameras_are_compared_though_a_third_says_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    build_pairs(store, tmp_path / "pairs", PairSettings(), split="train")
    counts = _Counts(open_shards(tmp_path / "pairs"))
    point, camera = np.array([7, 7, 5, 5, 7]), np.array([0, 1, 0, 1, 1])
    record = SimpleNamespace(pair_point=point, pair_camera=camera)
    assert counts._add_cameras(record, np.array([1, 0, 2, 2, 3], np.uint8)) == (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", PLANTED)
def test_a_frame_with_a_planted_error_is_ranked_first(reason: str, make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": FRAMES})
    overlapping(store, PLANTED[reason])
    build_pairs(store, tmp_path / "pairs", PairSettings(consolidate=FRAMES), split="train")
    report = check_labels(tmp_path / "pairs")
    worst, second = report.frames[:2]
    assert worst.frame == ODD and worst.suspicion > 2 * second.suspicion
    values = np.array([frame.values[reason] for frame in report.frames])
    usual = (values - np.median(values)) / max(1.4826 * np.median(np.abs(values - np.median(values))), 0.01)
    assert values.argmax() == 0 and worst.suspicion >= usual[0] - 1e-9
    if reason == "unlabelled":
        assert worst.reason == "unlabelled"
    if reason == "vote":
        # Of what is 1 in its own map in this frame, the vote says 3; in the six others nine tenths are confirmed.
        assert report.vote_agreement == pytest.approx(100 * 0.93 * 6 / 7, abs=4)
        assert report.competing[0] == replace(report.competing[0], one="car", other="building")


def test_detections_that_share_a_box_and_images_without_any_are_found(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    overlapping(store)
    build_pairs(store, tmp_path / "pairs", PairSettings(), split="train")
    report = check_labels(tmp_path / "pairs", store)
    assert report.images_undetected is None
    assert report.notes == [f"a is not finished in {store.root}; its detections are not looked at"]
    keys = [camera.key for frame in store.index().frames() for camera in frame.cameras]
    box = [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 10], [5, 5, 9, 9]]
    table = {"image": [0, 0, 0, 1, 3], "class": [1, 2, 3, 2, 1], "box": box, "score": [], "text_score": [], "area": []}
    digests = [store.label_path(c).name for frame in store.index().frames() for c in frame.cameras]
    record = {"images": keys, "sha256": digests, "pixels": [0], "notes": {}, "detections": table}
    write_record(store.root / "units/a.json", record)
    report = check_labels(tmp_path / "pairs", store)
    assert (report.images_undetected, report.undetected, report.notes) == (1, [keys[2]], [])
    # 90 of 100 pixels; the other box in the first image has 40, and the one in the second image is another's.
    (found,) = report.overlapping
    assert (found.one, found.other, found.count, found.percent) == ("car", "road", 1, 50.0)
    assert keys[2] in report_text(report) and "compete for the same box" in report_text(report)
    write_record(store.root / "units/a.json", {**record, "detections": {**table, "class": [1, 2, 9, 2, 1]}})
    with pytest.raises(OlivineError, match=r"a\.json: holds detections that are none"):
        check_labels(tmp_path / "pairs", store)


def test_the_labels_of_other_shards_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    build_pairs(store, tmp_path / "pairs", PairSettings(), split="train")
    with pytest.raises(OlivineError, match="holds other labels than these shards were made of"):
        check_labels(tmp_path / "pairs", replace(store, digest="other"))


def rounds_of(run: Path, shards: ShardSet, rng: np.random.Generator, rounds: int = 2) -> list[list[np.ndarray]]:
    """Made-up labels of some rounds, in files as ``olivine finetune --rounds`` writes them, and as arrays."""
    made = []
    for number in range(1, rounds + 1):
        labels = [rng.integers(0, 3, len(record.points)).astype(np.uint8) for record in shards]
        folder = run / f"labels-{number}"
        folder.mkdir(parents=True)
        for frame, label in enumerate(labels):
            (folder / f"{frame:06d}.bin").write_bytes(label.tobytes())
        files = [hashlib.sha256(label.tobytes()).hexdigest() for label in labels]
        identity = {"teacher": "", "sure": 0.9, "shards": shards.digest}
        plain = {"identity": identity, "classes": ["vehicle", "ground"], "kept": 0.5, "files": files}
        write_json(folder / "labels.json", plain)
        made.append(labels)
    return made


def test_agreement_over_rounds_is_that_of_plain_counts(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 3})
    overlapping(store)
    build_pairs(store, tmp_path / "pairs", PairSettings(consolidate=1), split="train")
    write_benchmark(tmp_path / "pairs", Benchmark(prompts={"vehicle": "car", "ground": "road"}))
    shards = open_shards(tmp_path / "pairs")
    one, two = rounds_of(tmp_path / "run", shards, np.random.default_rng(2))
    report = check_labels(tmp_path / "pairs", rounds=tmp_path / "run")
    names = {"weak": ["", *shards.classes], "labels-1": ["", "vehicle", "ground"]}
    weak = [record.point_weak for record in shards]
    as_prompt = np.array([0, shards.classes.index("car") + 1, shards.classes.index("road") + 1])
    for found, before, after, given in zip(
        report.rounds, (weak, one), ([as_prompt[label] for label in one], two), (one, two), strict=True
    ):
        a, b = np.concatenate(before), np.concatenate(after)
        both = (a > 0) & (b > 0)
        assert found.both == both.sum() > 0 and found.percent == pytest.approx(100 * (a == b)[both].mean())
        assert found.labelled == pytest.approx(100 * np.mean(np.concatenate(given) > 0))
        assert found.by_class == {
            names[found.before][c]: ((both & (a == c)).sum(), pytest.approx(100 * (a == b)[both & (a == c)].mean()))
            for c in np.unique(a[both])
        }
    assert [(r.before, r.after) for r in report.rounds] == [("weak", "labels-1"), ("labels-1", "labels-2")]
    assert "labels-1 and labels-2 agree at" in report_text(report) and not check_labels(tmp_path / "pairs").rounds


def test_rounds_of_other_shards_or_with_changed_labels_are_named(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    build_pairs(store, tmp_path / "pairs", PairSettings(), split="train")
    shards = open_shards(tmp_path / "pairs")
    with pytest.raises(OlivineError, match="no folder labels-1"):
        check_labels(tmp_path / "pairs", rounds=tmp_path)
    rounds_of(tmp_path / "one", shards, np.random.default_rng(0), rounds=1)
    with pytest.raises(OlivineError, match="holds the labels of one round"):
        check_labels(tmp_path / "pairs", rounds=tmp_path / "one")
    rounds_of(tmp_path / "two", shards, np.random.default_rng(0))
    path = tmp_path / "two/labels-2/000001.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(OlivineError, match=r"labels-2/000001\.bin: has changed since it was written"):
        check_labels(tmp_path / "pairs", rounds=tmp_path / "two")
    build_pairs(store, tmp_path / "others", PairSettings(min_depth=2.0), split="train")
    with pytest.raises(OlivineError, match=r"labels-1: holds labels of other shards"):
        check_labels(tmp_path / "others", rounds=tmp_path / "two")
