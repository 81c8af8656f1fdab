"""Segments beside the labels: SLIC superpixels, or SAM's automatic masks.

The third kind, the labeler's own masks, needs nothing from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from .labeler import BatchResult, ImageTask, Labeler, Labelled
from .settings import OWN_SAM, REGION_LABELERS, LabelSettings

if TYPE_CHECKING:
    from .catalogue import Needed

SLIC = {"n_segments": 150, "compactness": 6.0, "sigma": 3.0}
"""SLidR's superpixels (Sautier et al., section 4.1), on the full-size image."""


class Segments(Protocol):
    """Cuts an image into segments."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions the manifest records."""

    def resolved(self) -> dict[str, Any]:
        """The settings that decide the segments."""

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file."""

    def prepare(self, labeler: Labeler) -> None:
        """Load what is heavy, or take it from the labeler."""

    def segment(self, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Each pixel's segment, uint16 [H, W], 0 = none, of an image uint8 [H, W, 3]."""


class SlicSegments:
    """Superpixels by SLIC (Achanta et al.), through scikit-image."""

    packages = ("scikit-image",)

    def __init__(self) -> None:
        try:
            import skimage.segmentation
        except ImportError as error:
            raise OlivineError(
                f"--segments slic needs the package scikit-image ({error})",
                remedy="install it with: pip install scikit-image",
            ) from None
        self._slic = skimage.segmentation.slic

    def resolved(self) -> dict[str, Any]:
        """SLIC's parameters."""
        return dict(SLIC)

    def weights(self) -> dict[str, str]:
        """None."""
        return {}

    def prepare(self, labeler: Labeler) -> None:
        """Nothing to load."""

    def segment(self, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Superpixels 1, 2, ..., uint16 [H, W]."""
        return self._slic(image, start_label=1, **SLIC).astype(np.uint16)


def paint_by_falling_area(masks: Sequence[NDArray[np.bool_]], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Masks painted large first, so that small ones stay visible; numbered in that order from 1, 0 = background."""
    segment = np.zeros(size, np.uint16)
    order = sorted(range(len(masks)), key=lambda i: (-int(masks[i].sum()), i))
    for number, i in enumerate(order, 1):
        segment[masks[i]] = number
    return segment


def _sam_file(settings: LabelSettings) -> Needed:
    """The checkpoint of SAM's first version that makes the masks.

    It is the one of ``--sam`` and ``--sam-checkpoint``, but where the labeler on transformers has these for its own SAM: then the
    one of that size in the folder of weights, else the largest that is there.
    """
    from .catalogue import Needed, find_weights
    from .grounded_sam import needed_files

    if settings.labeler not in OWN_SAM:
        return needed_files(settings)["sam"]
    found = {size: settings.weights_folder / find_weights(size).files[0].path for size in ("vit-h", "vit-l", "vit-b")}
    size = next((one for one in (settings.sam, *found) if one in found and found[one].is_file()), "vit-h")
    return Needed("sam of the segments", "--weights", found[size], size)


class SamSegments:
    """SAM's automatic masks (Kirillov et al., section on zero-shot segmentation), painted by falling area."""

    packages = ("segment-anything", "torch", "torchvision")
    points_per_side = 32  # SamAutomaticMaskGenerator's default, as all else

    def __init__(self, settings: LabelSettings) -> None:
        from .catalogue import require_weights
        from .grounded import require_packages

        self.file = _sam_file(settings)
        require_weights(f"{settings.labeler} --segments sam", [self.file])
        require_packages(settings.labeler, {"segment_anything": "segment-anything"})
        self.settings = settings
        self._generator: Any = None

    def resolved(self) -> dict[str, Any]:
        """How many points ask for masks."""
        return {"points_per_side": self.points_per_side}

    def weights(self) -> dict[str, str]:
        """SHA-256 of SAM's checkpoint."""
        from .catalogue import weights_digests

        return weights_digests({self.file.role: self.file})

    def prepare(self, labeler: Labeler) -> None:
        """Take the labeler's SAM where it has one in float32, else load it: the generator runs in nothing else."""
        from segment_anything import SamAutomaticMaskGenerator

        from .encoders import resolve_device
        from .grounded_sam import SamSegmenter, build_sam, load_state

        segmenter = getattr(labeler, "segmenter", None)
        if not isinstance(segmenter, SamSegmenter) or getattr(labeler, "precision", "") != "float32":
            sam = build_sam(load_state(self.file.path), self.file.path)
            segmenter = SamSegmenter(sam, resolve_device(self.settings.device))
        self._generator = SamAutomaticMaskGenerator(segmenter.model, points_per_side=self.points_per_side)

    def segment(self, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """SAM's masks of everything, uint16 [H, W]."""
        masks = [found["segmentation"] for found in self._generator.generate(image)]
        return paint_by_falling_area(masks, (image.shape[0], image.shape[1]))


class WithSegments:
    """A labeler whose results get segments from elsewhere."""

    needs_image = True

    def __init__(self, labeler: Labeler, segments: Segments) -> None:
        self.labeler, self.segments = labeler, segments
        self.name = labeler.name
        self.batch_size = labeler.batch_size
        self.packages = tuple(dict.fromkeys((*labeler.packages, *segments.packages)))

    def resolved(self) -> dict[str, Any]:
        """The labeler's settings, and the segments'."""
        return {**self.labeler.resolved(), "segment_settings": self.segments.resolved()}

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file of either."""
        return {**self.labeler.weights(), **self.segments.weights()}

    def prepare(self) -> None:
        """Load both."""
        self.labeler.prepare()
        self.segments.prepare(self.labeler)

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """The labeler's results, each with its segments."""
        found = self.labeler.label(tasks, images if self.labeler.needs_image else [])
        done = tuple(
            replace(result, segment=self.segments.segment(image)) if isinstance(result, Labelled) else result
            for result, image in zip(found.images, images)
        )
        return BatchResult(done, found.notes)


def add_segments(labeler: Labeler, settings: LabelSettings) -> Labeler:
    """The labeler, made to give the segments of ``--segments`` too.

    Raises:
        OlivineError: the labeler has no masks of its own, or a package or weights are missing.
    """
    if (labeler.name in REGION_LABELERS) != (settings.segments == "regions") and labeler.name != "oracle":
        if labeler.name in REGION_LABELERS:
            raise OlivineError(f"the segments of {labeler.name} are regions", remedy="leave out --segments")
        raise OlivineError(
            f"{labeler.name} makes no regions", remedy=f"use --labeler {' or '.join(REGION_LABELERS)}, or the oracle"
        )
    if settings.segments == "slic":
        return WithSegments(labeler, SlicSegments())
    if settings.segments == "sam":
        return WithSegments(labeler, SamSegments(settings))
    if settings.segments == "masks" and labeler.name == "import":
        raise OlivineError(
            "imported label maps have no masks of instances, which --segments masks stores",
            remedy="use --segments slic, or --segments sam with SAM's weights",
        )
    return labeler
