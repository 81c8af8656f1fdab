"""SAM 3 of transformers: one text prompt at a time finds everything that it names (Carion et al., "SAM 3: Segment Anything
with Concepts").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from ..common import OlivineError, package_versions
from .catalogue import Needed, require_weights, weights_digests
from .compose import Composition
from .encoders import number_format
from .grounded import Boxes, GroundedSam, as_scores, require_packages
from .labeler import Labelled
from .pretrained import load_pretrained, torchvision_processor
from .prompts import Vocabulary
from .settings import LabelSettings
from .tokens import load_tokenizer

NAME = "sam3"
SCORES = "the prompt's semantic map at the pixel"
_FILES = (("config.json",), ("model.safetensors",), ("tokenizer.json", "vocab.json"))
_MEND = "write it in other words in the --prompts file"


@dataclass(frozen=True, eq=False)
class Found:
    """What one prompt found in one image.

    Attributes:
        boxes: its N objects; of stuff, one region.
        mask: probability of each at the network's own size, float32 [N, h, w].
        semantic: probability that a pixel belongs to any of them, float32 [h, w].
    """

    boxes: Boxes
    mask: Tensor
    semantic: Tensor


class PromptMemory:
    """SAM 3's text features, computed once for each prompt; the network asks for them by ``get_text_features``."""

    def __init__(self, encode: Any) -> None:
        self.asked = 0
        self._encode = encode
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **named: Any) -> Any:
        """Features float [B, T, C]; every row of ``input_ids`` is the same."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        key = tuple(input_ids[0].tolist())
        if key not in self._known:
            found = self._encode(input_ids=input_ids[:1], attention_mask=attention_mask[:1], **named)
            self._known[key] = found.pooler_output
            self.asked += 1
        rows: Any = self._known[key].expand(len(input_ids), -1, -1)
        return BaseModelOutputWithPooling(pooler_output=rows)


class Sam3(GroundedSam):
    """Things are the objects that SAM 3 finds, stuff is its semantic map; both are painted as Grounded-SAM's masks are."""

    name = NAME
    packages = ("transformers", "torch", "torchvision", "tokenizers", "safetensors", "numpy", "pillow")

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary, files: dict[str, Needed]) -> None:
        super().__init__(settings, vocabulary)
        self.files = files
        self.model: Any = None
        self._tokens: list[tuple[Tensor, Tensor]] = []

    def resolved(self) -> dict[str, Any]:
        """The settings that decide the output."""
        s = self.settings
        return {
            "box_threshold": s.box_threshold,
            "precision": self.precision,
            "boxes_per_call": self._boxes_per_call,
            "overlap": s.overlap,
            "min_area": s.min_area,
            "max_components": s.max_components,
            **({"scores": SCORES} if s.scored else {}),
        }

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file, by role and file name."""
        return weights_digests(self.files)

    def prepare(self) -> None:
        """Load the network and make the prompts' tokens."""
        from transformers import Sam3Model  # type: ignore[attr-defined, unused-ignore]  # of version 5

        folder = self.files["sam"].path
        model, _ = load_pretrained(Sam3Model.from_pretrained, folder, "SAM 3")
        self.model = model.to(self.device)
        self.model.get_text_features = PromptMemory(self.model.get_text_features)
        side = self.model.config.vision_config.backbone_config.image_size
        self._processor = torchvision_processor("Sam3")(size={"height": side, "width": side})
        longest = int(self.model.config.text_config.max_position_embeddings)
        self._tokens = prompt_tokens(self.vocabulary, load_tokenizer(folder), longest, self.device)

    def find(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[list[Found]]:
        """What each prompt finds in each image (uint8 [H, W, 3], all of one size), prompt after prompt."""
        seen = self._processor(images=[image.copy() for image in images], return_tensors="pt")  # it wants to own them
        vision = self.model.get_vision_features(seen["pixel_values"].to(self.device))
        size = (images[0].shape[0], images[0].shape[1])
        for position, (ids, mask) in enumerate(self._tokens):
            ids, mask = ids.expand(len(images), -1), mask.expand(len(images), -1)
            out = self.model(vision_embeds=vision, input_ids=ids, attention_mask=mask)
            take = _objects if self._things[position] else _region
            yield [take(out, i, position, self.settings.box_threshold, size) for i in range(len(images))]

    def _label_piece(self, images: Sequence[NDArray[np.uint8]]) -> list[Labelled]:
        size = (images[0].shape[0], images[0].shape[1])
        with number_format(self.device, self.precision):
            found = list(self.find(images))
        return [self._composed([of_prompt[i] for of_prompt in found], size) for i in range(len(images))]

    def _composed(self, found: list[Found], size: tuple[int, int]) -> Labelled:
        boxes = Boxes(
            torch.cat([f.boxes.box for f in found]),
            torch.cat([f.boxes.score for f in found]),
            torch.cat([f.boxes.text_score for f in found]),
            torch.cat([f.boxes.prompt for f in found]),
        )
        painted = self._paint(self._full_size(found, size), boxes, size, self.device)
        labelled = self._read([boxes], [painted])[0]
        if not self.settings.scored:
            return labelled
        return replace(labelled, score=as_scores(_shown_semantic(found, boxes, painted, size), painted.label))

    def _full_size(self, found: list[Found], size: tuple[int, int]) -> Iterator[Tensor]:
        for one in found:
            for part in one.mask.split(self._boxes_per_call):
                if len(part):
                    yield _resized(part, size) > 0.5


def _objects(out: Any, image: int, prompt: int, threshold: float, size: tuple[int, int]) -> Found:
    """The objects over the threshold, as transformers' ``post_process_instance_segmentation`` takes them."""
    score = out.pred_logits[image].float().sigmoid() * out.presence_logits[image].float().sigmoid()
    over = score > threshold
    kept = score[over].cpu()
    box = out.pred_boxes[image][over].float().cpu() * torch.tensor([size[1], size[0]] * 2)
    boxes = Boxes(box, kept, kept, torch.full((len(kept),), prompt))
    return Found(boxes, out.pred_masks[image][over].float().sigmoid(), _semantic(out, image))


def _region(out: Any, image: int, prompt: int, threshold: float, size: tuple[int, int]) -> Found:
    """The semantic map as one region, where SAM 3 is sure that the image has the prompt at all."""
    semantic = _semantic(out, image)
    score = out.presence_logits[image].float().sigmoid().reshape(1).cpu()
    row, column = (semantic > 0.5).nonzero().cpu().unbind(1)
    if not len(row) or float(score) <= threshold:
        none = Boxes(torch.zeros(0, 4), score[:0], score[:0], torch.zeros(0, dtype=torch.int64))
        return Found(none, semantic[None][:0], semantic)
    down, across = size[0] / semantic.shape[0], size[1] / semantic.shape[1]
    left, top = int(column.min()) * across, int(row.min()) * down
    right, bottom = (int(column.max()) + 1) * across, (int(row.max()) + 1) * down
    boxes = Boxes(torch.tensor([[left, top, right, bottom]]), score, score, torch.tensor([prompt]))
    return Found(boxes, semantic[None], semantic)


def _semantic(out: Any, image: int) -> Tensor:
    probability: Tensor = out.semantic_seg[image, 0].float().sigmoid()
    return probability


def _resized(probability: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [n, h, w] at the image's own size, as transformers resizes them."""
    return interpolate(probability[None], size=size, mode="bilinear", align_corners=False)[0]


def _shown_semantic(found: list[Found], boxes: Boxes, painted: Composition, size: tuple[int, int]) -> Tensor:
    """At each pixel the semantic map of the prompt whose mask is shown there, float32 [H, W]."""
    prompt = torch.cat([torch.tensor([-1]), boxes.prompt[painted.kept.cpu()]]).to(painted.segment.device)
    shown = prompt[painted.segment.long()]
    score = torch.zeros(size, device=shown.device)
    for position in prompt.unique().tolist():
        if position >= 0:
            score = torch.where(shown == position, _resized(found[position].semantic[None], size)[0], score)
    return score


def prompt_tokens(
    vocabulary: Vocabulary, tokenizer: Any, longest: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Tokens and their mask of each prompt, int64 [1, longest].

    Raises:
        OlivineError: a prompt is longer than the text encoder reads, or two are the same tokens to it.
    """
    tokens = []
    known: dict[tuple[int, ...], str] = {}
    for prompt in vocabulary.prompts:
        ids: list[int] = tokenizer(prompt.words)["input_ids"]
        if len(ids) > longest:
            raise OlivineError(
                f"the prompt {prompt.words!r} makes {len(ids)} tokens, the text encoder reads {longest}", remedy=_MEND
            )
        if tokenizer.unk_token_id in ids[1:-1] and tokenizer.unk_token_id != tokenizer.eos_token_id:
            raise OlivineError(f"the text encoder knows no tokens for the prompt {prompt.words!r}", remedy=_MEND)
        first = known.setdefault(tuple(ids), prompt.words)
        if first != prompt.words:
            raise OlivineError(
                f"the prompts {first!r} and {prompt.words!r} are the same tokens to the text encoder", remedy=_MEND
            )
        # Padded as it was trained, and as transformers' own processor does.
        padded = tokenizer(prompt.words, padding="max_length", max_length=longest, return_tensors="pt")
        tokens.append((padded["input_ids"].to(device), padded["attention_mask"].to(device)))
    return tokens


def make_sam3(settings: LabelSettings, vocabulary: Vocabulary) -> Sam3:
    """The labeler, with its folder checked and nothing loaded.

    Raises:
        OlivineError: transformers has no SAM 3; a file is missing, with the command that gets it; or another SAM's size
            is asked for.
    """
    if settings.sam != "vit-h":  # the option's default
        raise OlivineError(f"--sam {settings.sam} is a size of another SAM", remedy="leave it out: SAM 3 has one size")
    require_packages(NAME, {"transformers": "transformers"})
    try:
        import transformers.models.sam3  # noqa: F401
    except ImportError:
        version = package_versions(["transformers"])["transformers"]
        raise OlivineError(
            f"--labeler {NAME} needs transformers 5 or later; {version} has no SAM 3",
            remedy="install it with: pip install 'transformers>=5', or use --labeler mm-grounded-sam2",
        ) from None
    found = settings.sam_checkpoint or settings.weights_folder / NAME
    files = {"sam": Needed("sam", "--sam-checkpoint", found, NAME, _FILES)}
    require_weights(NAME, list(files.values()))
    return Sam3(settings, vocabulary, files)
