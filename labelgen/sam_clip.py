"""Regions by networks that anyone can install: SAM's automatic masks, a phrase and a feature of each by CLIP or SigLIP.

Both encoders end in attention that pools an image's patches: CLIP's by its class token in the last layer, SigLIP's by a
learned query. A region's feature is that pooling with the attention kept to the region's own patches, so the region that
is the whole image has the image's own embedding. (Ding et al., MaskCLIP, ICML 2023, has such class tokens of masks in
every layer; here it is the last alone.) Its phrase is the one whose text embedding is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..common import OlivineError, demand, read_json
from .catalogue import Needed, require_weights, weights_digests
from .encoders import in_pieces_that_fit, number_format, resolve_batch_size, resolve_device, resolve_precision
from .grounded import require_packages
from .grounded_sam import needed_files
from .labeler import BatchResult, ImageTask, Labelled
from .pretrained import embedding_of, load_pretrained, pillow_processor
from .prompts import Vocabulary
from .regions import Regions, phrase_values
from .segments import SamSegments
from .settings import LabelSettings
from .text_table import TEXT_FILES, TextTable, read_phrases, read_text_table, unit_rows
from .tokens import load_tokenizer

UOV_PHRASES = Path(__file__).parent / "data" / "uov.json"
_FILES = (("config.json",), ("model.safetensors",), ("preprocessor_config.json",), ("tokenizer.json", "vocab.json"))
_AGAIN = "name the folder of the right model, or fetch it again with olivine weights fetch"

TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""ViLD's fourteen (Gu et al., ICLR 2022), which SAN, one of UOV's networks, averages over too."""


class ClipEncoder:
    """CLIP of transformers.

    Attributes:
        kind: what its features and texts are of.
        grid: patches along each side of the image, which is resized to a square.
    """

    kind = "CLIP"

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model, self._processor = self.load(folder)
        self.model.to(device)
        vision, text = self.model.config.vision_config, self.model.config.text_config
        self.grid = int(vision.image_size) // int(vision.patch_size)
        self._tokenizer, self._longest = load_tokenizer(folder), int(text.max_position_embeddings)
        self._folder, self._device = folder, device

    def load(self, folder: Path) -> tuple[Any, Any]:
        """The model, and what makes its input of images: a square of its own side, nothing cropped."""
        from transformers import CLIPModel

        model, _ = load_pretrained(CLIPModel.from_pretrained, folder, self.kind)
        return model, _processor(pillow_processor("CLIP"), folder, model, do_center_crop=False)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """The package's own embedding of each text, float32 [n, E].

        Raises:
            OlivineError: a text is longer than the encoder reads.
        """
        tokens = self._tokenize([text.lower() for text in texts])
        if tokens["input_ids"].shape[1] > self._longest:
            raise OlivineError(
                f"{texts[0]!r} makes {tokens['input_ids'].shape[1]} tokens, the text encoder reads {self._longest}",
                where=self._folder,
                remedy="shorten the phrase",
            )
        return embedding_of(self.model.get_text_features(**{k: v.to(self._device) for k, v in tokens.items()}))

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        found = self._tokenizer(texts, padding=True, return_tensors="pt")
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    def tokens(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """What the pooling reads of images (uint8 [H, W, 3]), float [B, T, C]; the patches are last."""
        return self._tokens(self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._device))

    def _tokens(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.model.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden

    def pool(self, tokens: Tensor, share: Tensor) -> Tensor:
        """The image's embedding as seen by each region alone.

        Args:
            tokens: of one image, float32 [T, C].
            share: how much of each patch the region covers, 0 to 1, float32 [R, N]; each row has a patch.

        Returns:
            float32 [R, E].
        """
        vision, (regions, patches) = self.model.vision_model, share.shape
        # A class token for each region before the patches: it sees itself and the region's patches.
        bias = tokens.new_zeros(regions + patches, regions + patches)
        bias[:, :regions] = -torch.inf
        bias[:regions, :regions].fill_diagonal_(0)
        bias[:regions, regions:] = _log_share(share)
        sequence = torch.cat([tokens[:1].expand(regions, -1), tokens[1:]])[None]
        # The last layer by its parts: as a whole, transformers 4 and 5 ask for other arguments.
        layer = vision.encoder.layers[-1]
        seen, _ = layer.self_attn(layer.layer_norm1(sequence), attention_mask=bias[None, None])
        last = sequence + seen
        last = last + layer.mlp(layer.layer_norm2(last))
        embedding: Tensor = self.model.visual_projection(vision.post_layernorm(last[0, :regions]))
        return embedding


class SiglipEncoder(ClipEncoder):
    """SigLIP of transformers, and SigLIP 2 of fixed size, which is the same network."""

    kind = "SigLIP"

    def load(self, folder: Path) -> tuple[Any, Any]:
        """See :class:`ClipEncoder`."""
        from transformers import SiglipModel

        model, _ = load_pretrained(SiglipModel.from_pretrained, folder, self.kind)
        if not model.vision_model.use_head:
            raise OlivineError("its image encoder has no pooling head", where=folder, remedy=_AGAIN)
        return model, _processor(pillow_processor("Siglip"), folder, model)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        # It was trained on texts padded to its longest, and reads the last token's embedding.
        found = self._tokenizer(texts, padding="max_length", max_length=self._longest, return_tensors="pt")
        return {"input_ids": found["input_ids"]}

    def _tokens(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.model.vision_model(pixels).last_hidden_state
        return hidden

    def pool(self, tokens: Tensor, share: Tensor) -> Tensor:
        """See :class:`ClipEncoder`."""
        head = self.model.vision_model.head
        query = head.probe.expand(1, len(share), -1)
        seen, _ = head.attention(query, tokens[None], tokens[None], attn_mask=_log_share(share), need_weights=False)
        embedding: Tensor = seen[0] + head.mlp(head.layernorm(seen[0]))
        return embedding


_ENCODERS = {"clip": ClipEncoder, "siglip": SiglipEncoder}


def _log_share(share: Tensor) -> Tensor:
    """What to add to attention logits so that each patch counts by its share, the region's fullest as 1."""
    return (share / share.amax(1, keepdim=True)).log()


def _processor(kind: Any, folder: Path, model: Any, **changes: Any) -> Any:
    side = int(model.config.vision_config.image_size)
    try:
        return kind.from_pretrained(folder, local_files_only=True, size={"height": side, "width": side}, **changes)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OlivineError(f"its preprocessor_config.json is none ({reason})", where=folder, remedy=_AGAIN) from None


def load_encoder(folder: Path, device: torch.device) -> ClipEncoder:
    """CLIP or SigLIP, as the folder's ``config.json`` says; code that the folder brings along is never run.

    Raises:
        OlivineError: it holds another model, or damaged files.
    """
    return _ENCODERS[_model_type(folder)](folder, device)


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    kind: str = demand(read_json(path, _AGAIN), {"model_type": str}, path, _AGAIN)["model_type"]
    if kind not in _ENCODERS:
        raise OlivineError(f"is a model of type {kind!r}, neither clip nor siglip", where=path, remedy=_AGAIN)
    return kind


def embed_phrases(encoder: ClipEncoder, phrases: Sequence[str]) -> NDArray[np.float32]:
    """A unit embedding of each phrase, float32 [V, E]: the templates' unit embeddings averaged."""
    with torch.inference_mode():
        # One phrase at a time: in a batch of all, an encoder gives other bits.
        rows = [normalize(encoder.texts([t.format(p) for t in TEMPLATES]), dim=1).mean(0) for p in phrases]
        return unit_rows(torch.stack(rows).cpu().numpy(), "the text encoder's embeddings")


def patch_shares(segment: NDArray[np.uint16], regions: int, grid: int) -> NDArray[np.float32]:
    """How much of each patch each region covers, 0 to 1, float32 [R, grid²].

    Args:
        segment: uint16 [H, W], 0 = none, values to R; the image was resized to grid x grid patches.
    """
    height, width = segment.shape
    row, column = np.arange(height) * grid // height, np.arange(width) * grid // width
    patch = row[:, None] * grid + column
    count = np.bincount((segment.astype(np.int64) * grid**2 + patch).ravel(), minlength=(regions + 1) * grid**2)
    # An image of fewer pixels than patches leaves some without any.
    pixels = np.maximum(np.bincount(patch.ravel(), minlength=grid**2), 1)
    return (count.reshape(regions + 1, grid**2)[1:] / pixels).astype(np.float32)


class SamClipLabeler:
    """SAM's automatic masks as regions; label maps of the classes that their phrases mean."""

    name = "sam-clip"
    needs_image = True
    packages = (
        "segment-anything",
        "torch",
        "torchvision",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "pillow",
    )

    def __init__(
        self, settings: LabelSettings, vocabulary: Vocabulary, files: dict[str, Needed], labels: Path | None
    ) -> None:
        self.files = files
        self.masks = SamSegments(settings)
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.batch_size = resolve_batch_size(settings.batch_size, self.device)
        self._labels = labels
        path = settings.phrases or UOV_PHRASES
        self._phrases = read_phrases(path)
        self._value = phrase_values([name for _, _, name in self._phrases], vocabulary, path)

    @cached_property
    def encoder(self) -> ClipEncoder:
        """CLIP or SigLIP."""
        return load_encoder(self.files["clip"].path, self.device)

    @cached_property
    def _digests(self) -> dict[str, str]:
        return weights_digests(self.files)

    @cached_property
    def text(self) -> TextTable:
        """The phrases' table: the label folder's where it is of this model and these phrases, else made.

        A table made on another machine has other last bits; so the first one is everybody's.
        """
        kind, digest = _model_type(self.files["clip"].path), self._digests["clip model.safetensors"]
        model = f"{kind} {digest[:12]}, {len(TEMPLATES)} templates"
        rows = self._phrases
        if self._labels is not None and (self._labels / TEXT_FILES[0]).exists():
            try:
                known = read_text_table(self._labels)
                if (known.model, known.rows) == (model, rows):
                    return known
            except OlivineError:  # damaged: it is made again
                pass
        phrases, categories, classes = zip(*rows)
        return TextTable(model, phrases, categories, classes, embed_phrases(self.encoder, phrases))

    def resolved(self) -> dict[str, Any]:
        """The text table, SAM's points and the encoder's number format."""
        return {"regions": self.text.identity(), "precision": self.precision, "segment_settings": self.masks.resolved()}

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file, by role and file name."""
        return self._digests

    def prepare(self) -> None:
        """Load both networks."""
        self.masks.prepare(self)
        self._embedding = torch.from_numpy(self.text.embedding).to(self.device)
        _ = self.encoder

    @torch.inference_mode()
    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Label one batch of images of one size."""
        try:
            labelled, pieces = in_pieces_that_fit(self._label_piece, list(zip(tasks, images)))
        except OlivineError as error:
            return BatchResult(tuple(OlivineError(str(error), where=task.path) for task in tasks))
        notes = (f"split into {pieces} for the device's memory",) if pieces > 1 else ()
        return BatchResult(tuple(labelled), notes)

    def _label_piece(self, piece: Sequence[tuple[ImageTask, NDArray[np.uint8]]]) -> list[Labelled | OlivineError]:
        with number_format(self.device, self.precision):
            tokens = self.encoder.tokens([image for _, image in piece])
        results: list[Labelled | OlivineError] = []
        for (task, image), seen in zip(piece, tokens.float()):
            try:
                results.append(self._labelled(image, seen, task))
            except OlivineError as error:
                results.append(error)
        return results

    def _labelled(self, image: NDArray[np.uint8], tokens: Tensor, task: ImageTask) -> Labelled:
        segment = self.masks.segment(image)
        # A mask that others cover wholly is no region.
        present = np.unique(segment[segment > 0])
        number = np.zeros(int(segment.max(initial=0)) + 1, np.uint16)
        number[present] = np.arange(1, len(present) + 1)
        segment = number[segment]
        if not len(present):
            none = Regions(np.zeros(0, np.uint8), np.zeros((0, self.text.dimension), np.float16))
            return Labelled(segment.astype(np.uint8), (), segment, none)
        share = torch.from_numpy(patch_shares(segment, len(present), self.encoder.grid)).to(self.device)
        feature = normalize(self.encoder.pool(tokens, share), dim=1)
        phrase = (feature @ self._embedding.T).argmax(1).cpu().numpy().astype(np.uint8)
        stored = unit_rows(feature.cpu().numpy(), task.path).astype(np.float16)
        value = np.concatenate([np.zeros(1, np.uint8), self._value[phrase]])
        return Labelled(value[segment], (), segment, Regions(phrase, stored))


def make_sam_clip(settings: LabelSettings, vocabulary: Vocabulary, labels: Path | None) -> SamClipLabeler:
    """The labeler, with its files checked and nothing loaded.

    Args:
        labels: the label folder, whose text table is taken where it is of the same model and phrases.

    Raises:
        OlivineError: a package or a file is missing, with the command that gets it.
    """
    folder = settings.clip_checkpoint or settings.weights_folder / settings.clip
    files = {
        "sam": needed_files(settings)["sam"],
        "clip": Needed("clip", "--clip-checkpoint", folder, settings.clip, _FILES),
    }
    require_weights("sam-clip", list(files.values()))
    require_packages("sam-clip", {"transformers": "transformers", "segment_anything": "segment-anything"})
    return SamClipLabeler(settings, vocabulary, files, labels)
