"""Shards to train on: the keyframe's, and small made-up ones of several scenes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from olivine.common import write_json
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import encode_label_map, open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.manifest import merge_manifest, read_manifest
from olivine.pairs.settings import PairSettings
from olivine.readers import open_dataset
from olivine.readers.frame import Camera, Frame
from olivine.readers.index import write_index
from olivine.train.settings import PretrainSettings, load_settings

CLASSES = ("car", "road", "building", "tree")
WIDTH, HEIGHT = 128, 72


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The networks here are tiny; one thread is fastest, also beside other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def keyframe_shards(nuscenes_keyframe: Path, keyframe_camseg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the nuScenes keyframe with its label maps."""
    folder = tmp_path_factory.mktemp("keyframe")
    frames = list(open_dataset("nuscenes", nuscenes_keyframe).frames())
    index = write_index(
        folder / "labels" / "frames", frames, dataset="nuscenes", version="v1.0-mini", root=nuscenes_keyframe
    )
    generate_labels(index, folder / "labels", LabelSettings("import", camseg=keyframe_camseg))
    summary = build_pairs(open_store(folder / "labels"), folder / "pairs", PairSettings(), split=frames[0].split)
    assert not summary.failures
    return folder / "pairs"


def made_up_frame(
    root: Path, labels: Path, scene: str, k: int, rng: np.random.Generator, absent: int, kitti: bool = False
) -> Frame:
    """A cloud around cameras whose images and labels are stripes, so that there is something to learn.

    Two cameras, or with ``kitti`` a wider one alone, intensities in 0..1, and another split of the points into classes.
    """
    width, height = (2 * WIDTH, HEIGHT - 8) if kitti else (WIDTH, HEIGHT)
    stripes = (np.arange(width) * (len(CLASSES) + 1) // width).astype(np.uint8)
    label = np.broadcast_to(stripes, (height, width))
    colour = np.array([[90, 90, 90], [200, 40, 40], [60, 60, 70], [150, 120, 80], [40, 160, 40]], np.uint8)
    cameras = []
    for name, turn in (("image_2", 1.0),) if kitti else (("CAM_FRONT", 1.0), ("CAM_BACK", -1.0)):
        noise = rng.integers(-20, 20, (height, width, 3))
        pixels = np.clip(colour[label].astype(int) + noise, 0, 255).astype(np.uint8)
        path = f"samples/{name}/{scene}-{k:04d}.jpg"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path, "JPEG", quality=95)
        lidar_to_camera = np.array([[0, -turn, 0, 0], [0, 0, -1, 0], [turn, 0, 0, 0.1], [0, 0, 0, 1]], np.float64)
        intrinsic = np.array([[width / 2, 0, (width - 1) / 2], [0, width / 2, (height - 1) / 2], [0, 0, 1]])
        camera = Camera(name, path, width, height, intrinsic, lidar_to_camera)
        cameras.append(camera)
        (labels / f"{camera.key}.png").parent.mkdir(parents=True, exist_ok=True)
        (labels / f"{camera.key}.png").write_bytes(
            encode_label_map(np.where(label == absent, 0, label).astype(np.uint8), CLASSES)
        )
    xyz = rng.uniform(-12, 12, (900, 3)) * (1, 1, 0.15)
    cloud = np.concatenate([xyz, rng.uniform(0, 1 if kitti else 255, (900, 1))], 1).astype(np.float32)
    names = [f"samples/LIDAR_TOP/{scene}-{k:04d}.bin", f"lidarseg/{scene}-{k:04d}.bin"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    cloud.tofile(root / names[0])
    (cloud[:, 0] > 0).astype(np.uint8).tofile(root / names[1])
    return Frame(
        dataset="kitti" if kitti else "nuscenes",
        version="v0",
        root=root,
        token=f"{scene}-{k:04d}",
        scene=scene,
        split="train",
        timestamp=1_500_000_000_000_000 + 500_000 * k,
        point_file=names[0],
        point_columns=4,
        pose=np.eye(4),
        cameras=tuple(cameras),
        point_label_file=names[1],
        point_label_lookup=bytes([1, 2]),
    )


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_shards({"a": 3, "b": 2})``: shards of made-up scenes, without the class ``absent``."""

    def make(
        scenes: dict[str, int],
        *,
        seed: int = 0,
        classes: tuple[str, ...] = CLASSES,
        images: bool = True,
        absent: int = 0,
        kitti: bool = False,
        point_classes: tuple[str, ...] = ("behind", "ahead"),
    ) -> Path:
        folder = tmp_path_factory.mktemp("shards")
        root, labels = folder / "raw", folder / "labels"
        rng = np.random.default_rng(seed)
        frames = [made_up_frame(root, labels, s, k, rng, absent, kitti) for s, n in scenes.items() for k in range(n)]
        write_index(
            labels / "frames",
            frames,
            dataset="kitti" if kitti else "nuscenes",
            version="v0",
            root=root,
            point_classes=point_classes,
            intensity_offset=1.0 if kitti else 0.0,
        )
        write_json(
            labels / "manifest.json", {"schema": "1.0", "classes": list(classes), "settings": {"segments": "none"}}
        )
        settings = PairSettings(images=images)
        summary = build_pairs(open_store(labels), folder / "pairs", settings, split="train")
        assert not summary.failures
        return folder / "pairs"

    return make


@pytest.fixture(scope="session")
def enter_more() -> Callable[[Path], None]:
    """What build-pairs does to the manifest of a set of shards as it goes on, without the shards."""

    def enter(shards: Path) -> None:
        manifest = read_manifest(shards)
        merge_manifest(shards, manifest["recipe"], {}, manifest["planned_frames"] + 1)

    return enter


@pytest.fixture(scope="session")
def small_shards(make_shards: Callable[..., Path]) -> Path:
    """Five frames in two scenes."""
    return make_shards({"a": 3, "b": 2})


@pytest.fixture(scope="session")
def quick() -> Callable[[Path], list[str]]:
    """``quick(shards)``: settings with which a run of any method on made-up shards takes no time."""

    def settings(shards: Path) -> list[str]:
        return [
            f"data.shards={shards}",
            "data.workers=0",
            "run.batch=2",
            "run.group=1",
            "image.height=40",
            "image.width=72",
            "augment.crop_min_pairs=50",
            "augment.cuboid_min_pairs=50",
            "voxels.size_m=0.5",
            "run.accelerator=cpu",
        ]

    return settings


@pytest.fixture(scope="session")
def small_settings(quick: Callable[[Path], list[str]]) -> Callable[..., PretrainSettings]:
    """``small_settings(shards, "run.steps=3", ...)``: the CPU preset on made-up shards, quick."""

    def make(shards: Path, *changes: str) -> PretrainSettings:
        own = ["run.steps=6", "method.pairs=100", "method.warmup=0.5", "optimizer.lr=0.05"]
        return load_settings("cpu", [*quick(shards), *own, *changes])

    return make


@pytest.fixture
def sigterm_in() -> Callable[[int], AbstractContextManager[None]]:
    """``with sigterm_in(3): …``: this process gets SIGTERM while a run computes its step 3, from 0."""
    from olivine.train.forward import Distiller

    true_step = Distiller.forward

    @contextmanager
    def stop(at: int) -> Iterator[None]:
        def forward(self, ready, step, first_group):  # type: ignore[no-untyped-def]
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return true_step(self, ready, step, first_group)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Distiller, "forward", forward)
            yield

    return stop
