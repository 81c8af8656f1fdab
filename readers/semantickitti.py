"""SemanticKITTI: KITTI odometry with a class for each point of the sequences 00 to 10."""

from __future__ import annotations

from pathlib import Path

from ..common import OlivineError
from .benchmark import Benchmark, Submission
from .kitti import KittiDataset

# The 19 classes of the single-scan benchmark and the raw ids that map to each
# (SemanticKITTI, semantic-kitti.yaml); every other raw id is ignored (0).
CLASSES: dict[str, tuple[int, ...]] = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (13, 16, 20, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
_LOOKUP_SIZE = 260

PROMPTS: dict[str, str | None] = {
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
"""The prompt that each class is; a rider on a bicycle, for instance, is not plainly one of them."""


class SemanticKittiDataset(KittiDataset):
    """KITTI odometry whose sequences 00 to 10 have ``labels/``."""

    name = "semantickitti"
    point_classes = tuple(CLASSES)
    prompts = PROMPTS

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether some sequence has labels; see :class:`Dataset`."""
        return any(root.glob("sequences/*/labels"))

    @classmethod
    def benchmark(cls, version: str) -> Benchmark:
        """SLidR's subsets and batch, semantic-kitti-api's mean IoU and files."""
        return Benchmark(
            fraction_of="frames",
            batch=10,
            mean_over="all",
            submission=Submission(
                "sequences/{folder}/predictions/{stem}.label",
                bytes=4,
                original_ids=True,
                # The published inverse map takes the smallest raw id of each class but for this one (13 is a bus).
                chosen_ids={"other-vehicle": 20},
            ),
        )

    def label_lookup(self, sequence: str, split: str) -> bytes:
        """See :class:`KittiDataset`; the test sequences have no labels."""
        if split == "test":
            return b""
        folder = self.root / "sequences" / sequence / "labels"
        if not folder.is_dir():
            raise OlivineError(
                "SemanticKITTI labels are missing",
                where=folder,
                remedy="unpack the SemanticKITTI label archive, or read the folder as --dataset kitti",
            )
        table = bytearray(_LOOKUP_SIZE)
        for index, raw_ids in enumerate(CLASSES.values(), 1):
            for raw in raw_ids:
                table[raw] = index
        return bytes(table)
