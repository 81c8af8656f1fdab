"""A label store on the keyframe, and small made-up data sets of any number of frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.common import write_json
from olivine.labelgen.regions import Regions, encode_regions
from olivine.labelgen.store import LabelStore, encode_label_map, encode_segment_map, open_store
from olivine.labelgen.text_table import TextTable, unit_rows, write_text_table
from olivine.readers import open_dataset
from olivine.readers.frame import Camera, Frame
from olivine.readers.index import write_index

PROMPTS = (
    "barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck",
    "road", "sidewalk", "terrain", "vegetation", "building",
)  # fmt: skip
CLASSES = ("car", "road", "building")
POINT_CLASSES = ("vehicle", "ground")


def write_store(folder: Path, classes: tuple[str, ...], segments: str = "none") -> LabelStore:
    manifest = {"schema": "1.0", "classes": list(classes), "settings": {"segments": segments}}
    write_json(folder / "manifest.json", manifest)
    return open_store(folder)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """What lies in a folder: the bytes of every file."""
    return lambda path: {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.fixture(scope="session")
def keyframe(nuscenes_keyframe: Path) -> Frame:
    """The nuScenes keyframe."""
    (frame,) = open_dataset("nuscenes", nuscenes_keyframe).frames()
    return frame


@pytest.fixture(scope="session")
def kitti(kitti_frame: Path) -> Frame:
    """The KITTI frame."""
    (frame,) = open_dataset("kitti", kitti_frame).frames()
    return frame


@pytest.fixture(scope="session")
def keyframe_store(keyframe: Frame, keyframe_camseg: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """The label maps of the keyframe, as a label store."""
    folder = tmp_path_factory.mktemp("labels") / "nuscenes"
    for file in keyframe_camseg.rglob("*.png"):
        target = folder / file.relative_to(keyframe_camseg)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    write_index(folder / "frames", [keyframe], dataset="nuscenes", version=keyframe.version, root=keyframe.root)
    return write_store(folder, PROMPTS)


def store_in(base: Path) -> Callable[..., LabelStore]:
    """A function that makes a made-up data set with labels in a folder."""

    def make(
        scenes: dict[str, int], width: int = 64, height: int = 36, points: int = 300, split: str = "train"
    ) -> LabelStore:
        root, folder = base / "raw", base / "labels"
        rng = np.random.default_rng(0)
        frames = [
            made_up_frame(root, folder, scene, k, rng, width, height, points, split)
            for scene, count in scenes.items()
            for k in range(count)
        ]
        write_index(folder / "frames", frames, dataset="nuscenes", version="v0", root=root, point_classes=POINT_CLASSES)
        return write_store(folder, CLASSES, segments="sam")

    return make


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., LabelStore]:
    """A made-up data set with labels: ``make_store(scenes={"a": 3, "b": 70}, width=64, height=36)``."""
    return store_in(tmp_path)


@pytest.fixture(scope="session")
def make_store_in() -> Callable[[Path], Callable[..., LabelStore]]:
    """The same in a folder of one's own: ``make_store_in(folder)(scenes)``."""
    return store_in


def made_up_frame(
    root: Path,
    labels: Path,
    scene: str,
    k: int,
    rng: np.random.Generator,
    width: int,
    height: int,
    points: int,
    split: str,
) -> Frame:
    """A frame of two cameras, ahead and behind, whose files are written under ``root``."""
    cameras = []
    for c, name in enumerate(("CAM_FRONT", "CAM_BACK")):
        image = f"samples/{name}/{scene}-{k:04d}.jpg"
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        picture = np.kron(
            rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8)
        )
        Image.fromarray(picture).save(root / image, "JPEG", quality=90)
        turn = 1.0 if c == 0 else -1.0
        # The camera looks along the LiDAR's x (or -x): its z is that axis, its y is down.
        lidar_to_camera = np.array([[0, -turn, 0, 0], [0, 0, -1, 0], [turn, 0, 0, 0.1], [0, 0, 0, 1]], np.float64)
        focal = width / 2
        intrinsic = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        camera = Camera(name, image, width, height, intrinsic, lidar_to_camera)
        cameras.append(camera)
        label = rng.integers(0, len(CLASSES) + 1, (height, width), dtype=np.uint8)
        for base, data in (
            (labels, encode_label_map(label, CLASSES)),
            (labels / "segments", encode_segment_map(label.astype(np.uint16) * 300)),
        ):
            path = base / f"{camera.key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    count = points + int(rng.integers(0, 40))
    cloud = np.concatenate([rng.uniform(-20, 20, (count, 3)) * (1, 1, 0.1), rng.uniform(0, 255, (count, 1))], axis=1)
    point_file, label_file = f"samples/LIDAR_TOP/{scene}-{k:04d}.bin", f"lidarseg/{scene}-{k:04d}.bin"
    for file in (point_file, label_file):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    cloud.astype(np.float32).tofile(root / point_file)
    rng.integers(0, 4, count, dtype=np.uint8).tofile(root / label_file)
    return Frame(
        dataset="nuscenes",
        version="v0",
        root=root,
        token=f"{scene}-token-{k:04d}",
        scene=scene,
        split=split,
        timestamp=1_500_000_000_000_000 + 500_000 * k,
        point_file=point_file,
        point_columns=4,
        pose=np.eye(4),
        cameras=tuple(cameras),
        point_label_file=label_file,
        point_label_lookup=bytes([0, 1, 2, 2]),
    )


@pytest.fixture(scope="session")
def make_frame() -> Callable[..., Frame]:
    """:func:`made_up_frame`, for tests that arrange the frames themselves."""
    return made_up_frame


@pytest.fixture(scope="session")
def make_manifest() -> Callable[[Path], LabelStore]:
    """A label store of the made-up classes in a folder that holds the label maps."""
    return lambda folder: write_store(folder, CLASSES)


def with_regions(store: LabelStore, seed: int = 0) -> LabelStore:
    """The store with region maps of 0 to 4 regions, and a text table of five phrases."""
    rng = np.random.default_rng(seed)
    names = ("car", "jeep", "road", "house", "sky")
    text = TextTable(
        "CLIP", names, names, ("car", "car", "road", "building", ""), unit_rows(rng.normal(size=(5, 6)), "")
    )
    write_text_table(store.root, text)
    for frame in store.index().frames():
        for camera in frame.cameras:
            count = int(rng.integers(0, 5))
            segment = rng.integers(0, count + 1, (camera.height, camera.width)).astype(np.uint16)
            store.segment_path(camera).write_bytes(encode_segment_map(segment))
            feature = unit_rows(rng.normal(size=(count, 6)), "").astype(np.float16)
            path = store.root / "regions" / f"{camera.key}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_regions(Regions(rng.integers(0, 5, count).astype(np.uint8), feature)))
    manifest = {"schema": "1.0", "classes": list(store.classes)}
    manifest["settings"] = {"segments": "regions", "regions": text.identity()}
    write_json(store.root / "manifest.json", manifest)
    return open_store(store.root)


@pytest.fixture(scope="session")
def add_regions() -> Callable[..., LabelStore]:
    """``add_regions(store, seed)``: the store with regions."""
    return with_regions
