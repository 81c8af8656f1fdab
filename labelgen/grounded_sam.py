"""Grounded-SAM on the authors' own packages: groundingdino-py and segment-anything.

GroundingDINO: Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for
Open-Set Object Detection"; SAM: Kirillov et al., "Segment Anything".
"""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import OlivineError, read_text, sha256_file
from ..common.tensors import read_tensors
from .attention import compiled_deformable_attention, fuse_sam_attention
from .catalogue import Needed, find_weights, require_weights, weights_digests
from .encoders import TextMemory, cast_weights, in_threads
from .grounded import Detector, GroundedSam, Segmenter, read_boxes, refuse_extra_tensors, require_packages
from .prompts import Vocabulary
from .settings import LabelSettings
from .tokens import load_tokenizer

_CONFIGS = {"swin-t": "GroundingDINO_SwinT_OGC.py", "swin-b": "GroundingDINO_SwinB_cfg.py"}
_TEXT_FILES = (("config.json",), ("tokenizer.json", "vocab.txt"))


def load_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name; never runs code from the file.

    Takes a plain state dict or one under ``model``, as the two packages publish them.

    Raises:
        OlivineError: the file is damaged, or holds something other than tensors.
    """
    remedy = "fetch it again with olivine weights fetch"
    loaded = read_tensors(path, remedy)
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise OlivineError("holds no tensors by name", where=path, remedy=remedy)
    return {name.removeprefix("module."): value for name, value in state.items()}


def fill(model: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Load ``state`` into ``model``; every parameter must be there, in its shape.

    Tensors that the model has no place for are left (published files carry some of their training).

    Raises:
        OlivineError: the weights are of another model.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    other = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or other:
        first = (
            f"no {missing[0]}"
            if missing
            else f"{other[0]} is {tuple(state[other[0]].shape)}, not {tuple(expected[other[0]].shape)}"
        )
        raise OlivineError(
            f"weights of another model than {what}: {len(missing)} parameters missing, {len(other)} of another shape ({first})",
            where=path,
            remedy="name the checkpoint and the configuration of the same network",
        )
    model.load_state_dict({name: state[name] for name in expected})


def read_config(path: Path) -> dict[str, Any]:
    """The assignments of a GroundingDINO configuration file, read as literals and not run.

    Raises:
        OlivineError: the file is missing or assigns something other than literals.
    """
    try:
        tree = ast.parse(read_text(path, "name the file of a GroundingDINO configuration", most=1 << 20))
        config = {}
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                config[statement.targets[0].id] = ast.literal_eval(statement.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise OlivineError(
            f"is no GroundingDINO configuration ({error})",
            where=path,
            remedy="use the package's own, without --detector-config",
        ) from None
    if config.get("modelname") != "groundingdino":
        raise OlivineError("is no GroundingDINO configuration (no modelname)", where=path, remedy="name another file")
    return config


class _TextEncoder(nn.Module):
    """BERT with a mask of its own for each token, in place of the package's ``BertModelWarper``.

    That one asks transformers' BertModel for methods that version 5 no longer has. This one has its parameters under the
    same names, and gives the same values.
    """

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The last hidden state, float [B, T, C].

        Args:
            input_ids: int [B, T].
            attention_mask: bool [B, T, T], which tokens each token sees.
            named: ``position_ids`` and ``token_type_ids``, int [B, T].
        """
        hidden = self.embeddings(input_ids=input_ids, **named)
        hide = (~attention_mask[:, None]).to(hidden.dtype) * torch.finfo(hidden.dtype).min
        return {"last_hidden_state": self.encoder(hidden, attention_mask=hide)[0]}


@contextlib.contextmanager
def _text_encoder_from_configuration() -> Iterator[None]:
    """Let the package build its text encoder from a folder without weights, and run no code of that folder.

    The detector's checkpoint holds the weights; the package would first load the hub's. Asked for nothing else,
    transformers would offer to run the code that a tokenizer's ``auto_map`` names.
    """
    from groundingdino.models.GroundingDINO import groundingdino
    from groundingdino.util import get_tokenlizer
    from transformers import BertConfig, BertModel

    original = get_tokenlizer.get_pretrained_language_model, get_tokenlizer.get_tokenlizer
    wrapper, groundingdino.BertModelWarper = groundingdino.BertModelWarper, _TextEncoder
    get_tokenlizer.get_pretrained_language_model = lambda folder: BertModel(
        BertConfig.from_pretrained(folder, local_files_only=True)
    )
    get_tokenlizer.get_tokenlizer = load_tokenizer
    try:
        yield
    finally:
        get_tokenlizer.get_pretrained_language_model, get_tokenlizer.get_tokenlizer = original
        groundingdino.BertModelWarper = wrapper


def build_detector(config: dict[str, Any], text_encoder: Path) -> Any:
    """GroundingDINO from its configuration, with random weights.

    Args:
        text_encoder: folder with the text encoder's ``config.json`` and vocabulary.
    """
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig

    # Checkpointed activations save memory in training and only cost time here.
    values = {**config, "use_checkpoint": False, "use_transformer_ckpt": False, "text_encoder_type": str(text_encoder)}
    with _text_encoder_from_configuration(), contextlib.redirect_stdout(io.StringIO()):
        return build_model(SLConfig(values)).eval()


class DinoDetector:
    """GroundingDINO of groundingdino-py."""

    def __init__(self, model: Any, short_side: int, long_side: int, device: torch.device) -> None:
        self.model = model.to(device)
        self.model.bert = TextMemory(self.model.bert)
        self.tokenizer = model.tokenizer
        self.max_tokens = int(model.max_text_len)
        self.device = device
        self._sides = (short_side, long_side)

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """An image as the package's own predictor sees it, float32 [3, h, w]."""
        from groundingdino.datasets import transforms
        from PIL import Image

        short, long = self._sides
        resized, _ = transforms.resize(Image.fromarray(image), None, short, long)
        tensor, _ = transforms.ToTensor()(resized, None)
        normalised, _ = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(tensor, None)
        return normalised

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]], caption: str) -> list[tuple[Tensor, Tensor]]:
        """See :class:`olivine.labelgen.grounded.Detector`."""
        batch = torch.stack(in_threads(self.preprocess, images)).to(self.device)
        with compiled_deformable_attention(self.device):
            out = self.model(batch, captions=[caption] * len(images))
        return read_boxes(out["pred_boxes"], out["pred_logits"])


def build_sam(state: dict[str, Tensor], path: Path) -> Any:
    """SAM in the size that a state dict has, with its weights.

    The published ViT-B, -L and -H differ in width, depth, heads and in which blocks attend to
    the whole image; all of it shows in the parameters' shapes.

    Raises:
        OlivineError: the state dict is not one of SAM, or has tensors that SAM has not, as SAM-HQ's has.
    """
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    try:
        width = state["image_encoder.pos_embed"].shape[3]
        grid = state["image_encoder.pos_embed"].shape[1]
        patch = state["image_encoder.patch_embed.proj.weight"].shape[2]
        prompt_width = state["mask_decoder.mask_tokens.weight"].shape[1]
        depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("image_encoder.blocks."))
        relative = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
        mlp_width = state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0]
        decoder_depth = 1 + max(
            int(name.split(".")[3]) for name in state if name.startswith("mask_decoder.transformer.layers.")
        )
        decoder_mlp = state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]
        mask_channels = state["prompt_encoder.mask_downscaling.3.weight"].shape[0]
        iou_width = state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]
    except (KeyError, IndexError, ValueError):
        raise OlivineError("weights of another model than SAM", where=path, remedy="name a SAM checkpoint") from None
    everywhere = tuple(i for i, shape in enumerate(relative) if shape[0] == 2 * grid - 1)
    windows = {(shape[0] + 1) // 2 for i, shape in enumerate(relative) if i not in everywhere}
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=grid * patch,
            mlp_ratio=mlp_width / width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=width // relative[0][1],
            patch_size=patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=everywhere,
            window_size=windows.pop() if windows else 14,
            out_chans=prompt_width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_width,
            image_embedding_size=(grid, grid),
            input_image_size=(grid * patch, grid * patch),
            mask_in_chans=mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=decoder_depth, embedding_dim=prompt_width, mlp_dim=decoder_mlp, num_heads=8
            ),
            transformer_dim=prompt_width,
            iou_head_depth=3,
            iou_head_hidden_dim=iou_width,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    fill(sam, state, path, "SAM")
    refuse_extra_tensors([name for name in state if name not in sam.state_dict()], path)
    return sam.eval()


class SamSegmenter:
    """SAM of segment-anything."""

    def __init__(self, model: Any, device: torch.device) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.model = model.to(device)
        self.device = device
        fuse_sam_attention(model, device)
        self._resize = ResizeLongestSide(model.image_encoder.img_size)

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        resized = np.stack(in_threads(self._resize.apply_image, images))
        batch = torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2)
        return self.model.image_encoder(self.model.preprocess(batch))

    @torch.inference_mode()
    def mask_logits(self, feature: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        sparse, dense = self.model.prompt_encoder(
            points=None, boxes=self._resize.apply_boxes_torch(boxes, size), masks=None
        )
        small, _ = self.model.mask_decoder(
            image_embeddings=feature,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        inside = self._resize.get_preprocess_shape(*size, self._resize.target_length)
        return self.model.postprocess_masks(small, inside, size)[:, 0]


class OriginalGroundedSam(GroundedSam):
    """Grounded-SAM from local files."""

    name = "grounded-sam"
    packages = (
        "groundingdino-py",
        "segment-anything",
        "torch",
        "torchvision",
        "transformers",
        "tokenizers",
        "numpy",
        "pillow",
    )

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary, files: dict[str, Needed]) -> None:
        super().__init__(settings, vocabulary)
        self.files = files

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file, by role and file name."""
        config = self._config_path()
        return {f"detector configuration {config.name}": sha256_file(config), **weights_digests(self.files)}

    def _config_path(self) -> Path:
        if self.settings.detector_config is not None:
            return self.settings.detector_config
        import groundingdino.config

        return Path(groundingdino.config.__file__).parent / _CONFIGS[self.settings.detector]

    def load(self) -> tuple[Detector, Segmenter]:
        """Build both networks and load their weights."""
        checkpoint = self.files["detector"].path
        detector = build_detector(read_config(self._config_path()), self.files["text encoder"].path)
        fill(detector, load_state(checkpoint), checkpoint, f"GroundingDINO with {self._config_path().name}")
        sam_checkpoint = self.files["sam"].path
        sam = build_sam(load_state(sam_checkpoint), sam_checkpoint)
        cast_weights(sam.image_encoder, self.precision)
        s = self.settings
        return DinoDetector(detector, s.short_side, s.long_side, self.device), SamSegmenter(sam, self.device)


def needed_files(settings: LabelSettings) -> dict[str, Needed]:
    """Which files the settings need, and where they are looked for."""
    folder = settings.weights_folder

    def default(entry: str) -> Path:
        return folder / find_weights(entry).files[0].path

    return {
        "detector": Needed(
            "detector",
            "--detector-checkpoint",
            settings.detector_checkpoint or default(settings.detector),
            settings.detector,
        ),
        "text encoder": Needed(
            "text encoder",
            "--text-encoder",
            settings.text_encoder or folder / "bert-base-uncased",
            "bert-base-uncased",
            _TEXT_FILES,
        ),
        "sam": Needed("sam", "--sam-checkpoint", settings.sam_checkpoint or default(settings.sam), settings.sam),
    }


def make_grounded_sam(settings: LabelSettings, vocabulary: Vocabulary) -> OriginalGroundedSam:
    """The labeler, with its files checked and nothing loaded.

    Raises:
        OlivineError: a package or a file is missing, with the command that gets it.
    """
    files = needed_files(settings)
    require_weights("grounded-sam", list(files.values()))
    require_packages("grounded-sam", {"groundingdino": "groundingdino-py", "segment_anything": "segment-anything"})
    if settings.detector_config is not None:
        read_config(settings.detector_config)
    return OriginalGroundedSam(settings, vocabulary, files)
