"""Grounded-SAM with MM-GroundingDINO and SAM 2.1 of transformers, from two folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common import OlivineError, demand, read_json
from .catalogue import require_weights
from .grounded import Levels, Segmenter, refuse_extra_tensors, require_packages
from .hf_grounded_sam import HfGroundedSam, detector_and_sam
from .pretrained import load_pretrained, torchvision_processor
from .prompts import Vocabulary
from .settings import LabelSettings

NAME = "mm-grounded-sam2"
# Files of transformers 4 hold this once; version 5 no longer knows that both are one.
_SAME = {"prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"}
_PARTS = ("vision_encoder.", "prompt_encoder.", "mask_decoder.")


class Sam2Segmenter:
    """SAM 2.1 of transformers, on single images."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        self._side = int(model.config.prompt_encoder_config.image_size)
        self._processor = torchvision_processor("Sam2")(size={"height": self._side, "width": self._side})

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """See :class:`olivine.labelgen.grounded.Segmenter`; all levels."""
        seen = self._processor(images=[image.copy() for image in images], return_tensors="pt")  # it wants to own them
        return Levels(self.model.get_image_embeddings(seen["pixel_values"].to(self.device)))

    @torch.inference_mode()
    def mask_logits(self, feature: Any, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`olivine.labelgen.grounded.Segmenter`."""
        scale = boxes.new_tensor([self._side / size[1], self._side / size[0]] * 2)
        levels = list(iter(feature))
        out = self.model(image_embeddings=levels, input_boxes=(boxes * scale)[None], multimask_output=False)
        (masks,) = self._processor.post_process_masks(out.pred_masks, [size], binarize=False)
        found: Tensor = masks[:, 0]
        return found


def _own_heads(folder: Path) -> dict[str, Any]:
    """Settings that give each layer of the detector's decoder its own heads, as MM-GroundingDINO defines them.

    transformers 4 knew nothing else and wrote no setting. Version 5 reads a file without one as if all layers shared the
    first one's heads, and finds other boxes.
    """
    from transformers.models.mm_grounding_dino import MMGroundingDinoConfig

    path, remedy = folder / "config.json", "name the folder of MM-GroundingDINO, or fetch it again"
    written = demand(read_json(path, remedy), {"model_type": str}, path, remedy)
    known = MMGroundingDinoConfig()
    names = ("decoder_bbox_embed_share", "decoder_cls_embed_share")
    return {name: False for name in names if name not in written and hasattr(known, name)}


class MMGroundedSam2(HfGroundedSam):
    """Grounded-SAM with MM-GroundingDINO and SAM 2.1."""

    name = NAME

    def load_detector(self) -> Any:
        """MM-GroundingDINO with its weights."""
        from transformers.models.mm_grounding_dino import MMGroundingDinoForObjectDetection

        folder = self.files["detector"].path
        load = partial(MMGroundingDinoForObjectDetection.from_pretrained, **_own_heads(folder))
        return load_pretrained(load, folder, "MM-GroundingDINO")[0]

    def load_segmenter(self) -> Segmenter:
        """SAM 2.1 with its weights."""
        from transformers import Sam2Model

        folder = self.files["sam"].path
        sam, extra = load_pretrained(Sam2Model.from_pretrained, folder, "SAM 2", _SAME)
        # A published file also holds the parts that follow objects through a video.
        refuse_extra_tensors([name for name in extra if name.startswith(_PARTS)], folder)
        return Sam2Segmenter(sam, self.device)


def make_mm_grounded_sam2(settings: LabelSettings, vocabulary: Vocabulary) -> MMGroundedSam2:
    """The labeler, with its folders checked and nothing loaded.

    Raises:
        OlivineError: a file is missing, with the command that gets it; or SAM's first version is asked for.
    """
    # --sam's default means the largest there is.
    size = "hiera-large" if settings.sam == "vit-h" else settings.sam
    if not size.startswith("hiera-"):
        raise OlivineError(
            f"--sam {settings.sam} is a size of SAM's first version", remedy="choose hiera-tiny or hiera-large"
        )
    files = detector_and_sam(settings, f"mm-{settings.detector}", f"sam2.1-{size}")
    require_weights(NAME, list(files.values()))
    require_packages(NAME, {"transformers": "transformers"})
    return MMGroundedSam2(settings, vocabulary, files)
