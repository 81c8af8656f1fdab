"""What a surface of the world can be, and what each data set calls it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The 13 prompts in order; 0 is everything outside them (poles, signs, sky).
CLASSES = (
    "",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "motorcycle",
    "pedestrian",
    "traffic cone",
    "truck",
    "road",
    "sidewalk",
    "terrain",
    "vegetation",
    "building",
)

# nuScenes-lidarseg: the 32 categories in the order of their index.
LIDARSEG = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)


@dataclass(frozen=True)
class Kind:
    """One kind of surface.

    Attributes:
        name: what it is.
        prompt: the prompt's name in ``CLASSES``, "" outside the prompts.
        category: the nuScenes category.
        semantickitti: the SemanticKITTI class while it stands still.
        semantickitti_moving: the class while it moves.
    """

    name: str
    prompt: str
    category: str
    semantickitti: int
    semantickitti_moving: int


# SemanticKITTI's ids are those of its semantic-kitti.yaml (Behley et al., ICCV 2019, labels of the API).
KINDS = (
    Kind("nothing", "", "noise", 0, 0),
    Kind("ego", "", "vehicle.ego", 1, 1),
    Kind("road", "road", "flat.driveable_surface", 40, 40),
    Kind("sidewalk", "sidewalk", "flat.sidewalk", 48, 48),
    Kind("terrain", "terrain", "flat.terrain", 72, 72),
    Kind("building", "building", "static.manmade", 50, 50),
    Kind("crown", "vegetation", "static.vegetation", 70, 70),
    Kind("trunk", "vegetation", "static.vegetation", 71, 71),
    Kind("pole", "", "static.manmade", 80, 80),
    Kind("sign", "", "static.manmade", 81, 81),
    Kind("car", "car", "vehicle.car", 10, 252),
    Kind("truck", "truck", "vehicle.truck", 18, 258),
    Kind("bus", "bus", "vehicle.bus.rigid", 13, 257),
    Kind("bicycle", "bicycle", "vehicle.bicycle", 11, 11),
    Kind("cyclist", "bicycle", "vehicle.bicycle", 31, 253),
    Kind("motorcycle", "motorcycle", "vehicle.motorcycle", 15, 15),
    Kind("motorcyclist", "motorcycle", "vehicle.motorcycle", 32, 255),
    Kind("pedestrian", "pedestrian", "human.pedestrian.adult", 30, 254),
    Kind("cone", "traffic cone", "movable_object.trafficcone", 99, 99),
    Kind("barrier", "barrier", "movable_object.barrier", 99, 99),
)
KIND = {kind.name: index for index, kind in enumerate(KINDS)}

PROMPT_OF_KIND: NDArray[np.uint8] = np.array([CLASSES.index(k.prompt) for k in KINDS], np.uint8)
LIDARSEG_OF_KIND: NDArray[np.uint8] = np.array([LIDARSEG.index(k.category) for k in KINDS], np.uint8)
SEMANTICKITTI_OF_KIND: NDArray[np.uint32] = np.array(
    [(k.semantickitti, k.semantickitti_moving) for k in KINDS], np.uint32
)
