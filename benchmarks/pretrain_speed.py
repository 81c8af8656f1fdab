"""A training step of a preset against the usual step of this family, in one run, on the real keyframe.

The usual step: the encoder with its batch norms, all images at once, channels first; two heads on the whole map,
upsampled to maps of the images' size, normalised, looked up at the pairs; similarities, exponentials and their
logarithms as whole matrices through autograd. Ours: batch norms folded, channels last, a few images at a time; features
sampled at the chosen pairs and the heads applied to those; the losses in blocks with their gradients made in the same
pass. Network, voxels, pairs, weights and losses are the same; the losses must agree to 1e-4. An encoder whose weights
do not come with the package has random ones: they change no time.

Each way runs in a process of its own, so that its peak memory is its own.

First what reads every pair is timed alone, on one contrast group of the preset: L_kl with its gradient, the class sums of
the warm-up, and the matrix that the embeddings' effective rank is found from; from the gathered embeddings of all pairs,
and from how many pairs of each class each voxel has, as the step does it.

    python benchmarks/pretrain_speed.py [--config cpu|paper] [--steps 3] [--threads 2] [--dtype float32|bfloat16]
    python benchmarks/pretrain_speed.py --terms [--config cpu|paper] [--groups 1]     # the first part alone
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
from olivine.train.batch import Batch, collate
from olivine.train.build import build_model, classes_of_pairs, columns_of
from olivine.train.encoder import ImageEncoder
from olivine.train.forward import Distiller
from olivine.train.group import Points
from olivine.train.methods._vmf_statistics import VmfStatistics
from olivine.train.objectives import class_sums, consistency
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.prepare import prepare_pass
from olivine.train.sampling import draw_without_replacement, sampling_probability
from olivine.train.sampling import generator_of as draw_generator
from olivine.train.settings import PretrainSettings, load_settings
from olivine.train.vmf import gram_of, log_normalizer
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
        batch = batch.pairs_inside(voxels.inverse >= 0)
        pair_voxel = voxels.inverse[batch.pair_point]
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
    sums = torch.zeros(len(class_count), 65).index_add_(
        0, torch.arange(500) % len(class_count), nn.functional.pad(g, (0, 1), value=1)
    )
    statistics.update(sums.double(), sums[:, -1].long())
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


class KnownFeatures:
    """Embeddings at every voxel that are there already."""

    def __init__(self, point: Tensor) -> None:
        self.embed = lambda head: point


def pair_terms(folder: Path, config: str, steps: int, threads: int, groups: int) -> None:
    """Print what the terms of every pair take, from gathered embeddings and from counts."""
    torch.set_num_threads(threads)
    settings = load_settings(config)
    shards = open_shards(folder / "pairs")
    size, columns = (settings.image.height, settings.image.width), ("pair_label",)
    draws = [generator_of(0, epoch, 0) for epoch in range(groups * settings.run.group)]
    batch = collate([make_sample(shards[0], 0, size, settings.augment, draw, columns) for draw in draws])
    voxels = voxelize(batch.points, list(batch.point_count), settings.voxels)
    batch = batch.pairs_inside(voxels.inverse >= 0)
    place = voxels.inverse[batch.pair_point]
    own = int((batch.pair_frame < settings.run.group).sum())  # of the pass's first group
    label, place, classes = batch.pair_label[:own], place[:own], len(classes_of_pairs(shards, settings)[0])
    generator = torch.Generator().manual_seed(0)
    point = nn.functional.normalize(torch.randn(len(voxels.first), 64, generator=generator), dim=1).requires_grad_()
    direction = nn.functional.normalize(torch.randn(classes, 64, generator=generator), dim=1)
    kappa, seen = torch.linspace(1, 60, classes), torch.ones(classes, dtype=torch.bool)
    constant, pull = -log_normalizer(kappa, 64), kappa[:, None] * direction
    points = Points(KnownFeatures(point), place)  # type: ignore[arg-type]

    def gathered_loss() -> Tensor:
        pair_pull = (point.index_select(0, place) * pull.index_select(0, label)).sum(1)
        return torch.autograd.grad((constant.index_select(0, label) - pair_pull).mean(), point)[0]

    def loss() -> Tensor:
        point, pairs = points.by_class(label, classes, nn.Identity())
        value = consistency(class_sums(point, pairs), pairs.sum(0), constant, pull, seen)
        return torch.autograd.grad(value, point)[0]

    def gathered_sums() -> Tensor:
        member = nn.functional.one_hot(label, classes).double()
        distinct = torch.unique(place * classes + label)
        places = torch.bincount(distinct % classes, minlength=classes)
        return torch.cat([member.T @ point.detach().index_select(0, place).double(), places[:, None]], 1)

    def sums() -> Tensor:
        point, pairs = points.by_class(label, classes, nn.Identity())
        return torch.cat([class_sums(point.detach(), pairs), (pairs > 0).sum(0)[:, None]], 1)

    def gathered_matrix() -> Tensor:
        wide = point.detach().index_select(0, place).double()
        return wide.T @ wide

    def matrix() -> Tensor:
        point, pairs = points.by_class(label, classes, nn.Identity())
        return gram_of(point.detach(), pairs.sum(1))

    print(f"{own:,} pairs in a pass of {len(point):,} voxels, {classes} classes ({config}, {threads} threads)")
    print("                             gathered   counted   largest difference")
    terms = (("L_kl and its gradient", gathered_loss, loss), ("class sums", gathered_sums, sums))
    for name, before, after in (*terms, ("matrix of the effective rank", gathered_matrix, matrix)):
        best = [float("inf")] * 2
        for _ in range(steps + 1):
            for i, way in enumerate((before, after)):
                start = time.process_time()
                way()
                best[i] = min(best[i], time.process_time() - start)
        apart = (before() - after()).abs().max() / before().abs().max()
        print(f"{name:28} {1000 * best[0]:6.1f} ms {1000 * best[1]:6.1f} ms   {float(apart):.0e} relative")


def main() -> None:
    """Run both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cpu", help="the preset (default cpu)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of our encoder")
    parser.add_argument("--terms", action="store_true", help="only what reads every pair")
    parser.add_argument("--groups", type=int, default=1, help="contrast groups in a pass, for what reads every pair")
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
        pair_terms(folder, options.config, options.steps, options.threads, options.groups)
        if options.terms:
            return
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
