"""``olivine bench``: how fast pre-training is on this machine, stage by stage, in one file to send."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import OlivineError, check_output_file, cores, digest, package_versions, read_json, write_json
from ..common.settings import settings_to_plain
from . import console, defaults
from .options import Json, Overwrite

if TYPE_CHECKING:
    from ..readers.index import FrameIndex
    from ..train.settings import PretrainSettings

PACKAGES = ("olivine", "torch", "triton", "numpy", "lightning-fabric", "MinkowskiEngine", "spconv", "warpconvnet")
STORED = 0.51
"""Of the side of nuScenes' images: the size at which ``olivine build-pairs`` stores them."""

PEAK = {
    "A100": {"bfloat16": 312e12, "tf32": 156e12, "ieee": 19.5e12},
    "H100": {"bfloat16": 989e12, "tf32": 494.5e12, "ieee": 67e12},
    "H200": {"bfloat16": 989e12, "tf32": 494.5e12, "ieee": 67e12},
}
"""Operations a second of the dense products, from NVIDIA's data sheets of the SXM cards."""
RESNET50 = 273.5e9
"""Operations of the dilated encoder on one image of 224 x 416 pixels, counted."""
SRUNET34 = 2.59e12 / 246_780
"""Operations of SR-UNet34, forward and backward, for each voxel of a nuScenes keyframe, counted."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(bench)


def bench(
    device: Annotated[str, typer.Option(help="cuda (the first GPU that is visible) or cpu.")] = "cuda",
    config: Annotated[str, typer.Option(help="A preset's name or a YAML file (auto: paper on a GPU, cpu without).")] = (
        "auto"
    ),
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    steps: Annotated[int, typer.Option(help="Steps that are timed, twice; 0: 20 on a GPU, 5 on a CPU.")] = 0,
    warm_up: Annotated[int, typer.Option(help="Steps before them that are not.")] = 3,
    shards: Annotated[
        Path | None, typer.Option(help="Shards to train on (default: synthetic frames, made now).")
    ] = None,
    frames: Annotated[int, typer.Option(help="Synthetic frames; 0: those of a step.")] = 0,
    out: Annotated[Path, typer.Option(help="The file to send.")] = Path("bench.json"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time pre-training on this machine: steps and frames a second, each stage, memory, sparse engines.

    Example: olivine bench --device cpu
    """
    import torch

    from ..train.settings import load_settings

    if device not in ("cuda", "cpu"):
        raise OlivineError(
            f"--device {device}", remedy="give cuda or cpu; CUDA_VISIBLE_DEVICES chooses among several GPUs"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise OlivineError(
            "no CUDA device can be used here", where="--device cuda", remedy="see olivine doctor, or take --device cpu"
        )
    on_gpu = device == "cuda"
    steps = steps or (20 if on_gpu else 5)
    if steps < 1 or warm_up < 1 or frames < 0:
        raise OlivineError("--steps, --warm-up or --frames is too small", remedy="give at least 1 step of each kind")
    check_output_file(out, _is_bench, overwrite=overwrite, inputs=(shards,))
    preset = config if config != "auto" else "paper" if on_gpu else "cpu"
    changes = [*(set_ or []), f"run.accelerator={device}", "run.devices=1", "run.nodes=1"]
    settings = load_settings(preset, changes)
    changes += _for_time_alone(settings, warm_up, steps)
    console.note(f"preset: {preset} on {_name(device)}", as_json)
    with tempfile.TemporaryDirectory(prefix="olivine-bench-") as folder:
        index = None
        if shards is None:
            frames = frames or settings.run.batch
            console.note(f"making {frames} synthetic frames", as_json)
            index, shards = _make_frames(Path(folder), frames)
        else:
            shards, _ = defaults.choose_shards(shards, "train")
        settings = load_settings(preset, [*changes, f"data.shards={json.dumps(str(shards))}"])
        from .measure import measure

        found = measure(settings, warm_up, steps)
        if on_gpu:
            torch.cuda.empty_cache()  # labelgen's batch follows what is free
        try:
            labels = _labelgen(index, device)
        except Exception as error:  # the steps have been timed: they are not thrown away
            labels = {"problem": " ".join(f"not measured ({type(error).__name__}: {error})".split())[:300]}
    plain = settings_to_plain(settings)
    del plain["data"]["shards"]
    fields = {
        "preset": preset,
        "device": device,
        "steps": steps,
        "warm_up": warm_up,
        "data": f"{frames} synthetic frames" if index is not None else "shards that were there",
        **found,
        "modelled": _modelled(settings, found, _name(device)),
        "labelgen": labels,
        "environment": _environment(device),
        "settings": plain,
        "settings_digest": digest(plain),
    }
    fields = json.loads(json.dumps(console.strict(fields), default=str))
    write_json(out, {"made_by": "olivine bench", **fields})
    if as_json:
        return console.emit("bench", {"made_by": "olivine bench", **fields}, out)
    print("\n".join(_table(fields)))
    print(f"written to {out}: please send us this file")


def _is_bench(path: Path) -> bool:
    found = read_json(path, "choose another --out file")
    return isinstance(found, dict) and found.get("made_by") == "olivine bench"


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" else f"a CPU ({cores()} cores)"


def _for_time_alone(settings: PretrainSettings, warm_up: int, steps: int) -> list[str]:
    """Changes that make a few steps take the time of a long run's.

    Random weights for an encoder whose own would have to be fetched; and no step of a method's warm-up is timed.
    """
    from ..train.encoder import find_encoder

    image, changes = settings.image, []
    if image.weights is None and image.stored is None and find_encoder(image.encoder).bundled is None:
        changes.append("image.weights=random")
    if getattr(settings.method, "warmup", 0):
        changes.append(f"method.warmup={warm_up / (warm_up + 2 * steps)}")
    return changes


def _make_frames(folder: Path, frames: int) -> tuple[FrameIndex, Path]:
    """Synthetic frames with nuScenes' sensors, their exact labels, and the shards of both."""
    from ..labelgen.run import generate_labels
    from ..labelgen.settings import LabelSettings
    from ..labelgen.store import open_store
    from ..pairs.build import build_pairs
    from ..pairs.settings import PairSettings
    from ..readers import index_dataset
    from ..synthetic.settings import SyntheticSettings
    from ..synthetic.write import write_dataset

    settings = SyntheticSettings(scenes=1, frames=frames, image_scale=STORED)
    write_dataset(settings, folder / "data")
    index, _ = index_dataset(folder / "labels" / "frames", settings.format, folder / "data", None)
    failures = generate_labels(index, folder / "labels", LabelSettings("oracle")).failures
    if not failures:
        failures = build_pairs(
            open_store(folder / "labels"), folder / "pairs", PairSettings(workers=cores()), split="train"
        ).failures
    if failures:
        raise OlivineError(f"the synthetic frames could not be made ({failures[0].reason})", where=folder)
    return index, folder / "pairs"


def _labelgen(index: FrameIndex | None, device: str) -> dict[str, Any]:
    """Images a second of grounded-sam by its default networks on nuScenes' image size, or what stands against it."""
    import dataclasses

    import numpy as np
    from PIL import Image

    from ..labelgen.grounded_sam import needed_files
    from ..labelgen.labeler import ImageTask, make_labeler
    from ..labelgen.prompts import load_vocabulary
    from ..labelgen.settings import LabelSettings

    if index is None:
        return {"problem": "only measured on synthetic frames: leave out --shards"}
    settings = LabelSettings("grounded-sam", device=device)
    absent = [needed.entry for needed in needed_files(settings).values() if needed.missing()]
    if absent:
        return {"problem": f"not measured without weights: olivine weights fetch {' '.join(absent)}"}
    labeler = make_labeler("grounded-sam", settings, load_vocabulary(None), index.root)
    labeler.prepare()
    frame, size = next(index.frames()), (1600, 900)
    cameras = tuple(dataclasses.replace(camera, width=size[0], height=size[1]) for camera in frame.cameras)
    large = dataclasses.replace(frame, cameras=cameras)
    tasks = [ImageTask(large, position) for position in range(len(cameras))][: max(1, labeler.batch_size)]
    images = [np.asarray(Image.open(task.path).convert("RGB").resize(size)) for task in tasks]
    labeler.label(tasks, images)  # what is made at the first call does not count
    start = time.perf_counter()
    labeler.label(tasks, images)
    seconds = time.perf_counter() - start
    return {"images_per_second": len(tasks) / seconds, "images_at_once": len(tasks), "settings": labeler.resolved()}


def _modelled(settings: PretrainSettings, found: dict[str, Any], card: str) -> dict[str, Any] | None:
    """The least seconds of the two largest products by the card's peak rate: arithmetic, nothing that was measured."""
    peak = next((rates for name, rates in PEAK.items() if name in card), None)
    if peak is None:
        return None
    image, run, network = settings.image, settings.run, found["network"]
    least: dict[str, float] = {}
    rounded = "tf32" if run.float32_products == "tf32" else "ieee"
    if image.encoder == "resnet50" and image.stored is None:
        rate = peak[rounded if image.dtype == "float32" else "bfloat16"]
        least["image encoder"] = found["images"] * RESNET50 * image.height * image.width / (224 * 416) / rate
    if settings.backbone.name == "srunet34":
        rate = peak["bfloat16" if "16" in run.precision else rounded]
        if (
            run.precision.startswith("32")
            and run.float32_products == "tf32x3"
            and network["asked"].startswith("triton")
        ):
            rate = peak["tf32"] / 3  # three products for one
        least["3D network"] = network["voxels"] * SRUNET34 / rate
    return {
        "what": "arithmetic: products at the card's peak rate, without memory, launches and waits",
        "least_s": least,
    }


def _environment(device: str) -> dict[str, Any]:
    import torch

    environment: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": package_versions(list(PACKAGES)),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        environment["gpu"] = {
            "name": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return environment


def _driver() -> str | None:
    """The NVIDIA driver's version, where its tool is here."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None


def _table(fields: dict[str, Any]) -> list[str]:
    """What the terminal shows."""
    step, network = fields["step"], fields["network"]
    least = (fields["modelled"] or {"least_s": {}})["least_s"]

    def beside(name: str) -> str:
        return f"   modelled: at least {1000 * least[name]:.1f} ms" if name in least else ""

    lines = [
        f"{step['frames_per_second']:.2f} frames a second, {step['steps_per_second']:.3f} steps a second, "
        f"{100 * step['waiting_share']:.0f} % of the time waiting for data, peak memory {step['peak_memory_mib']:,.0f} MiB",
        f"a step with a wait after each stage: {1000 * fields['staged_step_s']:.1f} ms",
    ]
    lines += [f"  {stage:20} {1000 * seconds:10.1f} ms{beside(stage)}" for stage, seconds in fields["stages"].items()]
    titles = {"whole": "3D network", "layer": "one layer of 96 channels"}
    for part, title in titles.items():
        lines.append(f"{title}, {network['voxels']:,} voxels, forward + backward{beside(title)}")
        for name, row in network[part].items():
            text = row.get("problem") or (
                f"{1000 * row['forward_s']:8.1f} + {1000 * row['backward_s']:.1f} ms, peak memory {row['peak_memory_mib']:,.0f} MiB"
            )
            lines.append(f"  {name:20} {text}")
    if fields["modelled"]:
        lines.append(f"modelled is {fields['modelled']['what']}")
    labels = fields["labelgen"]
    speed = (
        labels.get("problem")
        or f"{labels['images_per_second']:.2f} images a second, {labels['images_at_once']} at once"
    )
    return [*lines, f"labelgen: {speed}"]
