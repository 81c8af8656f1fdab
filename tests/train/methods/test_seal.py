"""Promises of Seal: its terms are the formulas on what both scans share; who has no partner trains without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stand_ins import Given, unit
from torch import nn

from olivine.common import OlivineError
from olivine.train.augment import NO_AUGMENTATION
from olivine.train.batch import Batch
from olivine.train.build import needs_of
from olivine.train.group import Group, Pixels
from olivine.train.loader import FrameStream, StreamSettings
from olivine.train.loop import pretrain
from olivine.train.method import Context, Needs
from olivine.train.methods._temporal import class_contrast
from olivine.train.methods.seal import Seal, SealSettings
from olivine.train.settings import PretrainSettings, load_settings

TAU = 0.07
Array = NDArray[np.float64]


def cross_entropy(z: Array, target: NDArray[np.int64]) -> Array:
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), target]


def terms_of(
    clouds: list[tuple[Array, NDArray[np.int64], NDArray[np.bool_] | None]],
    partners: dict[int, tuple[Array, NDArray[np.int64]]],
    **settings: Any,
) -> dict[str, float]:
    """Seal's terms over two scans. Of each frame: embeddings, clusters, which points are outside; partners by frame."""
    context = Context(lambda out: nn.Linear(8, out), 8, ("none",), 1, 0.1)
    method = Seal(SealSettings(dimension=8, superpixel_weight=0, **settings), context)
    embedding = np.concatenate([*(f for f, _, _ in clouds), *(f for f, _ in partners.values())])
    place, inside = torch.arange(len(embedding)), torch.ones(len(embedding), dtype=torch.bool)
    first = 0
    for f, _, outside in clouds:
        if outside is not None:
            inside[first : first + len(f)][torch.from_numpy(outside)] = False
        first += len(f)
    cluster = torch.from_numpy(np.concatenate([s for _, s, _ in clouds]).astype(np.int16))
    main = Batch(
        tuple(map(str, range(len(clouds)))),
        tuple(range(len(clouds))),
        tuple(len(f) for f, _, _ in clouds),
        (0,) * len(clouds),
        torch.zeros(1, dtype=torch.int64),
        {"cluster_next": cluster},
    )
    scans = {0: (main, place[:first], inside[:first])}
    if partners:
        other = Batch(
            tuple(map(str, partners)),
            tuple(partners),
            tuple(len(f) for f, _ in partners.values()),
            (0,) * len(partners),
            torch.zeros(0, dtype=torch.int64),
            {"cluster_previous": torch.from_numpy(np.concatenate([s for _, s in partners.values()]).astype(np.int16))},
            owner=tuple(partners),
        )
        scans[1] = (other, place[first:], inside[first:])
    given: Any = Given(torch.from_numpy(embedding))
    group = Group(main, slice(0, len(clouds)), slice(0, 1), place[:1], given, None, torch.zeros(1), (0, 0, 0), scans)
    return {name: term.value.item() for name, term in method(group).items()}


def published() -> tuple[list[Any], dict[int, Any]]:
    rng = np.random.default_rng(1)
    s0, s1 = rng.integers(-1, 5, 60), rng.integers(-1, 5, 60)
    return [(unit(rng.standard_normal((60, 8))), s0, None)], {0: (unit(rng.standard_normal((60, 8))), s1)}


@pytest.mark.parametrize(
    ("settings", "temporal", "p2s"),
    [
        ({"average": "points", "pool": "max"}, 4.674823056641, 2.463400699247),
        ({"average": "points", "pool": "mean"}, 4.674823056641, 1.421835904712),
        ({"average": "segments", "pool": "mean"}, None, 1.442928507812),
        ({"anchor": "means"}, 3.357228417957, None),
    ],
    ids=str,
)
def test_the_terms_have_the_published_values(settings: dict[str, Any], temporal: float | None, p2s: float) -> None:
    found = terms_of(*published(), **settings)
    assert set(found) == {"temporal", "p2s"}
    for name, value in (("temporal", temporal), ("p2s", p2s)):
        if value is not None:
            assert found[name] == pytest.approx(value, abs=1e-9)


def by_formula(f0: Array, s0: NDArray[np.int64], f1: Array, s1: NDArray[np.int64]) -> tuple[float, float]:
    """Points to means in both directions and points to their own maximum, mean over segments, on shared ids alone."""
    shared = sorted((set(s0.tolist()) & set(s1.tolist())) - {-1})

    def one(f: Array, s: NDArray[np.int64], prototype: Array) -> float:
        each = []
        for number, i in enumerate(shared):
            rows = f[s == i]
            each.append(cross_entropy(rows @ prototype.T / TAU, np.full(len(rows), number)).mean())
        return float(np.mean(each))

    mean = [np.stack([f[s == i].mean(0) for i in shared]) for f, s in ((f0, s0), (f1, s1))]
    highest = np.stack([f0[s0 == i].max(0) for i in shared])
    return one(f0, s0, mean[1]) + one(f1, s1, mean[0]), one(f0, s0, highest)


def test_ids_of_one_scan_points_outside_and_frames_without_a_partner_are_left_out() -> None:
    rng = np.random.default_rng(7)
    clouds, partners = [], {}
    for frame in range(3):
        s0, outside = rng.integers(-1, 6, 50), rng.random(50) < 0.2
        clouds.append((unit(rng.standard_normal((50, 8))), np.where(s0 == 2, -1, s0), outside))
        if frame != 1:
            s1 = rng.integers(-1, 6, 40)
            partners[frame] = unit(rng.standard_normal((40, 8))), np.where(s1 == 3, -1, s1)
    expected = []
    for frame in (0, 2):
        f0, s0, outside = clouds[frame]
        f1, s1 = partners[frame]
        expected.append(by_formula(f0, np.where(outside, -1, s0), f1, s1))
    found = terms_of(clouds, partners)
    assert found["temporal"] == pytest.approx(np.mean([a for a, _ in expected]), abs=1e-9)
    assert found["p2s"] == pytest.approx(np.mean([b for _, b in expected]), abs=1e-9)
    assert terms_of(clouds, {}) == {}
    apart = [(f, np.full(len(f), 0), None) for f, _, _ in clouds], {0: (clouds[0][0], np.full(50, 1))}
    assert terms_of(*apart) == {}


def test_superflows_term_is_the_contrast_of_classes_seen_in_both_scans() -> None:
    rng = np.random.default_rng(3)
    points, others = unit(rng.standard_normal((60, 8))), unit(rng.standard_normal((30, 8)))
    pair_frame = np.sort(rng.integers(0, 2, 80))
    pair_point, label = rng.integers(0, 30, 80) + 30 * pair_frame, rng.integers(0, 4, 80)
    other_point, other_label = rng.integers(0, 30, 50), rng.integers(0, 4, 50)
    place, inside = torch.arange(90), torch.ones(90, dtype=torch.bool)
    inside[60:65] = False
    main = Batch(("a", "b"), (0, 1), (30, 30), (0, 0), torch.from_numpy(pair_frame), {})
    main.columns["pair_label"] = torch.from_numpy(label)
    columns = {"pair_point": torch.from_numpy(other_point), "pair_label": torch.from_numpy(other_label)}
    scan = Batch(("c",), (2,), (30,), (0,), torch.zeros(50, dtype=torch.int64), columns, owner=(1,))  # frame 1's
    given: Any = Given(torch.from_numpy(np.concatenate([points, others])))
    scans = {0: (main, place[:60], inside[:60]), 1: (scan, place[60:], inside[60:])}
    group = Group(
        main, slice(0, 2), slice(0, 80), torch.from_numpy(pair_point), given, None, torch.zeros(4), (0, 0, 0), scans
    )
    found = class_contrast(group, 1, nn.Identity(), TAU)
    k, q = [], []
    for c in (1, 2, 3):
        here = points[pair_point[(pair_frame == 1) & (label == c)]]
        there = others[other_point[(other_label == c) & (other_point >= 5)]]
        k.append(here.sum(0) / (len(here) + 1e-6))
        q.append(there.sum(0) / (len(there) + 1e-6))
    expected = cross_entropy(np.stack(k) @ np.stack(q).T / TAU, np.arange(3)).mean()
    assert found is not None and found.item() == pytest.approx(expected, abs=1e-9)
    assert class_contrast(group, 2, nn.Identity(), TAU) is None


def test_uncovered_pixels_are_none_or_one_more_segment_of_each_image() -> None:
    """Also with the largest number that a 16-bit map holds: segments of neighbouring images stay apart."""
    segment = torch.tensor([[[-1, 65534], [0, 0]], [[65534, -1], [-1, 7]]], dtype=torch.int32)
    uv = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    columns = {"segment": segment, "pair_uv": uv, "pair_camera": torch.tensor([0, 0, 1, 1])}
    batch = Batch(("a",), (0,), (4,), (2,), torch.zeros(4, dtype=torch.int64), columns)
    pixels = Pixels(batch, slice(0, 1), slice(0, 4), None)
    number, of_pair, count = pixels.segments()  # the first image's segment 0 holds no pair
    assert (count, number.tolist()) == (3, [[[-1, 0], [-1, -1]], [[2, -1], [-1, 1]]])
    assert of_pair.tolist() == [-1, 0, 2, 1]
    number, of_pair, count = pixels.segments(uncovered=True)
    assert (count, number.tolist()) == (4, [[[0, 1], [-1, -1]], [[3, -1], [-1, 2]]])
    assert of_pair.tolist() == [0, 1, 3, 2]
    assert pixels.of_pairs(number).tolist() == of_pair.tolist()


def test_it_asks_for_what_its_terms_read_and_no_more() -> None:
    def needs(*changes: str) -> Needs:
        return needs_of(load_settings("seal", list(changes)))

    found = needs("method.interval=2")
    assert (found.columns, found.scans, found.scan_columns) == (
        ("segment", "cluster_next"),
        (0, 2),
        ("cluster_previous",),
    )
    off = ("method.temporal_weight=0", "method.p2s_weight=0")
    found = needs(*off, "method.classes_weight=0.5")
    assert (found.columns, found.scans, found.scan_columns) == (("segment", "pair_label"), (0, 1), ("pair_label",))
    found = needs(*off)
    assert (found.columns, found.scans, found.scan_columns) == (("segment",), (0,), ())


Quick = Callable[..., PretrainSettings]


def test_frames_without_a_partner_train_the_first_term_and_are_said(
    streets: Path, quick: Quick, tmp_path: Path
) -> None:
    """Each street has two frames: the second one has no frame after it."""
    summary = pretrain(quick("seal", streets, "run.steps=2"), tmp_path / "run")
    assert summary.notes == (
        "2 of 4 frames had no frame 1 after them in their scene: they trained the spatial part alone",
    )


def test_shards_without_clusters_or_with_those_of_another_interval_name_the_way_out(
    streets: Path, quick: Quick, tmp_path: Path, small_shards: Path
) -> None:
    with pytest.raises(OlivineError, match=r"join scans 1 frames apart.* Set method\.interval=1, or .*--clusters 2"):
        pretrain(quick("seal", streets, "method.interval=2"), tmp_path / "run")
    with pytest.raises(OlivineError, match=r"hold no 'segment'"):
        pretrain(quick("seal", small_shards), tmp_path / "run")
    stream = StreamSettings(0, 1, (0, 1), (40, 72), NO_AUGMENTATION, columns=("cluster_next",), scans=(1,))
    with pytest.raises(OlivineError, match=r"hold no 'cluster_next'.*olivine build-pairs --clusters 1"):
        FrameStream(small_shards, stream)
