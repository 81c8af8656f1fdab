"""Grounded-SAM with SAM-HQ (Ke et al., "Segment Anything in High Quality"), as OLIVINE's authors ran it, on transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .catalogue import require_weights
from .grounded import Levels, Segmenter, require_packages
from .hf_grounded_sam import HfGroundedSam, HfSamSegmenter, detector_and_sam
from .pretrained import load_pretrained
from .prompts import Vocabulary
from .settings import LabelSettings

NAME = "grounded-sam-hq"


class SamHqSegmenter(HfSamSegmenter):
    """SAM-HQ of transformers: its second mask head also reads the image encoder's first features."""

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """See :class:`olivine.labelgen.grounded.Segmenter`; the embedding first, then the earlier features."""
        embedding, earlier = super().encode(images)
        return Levels((embedding, *earlier))

    def decode(self, feature: Any, boxes: Tensor) -> Tensor:
        """See :class:`HfSamSegmenter`; the sum of both heads' logits, as its authors' predictor gives it."""
        embedding, *earlier = iter(feature)
        out = self.model(
            image_embeddings=embedding, intermediate_embeddings=earlier, input_boxes=boxes, multimask_output=False
        )
        masks: Tensor = out.pred_masks
        return masks


class GroundedSamHq(HfGroundedSam):
    """Grounded-SAM with GroundingDINO and SAM-HQ of transformers, from two folders."""

    name = NAME

    def load_segmenter(self) -> Segmenter:
        """SAM-HQ with its weights."""
        from transformers import SamHQModel

        model, _ = load_pretrained(SamHQModel.from_pretrained, self.files["sam"].path, "SAM-HQ")
        return SamHqSegmenter(model, self.device)


def make_grounded_sam_hq(settings: LabelSettings, vocabulary: Vocabulary) -> GroundedSamHq:
    """The labeler, with its folders checked and nothing loaded.

    Raises:
        OlivineError: a file is missing, with the command that gets it.
    """
    files = detector_and_sam(settings, f"hf-{settings.detector}", f"sam-hq-{settings.sam}")
    require_weights(NAME, list(files.values()))
    require_packages(NAME, {"transformers": "transformers"})
    return GroundedSamHq(settings, vocabulary, files)
