"""mm-grounded-sam2: real architectures at reduced size, random weights, through the real loading path."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("name", ["hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2"])
def test_an_older_transformers_is_refused_in_one_line(name, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olivine.labelgen.grounded.package_versions", lambda names: dict.fromkeys(names, "4.55.1"))
    with pytest.raises(
        OlivineError, match=rf"^--labeler {name} needs transformers 4\.56 or later, not 4\.55\.1\. Install"
    ):
        make_labeler(name, replace(settings, labeler=name), DEFAULT_VOCABULARY, Path())


def _as_transformers_4_wrote_it(mm_folders: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Both folders, no setting of shared heads, each decoder layer's heads apart, SAM's shared tensor once; the new heads."""
    generator = torch.Generator().manual_seed(0)
    shutil.copytree(mm_folders, folder)
    config = json.loads((folder / "detector" / "config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.endswith("_embed_share")}
    (folder / "detector" / "config.json").write_text(json.dumps(kept))
    detector, sam = (load_file(folder / part / "model.safetensors") for part in ("detector", "sam"))
    second = {
        name.replace("embed.0.", "embed.1."): torch.randn(value.shape, generator=generator)
        for name, value in detector.items()
        if name.startswith(("bbox_embed.0.", "class_embed.0."))
    }
    first = {n: v for n, v in detector.items() if not n.startswith(("bbox_embed.1.", "class_embed.1."))}
    save_file(
        {**first, **{f"model.decoder.{n}": v for n, v in second.items()}},
        folder / "detector/model.safetensors",
        metadata={"format": "pt"},
    )
    save_file(
        {n: v for n, v in sam.items() if "prompt_encoder.shared" not in n},
        folder / "sam/model.safetensors",
        metadata={"format": "pt"},
    )
    return second


def test_files_of_transformers_4_are_read_as_it_reads_them(settings, mm_folders: Path, tmp_path: Path) -> None:
    """Version 5 would give all layers the first one's heads, and finds SAM 2's shared tensor missing."""
    second = _as_transformers_4_wrote_it(mm_folders, tmp_path / "mm")
    old = replace(settings, detector_checkpoint=tmp_path / "mm/detector", sam_checkpoint=tmp_path / "mm/sam")
    labeler = make_labeler("mm-grounded-sam2", old, DEFAULT_VOCABULARY, Path())
    detector = labeler.load_detector().state_dict()  # type: ignore[attr-defined]
    assert len(second) == 7  # three layers of a box head, and a class head's bias
    for name, value in second.items():
        assert torch.equal(detector[name], value) and torch.equal(detector[f"model.decoder.{name}"], value)
    sam = labeler.load_segmenter().model  # type: ignore[attr-defined]
    shared = load_file(mm_folders / "sam" / "model.safetensors")["shared_image_embedding.positional_embedding"]
    assert torch.equal(sam.prompt_encoder.shared_embedding.positional_embedding, shared)
