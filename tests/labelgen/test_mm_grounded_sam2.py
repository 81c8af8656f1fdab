"""mm-grounded-sam2: real architectures at reduced size, random weights, through the real loading path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.labeler import make_labeler
from olivine.labelgen.mm_grounded_sam2 import Sam2Segmenter
from olivine.labelgen.pretrained import pillow_processor, torchvision_processor
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store


@pytest.fixture(scope="session")
def settings(mm_folders: Path) -> LabelSettings:
    return LabelSettings(
        labeler="mm-grounded-sam2",
        detector_checkpoint=mm_folders / "detector",
        sam_checkpoint=mm_folders / "sam",
        short_side=160,
        long_side=320,
        device="cpu",
        precision="float32",
        batch_size=2,
    )


def test_the_six_images_are_labelled_and_a_second_run_does_nothing(settings, keyframe_index, tmp_path, monkeypatch):
    summary = generate_labels(keyframe_index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (6, []) and summary.detections > 6
    store = open_store(tmp_path / "labels")
    for camera in next(keyframe_index.frames()).cameras:
        assert store.label_map(camera).shape == (900, 1600)
    assert {name.split()[0] for name in store.manifest["weights"]} == {"detector", "sam"}
    before = {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*.png")}
    monkeypatch.setattr("olivine.labelgen.mm_grounded_sam2.MMGroundedSam2.load", None)
    generate_labels(keyframe_index, tmp_path / "labels", settings)
    assert {path: path.read_bytes() for path in (tmp_path / "labels").rglob("*.png")} == before


def test_mask_logits_are_those_of_transformers_own_processor(mm_folders: Path) -> None:
    from transformers import Sam2Model, Sam2Processor

    model = Sam2Model.from_pretrained(mm_folders / "sam").eval()
    processor = Sam2Processor(torchvision_processor("Sam2")(size={"height": 256, "width": 256}))
    boxes = torch.tensor([[20.0, 30.0, 150.0, 90.0], [0.0, 0.0, 200.0, 120.0], [5.5, 3.2, 40.0, 77.0]])
    images = list(np.random.default_rng(0).integers(0, 255, (2, 120, 200, 3), np.uint8))
    ours = Sam2Segmenter(Sam2Model.from_pretrained(mm_folders / "sam").eval(), torch.device("cpu"))
    features = ours.encode(images)
    for i, image in enumerate(images):
        inputs = processor(images=Image.fromarray(image), input_boxes=[boxes.tolist()], return_tensors="pt")
        with torch.inference_mode():
            out = model(**inputs, multimask_output=False)
            (expected,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], binarize=False)
        found = ours.mask_logits(features[i : i + 1], boxes, (120, 200))
        assert found.shape == (3, 120, 200) and float(expected.std()) > 1e-3
        assert torch.allclose(found, expected[:, 0], atol=1e-4 * float(expected.abs().max()))


def test_boxes_and_scores_are_those_of_transformers_own_processor(settings, mm_folders: Path) -> None:
    from transformers import MMGroundingDinoForObjectDetection

    labeler = make_labeler("mm-grounded-sam2", settings, DEFAULT_VOCABULARY, Path())
    labeler.prepare()
    detector = labeler.detector  # type: ignore[attr-defined]
    caption = labeler.captions[0].text  # type: ignore[attr-defined]
    image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    ((boxes, scores),) = detector.detect([image], caption)
    model = MMGroundingDinoForObjectDetection.from_pretrained(mm_folders / "detector").eval()
    processor = pillow_processor("GroundingDino")(size={"shortest_edge": 160, "longest_edge": 320})
    seen = processor(image, return_tensors="pt")
    with torch.inference_mode():
        out = model(**seen, **detector.tokenizer([caption], return_tensors="pt"))
    assert torch.allclose(boxes, out.pred_boxes[0], atol=1e-4)
    assert torch.allclose(scores, out.logits[0].sigmoid(), atol=1e-4)
    assert scores.std() > 0


def test_missing_weights_and_sizes_of_another_sam_are_one_line(settings, tmp_path: Path) -> None:
    absent = LabelSettings("mm-grounded-sam2", weights=tmp_path)
    with pytest.raises(OlivineError, match=r"olivine weights fetch mm-swin-t sam2\.1-hiera-large"):
        make_labeler("mm-grounded-sam2", absent, DEFAULT_VOCABULARY, Path())
    with pytest.raises(OlivineError, match=r"--sam vit-b is a size of SAM's first version\. Choose hiera-tiny"):
        make_labeler("mm-grounded-sam2", replace(settings, sam="vit-b"), DEFAULT_VOCABULARY, Path())
    swapped = replace(settings, sam_checkpoint=settings.detector_checkpoint)
    with pytest.raises(OlivineError, match=r"another model than SAM 2|is no SAM 2"):
        make_labeler("mm-grounded-sam2", swapped, DEFAULT_VOCABULARY, Path()).prepare()
