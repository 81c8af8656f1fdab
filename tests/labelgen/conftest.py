"""Small worlds for labelgen's tests: indices of sample frames, a hand-made synthetic data set, tiny real networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.readers import open_dataset
from olivine.readers.frame import Camera, Frame
from olivine.readers.index import FrameIndex, write_index


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: a second thread gains nothing, and waits where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def keyframe_index(nuscenes_keyframe: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameIndex:
    """The index of the one nuScenes keyframe."""
    dataset = open_dataset("nuscenes", nuscenes_keyframe)
    folder = tmp_path_factory.mktemp("keyframe") / "frames"
    return write_index(folder, dataset.frames(), dataset="nuscenes", version=dataset.version, root=nuscenes_keyframe)


def _frame(root: Path, scene: str, number: int, sizes: dict[str, tuple[int, int]], truth: str | None) -> Frame:
    eye = np.eye(4)
    cameras = tuple(
        Camera(name, f"samples/{name}/{scene}-{number}.jpg", width, height, np.eye(3), eye)
        for name, (width, height) in sizes.items()
    )
    return Frame(
        "nuscenes", "v1.0-mini", root, f"{scene}-{number}", scene, "train", number, "none.bin", 5, eye, cameras,
        truth_folder=truth,
    )  # fmt: skip


@dataclass(frozen=True)
class World:
    """A hand-made data set and the exact masks it was made from."""

    root: Path
    index: FrameIndex
    classes: dict[str, np.ndarray]  # by camera key
    instances: dict[str, np.ndarray]


SIZES = {"CAM_FRONT": (160, 96), "CAM_BACK": (128, 96)}
# The synthetic world's own order and two names that no prompt has.
WORLD_CLASSES = ["", "sky", "car", "road", "pedestrian", "building", "animal", "truck"]


def _draw(width: int, height: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky, a building, a road, and cars, trucks and people of several sizes on it."""
    classes = np.full((height, width), WORLD_CLASSES.index("sky"), np.uint8)
    classes[height // 4 : height // 2, : width // 2] = WORLD_CLASSES.index("building")
    classes[height // 2 :] = WORLD_CLASSES.index("road")
    instances = np.zeros((height, width), np.uint16)
    for number, name in enumerate(["car", "car", "pedestrian", "truck", "animal"], 1):
        half = int(generator.integers(2, 12))
        row, column = int(generator.integers(height // 2, height - 2)), int(generator.integers(half, width - half))
        where = np.s_[max(row - half, 0) : row + half, column - half : column + half]
        classes[where] = WORLD_CLASSES.index(name)
        instances[where] = number
    return classes, instances


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """A function that makes a synthetic data set by hand: ``make_world(scenes, frames)``."""

    def make(scenes: int = 2, frames: int = 3, sizes: dict[str, tuple[int, int]] | None = None) -> World:
        sizes = sizes or SIZES
        root = tmp_path / "world"
        generator = np.random.default_rng(7)
        made, classes, instances = [], {}, {}
        for scene in range(scenes):
            for number in range(frames):
                frame = _frame(root, f"scene-{scene:04d}", number, sizes, "truth")
                made.append(frame)
                for camera, (class_path, instance_path) in zip(frame.cameras, frame.image_truth or []):
                    label, instance = _draw(camera.width, camera.height, generator)
                    for path in (class_path, instance_path, frame.image_path(camera)):
                        path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(label).save(class_path)
                    Image.fromarray(instance).save(instance_path)
                    Image.fromarray(generator.integers(0, 255, (camera.height, camera.width, 3), np.uint8)).save(
                        frame.image_path(camera)
                    )
                    classes[camera.key], instances[camera.key] = label, instance
        (root / "synthetic.json").write_text(json.dumps({"synthetic": True, "classes": WORLD_CLASSES}))
        index = write_index(root / "frames", made, dataset="nuscenes", version="v1.0-mini", root=root)
        return World(root, index, classes, instances)

    return make


@pytest.fixture
def world_label() -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the 13 prompts' values of a hand-made class mask, by name."""
    lookup = [DEFAULT_VOCABULARY.value(n) if n in DEFAULT_VOCABULARY.classes else 0 for n in WORLD_CLASSES]
    return lambda classes: np.array(lookup, np.uint8)[classes]


@pytest.fixture
def movable_keyframe(keyframe_index: FrameIndex, tmp_path: Path) -> FrameIndex:
    """The keyframe copied to where a test may damage it."""
    root = tmp_path / "nuscenes"
    shutil.copytree(keyframe_index.root / "samples", root / "samples", copy_function=shutil.copyfile)
    for folder in [root, *root.rglob("*")]:
        folder.chmod(0o755)
    frames = [replace(f, root=root) for f in keyframe_index.frames()]
    return write_index(root / "frames", frames, dataset="nuscenes", version="v1.0-mini", root=root)


@dataclass(frozen=True)
class TinyNetworks:
    """Files of both real networks at reduced size with random weights, as a user would have them."""

    detector_config: Path
    detector_checkpoint: Path
    sam_checkpoint: Path
    text_encoder: Path


def write_text_encoder(folder: Path, max_tokens: int = 256) -> None:
    """A BERT of two narrow layers; its word pieces split several of the 13 prompts.

    Special tokens and full stops have bert-base-uncased's numbers, which transformers' GroundingDino takes for granted.
    """
    from transformers import BertConfig

    words = ["bicycle", "bus", "car", "truck", "road", "traffic", "cone", "building", "side", "##walk", "ped", "##est",
             "##rian", "motor", "##cycle", "bar", "##rier", "ter", "##rain", "veg", "##etation", "per", "##son", "tree"]  # fmt: skip
    folder.mkdir(parents=True)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    vocabulary = [special.get(k, f"[unused{k}]") for k in range(1030)] + words
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=max_tokens,
    ).save_pretrained(folder)  # fmt: skip


@dataclass(frozen=True)
class TinyFolders:
    """Folders of both transformers models at reduced size with random weights."""

    detector: Path
    sam: Path


def small_detector(kind: str, folder: Path) -> Any:
    """GroundingDino or MMGroundingDino of transformers at reduced size, for the text encoder in ``folder``."""
    import torch
    import transformers

    text = transformers.BertConfig.from_pretrained(folder)
    backbone = transformers.SwinConfig(
        embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, out_features=["stage2", "stage3", "stage4"]
    )  # fmt: skip
    # Two decoder layers: transformers 5 ties their box heads, and refuses one that has none to be tied to.
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, text_config=text.to_dict(), encoder_layers=1, decoder_layers=2, num_queries=12,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    detector = getattr(transformers, f"{kind}ForObjectDetection")(config)
    with torch.no_grad():
        detector.bbox_embed[0].layers[-1].weight.normal_(0, 0.5)
    return detector


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    """GroundingDinoForObjectDetection and SamModel at reduced size, saved by their own save_pretrained."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    write_text_encoder(folder / "detector")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        detector = small_detector("GroundingDino", folder / "detector")
        detector.save_pretrained(folder / "detector")
        sam = transformers.SamModel(
            transformers.SamConfig(
                vision_config=transformers.SamVisionConfig(
                    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=256, global_attn_indexes=[1],
                    window_size=7, mlp_dim=256, num_pos_feats=128,
                ),
                prompt_encoder_config=transformers.SamPromptEncoderConfig(image_size=256),
                mask_decoder_config=transformers.SamMaskDecoderConfig(mlp_dim=128),
            )
        )  # fmt: skip
        with torch.no_grad():
            for value in sam.parameters():
                if value.ndim > 1:
                    value.normal_(0, 0.1)
        sam.save_pretrained(folder / "sam")
    return TinyFolders(folder / "detector", folder / "sam")


@pytest.fixture(scope="session")
def mm_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MMGroundingDinoForObjectDetection and Sam2Model, saved by their own save_pretrained."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("mm")
    write_text_encoder(folder / "detector")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        detector = small_detector("MMGroundingDino", folder / "detector")
        with torch.no_grad():
            for head in detector.class_embed:
                head.bias.fill_(0.5)
        detector.save_pretrained(folder / "detector")
        hiera = transformers.Sam2HieraDetConfig(
            hidden_size=16, num_attention_heads=1, image_size=[256, 256], blocks_per_stage=[1, 2, 2, 1],
            embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
            window_size_per_stage=[8, 4, 14, 7], global_attention_blocks=[4], window_positional_embedding_background_size=[7, 7],
        )  # fmt: skip
        vision = transformers.Sam2VisionConfig(
            backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=64,
            backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
        )  # fmt: skip
        sam = transformers.Sam2Model(
            transformers.Sam2Config(
                vision_config=vision,
                prompt_encoder_config=transformers.Sam2PromptEncoderConfig(hidden_size=64, image_size=256),
                mask_decoder_config=transformers.Sam2MaskDecoderConfig(
                    hidden_size=64, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=64
                ),
            )
        )
        with torch.no_grad():
            for value in sam.parameters():
                if value.ndim > 1:
                    value.normal_(0, 0.1)
        sam.save_pretrained(folder / "sam")
    return folder


def _clip_part(name: str, **changes: int) -> dict[str, int]:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**size, **({"image_size": 64, "patch_size": 16} if name == "vision" else {}), **changes}


def _write_clip(folder: Path) -> None:
    """CLIPModel with a byte-pair vocabulary of single characters."""
    import transformers

    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    last = len(words) - 1
    text = _clip_part(
        "text", vocab_size=len(words), max_position_embeddings=64, eos_token_id=last, bos_token_id=last - 1
    )
    config = transformers.CLIPConfig(text_config=text, vision_config=_clip_part("vision"), projection_dim=24)
    _save(transformers.CLIPModel(config), transformers.CLIPImageProcessor(), folder)


def _write_siglip(folder: Path) -> None:
    """SiglipModel with a vocabulary of bytes."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: k for k, word in enumerate(["<pad>", "<eos>", *alphabet])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )
    text = _clip_part("text", vocab_size=len(words), max_position_embeddings=64, projection_size=32)
    config = transformers.SiglipConfig(text_config=text, vision_config=_clip_part("vision"))
    _save(transformers.SiglipModel(config), transformers.SiglipImageProcessor(), folder)


def _save(model: Any, processor: Any, folder: Path) -> None:
    import torch

    with torch.no_grad():  # freshly made, its attention is nearly uniform and its biases are 0
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.15)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def high_quality(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SamHQModel, saved by its own save_pretrained."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hq")
    vision = transformers.SamHQVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=256, global_attn_indexes=[1],
        window_size=7, mlp_dim=256, num_pos_feats=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = transformers.SamHQModel(
            transformers.SamHQConfig(
                vision_config=vision,
                prompt_encoder_config=transformers.SamHQPromptEncoderConfig(image_size=256),
                mask_decoder_config=transformers.SamHQMaskDecoderConfig(mlp_dim=128, vit_dim=64),
            )
        )
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim > 1:
                    value.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPModel and SiglipModel at reduced size, saved by their own save_pretrained, in ``clip`` and ``siglip``."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sam-clip")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        _write_clip(folder / "clip")
        _write_siglip(folder / "siglip")
    return folder


def small_config() -> dict[str, object]:
    """The package's own Swin-T configuration with fewer layers and queries."""
    import groundingdino.config

    from olivine.labelgen.grounded_sam import read_config

    config = read_config(Path(groundingdino.config.__file__).parent / "GroundingDINO_SwinT_OGC.py")
    return {**config, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 12}


def write_sam(path: Path, *, sure: bool = False) -> None:
    """SAM of segment-anything at reduced size with random weights; ``sure`` of every mask, so that its generator keeps some."""
    from functools import partial

    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    with torch.random.fork_rng():
        torch.manual_seed(4)
        sam = Sam(
            ImageEncoderViT(
                depth=2, embed_dim=64, img_size=256, mlp_ratio=4, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=(1,), window_size=7,
                out_chans=256,
            ),
            PromptEncoder(embed_dim=256, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=16),
            MaskDecoder(
                num_multimask_outputs=3, transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=128, num_heads=8),
                transformer_dim=256, iou_head_depth=3, iou_head_hidden_dim=256,
            ),
        )  # fmt: skip
        with torch.no_grad():
            sam.image_encoder.pos_embed.normal_(0, 0.5)
            for name, value in sam.named_parameters():
                if "rel_pos" in name:
                    value.normal_(0, 0.2)
            if sure:
                last = sam.mask_decoder.iou_prediction_head.layers[-1]
                last.weight.zero_()
                last.bias.fill_(0.99)
                for head in sam.mask_decoder.output_hypernetworks_mlps:
                    head.layers[-1].weight.mul_(1000)
                    head.layers[-1].bias.mul_(1000)
        torch.save(sam.state_dict(), path)


@pytest.fixture(scope="session")
def sure_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM's checkpoint whose generator keeps masks."""
    path = tmp_path_factory.mktemp("sure-sam") / "sam.pth"
    write_sam(path, sure=True)
    return path


@pytest.fixture(scope="session")
def tiny_networks(tmp_path_factory: pytest.TempPathFactory) -> TinyNetworks:
    """Both packages' networks at reduced size, random weights, saved as their authors publish them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("groundingdino", reason="groundingdino-py is not installed")

    from olivine.labelgen.grounded_sam import build_detector

    folder = tmp_path_factory.mktemp("weights")
    write_text_encoder(folder / "bert")
    config = small_config()
    (folder / "small.py").write_text("".join(f"{k} = {v!r}\n" for k, v in config.items()))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        detector = build_detector(config, folder / "bert")
        # Freshly made, all queries look alike and score alike; spread them, so that
        # boxes differ and some are under the thresholds.
        with torch.no_grad():
            for name, value in detector.named_parameters():
                if name.endswith("bbox_embed.0.layers.2.weight"):
                    value.normal_(0, 0.5)
                if "feat_map.weight" in name:
                    value.mul_(0.25)
        torch.save({"model": detector.state_dict()}, folder / "detector.pth")
    write_sam(folder / "sam.pth")
    return TinyNetworks(folder / "small.py", folder / "detector.pth", folder / "sam.pth", folder / "bert")
