"""Inputs far larger than any data set's: time and memory of the functions that meet them, at three sizes each.

python benchmarks/large.py             # 20 minutes, 8 GiB of memory, 4 GB of disk in a temporary folder
python benchmarks/large.py --scale 0.1 # the same with a tenth of everything
python benchmarks/large.py --only cloud

Each line is a process of its own: its processor time, the most memory it took beyond what it began with, and bytes on disk. The
arithmetic beside the numbers stands in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from olivine.common import digest
from olivine.labelgen.store import encode_label_map, open_store, read_record, write_label_manifest, write_record
from olivine.pairs.density import bandwidth_of, distance_density
from olivine.pairs.images import encode_image, stored_size
from olivine.pairs.layout import SCHEMA, UNITS, shard_name
from olivine.pairs.manifest import merge_manifest, read_manifest, write_entry
from olivine.pairs.shard_writer import ShardFrame, file_table, write_shard
from olivine.pairs.shards import open_shards
from olivine.pairs.unit import plan_units
from olivine.pairs.visibility import visible_pairs
from olivine.readers.frame import Camera, Frame
from olivine.readers.index import Scene, open_index, write_index
from olivine.readers.project import look_up, project_points
from olivine.train.loader import epoch_order

CLASSES = tuple(f"class-{i}" for i in range(255))
Line = tuple[str, Callable[[], object]]


def measured(function: Callable[[], object]) -> tuple[float, float, str]:
    """Processor seconds, MiB beyond the start and what the function gave, of a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
        started = time.process_time()  # the machine may be shared
        try:
            said = function()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"  # a line of the table, also where it is an OlivineError
        seconds = time.process_time() - started
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        os.write(write, json.dumps([seconds, most - before, said if isinstance(said, str) else ""]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    return tuple(json.loads(text)) if text else (0.0, 0.0, "the process was killed")


def cloud_of(count: int) -> np.ndarray:
    """A cloud, float32 [N, 4], with a street's distances."""
    random = np.random.default_rng(0)
    distance, angle = random.gamma(1.5, 9, count), random.uniform(0, 2 * np.pi, count)
    height = random.uniform(-2, 2, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle), height, height], 1).astype(np.float32)


def cameras_of(count: int, width: int = 1600, height: int = 900) -> tuple[Camera, ...]:
    """Cameras all around, each with a quarter of the circle in view."""
    cameras = []
    for c in range(count):
        a = 2 * np.pi * c / count
        rotation = np.array([[np.sin(a), -np.cos(a), 0], [0, 0, -1], [np.cos(a), np.sin(a), 0]])
        pose = np.eye(4)
        pose[:3, :3] = rotation
        intrinsic = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]])
        cameras.append(Camera(f"CAM_{c}", f"samples/CAM_{c}/x.jpg", width, height, intrinsic, pose))
    return tuple(cameras)


def cloud(scale: float, _: Path) -> Iterator[Line]:
    for points, cameras in ((35_000, 6), (500_000, 16), (5_000_000, 64)):
        points = int(points * scale)
        xyz, views = cloud_of(points), cameras_of(cameras)
        distance = np.linalg.norm(xyz[:, :3], axis=1)

        def project(xyz: Any = xyz, views: Any = views) -> str:
            return f"{len(project_points(xyz, views)[0]):,} pairs"

        def hide(xyz: Any = xyz, views: Any = views) -> str:
            pairs = project_points(xyz, views)
            return f"{int(visible_pairs(xyz, views, *pairs).sum()):,} of {len(pairs[0]):,} pairs seen"

        yield f"project_points, {points:,} points, {cameras} cameras", project
        yield f"distance_density, {points:,} points", lambda d=distance: distance_density(d, bandwidth_of(d))
        if points <= 500_000:
            yield f"visible_pairs, {points:,} points, {cameras} cameras", hide


def shards(scale: float, folder: Path) -> Iterator[Line]:
    for points, cameras in ((35_000, 6), (500_000, 16), (5_000_000, 64)):
        points = int(points * scale)
        out = folder / f"shards-{points}"

        def write(points: int = points, cameras: int = cameras, out: Path = out) -> str:
            return f"{write_set(out, points, cameras) / 1e6:,.0f} MB on disk"

        def read(out: Path = out) -> str:
            record = open_shards(out)[0]
            return f"{record.point_count:,} points, {record.pair_count:,} pairs"

        yield f"a shard of one frame written, {points:,} points, {cameras} cameras", write
        yield f"the same read, {points:,} points", read


def write_set(out: Path, points: int, cameras: int) -> int:
    """A set of one shard with one frame; its bytes."""
    xyz, views = cloud_of(points), cameras_of(cameras)
    point, camera, uv = project_points(xyz, views)
    label = (point % 256).astype(np.uint8)
    frame = ShardFrame(
        "token",
        0,
        0.5,
        {
            "points": xyz,
            "pair_point": point,
            "pair_camera": camera,
            "pair_label": label,
            "pair_uv": uv,
            "pair_density": np.ones(len(point), np.float32),
            "class_count": np.bincount(label, minlength=256).astype(np.int64),
            "timestamp": np.int64(0),
            "pose": np.eye(4),
            "intrinsic": np.stack([c.intrinsic for c in views]),
            "lidar_to_camera": np.stack([c.lidar_to_camera for c in views]),
            "image_size": np.array([(c.width, c.height) for c in views], np.int64),
        },
    )
    recipe = recipe_of("train")
    attributes = {"schema": SCHEMA, "recipe": digest(recipe), "scene": "s", "split": "train", "token": ["token"]}
    write_shard(out / shard_name(0), [frame], {**attributes, "frame_index": [0], "bandwidth": [0.5]})
    entry = entry_of(0, digest(recipe), file_table(out / shard_name(0)), 1, cameras)
    entry |= {"points": points, "pairs": len(point), "class_count": frame.columns["class_count"].tolist()}
    write_entry(out, entry)
    merge_manifest(out, recipe, {}, 1)
    return sum(size for size, _ in entry["files"].values())


def recipe_of(split: str) -> dict[str, Any]:
    names = {"dataset": "large", "version": "", "split": split, "labels": "", "point_classes": []}
    return {
        **names,
        "classes": list(CLASSES),
        "intensity_offset": 0.0,
        "settings": {"images": False, "segments": False},
    }


def entry_of(number: int, recipe: str, files: dict[str, Any], frames: int, cameras: int) -> dict[str, Any]:
    """A unit's entry in the manifest, as build-pairs writes it."""
    counts = {"frames": frames, "points": 35_000 * frames, "pairs": 40_000 * frames}
    names = {"number": number, "recipe": recipe, "scene": f"scene-{number:07d}", "first": 0, "has_point_label": False}
    shape = {"cameras": [f"CAM_{c}" for c in range(cameras)], "image_size": [[1600, 900]] * cameras}
    rest: dict[str, Any] = {"class_count": [1] * (len(CLASSES) + 1), "left_out": [], "packages": {"olivine": "0.0"}}
    return {**names, **counts, **shape, **rest, "files": files}


def frames_of(scene: str, count: int, root: Path) -> list[Frame]:
    views = cameras_of(6)
    first = Frame("large", "1", root, "token", scene, "train", 0, "samples/LIDAR/x.bin", 5, np.eye(4), views)
    return [
        replace(
            first,
            token=f"{scene}-{i:06d}",
            point_file=f"samples/LIDAR/{scene}-{i:06d}.bin",
            timestamp=i,
            cameras=tuple(replace(c, image=f"samples/{c.name}/{scene}-{i:06d}.jpg") for c in views),
        )
        for i in range(count)
    ]


def scene(scale: float, folder: Path) -> Iterator[Line]:
    for count in (40, 1_000, 10_000):
        count = max(1, int(count * scale))
        out = folder / f"index-{count}"

        def write(out: Path = out, count: int = count) -> str:
            write_index(out, frames_of("long", count, folder), dataset="large", version="1", root=folder)
            return f"{(out / 'long.jsonl').stat().st_size / 1e6:,.1f} MB on disk"

        def read(out: Path = out) -> str:
            return f"{sum(1 for _ in open_index(out).frames()):,} frames"

        def record(out: Path = out, count: int = count) -> str:
            keys = [f"CAM_{c}/long-{i:06d}" for i in range(count) for c in range(6)]
            table: dict[str, list[Any]] = {"image": [i for i in range(len(keys)) for _ in range(10)]}
            table |= {"box": [[1.5, 2.5, 3.5, 4.5]] * len(table["image"])}
            table |= {name: [1] * len(table["image"]) for name in ("score", "text_score", "class", "area")}
            plain = {"images": keys, "sha256": [digest(k) for k in keys], "pixels": [1] * 256, "notes": {}}
            write_record(out / "units" / "long.json", {**plain, "detections": table})
            read_record(out / "units" / "long.json")
            return f"{(out / 'units' / 'long.json').stat().st_size / 1e6:,.1f} MB on disk"

        yield f"index of a scene of {count:,} frames written", write
        yield f"the same read, {count:,} frames", read
        yield f"label record of {count:,} frames, 10 objects an image, written and read", record


def images(scale: float, folder: Path) -> Iterator[Line]:
    for side in (1_000, 5_000, 20_000):
        side = int(side * scale**0.5)
        path, labels = folder / f"samples/CAM_0/{side}.jpg", folder / f"labels-{side}"
        camera = Camera("CAM_0", f"samples/CAM_0/{side}.jpg", side, side, np.eye(3), np.eye(4))
        small = Image.effect_noise((side // 20, side // 20), 80).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((side, side)).save(path, quality=90)

        def shrink(path: Path = path, camera: Camera = camera, side: int = side) -> str:
            return f"{len(encode_image(path, camera, stored_size(side, side), 90)) / 1e6:,.1f} MB"

        def write(camera: Camera = camera, side: int = side, labels: Path = labels) -> str:
            row = (np.arange(side) // 16 % 256).astype(np.uint8)
            data = encode_label_map(row[:, None] ^ row, CLASSES)
            target = labels / f"{camera.key}.png"
            target.parent.mkdir(parents=True)
            target.write_bytes(data)
            write_label_manifest(labels / "manifest.json", {"schema": "1.0", "classes": list(CLASSES), "settings": {}})
            return f"{len(data) / 1e6:,.1f} MB on disk"

        def read(camera: Camera = camera, side: int = side, labels: Path = labels) -> str:
            uv = np.random.default_rng(0).uniform(0, side - 1, (100_000, 2)).astype(np.float32)
            return f"{len(np.unique(look_up(open_store(labels).label_map(camera), uv)))} values"

        yield f"image of {side:,} x {side:,} shrunk for a shard", shrink
        yield f"label map of {side:,} x {side:,}, 255 classes, written", write
        yield f"the same read and looked up, {side:,} x {side:,}", read


def many(scale: float, folder: Path) -> Iterator[Line]:
    for count in (28_130, 200_000, 1_000_000):
        count = int(count * scale)
        number, out = -(-count // 64), folder / f"many-{count}"
        recipe = recipe_of("train")
        identity = digest(recipe)

        def enter(out: Path = out, number: int = number, identity: str = identity) -> str:
            names = [f"{a}/{f}" for a in range(17) for f in ("zarr.json", "c/0/0/0")]
            files = {name: [123_456, digest(name)] for name in ("zarr.json", *names)}
            (out / UNITS).mkdir(parents=True)
            for i in range(number):
                entry = entry_of(i, identity, files, 64, 6)
                whole = {**entry, "digest": digest(entry)}
                (out / UNITS / f"shard-{i:05d}.json").write_text(json.dumps(whole))
            return f"{number:,} shards"

        def merge(out: Path = out, recipe: Any = recipe, number: int = number) -> str:
            merge_manifest(out, recipe, {}, 64 * number)
            return f"{(out / 'manifest.json').stat().st_size / 1e6:,.0f} MB on disk"

        def read(out: Path = out) -> str:
            return f"{len(read_manifest(out)['shards']):,} shards"

        def opened(out: Path = out) -> str:
            found = open_shards(out)
            return f"{len(found):,} frames in {len(found.scenes):,} scenes"

        def plan(number: int = number) -> str:
            scenes = [Scene(f"s-{i:07d}", "train", 40, folder, folder, "") for i in range(number * 64 // 40)]
            index = replace(open_index(folder / "one"), scenes=tuple(scenes))
            return f"{len(plan_units(index, 'train')):,} units"

        write_index(folder / "one", frames_of("one", 1, folder), dataset="large", version="1", root=folder)
        yield f"entries of {count:,} frames made (not measured)", enter
        yield f"manifest of {count:,} frames merged from its entries", merge
        yield f"manifest of {count:,} frames read and checked", read
        yield f"shards of {count:,} frames opened", opened
        yield f"units of {count:,} frames planned", plan
        yield f"order of an epoch of {count:,} frames", lambda n=count: len(epoch_order(n, 0, 0))


PARTS: dict[str, Callable[[float, Path], Iterator[Line]]] = {
    "cloud": cloud,
    "shards": shards,
    "scene": scene,
    "images": images,
    "many": many,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    warm = cloud_of(1000)  # compiles the loops
    pairs = project_points(warm, cameras_of(2))
    visible_pairs(warm, cameras_of(2), *pairs)
    distance_density(np.linalg.norm(warm, axis=1))
    print("| what | processor seconds | MiB | came to |\n|---|--:|--:|---|", flush=True)
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for what, function in PARTS[name](options.scale, Path(folder)):
                seconds, memory, said = measured(function)
                print(f"| {what} | {seconds:.2f} | {memory:,.0f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
