"""Images a second of grounded-sam against the usual loop, same weights, same images, same boxes, in one run.

The usual loop: one image at a time, the text encoded with it, one mask-decoder call a box,
both packages through their own predictors. Weights are random at full size (speed does not
depend on their values). Needs about 4 GiB of memory for Swin-T and ViT-B.

    python benchmarks/labelgen_speed.py --threads 2 --images 2
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from olivine.common import gains_by_bfloat16
from olivine.labelgen.grounded import Boxes, GroundedSam
from olivine.labelgen.grounded_sam import _CONFIGS, DinoDetector, SamSegmenter, build_detector, read_config
from olivine.labelgen.labeler import Labelled
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import encode_label_map

CAPTION = ". ".join(DEFAULT_VOCABULARY.classes) + "."
IMAGES = Path(__file__).resolve().parents[1] / "../shared/data/nuscenes-keyframe/samples"


def find_images(folder: Path, count: int) -> list[Path]:
    """Image files of the folder, or noise of the nuScenes size where there are none."""
    found = sorted(folder.rglob("*.jpg"))
    if not found:
        generator = np.random.default_rng(0)
        path = Path(tempfile.mkdtemp()) / "noise.jpg"
        Image.fromarray(generator.integers(0, 256, (900, 1600, 3), np.uint8)).save(path)
        found = [path]
    return [found[i % len(found)] for i in range(count)]


def write_text_encoder(folder: Path) -> Path:
    """Configuration and vocabulary of a text encoder of bert-base's size that knows the 13 prompts."""
    from transformers import BertConfig

    folder.mkdir(parents=True)
    words = sorted({w for name in DEFAULT_VOCABULARY.classes for w in name.split()})
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *words]) + "\n"
    )
    BertConfig().save_pretrained(folder)
    return folder


def random_boxes(count: int) -> torch.Tensor:
    """Boxes of many sizes on a 1600 x 900 image, float32 [count, 4]."""
    generator = np.random.default_rng(1)
    corner = generator.uniform((0, 0), (1400, 700), (count, 2))
    size = generator.uniform(20, 200, (count, 2)) * generator.choice([1, 2], (count, 1))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1).astype(np.float32))


class Clock:
    """Adds up seconds by part."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self.device = device

    def __call__(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, with its time counted under ``part``."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start, cpu = self.now(), time.process_time()
            result = work(*arguments, **named)
            self.seconds[part] += self.now() - start
            self.cpu_seconds[part] += time.process_time() - cpu
            return result

        return timed

    def now(self) -> float:
        """Seconds, when the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def usual_loop(
    detector: Any, sam: Any, paths: list[Path], boxes: torch.Tensor, device: torch.device, clock: Clock
) -> list:
    """One image, text encoded each time, one decoder call a box; returns SAM's logits of each image."""
    from groundingdino.util.inference import predict
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    prepare = DinoDetector.__new__(DinoDetector)
    prepare._sides = (800, 1333)
    kept = []
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        clock("detector", predict)(detector, prepare.preprocess(image), CAPTION, 2.0, 0.25, device=str(device))
        clock("SAM encoder", predictor.set_image)(image)
        label = np.zeros(image.shape[:2], np.uint8)
        logits = []
        for i, box in enumerate(boxes.numpy()):
            masks, _, _ = clock("SAM decoder", predictor.predict)(box=box, multimask_output=False, return_logits=True)
            label[masks[0] > 0] = i % 13 + 1
            logits.append(masks[0].astype(np.float16))
        Image.fromarray(label).save(io.BytesIO(), "PNG")
        kept.append((predictor.features.float().cpu(), logits))
    return kept


class InMemory(GroundedSam):
    """The labeler on networks that are there already, and with given boxes after its own detection."""

    given: torch.Tensor
    networks: tuple[Any, Any]

    def load(self) -> tuple[Any, Any]:
        """The networks that are there already."""
        return self.networks

    def detect(self, images: Any) -> list[Boxes]:
        """Detect, then return the given boxes."""
        super().detect(images)
        count = len(self.given)
        score = torch.linspace(0.3, 0.9, count)
        return [Boxes(self.given, score, score, torch.arange(count) % 13) for _ in images]


def main() -> None:
    """Print the figures as a table and as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=IMAGES)
    parser.add_argument("--detector", default="swin-t")
    parser.add_argument("--sam", default="vit-b")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", default="auto")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch_size = options.batch_size if options.batch_size == "auto" else int(options.batch_size)
    settings = LabelSettings(
        "grounded-sam", device=options.device, precision=options.precision, batch_size=batch_size, overlap="reference"
    )
    labeler = InMemory(settings, DEFAULT_VOCABULARY)
    device = labeler.device
    import groundingdino.config
    import segment_anything

    folder = write_text_encoder(Path(tempfile.mkdtemp()) / "text")
    config = Path(groundingdino.config.__file__).parent / _CONFIGS[options.detector]
    detector = build_detector(read_config(config), folder).to(device)
    sam = segment_anything.sam_model_registry[options.sam.replace("-", "_")]().to(device)
    with torch.no_grad():  # as made, the position biases are zero and all masks alike
        for name, value in sam.named_parameters():
            if "rel_pos" in name:
                value.normal_(0, 0.1)
    boxes = random_boxes(options.boxes)
    paths = find_images(options.folder, options.images)

    usual_loop(detector, sam, paths[:1], boxes[:1], device, Clock(device))  # warm up
    usual = Clock(device)
    start = usual.now()
    expected = usual_loop(detector, sam, paths, boxes, device, usual)
    usual_seconds = usual.now() - start

    labeler.given = boxes
    labeler.networks = (DinoDetector(detector, 800, 1333, device), SamSegmenter(sam, device))
    labeler.prepare()
    ours = Clock(device)

    def run(files: list[Path]) -> list[Labelled]:
        done: list[Labelled] = []
        for i in range(0, len(files), labeler.batch_size):
            images = [np.asarray(Image.open(p).convert("RGB")) for p in files[i : i + labeler.batch_size]]
            result = labeler.label([], images)
            for labelled in result.images:
                assert isinstance(labelled, Labelled)
                encode_label_map(labelled.label, DEFAULT_VOCABULARY.classes)
                done.append(labelled)
        return done

    run(paths[: labeler.batch_size])  # warm up, compile
    labeler.detect = ours("detector", labeler.detect)  # type: ignore[method-assign]
    labeler.segmenter.encode = ours("SAM encoder", labeler.segmenter.encode)  # type: ignore[method-assign]
    labeler._paint = ours("SAM decoder", labeler._paint)  # type: ignore[method-assign]
    start = ours.now()
    run(paths)
    our_seconds = ours.now() - start

    from olivine.labelgen.encoders import number_format

    agree, clear, worst = 0, 0, 0.0
    segmenter = labeler.networks[1]
    for path, (feature, logits) in zip(paths, expected):
        image = np.asarray(Image.open(path).convert("RGB"))
        with torch.inference_mode():
            with number_format(device, labeler.precision):
                mine = SamSegmenter.encode(segmenter, [image]).float()
            worst = max(worst, float((mine.cpu() - feature).norm() / feature.norm()))
            for box, logit in zip(boxes, logits):
                mask = segmenter.mask_logits(mine, box[None].to(device), image.shape[:2])[0].cpu().numpy()
                sure = np.abs(logit.astype(np.float32)) > 0.1
                clear += int(sure.sum())
                agree += int(((mask > 0) == (logit > 0))[sure].sum())
    figures = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads",
        "bfloat16_units": gains_by_bfloat16(device),
        "precision": labeler.precision,
        "batch_size": labeler.batch_size,
        "images": len(paths),
        "usual_images_per_second": len(paths) / usual_seconds,
        "images_per_second": len(paths) / our_seconds,
        "ratio": usual_seconds / our_seconds,
        "usual_seconds": {k: v / len(paths) for k, v in usual.seconds.items()},
        "seconds": {k: v / len(paths) for k, v in ours.seconds.items()},
        # On a machine that others use too, the processor's time is the fairer figure.
        "usual_cpu_seconds": {k: v / len(paths) for k, v in usual.cpu_seconds.items()},
        "cpu_seconds": {k: v / len(paths) for k, v in ours.cpu_seconds.items()},
        "cpu_ratio": sum(usual.cpu_seconds.values()) / sum(ours.cpu_seconds.values()),
        "feature_difference": worst,
        "masks_equal_where_clear": agree / max(clear, 1),
        "clear_pixels": clear,
    }
    print(f"{'seconds an image':<18}{'usual loop':>12}{'olivine':>10}{'usual, CPU':>12}{'olivine, CPU':>14}")
    for part in ("detector", "SAM encoder", "SAM decoder"):
        row = [clock[part] / len(paths) for clock in (usual.seconds, ours.seconds, usual.cpu_seconds, ours.cpu_seconds)]
        print(f"{part:<18}{row[0]:>12.2f}{row[1]:>10.2f}{row[2]:>12.2f}{row[3]:>14.2f}")
    print(f"{'all':<18}{usual_seconds / len(paths):>12.2f}{our_seconds / len(paths):>10.2f}")
    print(f"{figures['ratio']:.2f} times the images a second ({labeler.precision}, batches of {labeler.batch_size})")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
