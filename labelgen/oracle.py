"""The synthetic world's exact masks, spoilt on purpose the way foundation models spoil them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, demand, read_json
from ..common.settings import read_yaml_file
from .labeler import BatchResult, Detection, ImageTask, Labelled
from .prompts import Vocabulary
from .regions import Regions
from .settings import LabelSettings
from .store import read_values
from .text_table import MAX_PHRASES, TextTable, unit_rows

_REMAKE = "make the data set again with olivine synth"

MAX_PIXELS = 10_000  # that a boundary may be displaced by, and that a region may spill
# Which classes a detector takes for one another; rows and columns outside are not confused.
CONFUSABLE = {
    "bus": ("truck", "car"),
    "truck": ("bus", "car"),
    "car": ("truck",),
    "bicycle": ("motorcycle",),
    "motorcycle": ("bicycle",),
    "pedestrian": ("traffic cone",),
    "traffic cone": ("barrier",),
    "barrier": ("traffic cone",),
    "road": ("sidewalk",),
    "sidewalk": ("road", "terrain"),
    "terrain": ("vegetation", "sidewalk"),
    "vegetation": ("terrain",),
    "building": ("barrier",),
}


@dataclass(frozen=True)
class ErrorModel:
    """How the oracle errs.

    Attributes:
        boundary: standard deviation in pixels of a smooth random displacement of the boundaries.
        missed: probability of missing a vanishingly small thing instance.
        missed_area: pixels at which that probability has halved (again at twice as many, ...).
        confusion: probability that an instance or a region takes another class.
        confusion_matrix: class → {class: probability}, instead of ``confusion`` where given.
        leakage: probability that a region of stuff spills over unlabelled pixels and other stuff around it.
        leakage_distance: how far it spills, in pixels.
        feature: length of the random vector that is added to the unit feature of a region.
    """

    boundary: float = 2.0
    missed: float = 0.5
    missed_area: float = 150.0
    confusion: float = 0.05
    confusion_matrix: dict[str, dict[str, float]] = field(default_factory=dict)
    leakage: float = 0.1
    leakage_distance: float = 16.0
    feature: float = 0.5

    def __post_init__(self) -> None:
        for key in ("missed", "confusion", "leakage"):
            if not 0 <= getattr(self, key) <= 1:
                raise OlivineError(f"error model: {key} is {getattr(self, key)}", remedy="give a probability")
        # Written so that a NaN fails every test.
        if not 0 <= self.feature <= 100:
            raise OlivineError(f"error model: feature is {self.feature}", remedy="give a length from 0 to 100")
        for key in ("boundary", "leakage_distance"):
            if not 0 <= getattr(self, key) <= MAX_PIXELS:
                what = "is negative" if getattr(self, key) < 0 else f"is {getattr(self, key)}"
                raise OlivineError(f"error model: {key} {what}", remedy=f"give pixels, at most {MAX_PIXELS}")
        if not 0 < self.missed_area <= 1e12:
            raise OlivineError(f"error model: missed_area is {self.missed_area}", remedy="give a number of pixels")
        demand(self.confusion_matrix, {str: {str: float}}, "error model: confusion_matrix", "write class: {other: 0.1}")
        for name, row in self.confusion_matrix.items():
            if not (min(row.values(), default=0) >= 0 and sum(row.values()) <= 1 + 1e-9):
                raise OlivineError(
                    f"error model: row {name!r} of the confusion matrix is not one of probabilities",
                    remedy="write class: {other: probability}, with a sum of at most 1",
                )

    @property
    def exact(self) -> bool:
        """Whether nothing is spoilt."""
        return not (self.boundary or self.missed or self.confusion or self.confusion_matrix or self.leakage)

    def row(self, name: str, classes: tuple[str, ...]) -> dict[str, float]:
        """The probability of each other class for an instance of class ``name``."""
        if self.confusion_matrix:
            return {k: v for k, v in self.confusion_matrix.get(name, {}).items() if k in classes and k != name}
        others = [c for c in CONFUSABLE.get(name, ()) if c in classes]
        return {c: self.confusion / len(others) for c in others}


ORACLE_SCORES = {
    "calibrated": "chance of being right by the oracle's error model",
    "over": "over-confident: one less the square of the chance of being wrong by the oracle's error model",
}
"""What the manifest says of the oracle's scores."""

NO_ERROR = ErrorModel(boundary=0, missed=0, confusion=0, leakage=0, feature=0)


def parse_error_model(text: str) -> ErrorModel:
    """The error model of ``--error``: ``none``, ``default``, a YAML or JSON file, or ``boundary=2,missed=0.1``.

    A quantity that ``key=value`` pairs do not name is 0 (areas and distances: the default).

    Raises:
        OlivineError: an unknown quantity or a value that is no number; names it.
    """
    if text in ("none", "default"):
        return NO_ERROR if text == "none" else ErrorModel()
    if "=" in text and not os.path.exists(text):  # Path.exists raises where the text is too long for a name
        if bare := [part for part in text.split(",") if "=" not in part]:
            raise OlivineError(f"{bare[0]!r} has no value", where=f"--error {text}", remedy="give key=value, key=value")
        plain: dict[str, Any] = dict(part.split("=", 1) for part in text.split(","))
        base = NO_ERROR
    else:
        plain = read_yaml_file(text)
        base = NO_ERROR
    names = [f.name for f in fields(ErrorModel)]
    if not isinstance(plain, dict):
        raise OlivineError("an error model maps quantities to numbers", where=text, remedy=f"use {', '.join(names)}")
    values = asdict(base)
    for key, value in plain.items():
        key = str(key).strip()
        if key not in names:
            raise OlivineError(f"the error model has no quantity {key!r}", where=text, remedy=f"use {', '.join(names)}")
        try:
            values[key] = value if key == "confusion_matrix" else float(value)
        except (TypeError, ValueError, OverflowError):
            raise OlivineError(f"{key} is {value!r}", where=text, remedy="give a number") from None
    return ErrorModel(**values)


def read_world_classes(path: Path) -> list[str]:
    """The class of each value of a synthetic world's masks, from its ``synthetic.json``.

    Raises:
        OlivineError: the file is missing or damaged, or names no classes.
    """
    names: list[str] = demand(read_json(path, _REMAKE), {"classes": [str]}, path, _REMAKE)["classes"]
    if not 1 <= len(names) <= 256:
        raise OlivineError(f"names {len(names)} classes, not 1 to 256", where=path, remedy=_REMAKE)
    return names


def image_generator(seed: int, key: str) -> np.random.Generator:
    """The random numbers of one image: the same for a seed and an image key, whatever else is labelled."""
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, name])


def displacement_field(height: int, width: int, sigma: float, generator: np.random.Generator) -> NDArray[np.int32]:
    """A smooth random displacement of each pixel, int32 [2, H, W] (rows, columns), standard deviation ``sigma`` pixels.

    Normal numbers on a coarse grid (one each eight pixels), interpolated; the interpolation
    shrinks the spread, which is put right.
    """
    from scipy.ndimage import zoom

    cell = 8
    grid = generator.standard_normal((2, height // cell + 2, width // cell + 2)).astype(np.float32)
    smooth = zoom(grid, (1, cell, cell), order=1)[:, :height, :width]
    smooth *= sigma / max(float(smooth.std()), 1e-6)
    return np.rint(smooth).astype(np.int32)


def displace(values: NDArray[Any], field_: NDArray[np.int32]) -> NDArray[Any]:
    """``values`` [H, W] looked up at the displaced pixel, clamped to the image."""
    height, width = values.shape
    rows = np.clip(np.arange(height)[:, None] + field_[0], 0, height - 1)
    columns = np.clip(np.arange(width)[None, :] + field_[1], 0, width - 1)
    return values[rows, columns]


def _regions(label: NDArray[np.uint8], instance: NDArray[Any], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """The image cut into regions, int32 [H, W], 0 = none: instances of things, connected components of the rest."""
    from scipy.ndimage import label as connected_components

    regions = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.unique(label):
        if value == 0:
            continue
        inside = label == value
        counted = inside & (instance > 0) if vocabulary.is_thing(int(value)) else np.zeros_like(inside)
        for part in (counted, inside & ~counted):
            if not part.any():
                continue
            if part is counted:
                _, numbers = np.unique(instance[part], return_inverse=True)
                regions[part] = numbers + 1 + count
                count += int(numbers.max()) + 1
            else:
                components, found = connected_components(part)
                regions[part] = components[part] + count
                count += found
    return regions


def region_facts(
    label: NDArray[np.uint8], regions: NDArray[np.int32], vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.bool_]]:
    """Of each region, 0 first: its pixels int64 [R + 1], its class uint8 [R + 1], and whether it is a thing, bool [R + 1]."""
    count = int(regions.max()) + 1
    area = np.bincount(regions.ravel(), minlength=count)
    value = np.zeros(count, np.uint8)
    value[regions.ravel()] = label.ravel()
    return area, value, np.array([v > 0 and vocabulary.is_thing(int(v)) for v in value])


def spoil(
    label: NDArray[np.uint8],
    regions: NDArray[np.int32],
    model: ErrorModel,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Apply an error model.

    Args:
        label: exact label map, uint8 [H, W].
        regions: int32 [H, W], 0 where there is no label; one value of ``label`` each.

    Returns:
        the spoilt label map, and the regions as they are in it.
    """
    if model.exact:
        return label, regions
    area, value, thing = region_facts(label, regions, vocabulary)
    count = len(area)
    # One draw of each kind for each region, needed or not: a change of one rate
    # leaves the other errors where they were.
    draws = generator.random((3, count))
    missed = thing & (draws[0] < model.missed * np.exp2(-area / model.missed_area))
    spoilt = value.copy()
    for region in range(1, count):
        if value[region] == 0:  # a number that no region has
            continue
        draw = draws[1, region]
        for name, probability in model.row(vocabulary.classes[int(value[region]) - 1], vocabulary.classes).items():
            if draw < probability:
                spoilt[region] = vocabulary.value(name)
                break
            draw -= probability
    leaking = ~thing & (value > 0) & (draws[2] < model.leakage)
    if missed.any():
        regions = np.where(missed[regions], 0, regions)
    if model.boundary:
        regions = displace(regions, displacement_field(label.shape[0], label.shape[1], model.boundary, generator))
    if leaking.any() and model.leakage_distance:
        from scipy.ndimage import distance_transform_edt

        distance, (rows, columns) = distance_transform_edt(~leaking[regions], return_indices=True)
        spilt = (distance <= model.leakage_distance) & ~thing[regions]
        regions = np.where(spilt, regions[rows, columns], regions)
    return spoilt[regions], regions


class OracleLabeler:
    """The exact masks of a synthetic data set, with errors."""

    name = "oracle"
    needs_image = False
    batch_size = 1
    packages = ("numpy", "scipy", "pillow")

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary, root: Path) -> None:
        self.model = parse_error_model(settings.error)
        self.seed = settings.seed
        self.segments = settings.segments
        self.scores = settings.oracle_scores if settings.scored else None
        self.text = oracle_text(vocabulary)
        self.vocabulary = vocabulary
        named = {name for row in self.model.confusion_matrix.items() for name in (row[0], *row[1])}
        if unknown := sorted(named - set(vocabulary.classes)):
            raise OlivineError(
                f"the confusion matrix names {unknown[0]!r}, which the prompts do not have",
                where=f"--error {settings.error}",
                remedy=f"use {', '.join(vocabulary.classes)}",
            )
        path = root / "synthetic.json"
        if not path.exists():
            raise OlivineError(
                "the oracle needs a synthetic data set, and this is not one",
                where=path,
                remedy="use --labeler grounded-sam or import, or make one with olivine synth",
            )
        names = read_world_classes(path)
        if not set(names) & set(vocabulary.classes):
            raise OlivineError(
                f"the synthetic world has none of the prompts' classes ({', '.join(n for n in names if n)})",
                where=path,
                remedy="use its class names in the --prompts file",
            )
        self._lookup = np.full(256, -1, np.int16)
        for position, name in enumerate(names):
            self._lookup[position] = vocabulary.value(name) if name in vocabulary.classes else 0

    def resolved(self) -> dict[str, Any]:
        """The error model and its seed, and the text table where there are regions."""
        error = asdict(self.model)
        # What is off is not named, so that stores from before it existed stay the same stores.
        scores = {"scores": ORACLE_SCORES[self.scores]} if self.scores is not None else {}
        if self.segments == "regions":
            return {"error": error, "seed": self.seed, "regions": self.text.identity(), **scores}
        del error["feature"]
        return {"error": error, "seed": self.seed, **scores}

    def weights(self) -> dict[str, str]:
        """None."""
        return {}

    def prepare(self) -> None:
        """Nothing to load."""

    def _label(self, task: ImageTask) -> Labelled:
        truth = task.frame.image_truth
        if truth is None:
            raise OlivineError(f"frame {task.frame.token} has no exact masks", where=task.path, remedy=_REMAKE)
        class_path, instance_path = truth[task.position]
        raw = read_values(class_path, _REMAKE, task.camera)
        label = self._lookup[raw] if raw.max() < 256 else np.full(raw.shape, -1, np.int16)
        if label.min() < 0:
            raise OlivineError(
                f"holds the class {int(raw.max())}, which synthetic.json does not name",
                where=class_path,
                remedy=_REMAKE,
            )
        instance = read_values(instance_path, _REMAKE, task.camera)
        exact = label.astype(np.uint8)
        cut = _regions(exact, instance, self.vocabulary)
        spoilt, regions = spoil(exact, cut, self.model, self.vocabulary, image_generator(self.seed, task.camera.key))
        score = None
        if self.scores is not None:
            from .oracle_scores import chance_of_right, encode_chance

            score = encode_chance(chance_of_right(exact, cut, self.model, self.vocabulary), spoilt, self.scores)
        detections, segment = describe(spoilt, regions)
        if self.segments == "regions":
            generator = image_generator(self.seed, f"{task.camera.key} regions")
            return Labelled(
                spoilt, detections, *oracle_regions(spoilt, self.text, self.model.feature, generator), score
            )
        return Labelled(spoilt, detections, segment if self.segments == "masks" else None, score=score)

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """Spoil one batch of exact masks."""
        results: list[Labelled | OlivineError] = []
        for task in tasks:
            try:
                results.append(self._label(task))
            except OlivineError as error:
                results.append(error)
        return BatchResult(tuple(results))


TEXT_DIMENSION = 64


def oracle_text(vocabulary: Vocabulary) -> TextTable:
    """Two phrases of each class, with random embeddings that are alike within a class; they depend on the names alone."""

    def direction(name: str) -> NDArray[np.float64]:
        vector = image_generator(0, name).standard_normal(TEXT_DIMENSION)
        unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
        return unit

    phrases = [(phrase, name) for name in vocabulary.classes for phrase in (name, f"another {name}")][:MAX_PHRASES]
    rows = np.stack([direction(name) + 0.5 * direction(f"the phrase {phrase}") for phrase, name in phrases])
    names = tuple(name for _, name in phrases)
    return TextTable("oracle", tuple(phrase for phrase, _ in phrases), names, names, unit_rows(rows, "oracle"))


def oracle_regions(
    label: NDArray[np.uint8], text: TextTable, noise: float, generator: np.random.Generator
) -> tuple[NDArray[np.uint16], Regions]:
    """One region for each class in an image, as an open-vocabulary network gives one for each phrase.

    Args:
        label: uint8 [H, W].
        noise: length of the random vector that is added to each feature.

    Returns:
        the region map, uint16 [H, W], and the regions: a phrase of the class each, and its embedding with noise.
    """
    values = [int(value) for value in np.unique(label) if value]
    number = np.zeros(256, np.uint16)
    number[values] = np.arange(1, len(values) + 1)
    chosen = [2 * (value - 1) + int(generator.integers(2)) for value in values]
    phrase = np.array([min(row, len(text.phrases) - 1) for row in chosen], np.uint8)
    random = generator.standard_normal((len(values), text.dimension))
    random *= noise / np.maximum(np.linalg.norm(random, axis=1, keepdims=True), 1e-12)
    feature = unit_rows(text.embedding[phrase] + random, "oracle").astype(np.float16)
    return number[label], Regions(phrase, feature)


def describe(label: NDArray[np.uint8], regions: NDArray[np.int32]) -> tuple[tuple[Detection, ...], NDArray[np.uint16]]:
    """The detections of a label map cut into regions, and the regions numbered 1, 2, ... without gaps, uint16 [H, W]."""
    from scipy.ndimage import find_objects

    present, numbers = np.unique(regions, return_inverse=True)
    numbers = numbers.reshape(regions.shape)
    offset = 0 if present[0] == 0 else 1
    segment = (numbers + offset).astype(np.uint16)
    detections = []
    for number, where in enumerate(find_objects(segment), 1):
        if where is None:
            continue
        inside = segment[where] == number
        rows, columns = where
        value = int(label[where][inside][0])
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        detections.append(Detection(box, 1.0, 1.0, value, int(inside.sum())))
    return tuple(detections), segment
