"""Grounded-SAM on transformers: GroundingDinoForObjectDetection and SamModel, from folders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common import OlivineError
from .attention import compiled_deformable_attention
from .catalogue import Needed, require_weights, weights_digests
from .encoders import TextMemory
from .grounded import Detector, GroundedSam, Segmenter, read_boxes, refuse_extra_tensors, require_packages
from .prompts import Vocabulary
from .settings import LabelSettings
from .tokens import load_tokenizer

DETECTOR_FILES = (("config.json",), ("model.safetensors",), ("tokenizer.json", "vocab.txt"))
SAM_FILES = (("config.json",), ("model.safetensors",))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' loading report off the terminal; what matters of it is checked and raised."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_pretrained(architecture: Callable[..., Any], folder: Path, what: str) -> tuple[Any, list[str]]:
    """A transformers model from a local folder, every parameter from its safetensors file.

    Returns:
        the model, and the names of tensors that it has no place for.

    Raises:
        OlivineError: the folder holds another model, or its file is damaged.
    """
    remedy = "name the folder of the right model, or fetch it again with olivine weights fetch"
    try:
        with _quiet():
            model, report = architecture(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OlivineError(f"is no {what} that transformers can load ({reason})", where=folder, remedy=remedy) from None
    wrong = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if wrong:
        raise OlivineError(
            f"weights of another model than {what}: {len(wrong)} parameters missing or of another shape (first: {wrong[0]})",
            where=folder,
            remedy=remedy,
        )
    return model.eval(), sorted(report["unexpected_keys"])


def check_marks(tokenizer: Any, folder: Path) -> None:
    """transformers has the numbers of the tokens that end a phrase as constants; with others no word sees its phrase."""
    from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS

    found = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    if found != SPECIAL_TOKENS:
        raise OlivineError(
            f"its tokenizer numbers [CLS], [SEP], . and ? as {found}; transformers' GroundingDINO takes {SPECIAL_TOKENS}"
            " for granted",
            where=folder,
            remedy="use bert-base-uncased's vocabulary, or --labeler grounded-sam",
        )


class HfDinoDetector:
    """GroundingDINO of transformers."""

    def __init__(self, model: Any, tokenizer: Any, short_side: int, long_side: int, device: torch.device) -> None:
        from transformers import GroundingDinoImageProcessor

        self.model = model.to(device)
        self.model.model.text_backbone = TextMemory(model.model.text_backbone)
        self.tokenizer = tokenizer
        self.max_tokens = int(model.config.max_text_len)
        self.device = device
        self._processor = GroundingDinoImageProcessor(size={"shortest_edge": short_side, "longest_edge": long_side})

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]], caption: str) -> list[tuple[Tensor, Tensor]]:
        """See :class:`olivine.labelgen.grounded.Detector`."""
        seen = self._processor(images=list(images), return_tensors="pt").to(self.device)
        text = self.tokenizer([caption] * len(images), return_tensors="pt").to(self.device)
        with compiled_deformable_attention(self.device):
            out = self.model(**seen, **text)
        return read_boxes(out.pred_boxes, out.logits)


class HfSamSegmenter:
    """SAM of transformers."""

    def __init__(self, model: Any, device: torch.device) -> None:
        from transformers import SamImageProcessor

        self.model = model.to(device)
        self.device = device
        side = model.config.vision_config.image_size
        square: Any = {"height": side, "width": side}
        self._processor = SamImageProcessor(size={"longest_edge": side}, pad_size=square)

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        seen = self._processor(images=list(images), return_tensors="pt")
        return self.model.get_image_embeddings(seen["pixel_values"].to(self.device))

    @torch.inference_mode()
    def mask_logits(self, feature: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        inside = self._processor._get_preprocess_shape(size, self._processor.size["longest_edge"])
        scale = boxes.new_tensor([inside[1] / size[1], inside[0] / size[0]] * 2)
        out = self.model(image_embeddings=feature, input_boxes=(boxes * scale)[None], multimask_output=False)
        (masks,) = self._processor.post_process_masks(out.pred_masks, [size], [inside], binarize=False)
        return masks[:, 0]


class HfGroundedSam(GroundedSam):
    """Grounded-SAM from two folders."""

    name = "hf-grounded-sam"
    packages = ("transformers", "torch", "torchvision", "tokenizers", "safetensors", "numpy", "pillow")

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary, files: dict[str, Needed]) -> None:
        super().__init__(settings, vocabulary)
        self.files = files

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file, by role and file name."""
        return weights_digests(self.files)

    def load(self) -> tuple[Detector, Segmenter]:
        """Build both networks and load their weights."""
        from transformers import GroundingDinoForObjectDetection, SamModel

        folder = self.files["detector"].path
        detector, _ = load_pretrained(GroundingDinoForObjectDetection.from_pretrained, folder, "GroundingDINO")
        sam, extra = load_pretrained(SamModel.from_pretrained, self.files["sam"].path, "SAM")
        refuse_extra_tensors(extra, self.files["sam"].path)
        tokenizer = load_tokenizer(folder)
        check_marks(tokenizer, folder)
        s = self.settings
        return (
            HfDinoDetector(detector, tokenizer, s.short_side, s.long_side, self.device),
            HfSamSegmenter(sam, self.device),
        )


def make_hf_grounded_sam(settings: LabelSettings, vocabulary: Vocabulary) -> HfGroundedSam:
    """The labeler, with its folders checked and nothing loaded.

    Raises:
        OlivineError: a file is missing, with the command that gets it.
    """
    folder = settings.weights_folder
    detector, sam = f"hf-{settings.detector}", f"hf-{settings.sam}"
    files = {
        "detector": Needed(
            "detector",
            "--detector-checkpoint",
            settings.detector_checkpoint or folder / detector,
            detector,
            DETECTOR_FILES,
        ),
        "sam": Needed("sam", "--sam-checkpoint", settings.sam_checkpoint or folder / sam, sam, SAM_FILES),
    }
    require_weights("hf-grounded-sam", list(files.values()))
    require_packages("hf-grounded-sam", {"transformers": "transformers"})
    return HfGroundedSam(settings, vocabulary, files)
