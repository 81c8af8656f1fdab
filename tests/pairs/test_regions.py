"""Regions in shards: what the label store has comes back, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from olivine.common import OlivineError, write_json
from olivine.labelgen.regions import Regions, encode_regions
from olivine.labelgen.store import LabelStore, encode_segment_map, open_store
from olivine.labelgen.text_table import TextTable, unit_rows, write_text_table
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.manifest import merge_manifest, read_entry, read_manifest, write_entry
from olivine.pairs.settings import PairSettings
from olivine.pairs.shard_writer import file_table
from olivine.pairs.shards import open_shards

MakeStore = Callable[..., LabelStore]
SETTINGS = PairSettings(segments=True, regions=True)


def with_regions(store: LabelStore, seed: int = 0) -> LabelStore:
    """The store with region maps of 0 to 4 regions, and a text table of five phrases."""
    rng = np.random.default_rng(seed)
    names = ("car", "jeep", "road", "house", "sky")
    text = TextTable(
        "CLIP", names, names, ("car", "car", "road", "building", ""), unit_rows(rng.normal(size=(5, 6)), "")
    )
    write_text_table(store.root, text)
    for frame in store.index().frames():
        for camera in frame.cameras:
            count = int(rng.integers(0, 5))
            segment = rng.integers(0, count + 1, (camera.height, camera.width)).astype(np.uint16)
            store.segment_path(camera).write_bytes(encode_segment_map(segment))
            feature = unit_rows(rng.normal(size=(count, 6)), "").astype(np.float16)
            path = store.root / "regions" / f"{camera.key}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_regions(Regions(rng.integers(0, 5, count).astype(np.uint8), feature)))
    manifest = {"schema": "1.0", "classes": list(store.classes)}
    manifest["settings"] = {"segments": "regions", "regions": text.identity()}
    write_json(store.root / "manifest.json", manifest)
    return open_store(store.root)


def test_every_region_comes_back_with_its_phrase_and_feature(make_store: MakeStore, tmp_path: Path) -> None:
    store = with_regions(make_store({"a": 3, "b": 1}))
    build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    shards = open_shards(tmp_path / "out")
    assert shards.has_regions and all(shards.has(f"region_{name}") for name in ("phrase", "feature", "count"))
    assert shards.text.phrases == store.text.phrases and np.array_equal(shards.text.embedding, store.text.embedding)
    counts = []
    for record, frame in zip(shards, store.index().frames()):
        for c, camera in enumerate(frame.cameras):
            segment = store.segment_map(camera)
            assert segment is not None
            regions = store.regions(camera, segment)
            count = record.region_count[c]
            counts.append(int(count))
            assert np.array_equal(record.region_phrase[c, :count], regions.phrase)
            assert np.array_equal(record.region_feature[c, :count], regions.feature)
            assert not record.region_phrase[c, count:].any() and not record.region_feature[c, count:].any()
    assert len(set(counts)) > 2
    # As docs/shards.md has it, for programs that read the arrays.
    group = zarr.open_group(str(tmp_path / "out" / "shard-00000.zarr"), mode="r")
    assert group["region_feature"].shape == (3, 2, max(counts[:6]), 6) and group["region_feature"].dtype == np.float16
    summary = check_shards(tmp_path / "out")
    assert not summary.failures and not summary.strangers
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("text.*")}
    build_pairs(store, tmp_path / "out", SETTINGS, split="train", overwrite=True)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("text.*")} and len(before) == 2


def test_a_region_without_a_feature_leaves_its_frame_out(make_store: MakeStore, tmp_path: Path) -> None:
    store = with_regions(make_store({"a": 2}))
    camera = next(store.index().frames()).cameras[0]
    Image.fromarray(np.full((36, 64), 7, np.uint8)).save(store.segment_path(camera))
    (failure,) = build_pairs(store, tmp_path / "out", SETTINGS, split="train").failures
    assert "holds the region 7, and there are" in failure.reason and f"{camera.key}.png" in failure.reason


def test_a_store_or_set_without_regions_says_what_makes_them(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    with pytest.raises(OlivineError, match=r"no regions.*--labeler regions --regions DIR"):
        build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    with pytest.raises(OlivineError, match="regions without segments"):
        PairSettings(regions=True)
    build_pairs(store, tmp_path / "plain", PairSettings(), split="train")
    plain = open_shards(tmp_path / "plain")
    assert "regions" not in str(plain.manifest["recipe"]) and not plain.has("region_phrase")
    with pytest.raises(OlivineError, match=r"hold no regions.*build-pairs --regions"):
        _ = plain.text


def test_another_text_table_beside_the_shards_is_refused_by_name_and_digest(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store, out = with_regions(make_store({"a": 1})), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    known = store.text
    narrow = TextTable("SigLIP", known.phrases, known.categories, known.classes, unit_rows(np.eye(5, 5), ""))
    write_text_table(out, narrow)
    message = rf"SigLIP \(dimension 5, digest {narrow.digest[:12]}\).*CLIP \(dimension 6, digest {known.digest[:12]}\)"
    with pytest.raises(OlivineError, match=message):
        _ = open_shards(out).text
    (failure,) = check_shards(out).failures
    assert failure.unit == "text.json" and "SigLIP" in failure.reason
    (out / "text.npy").unlink()
    with pytest.raises(OlivineError, match=r"text\.npy"):
        _ = open_shards(out).text


@pytest.mark.parametrize(
    ("array", "place", "value", "said"),
    [
        ("region_phrase", (0, 0, 0), 9, "has the phrase 9, the text table 5"),
        ("region_feature", (0, slice(None), slice(None), 0), 5, "is not of length 1"),
        ("region_count", (0, slice(None)), 1, "holds the region"),
        ("region_count", (0, 0), 99, "has 99 regions, there is room for"),
    ],
)
def test_regions_that_cannot_be_are_found_by_the_check(
    array: str, place: tuple, value: float, said: str, make_store: MakeStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build_pairs(with_regions(make_store({"a": 1}), seed=2), out, SETTINGS, split="train")
    folder = out / "shard-00000.zarr"
    stored = zarr.open_group(str(folder), mode="a")[array]
    values = stored[...]
    values[place] = value
    stored[...] = values
    entry, manifest = read_entry(out, 0), read_manifest(out)
    assert entry is not None
    write_entry(out, {**entry, "files": file_table(folder)})
    merge_manifest(out, manifest["recipe"], {"labels": {}}, manifest["planned_frames"])
    reasons = [failure.reason for failure in check_shards(out).failures]
    assert any(said in reason for reason in reasons), reasons


def test_sets_of_another_text_table_are_not_mixed(make_store: MakeStore, tmp_path: Path) -> None:
    build_pairs(with_regions(make_store({"a": 2})), tmp_path / "out", SETTINGS, split="train")
    store = open_store(tmp_path / "labels")
    manifest = json.loads((store.root / "manifest.json").read_text())
    text = store.text
    other = TextTable("SigLIP", text.phrases, text.categories, text.classes, text.embedding)
    write_text_table(store.root, other)
    manifest["settings"]["regions"] = other.identity()
    write_json(store.root / "manifest.json", manifest)
    with pytest.raises(OlivineError, match=r"regions\.(digest|model) was"):
        build_pairs(open_store(store.root), tmp_path / "out", SETTINGS, split="train")
