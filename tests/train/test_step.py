"""A training step's losses are the paper's equations on the pairs it drew."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from olivine.train import augment
from olivine.train.augment import generator_of as frame_generator
from olivine.train.backbone import Clouds
from olivine.train.batch import Batch, collate
from olivine.train.build import build_encoder, build_model, columns_of
from olivine.train.forward import Distiller
from olivine.train.loop import pretrain
from olivine.train.methods._vmf_statistics import VmfStatistics
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.prepare import prepare_pass
from olivine.train.sampling import draw_without_replacement, generator_of, sampling_probability
from olivine.train.settings import PretrainSettings, load_settings, preset_names
from olivine.train.voxelize import voxelize

LABELS = ("none", *(f"class {k}" for k in range(1, 14)))


def make_sample(record, frame, size, settings, generator, labels="weak"):  # type: ignore[no-untyped-def]
    """A sample with every column that the method may ask for."""
    columns = ("image", "pair_label", "pair_density", "class_count")
    return augment.make_sample(record, frame, size, settings, generator, columns, labels)


def encoder_of(settings: PretrainSettings) -> EncodedFeatures:
    return EncodedFeatures(build_encoder(settings, torch.device("cpu")), settings.image.feature_grid)


def model_of(settings: PretrainSettings, channels: int, labels: tuple[str, ...] = LABELS, steps: int = 20) -> Distiller:
    """In training, the last class never seen and the warm-up of five steps over."""
    model = build_model(settings, channels, labels, steps)
    if settings.method.scr:
        model.method.statistics = statistics_of(0, len(labels))
    return model.train()


TAU = 0.07


@pytest.fixture(scope="module")
def settings() -> PretrainSettings:
    return load_settings("cpu", ["method.pairs=300", "run.batch=2", "run.group=2", "voxels.size_m=0.3"])


@pytest.fixture(scope="module")
def batch(keyframe_shards: Path, settings: PretrainSettings) -> Batch:
    """Two augmentations of the keyframe."""
    from olivine.pairs.shards import open_shards

    record = open_shards(keyframe_shards)[0]
    size = (settings.image.height, settings.image.width)
    return collate([make_sample(record, 0, size, settings.augment, frame_generator(0, e, 0)) for e in (0, 1)])


@pytest.fixture(scope="module")
def class_count(batch: Batch) -> Tensor:
    return batch.class_count[0]


def statistics_of(seed: int, classes: int) -> VmfStatistics:
    statistics = VmfStatistics(classes, 64, alpha=0.2, bias_correction=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        g = torch.nn.functional.normalize(torch.randn(400, 64, generator=generator) + 0.1, dim=1)
        label = torch.arange(400) % (classes - 1)  # the last is unseen
        sums = torch.zeros(classes, 65).index_add_(0, label, torch.nn.functional.pad(g, (0, 1), value=1)).double()
        statistics.update(sums, sums[:, -1].long())
    return statistics


def embeddings(batch: Batch, model: Distiller, settings: PretrainSettings) -> tuple[Tensor, Tensor, Tensor]:
    """g and g' of every voxel and the voxel of every pair, by the backbone and its heads alone."""
    voxels = voxelize(batch.points, list(batch.point_count), settings.voxels)
    with torch.no_grad():
        features = model.backbone.encode(Clouds(batch.points, batch.point_cloud(), voxels, settings.voxels))
        first, second = (h(features.cells) for h in (model.method.point_head, model.method.category_point_head))
    unit = torch.nn.functional.normalize
    return unit(first.feature.double()), unit(second.feature.double()), voxels.inverse[batch.pair_point]


def draws(batch: Batch, class_count: Tensor, count: int, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The pairs of eq. 1 (uniform) and of eq. 2 (1 / (D F)), all of a batch's frames one group."""
    p = sampling_probability(batch.pair_density, batch.pair_label, class_count)
    total = len(batch.pair_label)
    return (
        draw_without_replacement(None, total, count, generator_of(*key, 0)),
        draw_without_replacement(p, total, count, generator_of(*key, 1)),
    )


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_each_loss_is_a_slow_plain_evaluation_on_the_same_pairs(
    batch: Batch, settings: PretrainSettings, class_count: Tensor, form: str
) -> None:
    import dataclasses

    average = "pairs" if form == "paper" else "classes"
    changed = {"wcd_form": form, "kl_average": average, "ppkt_weight": 0.7, "wcd_weight": 0.5}
    settings = dataclasses.replace(settings, method=dataclasses.replace(settings.method, **changed))
    encoder = encoder_of(settings)
    model = model_of(settings, encoder.channels)
    statistics = model.method.statistics
    loss, terms, _ = model(prepare_pass(batch, model, encoder, class_count), 5, 0)
    g, g_category, pair_voxel = embeddings(batch, model, settings)
    kept = pair_voxel >= 0
    inside = batch.select_pairs(torch.nonzero(kept)[:, 0])
    pair_voxel = pair_voxel[kept]
    drawn_ppkt, drawn_wcd = draws(inside, class_count, 300, (settings.seed, 5, 0))
    assert len(drawn_ppkt) == len(drawn_wcd) == 300 and len(set(drawn_wcd.tolist())) == 300

    # Pixel embeddings the authors' way: head on the map, upsampled with align_corners; here to the image's own size,
    # looked up bilinearly at the sub-pixel position.
    with torch.no_grad():
        maps = build_encoder(settings, torch.device("cpu"))(inside.image).double()

    def pixel_embedding(rows: Tensor, head: torch.nn.Module) -> Tensor:
        found = []
        for row in rows.tolist():
            uv = inside.pair_uv[row].double() / torch.tensor([settings.image.width - 1, settings.image.height - 1])
            one = torch.nn.functional.grid_sample(
                maps[inside.pair_camera[row]][None], (2 * uv - 1)[None, None, None], align_corners=True
            )[0, :, 0, 0]
            found.append(head.weight.double() @ one + head.bias.double())
        return torch.nn.functional.normalize(torch.stack(found).detach(), dim=1)

    f = pixel_embedding(drawn_ppkt, model.method.pixel_head)
    z = g[pair_voxel[drawn_ppkt]] @ f.T / TAU
    ppkt = -np.mean([z[i, i].item() - math.log(sum(math.exp(x) for x in z[i].tolist())) for i in range(len(z))])
    assert terms["ppkt"].item() == pytest.approx(ppkt, rel=1e-4)

    f = pixel_embedding(drawn_wcd, model.method.category_pixel_head)
    z = (g_category[pair_voxel[drawn_wcd]] @ f.T / TAU).tolist()
    label = inside.pair_label[drawn_wcd].tolist()
    total = 0.0
    for i in range(len(z)):
        every = sum(math.exp(x) for x in z[i])
        positives = [math.exp(z[i][a]) for a in range(len(z)) if label[a] == label[i]]
        if form == "paper":
            total -= sum(math.log(x / every) for x in positives) / len(positives)
        else:
            total -= math.log(sum(positives) / every)
    assert terms["wcd"].item() == pytest.approx(total / len(z), rel=1e-4)

    direction, kappa, seen = statistics.parameters_of_classes()
    with mpmath.workdps(40):
        constant = [
            float(31 * mpmath.log(k) - 32 * mpmath.log(2 * mpmath.pi) - mpmath.log(mpmath.besseli(31, k))) if k else 0.0
            for k in kappa.tolist()
        ]
    values: dict[int, list[float]] = {}
    for row, c in enumerate(inside.pair_label.tolist()):
        if seen[c]:
            cosine = (direction[c] @ g_category[pair_voxel[row]]).item()
            values.setdefault(c, []).append(-constant[c] - kappa[c].item() * cosine)
    scr = np.mean([x for v in values.values() for x in v])
    if form == "reference":
        scr = np.mean([np.mean(v) for v in values.values()])
    assert terms["scr"].item() == pytest.approx(float(scr), rel=1e-4)
    assert loss.item() == pytest.approx(0.7 * ppkt + 0.5 * total / len(z) + settings.method.scr_weight * scr, rel=1e-4)


@pytest.mark.parametrize("class_mean", ["batch", "group"])
def test_in_the_warm_up_class_means_move_by_the_means_over_pairs(
    batch: Batch, settings: PretrainSettings, class_count: Tensor, class_mean: str
) -> None:
    """Two contrast groups, by the backbone and its heads alone; a class of one group alone is among them."""
    changes = ["run.group=1", "voxels.size_m=0.5", "method.warmup=0.5", f"method.class_mean={class_mean}"]
    settings = load_settings("cpu", ["run.batch=2", "method.pairs=100", "method.alpha=0.5", *changes])
    second = batch.pair_frame == 1
    batch = batch.select_pairs(torch.nonzero(~second | (batch.pair_label != 4))[:, 0])
    encoder = encoder_of(settings)
    model = build_model(settings, encoder.channels, LABELS, 20).train()
    model(prepare_pass(batch, model, encoder, class_count), 0, 0)
    model.method.after_step(0, lambda value: value)
    _, g, pair_voxel = embeddings(batch, model, settings)
    inside = pair_voxel >= 0
    g, pair_voxel, label, frame = g, pair_voxel[inside], batch.pair_label[inside], batch.pair_frame[inside]
    statistics = model.method.statistics
    for c in range(len(LABELS)):
        rows = [pair_voxel[(label == c) & (frame == n)] for n in (0, 1)]
        rows = [r for r in rows if len(r)] if class_mean == "group" else [torch.cat(rows)]
        share = len(rows) / 2 if class_mean == "group" else 1
        expected = sum((g[r].mean(0) for r in rows if len(r)), torch.zeros(64)) * 0.5 * share / max(1, len(rows))
        torch.testing.assert_close(statistics.mean[c], expected.double(), rtol=1e-5, atol=1e-6)
        assert statistics.place_count[c] == len(pair_voxel[label == c].unique())
    assert statistics.update_count[4] == 1 and not bool(((label == 4) & (frame == 1)).any())


def test_draws_depend_on_seed_step_and_group_only_and_follow_the_mode(
    batch: Batch, settings: PretrainSettings, class_count: Tensor
) -> None:
    """The losses of two passes are the same where the keys are, and others with another step, group or seed."""
    encoder = encoder_of(settings)
    model = model_of(settings, encoder.channels).eval()

    def losses(step: int, group: int, seed: int = 0) -> list[float]:
        model.seed = seed
        with torch.no_grad():
            return [float(v) for v in model(prepare_pass(batch, model, encoder, class_count), step, group)[1].values()]

    first = losses(1, 0)
    assert first == losses(1, 0)
    for other in (losses(2, 0), losses(1, 1), losses(1, 0, seed=1)):
        assert all(a != b for a, b in zip(first, other))
    # About 90 % of the pairs have no label; drawn by 1/(D F) the classes come out nearly even.
    uniform, by_label = draws(batch, class_count, 300, (0, 1, 0))
    drawn = torch.bincount(batch.pair_label[by_label], minlength=14)
    assert drawn[0] < 0.6 * 300 < 0.8 * 300 < torch.bincount(batch.pair_label[uniform], minlength=14)[0]


@pytest.mark.frames("synthetic")
@pytest.mark.parametrize(
    "changes",
    [
        ["method.wcd=false"],
        ["method.scr=false"],
        ["method.wcd=false", "method.scr=false"],
        ["method.decoupled_heads=false"],
        ["method.distribution=dirac"],
        ["method.background=ignored"],
        ["method.mode=random"],
        ["method.mode=density"],
        ["method.mode=category", "method.frequency=frame"],
        ["method.density=batch", "method.frequency=batch"],
        ["method.density=batch metres", "method.frequency=batch"],
        ["image.feature_grid=stride"],
    ],
)
def test_every_switch_runs_and_every_trained_parameter_has_a_gradient(
    batch: Batch, settings: PretrainSettings, class_count: Tensor, changes: list[str]
) -> None:
    settings = load_settings("cpu", ["method.pairs=100", "run.batch=2", "run.group=1", "voxels.size_m=0.5", *changes])
    encoder = encoder_of(settings)
    model = model_of(settings, encoder.channels)
    loss, terms, _ = model(prepare_pass(batch, model, encoder, class_count), 19, 0)
    loss.backward()
    assert ("wcd" in terms) == settings.method.wcd
    assert ("scr" in terms) == settings.method.scr
    assert set(terms) == set(model.method.terms)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    if settings.method.background == "ignored":
        assert model.method.log(19, lambda value: value)["share/none"] == 0


def test_a_method_asks_for_what_its_settings_read_and_no_more() -> None:
    def columns(*changes: str) -> set[str]:
        return set(columns_of(load_settings("cpu", list(changes))))

    assert columns() == {"pair_label", "pair_density", "image"}
    assert columns("method.mode=category", "method.frequency=frame") == {"pair_label", "class_count", "image"}
    stored = ("method.density=batch", "image.stored=somewhere")
    assert columns(*stored) == {"pair_label", "image_mirrored", "image_crop"}
    assert columns(*stored, "augment.crop=false") == {"pair_label", "image_mirrored"}
    assert columns("method.wcd=false") == {"pair_label", "image"}


def test_too_few_pairs_one_class_and_no_pair_at_all_are_counted(
    batch: Batch, settings: PretrainSettings, class_count: Tensor
) -> None:
    encoder = encoder_of(settings)
    model = model_of(settings, encoder.channels)

    def counts(rows: Tensor) -> dict[str, float]:
        loss, _, found = model(prepare_pass(batch.select_pairs(rows), model, encoder, class_count), 19, 0)
        loss.backward()
        assert bool(loss.isfinite())
        log = model.method.log(19, lambda value: value)
        return {**found, **{name: log[name] for name in ("groups_short", "groups_one_class")}}

    near = torch.linalg.vector_norm(batch.points[batch.pair_point, :2], dim=1) < 40  # inside the voxels' range
    few = torch.nonzero((batch.pair_label == 4) & near)[:, 0][:20]
    assert counts(few) == {"pairs": 20, "groups_short": 1, "groups_one_class": 1, "groups_empty": 0}
    assert counts(few[:0]) == {"pairs": 0, "groups_short": 0, "groups_one_class": 0, "groups_empty": 1}


def test_ground_truth_labels_take_the_place_of_weak_ones(small_shards: Path) -> None:
    from olivine.pairs.shards import open_shards
    from olivine.train.augment import NO_AUGMENTATION

    record = open_shards(small_shards)[0]
    sample = make_sample(record, 0, (40, 72), NO_AUGMENTATION, frame_generator(0, 0, 0), "truth")
    truth = collate([sample]).pair_label
    # Points ahead are class 2, points behind class 1.
    assert record.point_label is not None
    expected = np.where(record.points[record.pair_point, 0] > 0, 2, 1)
    assert truth.tolist() == expected.tolist()


@pytest.mark.frames("synthetic")
@pytest.mark.parametrize(
    "preset",  # ppkt runs in methods/test_every_method.py
    [p for p in preset_names() if load_settings(p).method.name == "olivine" and p != "ppkt"],
)
def test_every_preset_runs_two_steps(preset: str, keyframe_shards: Path, tmp_path: Path) -> None:
    """On the keyframe, with random weights, small networks and few pairs, so that it is quick."""
    large = load_settings(preset).backbone.name == "srunet34"
    changes = [
        *(["backbone.name=srunet-small"] if large else []),
        "image.weights=random",
        "image.encoder=small",
        "image.height=56",
        "image.width=104",
        "method.pairs=64",
        "run.steps=2",
        "method.warmup=0.5",
        "run.batch=1",
        "run.group=1",
        "data.workers=0",
        "run.accelerator=cpu",
        f"data.shards={keyframe_shards}",
    ]
    summary = pretrain(load_settings(preset, changes), tmp_path / "run")
    assert summary.step == 2 and math.isfinite(summary.last_loss)
