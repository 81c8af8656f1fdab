"""What frames cost in fine-tuning and prediction, and what it buys on this machine to make them ahead in a thread.

On a GPU a thread reads, decodes, moves and voxelises the frames of the next step while this one is computed; on a CPU
nothing does, for all its cores compute the step already. Here the CPU has the thread in every second run: of fine-tunings
of the CPU preset's network with random weights on synthetic frames, and of predictions by what they trained. All must
end with the same tensors and files.

    python benchmarks/finetune_speed.py [--frames 8] [--epochs 2] [--rounds 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import torch

from olivine.common import sha256_file
from olivine.common.ahead import THREADED
from olivine.downstream.data import CloudExamples
from olivine.downstream.finetune import finetune
from olivine.downstream.losses import Truth, segmentation_loss
from olivine.downstream.network import Segmenter, new_head
from olivine.downstream.predict import predict
from olivine.downstream.settings import FinetuneSettings
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers import index_dataset
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset
from olivine.train.build import seeded_backbone
from olivine.train.checkpoint import load_checkpoint
from olivine.train.settings import load_settings

BATCH = 2


def make_shards(folder: Path, frames: int) -> Path:
    """Synthetic frames with nuScenes' sensors, as shards without images."""
    write_dataset(SyntheticSettings(scenes=1, frames=frames, image_scale=0.1, workers=1), folder / "raw")
    index, _ = index_dataset(folder / "labels" / "frames", "nuscenes", folder / "raw", None)
    generate_labels(index, folder / "labels", LabelSettings("oracle"))
    build_pairs(open_store(folder / "labels"), folder / "pairs", PairSettings(images=False), split="train")
    return folder / "pairs"


def parts(shards: Path, settings: FinetuneSettings) -> list[float]:
    """Seconds of processor time of a step: its frames (read, moved, voxelised, their labels counted), and the network."""
    frames, device, preset = open_shards(shards), torch.device("cpu"), load_settings("cpu")
    examples = CloudExamples(frames, preset.voxels, device, settings.as_augmentation())
    backbone = seeded_backbone(preset, 0)
    model = Segmenter(backbone, new_head(backbone.feature_channels, len(frames.point_classes) + 1, 0))
    taken = []
    for epoch in range(6):
        times = [time.process_time()]
        batch = examples.batch([(epoch, number % len(frames)) for number in range(BATCH)])
        truth = Truth.of(batch.label)
        times.append(time.process_time())
        segmentation_loss(model(batch.inputs), truth).backward()
        taken.append((times[1] - times[0], time.process_time() - times[1]))
    return [statistics.median(values) for values in zip(*taken[1:])]


def run(shards: Path, out: Path, settings: FinetuneSettings) -> tuple[float, float, str]:
    """Median seconds of a step, seconds of a predicted frame, and the SHA-256 of weights and files."""
    network = load_settings("cpu")
    finetune(None, shards, shards, out / "run", settings, random=True, network=network)
    with open(out / "run" / "steps.csv", newline="") as handle:
        steps = [float(row["seconds"]) for row in csv.DictReader(handle)]
    begun = time.perf_counter()
    summary = predict(out / "run", shards, out / "files", accelerator="cpu")
    of_frame = (time.perf_counter() - begun) / summary.frames
    content = load_checkpoint(out / "run")
    tensors = [*content["backbone_state"].values(), *content["head_state"].values()]
    written = [sha256_file(path) for path in sorted((out / "files").rglob("*.bin"))]
    return statistics.median(steps[1:]), of_frame, str([float(t.double().sum()) for t in tensors]) + str(written)


def main() -> None:
    """Run both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = FinetuneSettings(epochs=options.epochs, batch=BATCH, accelerator="cpu")
    found: dict[str, list[tuple[float, float]]] = {"where they are taken": [], "ahead in a thread": []}
    ends = set()
    with tempfile.TemporaryDirectory() as name:
        shards = make_shards(Path(name), options.frames)
        made, computed = parts(shards, settings)
        for number in range(options.rounds):
            for way, results in found.items():
                THREADED.discard("cpu")
                if way == "ahead in a thread":
                    THREADED.add("cpu")
                step, frame, end = run(shards, Path(name) / f"{number} {way}", settings)
                results.append((step, frame))
                ends.add(end)
    assert len(ends) == 1, "not the same tensors and files"
    print(
        f"a step's processor time, {options.threads} threads: {1000 * made:.0f} ms for its {BATCH} frames, "
        f"{1000 * computed:.0f} ms for the network and its gradient"
    )
    for way, results in found.items():
        step, frame = (min(values) for values in zip(*results))
        print(f"frames made {way:20}: {step:.3f} s a step of fine-tuning, {frame:.3f} s a predicted frame")


if __name__ == "__main__":
    main()
