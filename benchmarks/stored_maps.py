"""Training steps from stored maps beside steps with the encoder in the loop, on the same frames and views, in one run.

    olivine synth && olivine labelgen && olivine build-pairs
    python benchmarks/stored_maps.py data/pairs/nuscenes/train [--encoder small] [--size 224 420] [--steps 8]

Prints bytes a frame of each type of store, frames a second of making it, frames a second of training (batches of two,
clouds augmented, images not), the largest difference of a step's loss, and how long a single map takes to read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from olivine.pairs.shards import open_shards
from olivine.train.build import build_encoder
from olivine.train.encoder import find_encoder
from olivine.train.encoders._store import store_maps
from olivine.train.loop import pretrain
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
            print(
                f"                      a map is read in {1e3 * read:.2f} ms; loss of the first step off by "
                f"{abs(found[0] - expected[0]) / expected[0]:.1e}, of any by "
                f"{(np.abs(found - expected) / expected).max():.1e}"
            )


if __name__ == "__main__":
    main()
