"""A grounded detector, then a promptable segmenter, then one label map: the steps that all such models share."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common import OlivineError, package_versions
from .compose import Composition, compose, paint_ranks
from .encoders import in_pieces_that_fit, number_format, resolve_batch_size, resolve_device, resolve_precision
from .known import known_numbers
from .labeler import BatchResult, Detection, ImageTask, Labelled
from .prompts import THING, Vocabulary
from .settings import LabelSettings
from .tokens import Caption, best_prompts, make_captions

OLDEST_TRANSFORMERS = (4, 56)
SCORES = "score of the box for its prompt x probability of the mask at the pixel"


class Detector(Protocol):
    """Boxes for a caption.

    Attributes:
        tokenizer: of its text encoder.
        max_tokens: longest caption.
    """

    tokenizer: Any
    max_tokens: int

    def detect(self, images: Sequence[NDArray[np.uint8]], caption: str) -> list[tuple[Tensor, Tensor]]:
        """For each image (uint8 [H, W, 3], all of one size) and every query of the network.

        Returns:
            boxes float32 [Q, 4] (centre x, y, width, height as shares of the image) and
            scores float32 [Q, T] (0 to 1, for each token of the caption).
        """


class Segmenter(Protocol):
    """Masks for boxes."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Features of images (uint8 [H, W, 3], all of one size), float [B, C, h, w]."""

    def mask_logits(self, feature: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """One mask for each box.

        Args:
            feature: of one image, float [1, C, h, w].
            boxes: float [n, 4], left, top, right, bottom in pixels of the image.
            size: (H, W) of the image.

        Returns:
            float [n, H, W], positive inside.
        """


class Levels(tuple[Tensor, ...]):
    """A segmenter's features of images in several tensors [B, ...], handled as one is."""

    def __getitem__(self, images: Any) -> Any:
        """Some of the images, by a slice."""
        return Levels(level[images] for level in self)

    def float(self) -> Levels:
        """In float32."""
        return Levels(level.float() for level in self)

    @property
    def device(self) -> torch.device:
        """Of all of them."""
        return next(iter(self)).device


@dataclass(frozen=True, eq=False)
class Boxes:
    """What the detector found in one image, in its order.

    Attributes:
        box: float32 [N, 4], left, top, right, bottom in pixels.
        score: float32 [N], highest over all tokens.
        text_score: float32 [N], highest over the tokens of the best prompt.
        prompt: int64 [N], position in the vocabulary.
    """

    box: Tensor
    score: Tensor
    text_score: Tensor
    prompt: Tensor


def pixel_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] from (centre, size) as shares of the image to (left, top, right, bottom) in pixels."""
    height, width = size
    scaled = boxes * boxes.new_tensor([width, height, width, height])
    half = scaled[:, 2:] / 2
    return torch.cat([scaled[:, :2] - half, scaled[:, :2] + half], dim=1)


def select_boxes(
    boxes: Tensor, scores: Tensor, caption: Caption, size: tuple[int, int], box_threshold: float, text_threshold: float
) -> Boxes:
    """Keep the queries over the box threshold whose best prompt is over the text threshold.

    Args:
        boxes, scores: of one image, from :meth:`Detector.detect`.
        size: (H, W) of the image.
    """
    score = scores.amax(1)
    over = score > box_threshold
    prompt, text_score = best_prompts(scores[over], caption)
    named = text_score > text_threshold
    return Boxes(pixel_boxes(boxes[over][named], size), score[over][named], text_score[named], prompt[named])


def as_scores(probability: Tensor, label: Tensor) -> NDArray[np.uint8]:
    """Scores as they are stored, uint8 [..., H, W]: at least 1 where there is a label, since 0 says that nothing is known of it.

    Args:
        probability: float [..., H, W], 0 to 1.
        label: uint8 [..., H, W].
    """
    sure = (255 * probability).round().clamp(1, 255).to(torch.uint8)
    scores: NDArray[np.uint8] = torch.where(label > 0, sure, 0).cpu().numpy()
    return scores


def read_boxes(boxes: Tensor, logits: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A detector's output as :meth:`Detector.detect` returns it, read from the device at once.

    Args:
        boxes: [B, Q, 4].
        logits: [B, Q, T].
    """
    found = torch.cat([boxes.float(), logits.float().sigmoid()], 2).cpu()
    return list(zip(found[..., :4], found[..., 4:]))


def refuse_extra_tensors(extra: Sequence[str], path: Path) -> None:
    """Raise where a SAM checkpoint has tensors that SAM has no place for.

    SAM-HQ's holds all of SAM's and a second mask head: without that head it would give other
    masks than its name says.

    Args:
        extra: names of those tensors.
    """
    if not extra:
        return
    # The head's own token, as SAM-HQ's authors and transformers call it.
    high_quality = any("hf_token" in name or "hq_token" in name for name in extra)
    what = "this is a SAM-HQ file" if high_quality else "weights of another model than SAM"
    other = "use --labeler grounded-sam-hq and a folder of transformers' SAM-HQ, or " if high_quality else ""
    raise OlivineError(
        f"{what}: {len(extra)} tensors that SAM has not ({extra[0]})",
        where=path,
        remedy=f"{other}name a checkpoint of SAM itself, or fetch one with olivine weights fetch",
    )


def require_packages(labeler: str, names: dict[str, str]) -> None:
    """Raise unless the modules can be imported, transformers in a version that will do.

    Args:
        names: a module: its distribution.
    """
    for module, distribution in names.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise OlivineError(
                f"--labeler {labeler} needs the package {distribution} ({error})",
                remedy="install it with: pip install 'olivine[labelgen]'",
            ) from None
    found = package_versions(["transformers"])["transformers"] if "transformers" in names else "absent"
    if found != "absent" and tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise OlivineError(
            f"--labeler {labeler} needs transformers {'.'.join(map(str, OLDEST_TRANSFORMERS))} or later, not {found}",
            remedy="install it with: pip install 'olivine[labelgen]'",
        )


class GroundedSam:
    """The labeler made of a detector and a segmenter; subclasses load them."""

    name = "grounded-sam"
    needs_image = True
    packages: tuple[str, ...] = ()

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.batch_size = resolve_batch_size(settings.batch_size, self.device)
        self.detector: Detector
        self.segmenter: Segmenter
        self.captions: list[Caption] = []
        self._values = torch.tensor(vocabulary.prompt_values, dtype=torch.uint8)
        self._things = torch.tensor([p.kind == THING for p in vocabulary.prompts])

    def resolved(self) -> dict[str, Any]:
        """The settings that decide the output."""
        s = self.settings
        return {
            "box_threshold": s.box_threshold,
            "text_threshold": s.text_threshold,
            "short_side": s.short_side,
            "long_side": s.long_side,
            "precision": self.precision,
            "boxes_per_call": self._boxes_per_call,
            "prompting": s.prompting,
            "overlap": s.overlap,
            "min_area": s.min_area,
            "max_components": s.max_components,
            **({"scores": SCORES} if s.scored else {}),
        }

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file."""
        raise NotImplementedError

    def load(self) -> tuple[Detector, Segmenter]:
        """Build both networks and load their weights."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Load the networks and make the captions."""
        self.detector, self.segmenter = self.load()
        self.captions = make_captions(
            self.vocabulary, self.detector.tokenizer, self.settings.prompting, self.detector.max_tokens
        )

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Boxes]:
        """The boxes of each image of a batch, with every caption."""
        s = self.settings
        size = (images[0].shape[0], images[0].shape[1])
        found: list[list[Boxes]] = [[] for _ in images]
        for caption in self.captions:
            for position, (boxes, scores) in enumerate(self.detector.detect(images, caption.text)):
                found[position].append(select_boxes(boxes, scores, caption, size, s.box_threshold, s.text_threshold))
        return [
            Boxes(
                torch.cat([b.box for b in parts]),
                torch.cat([b.score for b in parts]),
                torch.cat([b.text_score for b in parts]),
                torch.cat([b.prompt for b in parts]),
            )
            for parts in found
        ]

    @property
    def _boxes_per_call(self) -> int:
        # One call for all pays on a GPU; on a CPU the decoder's activations leave the cache.
        return self.settings.boxes_per_call or (32 if self.device.type == "cuda" else 1)

    def _masks(self, feature: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        step = self._boxes_per_call
        for start in range(0, len(boxes), step):
            yield self.segmenter.mask_logits(feature, boxes[start : start + step], size)

    def _paint(
        self,
        masks: Iterable[Tensor],
        boxes: Boxes,
        size: tuple[int, int],
        device: torch.device,
        scores: Tensor | None = None,
    ) -> Composition:
        """One label map of an image's masks.

        Args:
            masks: logits (or bool) [n, H, W] in pieces, on ``device``, in the order of the boxes.
            scores: float [N], where each pixel's score is one of these times the probability of the mask.
        """
        s = self.settings
        ranks = paint_ranks(boxes.score, self._things[boxes.prompt], s.overlap)
        return compose(
            masks,
            ranks.to(device),
            self._values[boxes.prompt].to(device),
            size,
            min_area=max(s.min_area, 1),
            max_components=s.max_components,
            scores=scores,
        )

    def _read(self, boxes: Sequence[Boxes], painted: Sequence[Composition]) -> list[Labelled]:
        """What was painted, read from the device for all images together."""
        s = self.settings
        counted = torch.cat([torch.stack([one.area, one.kept.long()]) for one in painted], 1).cpu()
        labels = torch.stack([one.label for one in painted]).cpu().numpy()
        segments = scores = None
        if s.segments == "masks":
            segments = torch.stack([one.segment for one in painted]).cpu().numpy().astype(np.uint16)
        if sure := [one.score for one in painted if one.score is not None]:
            scores = as_scores(torch.stack(sure), torch.stack([one.label for one in painted]))
        found = []
        of_image = counted.split([len(one.score) for one in boxes], dim=1)
        for i, (one, (area, kept)) in enumerate(zip(boxes, (rows.tolist() for rows in of_image))):
            rows = zip(
                one.box.tolist(), one.score.tolist(), one.text_score.tolist(), self._values[one.prompt].tolist(), area
            )
            detections = tuple(
                Detection((box[0], box[1], box[2], box[3]), score, text_score, value, pixels)
                for (box, score, text_score, value, pixels), shown in zip(rows, kept)
                if shown
            )
            segment, score = (None if of is None else of[i] for of in (segments, scores))
            found.append(Labelled(labels[i], detections, segment, score=score))
        return found

    def _label_piece(self, images: Sequence[NDArray[np.uint8]]) -> list[Labelled]:
        size = (images[0].shape[0], images[0].shape[1])
        with known_numbers(self.device):
            with number_format(self.device, self.precision):
                boxes = self.detect(images)
                features = self.segmenter.encode(images)
            # The decoder stays in float32: it is cheap, and its logits' sign is the mask.
            painted = []
            for i, found in enumerate(boxes):
                masks = self._masks(features[i : i + 1].float(), found.box.to(self.device), size)
                scores = found.text_score if self.settings.scored else None
                painted.append(self._paint(masks, found, size, self.device, scores))
        return self._read(boxes, painted)

    @torch.inference_mode()
    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Label one batch of images of one size."""
        try:
            labelled, pieces = in_pieces_that_fit(self._label_piece, images)
        except OlivineError as error:
            return BatchResult(tuple(OlivineError(str(error), where=task.path) for task in tasks))
        notes = (f"split into {pieces} for the device's memory",) if pieces > 1 else ()
        return BatchResult(tuple(labelled), notes)
