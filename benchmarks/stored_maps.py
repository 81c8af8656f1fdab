"""Training steps from stored maps beside steps with the encoder in the loop, on the same frames and views, in one run.

    olivine synth && olivine labelgen && olivine build-pairs
    python benchmarks/stored_maps.py data/pairs/nuscenes/train [--encoder small] [--size 224 420] [--steps 8]

Prints bytes a frame of each type of store, frames a second of making it, frames a second of training (batches of two,
clouds augmented, images not), the largest difference of a step's loss, and how long a single map takes to read. Of crops it
prints how alike the features of the same pairs are when the encoder sees the crop and when they are looked up in the map
of the whole image: the cosine, each channel's mean taken out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from olivine.pairs.shards import ShardSet, open_shards
from olivine.train.augment import generator_of, make_sample
from olivine.train.batch import collate
from olivine.train.build import build_encoder, columns_of
from olivine.train.encoder import ImageEncoder, find_encoder
from olivine.train.encoders._store import store_maps
from olivine.train.encoders._stored import StoredFeatures
from olivine.train.loop import pretrain
from olivine.train.pixel_features import EncodedFeatures
from olivine.train.settings import PretrainSettings, load_settings


def losses(folder: Path) -> np.ndarray:
    """Of each step of a run."""
    table = np.genfromtxt(folder / "steps.csv", delimiter=",", names=True)
    return np.atleast_1d(table["loss"])


def train(settings: PretrainSettings, out: Path) -> tuple[float, np.ndarray]:
    """Frames a second after the first step, and the losses."""
    pretrain(settings, out)
    table = np.genfromtxt(out / "steps.csv", delimiter=",", names=True)
    return settings.run.batch * (len(table) - 1) / float(table["seconds"][1:].sum()), losses(out)


def crops(settings: PretrainSettings, shards: ShardSet, encoder: ImageEncoder, maps: Path) -> torch.Tensor:
    """The cosines of the pairs of some frames."""
    size, found = (settings.image.height, settings.image.width), []
    reading = replace(settings, image=replace(settings.image, stored=str(maps)))
    sources = EncodedFeatures(encoder, settings.image.feature_grid), StoredFeatures(maps, reading, shards)
    for frame in range(min(6, len(shards))):
        record, generators = shards[frame], [generator_of(0, 0, frame) for _ in sources]
        columns = columns_of(settings), columns_of(reading)
        samples = [make_sample(record, frame, size, settings.augment, *of) for of in zip(generators, columns)]
        batches = [collate([sample]) for sample in samples]
        pairs = torch.arange(len(batches[0].pair_frame))
        found.append(torch.stack([source(batch, pairs) for source, batch in zip(sources, batches)]))
    features = torch.cat(found, 1)
    return torch.nn.functional.cosine_similarity(*(features - features.mean(1, keepdim=True)), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--encoder", default="small")
    parser.add_argument("--size", type=int, nargs=2, default=(112, 208))
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    height, width = given.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changes = [f"data.shards={given.shards}", f"image.encoder={given.encoder}", f"image.height={height}"]
        changes += [f"image.width={width}", "augment.crop=false", "augment.flip_image=0", f"run.steps={given.steps}"]
        changes += ["method.scr=false", "data.workers=0"]
        if given.encoder != "small":  # the same random weights everywhere
            torch.save(find_encoder(given.encoder)().state_dict(), folder / "weights.pth")
            changes.append(f"image.weights={folder / 'weights.pth'}")
        settings = load_settings("cpu", changes)
        shards, encoder = open_shards(given.shards), build_encoder(settings, torch.device("cpu"))
        rate, expected = train(settings, folder / "encoder")
        print(f"{given.encoder}, {height} x {width}, {len(shards)} frames of {len(shards.cameras)} images")
        print(f"encoder in the loop   {rate:6.2f} frames a second")
        for dtype in ("float16", "int8"):
            begun = time.perf_counter()
            maps, count = store_maps(shards, settings, encoder, folder / "maps", dtype)
            made = count / (time.perf_counter() - begun)
            size = sum(maps.size_of(n) for n in range(len(shards.shard_ranges))) / len(shards)
            begun = time.perf_counter()
            for camera in range(len(shards.cameras)):
                maps.read(0, 0, camera, False)
            read = (time.perf_counter() - begun) / len(shards.cameras)
            rate, found = train(load_settings("cpu", [*changes, f"image.stored={maps.folder}"]), folder / dtype)
            print(f"stored as {dtype:10}  {rate:6.2f} frames a second; {size:,.0f} bytes a frame, made at {made:.2f}")
            if dtype == "float16":
                crop = replace(settings, augment=replace(settings.augment, crop=True))
                low, middle = np.quantile(crops(crop, shards, encoder, maps.folder).numpy(), (0.1, 0.5))
                print(f"                      features in crops: cosine {middle:.2f}, a tenth under {low:.2f}")
            print(
                f"                      a map is read in {1e3 * read:.2f} ms; loss of the first step off by "
                f"{abs(found[0] - expected[0]) / expected[0]:.1e}, of any by "
                f"{(np.abs(found - expected) / expected).max():.1e}"
            )


if __name__ == "__main__":
    main()
