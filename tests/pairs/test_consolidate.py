"""Labels by vote: what the frames around call a place repairs what one picture got wrong."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from olivine.common import OlivineError, write_json
from olivine.labelgen.store import LabelStore, encode_label_map, encode_score_map, open_store
from olivine.pairs import unit
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards, describe_shards
from olivine.pairs.consolidate import SceneVotes, _image_numbers, count_votes, height_over_ground
from olivine.pairs.frames import build_frame
from olivine.pairs.manifest import write_benchmark
from olivine.pairs.project import project_points
from olivine.pairs.score import score_pairs
from olivine.pairs.settings import ConsolidationSettings, PairSettings
from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers.benchmark import Benchmark
from olivine.readers.frame import Box, Frame
from olivine.readers.index import write_index

MakeStore = Callable[..., LabelStore]
Contents = Callable[[Path], dict[str, bytes]]
VOTED = PairSettings(consolidate=5)
WRONG = 0.2
"""Share of pixels that each label map has wrong, drawn anew for each."""


def says_of(
    place: np.ndarray, label: np.ndarray, weight: np.ndarray, image: np.ndarray, edge: float
) -> dict[tuple, dict[int, np.ndarray]]:
    """By voxel and image: the mean of the image's votes there, float64 [6]."""
    votes: dict[tuple, dict[int, list]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for p, c, w, i in zip(place, label, weight, image):
        votes[tuple(np.floor(p / edge).astype(int))][i].append(w * np.eye(6)[c])
    return {voxel: {i: np.mean(given, axis=0) for i, given in of.items()} for voxel, of in votes.items()}


def test_the_share_of_the_votes_is_that_of_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    place, point = rng.uniform(-3, 3, (400, 3)), rng.uniform(-4, 4, (300, 3))
    label, weight = rng.integers(1, 6, 400).astype(np.uint8), rng.uniform(0.1, 1, 400)
    image, doubled = rng.integers(0, 4, 400), rng.integers(0, 3, 300)
    said = says_of(place, label, weight, image, 1.0)
    agreed: dict[tuple[int, int], list[float]] = collections.defaultdict(list)
    for p, c, i in zip(place, label, image):
        others = sum(say for j, say in said[tuple(np.floor(p).astype(int))].items() if j != i)
        if np.any(others):
            agreed[i, c].append(others[c] / others.sum())  # type: ignore[index,union-attr]
    usual = np.mean([share for shares in agreed.values() for share in shares])
    assert 100 < sum(map(len, agreed.values())) < 400
    trusted = [(sum(agreed[i, c]) + 7 * usual) / (len(agreed[i, c]) + 7) for i, c in zip(image, label)]
    expected = np.zeros((300, 6))
    for k in range(5):
        edge = 0.25 * 2**k
        box = {voxel: sum(of.values()) for voxel, of in says_of(place, label, weight * trusted, image, edge).items()}
        for i, p in enumerate(point):
            key = tuple(np.floor(p / edge).astype(int))
            if doubled[i] <= k < doubled[i] + 3 and key in box:
                expected[i] += box[key] / (0.4 + box[key].sum())  # type: ignore[union-attr]
    sums = expected.sum(axis=1)
    assert 0 < (sums == 0).sum() < 200
    expected[sums > 0] /= sums[sums > 0, None]
    settings = ConsolidationSettings(voxel=0.25, sizes=3, half_say=0.4, compared=7.0)
    found = count_votes(place, label, weight, image, point, doubled, 5, settings)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def street(store: LabelStore, change: Callable[[int, Frame], Frame] = lambda k, frame: frame) -> None:
    """All frames of a made-up store see the first one's points; left of each picture is 1, right is 3, but for errors."""
    index, rng = store.index(), np.random.default_rng(1)
    frames = [frame for scene in index.scenes for frame in scene.frames()]
    cloud = (frames[0].root / frames[0].point_file).read_bytes()
    labels = (frames[0].root / str(frames[0].point_label_file)).read_bytes()
    for frame in frames:
        (frame.root / frame.point_file).write_bytes(cloud)
        (frame.root / str(frame.point_label_file)).write_bytes(labels)
        for camera in frame.cameras:
            label = np.where(np.arange(camera.width) < camera.width // 2, 1, 3) * np.ones((camera.height, 1))
            wrong = rng.random(label.shape) < WRONG
            label[wrong] = 4 - label[wrong]
            store.label_path(camera).write_bytes(encode_label_map(label.astype(np.uint8), store.classes))
    changed = [change(k, frame) for k, frame in enumerate(frames)]
    write_index(
        store.root / "frames", changed, dataset="nuscenes", version="v0", root=index.root,
        point_classes=index.point_classes,
    )  # fmt: skip


def test_an_image_that_several_frames_have_is_one_image(make_store: MakeStore) -> None:
    frames = list(make_store({"a": 3}).index().frames())
    numbers = _image_numbers(frames, 2, 4)
    assert np.concatenate(numbers).tolist() == list(range(12))  # of images of their own as it ever was
    slow = [frames[0], replace(frames[1], cameras=(frames[0].cameras[0], frames[1].cameras[1])), frames[2]]
    assert np.concatenate(_image_numbers(slow, 2, 4)).tolist() == [0, 1, 2, 3, 0, 5, 2, 7, 8, 9, 10, 11]


def test_an_image_that_two_frames_have_does_not_confirm_itself(make_store: MakeStore) -> None:
    """What the frame itself says outweighs one other image, and not two: the one before and after it are the same."""
    store = make_store({"a": 3}, points=2000)
    street(store)
    frames = list(store.index().frames())
    for frame, other in ((frames[0], 1), (frames[1], 3)):
        for camera in frame.cameras:
            label = np.where(np.arange(camera.width) < camera.width // 2, 1, other) * np.ones((camera.height, 1))
            store.label_path(camera).write_bytes(encode_label_map(label.astype(np.uint8), store.classes))
    frames[2] = replace(frames[2], cameras=frames[0].cameras)
    made = build_frame(frames[1], 1, store, PairSettings())
    settings = ConsolidationSettings(compared=1e9)  # all are trusted alike
    found = SceneVotes(frames, 1, store, 1.0, settings).columns(1, made.columns)
    mine = found["pair_pixel_label"] == 3
    assert mine.sum() > 100 and (found["pair_label"][mine] == 3).mean() > 0.9


def right(shards: ShardSet, column: str) -> float:
    """Share of pairs whose label is that of its half of the picture, a few pixels off the border."""
    hits = total = 0
    for record in shards:
        width = record.image_size[record.pair_camera, 0]
        u = record.pair_uv[:, 0] / width
        clear = np.abs(u - 0.5) > 0.1
        hits += (getattr(record, column) == np.where(u < 0.5, 1, 3))[clear].sum()
        total += clear.sum()
    return float(hits / total)


def scored(store: LabelStore, score_of: Callable[[np.ndarray], np.ndarray]) -> LabelStore:
    """The store of :func:`street` with a score map for each label map."""
    for frame in store.index().frames():
        for camera in frame.cameras:
            label = store.label_map(camera)
            path = store.score_path(camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_score_map(score_of(label).astype(np.uint8), label))
    plain = {"schema": "1.0", "classes": list(store.classes), "settings": {"scores": "made up"}}
    write_json(store.root / "manifest.json", plain)
    return open_store(store.root)


def doubt(label: np.ndarray) -> np.ndarray:
    """A score that knows what is wrong in a street: 25 there, else 250."""
    return np.where(label == np.where(np.arange(label.shape[1]) < label.shape[1] // 2, 1, 3), 250, 25)


def test_pairs_carry_the_labelers_score_at_their_pixel_and_the_shards_say_so(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 2})
    street(store)
    build_pairs(store, tmp_path / "before", PairSettings(), split="train")
    store = scored(store, doubt)
    build_pairs(store, tmp_path / "after", PairSettings(), split="train")
    before, after = open_shards(tmp_path / "before"), open_shards(tmp_path / "after")
    assert (before.score_name, after.score_name) == ("", "of the labeler: made up")
    assert not before.has("pair_score") and after.has("pair_score") and not after.has("point_weak")
    group = zarr.open_group(str(tmp_path / "after/shard-00000.zarr"), mode="r")
    assert group.attrs["pair_score"] == after.score_name == describe_shards(tmp_path / "after").pair_score
    frames = list(store.index().frames())
    for record, plain, frame in zip(after, before, frames):
        np.testing.assert_array_equal(record.pair_label, plain.pair_label)
        maps = np.stack([doubt(store.label_map(camera)) for camera in frame.cameras])
        _, camera, uv = project_points(frame.points(), frame.cameras)
        column, row = np.rint(uv).astype(int).T
        np.testing.assert_array_equal(record.pair_score, maps[camera, row, column])
    assert not check_shards(tmp_path / "after").failures


def test_a_vote_weighs_by_the_labelers_score_and_what_is_not_known_has_none(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 4})
    street(store)
    found = {}
    for name, score_of in (
        ("alike", lambda label: np.full(label.shape, 200)),
        ("doubt", doubt),
        ("known", lambda label: np.where(doubt(label) == 25, 0, 250)),
        ("none", lambda label: np.zeros(label.shape)),
    ):
        store = scored(store, score_of)
        build_pairs(store, tmp_path / name, VOTED, split="train")
        shards = open_shards(tmp_path / name)
        assert shards.score_name == "share of the votes at the pair's point, weighed by the labeler's scores"
        found[name] = right(shards, "pair_label")
    assert found["alike"] < found["doubt"] - 0.02 and found["doubt"] > 0.98
    assert not any(record.point_weak.any() or record.pair_score.any() for record in open_shards(tmp_path / "none"))
    assert found["none"] == pytest.approx(1 - WRONG, abs=0.03)  # the pixels' own labels stay
    wrong = 1 - found["known"]  # where no camera is right
    assert wrong < 0.02


def test_a_vote_of_labels_that_are_all_as_sure_is_the_vote_without_scores(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 3})
    street(store)
    build_pairs(store, tmp_path / "plain", VOTED, split="train")
    build_pairs(scored(store, lambda label: np.full(label.shape, 255)), tmp_path / "sure", VOTED, split="train")
    for plain, sure in zip(open_shards(tmp_path / "plain"), open_shards(tmp_path / "sure")):
        for name in ("point_weak", "point_agreement", "pair_label", "pair_score"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(sure, name))
    assert open_shards(tmp_path / "plain").score_name == "share of the votes at the pair's point"


def test_pairs_are_scored_by_the_classes_of_their_points(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 4})
    street(store)
    build_pairs(scored(store, doubt), tmp_path / "single", PairSettings(), split="train")
    build_pairs(scored(store, doubt), tmp_path / "voted", VOTED, split="train")
    for name in ("single", "voted"):
        path = tmp_path / name
        write_benchmark(path, Benchmark(prompts={"vehicle": "car", "ground": "building"}))
        found, label_of = score_pairs(path), np.array([0, 1, 3])
        before, after, sure = [], [], []
        for record in open_shards(path):
            truth = label_of[record.point_label][record.pair_point]
            after += (record.pair_label == truth)[truth > 0].tolist()
            own = record.pair_label if name == "single" else record.pair_pixel_label
            before += (own == truth)[truth > 0].tolist()
            sure += record.pair_score[truth > 0].tolist()
        before, after, sure = np.array(before), np.array(after), np.array(sure) / 255  # type: ignore[assignment]
        assert found.pairs == len(after) and found.right == pytest.approx(100 * after.mean())  # type: ignore[attr-defined]
        assert found.calibration.said == pytest.approx(100 * sure.mean())  # type: ignore[attr-defined]
        if name == "voted":
            assert found.right_before == pytest.approx(100 * before.mean())  # type: ignore[attr-defined]
            assert found.repaired == pytest.approx(100 * after[~before].mean())  # type: ignore[index,operator]
            assert found.spoilt == pytest.approx(100 - 100 * after[before].mean())  # type: ignore[index]
        else:
            assert found.repaired is None and found.score == "of the labeler: made up"
    write_benchmark(tmp_path / "single", Benchmark(prompts={"vehicle": "boat"}))
    with pytest.raises(OlivineError, match="no weak label is a class of the points"):
        score_pairs(tmp_path / "single")


def test_labels_that_differ_by_picture_are_repaired_and_the_pixels_own_are_kept(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 9})
    street(store)
    build_pairs(store, tmp_path / "single", PairSettings(), split="train")
    summary = build_pairs(store, tmp_path / "voted", VOTED, split="train")
    single, voted = open_shards(tmp_path / "single"), open_shards(tmp_path / "voted")
    assert not single.has_vote and voted.has("point_weak") and voted.has("pair_pixel_label")
    assert right(single, "pair_label") == pytest.approx(1 - WRONG, abs=0.03)
    assert right(voted, "pair_label") > 0.9  # a majority of six to nine of these
    assert summary.labels_changed == sum((r.pair_label != r.pair_pixel_label).sum() for r in voted) > 0
    for before, after in zip(single, voted):
        np.testing.assert_array_equal(after.pair_pixel_label, before.pair_label)
        np.testing.assert_array_equal(after.pair_point, before.pair_point)
        np.testing.assert_array_equal(after.pair_label, after.point_weak[after.pair_point])
        np.testing.assert_array_equal(np.bincount(after.pair_label, minlength=4), after.class_count)
        seen = np.zeros(len(after.points), bool)
        seen[after.pair_point] = True
        assert (after.point_agreement[seen] > 255 / 4).all()
        assert (after.point_agreement[after.point_weak == 0] == 0).all()
    assert not check_shards(tmp_path / "voted").failures


def test_bytes_do_not_depend_on_shards_or_on_a_second_run(
    contents: Contents, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"a": 4, "b": 1})
    street(store)
    build_pairs(store, tmp_path / "one", VOTED, split="train")
    before = contents(tmp_path / "one")
    assert build_pairs(store, tmp_path / "one", VOTED, split="train").frames_built == 0
    assert contents(tmp_path / "one") == before
    monkeypatch.setattr(unit, "FRAMES_PER_SHARD", 1)  # every frame's neighbours are in other units
    build_pairs(store, tmp_path / "many", replace(VOTED, workers=2), split="train")
    for whole, part in zip(open_shards(tmp_path / "one"), open_shards(tmp_path / "many")):
        for name in ("point_weak", "point_agreement", "pair_label", "pair_pixel_label"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(part, name))


@pytest.mark.parametrize(
    ("pose", "says"),
    [
        (np.full((4, 4), np.nan), "has no pose, which --consolidate needs"),
        (np.array([[1, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "the pose jumps by 500 m in 0.5 s"),
    ],
)
def test_poses_that_are_missing_or_jump_are_named(
    pose: np.ndarray, says: str, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 3})
    street(store, lambda k, frame: replace(frame, pose=pose) if k == 1 else frame)
    summary = build_pairs(store, tmp_path / "out", VOTED, split="train")
    assert len(summary.failures) == 3 and summary.frames == 0
    assert all(says in failure.reason and "a-token-0001" in failure.reason for failure in summary.failures[:2])


def test_height_is_over_the_lowest_point_of_the_cells_around() -> None:
    xyz = np.random.default_rng(0).uniform(-6, 6, (500, 3))
    cell = np.floor(xyz[:, :2] / 1.5)
    near = (np.abs(cell[:, None] - cell[None]) <= 1).all(axis=2)
    lowest = np.where(near, xyz[None, :, 2], np.inf).min(axis=1)
    np.testing.assert_array_equal(height_over_ground(xyz, 1.5), xyz[:, 2] - lowest)
    assert len(height_over_ground(xyz[:0], 1.5)) == 0


def test_ground_has_no_vote_above_the_ground(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    street(store)
    for frame in store.index().frames():
        for camera in frame.cameras:
            road = np.full((camera.height, camera.width), store.classes.index("road") + 1, np.uint8)
            store.label_path(camera).write_bytes(encode_label_map(road, store.classes))
    build_pairs(store, tmp_path / "out", VOTED, split="train")
    for record in open_shards(tmp_path / "out"):
        high = height_over_ground(record.points[:, :3].astype(float), 1.0) > 0.3
        # Each vote is in its point's smallest voxel, which no vote of the ground shares here.
        voted = record.point_weak > 0
        assert 20 < voted.sum() < len(voted) and high[record.pair_point].any()
        assert voted[record.pair_point][~high[record.pair_point]].mean() > 0.7


def test_a_lidar_that_hangs_upside_down_has_the_same_ground(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    street(store)  # "road" is one of its labels
    build_pairs(store, tmp_path / "upright", VOTED, split="train")
    over = np.diag([1.0, -1.0, -1.0, 1.0])

    def hang(k: int, frame: Frame) -> Frame:
        points = frame.points()
        points[:, 1:3] *= -1
        points.tofile(frame.root / frame.point_file)
        cameras = tuple(replace(c, lidar_to_camera=c.lidar_to_camera @ over) for c in frame.cameras)
        return replace(frame, cameras=cameras, pose=frame.pose @ over, up=(0.0, 0.0, -1.0))

    frames = [hang(k, frame) for k, frame in enumerate(store.index().frames())]
    names = store.index().point_classes
    write_index(
        store.root / "frames", frames, dataset="nuscenes", version="v0", root=frames[0].root, point_classes=names
    )
    build_pairs(store, tmp_path / "hanging", VOTED, split="train")
    for one, other in zip(open_shards(tmp_path / "upright"), open_shards(tmp_path / "hanging"), strict=True):
        assert np.array_equal(one.point_weak, other.point_weak) and len(np.unique(one.point_weak)) > 2
        assert np.array_equal(one.pair_score, other.pair_score)


def test_another_folder_of_labels_votes_beside_the_first_as_further_images(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """The counts are those of the plain sum over both; with exact labels it repairs nearly all, with itself nothing."""
    store = make_store({"a": 2})
    street(store)
    other = tmp_path / "exact"
    shutil.copytree(store.root, other)
    for frame in store.index().frames():
        for camera in frame.cameras:
            label = np.where(np.arange(camera.width) < camera.width // 2, 1, 3) * np.ones((camera.height, 1))
            (other / f"{camera.key}.png").write_bytes(encode_label_map(label.astype(np.uint8), store.classes))
    both = store.with_votes_of([other])
    build_pairs(store, tmp_path / "alone", VOTED, split="train")
    build_pairs(both, tmp_path / "both", VOTED, split="train")
    alone, joined = open_shards(tmp_path / "alone"), open_shards(tmp_path / "both")
    assert right(joined, "pair_pixel_label") == right(alone, "pair_pixel_label") < 0.85
    assert right(joined, "pair_label") > right(alone, "pair_label")
    assert joined.manifest["recipe"]["labels_that_vote_too"] == [store.digest]  # the made-up stores have one manifest
    assert "labels_that_vote_too" not in alone.manifest["recipe"]
    assert not check_shards(tmp_path / "both").failures
    with pytest.raises(OlivineError, match="labels_that_vote_too"):
        build_pairs(both, tmp_path / "alone", VOTED, split="train")


def test_labels_that_cannot_vote_beside_others_are_refused_in_one_line(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    with pytest.raises(OlivineError, match=r"votes twice.*Name each label folder once"):
        store.with_votes_of([store.root])
    other = tmp_path / "other"
    shutil.copytree(store.root, other)
    write_json(other / "manifest.json", {"schema": "1.0", "classes": ["one", "two"], "settings": {}})
    with pytest.raises(OlivineError, match=r"cannot vote beside those of .*classes.*same prompts"):
        store.with_votes_of([other])
    elsewhere, index = tmp_path / "elsewhere", store.index()
    shutil.copytree(store.root, elsewhere)
    frames = [replace(frame, timestamp=frame.timestamp + 1) for frame in index.frames()]
    write_index(
        elsewhere / "frames", frames, dataset=index.dataset, version=index.version, root=index.root,
        point_classes=index.point_classes,
    )  # fmt: skip
    with pytest.raises(OlivineError, match=r"are of other frames than those of .*Label the same folder"):
        store.with_votes_of([elsewhere])
    with pytest.raises(OlivineError, match=r"there is no vote.*--consolidate"):
        build_pairs(replace(store, also=(store,)), tmp_path / "out", PairSettings(), split="train")


def moving_car(store: LabelStore) -> Callable[[Frame], list[Box]]:
    """In each frame of a made-up store a block of points stands 8 m further on; its label is right in all but one frame.

    Returns:
        its box in a frame.
    """
    frames = list(store.index().frames())
    block = np.random.default_rng(3).uniform(-1, 1, (200, 3)) * (2, 1, 0.8)
    for k, frame in enumerate(frames):
        at = np.array([8.0 + 8 * k, 0, 0])
        points = np.column_stack([block + at, np.zeros(len(block))]).astype(np.float32)
        points.tofile(frame.root / frame.point_file)
        (frame.root / str(frame.point_label_file)).write_bytes(bytes([1]) * len(points))
        for camera in frame.cameras:
            label = np.full((camera.height, camera.width), 3 if k == 1 else 1, np.uint8)
            store.label_path(camera).write_bytes(encode_label_map(label, store.classes))

    def boxes(frame: Frame) -> list[Box]:
        k = [f.token for f in frames].index(frame.token)
        return [Box("car", (8.0 + 8 * k, 0, 0.2), (4.2, 2.2, 2.2), (1, 0, 0, 0), 200, "this one")]

    return boxes


def test_a_moving_thing_is_followed_by_its_box_and_only_when_asked(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"a": 4})
    monkeypatch.setattr(Frame, "boxes", (boxes := moving_car(store)))
    build_pairs(store, tmp_path / "still", VOTED, split="train")
    build_pairs(store, tmp_path / "tracks", replace(VOTED, tracks=True), split="train")
    still, tracks = open_shards(tmp_path / "still"), open_shards(tmp_path / "tracks")
    assert tracks.uses_boxes and not still.uses_boxes and "tracks" not in still.manifest["recipe"]["settings"]
    for k, (alone, followed) in enumerate(zip(still, tracks, strict=True)):
        assert (alone.pair_label == (3 if k == 1 else 1)).all() and len(alone.pair_label) > 50
        assert (followed.pair_label == 1).all()
        assert (followed.pair_pixel_label == 3).all() if k == 1 else (followed.pair_pixel_label == 1).all()

    # A box of another thing in the frame that errs: nothing tells it better.
    monkeypatch.setattr(Frame, "boxes", lambda f: [replace(b, track=f.token) for b in boxes(f)])
    build_pairs(store, tmp_path / "other", replace(VOTED, tracks=True), split="train")
    assert (open_shards(tmp_path / "other").read(1, ("pair_label",)).pair_label == 3).all()


def test_tracks_that_the_data_set_has_not_are_named(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"a": 1})
    for found in (None, [Box("car", (0, 0, 0), (1, 1, 1), (1, 0, 0, 0), 3)]):
        monkeypatch.setattr(Frame, "boxes", lambda frame, found=found: found)
        summary = build_pairs(store, tmp_path / "out", replace(VOTED, tracks=True), split="train")
        (failure,) = summary.failures
        assert "no annotated boxes with tracks, which --tracks needs" in failure.reason
    with pytest.raises(OlivineError, match="tracks without consolidate"):
        PairSettings(tracks=True)


def test_a_window_of_a_thousand_frames_is_enough() -> None:
    with pytest.raises(OlivineError, match="frames on each side"):
        PairSettings(consolidate=1001)
