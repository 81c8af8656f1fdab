"""Label maps that somebody else made: a folder of images of values, perhaps of another vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike
from ..common.settings import read_yaml_file
from ..readers.frame import Camera
from .labeler import BatchResult, ImageTask, Labelled
from .prompts import Vocabulary
from .settings import LabelSettings
from .sources import find_file
from .store import MANIFEST, read_label_manifest, read_score_map, read_values

_CLASS_MAPS = Path(__file__).parent / "data"
_ADD = "add it to the folder, or leave its scene out"
_NOTHING = (None, "", "none", "background", "ignore", "unlabeled", "unlabelled")


def shipped_class_map(name: PathLike) -> Path | None:
    """The file of a class map that comes with olivine, such as ``seem``; None where it has none of that name."""
    path = _CLASS_MAPS / f"{name}.yaml"
    return path if len(Path(name).parts) == 1 and path.is_file() else None


def load_class_map(path: PathLike, vocabulary: Vocabulary) -> dict[int, int]:
    """The meaning of each value of another vocabulary.

    The file (YAML or JSON) maps a value to a class name, or is a list whose positions are
    the values. ``none``, ``background`` or an empty name mean no label.

    Args:
        path: the file, or the name of a class map that comes with olivine: ``seem``.

    Returns:
        the label map's value for each foreign value.

    Raises:
        OlivineError: there is no such file, it is malformed, or it names a class that is not in the vocabulary.
    """
    if not Path(path).exists():
        shipped = shipped_class_map(path)
        if shipped is None:
            names = ", ".join(sorted(file.stem for file in _CLASS_MAPS.glob("*.yaml")))
            raise OlivineError(
                "no such class map",
                where=path,
                remedy=f"name a YAML or JSON file, or a class map of olivine's: {names}",
            )
        path = shipped
    plain = read_yaml_file(path)
    if isinstance(plain, list):
        plain = dict(enumerate(plain))
    if not isinstance(plain, dict) or not plain:
        raise OlivineError("maps no values to class names", where=path, remedy="write lines like 3: car")
    mapping: dict[int, int] = {}
    for value, name in plain.items():
        if isinstance(value, str) and value.isdecimal() and len(value) <= 5:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
            raise OlivineError(f"{value!r} is not a value of a label map", where=path, remedy="write lines like 3: car")
        if value in mapping:
            raise OlivineError(f"names the value {value} a second time", where=path, remedy="remove one of the two")
        if name is None or str(name).lower() in _NOTHING:
            mapping[value] = 0
        elif name in vocabulary.classes:
            mapping[value] = vocabulary.value(name)
        else:
            raise OlivineError(
                f"value {value} is named {name!r}, which is not a class of the prompts",
                where=path,
                remedy=f"use one of {', '.join(vocabulary.classes)}, or none",
            )
    return mapping


def _scores_folder(settings: LabelSettings) -> Path | None:
    """The folder of scores, None where none are asked for.

    Raises:
        OlivineError: there is none, or it holds label maps.
    """
    remedy = "name the folder of scores, an 8-bit PNG for each label map, with --scores-from DIR"
    if (folder := settings.scores_from) is None:
        if settings.scores:
            raise OlivineError("imported label maps have no scores of their own", remedy=remedy)
        return None
    if not folder.is_dir():
        raise OlivineError("no such folder", where=folder, remedy=remedy)
    if (folder / MANIFEST).exists() or (settings.camseg is not None and folder.resolve() == settings.camseg.resolve()):
        raise OlivineError("holds label maps, not scores", where=folder, remedy=f"olivine's are in {folder / 'scores'}")
    return folder


def _check_classes(folder: Path, vocabulary: Vocabulary) -> None:
    """Raise where a folder of olivine's label maps says that its values mean other classes than the prompts'.

    Of two lists of which one goes on where the other ends the values are the same; a value beyond is named where it is met.
    """
    try:
        theirs = read_label_manifest(folder / MANIFEST, "")["classes"]
    except OlivineError:  # somebody else's
        return
    if any(mine != other for mine, other in zip(vocabulary.classes, theirs)):
        raise OlivineError(
            f"its values mean {', '.join(theirs)}, not the prompts'",
            where=folder / MANIFEST,
            remedy="give the same --prompts, or say what each value means with --classes FILE",
        )


class ImportLabeler:
    """Takes label maps from ``settings.camseg``, at the image's key or relative path with the suffix ``.png``.

    Scores come from ``settings.scores_from`` in the same way. Those that olivine wrote know the label map that they are of.
    """

    name = "import"
    needs_image = False
    batch_size = 1
    packages = ("pillow", "numpy")

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary) -> None:
        if settings.camseg is None:
            raise OlivineError("no folder to import from", remedy="name the folder of label maps with --camseg DIR")
        if not settings.camseg.is_dir():
            raise OlivineError(
                "no such folder", where=settings.camseg, remedy="name the folder of label maps with --camseg"
            )
        self.folder = settings.camseg
        self.scores = _scores_folder(settings)
        self.vocabulary = vocabulary
        self.mapping = load_class_map(settings.classes, vocabulary) if settings.classes is not None else None
        if self.mapping is None:
            _check_classes(self.folder, vocabulary)
        self._lookup = np.full(65536, -1, np.int16)
        for value, meaning in (self.mapping or {i: i for i in range(len(vocabulary.classes) + 1)}).items():
            self._lookup[value] = meaning

    def resolved(self) -> dict[str, Any]:
        """The mapping of values; not the folder, which may move."""
        plain = None if self.mapping is None else {str(k): v for k, v in sorted(self.mapping.items())}
        return {
            "classes": plain,
            "folder": self.folder.name,
            **({"scores": "imported"} if self.scores is not None else {}),
        }

    def weights(self) -> dict[str, str]:
        """None."""
        return {}

    def prepare(self) -> None:
        """Nothing to load."""

    def _read(self, camera: Camera) -> Labelled:
        path = find_file(self.folder, camera, ".png")
        values = read_values(path, _ADD, camera)
        label = self._lookup[values]
        if label.min() < 0:
            unknown = np.unique(values[label < 0])
            raise OlivineError(
                f"holds the value {int(unknown[0])}, which has no meaning"
                + (f" (nor have {len(unknown) - 1} others)" if len(unknown) > 1 else ""),
                where=path,
                remedy="say what each value means with --classes FILE",
            )
        label = label.astype(np.uint8)
        if self.scores is None:
            return Labelled(label)
        score = read_score_map(find_file(self.scores, camera, ".png"), _ADD, camera, label=values)
        return Labelled(label, score=np.where(label > 0, score, 0).astype(np.uint8))

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Read one batch of label maps."""
        results: list[Labelled | OlivineError] = []
        for task in tasks:
            try:
                results.append(self._read(task.camera))
            except OlivineError as error:
                results.append(error)
        return BatchResult(tuple(results))
