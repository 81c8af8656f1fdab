"""The figures of a paper: their numbers against NumPy and torch's own upsampling, the same bytes again, bad input."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import olivine as front_door
from olivine.common import OlivineError, atomic_directory
from olivine.common.settings import settings_to_plain
from olivine.downstream.embeddings import Embeddings, choose_points, embed_sample, find_frame, similarity_maps
from olivine.pairs.shards import ShardSet, open_shards
from olivine.report.paper_figures import _save as save_figure
from olivine.report.paper_figures import draw_figures
from olivine.train.build import backbone_arguments, build_model, seeded_backbone
from olivine.train.checkpoint import load_checkpoint, save_checkpoint
from olivine.train.encoder import ImageEncoder
from olivine.train.settings import load_settings

SPACES = ["pre-trained, point head", "pre-trained, category point head", "random weights, point head"]


@pytest.fixture(scope="module")
def shards(nuscenes_world) -> ShardSet:
    return open_shards(nuscenes_world.pairs / "val")


@pytest.fixture(scope="module")
def run(make_checkpoint, shards) -> Path:
    """A run of OLIVINE with heads that no training has touched."""
    settings = load_settings("cpu", ["voxels.size_m=0.8"])
    encoder = ImageEncoder(settings.image.encoder)
    method = build_model(settings, encoder.channels, ("none", *shards.classes), 40).method
    known = {"kind": encoder.kind, "digest": encoder.digest}
    return make_checkpoint(method_state=method.state_dict(), encoder=known)


def cosine(rows: np.ndarray, one: np.ndarray) -> np.ndarray:
    rows, one = rows.astype(np.float64), one.astype(np.float64)
    return rows @ one / np.linalg.norm(rows, axis=-1) / np.linalg.norm(one)


@pytest.mark.parametrize(("name", "head"), [(SPACES[0], "point_head"), (SPACES[1], "category_point_head")])
def test_similarity_is_the_cosine_of_the_front_doors_features_through_the_runs_heads(run, shards, name, head):
    (found,) = similarity_maps(Embeddings(run, shards), 1, [321])
    state = load_checkpoint(run)["method_state"]
    kernel, bias = state[f"{head}.kernel"].numpy(), state[f"{head}.bias"].numpy()
    embedding = front_door.load(run).features(shards.points(1)) @ kernel + bias
    assert list(found.at_points) == SPACES
    assert found.at_points[name][321] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.at_points[name], cosine(embedding, embedding[321]), atol=1e-4)


def test_similarity_to_pixels_is_that_of_the_map_upsampled_as_the_public_code_does(run, shards):
    embeddings = Embeddings(run, shards)
    found = similarity_maps(embeddings, 0, count=1)[0]
    record, state = shards.record(0), load_checkpoint(run)["method_state"]
    assert embeddings.no_images == "" and found.image is not None
    pixels = ImageEncoder("small")(torch.from_numpy(found.image)[None])
    weight, bias = state["pixel_head.weight"], state["pixel_head.bias"]
    full = torch.nn.functional.interpolate(pixels, found.image.shape[:2], mode="bilinear", align_corners=True)[0]
    full = torch.einsum("ehw,pe->hwp", full, weight) + bias
    head = state["point_head.kernel"].numpy(), state["point_head.bias"].numpy()
    point = front_door.load(run).features(record.points)[found.point] @ head[0] + head[1][0]
    np.testing.assert_allclose(found.at_pixels[SPACES[0]], cosine(full.numpy(), point), atol=1e-4)
    pair = np.flatnonzero(record.pair_point == found.point)[0]
    camera = record.pair_camera[pair]
    width, height = shards.image_size[camera]
    place = (np.array(found.pixel) + 0.5) / found.image.shape[1::-1]
    np.testing.assert_allclose(place, (record.pair_uv[pair] + 0.5) / (width, height), atol=1e-6)
    assert found.camera == shards.cameras[camera]


def test_a_frames_image_is_seen_in_its_own_size_though_others_are_larger(run, shards, monkeypatch):
    before = similarity_maps(Embeddings(run, shards), 0, count=1)[0]
    monkeypatch.setitem(vars(shards), "image_size", 2 * shards.image_size)  # the set's largest
    after = similarity_maps(Embeddings(run, shards), 0, count=1)[0]
    assert after.pixel == before.pixel and np.array_equal(after.image, before.image)


def test_a_network_without_heads_is_compared_by_its_backbones_features(checkpoint, run, shards):
    for source, features in ((checkpoint, "heads"), (run, "backbone")):
        embeddings = Embeddings(source, shards, features)
        (found,) = similarity_maps(embeddings, 0, [5])
        assert list(found.at_points) == ["pre-trained, backbone", "random weights, backbone"]
        assert found.image is None and "no pixel head" in embeddings.no_images
        feature = front_door.load(source).features(shards.points(0))
        np.testing.assert_allclose(found.at_points["pre-trained, backbone"], cosine(feature, feature[5]), atol=1e-4)


def test_the_points_chosen_are_of_different_classes_rare_to_frequent_and_seen_by_a_camera(run, shards):
    record = shards.record(0)
    maps = similarity_maps(Embeddings(run, shards), 0)
    label = [int(record.point_label[one.point]) for one in maps]
    seen = np.unique(record.pair_point)
    count = np.bincount(record.point_label[seen], minlength=256)
    assert len(set(label)) == 3 and 0 not in label
    assert sorted(label, key=lambda value: count[value]) == label
    assert {one.point for one in maps} <= set(seen.tolist())
    points = np.zeros((5, 4), np.float32)
    points[:, 0] = (9, 1, 5, 3, 7)
    assert choose_points(points, np.ones(5, np.uint8), np.ones(5, bool)) == [2]
    with pytest.raises(OlivineError, match="no point with a class"):
        choose_points(points, np.zeros(5, np.uint8), np.ones(5, bool))


def test_tsne_sees_unit_rows_of_so_many_points_of_each_class(run, shards, monkeypatch):
    from sklearn.manifold import TSNE

    given = []
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, rows: given.append(rows) or rows[:, :2])
    sample = embed_sample(Embeddings(run, shards), per_class=30, seed=3)
    truth = [shards.point_label(k) for k in range(len(shards))]
    count = np.bincount(np.concatenate(truth), minlength=len(shards.point_classes) + 1)[1:]
    expected = {name: min(30, n) for name, n in zip(shards.point_classes, count) if n}
    assert sample.counts == expected and len(expected) > 5
    assert (sample.frames, sample.of_frames) == (len(shards), len(shards))
    assert len(np.unique(np.stack([sample.frame, sample.point]), axis=1).T) == len(sample.label)
    np.testing.assert_array_equal(sample.label, [truth[f][p] for f, p in zip(sample.frame, sample.point)])
    state = load_checkpoint(run)["method_state"]
    kernel, bias = state["point_head.kernel"].numpy(), state["point_head.bias"].numpy()
    feature = [front_door.load(run).features(shards.points(k)) for k in range(len(shards))]
    rows = np.stack([feature[f][p] for f, p in zip(sample.frame, sample.point)]) @ kernel + bias
    assert len(given) == 3
    np.testing.assert_allclose(given[0], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-4)


def test_points_outside_a_fixed_grid_have_no_similarity_and_are_not_sampled(shards, tmp_path):
    settings = load_settings(
        "voxelnet", ["voxels.size_m=0.8", "voxels.height_m=0.1", "voxels.range_m=[0, -25.6, -3, 51.2, 25.6, 1]"]
    )
    content = {"settings": settings_to_plain(settings), "backbone": backbone_arguments(settings), "kind": "pretrain"}
    save_checkpoint(tmp_path / "last.pt", {**content, "backbone_state": seeded_backbone(settings, 0).state_dict()})
    network, points = front_door.load(tmp_path), shards.points(0)
    inside = network.in_range(points)
    assert 0 < inside.sum() < len(points)
    embeddings, name = Embeddings(tmp_path, shards), "pre-trained, backbone"
    first = int(np.flatnonzero(inside)[0])
    similarity = similarity_maps(embeddings, 0, [first])[0].at_points[name]
    np.testing.assert_array_equal(np.isnan(similarity), ~inside)
    feature = network.features(points)
    np.testing.assert_allclose(similarity[inside], cosine(feature[inside], feature[first]), atol=1e-4)
    with pytest.raises(OlivineError, match="is outside the network's range"):
        similarity_maps(embeddings, 0, [int(np.flatnonzero(~inside)[0])])
    sample = embed_sample(embeddings, per_class=20)
    reached = [network.in_range(shards.points(k)) for k in range(len(shards))]
    assert len(sample.label) >= 10 and all(reached[f][p] for f, p in zip(sample.frame, sample.point))


@pytest.mark.soak
@pytest.mark.parametrize(("suffix", "features"), [("png", "heads"), ("pdf", "backbone"), ("svg", "backbone")])
def test_the_same_seed_draws_the_same_bytes(run, shards, suffix, features, tmp_path):
    options = {"points": [7], "per_class": 5, "suffix": suffix, "features": features}
    for out in ("a", "b"):
        summary = draw_figures(run, shards.path, tmp_path / out, **options)
    assert summary.figures == tuple(f"{name}.{suffix}" for name in ("imbalance", "similarity-0", "tsne"))
    assert summary.points == (7,) and len(summary.embeddings) == (3 if features == "heads" else 2)
    for name in summary.figures:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        if suffix == "png":
            with Image.open(tmp_path / "a" / name) as picture:
                picture.load()
                assert picture.width > 1000


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_figure_that_does_not_fit_on_the_disk_is_one_line_and_leaves_nothing(suffix, tmp_path):
    """As a full disk ends a write, a limit of the process does; Matplotlib's PDF writer met it with an AttributeError."""
    figure = Figure(dpi=100)
    figure.add_subplot().imshow(np.random.default_rng(0).random((60, 60)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OlivineError, match="too large"), atomic_directory(tmp_path / "out") as folder:
            save_figure(figure, folder / f"a.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_frame_is_found_by_token_scene_and_number(shards):
    last = len(shards) - 1
    assert find_frame(shards, None) == 0
    assert find_frame(shards, shards.tokens[last]) == find_frame(shards, str(last)) == last
    assert find_frame(shards, list(shards.scenes)[-1]) == shards.scenes[list(shards.scenes)[-1]].start


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--frame", "scene-9999"], "no frame or scene 'scene-9999'"),
        (["--frame", "99"], "no frame or scene '99'"),
        (["--point", "99999999"], "no point 99999999"),
        (["--suffix", "bmp"], "--suffix bmp"),
        (["--features", "toes"], "--features toes"),
        (["--per-class", "0"], "--per-class 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--shards", "nowhere"], "nowhere"),
        (["--checkpoint", "nowhere"], "no such checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, line, run, shards, olivine, tmp_path):
    given = dict(zip(arguments[::2], arguments[1::2]))
    words = {"--checkpoint": run, "--shards": shards.path, **given}
    done = olivine("figures", *[word for pair in words.items() for word in pair], cwd=tmp_path)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    lines = [text for text in done.stderr.splitlines() if text.startswith("olivine: ")]
    assert len(lines) == 1 and line in lines[0]


def test_a_run_without_shards_is_one_line(run, olivine, tmp_path):
    done = olivine("figures", "--checkpoint", run, cwd=tmp_path)
    assert done.returncode == 2 and "Run olivine build-pairs first" in done.stderr


def test_the_command_says_what_it_compares_and_what_it_leaves_out(checkpoint, shards, olivine, tmp_path):
    words = ["--checkpoint", checkpoint, "--shards", shards.path, "--per-class", 5]
    said = olivine("figures", *words, cwd=tmp_path, check=True).stdout
    assert "pre-trained, backbone" in said and "random weights, backbone" in said
    assert "similarity on the image: no pixel head" in said
    assert (tmp_path / "figures/tsne.png").is_file()
