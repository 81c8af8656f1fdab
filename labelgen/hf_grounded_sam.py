"""Grounded-SAM on transformers: GroundingDinoForObjectDetection and SamModel, from folders."""

from __future__ import annotations

from collections.abc import Sequence
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
from .pretrained import load_pretrained, pillow_processor
from .prompts import Vocabulary
from .settings import LabelSettings
from .tokens import load_tokenizer

DETECTOR_FILES = (("config.json",), ("model.safetensors",), ("tokenizer.json", "vocab.txt"))
SAM_FILES = (("config.json",), ("model.safetensors",))


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
        self.model = model.to(device)
        self.model.model.text_backbone = TextMemory(model.model.text_backbone)
        self.tokenizer = tokenizer
        self.max_tokens = int(model.config.max_text_len)
        self.device = device
        size = {"shortest_edge": short_side, "longest_edge": long_side}
        self._processor = pillow_processor("GroundingDino")(size=size)

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
        self.model = model.to(device)
        self.device = device
        side = model.config.vision_config.image_size
        square: Any = {"height": side, "width": side}
        self._processor = pillow_processor("Sam")(size={"longest_edge": side}, pad_size=square)

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        seen = self._processor(images=list(images), return_tensors="pt")
        return self.model.get_image_embeddings(seen["pixel_values"].to(self.device))

    @torch.inference_mode()
    def mask_logits(self, feature: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        inside = self._processor._get_preprocess_shape(size, self._processor.size["longest_edge"])
        scale = boxes.new_tensor([inside[1] / size[1], inside[0] / size[0]] * 2)
        small = self.decode(feature, (boxes * scale)[None])
        (masks,) = self._processor.post_process_masks(small, [size], [inside], binarize=False)
        return masks[:, 0]

    def decode(self, feature: Any, boxes: Tensor) -> Tensor:
        """Mask logits [1, n, 1, h, w] for boxes [1, n, 4] in pixels of the model's own image."""
        masks: Tensor = self.model(image_embeddings=feature, input_boxes=boxes, multimask_output=False).pred_masks
        return masks


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
        folder, s = self.files["detector"].path, self.settings
        detector = self.load_detector()
        tokenizer = load_tokenizer(folder)
        check_marks(tokenizer, folder)
        found = HfDinoDetector(detector, tokenizer, s.short_side, s.long_side, self.device)
        return found, self.load_segmenter()

    def load_detector(self) -> Any:
        """GroundingDINO with its weights."""
        from transformers import GroundingDinoForObjectDetection

        folder = self.files["detector"].path
        return load_pretrained(GroundingDinoForObjectDetection.from_pretrained, folder, "GroundingDINO")[0]

    def load_segmenter(self) -> Segmenter:
        """SAM with its weights."""
        from transformers import SamModel

        folder = self.files["sam"].path
        sam, extra = load_pretrained(SamModel.from_pretrained, folder, "SAM")
        refuse_extra_tensors(extra, folder)
        return HfSamSegmenter(sam, self.device)


def detector_and_sam(settings: LabelSettings, detector: str, sam: str) -> dict[str, Needed]:
    """The two folders, by role, from their names in the catalogue."""
    folder = settings.weights_folder
    found = settings.detector_checkpoint or folder / detector
    return {
        "detector": Needed("detector", "--detector-checkpoint", found, detector, DETECTOR_FILES),
        "sam": Needed("sam", "--sam-checkpoint", settings.sam_checkpoint or folder / sam, sam, SAM_FILES),
    }


def make_hf_grounded_sam(settings: LabelSettings, vocabulary: Vocabulary) -> HfGroundedSam:
    """The labeler, with its folders checked and nothing loaded.

    Raises:
        OlivineError: a file is missing, with the command that gets it.
    """
    files = detector_and_sam(settings, f"hf-{settings.detector}", f"hf-{settings.sam}")
    require_weights("hf-grounded-sam", list(files.values()))
    require_packages("hf-grounded-sam", {"transformers": "transformers"})
    return HfGroundedSam(settings, vocabulary, files)
