"""Promises of plain distillation: its loss is the distance of unit vectors, over the pairs that it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from olivine.train.batch import Batch
from olivine.train.group import Group
from olivine.train.method import Context
from olivine.train.methods.distil import Distil, DistilSettings

FRAMES, CAMERAS, PAIRS, CHANNELS = 2, 3, 60, 5


class Given:
    """Point embeddings, and features at pairs, that are given; which pairs were asked for is kept."""

    channels = CHANNELS

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.points = torch.from_numpy(rng.standard_normal((30, CHANNELS)))
        self.points /= self.points.norm(dim=1, keepdim=True)
        self.features = torch.from_numpy(rng.standard_normal((PAIRS, CHANNELS)))
        self.place = torch.from_numpy(rng.integers(0, 30, PAIRS))
        self.frame = torch.from_numpy(np.sort(rng.integers(0, FRAMES, PAIRS)))
        self.image = self.frame * CAMERAS + torch.from_numpy(rng.integers(0, CAMERAS, PAIRS))
        self.asked = torch.arange(0)

    def embed(self, head: nn.Module) -> Tensor:
        return self.points

    def __call__(self, batch: Batch, pairs: Tensor) -> Tensor:
        self.asked = pairs
        return self.features.index_select(0, pairs)

    def run(self, step: int = 0, **settings: Any) -> Tensor:
        context = Context(lambda out: nn.Linear(8, out), CHANNELS, ("none",), 1, 0.1)
        batch = Batch(("a", "b"), (0, 1), (15, 15), (CAMERAS,) * FRAMES, self.frame, {"pair_camera": self.image})
        source: Any = self
        group = Group(
            batch, slice(0, FRAMES), slice(0, PAIRS), self.place, source, source, torch.zeros(1), (0, step, 0)
        )
        (term,) = Distil(DistilSettings(**settings), context).double()(group).values()
        return term.value


def test_the_loss_is_the_mean_distance_of_unit_vectors() -> None:
    given = Given()
    k, q = given.points.numpy()[given.place.numpy()], given.features.numpy()
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    expected = np.sqrt(((k - q) ** 2).sum(1)).mean()
    assert given.run(cameras=0).item() == pytest.approx(expected, abs=1e-6)  # `at` hands over float32


def test_one_image_of_each_frame_is_drawn_anew_in_each_step_and_only_its_pairs_are_asked_for() -> None:
    given, drawn = Given(), set()
    for step in range(12):
        value = given.run(step)
        images = given.image[given.asked].unique().tolist()
        assert [image // CAMERAS for image in images] == [0, 1]
        assert len(given.asked) == sum(int((given.image == image).sum()) for image in images)
        drawn |= set(images)
        assert given.run(step).item() == value.item()
    assert drawn == set(range(FRAMES * CAMERAS))


def test_pairs_are_drawn_without_replacement() -> None:
    given = Given()
    given.run(pairs=7, cameras=0)
    assert len(given.asked.unique()) == 7


def test_the_heads_are_as_wide_as_the_encoder() -> None:
    context = Context(lambda out: nn.Linear(8, out), CHANNELS, ("none",), 1, 0.1)
    linear, mlp = (Distil(DistilSettings(head=head, width=16), context) for head in ("linear", "mlp"))  # type: ignore[arg-type]
    assert [tuple(p.shape) for p in linear.parameters()] == [(5, 8), (5,)]
    assert [tuple(p.shape) for p in mlp.parameters()] == [(16, 8), (16,), (5, 16), (5,)]
