"""UOV's loss is the published one, and the method trains on the oracle's regions without an image network."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import Given, unit
from torch import Tensor, nn

from olivine.common import OlivineError
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.labelgen.text_table import TextTable
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers import index_dataset
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset
from olivine.train.batch import Batch
from olivine.train.group import Group
from olivine.train.loop import pretrain
from olivine.train.method import Context
from olivine.train.methods.uov_tmp import UovTmp, UovTmpSettings
from olivine.train.settings import load_settings


def pool(rows: np.ndarray, value: np.ndarray, total: int) -> np.ndarray:
    sums = np.zeros((total, value.shape[1]))
    np.add.at(sums, rows, value[: len(rows)])
    return sums / (np.bincount(rows, minlength=total)[:, None] + 1e-6)


def cross_entropy(z: np.ndarray, t: np.ndarray) -> float:
    z = z - z.max(1, keepdims=True)
    return float(-(t * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean())


def terms_of(
    points: Tensor, pair_point: np.ndarray, pixel: np.ndarray, segment: np.ndarray, phrase: np.ndarray,
    feature: np.ndarray, text: TextTable,
) -> dict[str, Any]:  # fmt: skip
    """The method's terms: [V, E]; int [M]; int [M, 3] = image, row, column; int [I, H, W], 0 = none; [I, R]; [I, R, E]."""
    order = np.argsort(pixel[:, 0], kind="stable")
    columns = {
        "segment": torch.from_numpy(segment.astype(np.int32) - 1),
        "pair_camera": torch.from_numpy(pixel[order, 0].astype(np.int64)),
        "pair_uv": torch.from_numpy(pixel[order][:, [2, 1]].astype(np.float32)),
        "region_phrase": torch.from_numpy(phrase.astype(np.uint8)),
        "region_feature": torch.from_numpy(feature),
    }
    images, pairs = len(segment), len(pair_point)
    batch = Batch(("f",), (0,), (len(points),), (images,), torch.zeros(pairs, dtype=torch.int64), columns)
    place, embeddings = torch.from_numpy(pair_point[order]), Given(points)
    group = Group(
        batch,
        slice(0, 1),
        slice(0, pairs),
        place,
        embeddings,
        None,
        torch.zeros(1),
        (0, 0, 0),  # type: ignore[arg-type]
    )
    context = Context(lambda out: nn.Linear(out, out), 0, ("none",), 1, 0.1, text)
    method = UovTmp(UovTmpSettings(), context).double()
    method.text = torch.from_numpy(np.asarray(text.embedding))
    from olivine.train.methods.uov_tmp import text_target

    method.target = text_target(method.text, text.categories, 0.2)
    terms: dict[str, Any] = method(group)
    return terms


def test_the_loss_is_the_authors_and_an_independent_formulas() -> None:
    """The inputs of a float64 run of the authors' own function, and the value of the formula."""
    rng = np.random.default_rng(0)
    sp = rng.integers(0, 7, (3, 12, 16))
    rng.standard_normal((3, 8, 12, 16))
    points = unit(rng.standard_normal((40, 8)), 1)
    pair_point = rng.integers(0, 40, 60)
    pixel = np.stack([rng.integers(0, 3, 60), rng.integers(0, 12, 60), rng.integers(0, 16, 60)], 1)
    rng.standard_normal((3, 10, 6, 8))
    text = unit(rng.standard_normal((9, 8)), 1)
    phrase = np.array([[rng.integers(0, 9) for _ in range(6)] for _ in range(3)])
    feature = rng.standard_normal((18, 8)).reshape(3, 6, 8)
    categories = tuple("aaabbcccc")
    table = TextTable("given", tuple("phrases!!"), categories, ("",) * 9, text)  # type: ignore[arg-type]
    value = torch.from_numpy(points).requires_grad_()
    terms = terms_of(value, pair_point, pixel, sp, phrase, feature, table)
    assert terms["region"].value.item() == pytest.approx(5.149107854, abs=1e-9)
    assert terms["text"].value.item() == pytest.approx(1.079160361, abs=1e-9)
    total = sum(term.weight * term.value for term in terms.values())
    assert total.item() == pytest.approx(3.114134107548, abs=1e-9)
    total.backward()
    step = 1e-6
    assert value.grad is not None
    for where in ((3, 1), (int(pair_point[0]), 4)):
        found = []
        for sign in (1, -1):
            moved = points.copy()
            moved[where] += sign * step
            found.append(plain_loss(moved, pair_point, pixel, sp, phrase, feature, text, categories))
        assert value.grad[where].item() == pytest.approx((found[0] - found[1]) / (2 * step), abs=1e-7)


def plain_loss(
    points: np.ndarray, pair_point: np.ndarray, pixel: np.ndarray, sp: np.ndarray, phrase: np.ndarray,
    feature: np.ndarray, text: np.ndarray, categories: tuple[str, ...],
) -> float:  # fmt: skip
    """NumPy: region r of image i is row i·R + r − 1; region 0 is none."""
    images, room = phrase.shape
    region = sp[tuple(pixel.T)]
    rows = (room * pixel[:, 0] + region - 1)[region > 0]
    total = images * room
    k, held = pool(rows, points[pair_point[region > 0]], total), np.bincount(rows, minlength=total) > 0
    e, y = unit(feature.reshape(total, -1)[held], 1), phrase.reshape(-1)[held]
    same = np.array(categories)[:, None] == np.array(categories)
    t = 0.2 * np.eye(len(text))[y] + 0.8 * (text @ text.T * same)[y]
    t /= t.sum(1, keepdims=True)
    count = held.sum()
    by_region = cross_entropy(k[held] @ e.T / 0.07, np.eye(count))
    return 0.5 * by_region + 0.5 * cross_entropy(k[held] @ text.T / 0.07, t)


@pytest.mark.parametrize("seed", [1, 2])
def test_on_random_regions_it_is_the_plain_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sp, points = rng.integers(0, 4, (2, 9, 11)), unit(rng.standard_normal((30, 5)), 1)
    pair_point = rng.integers(0, 30, 25)
    pixel = np.stack([rng.integers(0, 2, 25), rng.integers(0, 9, 25), rng.integers(0, 11, 25)], 1)
    text, phrase, feature = unit(rng.random((6, 5)), 1), rng.integers(0, 6, (2, 3)), rng.standard_normal((2, 3, 5))
    categories = tuple("abbacc")
    table = TextTable("given", tuple("phrase"), categories, ("",) * 6, text)  # type: ignore[arg-type]
    terms = terms_of(torch.from_numpy(points), pair_point, pixel, sp, phrase, feature, table)
    total = sum(term.weight * term.value for term in terms.values()).item()
    assert total == pytest.approx(
        plain_loss(points, pair_point, pixel, sp, phrase, feature, text, categories), abs=1e-9
    )
    assert terms_of(torch.from_numpy(points), pair_point, pixel, 0 * sp, phrase, feature, table) == {}
    with pytest.raises(OlivineError, match=r"holds the region 9, there is room for 3"):
        terms_of(torch.from_numpy(points), pair_point, pixel, sp + 9 * (sp == 0), phrase, feature, table)


@pytest.fixture(scope="module")
def region_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic streets with the oracle's regions."""
    folder = tmp_path_factory.mktemp("regions")
    write_dataset(SyntheticSettings(scenes=2, frames=2, image_scale=0.1, workers=1), folder / "raw")
    index, _ = index_dataset(folder / "labels" / "frames", "nuscenes", folder / "raw", None)
    generate_labels(index, folder / "labels", LabelSettings("oracle", segments="regions"))
    settings = PairSettings(segments=True, regions=True, images=False)
    for split in ("train", "val"):
        assert not build_pairs(open_store(folder / "labels"), folder / split, settings, split=split).failures
    return folder


def settings_of(shards: Path, *changes: str):  # type: ignore[no-untyped-def]
    quick = ["backbone.name=srunet-small", "image.height=56", "image.width=104", "run.batch=2", "data.workers=0"]
    quick += ["voxels.size_m=0.4", "augment.crop_min_pairs=50", "augment.cuboid_min_pairs=50", "optimizer.lr=0.1"]
    quick += ["run.accelerator=cpu", "run.steps=16", f"data.shards={shards}"]
    return load_settings("uov-tmp", [*quick, *changes])


def losses(run: Path) -> dict[str, list[float]]:
    with open(run / "steps.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {name: [float(row[f"loss_{name}"]) for row in rows] for name in ("region", "text")}


@pytest.mark.soak
def test_the_preset_trains_without_images_and_both_terms_fall(region_shards: Path, tmp_path: Path) -> None:
    assert not open_shards(region_shards / "train").has_image
    pretrain(settings_of(region_shards / "train"), tmp_path / "run")
    for name, loss in losses(tmp_path / "run").items():
        assert np.mean(loss[-4:]) < np.mean(loss[:4]) - 0.05, name


def test_a_run_stopped_and_resumed_with_loader_workers_ends_with_the_same_bits(
    region_shards: Path, resumes_to_the_bit: Callable[..., None], tmp_path: Path
) -> None:
    settings, with_workers = (
        settings_of(region_shards / "train", "run.steps=3", "voxels.size_m=1.6", f"data.workers={workers}")
        for workers in (0, 1)
    )
    resumes_to_the_bit(settings, tmp_path, then=with_workers)


def test_shards_without_regions_name_the_commands(small_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match=r"hold no 'segment'|hold no 'region_phrase'.*build-pairs --regions"):
        pretrain(settings_of(small_shards), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_shards_of_another_text_table_are_refused(region_shards: Path, tmp_path: Path) -> None:
    import shutil

    from olivine.common import digest, write_json
    from olivine.labelgen.text_table import write_text_table
    from olivine.pairs.manifest import _entry_digest, read_manifest

    other = tmp_path / "val"
    shutil.copytree(region_shards / "val", other)
    known = open_shards(other).text
    table = TextTable("SigLIP", known.phrases, known.categories, known.classes, known.embedding)
    write_text_table(other, table)
    manifest = read_manifest(other)
    manifest["recipe"]["regions"] = table.identity()
    assert digest(manifest["recipe"])
    write_json(other / "manifest.json", {**manifest, "digest": _entry_digest(manifest)})
    with pytest.raises(OlivineError, match=rf"of SigLIP \(digest {table.digest[:12]}\).*of oracle \(digest"):
        pretrain(settings_of(region_shards / "train", f"data.validation={other}"), tmp_path / "run")
