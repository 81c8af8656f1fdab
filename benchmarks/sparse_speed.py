"""Speed and memory of the sparse engine against MinkowskiEngine, in one run.

    python benchmarks/sparse_speed.py                 SR-UNet34, forward and backward, one keyframe and a batch of two
    python benchmarks/sparse_speed.py --scaling       cost from 10,000 to 300,000 voxels, and the kernel maps' share

Run it with the interpreter of the environment that `make minkowski` made to have the peer's column. Every measurement
is a process of its own (its peak memory is the process's), engines take turns, and the best of the steps counts; processor time is given beside the clock's for machines that do other work.
The voxels are the real keyframe's where ../shared/data holds it, else of a synthetic cloud of about its size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KEYFRAME = Path(__file__).resolve().parents[2] / "shared/data/nuscenes-keyframe/samples/LIDAR_TOP"


def minkowski_srunet34() -> Any:
    """SR-UNet34 in MinkowskiEngine's own modules, with the names of the parameters that checkpoints have."""
    import torch
    from torch import nn

    from olivine.train.backbones.srunet import SRUNET34 as LAYOUT
    from olivine.train.sparse.minkowski import import_minkowski

    engine = import_minkowski()

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> nn.Module:
        return engine.MinkowskiConvolution(inputs, outputs, kernel_size=size, stride=stride, bias=bias, dimension=3)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv1, self.norm1 = conv(inputs, outputs, 3), engine.MinkowskiBatchNorm(outputs, momentum=0.1)
            self.conv2, self.norm2 = conv(outputs, outputs, 3), engine.MinkowskiBatchNorm(outputs, momentum=0.1)
            self.relu = engine.MinkowskiReLU(inplace=True)
            self.downsample = None
            if inputs != outputs:
                self.downsample = nn.Sequential(
                    conv(inputs, outputs, 1), engine.MinkowskiBatchNorm(outputs, momentum=0.05)
                )

        def forward(self, x: Any) -> Any:
            inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
            inner += x if self.downsample is None else self.downsample(x)
            return self.relu(inner)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            planes, blocks, stem = LAYOUT.planes, LAYOUT.blocks, LAYOUT.stem
            self.conv0p1s1, self.bn0 = conv(1, stem, 3), engine.MinkowskiBatchNorm(stem, momentum=0.05)
            self.relu = engine.MinkowskiReLU(inplace=True)
            width = stem
            for level in range(8):
                down = level < 4
                if down:
                    self.add_module(f"conv{level + 1}p{2**level}s2", conv(width, width, 2, 2))
                    inner = width
                else:
                    inner = planes[level]
                    transposed = engine.MinkowskiConvolutionTranspose(
                        width, inner, kernel_size=2, stride=2, dimension=3
                    )
                    self.add_module(f"convtr{level}p{2 ** (8 - level)}s2", transposed)
                norm = engine.MinkowskiBatchNorm(inner, momentum=0.05)
                self.add_module(f"bn{level + 1}" if down else f"bntr{level}", norm)
                if not down:
                    inner += (planes[2], planes[1], planes[0], stem)[level - 4]
                width = planes[level]
                stage = [Block(inner, width), *(Block(width, width) for _ in range(blocks[level] - 1))]
                self.add_module(f"block{level + 1}", nn.Sequential(*stage))
            self.final = conv(width, 64, 1, bias=True)
            self.final_class_level = conv(width, 64, 1, bias=True)

        def forward(self, x: Any) -> Any:
            x = self.relu(self.bn0(self.conv0p1s1(x)))
            skips = [x]
            for level in range(4):
                x = getattr(self, f"conv{level + 1}p{2**level}s2")(x)
                x = getattr(self, f"block{level + 1}")(self.relu(getattr(self, f"bn{level + 1}")(x)))
                skips.append(x)
            skips.pop()
            for level in range(4, 8):
                x = getattr(self, f"convtr{level}p{2 ** (8 - level)}s2")(x)
                x = engine.cat(self.relu(getattr(self, f"bntr{level}")(x)), skips.pop())
                x = getattr(self, f"block{level + 1}")(x)
            return self.final(x), self.final_class_level(x)

    torch.manual_seed(0)
    return Network()


def keyframe_points() -> Any:
    """[N, 4] float32: the real keyframe, or rings on a plane and walls in its absence."""
    import numpy as np
    import torch

    files = sorted(KEYFRAME.glob("*.bin"))
    if files:
        return torch.from_numpy(np.fromfile(files[0], np.float32).reshape(-1, 5)[:, :4].copy())
    rng = np.random.default_rng(0)
    azimuth, elevation = np.meshgrid(np.linspace(-np.pi, np.pi, 1084), np.radians(np.linspace(-30, 10, 32)))
    wall = 15 + 10 * np.sin(3 * azimuth) + rng.normal(0, 0.02, azimuth.shape)
    ground = 1.8 / np.maximum(-np.tan(elevation), 1e-3)
    distance = np.minimum(wall, ground)
    points = np.stack(
        [
            distance * np.cos(azimuth),
            distance * np.sin(azimuth),
            distance * np.tan(elevation),
            255 * rng.random(azimuth.shape),
        ],
        -1,
    )
    return torch.from_numpy(points.reshape(-1, 4).astype(np.float32))


def voxels_of(count: float) -> Any:
    """The voxels of ``count`` keyframes in a batch, each rotated by another angle; a fraction is a part of the azimuth."""
    import math

    import torch

    from olivine.train.voxelize import VoxelSettings, voxelize

    points = keyframe_points()
    clouds = []
    for i in range(math.ceil(count)):
        share = min(count - i, 1.0)
        azimuth = torch.atan2(points[:, 1], points[:, 0])
        part = points[azimuth < math.pi * (2 * share - 1)] if share < 1 else points
        c, s = math.cos(0.7 * i), math.sin(0.7 * i)
        rotation = torch.tensor([[c, s, 0.0, 0.0], [-s, c, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        clouds.append(part @ rotation)
    return voxelize(torch.cat(clouds), [len(c) for c in clouds], VoxelSettings())


def measure(engine: str, count: float, repeats: int, threads: int) -> dict[str, float]:
    """One process's work: the best step's seconds, and the peak memory over what the process held before."""
    import torch

    torch.set_num_threads(threads)
    from olivine.train.backbones import build_backbone
    from olivine.train.sparse import SparseTensor

    voxels = voxels_of(count)
    feature, coordinate = voxels.feature, voxels.coordinate
    if engine == "minkowski":
        from olivine.train.sparse.minkowski import import_minkowski

        network, package = minkowski_srunet34(), import_minkowski()

        def run() -> Any:
            point, category = network(package.SparseTensor(feature, coordinate))
            return point.F, category.F

    else:
        network = build_backbone("srunet34")

        def run() -> Any:
            point, category = network(SparseTensor(feature, coordinate))
            return point.feature, category.feature

    # Gradients exist and loops are compiled before the baseline, so that the peak is the step's own.
    warm_up(engine, network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward, backward, processor = [], [], []
    for _ in range(repeats):
        network.zero_grad(set_to_none=False)
        begin, start = time.process_time(), time.perf_counter()
        point, category = run()
        middle = time.perf_counter()
        (point.square().mean() + category.square().mean()).backward()
        backward.append(time.perf_counter() - middle)
        forward.append(middle - start)
        processor.append(time.process_time() - begin)
    result = {
        "voxels": len(coordinate),
        "forward_s": min(forward),
        "backward_s": min(backward),
        "cpu_s": min(processor),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
    if engine == "torch":
        result["maps_s"] = min(_map_seconds(feature, coordinate) for _ in range(repeats))
    return result


def warm_up(engine: str, network: Any) -> None:
    """One step on a few voxels."""
    import torch

    from olivine.train.sparse import SparseTensor
    from olivine.train.sparse.minkowski import import_minkowski

    coordinate = torch.cartesian_prod(*[torch.arange(n, dtype=torch.int32) for n in (1, 40, 40, 2)]).contiguous()
    feature = torch.rand(len(coordinate), 1)
    if engine == "minkowski":
        network(import_minkowski().SparseTensor(feature, coordinate))[0].F.sum().backward()
    else:
        network(SparseTensor(feature, coordinate))[0].feature.sum().backward()


def _map_seconds(feature: Any, coordinate: Any) -> float:
    """Seconds to make the voxel sets and kernel maps of SR-UNet34, with all that either path derives from them."""
    from olivine.train.sparse import SparseTensor

    start = time.perf_counter()
    tensor = SparseTensor(feature, coordinate)
    manager, voxels = tensor.manager, tensor.voxels
    for level in range(5):
        maps = [manager.map(voxels, voxels, (3, 3, 3), (1, 1, 1), transposed=False)]
        if level < 4:
            target = manager.coarser(voxels, (2, 2, 2))
            maps.append(manager.map(voxels, target, (2, 2, 2), (1, 1, 1), transposed=False))
            voxels = target
        for kernel_map in maps:
            for way in (kernel_map, kernel_map.transposed):
                _ = (way.pairs_of_output, way.pair_end, way.groups, way.gathered)
    return time.perf_counter() - start


def in_a_process(engine: str, count: float, repeats: int, threads: int) -> dict[str, float]:
    """:func:`measure` in a fresh process with the benchmark's number of threads."""
    command = [sys.executable, __file__, "--worker", engine, str(count), str(repeats), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def best(results: list[dict[str, float]]) -> dict[str, float]:
    """The fastest of several processes."""
    return min(results, key=lambda r: r["forward_s"] + r["backward_s"])


def compare(counts: list[float], repeats: int, rounds: int, threads: int) -> None:
    """Print SR-UNet34's step with both engines, on one keyframe and on a batch of two."""
    from olivine.train.sparse.engines import engine_problem

    problem = engine_problem("minkowski")
    if problem:
        print(f"no peer: {problem}")
    engines = ["torch"] if problem else ["minkowski", "torch"]
    print(f"SR-UNet34, float32, {threads} threads, load average {os.getloadavg()[0]:.1f}")
    for count in counts:
        runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine in engines:
                runs[engine].append(in_a_process(engine, count, repeats, threads))
        step = {}
        for engine in engines:
            r = best(runs[engine])
            step[engine] = r["forward_s"] + r["backward_s"]
            line = f"{r['voxels']:7.0f} voxels  {engine:9s}  forward {r['forward_s']:.3f} s  backward {r['backward_s']:.3f} s"
            line += f"  (processor {min(x['cpu_s'] for x in runs[engine]):.3f} s)"
            line += f"  peak {min(x['peak_mib'] for x in runs[engine]):.0f} MiB"
            if "maps_s" in r:
                line += f"  kernel maps {100 * r['maps_s'] / step[engine]:.1f} % of the step"
            print(line, flush=True)
        if not problem:
            spent = [min(x["cpu_s"] for x in runs[engine]) for engine in engines]
            memory = [min(x["peak_mib"] for x in runs[engine]) for engine in engines]
            print(
                f"        torch is {step['minkowski'] / step['torch']:.2f} times as fast by the clock, "
                f"{spent[0] / spent[1]:.2f} times by processor time, at {memory[1] / memory[0]:.2f} of the memory",
                flush=True,
            )


def scaling(repeats: int, threads: int) -> None:
    """Print the cost for each voxel from 10,000 to 300,000 voxels."""
    print(
        f"SR-UNet34 of the engine torch, forward and backward, {threads} threads, load average {os.getloadavg()[0]:.1f}"
    )
    for count in (0.56, 1, 2, 5.6, 16.8):
        r = in_a_process("torch", count, repeats, threads)
        step = r["forward_s"] + r["backward_s"]
        print(
            f"{r['voxels']:7.0f} voxels  {step:7.3f} s  {1e6 * step / r['voxels']:6.1f} us a voxel  "
            f"maps {100 * r['maps_s'] / step:4.1f} %  peak {r['peak_mib']:.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scaling", action="store_true", help="cost from 10,000 to 300,000 voxels")
    parser.add_argument("--repeats", type=int, default=4, help="steps in each process (default 4)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each engine (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both engines (default 2)")
    parser.add_argument("--counts", type=float, nargs="+", default=[1, 2], help="keyframes in a batch (default 1 2)")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine, count, repeats, threads = arguments.worker
        print(json.dumps(measure(engine, float(count), int(repeats), int(threads))))
    elif arguments.scaling:
        scaling(arguments.repeats, arguments.threads)
    else:
        compare(arguments.counts, arguments.repeats, arguments.rounds, arguments.threads)


if __name__ == "__main__":
    main()
