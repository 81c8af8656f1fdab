"""Models of transformers from local folders, the same with transformers 4 and 5."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import OlivineError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' loading report and bar off the terminal; what matters of it is checked and raised."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def load_pretrained(
    architecture: Callable[..., Any], folder: Path, what: str, same: Mapping[str, str] | None = None
) -> tuple[Any, list[str]]:
    """A transformers model from a local folder, every parameter from its safetensors file.

    Args:
        same: tensors that have another one's values by the model's definition, where the file holds only that one.

    Returns:
        the model, and the names of tensors that it has no place for.

    Raises:
        OlivineError: the folder holds another model, or its file is damaged.
    """
    remedy = "name the folder of the right model, or fetch it again with olivine weights fetch"
    try:
        with _quiet():
            model, report = architecture(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OlivineError(f"is no {what} that transformers can load ({reason})", where=folder, remedy=remedy) from None
    missing = set(report["missing_keys"])
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())} if missing else {}
    for name, source in (same or {}).items():
        if name in missing and source not in missing:
            tensors[name].data.copy_(tensors[source].data)
            missing.remove(name)
    wrong = sorted([*missing, *(name for name, *_ in report["mismatched_keys"])])
    if wrong:
        raise OlivineError(
            f"weights of another model than {what}: {len(wrong)} parameters missing or of another shape (first: {wrong[0]})",
            where=folder,
            remedy=remedy,
        )
    return model.eval(), sorted(report["unexpected_keys"])


def pillow_processor(model: str) -> Any:
    """The class that prepares images for a model (``Sam``, ``CLIP``...), of those that resize with Pillow.

    transformers 4 gives them the plain name; 5 calls them ``...Pil``, and gives the plain name to those that resize with
    torchvision, to slightly other values.
    """
    import transformers

    plain = f"{model}ImageProcessor"
    return getattr(transformers, f"{plain}Pil", None) or getattr(transformers, plain)


def torchvision_processor(model: str) -> Any:
    """The class that prepares images for a model that has none with Pillow (``Sam2``, ``Sam3``)."""
    import transformers

    plain = f"{model}ImageProcessor"
    return getattr(transformers, plain, None) or getattr(transformers, f"{plain}Fast")


def embedding_of(found: Any) -> Tensor:
    """What ``get_text_features`` and ``get_image_features`` give: a tensor, with transformers 5 in a record."""
    embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedding
