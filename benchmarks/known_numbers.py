"""What ``labelgen/known.py`` costs: processor time that it adds to a batch of labelgen. No GPU is needed.

    python benchmarks/known_numbers.py [--repeats 20000]

On a GPU each call of torch in a batch passes through it. Counted here are those of groundingdino-py's Swin-T detector and
segment-anything's ViT-B at their full depth, on two small images with 20 boxes each; timed is what it adds to a call that
has nothing to do with known numbers, as nearly all have.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import groundingdino.config
import numpy as np
import segment_anything
import torch
from labelgen_speed import InMemory, random_boxes, write_text_encoder

from olivine.labelgen.grounded_sam import _CONFIGS, DinoDetector, SamSegmenter, build_detector, read_config
from olivine.labelgen.known import KnownNumbers
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.settings import LabelSettings


class Counting(KnownNumbers):
    """Counts what passes."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As the class's."""
        type(self).calls += 1
        return super().__torch_function__(func, types, args, kwargs)


def added(call: Callable[[], Any], repeats: int) -> float:
    """Microseconds of processor time that it adds to a call."""
    found = {}
    for way in (nullcontext, KnownNumbers, nullcontext, KnownNumbers):
        with torch.inference_mode(), way():
            start = time.process_time()
            for _ in range(repeats):
                call()
            found[way] = time.process_time() - start
    return 1e6 * (found[KnownNumbers] - found[nullcontext]) / repeats


def main() -> None:
    """Print the calls of a batch, what is added to one, and the product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20000)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    settings = LabelSettings("grounded-sam", device="cpu", precision="float32", batch_size=2)
    labeler = InMemory(settings, DEFAULT_VOCABULARY)
    folder = write_text_encoder(Path(tempfile.mkdtemp()) / "text")
    config = Path(groundingdino.config.__file__).parent / _CONFIGS["swin-t"]
    detector = build_detector(read_config(config), folder)
    sam = segment_anything.sam_model_registry["vit_b"]()
    labeler.given = random_boxes(20)
    labeler.networks = (DinoDetector(detector, 224, 400, labeler.device), SamSegmenter(sam, labeler.device))
    labeler.prepare()
    images = [np.random.default_rng(i).integers(0, 255, (90, 160, 3), dtype=np.uint8) for i in range(2)]
    with torch.inference_mode(), Counting():
        labeler._label_piece(images)
    x, layer = torch.ones(4, 4), torch.nn.Linear(4, 4)
    calls: dict[str, Callable[[], Any]] = {
        "x + x": lambda: x + x,
        "x.shape": lambda: x.shape,
        "x[1:]": lambda: x[1:],
        "a linear layer": lambda: torch.nn.functional.linear(x, layer.weight, layer.bias),
    }
    found = {name: added(call, options.repeats) for name, call in calls.items()}
    print(", ".join(f"{name}: {micro:+.1f} µs" for name, micro in found.items()))
    mean = statistics.mean(found.values())
    print(f"{Counting.calls:,} calls a batch of two images, {mean:.1f} µs each: {Counting.calls * mean / 1000:.0f} ms")


if __name__ == "__main__":
    main()
