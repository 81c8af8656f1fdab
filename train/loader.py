"""Frames of a shard set as an endless, seeded stream of augmented batches; no torch in here.

The stream is epoch after epoch, each a permutation of all frames made of (seed, epoch). Step s takes the frames
[s·B, (s+1)·B) of it, whatever the number of processes and workers: no frame is lost or doubled in an epoch, a batch
may hold the end of one epoch and the start of the next, and to resume at step s nothing but s is needed. A whole
permutation costs no more than a local one, because a shard holds each frame in chunks of its own.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, children_ignore_ctrl_c
from ..pairs.shards import ShardSet, open_shards
from .augment import AugmentSettings, generator_of, make_sample, make_scan, scan_columns, stored_columns
from .mixture import ShardMixture, network_intensity
from .sample import STORED, Sample
from .slots import Slots

if TYPE_CHECKING:
    from ..pairs.shards import FrameRecord

_CLOUD_BYTES = 3 << 20  # in a slot, besides the images: points and pairs of a nuScenes frame take 1 MiB
_SHUFFLE_KEY = 1 << 20  # keeps the permutation's generator apart from the frames'


@lru_cache(maxsize=16)  # a run over several sets has an order of each at hand
def epoch_order(count: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The order of ``count`` frames in an epoch, int64 [count]."""
    if not shuffle:
        return np.arange(count)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, _SHUFFLE_KEY, count))))
    return generator.permutation(count)


def stream_position(count: int, seed: int, position: int, shuffle: bool = True) -> tuple[int, int]:
    """(epoch, frame) at a position of the endless stream."""
    epoch, rest = divmod(position, count)
    return epoch, int(epoch_order(count, seed, epoch, shuffle)[rest])


@dataclass(frozen=True)
class StreamSettings:
    """What a process takes from the stream.

    Attributes:
        batch: frames per step over all processes.
        part: (first, last) positions of this process within a step's batch.
        size: (height, width) of the images.
        columns: of the samples, see :func:`~.augment.make_sample`; nothing else is read or decoded.
        labels: as ``data.labels``.
        scans: other scans of each frame, by how many frames of its scene they come after it, and their ``scan_columns``;
            see :func:`~.augment.make_scan`.
    """

    seed: int
    batch: int
    part: tuple[int, int]
    size: tuple[int, int]
    augment: AugmentSettings
    shuffle: bool = True
    columns: tuple[str, ...] = ()
    labels: str = "weak"
    scans: tuple[int, ...] = ()
    scan_columns: tuple[str, ...] = ()

    @property
    def stored_of_scans(self) -> tuple[str, ...]:
        """What is read of a stored frame to make another frame's scan."""
        return stored_columns((), self.labels, scan_columns(self.scan_columns)) if self.scans else ()


class FrameStream:
    """Batches of augmented frames from a shard set, made in this process or by worker processes.

    Args:
        shards: path of the set, or several sets.
        settings: see :class:`StreamSettings`.
        workers: worker processes; 0 makes samples in this process. The result does not depend on it.
        prefetch: steps that workers are ahead.

    Attributes:
        waited_s: seconds spent waiting for data since the start.

    Use as a context manager, or call :meth:`close`.
    """

    def __init__(
        self, shards: PathLike | ShardMixture, settings: StreamSettings, *, workers: int = 0, prefetch: int = 2
    ) -> None:
        self.settings, self.prefetch = settings, prefetch
        self.shards = shards if isinstance(shards, ShardMixture) else open_shards(shards)
        self.path = os.fspath(self.shards.path)
        self.count = sum(self.shards.drawn) if isinstance(self.shards, ShardMixture) else len(self.shards)
        if self.count == 0:
            raise OlivineError("the shard set holds no frames", where=shards, remedy="run olivine build-pairs")
        for column in (*stored_columns(settings.columns, settings.labels), *settings.stored_of_scans):
            if not self.shards.has(column):
                raise OlivineError(
                    f"the shards hold no {column!r}, which this run needs",
                    where=shards,
                    remedy=f"make them with: {STORED[column].added_by}",
                )
        gap = self.shards.cluster_gap
        if "cluster_next" in settings.columns and gap not in settings.scans:
            raise OlivineError(
                f"the clusters join scans {gap} frames apart, this run takes them {settings.scans[0]} apart",
                where=shards,
                remedy=f"set method.interval={gap}, or make others: olivine build-pairs --clusters {settings.scans[0]}",
            )
        if isinstance(self.shards, ShardSet):
            _ = self.shards.intensity_offset  # shards from before the rule are refused now
        self.waited_s = 0.0
        self.pool: ProcessPoolExecutor | None = None
        if workers > 0:
            if getattr(current_process(), "_inheriting", False):  # a worker that runs the caller's script from its top
                raise OlivineError("a loader worker has begun this run anew", where=self.path, remedy=_GUARD)
            # Spawned, not forked: a worker imports NumPy and Pillow, and inherits no torch and no threads.
            context = get_context("spawn")
            pixel_bytes = 3 * ("image" in settings.columns) + 4 * ("segment" in settings.columns)
            image_bytes = pixel_bytes * settings.size[0] * settings.size[1] * len(self.shards.cameras)
            # One step is with the caller, one is being handed over, and ``prefetch`` are ahead.
            frames = (prefetch + 2) * (settings.part[1] - settings.part[0])
            self.slots = Slots(context, frames, image_bytes + _CLOUD_BYTES * (1 + len(settings.scans)))
            self.pool = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_start_worker, initargs=(pickle.dumps(self.shards), self.slots)
            )

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None

    def work_of(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, frame) pairs of this process in a step."""
        s = self.settings
        first = step * s.batch
        work = [
            stream_position(self.count, s.seed, position, s.shuffle)
            for position in range(first + s.part[0], first + s.part[1])
        ]
        return work if isinstance(self.shards, ShardSet) else [self._of_mixture(self.shards, *item) for item in work]

    def _of_mixture(self, shards: ShardMixture, epoch: int, place: int) -> tuple[int, int]:
        """A place within an epoch of several sets as a frame, and how often its own set has been gone through before."""
        number, count, position = shards.draw(epoch, place)
        own_epoch, frame = stream_position(count, self.settings.seed, position, self.settings.shuffle)
        return own_epoch, shards.first(number) + frame

    def batches(self, first_step: int, end_step: int) -> Iterator[list[Sample]]:
        """The samples of each step from ``first_step`` up to ``end_step``.

        Raises:
            OlivineError: a frame cannot be read, or a worker died.
        """
        pending: deque[list[tuple[int | None, Future[_Packed]]]] = deque()
        submitted = first_step
        try:
            for step in range(first_step, end_step):
                start = time.monotonic()
                if self.pool is None:
                    batch = [self._sample(epoch, frame) for epoch, frame in self.work_of(step)]
                else:
                    while submitted < min(step + self.prefetch + 1, end_step):
                        pending.append([self._submit(epoch, frame) for epoch, frame in self.work_of(submitted)])
                        submitted += 1
                    batch = self._receive(pending.popleft())
                self.waited_s += time.monotonic() - start
                yield batch
        finally:
            for slot, future in (work for step_work in pending for work in step_work):
                if slot is not None:
                    future.add_done_callback(partial(self._give_back, slot))

    def _give_back(self, slot: int, _: Future[_Packed]) -> None:
        self.slots.free.append(slot)

    def _receive(self, work: list[tuple[int | None, Future[_Packed]]]) -> list[Sample]:
        try:
            return [self.slots.get(*future.result(), slot) for slot, future in work]
        except BrokenProcessPool:
            raise OlivineError(
                "a loader worker was killed (most often for lack of memory)",
                where=self.path,
                remedy=f"run again with fewer of them: --set data.workers=0{f'; {_GUARD}' if _is_script() else ''}",
            ) from None

    def _sample(self, epoch: int, frame: int) -> Sample:
        return _make(self.shards, self.settings, epoch, frame)

    def _submit(self, epoch: int, frame: int) -> tuple[int | None, Future[_Packed]]:
        assert self.pool is not None
        slot = self.slots.take()
        with children_ignore_ctrl_c():  # the pool starts its workers here, one by one
            return slot, self.pool.submit(_work, self.settings, epoch, frame, slot)


_GUARD = 'in a script, call olivine under if __name__ == "__main__":, for each worker runs the script from its top'


def _is_script() -> bool:
    """Whether the program is a file of the user's, and not this package's command or an interpreter."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is None and Path(getattr(main, "__file__", "") or "").suffix == ".py"


def frame_after(shards: ShardSet | ShardMixture, frame: int, after: int) -> int | None:
    """The frame of a set that comes ``after`` frames after another in its scene (before it, if negative), if it is there.

    Shards hold the frames of a scene in order, and a scene may go on in the next shard.
    """
    if isinstance(shards, ShardMixture):
        number, place = shards.part(frame)
        found = frame_after(shards.sets[number], place, after)
        return None if found is None else shards.first(number) + found
    shard, position = shards.locate(frame)
    scene, wanted = shard.attributes["scene"], shard.attributes["frame_index"][position] + after
    # A set may lack frames of a scene, so that the frame is at most so far away.
    for other in range(frame, frame + after, 1 if after > 0 else -1):
        other += 1 if after > 0 else -1
        if not 0 <= other < len(shards):
            return None
        shard, position = shards.locate(other)
        if shard.attributes["scene"] != scene:
            return None
        if shard.attributes["frame_index"][position] == wanted:
            return other
    return None


def _read(shards: ShardSet | ShardMixture, frame: int, columns: tuple[str, ...], labels: str) -> FrameRecord:
    record = shards.read(frame, columns)
    if isinstance(shards, ShardSet):
        network_intensity(record.points, shards, False)
        if labels == "true prompts" and record.point_label is not None:
            label = shards.prompt_of(shards.point_classes)[record.point_label]
            record = replace(record, point_label=label)  # type: ignore[type-var]
    return record


def _make(shards: ShardSet | ShardMixture, settings: StreamSettings, epoch: int, frame: int) -> Sample:
    generator = generator_of(settings.seed, epoch, frame)
    record = _read(shards, frame, stored_columns(settings.columns, settings.labels), settings.labels)
    size, augment, labels = settings.size, settings.augment, settings.labels
    sample = make_sample(record, frame, size, augment, generator, settings.columns, labels)
    for number, after in enumerate(settings.scans, 1):
        other = frame_after(shards, frame, after)
        sample.scans[after] = None
        if other is not None:
            generator = generator_of(settings.seed, epoch, frame, number)
            record = _read(shards, other, settings.stored_of_scans, labels)
            columns = scan_columns(settings.scan_columns)
            sample.scans[after] = make_scan(record, other, augment, generator, columns, labels)
    return sample


_Packed = tuple[bytes, list[tuple[int, int]]]  # what Slots.put returns
_worker: list[tuple[bytes, Slots]] = []
_opened = lru_cache(1)(pickle.loads)  # with the first frame: an error then reaches the parent


def _start_worker(shards: bytes, slots: Slots) -> None:
    """Keep the pickled shards, and end when the parent is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _worker[:] = [(shards, slots)]


def _work(settings: StreamSettings, epoch: int, frame: int, slot: int | None) -> _Packed:
    shards, slots = _worker[0]
    return slots.put(_make(_opened(shards), settings, epoch, frame), slot)
