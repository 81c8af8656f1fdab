"""A training step of a preset against the usual step of this family, in one run, on the real keyframe.

The usual step: the encoder with its batch norms, all images at once, channels first; two heads on the whole map,
upsampled to maps of the images' size, normalised, looked up at the pairs; similarities, exponentials and their
logarithms as whole matrices through autograd. Ours: batch norms folded, channels last, a few images at a time; features
sampled at the chosen pairs and the heads applied to those; the losses in blocks with their gradients made in the same
pass. Network, voxels, pairs, weights and losses are the same; the losses must agree to 1e-4. An encoder whose weights
do not come with the package has random ones: they change no time.

Each way runs in a process of its own, so that its peak memory is its own.

    python benchmarks/pretrain_speed.py [--config cpu|paper] [--steps 3] [--threads 2] [--dtype float32|bfloat16]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers import open_dataset
from olivine.readers.index import write_index
from olivine.train.augment import generator_of, make_sample
from olivine.train.backbone import Clouds
from olivine.train.batch import Batch, attach_to_places, collate
from olivine.train.build import build_model, classes_of_pairs, columns_of
from olivine.train.encoder import ImageEncoder
from olivine.train.forward import Distiller
from olivine.train.methods._vmf_statistics import VmfStatistics
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.prepare import prepare_pass
from olivine.train.sampling import draw_without_replacement, sampling_probability
from olivine.train.sampling import generator_of as draw_generator
from olivine.train.settings import PretrainSettings, load_settings
from olivine.train.vmf import log_normalizer
from olivine.train.voxelize import voxelize

STEP = 3  # after the warm-up of a run of four
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def build_shards(folder: Path) -> Path:
    """The real keyframe's shards."""
    root = SHARED / "nuscenes-keyframe"
    frames = list(open_dataset("nuscenes", root).frames())
    index = write_index(folder / "labels" / "frames", frames, dataset="nuscenes", version="v1.0-mini", root=root)
    generate_labels(index, folder / "labels", LabelSettings("import", camseg=SHARED / "nuscenes-keyframe-camseg"))
    build_pairs(open_store(folder / "labels"), folder / "pairs", PairSettings(), split=frames[0].split)
    return folder / "pairs"


class UsualStep:
    """The step as public code has it."""

    def __init__(self, encoder: ImageEncoder, model: Distiller, settings: PretrainSettings) -> None:
        self.network = encoder.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.scale, self.shift = encoder.pixel_scale, encoder.pixel_shift
        self.model, self.settings = model, settings

    def __call__(self, batch: Batch, statistics: VmfStatistics, class_count: Tensor) -> Tensor:
        """The loss of a batch whose pixels are whole numbers."""
        settings = self.settings
        voxels = voxelize(batch.points, list(batch.point_count), settings.voxels)
        cells = self.model.backbone.encode(Clouds(batch.points, batch.point_cloud(), voxels, settings.voxels)).cells
        batch, pair_voxel = attach_to_places(batch, voxels, voxels.inverse)
        chance = sampling_probability(batch.pair_density, batch.pair_label, class_count)
        total, pairs = len(pair_voxel), settings.method.pairs
        drawn_ppkt = draw_without_replacement(None, total, pairs, draw_generator(settings.seed, STEP, 0, 0))
        drawn_wcd = draw_without_replacement(chance, total, pairs, draw_generator(settings.seed, STEP, 0, 1))
        method, tau = self.model.method, settings.method.temperature
        g_all = nn.functional.normalize(method.point_head(cells).feature, dim=1)
        g_category_all = nn.functional.normalize(method.category_point_head(cells).feature, dim=1)
        pixel = batch.pair_uv.long()

        def embedding(maps: Tensor, rows: Tensor) -> Tensor:
            return maps[batch.pair_camera[rows], :, pixel[rows, 1], pixel[rows, 0]]

        with torch.no_grad():
            features = self.network(batch.image.permute(0, 3, 1, 2).float() * self.scale + self.shift)  # type: ignore[operator]

        def head_map(head: nn.Linear) -> Tensor:
            small = nn.functional.conv2d(features, head.weight[:, :, None, None], head.bias)
            size = (settings.image.height, settings.image.width)
            large = nn.functional.interpolate(small, size, mode="bilinear", align_corners=True)
            return nn.functional.normalize(large, dim=1)

        f_map, f_category_map = head_map(method.pixel_head), head_map(method.category_pixel_head)
        z = torch.exp(g_all[pair_voxel[drawn_ppkt]] @ embedding(f_map, drawn_ppkt).T / tau)
        ppkt = -torch.log(z.diagonal() / z.sum(1)).mean()
        z = torch.exp(g_category_all[pair_voxel[drawn_wcd]] @ embedding(f_category_map, drawn_wcd).T / tau)
        label = batch.pair_label[drawn_wcd]
        same = (label[:, None] == label[None, :]).float()
        share = z / z.sum(1, keepdim=True)
        if settings.method.wcd_form == "reference":
            wcd = -torch.log((share * same).sum(1)).mean()
        else:
            wcd = -((torch.log(share) * same).sum(1) / same.sum(1)).mean()
        direction, kappa, _ = statistics.parameters_of_classes()
        label = batch.pair_label
        cosine = (g_category_all[pair_voxel] * direction.float()[label]).sum(1)
        scr = (-log_normalizer(kappa, 64).float()[label] - kappa.float()[label] * cosine).mean()
        weights = settings.method
        return weights.ppkt_weight * ppkt + weights.wcd_weight * wcd + weights.scr_weight * scr


def encoder_of(settings: PretrainSettings, *, fold: bool, dtype: str) -> ImageEncoder:
    """The preset's encoder, with the weights of the package or random ones of a seed."""
    weights = None if settings.image.encoder == "small" else "random"
    torch.manual_seed(0)
    return ImageEncoder(settings.image.encoder, weights, fold=fold, dtype=getattr(torch, dtype))


def work(way: str, folder: Path, config: str, steps: int, threads: int, dtype: str) -> None:
    """Run one way's steps and print what they took."""
    torch.set_num_threads(threads)
    # Pixels rounded in both: the usual way looks them up.
    settings = load_settings(config, ["run.batch=2", "run.group=2", "round_pixels=true", f"image.dtype={dtype}"])
    shards = open_shards(folder / "pairs")
    record = shards[0]
    size = (settings.image.height, settings.image.width)
    columns = columns_of(settings)
    batch = collate([make_sample(record, 0, size, settings.augment, generator_of(0, e, 0), columns) for e in (0, 1)])
    names, class_count = classes_of_pairs(shards, settings)
    encoder = encoder_of(settings, fold=way == "ours", dtype=dtype if way == "ours" else "float32")
    model = build_model(settings, encoder.channels, names, 4)
    statistics = model.method.statistics
    generator = torch.Generator().manual_seed(0)
    g = nn.functional.normalize(torch.randn(500, 64, generator=generator), dim=1)
    sums = statistics.class_sums(g, torch.arange(500) % len(class_count), len(class_count))
    statistics.update(sums, sums[:, -1].long())
    usual = UsualStep(encoder, model, settings) if way == "usual" else None
    pixels = None if usual else EncodedFeatures(encoder, "align_corners")

    def step() -> float:
        model.zero_grad()
        if usual:
            loss = usual(batch, statistics, class_count)
        else:
            assert pixels is not None
            loss, _, _ = model(prepare_pass(batch, model, pixels, class_count), STEP, 0)
        loss.backward()
        return loss.item()

    times, processor = [], []
    for _ in range(steps + 1):  # the first is a warm-up
        start, start_processor = time.perf_counter(), time.process_time()
        loss = step()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    best = {"seconds": min(times[1:]), "processor": min(processor[1:])}
    print(json.dumps({"loss": loss, **best, "peak_gib": peak}))


def main() -> None:
    """Run both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cpu", help="the preset (default cpu)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of our encoder")
    parser.add_argument("--way", choices=["usual", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options.way, options.folder, options.config, options.steps, options.threads, options.dtype)
        return
    if not SHARED.exists():
        print(f"skipped: no real sample data at {SHARED}")
        return
    folder = Path(tempfile.mkdtemp())
    try:
        build_shards(folder)
        found = {}
        for way in ("usual", "ours"):
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--steps", str(options.steps)]
            command += ["--config", options.config, "--threads", str(options.threads), "--dtype", options.dtype]
            found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{way:6} {found[way]['seconds']:7.2f} s a step ({found[way]['processor']:.2f} of processor time), peak "
                f"{found[way]['peak_gib']:.2f} GiB, loss {found[way]['loss']:.6f}",
                flush=True,
            )
        usual, ours = found["usual"], found["ours"]
        print(
            f"ours against the usual step ({options.config}, {options.dtype}, {options.threads} threads, batch of 2 frames): "
            f"{usual['seconds'] / ours['seconds']:.2f} times the steps per second "
            f"({usual['processor'] / ours['processor']:.2f} by processor time, for a machine that does other things), "
            f"{100 * ours['peak_gib'] / usual['peak_gib']:.0f} % of the peak memory, "
            f"losses differ by {abs(ours['loss'] - usual['loss']) / abs(usual['loss']):.1e} relative"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
