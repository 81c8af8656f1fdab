"""Regions of an image: segments that each have a phrase and a feature, which UOV's pre-training contrasts with points.

Region r of a region map (1..R, 0 = none) is row r − 1 of its image's phrases and features. They come from a folder
(:class:`RegionLabeler`), from SAM and CLIP or SigLIP (:mod:`olivine.labelgen.sam_clip`), or from the oracle on synthetic
data.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, demand, read_bytes, read_json
from .sources import find_file
from .text_table import TextTable, read_text_table, unit_rows

if TYPE_CHECKING:
    from .labeler import BatchResult, ImageTask
    from .prompts import Vocabulary
    from .settings import LabelSettings


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one image.

    Attributes:
        phrase: uint8 [R], a row of the text table.
        feature: float16 [R, E], unit rows.
    """

    phrase: NDArray[np.uint8]
    feature: NDArray[np.float16]


def encode_regions(regions: Regions) -> bytes:
    """The bytes of a ``.npz`` file; the same for the same regions."""
    stored = io.BytesIO()
    np.savez(stored, phrase=regions.phrase, feature=regions.feature)
    return stored.getvalue()


def decode_regions(data: bytes, table: TextTable, where: object, remedy: str) -> Regions:
    """The regions in a ``.npz`` file: ``phrase``, whole numbers [R], and ``feature``, numbers [R, E].

    Raises:
        OlivineError: it is no such file, a phrase is beyond the table, or the features have another dimension.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            phrase, feature = np.asarray(file["phrase"]), np.asarray(file["feature"])
    except (
        ValueError, OSError, EOFError, KeyError, MemoryError, SyntaxError, TypeError, AttributeError,
        NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    ):  # fmt: skip
        raise OlivineError("is no whole .npz file with phrase and feature", where=where, remedy=remedy) from None
    if phrase.ndim != 1 or phrase.dtype.kind not in "iu" or feature.ndim != 2 or feature.dtype.kind != "f":
        raise OlivineError(
            f"phrase is {phrase.dtype} {list(phrase.shape)} and feature {feature.dtype} {list(feature.shape)}",
            where=where,
            remedy="save phrase as whole numbers [R] and feature as numbers [R, E]",
        )
    if len(phrase) != len(feature):
        raise OlivineError(f"{len(phrase)} phrases for {len(feature)} features", where=where, remedy=remedy)
    if feature.shape[1] != table.dimension:
        raise OlivineError(
            f"features of dimension {feature.shape[1]}, the text table ({table.model}, digest {table.digest[:12]}) has "
            f"{table.dimension}",
            where=where,
            remedy="take text embeddings and features of one model",
        )
    if len(phrase) and not 0 <= int(phrase.min()) <= int(phrase.max()) < len(table.phrases):
        raise OlivineError(
            f"names the phrase {int(phrase.max() if phrase.min() >= 0 else phrase.min())}, the text table has "
            f"{len(table.phrases)}, from 0",
            where=where,
            remedy="take the text table that the regions were made with",
        )
    return Regions(phrase.astype(np.uint8), unit_rows(feature, where).astype(np.float16))


def check_map(segment: NDArray[np.uint16], regions: Regions, where: object) -> None:
    """Raise unless a region map's ids have a feature each."""
    largest = int(segment.max(initial=0))
    if largest > len(regions.phrase):
        raise OlivineError(
            f"holds the region {largest}, and there are {len(regions.phrase)} features",
            where=where,
            remedy="number regions 1, 2, …, with a row of phrase and feature for each",
        )


def phrase_values(classes: Sequence[str], vocabulary: Vocabulary, where: object) -> NDArray[np.uint8]:
    """The label map's value of each phrase, uint8 [V]: 0 where its class is "".

    Raises:
        OlivineError: one is no class of the prompts.
    """
    unknown = sorted({name for name in classes if name and name not in vocabulary.classes})
    if unknown:
        raise OlivineError(
            f"class {unknown[0]!r} is not a class of the prompts",
            where=where,
            remedy=f"use one of {', '.join(vocabulary.classes)}, or null",
        )
    return np.array([0 if not name else vocabulary.value(name) for name in classes], np.uint8)


class RegionLabeler:
    """Regions that somebody else made, from ``settings.regions``; label maps of the classes that their phrases mean.

    See docs/regions.md for the folder.
    """

    name = "regions"
    needs_image = False
    batch_size = 1
    packages = ("pillow", "numpy")

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary) -> None:
        remedy = "name the folder of regions with --regions DIR"
        if settings.regions is None:
            raise OlivineError("no folder of regions", remedy=remedy)
        if not settings.regions.is_dir():
            raise OlivineError("no such folder", where=settings.regions, remedy=remedy)
        self.folder = settings.regions
        self.text = read_text_table(self.folder)
        path = self.folder / "regions.json"
        model = demand(read_json(path, "see docs/regions.md"), {"model": str}, path, "see docs/regions.md")["model"]
        if model != self.text.model:
            raise OlivineError(
                f"the features are of {model}, the text table (digest {self.text.digest[:12]}) of {self.text.model}",
                where=path,
                remedy="take text embeddings and features of one model",
            )
        self._value = phrase_values(self.text.classes, vocabulary, self.folder / "text.json")

    def resolved(self) -> dict[str, Any]:
        """The text table; not the folder, which may move."""
        return {"regions": self.text.identity()}

    def weights(self) -> dict[str, str]:
        """None."""
        return {}

    def prepare(self) -> None:
        """Nothing to load."""

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Read one batch of region maps, phrases and features."""
        from .labeler import BatchResult, Labelled
        from .store import read_values

        results: list[Labelled | OlivineError] = []
        missing = "add it to the folder, or leave its scene out"
        for task in tasks:
            path, table = (find_file(self.folder, task.camera, suffix) for suffix in (".png", ".npz"))
            try:
                segment = read_values(path, missing, task.camera).astype(np.uint16)
                regions = decode_regions(read_bytes(table, missing), self.text, table, "make it again")
                check_map(segment, regions, path)
            except OlivineError as error:
                results.append(error)
                continue
            value = np.concatenate([np.zeros(1, np.uint8), self._value[regions.phrase]])
            results.append(Labelled(value[segment], (), segment, regions))
        return BatchResult(tuple(results))
