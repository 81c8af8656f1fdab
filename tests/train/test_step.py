"""A training step's losses are the paper's equations on the pairs it drew."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from olivine.train.augment import generator_of as frame_generator
from olivine.train.augment import make_sample
from olivine.train.batch import Batch, collate
from olivine.train.loop import pretrain
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.settings import PretrainSettings, load_settings, preset_names
from olivine.train.setup import build_encoder, build_model
from olivine.train.step import Distiller, draw_pairs, forward_pass
from olivine.train.vmf import VmfStatistics
from olivine.train.voxelize import voxelize

TAU = 0.07


@pytest.fixture(scope="module")
def settings() -> PretrainSettings:
    return load_settings("cpu", ["sampling.pairs=300", "run.batch=2", "run.group=2", "voxels.size_m=0.3"])


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
    statistics = VmfStatistics(classes, 64, alpha=0.2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        g = torch.nn.functional.normalize(torch.randn(400, 64, generator=generator) + 0.1, dim=1)
        statistics.update(statistics.class_sums(g, torch.arange(400) % (classes - 1), classes))  # the last is unseen
    return statistics


def embeddings(batch: Batch, model: Distiller, settings: PretrainSettings) -> tuple[Tensor, Tensor, Tensor]:
    """g and g' of every voxel and the voxel of every pair, by the backbone alone."""
    from olivine.train.sparse import SparseTensor

    voxels = voxelize(batch.points, list(batch.point_count), settings.voxels)
    with torch.no_grad():
        first, second = model.backbone(SparseTensor(voxels.feature, voxels.coordinate))
    unit = torch.nn.functional.normalize
    return unit(first.feature.double()), unit(second.feature.double()), voxels.inverse[batch.pair_point]


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_each_loss_is_a_slow_plain_evaluation_on_the_same_pairs(
    batch: Batch, settings: PretrainSettings, class_count: Tensor, form: str
) -> None:
    import dataclasses

    average = "pairs" if form == "paper" else "classes"
    settings = dataclasses.replace(
        settings,
        loss=dataclasses.replace(settings.loss, wcd_form=form, kl_average=average, ppkt_weight=0.7, wcd_weight=0.5),
    )
    encoder = EncodedFeatures(build_encoder(settings, torch.device("cpu")), settings.image.feature_grid)
    model = build_model(settings, encoder.channels)
    model.train()
    statistics = statistics_of(0, len(class_count))
    result = forward_pass(
        batch, model, encoder, statistics, settings, class_count, step=5, first_group=0, consistency=True
    )
    g, g_category, pair_voxel = embeddings(batch, model, settings)
    kept = pair_voxel >= 0
    inside = batch.select_pairs(torch.nonzero(kept)[:, 0])
    pair_voxel = pair_voxel[kept]
    draw = draw_pairs(inside, 0, 2, settings, class_count, (settings.seed, 5, 0))
    assert len(draw.ppkt) == len(draw.sup) == 300 and len(set(draw.sup.tolist())) == 300

    # Pixel embeddings the authors' way: head on the map, upsampled with align_corners; here to the image's own size,
    # looked up bilinearly at the sub-pixel position.
    with torch.no_grad():
        maps = build_encoder(settings, torch.device("cpu"))(inside.image).double()

    def pixel_embedding(rows: Tensor, head: torch.nn.Module) -> Tensor:
        found = []
        for row in rows.tolist():
            uv = inside.pair_uv[row].double() / torch.tensor([settings.image.width - 1, settings.image.height - 1])
            one = torch.nn.functional.grid_sample(
                maps[inside.pair_image[row]][None], (2 * uv - 1)[None, None, None], align_corners=True
            )[0, :, 0, 0]
            found.append(head.weight.double() @ one + head.bias.double())
        return torch.nn.functional.normalize(torch.stack(found).detach(), dim=1)

    f = pixel_embedding(draw.ppkt, model.heads.point_pixel)
    z = g[pair_voxel[draw.ppkt]] @ f.T / TAU
    ppkt = -np.mean([z[i, i].item() - math.log(sum(math.exp(x) for x in z[i].tolist())) for i in range(len(z))])
    assert result.terms["ppkt"].item() == pytest.approx(ppkt, rel=1e-4)

    assert model.heads.category is not None
    f = pixel_embedding(draw.sup, model.heads.category)
    z = (g_category[pair_voxel[draw.sup]] @ f.T / TAU).tolist()
    label = inside.pair_label[draw.sup].tolist()
    total = 0.0
    for i in range(len(z)):
        every = sum(math.exp(x) for x in z[i])
        positives = [math.exp(z[i][a]) for a in range(len(z)) if label[a] == label[i]]
        if form == "paper":
            total -= sum(math.log(x / every) for x in positives) / len(positives)
        else:
            total -= math.log(sum(positives) / every)
    assert result.terms["wcd"].item() == pytest.approx(total / len(z), rel=1e-4)

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
    assert result.terms["scr"].item() == pytest.approx(float(scr), rel=1e-4)
    assert result.loss.item() == pytest.approx(
        0.7 * ppkt + 0.5 * total / len(z) + settings.loss.scr_weight * scr, rel=1e-4
    )


def test_draws_depend_on_seed_step_and_group_only_and_follow_the_mode(
    batch: Batch, settings: PretrainSettings, class_count: Tensor
) -> None:
    first = draw_pairs(batch, 0, 1, settings, class_count, (0, 1, 0))
    again = draw_pairs(batch, 0, 1, settings, class_count, (0, 1, 0))
    other = draw_pairs(batch, 0, 1, settings, class_count, (0, 2, 0))
    assert torch.equal(first.sup, again.sup) and not torch.equal(first.sup, other.sup)
    assert not torch.equal(first.sup, first.ppkt)
    assert bool((batch.pair_frame[first.sup] == 0).all())
    second = draw_pairs(batch, 1, 2, settings, class_count, (0, 1, 1))
    assert bool((batch.pair_frame[second.ppkt] == 1).all())
    # About 90 % of the pairs have no label; drawn by 1/(D F) the classes come out nearly even.
    drawn = torch.bincount(batch.pair_label[first.sup], minlength=14)
    assert drawn[0] < 0.6 * 300 < 0.8 * 300 < torch.bincount(batch.pair_label[first.ppkt], minlength=14)[0]


@pytest.mark.parametrize(
    "changes",
    [
        ["loss.wcd=false"],
        ["loss.scr=false"],
        ["loss.wcd=false", "loss.scr=false"],
        ["loss.decoupled_heads=false"],
        ["loss.distribution=dirac"],
        ["loss.background=ignored"],
        ["sampling.mode=random"],
        ["sampling.mode=density"],
        ["sampling.mode=category", "sampling.frequency=frame"],
        ["sampling.density=batch", "sampling.frequency=batch"],
        ["image.feature_grid=stride"],
    ],
)
def test_every_switch_runs_and_every_trained_parameter_has_a_gradient(
    batch: Batch, settings: PretrainSettings, class_count: Tensor, changes: list[str]
) -> None:
    settings = load_settings("cpu", ["sampling.pairs=100", "run.batch=2", "run.group=1", "voxels.size_m=0.5", *changes])
    encoder = EncodedFeatures(build_encoder(settings, torch.device("cpu")), settings.image.feature_grid)
    model = build_model(settings, encoder.channels)
    result = forward_pass(
        batch,
        model,
        encoder,
        statistics_of(0, len(class_count)),
        settings,
        class_count,
        step=0,
        first_group=0,
        consistency=settings.loss.scr,
    )
    result.loss.backward()
    assert ("wcd" in result.terms) == settings.loss.wcd
    assert ("scr" in result.terms) == settings.loss.scr == (result.class_sums is not None)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    if settings.loss.background == "ignored":
        assert result.drawn_per_class[0] == 0


def test_too_few_pairs_one_class_and_no_pair_at_all_are_counted(
    batch: Batch, settings: PretrainSettings, class_count: Tensor
) -> None:
    encoder = EncodedFeatures(build_encoder(settings, torch.device("cpu")), settings.image.feature_grid)
    model = build_model(settings, encoder.channels)
    statistics = statistics_of(0, len(class_count))

    def counts(rows: Tensor) -> dict[str, int]:
        result = forward_pass(
            batch.select_pairs(rows), model, encoder, statistics, settings, class_count,
            step=0, first_group=0, consistency=True,
        )  # fmt: skip
        result.loss.backward()
        assert bool(result.loss.isfinite())
        return result.counts

    near = torch.linalg.vector_norm(batch.points[batch.pair_point, :2], dim=1) < 40  # inside the voxels' range
    few = torch.nonzero((batch.pair_label == 4) & near)[:, 0][:20]
    assert counts(few) == {"pairs": 20, "groups_short": 1, "groups_one_class": 1, "groups_empty": 0}
    assert counts(few[:0]) == {"pairs": 0, "groups_short": 1, "groups_one_class": 0, "groups_empty": 1}


def test_ground_truth_labels_take_the_place_of_weak_ones(small_shards: Path) -> None:
    from olivine.pairs.shards import open_shards
    from olivine.train.augment import NO_AUGMENTATION

    record = open_shards(small_shards)[0]
    sample = make_sample(record, 0, (40, 72), NO_AUGMENTATION, frame_generator(0, 0, 0))
    truth = collate([sample], "truth").pair_label
    # Points ahead are class 2, points behind class 1.
    assert record.point_label is not None
    expected = np.where(record.points[record.pair_point, 0] > 0, 2, 1)
    assert truth.tolist() == expected.tolist()


@pytest.mark.frames("synthetic")
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_runs_two_steps(preset: str, keyframe_shards: Path, tmp_path: Path) -> None:
    """On the keyframe, with random encoder weights, a small encoder and few pairs, so that it is quick."""
    changes = [
        "image.weights=random",
        "image.encoder=small",
        "image.height=56",
        "image.width=104",
        "sampling.pairs=64",
        "run.steps=2",
        "run.batch=1",
        "run.group=1",
        "data.workers=0",
        "run.accelerator=cpu",
        f"data.shards={keyframe_shards}",
    ]
    summary = pretrain(load_settings(preset, changes), tmp_path / "run")
    assert summary.step == 2 and math.isfinite(summary.last_loss)
