"""What an engine costs: scheduling of 10,000 units of a second, and build-pairs by one and by two Ray workers.

The scheduling is simulated in time, not in work: the driver's loop, claims, events and logs are the real ones, and the
seconds that they take delay simulated workers. Then the same loop gives empty units to real Ray actors. build-pairs builds
the real keyframe over and over (``--frames`` times, in units of 8), by one worker and by two in the same cluster.

    python benchmarks/cluster_speed.py [--frames 320] [--units 10000] [--workers 100]
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from olivine.cluster.journal import Journal
from olivine.cluster.work import Job, Reply, WorkUnit, execute
from olivine.common import Failure, write_json
from olivine.labelgen.store import LabelStore, open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import open_dataset
from olivine.readers.index import write_index

PROMPTS = (
    "barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck",
    "road", "sidewalk", "terrain", "vegetation", "building",
)  # fmt: skip
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Nothing:
    """An empty result."""

    failures: tuple[Failure, ...] = ()


def do_nothing(unit: int, step: Callable[[int], None]) -> Nothing:
    return Nothing()


def make_nothing() -> Callable[[int, Callable[[int], None]], Nothing]:
    return do_nothing


class Simulated:
    """Workers that take a second a unit on a clock that moves with the driver's own time, and jumps where it waits."""

    def __init__(self, workers: int, seconds: float) -> None:
        self.workers, self.seconds, self.now, self.mark = workers, seconds, 0.0, time.perf_counter()
        self.busy: list[tuple[float, int, WorkUnit]] = []
        self.number = itertools.count()

    def _catch_up(self) -> None:
        moment = time.perf_counter()
        self.now, self.mark = self.now + moment - self.mark, moment

    @property
    def room(self) -> bool:
        """Whether a worker is idle."""
        return len(self.busy) < self.workers

    def submit(self, unit: WorkUnit) -> None:
        """Begin a unit."""
        self._catch_up()
        heapq.heappush(self.busy, (self.now + self.seconds, next(self.number), unit))

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit, Reply[Any]]]:
        """The units that have ended by now; jumps to the first where none has."""
        self._catch_up()
        self.now = max(self.now, self.busy[0][0])
        ended = []
        while self.busy and self.busy[0][0] <= self.now:
            ended.append((heapq.heappop(self.busy)[2], Reply[Any](Nothing())))
        return ended

    def close(self) -> list[str]:
        """Nothing to end."""
        return []

    def pool(self, job: Job, logs: Path | None) -> Simulated:
        """Itself."""
        self.mark = time.perf_counter()
        return self


def schedule(place: Any, count: int, folder: Path) -> float:
    """Seconds that so many empty units take."""
    started = time.perf_counter()
    units = (WorkUnit(f"unit-{k:07d}", 1, k) for k in range(count))
    job: Job[int, Nothing] = Job("nothing", make_nothing)
    with Journal(folder, "nothing", folder, count) as journal:
        assert sum(1 for _ in execute(job, units, place, journal=journal)) == count
    return time.perf_counter() - started


def keyframes(folder: Path, count: int) -> LabelStore:
    """A label store of the real keyframe, repeated in scenes of 8 frames."""
    dataset = open_dataset("nuscenes", SHARED / "nuscenes-keyframe")
    (real,) = dataset.frames()
    frames = [
        dataclasses.replace(real, token=f"frame-{k:05d}", scene=f"scene-{k // 8:04d}", split="train")
        for k in range(count)
    ]
    write_index(folder / "frames", frames, dataset="nuscenes", version=dataset.version, root=real.root)
    for camera in real.cameras:
        (folder / camera.key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SHARED / "nuscenes-keyframe-camseg" / f"{camera.key}.png", folder / f"{camera.key}.png")
    write_json(folder / "manifest.json", {"schema": "1.0", "classes": list(PROMPTS), "settings": {}})
    return open_store(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=320)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = Simulated(options.workers, 1.0)
        memory = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
        for part, count in (("warm", options.units // 10), ("all", options.units)):
            simulated.now = 0.0
            driver = schedule(simulated, count, folder / part)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        ideal = -(-options.units // options.workers)
        print(
            f"{options.units:,} units of 1 s on {options.workers} simulated workers: {simulated.now:.2f} s, "
            f"{100 * (simulated.now / ideal - 1):.2f} % over {ideal} s; the driver's own time {driver:.2f} s, "
            f"{1e3 * driver / options.units:.2f} ms a unit"
        )
        print(f"driver's peak memory: {memory[1] / 1024:.1f} MiB after a tenth, {memory[2] / 1024:.1f} MiB after all")
        try:
            from olivine.cluster.ray_actors import RayCluster

            ray = RayCluster(workers=2).connect()
        except Exception as error:
            print(f"without Ray: {error}")
            return
        begun = time.perf_counter()
        schedule(RayCluster(workers=2), 10, folder / "start")
        start = time.perf_counter() - begun
        seconds = schedule(RayCluster(workers=2), 2_000, folder / "ray") - start
        print(
            f"2,000 empty units on 2 Ray actors: {seconds:.1f} s, {2e3 * seconds / 2_000:.2f} ms of a worker's time a unit; "
            f"starting the actors {start:.1f} s"
        )
        if not SHARED.is_dir():
            print("build-pairs is left out: the real keyframe is not here")
            return
        store = keyframes(folder / "labels", options.frames)
        build_pairs(keyframes(folder / "few", 16), folder / "warm-out", PairSettings(), split="train")  # compiles
        took = {}
        for workers in (1, 2):
            begun = time.perf_counter()
            build_pairs(
                store, folder / f"out-{workers}", PairSettings(), split="train", executor=RayCluster(None, workers)
            )
            took[workers] = time.perf_counter() - begun
            print(f"build-pairs, {options.frames} frames, {workers} Ray worker(s): {took[workers]:.1f} s")
        print(f"2 Ray workers are {took[1] / took[2]:.2f} times as fast as one")
        ray.shutdown()


if __name__ == "__main__":
    main()
