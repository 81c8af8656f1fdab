"""Clusters of two scans: one number for one thing in both, whatever shard or worker they are made in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.labelgen.store import LabelStore
from olivine.pairs import unit
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.clusters import ClusterSettings, SceneClusters, cluster, fit_ground, level
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers.frame import UP, Frame
from olivine.readers.index import write_index
from olivine.train.augment import AugmentSettings
from olivine.train.loader import FrameStream, StreamSettings

MakeStore = Callable[..., LabelStore]
Contents = Callable[[Path], dict[str, bytes]]
SETTINGS = PairSettings(clusters=1)
THINGS = np.array([[8.0, 0, 0.5], [0, 9, 0.5], [-7, -6, 0.5], [5, -9, 1.0]])  # in the world
ROAD = -1.8


def pose_of(k: int) -> np.ndarray:
    """The vehicle drives 1.5 m a frame along x, turning a little."""
    pose, angle = np.eye(4), 0.05 * k
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = (1.5 * k, 0.2 * k, 0.0)
    return pose


def scan_of(k: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan of the street at frame k, float32 [N, 4], and the thing of each point: −1 the road, −2 the vehicle."""
    rng = np.random.default_rng(k)
    things = np.concatenate([thing + rng.normal(0, 0.2, (60, 3)) for thing in THINGS])
    road = np.c_[rng.uniform(-20, 20, (600, 2)), ROAD + rng.normal(0, 0.03, 600)]
    world_to_lidar = np.linalg.inv(pose_of(k))
    xyz = np.concatenate([things, road]) @ world_to_lidar[:3, :3].T + world_to_lidar[:3, 3]
    vehicle = rng.normal(0, 0.2, (80, 3))
    owner = np.concatenate([np.repeat(np.arange(len(THINGS)), 60), np.full(600, -1), np.full(80, -2)])
    order = rng.permutation(len(owner))
    xyz = np.concatenate([xyz, vehicle])[order]
    return np.c_[xyz, np.zeros(len(xyz))].astype(np.float32), owner[order]


def drive(store: LabelStore) -> list[Frame]:
    """Make a made-up store's frames scans of one street, with the vehicle's poses."""
    index = store.index()
    frames = []
    for scene in index.scenes:
        for k, frame in enumerate(scene.frames()):
            points, owner = scan_of(k)
            points.tofile(frame.root / frame.point_file)
            assert frame.point_label_file
            (frame.root / frame.point_label_file).write_bytes(bytes(len(owner)))
            frames.append(replace(frame, pose=pose_of(k)))
    write_index(
        store.root / "frames", frames, dataset="nuscenes", version="v0", root=index.root,
        point_classes=index.point_classes,
    )  # fmt: skip
    return frames


def test_one_thing_has_one_number_in_both_scans(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 3})
    drive(store)
    build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    shards = open_shards(tmp_path / "out")
    assert shards.cluster_gap == 1 and shards.has("cluster_next") and shards.has("cluster_previous")
    for k in range(2):
        owner = np.concatenate([scan_of(k)[1], scan_of(k + 1)[1]])
        number = np.concatenate([shards[k].cluster_next, shards[k + 1].cluster_previous])
        assert (number[owner < 0] == -1).all()  # the road, and the vehicle
        found = [np.unique(number[(owner == thing) & (number >= 0)]) for thing in range(len(THINGS))]
        assert [len(numbers) for numbers in found] == [1, 1, 1, 1] and len(set(np.concatenate(found))) == 4
        assert (number[owner >= 0] >= 0).mean() > 0.9
    assert (shards[0].cluster_previous == -1).all() and (shards[2].cluster_next == -1).all()
    assert shards[0].cluster_next.dtype == np.int16 and not check_shards(tmp_path / "out").failures


def test_a_gap_of_two_frames_pairs_every_scan_with_the_next_but_one() -> None:
    frames = [_Scan(k) for k in range(4)]
    clusters = SceneClusters(frames, 2, ClusterSettings())  # type: ignore[arg-type]
    columns = [clusters.columns(k) for k in range(4)]
    for k, partner in ((0, 2), (1, 3)):
        one, two = columns[k]["cluster_next"], columns[partner]["cluster_previous"]
        thing = [scan_of(place)[1] == 1 for place in (k, partner)]
        assert set(one[thing[0]]) - {-1} == set(two[thing[1]]) - {-1} != set()
    assert all((columns[k]["cluster_previous"] == -1).all() for k in (0, 1))


class _Scan:
    """As much of a Frame as clustering reads."""

    dataset, scene, up = "made-up", "street", UP

    def __init__(self, k: int) -> None:
        self.token, self.pose = str(k), pose_of(k)
        self._points = scan_of(k)[0]

    def points(self) -> np.ndarray:
        return self._points


def test_shards_of_one_scene_hold_what_one_shard_would(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"a": 5})
    drive(store)
    build_pairs(store, tmp_path / "one", SETTINGS, split="train")
    monkeypatch.setattr(unit, "FRAMES_PER_SHARD", 2)
    build_pairs(store, tmp_path / "three", SETTINGS, split="train")
    one, three = open_shards(tmp_path / "one"), open_shards(tmp_path / "three")
    assert [len(frames) for frames in three.shard_ranges] == [2, 2, 1]
    for a, b in zip(one, three):
        assert np.array_equal(a.cluster_previous, b.cluster_previous) and np.array_equal(a.cluster_next, b.cluster_next)
    assert (three[2].cluster_previous >= 0).any() and (three[1].cluster_next >= 0).any()


@pytest.mark.soak
def test_the_bytes_do_not_depend_on_workers_or_on_a_second_run(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 3, "b": 2})
    drive(store)
    for name, settings in (("one", SETTINGS), ("again", SETTINGS), ("two", replace(SETTINGS, workers=2))):
        build_pairs(store, tmp_path / name, settings, split="train")
    assert contents(tmp_path / "one") == contents(tmp_path / "again") == contents(tmp_path / "two")


def test_sets_with_and_without_clusters_are_not_mixed(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    build_pairs(store, tmp_path / "out", PairSettings(), split="train")
    assert "cluster" not in str(open_shards(tmp_path / "out").manifest["recipe"])
    with pytest.raises(OlivineError, match=r"settings\.clusters .*--overwrite"):
        build_pairs(store, tmp_path / "out", SETTINGS, split="train")


def test_a_number_beyond_the_clusters_is_found_by_the_check(make_store: MakeStore, tmp_path: Path) -> None:
    import zarr

    from olivine.pairs.manifest import merge_manifest, read_entry, read_manifest, write_entry
    from olivine.pairs.shard_writer import file_table

    out = tmp_path / "out"
    build_pairs(make_store({"a": 2}), out, SETTINGS, split="train")
    zarr.open_group(str(out / "shard-00000.zarr"), mode="a")["cluster_next"][0, 0] = 50
    entry, manifest = read_entry(out, 0), read_manifest(out)
    assert entry is not None
    write_entry(out, {**entry, "files": file_table(out / "shard-00000.zarr")})
    merge_manifest(out, manifest["recipe"], {"labels": {}}, manifest["planned_frames"])
    (failure,) = check_shards(out).failures
    assert "cluster_next holds -1 to 50" in failure.reason and "numbered 0 to 49" in failure.reason


def test_a_frame_whose_partner_cannot_be_read_is_left_out_and_made_when_mended(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 3})
    frames = drive(store)
    path = frames[2].root / frames[2].point_file
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    summary = build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    assert [failure.unit for failure in summary.failures] == ["a frame a-token-0001", "a frame a-token-0002"]
    assert all(path.name in failure.reason for failure in summary.failures)
    path.write_bytes(data)
    build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_data_set_without_poses_is_refused_in_one_line(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    index = store.index()
    frames = [replace(frame, pose=np.full((4, 4), np.nan)) for frame in index.frames()]
    write_index(store.root / "frames", frames, dataset="nuscenes", version="v0", root=index.root, point_classes=())
    summary = build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    assert len(summary.failures) == 2
    assert all("has no pose, which --clusters needs" in failure.reason for failure in summary.failures)


def test_a_run_that_needs_clusters_says_which_command_adds_them(make_store: MakeStore, tmp_path: Path) -> None:
    build_pairs(make_store({"a": 2}), tmp_path / "out", PairSettings(), split="train")
    settings = StreamSettings(0, 1, (0, 1), (8, 16), AugmentSettings(), columns=("cluster_next",))
    with pytest.raises(OlivineError, match=r"no 'cluster_next'.*olivine build-pairs --clusters 1"):
        FrameStream(tmp_path / "out", settings)


@pytest.mark.parametrize("gap", [-1, 1001])
def test_a_gap_that_makes_no_sense_is_refused(gap: int) -> None:
    with pytest.raises(OlivineError, match=f"clusters {gap}"):
        PairSettings(clusters=gap)


def test_the_ground_is_the_plane_and_not_the_wall() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(-20, 20, (400, 2))
    slope = np.c_[flat, -1.8 + 0.05 * flat[:, 0] + rng.uniform(-0.1, 0.1, 400)]
    wall = np.c_[np.full(900, 5.0), rng.uniform(-20, 20, 900), rng.uniform(1, 8, 900)]  # has more points
    ground = fit_ground(np.concatenate([slope, wall]), ClusterSettings(), rng)
    assert ground[:400].mean() > 0.99 and not ground[400:].any()
    assert not fit_ground(np.zeros((2, 3)), ClusterSettings(), rng).any()


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.6, 0.0, 0.8), (0.48, -0.64, -0.6)])
def test_points_are_levelled_by_up(make_frame: Callable[..., Frame], tmp_path: Path, up: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    frame = replace(make_frame(tmp_path, tmp_path, "a", 0, rng, 8, 8, 10, "train"), up=up)
    xyz = rng.normal(size=(50, 3))
    found = level(xyz, frame)
    np.testing.assert_allclose(found[:, 2], xyz @ np.array(up), atol=1e-12)  # the height
    np.testing.assert_allclose(found @ found.T, xyz @ xyz.T, atol=1e-12)  # a rotation, or a mirror image …
    assert np.linalg.det(level(np.eye(3), frame)) > 0.99  # … which it is not


def test_clusters_are_numbered_by_size_and_only_the_largest_are_kept() -> None:
    rng = np.random.default_rng(0)
    sizes = [30, 90, 60, 120]
    xyz = np.concatenate([rng.normal((20 * k, 0, 0), 0.1, (n, 3)) for k, n in enumerate(sizes)])
    number = cluster(xyz, ClusterSettings(largest=3), rng)
    held = [np.bincount(part[part >= 0], minlength=3).argmax() for part in np.split(number, np.cumsum(sizes)[:-1])]
    assert held[1:] == [1, 2, 0] and (number[:30] == -1).all()
    assert (cluster(xyz[:10], ClusterSettings(), rng) == -1).all()


def test_clusters_are_those_of_another_package() -> None:
    from sklearn.cluster import HDBSCAN
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(0)
    one, two = (scan_of(k)[0][:, :3].astype(np.float64) for k in (0, 1))
    spread = rng.normal(0, 12, (40, 3))
    xyz = np.concatenate([one, two, *(centre + rng.normal(0, rng.uniform(0.2, 2), (150, 3)) for centre in spread)])
    settings = ClusterSettings(largest=len(xyz))
    # Its min_samples counts the point itself. Edges of one length (mutual reachabilities often are) may be taken in another order.
    theirs = HDBSCAN(min_cluster_size=settings.min_size, min_samples=settings.min_size + 1, copy=True).fit_predict(xyz)
    ours = cluster(xyz, settings, rng)
    assert ours.max() > 10 and adjusted_rand_score(ours, theirs) > 0.99


def test_without_the_package_the_extra_is_named_before_a_frame_is_read(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"a": 2})
    monkeypatch.setitem(sys.modules, "hdbscan", None)
    with pytest.raises(OlivineError, match=r"hdbscan is not usable.*pip install 'olivine\[clusters\]'"):
        build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    build_pairs(store, tmp_path / "plain", PairSettings(), split="train")


def test_beyond_the_most_points_the_rest_joins_the_nearest_that_was_drawn() -> None:
    rng = np.random.default_rng(0)
    xyz = np.concatenate([rng.normal(0, 0.3, (400, 3)), rng.normal((30, 0, 0), 0.3, (400, 3))])
    number = cluster(xyz, ClusterSettings(most_points=200), np.random.default_rng(1))
    assert set(number[:400]) - {-1} != set(number[400:]) - {-1} and (number >= 0).mean() > 0.9
    assert np.array_equal(number, cluster(xyz, ClusterSettings(most_points=200), np.random.default_rng(1)))
