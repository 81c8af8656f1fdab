"""Everything that decides what a label map looks like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common import OlivineError, weights_folder

NETWORKS = ("grounded-sam", "hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2", "sam3")
LABELERS = ("auto", *NETWORKS, "oracle", "import", "regions", "sam-clip")
OWN_SAM = ("hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2", "sam3")
"""Those whose SAM is transformers', a folder, and no checkpoint of SAM's first version."""
REGION_LABELERS = ("regions", "sam-clip")
"""Their segments are always regions."""
SCORED_LABELERS = (*NETWORKS, "oracle", "import")
"""Those that can say how sure they are."""
_OF_BOXES = ("grounded-sam", "hf-grounded-sam", "grounded-sam-hq", "mm-grounded-sam2")
TAKERS = {
    "camseg": ("import",),
    "classes": ("import",),
    "regions": ("regions",),
    "phrases": ("sam-clip",),
    "clip": ("sam-clip",),
    "clip_checkpoint": ("sam-clip",),
    "error": ("oracle",),
    "seed": ("oracle",),
    "detector": _OF_BOXES,
    "detector_checkpoint": _OF_BOXES,
    "detector_config": ("grounded-sam",),
    "text_encoder": ("grounded-sam",),
    "sam": (*NETWORKS, "sam-clip"),
    "sam_checkpoint": (*NETWORKS, "sam-clip"),
    "box_threshold": NETWORKS,
    "text_threshold": _OF_BOXES,
    "short_side": _OF_BOXES,
    "long_side": _OF_BOXES,
    "prompting": _OF_BOXES,
    "overlap": NETWORKS,
    "min_area": NETWORKS,
    "max_components": NETWORKS,
}
"""The labelers that use a setting, of those that some do not; ``--segments sam`` uses a SAM beside any labeler."""
_CHOICES = {
    "labeler": LABELERS,
    "detector": ("swin-t", "swin-b"),
    "sam": ("vit-b", "vit-l", "vit-h", "hiera-tiny", "hiera-large"),
    "clip": ("clip-vit-l", "siglip2-so400m"),
    "prompting": ("combined", "separate"),
    "overlap": ("layered", "reference"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "segments": ("none", "masks", "sam", "slic", "regions"),
    "view": ("whole", "mirrored", "halves"),
    "oracle_scores": ("calibrated", "over"),
}


@dataclass(frozen=True)
class LabelSettings:
    """Settings of :func:`olivine.labelgen.run.generate_labels`.

    Attributes:
        labeler: ``auto`` takes the oracle on a synthetic data set, else grounded-sam.
        prompts: vocabulary file (YAML or JSON), or ``lidarseg16``; the 13 prompts without one.
        camseg: folder of label maps to import.
        regions: folder of regions to import, see docs/regions.md.
        classes: file that maps the imported values to class names, or ``seem`` (the authors' SEEM label maps).
        error: the oracle's error model: ``default``, ``none``, a file, or ``boundary=2,missed=0.1,...``.
        seed: of the oracle's errors.
        scores: also store how sure the labeler is of each pixel's label.
        scores_from: import: the folder that has these scores, an 8-bit PNG for each image.
        oracle_scores: ``calibrated`` (the chance of being right) or ``over`` (says fewer errors than it makes).
        weights: folder where weights are looked for unless a path below is given.
        detector, sam: which published network is looked for there.
        detector_config: GroundingDINO configuration (the package's own without one).
        detector_checkpoint, sam_checkpoint: checkpoint files (folders for the labelers on transformers).
        text_encoder: folder with the text encoder's configuration and vocabulary.
        clip, clip_checkpoint: sam-clip's encoder, and a folder with another; CLIP or SigLIP.
        phrases: what sam-clip names regions with, a list as ``labelgen/data/uov.json``, which is the default.
        box_threshold, text_threshold: lowest score of a box, and of its best prompt.
        short_side, long_side: the detector's image size in pixels: short side, at most long side.
        prompting: ``combined`` (one caption) or ``separate`` (one caption a prompt).
        overlap: ``layered`` (stuff, then things, each by rising score) or ``reference`` (the detector's order).
        min_area: masks under this many pixels are dropped.
        max_components: masks of more connected components are dropped; 0 for no limit.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``...
        precision: of the encoders; ``auto`` is bfloat16 on a GPU or a CPU with units for it.
        batch_size: images at once; ``auto`` follows the device's memory.
        boxes_per_call: boxes in one mask-decoder call; 0 for the device's default.
        segments: also store each pixel's segment: ``masks``, ``sam``, ``slic`` or ``none``; ``regions`` store a phrase
            and a feature of each too.
        view: of an image that the labeler sees: ``whole``, ``mirrored``, or ``halves`` one after the other; see
            :mod:`olivine.labelgen.views`.
    """

    labeler: str = "auto"
    prompts: Path | None = None
    camseg: Path | None = None
    classes: Path | None = None
    regions: Path | None = None
    error: str = "default"
    seed: int = 0
    scores: bool = False
    scores_from: Path | None = None
    oracle_scores: str = "calibrated"
    weights: Path | None = None
    detector: str = "swin-t"
    sam: str = "vit-h"
    detector_config: Path | None = None
    detector_checkpoint: Path | None = None
    sam_checkpoint: Path | None = None
    text_encoder: Path | None = None
    clip: str = "clip-vit-l"
    clip_checkpoint: Path | None = None
    phrases: Path | None = None
    box_threshold: float = 0.25
    text_threshold: float = 0.25
    short_side: int = 800
    long_side: int = 1333
    prompting: str = "combined"
    overlap: str = "layered"
    min_area: int = 0
    max_components: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | str = "auto"
    boxes_per_call: int = 0
    segments: str = "none"
    view: str = "whole"

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            if value not in allowed:
                raise OlivineError(
                    f"{value!r} is not a choice of --{key.replace('_', '-')}",
                    remedy=f"choose one of {', '.join(allowed)}",
                )
        if self.view != "whole" and self.segments != "none":
            raise OlivineError(
                f"--view {self.view} with --segments {self.segments}",
                remedy="maps of another view only vote: leave out --segments",
            )
        for key in ("box_threshold", "text_threshold"):
            if not 0 <= getattr(self, key) <= 1:
                raise OlivineError(
                    f"--{key.replace('_', '-')} is {getattr(self, key)}", remedy="give a score from 0 to 1"
                )
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise OlivineError(f"--batch-size is {self.batch_size!r}", remedy="give auto or a whole number from 1 on")
        for key in ("min_area", "max_components", "boxes_per_call", "seed"):
            if getattr(self, key) < 0:
                raise OlivineError(f"--{key.replace('_', '-')} is negative", remedy="give 0 or more")
        if not 32 <= self.short_side <= self.long_side:
            raise OlivineError(
                f"the detector's image size {self.short_side} to {self.long_side} is not one",
                remedy="give a short side of at least 32 and a long side of at least that",
            )

    @property
    def scored(self) -> bool:
        """Whether the store has scores."""
        return self.scores or self.scores_from is not None

    @property
    def weights_folder(self) -> Path:
        """The folder where weights are looked for."""
        return self.weights if self.weights is not None else weights_folder()
