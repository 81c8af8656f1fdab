"""Label maps on disk.

| path | what |
|---|---|
| `manifest.json` | prompts, labeler and its settings, SHA-256 of the weights, package versions, data set |
| `frames/` | the index of the data set's frames |
| `<camera key>.png` | the label map: palette PNG, uint8, the image's size, 0 = no label, then the classes |
| `segments/<camera key>.png` | optional: 16-bit PNG, each pixel's segment, 0 = none |
| `scores/<camera key>.png` | optional: 8-bit PNG, how sure the labeler is of each pixel's label, 255 = certain, 0 = not known |
| `regions/<camera key>.npz` | optional: phrase and feature of each segment, see :mod:`olivine.labelgen.regions` |
| `text.json`, `text.npy` | optional: the phrases and their embeddings, see :mod:`olivine.labelgen.text_table` |
| `units/<scene>.json` | a finished unit: its images, the SHA-256 of their maps, detections, pixel counts |
| `units/.<scene>/` | an unfinished unit's finished batches |
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..common import OlivineError, PathLike, Whole, demand, digest, read_bytes, read_json, write_bytes, write_json
from ..common.colors import class_colors
from ..common.images import VALUES, open_image
from ..readers.benchmark import plain_name
from ..readers.frame import Camera
from ..readers.index import FrameIndex, open_index
from .prompts import GROUND, GROUND_CLASSES
from .regions import Regions, check_map, decode_regions
from .text_table import TextTable, check_text, read_text_table

SCHEMA = "1.0"
MANIFEST = "manifest.json"
_AGAIN = "run olivine labelgen again; it makes what is missing"
_REDO = "delete it and run olivine labelgen again"
_LABELS = "labels"
"""The text in a score map's PNG that holds the digest of its label map."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a store has for each image, at ``<folder><camera key><suffix>``.

    Attributes:
        column: of a unit's record, with the SHA-256 of each file.
    """

    folder: str
    suffix: str
    column: str


KINDS = {
    "label": FileKind("", ".png", "sha256"),
    "segment": FileKind("segments/", ".png", "segment_sha256"),
    "region": FileKind("regions/", ".npz", "region_sha256"),
    "score": FileKind("scores/", ".png", "score_sha256"),
}


def encode_label_map(label: NDArray[np.uint8], classes: tuple[str, ...]) -> bytes:
    """The bytes of a label map's palette PNG.

    Args:
        label: uint8 [H, W], values 0..K.
        classes: names of the values 1..K, for the palette.
    """
    image = Image.fromarray(label)
    image.putpalette(class_colors(classes).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def encode_segment_map(segment: NDArray[np.uint16]) -> bytes:
    """The bytes of a segment map's 16-bit PNG; ``segment`` is uint16 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(segment).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def label_digest(label: NDArray[np.uint8]) -> str:
    """What the scores of a label map know it by: the SHA-256 of its values, uint8 [H, W]."""
    return hashlib.sha256(np.ascontiguousarray(label).tobytes()).hexdigest()


def encode_score_map(score: NDArray[np.uint8], label: NDArray[np.uint8]) -> bytes:
    """The bytes of a score map's 8-bit PNG, which says in its text whose scores they are.

    Args:
        score: uint8 [H, W].
        label: the label map that they are of, uint8 [H, W].
    """
    text = PngInfo()
    text.add_text(_LABELS, label_digest(label))
    buffer = io.BytesIO()
    Image.fromarray(score).save(buffer, "PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()


def read_score_map(
    path: Path, remedy: str, camera: Camera, *, label: NDArray[np.uint8] | None = None, sha256: str | None = None
) -> NDArray[np.uint8]:
    """How sure a labeler is of each pixel, uint8 [H, W], from an 8-bit PNG of the size of a camera's image.

    Args:
        remedy: what to do about a file that is missing or damaged.
        label: the label map that they must be of, where the file says whose scores they are.
        sha256: of the file's bytes, where it is on record.

    Raises:
        OlivineError: as :func:`read_values`, has more than 8 bits, or says that it belongs to other labels.
    """
    data = _read_whole(path, remedy, "score map", sha256)
    values, text = _decode(data, path, remedy, camera)
    if values.dtype != np.uint8:
        raise OlivineError(
            "has 16 bits a pixel", where=path, remedy="save scores in 8 bits, 255 = certain, 0 = not known"
        )
    if label is not None and text.get(_LABELS, (known := label_digest(label))) != known:
        raise OlivineError(
            "has the scores of another label map",
            where=path,
            remedy="name the folder of scores that came with the labels",
        )
    return values


def read_values(path: Path, remedy: str, camera: Camera, sha256: str | None = None) -> NDArray[Any]:
    """The values of a palette or grey PNG of the size of a camera's image, uint8 or uint16 [H, W].

    Args:
        remedy: what to do about a file that is missing or damaged.
        sha256: of the file's bytes, where it is on record.

    Raises:
        OlivineError: the file is missing, truncated, of another size, has other bytes than on record, or has colours
            instead of values.
    """
    return _decode(_read_whole(path, remedy, "label map", sha256), path, remedy, camera)[0]


def _read_whole(path: Path, remedy: str, what: str, sha256: str | None) -> bytes:
    data = read_bytes(path, remedy, what=what)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise OlivineError(
            "has other bytes than its record says", where=path, remedy="delete it and run olivine labelgen again"
        )
    return data


def _decode(data: bytes, path: Path, remedy: str, camera: Camera) -> tuple[NDArray[Any], dict[Any, Any]]:
    """A PNG's values and what its text says."""
    size = camera.width, camera.height
    with open_image(data, where=path, formats=("PNG",), size=size, modes=VALUES, remedy=remedy) as image:
        text = dict(image.info)
        values = np.asarray(image.convert("L") if image.mode == "1" else image)
    if values.dtype == np.int32:  # Pillow before 11 opens 16-bit PNG as 32-bit
        values = values.astype(np.uint16)
    return values, text


@dataclass(frozen=True)
class LabelStore:
    """Label maps, for reading.

    Attributes:
        root: the label folder.
        manifest: as written.
        classes: names of the values 1..K.
        digest: SHA-256 of the manifest's content.
        also: stores whose labels of the same images vote beside these, see :meth:`with_votes_of`.
    """

    root: Path
    manifest: dict[str, Any] = field(repr=False)
    classes: tuple[str, ...]
    digest: str
    also: tuple[LabelStore, ...] = ()

    def with_votes_of(self, others: Sequence[PathLike]) -> LabelStore:
        """This store, with other label folders that vote in a consolidation: other views of the images, other labelers.

        Raises:
            OlivineError: a folder is no store, is named twice, or has other classes or is of other frames.
        """
        also = tuple(open_store(path) for path in others)
        for number, other in enumerate(also):
            if any(other.root.resolve() == one.root.resolve() for one in (self, *also[:number])):
                raise OlivineError("votes twice", where=other.root, remedy="name each label folder once")
            for what in ("classes", "data"):
                mine, theirs = self.manifest.get(what), other.manifest.get(what)
                if mine != theirs:
                    raise OlivineError(
                        f"its labels cannot vote beside those of {self.root}: {what} {theirs}, there {mine}",
                        where=other.root,
                        remedy="label the same data set with the same prompts",
                    )
            if self.index().digest != other.index().digest:
                raise OlivineError(
                    f"its labels are of other frames than those of {self.root}",
                    where=other.root,
                    remedy="label the same folder of data, and both again where that has changed",
                )
        return replace(self, also=also)

    def absolute(self) -> LabelStore:
        """The same folders for other machines and processes, which have other working folders."""
        return replace(self, root=self.root.absolute(), also=tuple(one.absolute() for one in self.also))

    @property
    def ground(self) -> tuple[int, ...]:
        """The values of a label map that are ground: of the names :data:`GROUND_CLASSES`, or by their prompts' kind."""
        said = {prompt["class"] for prompt in self.manifest.get("prompts", []) if prompt["kind"] == GROUND}
        named = [name in said or plain_name(name) in GROUND_CLASSES for name in self.classes]
        return tuple(k for k, is_ground in enumerate(named, 1) if is_ground)

    def label_path(self, camera: Camera) -> Path:
        """The file of an image's label map."""
        return self.root / f"{camera.key}.png"

    def segment_path(self, camera: Camera) -> Path:
        """The file of an image's segment map."""
        return self.root / "segments" / f"{camera.key}.png"

    def label_map(self, camera: Camera, scene: str | None = None) -> NDArray[np.uint8]:
        """An image's label map, uint8 [H, W]: 0 = no label, i = ``classes[i - 1]``.

        Args:
            scene: the camera's, whose record has the SHA-256 of the map; without it all records are searched.

        Raises:
            OlivineError: it is missing, truncated, of another size than the image, holds a value beyond the classes, or
                has other bytes than when its scene was finished.
        """
        path = self.label_path(camera)
        values = read_values(path, _AGAIN, camera, self._recorded(scene, "sha256", camera))
        if values.dtype != np.uint8 or int(values.max()) > len(self.classes):
            raise OlivineError(
                f"holds the value {int(values.max())}, the manifest has {len(self.classes)} classes",
                where=path,
                remedy="delete it and run olivine labelgen again",
            )
        return values

    def segment_map(self, camera: Camera, scene: str | None = None) -> NDArray[np.uint16] | None:
        """Each pixel's segment, uint16 [H, W], 0 = none; None where the store has no segments.

        Args:
            scene: as for :meth:`label_map`.

        Raises:
            OlivineError: as :meth:`label_map`.
        """
        if self.manifest["settings"].get("segments", "none") == "none":
            return None
        path = self.segment_path(camera)
        return read_values(path, _AGAIN, camera, self._recorded(scene, "segment_sha256", camera)).astype(np.uint16)

    @property
    def scores(self) -> str:
        """What the store's scores are, "" where it has none."""
        return str(self.manifest["settings"].get("scores", ""))

    def score_path(self, camera: Camera) -> Path:
        """The file of an image's score map."""
        return self.root / "scores" / f"{camera.key}.png"

    def score_map(self, camera: Camera, scene: str | None = None) -> NDArray[np.uint8] | None:
        """How sure the labeler is of each pixel's label, uint8 [H, W], 255 = certain, 0 = not known; None without scores.

        Args:
            scene: as for :meth:`label_map`.

        Raises:
            OlivineError: as :meth:`label_map`.
        """
        if not self.scores:
            return None
        known = self._recorded(scene, "score_sha256", camera)
        return read_score_map(self.score_path(camera), _AGAIN, camera, sha256=known)

    @cached_property
    def text(self) -> TextTable:
        """The phrases and embeddings of the store's regions.

        Raises:
            OlivineError: the store has no regions, or their text table is missing, damaged or another one.
        """
        known = self.manifest["settings"].get("regions")
        if known is None:
            raise OlivineError(
                "the label store has no regions", where=self.root, remedy="make them: see docs/regions.md"
            )
        table = read_text_table(self.root, _AGAIN)
        check_text(table, known, self.root)
        return table

    def regions(self, camera: Camera, segment: NDArray[np.uint16], scene: str | None = None) -> Regions:
        """Phrase and feature of each region of an image.

        Args:
            segment: the image's segment map, whose values must have a row each.
            scene: as for :meth:`label_map`.

        Raises:
            OlivineError: the file is missing, damaged or of another dimension, or a region has no row.
        """
        path = self.root / "regions" / f"{camera.key}.npz"
        data = read_bytes(path, _AGAIN, what="file of regions")
        known = self._recorded(scene, "region_sha256", camera)
        if known is not None and hashlib.sha256(data).hexdigest() != known:
            raise OlivineError("has other bytes than its record says", where=path, remedy=_REDO)
        regions = decode_regions(data, self.text, path, _REDO)
        check_map(segment, regions, self.segment_path(camera))
        return regions

    def _recorded(self, scene: str | None, column: str, camera: Camera) -> str | None:
        """The SHA-256 on record; None while the scene is not finished, and for what an older olivine did not note."""
        units = self.root / "units"
        for path in [units / f"{scene}.json"] if scene is not None else sorted(units.glob("[!.]*.json")):
            try:
                state = path.stat()
            except OSError:
                continue
            if found := _digests(path, state.st_mtime_ns, state.st_size)[column].get(camera.key):
                return found
        return None

    def index(self, root: PathLike | None = None) -> FrameIndex:
        """The index of the data set's frames.

        Args:
            root: where the data set is now, if it has moved since.

        Raises:
            OlivineError: it is missing, damaged, or of another data set than the label maps.
        """
        index, data = open_index(self.root / "frames", root), self.manifest.get("data")
        if data is not None and data != {"dataset": index.dataset, "version": index.version}:
            raise OlivineError(
                f"lists frames of {index.dataset} {index.version}, and the label maps are of {data['dataset']} "
                f"{data['version']}",
                where=self.root / "frames",
                remedy=f"run olivine labelgen --dataset {data['dataset']} --version {data['version']} again",
            )
        return index

    def maps_digest(self, scene: str) -> str:
        """Tells a scene's finished maps from others of the same manifest; empty where no record of them can be read."""
        path = self.root / "units" / f"{scene}.json"
        try:
            state = path.stat()
            return _maps_digest(path, state.st_mtime_ns, state.st_size)
        except (OSError, OlivineError):  # who reads the maps is told of a damaged record
            return ""

    def unit(self, scene: str) -> dict[str, Any] | None:
        """The record of a finished unit, None where it is not finished."""
        path = self.root / "units" / f"{scene}.json"
        return read_record(path) if path.exists() else None


_RECORD = {
    "images": [str],
    "sha256": [str],
    "segment_sha256?": [str],
    "region_sha256?": [str],
    "score_sha256?": [str],
    "image_bytes?": [Whole()],
    "sources?": [[(Whole(), Whole(-(2**63)), str)]],
    "pixels": [Whole()],
    "notes": {dict, list},
    "detections": {"image": [Whole()], "box": list, "score": list, "text_score": list, "class": list, "area": list},
    "digest?": str,
}


def read_record(path: Path) -> dict[str, Any]:
    """The record of a unit or of a batch, without the digest of its own that it is checked by.

    Raises:
        OlivineError: it is missing, damaged, or no such record.
    """
    record: dict[str, Any] = demand(read_json(path, _REDO), _RECORD, path, _REDO)
    stored = record.pop("digest", None)  # a record of an older olivine has none
    if stored is not None and stored != digest(record):
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=_REDO)
    if len(record["sha256"]) != len(record["images"]):
        raise OlivineError("has another number of digests than of images", where=path, remedy=_REDO)
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a unit or of a batch, with a digest of its own."""
    whole = {**record, "digest": digest(record)}
    write_bytes(path, (json.dumps(whole, sort_keys=True, separators=(",", ":")) + "\n").encode())


@lru_cache(maxsize=4)
def _digests(path: Path, modified: int, size: int) -> dict[str, dict[str, str]]:
    """The SHA-256 of each label map and segment map of a unit, by the image's key; ``modified``, ``size``: of its record."""
    record = read_record(path)
    return {k.column: dict(zip(record["images"], record.get(k.column, []))) for k in KINDS.values()}


@cache  # 64 characters a scene
def _maps_digest(path: Path, modified: int, size: int) -> str:
    return digest(_digests(path, modified, size))


_MANIFEST = {
    "schema": str,
    "classes": [str],
    "settings": {"segments?": str, "scores?": str, "batch_size?": {int, str}, "precision?": str},
    "labeler?": str,
    "prompts?": [{"name": str, "words": str, "class": str, "kind": str}],
    "packages?": {str: str},
    "data?": {"dataset": str, "version": str},
}


def read_label_manifest(path: Path, remedy: str) -> dict[str, Any]:
    """The manifest of a label folder, without the digest of its own that it is checked by.

    Raises:
        OlivineError: it is missing, damaged, or has a schema this version does not read.
    """
    manifest = read_json(path, remedy)
    schema = str(manifest.get("schema", "")) if isinstance(manifest, dict) else ""
    again = "make the labels again with olivine labelgen --overwrite"
    if schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError(
            f"label store of schema {schema or 'unknown'}, this olivine reads {SCHEMA}", where=path, remedy=again
        )
    plain: dict[str, Any] = demand(manifest, _MANIFEST, path, again)
    stored = plain.pop("digest", None)  # a store of an older olivine has none
    if stored is not None and stored != digest(plain):
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=again)
    return plain


def write_label_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a label folder's manifest, with a digest of its own."""
    write_json(path, {**manifest, "digest": digest(manifest)})


def open_store(path: PathLike) -> LabelStore:
    """Open a label folder.

    Raises:
        OlivineError: there is no manifest, it is damaged, or it has a schema this version does not read.
    """
    root = Path(path)
    manifest = read_label_manifest(
        root / MANIFEST, "run olivine labelgen first, or name the label folder with --labels"
    )
    return LabelStore(root, manifest, tuple(manifest["classes"]), digest(manifest))
