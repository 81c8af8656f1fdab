"""OLIVINE's draw by the confidence of labels: what is drawn, and what the shards must have for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from olivine.common import OlivineError
from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers.nuscenes import NuScenesDataset
from olivine.train.loop import pretrain
from olivine.train.method import Context
from olivine.train.methods import olivine
from olivine.train.methods.olivine import Olivine, OlivineSettings
from olivine.train.objectives import weakly_supervised_contrast
from olivine.train.sampling import generator_of, sampling_probability

COUNT, PAIRS, CLASSES = 4000, 300, 5
SETTINGS = OlivineSettings(pairs=PAIRS, scr=False)


@pytest.fixture(scope="module")
def columns() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 256, COUNT).astype(np.uint8)
    score[:500] = 0  # not known
    return {
        "pair_label": torch.from_numpy(rng.integers(0, CLASSES, COUNT)),
        "pair_density": torch.from_numpy(rng.uniform(0.001, 1, COUNT).astype(np.float32)),
        "pair_score": torch.from_numpy(score),
    }


def draw(
    columns: dict[str, torch.Tensor], seed: int, count: torch.Tensor | None = None, **changes: object
) -> torch.Tensor:
    """What OLIVINE draws of a group of one frame; ``count``: of each class [those of the pairs]."""
    labels = tuple(f"class {k}" for k in range(CLASSES))
    method = Olivine(replace(SETTINGS, **changes), Context(lambda width: nn.Identity(), 1, labels, 1, 0.1))  # type: ignore[arg-type]
    count = torch.bincount(columns["pair_label"], minlength=CLASSES) if count is None else count
    group = SimpleNamespace(
        size=COUNT,
        column=lambda name, host=False: count[None] if name == "class_count" else columns[name],
        frame_of_pairs=lambda host: torch.zeros(COUNT, dtype=torch.int64),
        class_count=count,
        generator=lambda draw: generator_of(seed, 0, 0, draw),
    )
    return method.draw_by_label(group)  # type: ignore[arg-type]


def test_pairs_are_drawn_in_proportion_to_their_scores_and_never_where_it_is_not_known(columns) -> None:
    drawn = torch.cat([draw(columns, seed, scored_draw=True, mode="random") for seed in range(40)])
    found = torch.bincount(drawn, minlength=COUNT).double() / 40
    score = columns["pair_score"].double()
    assert not found[score == 0].any()
    share = score / score.sum() * PAIRS
    for low, high in ((1, 80), (80, 170), (170, 256)):
        held = (score >= low) & (score < high)
        assert float(found[held].sum()) == pytest.approx(float(share[held].sum()), rel=0.1)


def test_with_density_and_frequency_it_is_one_more_factor(columns) -> None:
    drawn = torch.cat([draw(columns, seed, scored_draw=True) for seed in range(40)])
    plain = torch.cat([draw(columns, seed) for seed in range(40)])
    score = columns["pair_score"].float()
    assert float(score[drawn].mean()) > 1.2 * float(score[plain].mean())
    count = torch.bincount(columns["pair_label"], minlength=CLASSES)
    known = score > 0
    expected = sampling_probability(columns["pair_density"], columns["pair_label"], count) * score
    order = torch.argsort(expected, descending=True)
    # The likeliest are drawn nearly every time.
    assert float(torch.isin(order[:20], drawn[: 5 * PAIRS]).float().mean()) > 0.9
    assert bool(known[drawn].all())


def test_pairs_under_the_least_score_are_left_out(columns) -> None:
    drawn = draw(columns, 0, least_score=0.8)
    assert len(drawn) == PAIRS
    assert int(columns["pair_score"][drawn].min()) >= 0.8 * 255
    assert len(draw(columns, 0, least_score=0.99)) == int((columns["pair_score"] >= 0.99 * 255).sum())


def test_eq_2_is_weighed_by_the_score_of_each_drawn_pair(columns, monkeypatch) -> None:
    labels = tuple(f"class {k}" for k in range(CLASSES))
    settings = replace(SETTINGS, weigh_pairs="score", decoupled_heads=False)
    method = Olivine(settings, Context(lambda width: nn.Identity(), 8, labels, 1, 0.1))
    rng = torch.Generator().manual_seed(0)
    feature = torch.nn.functional.normalize(torch.randn(COUNT, 64, generator=rng), dim=1)
    group = SimpleNamespace(
        size=COUNT,
        column=lambda name, host=False: columns[name],
        class_count=torch.bincount(columns["pair_label"], minlength=CLASSES),
        generator=lambda draw: generator_of(3, draw),
        points=SimpleNamespace(at=lambda rows, head: feature[rows]),
        pixels=SimpleNamespace(at=lambda *rows, dtype: tuple(feature[r, :8] for r in rows)),
    )
    given = {}

    def remember(g, f, label, temperature, form, weight):
        given.update(label=label, weight=weight)
        return weakly_supervised_contrast(g, f, label, temperature, form, weight)

    monkeypatch.setattr(olivine, "weakly_supervised_contrast", remember)
    terms = method.forward(group)
    drawn = method.draw_by_label(group)
    assert torch.equal(given["weight"], columns["pair_score"][drawn].float()) and bool((given["weight"] > 0).all())
    assert torch.equal(given["label"], columns["pair_label"][drawn])
    plain = Olivine(replace(settings, weigh_pairs="alike"), Context(lambda width: nn.Identity(), 8, labels, 1, 0.1))
    assert "pair_score" in method.needs(settings).columns
    assert "pair_score" not in plain.needs(plain.settings).columns
    plain.load_state_dict(method.state_dict())
    alike = plain.forward(group)["wcd"].value
    assert given["weight"] is None and not torch.equal(alike, terms["wcd"].value)


def test_shards_without_scores_name_the_command_that_adds_them(streets: Path, quick, tmp_path: Path) -> None:
    settings = quick("cpu", streets, "method.scored_draw=true", "method.pairs=100")
    with pytest.raises(OlivineError, match=r"pair_score.*olivine build-pairs --consolidate"):
        pretrain(settings, tmp_path / "run")


@pytest.mark.parametrize("frequency", ["dataset", "frame"])
def test_a_true_class_that_the_weak_labels_lack_is_drawn_as_one_of_a_single_pair(columns, frequency: str) -> None:
    """With ``true prompts`` the frequencies are the weak labels'."""
    count = torch.bincount(columns["pair_label"], minlength=CLASSES)
    none, one = (count.index_fill(0, torch.tensor(3), value) for value in (0, 1))
    assert torch.equal(*(draw(columns, 0, given, frequency=frequency) for given in (none, one)))


def test_one_draw_serves_other_labels(columns) -> None:
    """By the weak labels, whatever eq. 2 reads; without the setting other labels are another draw."""
    fixed = {"draw_labels": "weak", "frequency": "batch"}
    weak = columns | {"pair_weak_label": columns["pair_label"].to(torch.uint8)}
    truth = weak | {"pair_label": (columns["pair_label"] + 1) % CLASSES * (torch.arange(COUNT) % 3 > 0)}
    assert torch.equal(draw(weak, 0, **fixed), draw(truth, 0, **fixed))
    assert torch.equal(draw(weak, 0, **fixed), draw(weak, 0, frequency="batch"))
    assert not torch.equal(draw(truth, 0, **fixed), draw(truth, 0, frequency="batch"))
    with pytest.raises(OlivineError, match=r"method\.frequency=batch"):
        OlivineSettings(draw_labels="weak")


def test_a_run_on_the_ground_truth_draws_by_the_weak_labels(streets: Path, quick, tmp_path: Path) -> None:
    changes = ("data.labels=truth", "method.draw_labels=weak", "method.frequency=batch", "method.pairs=100")
    seen = []
    draw_by_label = Olivine.draw_by_label

    def remember(self, group):
        drawn = draw_by_label(self, group)
        seen.append([group.column(name, host=True)[drawn] for name in ("pair_weak_label", "pair_label")])
        return drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Olivine, "draw_by_label", remember)
        pretrain(quick("cpu", streets, *changes), tmp_path / "run")
    weak, truth = (torch.cat(parts).long() for parts in zip(*seen))
    shards = open_shards(streets)
    assert int(weak.max()) <= len(shards.classes) < int(truth.max()) <= len(shards.point_classes)
    # The truth in the weak labels' own classes: the same draw, counted alike, and each point's class by its prompt.
    seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Olivine, "draw_by_label", remember)
        pretrain(quick("cpu", streets, "data.labels=true prompts", *changes[1:]), tmp_path / "prompts")
    again, prompt = (torch.cat(parts).long() for parts in zip(*seen))
    assert torch.equal(again, weak)
    for k, name in enumerate(shards.point_classes, 1):
        of_class = {shards.classes[p - 1] if p else None for p in prompt[truth == k].tolist()}
        assert of_class <= {
            NuScenesDataset.prompt_of(name) if NuScenesDataset.prompt_of(name) in shards.classes else None
        }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardSet, "prompt_of", lambda shards, classes: np.zeros(len(classes) + 1, np.uint8))
        with pytest.raises(OlivineError, match=r"no prompt is a class of the points.*data\.labels=truth"):
            pretrain(quick("cpu", streets, "data.labels=true prompts", *changes[1:]), tmp_path / "none")
    with pytest.raises(OlivineError, match=r"pair_pixel_label.*build-pairs --consolidate"):
        pretrain(quick("cpu", streets, "method.draw_labels=before the vote", *changes[2:]), tmp_path / "voted")
