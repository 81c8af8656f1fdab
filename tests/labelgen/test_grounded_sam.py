"""grounded-sam: the two real packages, from files, on the images of a keyframe."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.labelgen.tokens import load_tokenizer

pytest.importorskip("groundingdino", reason="groundingdino-py is not installed")

pytestmark = pytest.mark.frames("synthetic")


@pytest.fixture(scope="session")
def settings(tiny_networks):
    return LabelSettings(
        labeler="grounded-sam",
        detector_config=tiny_networks.detector_config,
        detector_checkpoint=tiny_networks.detector_checkpoint,
        sam_checkpoint=tiny_networks.sam_checkpoint,
        text_encoder=tiny_networks.text_encoder,
        short_side=160,
        long_side=320,
        device="cpu",
        precision="float32",
        batch_size=2,
    )


@pytest.fixture(scope="session")
def labelled(settings, keyframe_index, tmp_path_factory):
    """The six images, labelled once."""
    labels = tmp_path_factory.mktemp("grounded") / "labels"
    return generate_labels(keyframe_index, labels, settings), labels


def test_every_image_gets_a_label_map_of_its_size(labelled, keyframe_index):
    summary, labels = labelled
    assert (summary.images, summary.failures) == (6, [])
    store = open_store(labels)
    frame = next(keyframe_index.frames())
    for camera in frame.cameras:
        label = store.label_map(camera)
        assert label.shape == (900, 1600) and label.dtype == np.uint8
        with Image.open(store.label_path(camera)) as image:
            assert image.mode == "P"
    assert summary.detections > 6


def test_the_manifest_has_the_sha256_of_every_file(labelled, tiny_networks):
    weights = open_store(labelled[1]).manifest["weights"]

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert weights == {
        "detector configuration small.py": sha256(tiny_networks.detector_config),
        "detector detector.pth": sha256(tiny_networks.detector_checkpoint),
        "sam sam.pth": sha256(tiny_networks.sam_checkpoint),
        "text encoder config.json": sha256(tiny_networks.text_encoder / "config.json"),
        "text encoder vocab.txt": sha256(tiny_networks.text_encoder / "vocab.txt"),
    }


def test_the_second_run_loads_no_network_and_writes_nothing(labelled, settings, keyframe_index, monkeypatch):
    labels = labelled[1]
    before = {p: p.stat().st_mtime_ns for p in labels.rglob("*") if p.is_file()}
    monkeypatch.setattr("olivine.labelgen.grounded_sam.OriginalGroundedSam.load", lambda self: pytest.fail("loaded"))
    summary = generate_labels(keyframe_index, labels, settings)
    assert (summary.images, summary.images_kept) == (0, 6)
    assert before == {p: p.stat().st_mtime_ns for p in labels.rglob("*") if p.is_file()}


def test_the_detectors_compiled_extension_is_not_asked_for_and_its_own_code_is_left_as_it_was(labelled):
    from groundingdino.models.GroundingDINO import ms_deform_attn

    assert not hasattr(ms_deform_attn, "_C")
    assert ms_deform_attn.multi_scale_deformable_attn_pytorch.__module__ == ms_deform_attn.__name__


def test_without_weights_one_error_names_every_file_and_how_to_get_it(keyframe_index, tmp_path):
    with pytest.raises(OlivineError) as caught:
        generate_labels(keyframe_index, tmp_path / "labels", LabelSettings("grounded-sam", weights=tmp_path / "w"))
    message = str(caught.value)
    for part in (
        str(tmp_path / "w" / "groundingdino_swint_ogc.pth"),
        str(tmp_path / "w" / "sam_vit_h_4b8939.pth"),
        str(tmp_path / "w" / "bert-base-uncased" / "config.json"),
        "olivine weights fetch swin-t bert-base-uncased vit-h",
        "--detector-checkpoint",
        "--sam-checkpoint",
        "--text-encoder",
        "https://github.com/IDEA-Research/GroundingDINO/releases/",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
    ):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "labels" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ({"sam_checkpoint": "detector_checkpoint"}, "another model than SAM"),
        ({"detector_checkpoint": "sam_checkpoint"}, "another model than GroundingDINO"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(swap, message, settings, keyframe_index, tmp_path):
    wrong = replace(settings, **{key: getattr(settings, value) for key, value in swap.items()})
    with pytest.raises(OlivineError, match=message) as caught:
        generate_labels(keyframe_index, tmp_path / "labels", wrong)
    assert next(str(getattr(wrong, key)) for key in swap) in str(caught.value)


# What SAM-HQ's published checkpoints have beside SAM's tensors (github.com/SysCV/sam-hq, mask_decoder_hq.py), here for
# the small network's widths: a token, its head, and convolutions of the encoder's first and last features.
SAM_HQ = {
    "hf_token.weight": (1, 256),
    **{f"hf_mlp.layers.{k}.{part}": shape for k, out in enumerate((256, 256, 32)) for part, shape in
       (("weight", (out, 256)), ("bias", (out,)))},
    "compress_vit_feat.0.weight": (64, 256, 2, 2), "compress_vit_feat.0.bias": (256,),
    "compress_vit_feat.1.weight": (256,), "compress_vit_feat.1.bias": (256,),
    "compress_vit_feat.3.weight": (256, 32, 2, 2), "compress_vit_feat.3.bias": (32,),
    "embedding_encoder.0.weight": (256, 64, 2, 2), "embedding_encoder.0.bias": (64,),
    "embedding_maskfeature.0.weight": (64, 32, 3, 3), "embedding_maskfeature.0.bias": (64,),
}  # fmt: skip


def test_a_sam_hq_checkpoint_is_refused_by_name(settings, keyframe_index, tmp_path):
    import torch

    state = torch.load(settings.sam_checkpoint, weights_only=True)
    extra = {f"mask_decoder.{name}": torch.zeros(shape) for name, shape in SAM_HQ.items()}
    path = tmp_path / "sam_hq_vit_tiny.pth"
    torch.save({**state, **extra}, path)
    with pytest.raises(
        OlivineError, match=rf"this is a SAM-HQ file: {len(SAM_HQ)} tensors that SAM has not \(mask_decoder\."
    ) as caught:
        generate_labels(keyframe_index, tmp_path / "labels", replace(settings, sam_checkpoint=path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "labels").rglob("*.png"))


def test_transformers_sam_hq_is_refused_by_name(tiny_folders, keyframe_index, tmp_path):
    """The real SAM-HQ architecture of transformers, at reduced size, saved by its own save_pretrained."""
    transformers = pytest.importorskip("transformers")

    small = transformers.SamHQConfig(
        vision_config=transformers.SamHQVisionConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=256, global_attn_indexes=[1],
            window_size=7, mlp_dim=256, num_pos_feats=128,
        ),
        prompt_encoder_config=transformers.SamHQPromptEncoderConfig(image_size=256),
        mask_decoder_config=transformers.SamHQMaskDecoderConfig(mlp_dim=128, vit_dim=64),
    )  # fmt: skip
    transformers.SamHQModel(small).save_pretrained(tmp_path / "hq")
    settings = LabelSettings(
        "hf-grounded-sam", detector_checkpoint=tiny_folders.detector, sam_checkpoint=tmp_path / "hq", device="cpu"
    )
    with pytest.raises(OlivineError, match=r"this is a SAM-HQ file: \d+ tensors") as caught:
        generate_labels(keyframe_index, tmp_path / "labels", settings)
    assert str(tmp_path / "hq") in str(caught.value) and "\n" not in str(caught.value)


def test_a_published_name_with_a_wrong_digest_is_refused(settings, keyframe_index, tmp_path):
    damaged = tmp_path / "sam_vit_b_01ec64.pth"
    damaged.write_bytes(settings.sam_checkpoint.read_bytes())
    with pytest.raises(OlivineError, match="the published file of this name has ec2df627") as caught:
        generate_labels(keyframe_index, tmp_path / "labels", replace(settings, sam_checkpoint=damaged))
    assert str(damaged) in str(caught.value) and "olivine weights fetch vit-h" in str(caught.value)


def test_a_checkpoint_that_runs_code_is_refused(settings, keyframe_index, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(OlivineError, match="holds more than tensors"):
        generate_labels(keyframe_index, tmp_path / "labels", replace(settings, sam_checkpoint=tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: car}\n- {name: zebra}\n", "knows no tokens for the prompt 'zebra'"),
        ("- {name: car}\n- {name: dog, words: Car}\n", "collide"),
        ("- {name: bar}\n- {name: accent, words: bár}\n", "same tokens"),
    ],
)
def test_prompts_that_tokenise_to_nothing_or_collide_are_refused(text, message, settings, keyframe_index, tmp_path):
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(OlivineError, match=message):
        generate_labels(keyframe_index, tmp_path / "labels", replace(settings, prompts=tmp_path / "prompts.yaml"))


def test_an_image_without_detections_gets_an_empty_label_map(settings, make_world, tmp_path):
    summary = generate_labels(make_world(1, 1).index, tmp_path / "labels", replace(settings, box_threshold=1.0))
    assert (summary.images, summary.detections, summary.failures) == (2, 0, [])
    assert summary.pixels["no label"] == 1.0


def test_a_bad_image_is_named_and_the_others_get_done(settings, movable_keyframe, tmp_path):
    frame = next(movable_keyframe.frames())
    truncated, small = (frame.image_path(frame.cameras[i]) for i in (0, 3))
    truncated.write_bytes(truncated.read_bytes()[:60_000])
    Image.new("RGB", (800, 450)).save(small)
    summary = generate_labels(movable_keyframe, tmp_path / "labels", settings)
    assert summary.images == 4
    reasons = " ".join(f.reason for f in summary.failures)
    assert (
        len(summary.failures) == 2 and str(truncated) in reasons and "is 800x450" in reasons and str(small) in reasons
    )
    store = open_store(tmp_path / "labels")
    assert store.unit(frame.scene) is None
    with pytest.raises(OlivineError, match="no such label map"):
        store.label_map(frame.cameras[0])
    assert store.label_map(frame.cameras[1]).shape == (900, 1600)


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoConfig"])
def test_no_code_of_a_tokenizers_folder_runs(tiny_networks, tmp_path, name):
    shutil.copytree(tiny_networks.text_encoder, tmp_path / "bert")
    (tmp_path / "bert" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    for file in ("tokenizer_config.json", "config.json"):
        path = tmp_path / "bert" / file
        plain = json.loads(path.read_text()) if path.exists() else {}
        plain |= {
            "auto_map": {name: ["code.C", None] if name == "AutoTokenizer" else "code.C"},
            "tokenizer_class": "Own",
        }
        path.write_text(json.dumps({**plain, "model_type": "own"}))
    with pytest.raises(OlivineError, match="bert: is no tokenizer that transformers can load"):
        load_tokenizer(tmp_path / "bert")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="session")
def hf_settings(tiny_folders):
    return LabelSettings(
        labeler="hf-grounded-sam",
        detector_checkpoint=tiny_folders.detector,
        sam_checkpoint=tiny_folders.sam,
        short_side=160,
        long_side=320,
        device="cpu",
        precision="float32",
        batch_size=2,
    )


def test_hf_grounded_sam_labels_the_six_images(hf_settings, keyframe_index, tmp_path):
    summary = generate_labels(keyframe_index, tmp_path / "labels", hf_settings)
    assert (summary.images, summary.failures) == (6, []) and summary.detections > 6
    store = open_store(tmp_path / "labels")
    for camera in next(keyframe_index.frames()).cameras:
        assert store.label_map(camera).shape == (900, 1600)
    assert set(store.manifest["weights"]) == {
        "detector config.json", "detector model.safetensors", "detector vocab.txt", "sam config.json", "sam model.safetensors",
    }  # fmt: skip


def test_hf_weights_that_are_missing_or_of_another_model_are_named(hf_settings, keyframe_index, tmp_path):
    absent = LabelSettings("hf-grounded-sam", weights=tmp_path / "w")
    with pytest.raises(OlivineError, match="olivine weights fetch hf-swin-t hf-vit-h") as caught:
        generate_labels(keyframe_index, tmp_path / "labels", absent)
    assert str(tmp_path / "w" / "hf-vit-h" / "model.safetensors") in str(caught.value)
    swapped = replace(hf_settings, sam_checkpoint=hf_settings.detector_checkpoint)
    with pytest.raises(OlivineError, match=r"another model than SAM|is no SAM"):
        generate_labels(keyframe_index, tmp_path / "labels", swapped)


def test_hf_weights_whose_tokens_are_numbered_otherwise_are_refused(hf_settings, make_world, tmp_path):
    """transformers would mask the text as if it had no full stops, and say nothing."""
    folder = tmp_path / "detector"
    shutil.copytree(hf_settings.detector_checkpoint, folder)
    words = (folder / "vocab.txt").read_text().split("\n")
    words[1012], words[1013] = words[1013], words[1012]
    (folder / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(OlivineError, match=r"numbers .* as \[101, 102, 1013, 1029\]") as caught:
        generate_labels(make_world(1, 1).index, tmp_path / "labels", replace(hf_settings, detector_checkpoint=folder))
    assert str(folder) in str(caught.value)


def test_separate_prompting_asks_once_for_each_prompt(settings, make_world, tmp_path):
    world = make_world(1, 1, {"CAM_FRONT": (160, 96)})
    (tmp_path / "prompts.yaml").write_text(
        "".join(f"- {{name: {name}}}\n" for name in ("car", "road", "building", "bus"))
    )
    settings = replace(settings, prompts=tmp_path / "prompts.yaml")
    combined = generate_labels(world.index, tmp_path / "combined", settings)
    separate = generate_labels(world.index, tmp_path / "separate", replace(settings, prompting="separate"))
    assert combined.images == separate.images == 1
    assert separate.detections > combined.detections
    classes = open_store(tmp_path / "separate").unit("scene-0000")["detections"]["class"]
    assert set(classes) == {1, 2, 3, 4}


def test_a_batch_that_does_not_fit_is_split_and_recorded(settings, make_world, tmp_path, monkeypatch):
    import torch

    from olivine.labelgen.grounded_sam import SamSegmenter

    world = make_world(1, 3, {"CAM_FRONT": (160, 96)})
    encode = SamSegmenter.encode
    limit = 1

    def small_memory(self, images):
        if len(images) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, images)

    monkeypatch.setattr(SamSegmenter, "encode", small_memory)
    summary = generate_labels(world.index, tmp_path / "labels", replace(settings, batch_size=3))
    assert (summary.images, summary.failures) == (3, [])
    assert summary.notes == ["scene-0000 batch 0: split into 3 for the device's memory"]
    assert open_store(tmp_path / "labels").unit("scene-0000")["notes"] == {
        "0": ["split into 3 for the device's memory"]
    }
    limit = 0
    summary = generate_labels(world.index, tmp_path / "none", replace(settings, batch_size=3))
    assert len(summary.failures) == 3 and "memory does not suffice" in summary.failures[0].reason


@pytest.mark.soak  # networks give the same bytes again: test_verify.py
def test_the_same_settings_give_the_same_bytes_whatever_was_interrupted(settings, make_world, tmp_path, monkeypatch):
    from olivine.labelgen.grounded_sam import OriginalGroundedSam

    world = make_world(1, 3)  # 2 sizes of 3 images: batches of 2, 1 each
    generate_labels(world.index, tmp_path / "whole", settings)
    label = OriginalGroundedSam.label
    calls = []

    def interrupted(self, tasks, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label(self, tasks, images)

    with monkeypatch.context() as patch:
        patch.setattr(OriginalGroundedSam, "label", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_labels(world.index, tmp_path / "labels", settings)
    assert calls == [2, 1, 2]
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    assert (summary.images_kept, summary.images) == (3, 3)

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


def test_auto_takes_what_the_store_was_made_with(settings, make_world, tmp_path):
    world = make_world(2, 1)
    generate_labels(world.index, tmp_path / "labels", settings, part=(0, 2))
    auto = replace(settings, batch_size="auto", precision="auto")
    generate_labels(world.index, tmp_path / "labels", auto, part=(1, 2))
    assert open_store(tmp_path / "labels").manifest["settings"]["batch_size"] == 2
