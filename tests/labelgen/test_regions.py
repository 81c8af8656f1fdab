"""Regions with phrases and features: imported from a folder, or the oracle's; wrong folders are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.oracle import oracle_text
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.labelgen.text_table import read_text_table
from olivine.labelgen.verify import verify_labels

PHRASES = [("sedan", "car", "car"), ("jeep", "car", "car"), ("asphalt", "road", "road"), ("sky", "sky", None)]


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def write_folder(folder: Path, world) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:  # type: ignore[no-untyped-def]
    """A folder of regions for every image of a world; what was written, by camera key."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = [{"phrase": p, "category": c, "class": k} for p, c, k in PHRASES]
    (folder / "text.json").write_text(json.dumps({"model": "CLIP ViT-L/14-336", "phrases": rows}))
    np.save(folder / "text.npy", unit(rng.standard_normal((4, 6))).astype(np.float32))
    (folder / "regions.json").write_text(json.dumps({"model": "CLIP ViT-L/14-336"}))
    written = {}
    for frame in world.index.frames():
        for camera in frame.cameras:
            count = int(rng.integers(1, 5))
            segment = rng.integers(0, count + 1, (camera.height, camera.width))
            phrase, feature = rng.integers(0, 4, count), rng.standard_normal((count, 6))
            path = folder / f"{camera.key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(segment.astype(np.uint8)).save(path)
            np.savez(path.with_suffix(".npz"), phrase=phrase, feature=feature)
            written[camera.key] = segment, phrase, unit(feature)
    return written


def test_a_folder_of_regions_arrives_value_for_value(make_world: Callable, tmp_path: Path) -> None:
    world = make_world(2, 2)
    written = write_folder(tmp_path / "regions", world)
    settings = LabelSettings("regions", regions=tmp_path / "regions", segments="regions")
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (8, [])
    store = open_store(tmp_path / "labels")
    assert store.text.phrases == tuple(p for p, _, _ in PHRASES) and store.text.classes == ("car", "car", "road", "")
    assert np.array_equal(store.text.embedding, np.load(tmp_path / "regions" / "text.npy"))
    values = np.array([0, *(DEFAULT_VOCABULARY.value(k) if k else 0 for _, _, k in PHRASES)])
    for frame in world.index.frames():
        for camera in frame.cameras:
            segment, phrase, feature = written[camera.key]
            stored = store.segment_map(camera, frame.scene)
            assert stored is not None and np.array_equal(stored, segment)
            regions = store.regions(camera, stored, frame.scene)
            assert np.array_equal(regions.phrase, phrase) and np.allclose(regions.feature, feature, atol=1e-3)
            # The label map is the class that the region's phrase means.
            expected = np.array([0, *values[phrase + 1]])[segment]
            assert np.array_equal(store.label_map(camera, frame.scene), expected)
    assert not verify_labels(world.index, tmp_path / "labels", settings).failures
    assert generate_labels(world.index, tmp_path / "labels", settings).images == 0


def test_the_oracles_regions_are_the_classes_and_their_features_the_text_with_noise(
    make_world: Callable, tmp_path: Path
) -> None:
    world = make_world(1, 2)
    for error, noise in (("none", 0.0), ("feature=0.5", 0.5)):
        labels = tmp_path / error
        generate_labels(world.index, labels, LabelSettings("oracle", error=error, segments="regions"))
        store = open_store(labels)
        classes = store.text.classes
        cosine = []
        for frame in world.index.frames():
            for camera in frame.cameras:
                label, segment = store.label_map(camera), store.segment_map(camera)
                assert segment is not None
                regions = store.regions(camera, segment)
                name = np.array(["", *(classes[row] for row in regions.phrase)])[segment]
                assert np.array_equal(name, np.array(["", *store.classes])[label])
                text = store.text.embedding[regions.phrase]
                cosine += (regions.feature.astype(np.float64) * text).sum(1).tolist()
        assert np.mean(cosine) == pytest.approx(1 / np.sqrt(1 + noise**2), abs=0.03)
    text = oracle_text(DEFAULT_VOCABULARY)
    cosine, name = text.embedding @ text.embedding.T, np.array(text.categories)
    alike = name[:, None] == name
    assert cosine[alike].min() > 0.55 > cosine[~alike].max() and len(set(text.phrases)) == 26


def test_without_regions_the_oracles_stores_are_as_they_were(make_world: Callable, tmp_path: Path) -> None:
    world = make_world(1, 1)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    store = open_store(tmp_path / "labels")
    assert "feature" not in store.manifest["settings"]["error"] and "regions" not in store.manifest["settings"]
    with pytest.raises(OlivineError, match="the label store has no regions"):
        _ = store.text


def _change(folder: Path, name: str, **changes: object) -> None:
    plain = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**plain, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "text.npy").unlink(), r"text\.npy"),
        (lambda f: (f / "text.npy").write_bytes(b"\x93NUMPY no"), r"text\.npy: is no whole \.npy file"),
        (lambda f: np.save(f / "text.npy", np.ones((3, 6), np.float32)), r"float32 \[3, 6\], text\.json names 4 phrases"),
        (lambda f: np.save(f / "text.npy", np.zeros((4, 6), np.float32)), "zero or not finite"),
        (lambda f: _change(f, "regions.json", model="SigLIP"),
         r"the features are of SigLIP, the text table \(digest [0-9a-f]{12}\) of CLIP ViT-L/14-336"),
        (lambda f: _change(f, "text.json", phrases=[{"phrase": "a", "category": "b", "class": "ufo"}] * 4),
         "'ufo' is not a class of the prompts"),
        (lambda f: _change(f, "text.json", phrases=[]), "names 0 phrases"),
        (lambda f: (f / "regions.json").unlink(), r"regions\.json"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    spoil: Callable, message: str, make_world: Callable, tmp_path: Path
) -> None:
    world = make_world(1, 1)
    write_folder(tmp_path / "regions", world)
    spoil(tmp_path / "regions")
    settings = LabelSettings("regions", regions=tmp_path / "regions", segments="regions")
    with pytest.raises(OlivineError, match=message) as error:
        generate_labels(world.index, tmp_path / "labels", settings)
    assert "\n" not in str(error.value)


def _store_regions(path: Path, phrase: object, feature: object) -> None:
    np.savez(path.with_suffix(".npz"), phrase=np.array(phrase), feature=np.array(feature))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.with_suffix(".npz").unlink(), r"\.npz"),
        (lambda p: p.with_suffix(".npz").write_bytes(p.with_suffix(".npz").read_bytes()[:-40]), "no whole"),
        (lambda p: _store_regions(p, [0], np.ones((1, 6))), r"holds the region \d, and there are 1 features"),
        (lambda p: _store_regions(p, [0] * 9, np.ones((9, 5))),
         r"dimension 5, the text table \(CLIP ViT-L/14-336, digest [0-9a-f]{12}\) has 6"),
        (lambda p: _store_regions(p, [4] * 9, np.ones((9, 6))), "phrase 4, the text table has 4, from 0"),
        (lambda p: _store_regions(p, [-1] * 9, np.ones((9, 6))), "phrase -1"),
        (lambda p: _store_regions(p, [0] * 9, np.full((9, 6), np.nan)), "not finite"),
        (lambda p: _store_regions(p, [0] * 8, np.ones((9, 6))), "8 phrases for 9 features"),
        (lambda p: _store_regions(p, [0.5] * 9, np.ones((9, 6))), "phrase is float64"),
        (lambda p: np.savez(p.with_suffix(".npz"), feature=np.ones((9, 6))), "no whole"),
        (lambda p: p.unlink(), r"\.png"),
    ],
)  # fmt: skip
def test_a_bad_image_is_named_and_the_others_get_done(
    spoil: Callable, message: str, make_world: Callable, tmp_path: Path
) -> None:
    world = make_world(1, 2)
    written = write_folder(tmp_path / "regions", world)
    key = next(key for key, (segment, _, _) in written.items() if segment.max() > 1)
    spoil(tmp_path / "regions" / f"{key}.png")
    settings = LabelSettings("regions", regions=tmp_path / "regions", segments="regions")
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    (failure,) = summary.failures
    assert summary.images == 3 and key in failure.unit and "\n" not in failure.reason
    import re

    assert re.search(message, failure.reason)


def test_only_labelers_that_have_regions_are_asked_for_them(make_world: Callable, tmp_path: Path) -> None:
    world = make_world(1, 1)
    (tmp_path / "camseg").mkdir()
    with pytest.raises(OlivineError, match="import makes no regions"):
        generate_labels(
            world.index, tmp_path / "labels", LabelSettings("import", camseg=tmp_path / "camseg", segments="regions")
        )
    with pytest.raises(OlivineError, match=r"no folder of regions.*--regions DIR"):
        generate_labels(world.index, tmp_path / "labels", LabelSettings("regions", segments="regions"))


def test_a_text_table_that_was_replaced_is_refused_by_name_and_digest(make_world: Callable, tmp_path: Path) -> None:
    world = make_world(1, 1)
    write_folder(tmp_path / "regions", world)
    generate_labels(
        world.index, tmp_path / "labels", LabelSettings("regions", regions=tmp_path / "regions", segments="regions")
    )
    known = open_store(tmp_path / "labels").text.digest
    plain = json.loads((tmp_path / "labels" / "text.json").read_text())
    (tmp_path / "labels" / "text.json").write_text(json.dumps({**plain, "model": "SigLIP"}))
    other = read_text_table(tmp_path / "labels").digest
    with pytest.raises(OlivineError, match=rf"is of SigLIP .*{other[:12]}.*of CLIP ViT-L/14-336 .*{known[:12]}"):
        _ = open_store(tmp_path / "labels").text
    np.save(tmp_path / "labels" / "text.npy", np.eye(4, 6, dtype=np.float32))
    with pytest.raises(OlivineError, match=r"text\.npy: is not the embedding that text\.json was written with"):
        _ = open_store(tmp_path / "labels").text


def test_uovs_vocabulary_has_its_175_phrases_in_31_categories() -> None:
    import olivine.labelgen.store as room

    rows = json.loads((Path(room.__file__).parent / "data" / "uov.json").read_text())
    categories = list(dict.fromkeys(row["category"] for row in rows))
    assert (len(rows), len({row["phrase"] for row in rows}), len(categories)) == (175, 173, 31)
    sizes = [sum(row["category"] == name for row in rows) for name in categories]
    assert sizes == [8, 7, 3, 4, 4, 4, 5, 4, 5, 4, 3, 6, 2, 2, 4, 5, 6, 3, 5, 2, 3, 4, 3, 8, 4, 6, 4, 47, 4, 5, 1]
    assert {row["class"] for row in rows} - {None} == set(DEFAULT_VOCABULARY.classes)
    assert all(len({row["class"] for row in rows if row["category"] == name}) == 1 for name in categories)
