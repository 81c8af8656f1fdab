"""The loader against the usual way, and against decoding the same pictures alone, in one run.

The usual way is that of this family's public code: for each frame the devkit's records, the full-size JPEGs as
float images, a copy of the cloud carried through every camera's chain of transformations, the label maps, then the
crop by interpolation. The loader is olivine's, in one process, with the paper's augmentation, from shards.

    python benchmarks/loader_speed.py [--frames 64] [--data DIR]      (DIR: a nuScenes folder with exact masks)
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from build_pairs_speed import SHARED, make_store
from PIL import Image

from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers.frame import Frame
from olivine.train.augment import AugmentSettings
from olivine.train.loader import FrameStream, StreamSettings

COLUMNS = ("image", "pair_label", "pair_density")  # what OLIVINE needs
SIZE = (224, 416)


class UsualWay:
    """A frame from the raw data set, as public loaders do it."""

    def __init__(self, root: Path, store: LabelStore, frames: list[Frame]) -> None:
        from nuscenes import NuScenes

        self.devkit = NuScenes(frames[0].version, str(root), verbose=False)
        self.root, self.store, self.frames = root, store, frames

    def __call__(self, number: int) -> object:
        """Images, pixels, labels and the cloud of a frame."""
        from nuscenes.utils.data_classes import LidarPointCloud
        from nuscenes.utils.geometry_utils import view_points
        from pyquaternion import Quaternion
        from torchvision.transforms.functional import resized_crop

        frame = self.frames[number % len(self.frames)]
        generator = np.random.default_rng(number)
        lidar = self.devkit.get("sample_data", self.devkit.get("sample_data", frame_lidar(self.devkit, frame))["token"])
        original = LidarPointCloud.from_file(str(self.root / lidar["filename"]))
        images, pixels, labels = [], [], []
        for view in frame.cameras:
            camera = self.devkit.get("sample_data", camera_token(self.devkit, lidar["sample_token"], view.name))
            cloud = copy.deepcopy(original)
            with Image.open(self.root / camera["filename"]) as picture:
                image = np.array(picture).astype(np.float64) / 255
            for record, inverse in ((lidar, False), (camera, True)):
                sensor = self.devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
                ego = self.devkit.get("ego_pose", record["ego_pose_token"])
                for step in (ego, sensor) if inverse else (sensor, ego):
                    if inverse:
                        cloud.translate(-np.array(step["translation"]))
                        cloud.rotate(Quaternion(step["rotation"]).rotation_matrix.T)
                    else:
                        cloud.rotate(Quaternion(step["rotation"]).rotation_matrix)
                        cloud.translate(np.array(step["translation"]))
            depth = cloud.points[2]
            uv = view_points(cloud.points[:3], np.array(sensor["camera_intrinsic"]), normalize=True)[:2].T
            seen = (
                (depth > 1)
                & (uv[:, 0] > 0)
                & (uv[:, 0] < view.width - 1)
                & (uv[:, 1] > 0)
                & (uv[:, 1] < view.height - 1)
            )
            pixel = np.round(uv[seen]).astype(np.int64)
            labels.append(np.asarray(Image.open(self.store.label_path(view)))[pixel[:, 1], pixel[:, 0]])
            tensor = torch.from_numpy(image).permute(2, 0, 1).float()
            area = view.width * view.height * generator.uniform(0.3, 1)
            aspect = generator.uniform(14 / 9, 17 / 9)
            w, h = min(view.width, int((area * aspect) ** 0.5)), min(view.height, int((area / aspect) ** 0.5))
            top, left = generator.integers(0, view.height - h + 1), generator.integers(0, view.width - w + 1)
            images.append(resized_crop(tensor, int(top), int(left), h, w, list(SIZE), antialias=True))
            pixels.append((np.flatnonzero(seen), pixel))
        return torch.stack(images), pixels, labels, torch.from_numpy(original.points.T.copy())


def frame_lidar(devkit: object, frame: Frame) -> str:
    """The token of a frame's LiDAR record (benchmark frames carry made-up tokens)."""
    records = devkit.sample_data  # type: ignore[attr-defined]
    return str(next(record["token"] for record in records if record["filename"] == frame.point_file))


def camera_token(devkit: object, sample: str, channel: str) -> str:
    """The token of a camera's record of a sample."""
    return str(devkit.get("sample", sample)["data"][channel])  # type: ignore[attr-defined]


def rate(function: Callable[[int], object], count: int, rounds: int = 3) -> float:
    """Seconds of processor time a frame, the median of ``rounds``: what else runs on the machine weighs little."""
    function(0)
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        for number in range(count):
            function(number)
        seconds.append((time.process_time() - started) / count)
    return statistics.median(seconds)


def stream_rate(path: Path, count: int, workers: int) -> float:
    """Seconds a frame of the loader at its pace, after its first batches: of the processor, or by the clock with workers."""
    clock = time.perf_counter if workers else time.process_time
    settings = StreamSettings(seed=0, batch=4, part=(0, 4), size=SIZE, augment=AugmentSettings(), columns=COLUMNS)
    with FrameStream(path, settings, workers=workers, prefetch=4) as stream:
        steps = stream.batches(0, 8 + count // 4)
        for _ in range(8):
            next(steps)
        started = clock()
        made = sum(len(batch) for batch in steps)
        return (clock() - started) / made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    if options.data is None and not SHARED.is_dir():
        print("the real keyframe is not here: give a nuScenes folder with exact masks, --data DIR")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, frames = make_store(folder / "labels", options.data, options.frames)
        build_pairs(store, folder / "shards", PairSettings(), split="train")
        shards = open_shards(folder / "shards")
        pictures = [shards.read(i, ["image"]).image or [] for i in range(len(shards))]

        def decode_alone(number: int) -> None:
            for data in pictures[number % len(pictures)]:
                with Image.open(io.BytesIO(data)) as image:
                    image.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)

        torch.set_num_threads(1)
        usual = rate(UsualWay(frames[0].root, store, frames), 4)
        # Interleaved, so that a busy machine weighs on both alike.
        alone, ours = [], []
        for _ in range(5):
            alone.append(rate(decode_alone, options.frames // 2, 1))
            ours.append(stream_rate(folder / "shards", options.frames // 2, 0))
        decode, loader = statistics.median(alone), statistics.median(ours)
        read = rate(lambda number: shards[number % len(shards)], options.frames)
        pace = [[stream_rate(folder / "shards", 4 * options.frames, workers) for workers in (1, 2)] for _ in range(5)]
        one, two = (statistics.median(times) for times in zip(*pace))
    print(f"the usual way             {1e3 * usual:7.1f} ms a frame")
    print(f"decode and resize alone   {1e3 * decode:7.1f} ms a frame")
    print(f"reading a frame's arrays  {1e3 * read:7.1f} ms a frame")
    print(f"olivine's loader          {1e3 * loader:7.1f} ms a frame, {1 / loader:.0f} frames a second in one process")
    print(f"  {usual / loader:.1f} times the usual way's rate; {loader / decode:.2f} times decoding alone")
    print(f"  1 worker {1 / one:.0f}, 2 workers {1 / two:.0f} frames a second: {one / two:.2f} times")


if __name__ == "__main__":
    main()
