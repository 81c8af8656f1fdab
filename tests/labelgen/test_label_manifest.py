"""The manifest of a label folder: parts that begin together, what it lets ``auto`` mean, damage, what is compared by it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from olivine.cluster.local import Local
from olivine.common import OlivineError
from olivine.labelgen.run import _settle_manifest, adopt_settings, generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store, read_label_manifest, write_label_manifest

ORACLE = LabelSettings("oracle")


def late(other):
    """The executor of a part on a slower machine: while it is asked what `auto` means, another part begins."""

    def ask(function, paths, packages):
        answer = function()
        other()
        return answer

    return SimpleNamespace(pool=Local().pool, ask=ask)


def test_the_first_of_parts_that_begin_together_says_what_auto_means(make_world, tmp_path):
    world, labels = make_world(), tmp_path / "labels"
    generate_labels(world.index, tmp_path / "one", ORACLE)
    mine = read_label_manifest(tmp_path / "one" / "manifest.json", "")
    theirs = {**mine, "settings": {**mine["settings"], "batch_size": 3}}  # its GPU has room for three images
    write_label_manifest(labels / "manifest.json", theirs)  # and nothing is finished yet
    assert _settle_manifest(labels, None, mine, ORACLE, world.index, False) == (theirs, False, [])
    for asked in (replace(ORACLE, batch_size=1), replace(ORACLE, batch_size=1, seed=5)):
        with pytest.raises(OlivineError, match="made with other settings"):
            _settle_manifest(labels, None, mine, asked, world.index, False)


def test_a_late_part_that_replaces_labels_leaves_what_the_others_made_instead(make_world, tmp_path):
    world, labels = make_world(3, 2), tmp_path / "labels"
    generate_labels(world.index, labels, LabelSettings("oracle", seed=5))

    def other():
        generate_labels(world.index, labels, ORACLE, part=(0, 2), overwrite=True)

    generate_labels(world.index, labels, ORACLE, part=(1, 2), overwrite=True, executor=late(other))
    assert generate_labels(world.index, labels, ORACLE).units_kept == 3


def test_merging_looks_at_every_kind_of_map_that_the_manifest_names(make_world, tmp_path):
    world, labels = make_world(1, 1), tmp_path / "labels"
    generate_labels(world.index, labels, LabelSettings("oracle", segments="masks", scores=True))
    store, camera = open_store(labels), next(world.index.frames()).cameras[0]
    for path in (store.segment_path(camera), store.score_path(camera)):
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        (failure,) = generate_labels(world.index, labels, LabelSettings("auto"), merge_only=True).failures
        assert f"{path}: has other bytes than its record says" in failure.reason
        path.write_bytes(good)
    assert generate_labels(world.index, labels, LabelSettings("auto"), merge_only=True).failures == []


def test_a_store_that_was_begun_on_a_gpu_goes_on_on_a_cpu():
    """Which takes fewer boxes in a call unless it is told."""
    begun = {"settings": {"batch_size": 8, "precision": "bfloat16", "boxes_per_call": 32}}
    adopted = adopt_settings(LabelSettings(), begun)
    assert (adopted.batch_size, adopted.precision, adopted.boxes_per_call) == (8, "bfloat16", 32)
    assert adopt_settings(LabelSettings(boxes_per_call=2), begun).boxes_per_call == 2


def test_a_damaged_manifest_is_replaced_with_overwrite_alone(make_world, tmp_path):
    world, labels = make_world(1, 1), tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    good = (labels / "manifest.json").read_bytes()
    for damage in (b"{", b"[]", b"\xff", good.replace(b'"oracle"', b'"import"')):
        (labels / "manifest.json").write_bytes(damage)
        with pytest.raises(OlivineError, match=r"manifest\.json: "):
            generate_labels(world.index, labels, ORACLE)
        assert generate_labels(world.index, labels, ORACLE, overwrite=True).failures == []
        assert (labels / "manifest.json").read_bytes() == good
