"""Several processes end together: an error in one is told once, and no other waits for a collective that never comes."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .errors import OlivineError, memory_error
from .files import digest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_LOOK_S, _FIRST_LEAVES_S, _OTHERS_LEAVE_S = 0.5, 2.0, 5.0
"""Rank 0 holds what the others look at, so it waits until they have looked. It leaves before them: Fabric kills it when
it sees that a child has failed, and then nothing would be told."""


@contextmanager
def ending_together(fabric: Fabric) -> Iterator[None]:
    """Within the block, an error in one process ends all within seconds, by exit code 2; rank 0 prints that error.

    Without it the others wait in their next collective, with NCCL for its time-out. A process alone is left alone.
    """
    if fabric.world_size == 1:
        yield
        return
    import torch.distributed as dist

    # What the processes met by. A client of its own: another one may be held by a collective that waits.
    store = dist.PrefixStore("olivine", dist.distributed_c10d._get_default_store().clone())
    done = threading.Event()

    def leave(said: str) -> None:
        time.sleep(_OTHERS_LEAVE_S if fabric.global_rank else _FIRST_LEAVES_S)
        if fabric.global_rank == 0:
            print(f"olivine: {said}", file=sys.stderr, flush=True)
        os._exit(2)

    def watch() -> None:
        while not done.wait(_LOOK_S):
            try:
                if store.check(["failed"]):
                    leave(store.get("failed").decode())
            except RuntimeError:
                print("olivine: the first process has gone without a word; this one ends", file=sys.stderr, flush=True)
                os._exit(2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        fabric.barrier()  # none is still looking when the first one leaves
    except Exception as error:
        if os.environ.get("OLIVINE_TRACEBACK"):
            traceback.print_exc()
        known = error if isinstance(error, OlivineError) else memory_error(error)
        bug = f"this is a bug in olivine ({type(error).__name__}: {error}); OLIVINE_TRACEBACK=1 shows where"
        said = f"{known or bug} (in process {fabric.global_rank} of {fabric.world_size})"
        with suppress(RuntimeError):  # rank 0 has gone
            said = store.compare_set("failed", "", said).decode()
        done.set()
        leave(said)
    finally:
        done.set()
        watcher.join()


def check_same_start(fabric: Fabric, step: int, data: object) -> None:
    """Raise in every process unless all begin at one step, with the same ``data`` (JSON-able).

    Otherwise they would average gradients of other networks, and the one with more steps to go wait for the others.

    Raises:
        OlivineError: names the first process that differs from process 0.
    """
    if fabric.world_size == 1:
        return
    import torch

    mine = torch.tensor([step, int(digest(data)[:15], 16)], device=fabric.device)
    (first, of_first), *others = fabric.all_gather(mine).tolist()  # type: ignore[union-attr]
    for rank, (other, of_other) in enumerate(others, 1):
        if other != first or of_other != of_first:
            what = f"process {rank} goes on from step {other} and process 0 from step {first}"
            if other == first:
                what = f"process {rank} has opened other shards than process 0"
            raise OlivineError(what, remedy="use folders that all machines share under one path")
