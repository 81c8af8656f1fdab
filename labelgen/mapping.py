"""Which prompt a data set's point class is: the one table for all that compares the two vocabularies.

A point class that no prompt speaks of, or of which it is not plain which one would (a rider on
a bicycle), has None and is not scored.
"""

from __future__ import annotations

from ..common import OlivineError

NUSCENES: dict[str, str | None] = {
    "barrier": "barrier",
    "bicycle": "bicycle",
    "bus": "bus",
    "car": "car",
    "construction_vehicle": None,
    "motorcycle": "motorcycle",
    "pedestrian": "pedestrian",
    "traffic_cone": "traffic cone",
    "trailer": None,
    "truck": "truck",
    "driveable_surface": "road",
    "other_flat": None,
    "sidewalk": "sidewalk",
    "terrain": "terrain",
    "manmade": "building",
    "vegetation": "vegetation",
}
"""The 16 classes of the nuScenes-lidarseg challenge."""

SEMANTICKITTI: dict[str, str | None] = {
    "car": "car",
    "bicycle": "bicycle",
    "motorcycle": "motorcycle",
    "truck": "truck",
    "other-vehicle": None,
    "person": "pedestrian",
    "bicyclist": None,
    "motorcyclist": None,
    "road": "road",
    "parking": "road",
    "sidewalk": "sidewalk",
    "other-ground": None,
    "building": "building",
    "fence": "barrier",
    "vegetation": "vegetation",
    "trunk": "vegetation",
    "terrain": "terrain",
    "pole": None,
    "traffic-sign": None,
}
"""The 19 classes of SemanticKITTI."""

_TABLES = {"nuscenes": NUSCENES, "semantickitti": SEMANTICKITTI}


def prompt_of_point_class(dataset: str, name: str) -> str | None:
    """The prompt class that a data set's point class is, None where it is none of the 13.

    Args:
        dataset: ``nuscenes`` or ``semantickitti``.
        name: as in the data set's own mapping; blanks, ``-`` and ``_`` are the same.

    Raises:
        OlivineError: there is no table for the data set.
    """
    if dataset not in _TABLES:
        raise OlivineError(
            f"nothing says which prompt a point class of {dataset} is",
            where="labelgen/mapping.py",
            remedy=f"add its table there, or use {' or '.join(_TABLES)}",
        )
    plain = {key.replace("_", " ").replace("-", " "): value for key, value in _TABLES[dataset].items()}
    return plain.get(name.replace("_", " ").replace("-", " ").lower())
