"""What a labeler is, and which one ``--labeler`` means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..readers.frame import Camera, Frame
from .prompts import Vocabulary
from .regions import RegionLabeler, Regions
from .settings import NETWORKS, REGION_LABELERS, SCORED_LABELERS, TAKERS, LabelSettings


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image to label: the frame, and the camera's position among the frame's cameras."""

    frame: Frame
    position: int

    @property
    def camera(self) -> Camera:
        """The camera that took the image."""
        return self.frame.cameras[self.position]

    @property
    def path(self) -> Path:
        """The image file."""
        return self.frame.image_path(self.camera)


@dataclass(frozen=True)
class Detection:
    """One object or region found in an image.

    Attributes:
        box: left, top, right, bottom in pixels of the image.
        score: of the box, 0 to 1.
        text_score: the best prompt's score on its own tokens, 0 to 1.
        value: the label map's value of its class.
        area: of its mask, in pixels, before other masks cover it.
    """

    box: tuple[float, float, float, float]
    score: float
    text_score: float
    value: int
    area: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a labeler gives for one image.

    Attributes:
        label: uint8 [H, W], values 0..K.
        detections: in the labeler's order.
        segment: uint16 [H, W] or None.
        regions: phrase and feature of each segment, or None.
        score: how sure the labeler is of each pixel's label, uint8 [H, W], 255 = certain, 0 = not known or no label; or
            None.
    """

    label: NDArray[np.uint8]
    detections: tuple[Detection, ...] = ()
    segment: NDArray[np.uint16] | None = None
    regions: Regions | None = None
    score: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class BatchResult:
    """A batch's images in its order (an error where an image could not be labelled), and what was out of the ordinary."""

    images: tuple[Labelled | OlivineError, ...]
    notes: tuple[str, ...] = field(default=())


class Labeler(Protocol):
    """Makes label maps from images.

    Attributes:
        name: as in ``--labeler``.
        needs_image: whether :meth:`label` wants the pixels.
        batch_size: images of one batch; a setting, because networks give other bits at other batch sizes.
        packages: distributions whose versions the manifest records.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def needs_image(self) -> bool: ...  # noqa: D102

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def packages(self) -> tuple[str, ...]: ...  # noqa: D102

    def resolved(self) -> dict[str, Any]:
        """The settings that decide the output, JSON-able, without paths of this machine."""

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file of weights, by role and file name."""

    def prepare(self) -> None:
        """Load what is heavy; called once, before the first batch, and not at all when nothing is left to do."""

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Label one batch.

        Args:
            tasks: images of one size.
            images: their pixels, uint8 [H, W, 3] RGB; empty where ``needs_image`` is False.
        """


def choose_labeler(name: str, root: Path) -> tuple[str, str]:
    """What ``--labeler`` means for the data set in ``root``, and why."""
    if name != "auto":
        return name, f"--labeler {name}"
    if (root / "synthetic.json").exists():
        return "oracle", f"{root / 'synthetic.json'} says that the data set is synthetic"
    return "grounded-sam", "the data set is real"


def make_labeler(
    name: str, settings: LabelSettings, vocabulary: Vocabulary, root: Path, labels: Path | None = None
) -> Labeler:
    """A labeler by name (not ``auto``), with its inputs checked.

    Args:
        root: the data set's folder.
        labels: the label folder, where it is known.

    Raises:
        OlivineError: an option or a file of weights is missing; says which and how to get it.
    """
    if settings.scored and name not in SCORED_LABELERS:
        raise OlivineError(f"--labeler {name} gives no scores", remedy=f"use one of {', '.join(SCORED_LABELERS)}")
    if settings.view != "whole" and name in ("oracle", "import", *REGION_LABELERS):
        remedy = f"leave it out, or use one of {', '.join(NETWORKS)}"
        raise OlivineError(f"--labeler {name} gives no labels of --view {settings.view}", remedy=remedy)
    if settings.scores_from is not None and name != "import":
        raise OlivineError(f"--scores-from is for imported label maps, not for {name}", remedy="write --scores alone")
    if settings.oracle_scores != "calibrated" and not (settings.scored and name == "oracle"):
        what = f"--oracle-scores {settings.oracle_scores} is for scores of the oracle"
        raise OlivineError(what, remedy="add --scores" if name == "oracle" else "leave it out")
    for key, takers in TAKERS.items():
        given = getattr(settings, key) != getattr(LabelSettings, key)
        if given and name not in takers and not (key.startswith("sam") and settings.segments == "sam"):
            option = f"--{key.replace('_', '-')}"
            raise OlivineError(
                f"{option} is not for --labeler {name}", remedy=f"add --labeler {takers[0]}, or leave {option} out"
            )
    if name == "oracle":
        from .oracle import OracleLabeler

        return OracleLabeler(settings, vocabulary, root)
    if name == "import":
        from .import_labels import ImportLabeler

        return ImportLabeler(settings, vocabulary)
    if name == "regions":
        return RegionLabeler(settings, vocabulary)
    if name == "sam-clip":
        from .sam_clip import make_sam_clip

        return make_sam_clip(settings, vocabulary, labels)
    if name == "hf-grounded-sam":
        from .hf_grounded_sam import make_hf_grounded_sam

        return make_hf_grounded_sam(settings, vocabulary)
    if name == "grounded-sam-hq":
        from .grounded_sam_hq import make_grounded_sam_hq

        return make_grounded_sam_hq(settings, vocabulary)
    if name == "sam3":
        from .sam3 import make_sam3

        return make_sam3(settings, vocabulary)
    if name == "mm-grounded-sam2":
        from .mm_grounded_sam2 import make_mm_grounded_sam2

        return make_mm_grounded_sam2(settings, vocabulary)
    from .grounded_sam import make_grounded_sam

    return make_grounded_sam(settings, vocabulary)
