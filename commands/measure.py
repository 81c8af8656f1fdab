"""What ``olivine bench`` measures: a run's steps with the time of each stage, and its 3D network alone by engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common import memory_error, track
from ..common.ahead import Ahead
from ..train.backbone import Backbone, Clouds
from ..train.batch import collate
from ..train.build import build_model, classes_of_pairs, needs_of, open_stream, open_text
from ..train.devices import make_fabric, naming_what_to_lower, share_of_step, torch_state
from ..train.loop import Pass, metrics_of_step
from ..train.metrics_log import forget_peak_memory, memory_mib
from ..train.pixel_features import open_pixel_features
from ..train.prepare import Prepared, passes, prepare
from ..train.sample import Sample
from ..train.schedule import build_optimizer, learning_rate
from ..train.settings import PretrainSettings
from ..train.sparse import Conv3d, SparseTensor
from ..train.sparse.engines import choose_engine, engine_problem

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STAGES = (
    "waiting for data",
    "joining and copying frames, voxels",
    "backbone forward",
    "image encoder",
    "heads and losses",
    "backward",
    "optimiser",
)
"""Of a step, in the order in which they begin on a CPU; on a GPU the image encoder comes before the backbone."""
ENGINES = ("torch", "triton", "minkowski")
LAYER_CHANNELS = 96


class StageClock:
    """Seconds by stage, while it runs. At the end of each stage a GPU is waited for, so that its kernels count for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.running, self.seconds, self._at = device, False, dict.fromkeys(STAGES, 0.0), 0.0
        self.current = STAGES[0]

    def start(self) -> None:
        """Count from now on."""
        self.running, self._at = True, _now(self.device)

    def begin(self, stage: str) -> str:
        """What has passed since the last call belongs to the stage that began there, which is returned; now this one begins."""
        before, self.current = self.current, stage
        if self.running:
            now = _now(self.device)
            self.seconds[before] += now - self._at
            self._at = now
        return before

    def around(self, work: Callable[..., Any], stage: str, after: str | None = None) -> Callable[..., Any]:
        """``work`` as a stage of its own; ``after`` it another one begins, or the one that it interrupted goes on."""

        def counted(*arguments: Any) -> Any:
            before = self.begin(stage)
            found = work(*arguments)
            self.begin(after or before)
            return found

        return counted


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(settings: PretrainSettings, warm_up: int, steps: int) -> dict[str, Any]:
    """Make a run's steps by the trainer's own parts, and nothing of what it writes.

    First ``warm_up`` steps, then ``steps`` as in a run, then ``steps`` with a wait after each stage.

    Args:
        settings: of the run, on one device; ``data.shards`` must be set.

    Returns:
        plain values: ``step`` (steps and frames a second, memory, loss), ``stages`` (seconds a step of each), ``staged_step_s``
        (their sum), ``images`` (of a step) and ``network`` (see :func:`measure_network`).

    Raises:
        OlivineError: settings that do not fit, or too little memory, which names what to lower.
    """
    fabric, run = make_fabric(settings), settings.run
    device, share, total = fabric.device, share_of_step(settings, 0, 1), warm_up + 2 * steps
    clock = StageClock(device)
    with open_stream(settings, share, 1) as stream, torch_state(settings, device), naming_what_to_lower(settings):
        shards = stream.shards
        pixels = open_pixel_features(settings, shards, device) if needs_of(settings).encoder else None
        names, class_count = classes_of_pairs(shards, settings)
        channels = 0 if pixels is None else pixels.channels
        model = build_model(settings, channels, names, total, open_text(settings, shards)).to(device)
        wrapped, optimizer = fabric.setup(model, build_optimizer(settings, model))
        if pixels is not None:
            pixels.maps = clock.around(pixels.maps, "image encoder")  # type: ignore[method-assign]
        encode = model.backbone.encode
        model.backbone.encode = clock.around(encode, "backbone forward", "heads and losses")  # type: ignore[method-assign]
        loss, samples = math.nan, list[Sample]()

        def frames(first: int, end: int) -> Iterator[list[Sample]]:
            """The frames of each step; what is done with them until they are with the model is the next stage."""
            nonlocal samples
            for samples in stream.batches(first, end):
                clock.begin("joining and copying frames, voxels")
                yield samples

        def take(step: int, prepared: Iterator[Prepared]) -> None:
            """One step, as :func:`olivine.train.loop.pretrain` makes it."""
            nonlocal loss
            clock.begin("waiting for data")
            ready = next(prepared)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, total, stream.count)
            optimizer.zero_grad()
            done: list[Pass] = []
            for first in range(0, share.last, share.per_pass):
                if first:
                    clock.begin("joining and copying frames, voxels")
                    ready = next(prepared)
                done.append(Pass(*wrapped(ready, step, first // run.group)))
                clock.begin("backward")
                fabric.backward(done[-1].loss / share.passes)
            del ready
            clock.begin("optimiser")
            norm = fabric.clip_gradients(
                wrapped, optimizer, max_norm=settings.optimizer.clip or math.inf, error_if_nonfinite=False
            )
            assert norm is not None
            loss = metrics_of_step(done, model.method.terms, norm, _alone, 1)[0].get("loss", math.nan)
            optimizer.step()
            model.method.after_step(step, _alone)
            model.method.log(step, _alone)
            clock.begin(STAGES[0])

        def prepared_from(first: int, end: int) -> Iterator[Prepared]:
            return passes(frames(first, end), share.per_pass, model, pixels, class_count)

        with Ahead[Prepared](device) as ahead:
            prepared = ahead(prepared_from(0, warm_up + steps))
            for step in track(range(warm_up), "warm-up", unit="step"):
                take(step, prepared)
            forget_peak_memory()
            waited, start = ahead.waited_s or stream.waited_s, _now(device)
            for step in track(range(warm_up, warm_up + steps), "steps", unit="step"):
                take(step, prepared)
            seconds, waited = _now(device) - start, (ahead.waited_s or stream.waited_s) - waited
        made = {
            "steps_per_second": steps / seconds,
            "frames_per_second": steps * run.batch / seconds,
            "seconds": seconds / steps,
            "waiting_share": waited / seconds,
            "peak_memory_mib": memory_mib(device),
            "loss": loss,
        }
        clock.start()
        prepared = prepared_from(warm_up + steps, total)
        for step in track(range(warm_up + steps, total), "stages", unit="step"):
            take(step, prepared)
        stages = {stage: seconds / steps for stage, seconds in clock.seconds.items()}
        clock.running = False
        images = sum(len(sample.columns.get("image_size", ())) for sample in samples)
        network = measure_network(settings, samples, model.backbone, len(class_count), fabric, min(steps, 5))
    return {
        "step": made,
        "stages": stages,
        "staged_step_s": sum(stages.values()),
        "images": images,
        "network": network,
    }


def measure_network(
    settings: PretrainSettings, samples: list[Sample], backbone: Backbone, classes: int, fabric: Fabric, repeats: int
) -> dict[str, Any]:
    """The 3D network alone on a step's clouds, and one layer of its kind, forward and backward, by engine.

    The layer is a 3 x 3 x 3 submanifold convolution of 96 channels; spconv and WarpConvNet, which do not compute our
    networks, have rows there alone. The maps of kernels are made anew each time.

    Returns:
        ``voxels``, ``asked`` (what ``auto`` means here), ``whole`` and ``layer``: by engine its seconds (the median) and
        memory, or its ``problem``.
    """
    device, weight, batch = fabric.device, next(backbone.parameters()), collate(samples)

    def clouds(engine: str) -> Clouds:
        return prepare(batch, settings.voxels, classes, engine, weight)[1]

    voxels = clouds("torch").voxels
    coordinate = voxels.coordinate
    feature = torch.rand(len(coordinate), LAYER_CHANNELS, device=device, requires_grad=True)
    layer = Conv3d(LAYER_CHANNELS, LAYER_CHANNELS, 3).to(device)

    def whole(engine: str) -> Callable[[], Tensor]:
        made = clouds(engine)
        # A tensor of its own each time, with maps of its own.
        return lambda: (
            backbone.encode(Clouds(made.points, made.cloud, made.voxels, made.settings, engine)).cells.feature
        )

    def single(engine: str) -> Callable[[], Tensor]:
        return lambda: layer(SparseTensor(feature, coordinate, engine=engine)).feature

    def spconv() -> Callable[[], Tensor]:
        import spconv.pytorch as package

        low = coordinate[:, 1:].min(0).values
        place = torch.cat([coordinate[:, :1], coordinate[:, 1:] - low], 1)
        place = place[:, [0, 3, 2, 1]].int().contiguous()
        size = (place[:, 1:].max(0).values + 1).tolist()
        other = package.SubMConv3d(LAYER_CHANNELS, LAYER_CHANNELS, 3, bias=False).to(device)
        frames = int(place[:, 0].max()) + 1
        return lambda: other(package.SparseConvTensor(feature, place, size, frames)).features

    def warpconvnet() -> Callable[[], Tensor]:
        from warpconvnet.geometry.types.voxels import Voxels
        from warpconvnet.nn.modules.sparse_conv import SparseConv3d

        frame, order = coordinate[:, 0].sort(stable=True)
        edges = torch.searchsorted(frame, torch.arange(int(frame[-1]) + 2, device=device)).cpu()
        other = SparseConv3d(LAYER_CHANNELS, LAYER_CHANNELS, kernel_size=3, bias=False).to(device)
        place = coordinate[order, 1:].int().contiguous()
        return lambda: other(Voxels(place, feature[order], offsets=edges)).feature_tensor

    def row(name: str, make: Callable[[], Callable[[], Tensor]]) -> dict[str, Any]:
        problem = None if name in others else engine_problem(name, device)
        try:
            return {"problem": problem} if problem else _timed(make(), fabric, repeats)
        except ImportError as error:
            return {"problem": f"{name} is not installed ({error})"}
        except Exception as error:  # whatever another package raises, the other rows are wanted
            return {"problem": " ".join(str(memory_error(error) or f"{type(error).__name__}: {error}").split())[:300]}

    others = {"spconv": spconv, "warpconvnet": warpconvnet}
    return {
        "voxels": len(coordinate),
        "asked": choose_engine(settings.backbone.engine, device)[1],
        "whole": {name: row(name, partial(whole, name)) for name in ENGINES},
        "layer": {name: row(name, partial(single, name)) for name in ENGINES}
        | {name: row(name, make) for name, make in others.items()},
    }


def _timed(work: Callable[[], Tensor], fabric: Fabric, repeats: int) -> dict[str, Any]:
    """Median seconds of ``repeats`` calls with their backward pass, after one that does not count, and the most memory."""
    forward, backward = [], []
    for number in range(repeats + 1):
        if number == 1:
            forget_peak_memory()
        start = _now(fabric.device)
        with fabric.autocast():
            found = work()
        middle = _now(fabric.device)
        found.float().square().mean().backward()
        if number:
            forward.append(middle - start)
            backward.append(_now(fabric.device) - middle)
    median = repeats // 2
    return {
        "forward_s": sorted(forward)[median],
        "backward_s": sorted(backward)[median],
        "peak_memory_mib": memory_mib(fabric.device),
    }


def _alone(value: Tensor) -> Tensor:
    return value
