"""grounded-sam-hq: SAM-HQ of transformers at reduced size, random weights, through the real loading path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.labeler import make_labeler
from olivine.labelgen.pretrained import pillow_processor
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def settings(tiny_folders, high_quality: Path) -> LabelSettings:
    return LabelSettings(
        "grounded-sam-hq", detector_checkpoint=tiny_folders.detector, sam_checkpoint=high_quality, short_side=160,
        long_side=320, device="cpu", precision="float32", batch_size=2,
    )  # fmt: skip


def test_mask_logits_are_those_of_transformers_own_processor_batched_or_not(settings, high_quality: Path) -> None:
    labeler = make_labeler("grounded-sam-hq", settings, DEFAULT_VOCABULARY, Path())
    ours = labeler.load_segmenter()  # type: ignore[attr-defined]
    model = transformers.SamHQModel.from_pretrained(high_quality).eval()
    image_processor = pillow_processor("Sam")(size={"longest_edge": 256}, pad_size={"height": 256, "width": 256})
    processor = transformers.SamHQProcessor(image_processor)
    boxes = torch.tensor([[20.0, 30.0, 150.0, 90.0], [0.0, 0.0, 200.0, 120.0], [5.5, 3.2, 40.0, 77.0]])
    images = list(np.random.default_rng(0).integers(0, 255, (2, 120, 200, 3), np.uint8))
    batch = ours.encode(images)
    for i, image in enumerate(images):
        inputs = processor(Image.fromarray(image), input_boxes=[boxes.tolist()], return_tensors="pt")
        with torch.inference_mode():
            out = model(**inputs, multimask_output=False)
            plain = model(**inputs, multimask_output=False, hq_token_only=True).pred_masks
        assert (out.pred_masks - plain).abs().max() > 0  # both heads count
        (expected,) = processor.image_processor.post_process_masks(
            out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
        )
        for features in (batch[i : i + 1], ours.encode([image])):
            found = ours.mask_logits(features, boxes, (120, 200))
            assert found.shape == (3, 120, 200) and float(expected.std()) > 1e-3
            assert torch.allclose(found, expected[:, 0], atol=1e-3 * float(expected.abs().max()))


def test_images_are_labelled_and_a_second_run_does_nothing(settings, make_world, tmp_path, monkeypatch) -> None:
    world = make_world(1, 2)
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images, summary.failures) == (4, []) and summary.detections > 4
    assert {name.split()[0] for name in open_store(tmp_path / "labels").manifest["weights"]} == {"detector", "sam"}
    monkeypatch.setattr("olivine.labelgen.grounded_sam_hq.GroundedSamHq.load", None)
    assert generate_labels(world.index, tmp_path / "labels", settings).images_kept == 4


def test_plain_sam_and_missing_weights_are_one_line(settings, tiny_folders, tmp_path: Path) -> None:
    plain = make_labeler(
        "grounded-sam-hq", replace(settings, sam_checkpoint=tiny_folders.sam), DEFAULT_VOCABULARY, Path()
    )
    with pytest.raises(OlivineError, match=r"weights of another model than SAM-HQ: \d+ parameters missing") as caught:
        plain.prepare()
    assert str(tiny_folders.sam) in str(caught.value)
    with pytest.raises(OlivineError, match="olivine weights fetch hf-swin-t sam-hq-vit-h"):
        make_labeler("grounded-sam-hq", LabelSettings("grounded-sam-hq", weights=tmp_path), DEFAULT_VOCABULARY, Path())
