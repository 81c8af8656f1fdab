"""Other views of an image: a labeler's map lies where the image is, whatever it saw of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.labelgen import work as work_module
from olivine.labelgen.labeler import BatchResult, Detection, Labelled, make_labeler
from olivine.labelgen.prompts import load_vocabulary
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.labelgen.views import ViewLabeler

WIDTH, HEIGHT = 50, 8
BOX = (12, 2, 17, 6)


class ByColour:
    """Label and score of a pixel are functions of its colour, and one object is the box around the colour 7."""

    name, needs_image, batch_size, packages = "colour", True, 2, ("numpy",)

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def resolved(self) -> dict[str, Any]:
        return {"colour": 1}

    def weights(self) -> dict[str, str]:
        return {}

    def prepare(self) -> None:
        pass

    def label(self, tasks: Any, images: Any) -> BatchResult:
        self.seen += list(images)
        return BatchResult(tuple(self.one(image) for image in images), ("a note",))

    def one(self, image: np.ndarray) -> Labelled | OlivineError:
        if image[0, 0, 0] == 255 or image[0, -1, 0] == 255:
            return OlivineError("no memory")
        label = (image[..., 0] % 14).astype(np.uint8)
        row, column = np.nonzero(image[..., 0] == 7)
        boxes = [(column.min(), row.min(), column.max() + 1, row.max() + 1)] if len(row) else []
        return Labelled(
            label, tuple(Detection(tuple(map(float, box)), 0.5, 0.5, 7, 20) for box in boxes), score=image[..., 1]
        )  # type: ignore[arg-type]


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = rng.integers(8, 200, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    left, top, right, bottom = BOX
    found[:, top:bottom, left:right, 0] = 7
    return list(found)


@pytest.mark.parametrize("view", ["mirrored", "halves"])
def test_maps_scores_and_boxes_lie_as_in_the_whole_image(view: str, images: list[np.ndarray]) -> None:
    labeler = ByColour()
    found = ViewLabeler(labeler, view).label([], images)
    for image, result in zip(images, found.images):
        expected = ByColour().one(image)
        assert isinstance(result, Labelled) and isinstance(expected, Labelled)
        np.testing.assert_array_equal(result.label, expected.label)
        np.testing.assert_array_equal(result.score, expected.score)
        assert [d.box for d in result.detections] == [tuple(map(float, BOX))]
    assert all(image.flags.c_contiguous for image in labeler.seen)  # networks take no negative strides
    if view == "mirrored":
        np.testing.assert_array_equal(labeler.seen[1], images[1][:, ::-1])
    else:
        # Each half reaches over the middle, a batch of halves has one size.
        assert {image.shape for image in labeler.seen} == {(HEIGHT, 30, 3)} and len(labeler.seen) == 4


def test_an_object_in_the_right_half_has_its_box_in_the_image(images: list[np.ndarray]) -> None:
    other_way = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    found = ViewLabeler(ByColour(), "halves").label([], other_way)
    assert isinstance(found.images[0], Labelled)
    assert [d.box for d in found.images[0].detections] == [(float(WIDTH - BOX[2]), 2.0, float(WIDTH - BOX[0]), 6.0)]


@pytest.mark.parametrize("view", ["mirrored", "halves"])
def test_an_image_that_fails_fails_alone(view: str, images: list[np.ndarray]) -> None:
    images[0][0, -1] = 255
    found = ViewLabeler(ByColour(), view).label([], images)
    assert isinstance(found.images[0], OlivineError) and isinstance(found.images[1], Labelled)


def test_a_store_of_another_view_says_so_and_is_another_store(
    make_world: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(1, 1)
    monkeypatch.setattr(work_module, "make_labeler", lambda *_: ByColour())
    settings = LabelSettings("grounded-sam")
    generate_labels(world.index, tmp_path / "whole", settings)
    generate_labels(world.index, tmp_path / "mirrored", replace(settings, view="mirrored"))
    whole, mirrored = open_store(tmp_path / "whole"), open_store(tmp_path / "mirrored")
    assert mirrored.manifest["settings"]["view"] == "mirrored" and "view" not in whole.manifest["settings"]
    for camera in next(world.index.frames()).cameras:
        np.testing.assert_array_equal(mirrored.label_map(camera), whole.label_map(camera))
    with pytest.raises(OlivineError, match=r"other settings: .*view"):
        generate_labels(world.index, tmp_path / "whole", replace(settings, view="halves"))


def test_what_has_no_other_view_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match=r"--view mirrored with --segments slic.*Maps of another view only vote"):
        LabelSettings(view="mirrored", segments="slic")
    with pytest.raises(OlivineError, match=r"'up' is not a choice of --view.*whole, mirrored, halves"):
        LabelSettings(view="up")
    for name in ("oracle", "import", "regions", "sam-clip"):
        with pytest.raises(OlivineError, match=f"--labeler {name} gives no labels of --view halves.*grounded-sam"):
            make_labeler(name, LabelSettings(name, view="halves"), load_vocabulary(None), tmp_path)


@pytest.mark.soak
@pytest.mark.frames("synthetic")
@pytest.mark.parametrize("view", ["mirrored", "halves"])
def test_a_networks_views_are_labelled_and_are_other_votes(
    view: str, tiny_folders: Any, keyframe_index: Any, tmp_path: Path
) -> None:
    settings = LabelSettings(
        "hf-grounded-sam", detector_checkpoint=tiny_folders.detector, sam_checkpoint=tiny_folders.sam, short_side=160,
        long_side=320, device="cpu", precision="float32", batch_size=3, view=view,
    )  # fmt: skip
    summary = generate_labels(keyframe_index, tmp_path / view, settings)
    assert (summary.images, summary.failures) == (6, []) and summary.detections > 6
    generate_labels(keyframe_index, tmp_path / "whole", replace(settings, view="whole"))
    whole, store = open_store(tmp_path / "whole"), open_store(tmp_path / view)
    cameras = next(keyframe_index.frames()).cameras
    assert any((store.label_map(camera) != whole.label_map(camera)).any() for camera in cameras)
    assert whole.with_votes_of([store.root]).also == (store,)
