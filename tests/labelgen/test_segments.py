"""Segments: the labeler's own masks, SAM's automatic masks, SLIC."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.run import generate_labels
from olivine.labelgen.segments import SamSegments, paint_by_falling_area
from olivine.labelgen.settings import OWN_SAM, LabelSettings
from olivine.labelgen.store import open_store


def test_masks_are_painted_by_falling_area_and_the_background_is_apart():
    large, small, middle = np.zeros((3, 6, 6), bool)
    large[:5], small[0, 0], middle[1:3, 1:3] = True, True, True
    segment = paint_by_falling_area([small, large, middle], (6, 6))
    assert segment[0, 0] == 3 and segment[1, 1] == 2 and segment[4, 0] == 1 and segment[5, 5] == 0
    assert segment.dtype == np.uint16


def test_slic_gives_slidrs_superpixels_for_any_labeler(make_world, tmp_path):
    segmentation = pytest.importorskip("skimage.segmentation", reason="scikit-image is not installed")
    world = make_world(1, 1)
    summary = generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", segments="slic"))
    assert (summary.images, summary.failures) == (2, [])
    store = open_store(tmp_path / "labels")
    assert store.manifest["settings"]["segment_settings"] == {"n_segments": 150, "compactness": 6.0, "sigma": 3.0}
    frame = next(world.index.frames())
    for camera in frame.cameras:
        image = np.asarray(Image.open(frame.image_path(camera)).convert("RGB"))
        expected = segmentation.slic(image, n_segments=150, compactness=6, sigma=3, start_label=1)
        assert np.array_equal(store.segment_map(camera), expected)


@pytest.mark.soak
def test_sams_automatic_masks_come_from_its_own_generator(make_world, tiny_networks, tmp_path, monkeypatch):
    from olivine.labelgen.grounded_sam import build_sam, load_state

    generator = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    monkeypatch.setattr(SamSegments, "resolved", lambda self: {"points_per_side": 8})  # 32 in earnest
    world = make_world(1, 1, {"CAM_FRONT": (160, 96)})
    sam = tiny_networks.sam_checkpoint
    settings = LabelSettings("oracle", segments="sam", sam_checkpoint=sam, device="cpu")
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (1, [])
    store = open_store(tmp_path / "labels")
    assert list(store.manifest["weights"]) == ["sam sam.pth"]
    frame = next(world.index.frames())
    with Image.open(frame.image_path(frame.cameras[0])) as image:
        found = generator(build_sam(load_state(sam), sam), points_per_side=8).generate(np.asarray(image))
    segment = store.segment_map(frame.cameras[0])
    assert segment.shape == (96, 160) and segment.dtype == np.uint16
    assert np.array_equal(segment, paint_by_falling_area([one["segmentation"] for one in found], (96, 160)))


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sams_segments_beside_grounded_sam_in_half_precision(
    precision, make_world, tiny_networks, tmp_path, monkeypatch
):
    """bfloat16 is what a GPU takes unasked; SAM's generator runs in float32 alone."""
    monkeypatch.setattr(SamSegments, "points_per_side", 2)
    world = make_world(1, 1, {"CAM_FRONT": (160, 96)})
    sizes = {"device": "cpu", "short_side": 96, "long_side": 160}
    settings = LabelSettings("grounded-sam", segments="sam", precision=precision, **sizes, **vars(tiny_networks))
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (1, [])


def test_what_cannot_give_segments_says_so(make_world, keyframe_index, keyframe_camseg, tmp_path):
    with pytest.raises(OlivineError, match="no masks of instances"):
        generate_labels(
            keyframe_index, tmp_path / "a", LabelSettings("import", camseg=keyframe_camseg, segments="masks")
        )
    with pytest.raises(OlivineError, match="--segments sam needs weights"):
        settings = LabelSettings("oracle", segments="sam", weights=tmp_path)
        generate_labels(make_world(1, 1).index, tmp_path / "b", settings)


@pytest.mark.parametrize("name", OWN_SAM)
def test_a_labeler_with_a_sam_of_its_own_has_the_segments_from_the_folder_of_weights(name, tmp_path):
    """Its --sam and --sam-checkpoint name a folder of transformers, which SAM's own package cannot read."""
    pytest.importorskip("segment_anything")
    settings = LabelSettings(name, segments="sam", sam_checkpoint=tmp_path / "transformers", weights=tmp_path)
    with pytest.raises(OlivineError, match=r"sam of the segments: no .*sam_vit_h.*olivine weights fetch vit-h"):
        SamSegments(settings)
    for size in ("vit_b_01ec64", "vit_l_0b3195"):
        (tmp_path / f"sam_{size}.pth").touch()
    assert SamSegments(settings).file.path == tmp_path / "sam_vit_l_0b3195.pth"
    assert SamSegments(replace(settings, sam="vit-b")).file.path == tmp_path / "sam_vit_b_01ec64.pth"


def test_a_lost_segment_map_is_made_again(make_world, tmp_path):
    world = make_world(1, 2)
    settings = LabelSettings("oracle", segments="masks")
    generate_labels(world.index, tmp_path / "labels", settings)
    store = open_store(tmp_path / "labels")
    camera = next(world.index.frames()).cameras[0]
    before = store.segment_path(camera).read_bytes()
    store.segment_path(camera).unlink()
    with pytest.raises(OlivineError, match="no such label map"):
        store.segment_map(camera)
    assert generate_labels(world.index, tmp_path / "labels", settings).images == 4
    assert store.segment_path(camera).read_bytes() == before
    assert json.loads((tmp_path / "labels" / "manifest.json").read_text())["settings"]["segments"] == "masks"
