"""--verify: what is stored is what the same settings give."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import encode_label_map, open_store
from olivine.labelgen.verify import verify_labels

ORACLE = LabelSettings("oracle", segments="masks")


def test_a_sample_of_the_batches_is_made_again_and_is_the_same(make_world, tmp_path):
    world = make_world(3, 2)
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    summary = verify_labels(world.index, tmp_path / "labels", ORACLE, batches=5)
    assert (summary.batches, summary.finished, summary.images, summary.failures) == (5, 12, 5, [])
    assert verify_labels(world.index, tmp_path / "labels", ORACLE, batches=100).batches == 12


def test_a_map_with_other_values_is_found_and_named(make_world, tmp_path):
    world = make_world(1, 2)
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    store = open_store(tmp_path / "labels")
    camera = next(world.index.frames()).cameras[0]
    label = store.label_map(camera).copy()
    label[0, 0] = 5
    store.label_path(camera).write_bytes(encode_label_map(label, store.classes))
    (failure,) = verify_labels(world.index, tmp_path / "labels", ORACLE).failures
    assert failure.unit == camera.key and str(store.label_path(camera)) in failure.reason
    with Image.open(store.label_path(camera)) as image:
        assert np.array_equal(np.asarray(image), label)  # verifying changes nothing


def test_other_settings_or_nothing_finished_is_an_error(make_world, tmp_path):
    world = make_world(1, 1)
    with pytest.raises(OlivineError, match="Run olivine labelgen first"):
        verify_labels(world.index, tmp_path / "labels", ORACLE)
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    with pytest.raises(OlivineError, match=r"other settings: settings\.seed"):
        verify_labels(world.index, tmp_path / "labels", LabelSettings("oracle", segments="masks", seed=3))
    open_store(tmp_path / "labels").label_path(next(world.index.frames()).cameras[0]).unlink()
    with pytest.raises(OlivineError, match="no scene is finished"):
        verify_labels(world.index, tmp_path / "labels", ORACLE)


def test_networks_give_the_same_bytes_again(make_world, tiny_networks, tmp_path):
    pytest.importorskip("groundingdino")
    settings = LabelSettings(
        "grounded-sam",
        detector_config=tiny_networks.detector_config,
        detector_checkpoint=tiny_networks.detector_checkpoint,
        sam_checkpoint=tiny_networks.sam_checkpoint,
        text_encoder=tiny_networks.text_encoder,
        short_side=96,
        long_side=160,
        device="cpu",
        batch_size=2,
        scores=True,
    )
    world = make_world(1, 3)
    generate_labels(world.index, tmp_path / "labels", settings)
    store, cameras = open_store(tmp_path / "labels"), [c for f in world.index.frames() for c in f.cameras]
    labelled = np.concatenate([store.label_map(camera).ravel() for camera in cameras]) > 0
    score = np.concatenate([store.score_map(camera).ravel() for camera in cameras])
    assert np.array_equal(score > 0, labelled) and labelled.any() and len(set(score[labelled])) > 20
    summary = verify_labels(world.index, tmp_path / "labels", settings)
    assert (summary.batches, summary.images, summary.failures) == (4, 6, [])
