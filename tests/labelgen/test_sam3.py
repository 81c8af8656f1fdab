"""sam3: SAM 3 of transformers at reduced size, random weights, from a folder as it is published."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.labeler import ImageTask, make_labeler
from olivine.labelgen.prompts import load_vocabulary
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = "- {name: car}\n- {name: child, class: pedestrian}\n- {name: bus}\n- {name: road, words: road surface, kind: stuff}\n"
SIDE = 112
WITHOUT = pytest.mark.skipif(
    find_spec("transformers.models.sam3") is None, reason=f"transformers {transformers.__version__} has no SAM 3; 5 has"
)


def _configuration(words: int):
    """A Sam3Config with two or fewer layers of everything."""
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    vit = {
        "model_type": "sam3_vit_model", **small, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 14,
        "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 56,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", **small, "num_hidden_layers": 1, "max_position_embeddings": 32,
        "projection_dim": 16, "vocab_size": words, "eos_token_id": words - 1, "bos_token_id": words - 2,
        "pad_token_id": words - 1,
    }  # fmt: skip
    return transformers.Sam3Config(
        vision_config={
            "backbone_config": vit,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text,
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 9},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it: the configuration of the video model, whose detector is SAM 3, and all its tensors."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("sam3")
    # CLIP's kind of vocabulary, of letters; it ends in the two special tokens.
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz"})
    words = ["<unk>", *letters, *(f"{letter}</w>" for letter in letters), "<start>", "<end>"]
    plain = Tokenizer(
        models.BPE(vocab={w: k for k, w in enumerate(words)}, merges=[], end_of_word_suffix="</w>", unk_token="<unk>")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.decoder = decoders.BPEDecoder()
    start, end = ("<start>", len(words) - 2), ("<end>", len(words) - 1)
    plain.post_processor = processors.BertProcessing(end, start)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.Sam3Model(_configuration(len(words)))
        with torch.no_grad():  # freshly made, all queries look alike
            for value in model.parameters():
                value.add_(torch.randn_like(value), alpha=0.12)
            model.dot_product_scoring.text_proj.weight.mul_(4)
            model.detr_decoder.presence_head.layer3.bias.add_(3)
            # Masks that are neither everywhere nor nowhere.
            projection = model.mask_decoder.instance_projection
            projection.weight.sub_(projection.weight.mean(1, keepdim=True)).mul_(4)
            projection.bias.zero_()
    tensors = {f"detector_model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(
        {**tensors, "tracker_model.part": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    transformers.Sam3VideoConfig(detector_config=model.config.to_dict()).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> LabelSettings:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return LabelSettings(
        "sam3", sam_checkpoint=folder, prompts=tmp_path / "prompts.yaml", box_threshold=0.04, scores=True,
        segments="masks", device="cpu", precision="float32", batch_size=2,
    )  # fmt: skip


@pytest.fixture
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (3, 5, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(image).resize((160, 96))) for image in coarse]


def _ready(settings: LabelSettings):
    labeler = make_labeler("sam3", settings, load_vocabulary(settings.prompts), Path())
    labeler.prepare()
    return labeler


def _label(labeler, images):
    return labeler.label([ImageTask(None, 0)] * len(images), images).images


def _package(folder: Path, image: np.ndarray, words: str):
    """What the package's own model and processor, used as its documentation says, give for one image and one text."""
    processor = transformers.Sam3Processor(
        transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    model = transformers.Sam3Model.from_pretrained(folder).eval()
    inputs = processor(images=Image.fromarray(image), text=words, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs)
    size = [image.shape[:2]]
    (objects,) = processor.post_process_instance_segmentation(out, threshold=0.04, target_sizes=size)
    small = out.semantic_seg.sigmoid()
    semantic = torch.nn.functional.interpolate(small, image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return objects, semantic.numpy(), float(out.presence_logits.sigmoid())


@WITHOUT
def test_label_and_scores_are_painted_from_what_the_packages_own_processor_gives(settings, folder, images) -> None:
    vocabulary = load_vocabulary(settings.prompts)
    for image, labelled in zip(images, _label(_ready(settings), images)):
        layers = []  # stuff before things, each by rising score
        semantic = {}
        for prompt, value in zip(vocabulary.prompts, vocabulary.prompt_values):
            objects, semantic[prompt.name], presence = _package(folder, image, prompt.words)
            if prompt.kind == "stuff":
                if presence > 0.04:
                    layers.append((0, presence, value, semantic[prompt.name] > 0.5, prompt.name))
            else:
                for score, mask in zip(objects["scores"], objects["masks"]):
                    layers.append((1, float(score), value, mask.numpy() > 0, prompt.name))
        label, score = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2])
        for _, _, value, mask, name in sorted(layers, key=lambda layer: layer[:2]):
            label[mask], score[mask] = value, semantic[name][mask]
        assert len(set(label.ravel())) >= 3
        assert (labelled.label != label).mean() < 1e-3  # a probability of one half may fall on either side
        same = (labelled.label == label) & (label > 0)
        assert np.abs(labelled.score[same] - np.clip(255 * score[same], 1, 255)).max() < 1
        assert ((labelled.score > 0) == (labelled.label > 0)).all()
        found = sorted(d.score for d in labelled.detections)
        assert found == pytest.approx(sorted(layer[1] for layer in layers if layer[3].any()), abs=1e-5)


@WITHOUT
def test_an_images_features_are_computed_once_and_a_prompts_once_for_all_images(settings, images, monkeypatch) -> None:
    labeler = _ready(settings)
    seen = []
    encode = labeler.model.get_vision_features
    labeler.model.get_vision_features = lambda pixels: seen.append(len(pixels)) or encode(pixels)
    _label(labeler, images[:2])
    _label(labeler, images[2:])
    assert seen == [2, 1] and labeler.model.get_text_features.asked == 4


@WITHOUT
def test_a_batch_gives_what_each_image_gives_alone(settings, images) -> None:
    labeler = _ready(settings)
    together = _label(labeler, images)
    for image, one in zip(images, together):
        (alone,) = _label(labeler, [image])
        assert (alone.label != one.label).mean() < 1e-3 and len(alone.detections) == len(one.detections)


@WITHOUT
def test_bfloat16_stays_close(settings, images) -> None:
    stuff = replace(settings, box_threshold=0.5)  # no random object comes to that
    (full,) = _label(_ready(stuff), images[:1])
    (half,) = _label(_ready(replace(stuff, precision="bfloat16")), images[:1])
    assert full.label.any() and (full.label == half.label).mean() > 0.95


@WITHOUT
def test_the_same_bytes_again_and_a_second_run_does_nothing(settings, make_world, tmp_path, monkeypatch) -> None:
    world = make_world(1, 3)
    for name in ("first", "second"):
        summary = generate_labels(world.index, tmp_path / name, settings)
        assert (summary.images, summary.failures) == (6, []) and summary.detections > 6

    def contents(name: str) -> dict[str, bytes]:
        return {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }

    first = contents("first")
    assert first == contents("second")
    store = open_store(tmp_path / "first")
    assert {name.split()[0] for name in store.manifest["weights"]} == {"sam"}
    assert store.manifest["settings"]["scores"] == "the prompt's semantic map at the pixel"
    monkeypatch.setattr("olivine.labelgen.sam3.Sam3.prepare", lambda self: pytest.fail("loaded"))
    assert generate_labels(world.index, tmp_path / "first", settings).images_kept == 6
    assert contents("first") == first


@WITHOUT
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("- {name: a very long prompt of many more letters}\n", r"makes \d+ tokens, the text encoder reads 32"),
        ("- {name: voiture à}\n", "knows no tokens for the prompt 'voiture à'"),
        ("- {name: car}\n- {name: cars, words: c a r}\n", None),
    ],
)
def test_prompts_that_the_text_encoder_cannot_read_are_refused_by_name(prompts, message, settings) -> None:
    settings.prompts.write_text(prompts)
    if message is None:
        _ready(settings)
        return
    with pytest.raises(OlivineError, match=message) as caught:
        _ready(settings)
    assert "--prompts" in str(caught.value) and "\n" not in str(caught.value)


@WITHOUT
def test_weights_that_are_missing_or_of_another_model_are_named(settings, tmp_path: Path, mm_folders: Path) -> None:
    with pytest.raises(OlivineError, match=r"olivine weights fetch sam3") as caught:
        make_labeler("sam3", LabelSettings("sam3", weights=tmp_path), load_vocabulary(None), Path())
    assert str(tmp_path / "sam3" / "model.safetensors") in str(caught.value)
    shutil.copytree(settings.sam_checkpoint, tmp_path / "other")
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(mm_folders / "sam" / file, tmp_path / "other" / file)
    other = replace(settings, sam_checkpoint=tmp_path / "other")
    with pytest.raises(OlivineError, match=r"another model than SAM 3|is no SAM 3"):
        _ready(other)


def test_a_transformers_without_sam3_is_said_in_one_line_before_any_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.sam3", None)
    with pytest.raises(OlivineError) as caught:
        make_labeler("sam3", LabelSettings("sam3", weights=tmp_path), load_vocabulary(None), Path())
    assert str(caught.value) == (
        f"--labeler sam3 needs transformers 5 or later; {transformers.__version__} has no SAM 3. "
        "Install it with: pip install 'transformers>=5', or use --labeler mm-grounded-sam2"
    )


def test_another_sams_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match=r"--sam hiera-tiny is a size of another SAM\. Leave it out"):
        make_labeler("sam3", LabelSettings("sam3", sam="hiera-tiny"), load_vocabulary(None), Path())
