"""Scores and losses against direct evaluations of their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from olivine.downstream.losses import Truth, falling_order, lovasz_softmax, segmentation_loss
from olivine.downstream.metrics import confusion_matrix, scores

CLASSES = ("a", "b", "c", "d")


def direct_iou(truth, prediction, label):
    kept = truth > 0
    t, p = truth[kept] == label, prediction[kept] == label
    return (t & p).sum() / (t | p).sum()


def test_iou_is_intersection_over_union_of_the_labelled_points():
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 4, 5000), generator.integers(1, 4, 5000)
    result = scores(confusion_matrix(truth, prediction, 4), CLASSES)
    for label, name in enumerate(CLASSES[:3], 1):
        assert result.iou[name] == pytest.approx(direct_iou(truth, prediction, label), rel=1e-12)
    assert result.absent == ("d",)
    assert result.mean_iou == pytest.approx(np.mean([direct_iou(truth, prediction, c) for c in (1, 2, 3)]))
    assert result.point_count == (truth > 0).sum()


def test_scores_equal_the_nuscenes_devkits():
    from nuscenes.eval.lidarseg.utils import ConfusionMatrix

    generator = np.random.default_rng(1)
    truth, prediction = generator.integers(0, 5, 4000), generator.integers(1, 5, 4000)
    devkit = ConfusionMatrix(5, 0)
    devkit.update(truth, prediction)
    ours = scores(confusion_matrix(truth, prediction, 4), CLASSES)
    assert list(ours.iou.values()) == pytest.approx(devkit.get_per_class_iou()[1:], abs=1e-12)
    assert ours.mean_iou == pytest.approx(devkit.get_mean_iou(), abs=1e-12)


def test_one_matrix_of_a_set_is_the_sum_of_its_frames():
    generator = np.random.default_rng(2)
    truth, prediction = generator.integers(0, 5, 300), generator.integers(1, 5, 300)
    parts = [confusion_matrix(truth[s], prediction[s], 4) for s in (slice(0, 100), slice(100, 300))]
    assert np.array_equal(sum(parts), confusion_matrix(truth, prediction, 4))


def jaccard_loss(mistaken, truth):
    """1 - Jaccard index of a class when the points `mistaken` are wrong (the loss's set function)."""
    if not mistaken:
        return 0.0
    union = set(truth) | set(mistaken)
    return len(mistaken) / len(union)


def direct_lovasz(probability, label):
    """The Lovász extension by its definition: sum of sorted errors times the set function's increments."""
    total = []
    for c in sorted(set(label)):
        truth = [i for i, v in enumerate(label) if v == c]
        error = [1 - probability[i][c] if label[i] == c else probability[i][c] for i in range(len(label))]
        order = sorted(range(len(label)), key=lambda i: -error[i])
        value = 0.0
        for k, i in enumerate(order):
            value += error[i] * (jaccard_loss(order[: k + 1], truth) - jaccard_loss(order[:k], truth))
        total.append(value)
    return sum(total) / len(total)


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_softmax_is_the_extension_of_the_jaccard_loss(seed):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.randn(40, 5, generator=generator, dtype=torch.float64).softmax(1)
    label = torch.randint(0, 4, (40,), generator=generator)
    assert lovasz_softmax(probability, label, label.unique()).item() == pytest.approx(
        direct_lovasz(probability.tolist(), label.tolist()), rel=1e-12
    )


def test_the_falling_order_is_the_librarys_stable_one():
    error = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0))
    error[:, ::3], error[:, 1::7], error[1] = 0.0, 1.0, 0.25
    assert torch.equal(falling_order(error), error.sort(dim=1, descending=True, stable=True).indices)


def test_lovasz_gradients_are_right():
    probability = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    label = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda p: lovasz_softmax(p, label, label.unique()), probability.requires_grad_())


def direct_loss(logit, label):
    """Cross-entropy plus the Lovász extension over the labelled rows, in Python's floats."""
    kept = [i for i, c in enumerate(label) if c > 0]
    rows = [[math.exp(x - max(logit[i])) for x in logit[i]] for i in kept]
    probability = [[x / sum(row) for x in row] for row in rows]
    truth = [label[i] for i in kept]
    entropy = -sum(math.log(p[c]) for p, c in zip(probability, truth)) / len(kept)
    return entropy + direct_lovasz(probability, truth)


@pytest.mark.parametrize("seed", range(3))
def test_the_losses_gradient_is_that_of_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    logit = torch.randn(18, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (18,), generator=generator)
    loss = segmentation_loss(logit, Truth.of(label))
    loss.backward()
    plain, step = logit.tolist(), 1e-6
    assert loss.item() == pytest.approx(direct_loss(plain, label.tolist()), rel=1e-12)
    for i, k in itertools.product(range(18), range(4)):
        values = []
        for sign in (1, -1):
            moved = [list(row) for row in plain]
            moved[i][k] += sign * step
            values.append(direct_loss(moved, label.tolist()))
        assert logit.grad[i, k].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-8)


def test_float32_is_close_to_float64_on_many_points():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(60_000, 17, generator=generator, dtype=torch.float64, requires_grad=True)
    single = logit.detach().float().requires_grad_()
    label = torch.randint(0, 17, (60_000,), generator=generator)
    losses = [segmentation_loss(x, Truth.of(label)) for x in (logit, single)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    assert float((single.grad - logit.grad).norm() / logit.grad.norm()) < 1e-4


def test_lovasz_of_hard_predictions_is_one_minus_the_jaccard_index():
    label = torch.tensor([0, 0, 1, 1, 1])
    for wrong in itertools.combinations(range(5), 2):
        predicted = label.clone()
        predicted[list(wrong)] = 1 - predicted[list(wrong)]
        one_hot = torch.nn.functional.one_hot(predicted, 2).double()
        expected = np.mean(
            [1 - ((predicted == c) & (label == c)).sum() / ((predicted == c) | (label == c)).sum() for c in (0, 1)]
        )
        assert lovasz_softmax(one_hot, label, label.unique()).item() == pytest.approx(float(expected))


def test_ignored_voxels_change_nothing():
    logit = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))
    label = torch.arange(30) % 4
    kept = label > 0
    assert segmentation_loss(logit, Truth.of(label)).item() == pytest.approx(
        segmentation_loss(logit[kept], Truth.of(label[kept])).item()
    )
    assert segmentation_loss(logit, Truth.of(torch.zeros(30, dtype=torch.long))).item() == 0.0
