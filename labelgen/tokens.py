"""Captions for a grounded detector, and classes from its scores on the captions' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common import OlivineError, PathLike
from .prompts import Vocabulary

_MEND = "write it in other words in the --prompts file, or use the text encoder's own vocabulary"


def load_tokenizer(folder: PathLike) -> Any:
    """The tokenizer in a local folder; code that the folder brings along is never run.

    Raises:
        OlivineError: transformers cannot load it, or it would need such code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OlivineError(
            f"is no tokenizer that transformers can load ({reason})",
            where=folder,
            remedy="name the folder of the right model, or fetch it again with olivine weights fetch",
        ) from None


@dataclass(frozen=True)
class Caption:
    """One text for the detector.

    Attributes:
        text: lower case, every prompt followed by a full stop.
        prompts: position in the vocabulary of each prompt in the text.
        spans: first and last-plus-one token of each of them, the leading special token counted.
    """

    text: str
    prompts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def _caption(vocabulary: Vocabulary, members: Sequence[int], tokenizer: Any, max_tokens: int) -> Caption:
    words = [vocabulary.prompts[i].words for i in members]
    text = ". ".join(words) + "."
    ids: list[int] = tokenizer(text)["input_ids"]
    stop = tokenizer.convert_tokens_to_ids(".")
    if len(ids) > max_tokens:
        raise OlivineError(
            f"the prompts make {len(ids)} tokens, the detector reads {max_tokens}", remedy="use --prompting separate"
        )
    spans = []
    start = 1  # after the leading special token
    for position, token in enumerate(ids):
        if token == stop:
            spans.append((start, position))
            start = position + 1
    if len(spans) != len(words):
        raise OlivineError("the text encoder's tokenizer does not keep the prompts apart", where=text, remedy=_MEND)
    for word, (first, last) in zip(words, spans):
        pieces = ids[first:last]
        if not pieces or tokenizer.unk_token_id in pieces:
            raise OlivineError(f"the text encoder knows no tokens for the prompt {word!r}", remedy=_MEND)
    return Caption(text, tuple(members), tuple(spans))


def make_captions(vocabulary: Vocabulary, tokenizer: Any, prompting: str, max_tokens: int = 256) -> list[Caption]:
    """The captions of a vocabulary: one with all prompts (``combined``), or one for each (``separate``).

    Raises:
        OlivineError: a prompt tokenises to nothing known, two prompts to the same tokens, or the caption is too long.
    """
    groups = [[i] for i in range(len(vocabulary.prompts))]
    captions = [_caption(vocabulary, group, tokenizer, max_tokens) for group in groups]
    seen: dict[tuple[int, ...], str] = {}
    for prompt, caption in zip(vocabulary.prompts, captions):
        first, last = caption.spans[0]
        pieces = tuple(tokenizer(caption.text)["input_ids"][first:last])
        if pieces in seen:
            raise OlivineError(
                f"the prompts {seen[pieces]!r} and {prompt.words!r} are the same tokens to the text encoder",
                remedy=_MEND,
            )
        seen[pieces] = prompt.words
    if prompting == "separate":
        return captions
    return [_caption(vocabulary, range(len(vocabulary.prompts)), tokenizer, max_tokens)]


def best_prompts(scores: Tensor, caption: Caption) -> tuple[Tensor, Tensor]:
    """The prompt of each box: the argmax, over prompts, of the highest score on the prompt's own tokens.

    Args:
        scores: float [N, T], each box's score on each token, 0 to 1.

    Returns:
        position in the vocabulary, int64 [N], and that highest score, float [N].
    """
    per_prompt = torch.stack([scores[:, first:last].amax(1) for first, last in caption.spans], dim=1)
    best, position = per_prompt.max(1)
    return torch.tensor(caption.prompts, device=scores.device)[position], best
