"""How long a detector's parts take beside plain versions of them: suppression, overlaps, a training step, the evaluation.

    python benchmarks/detection_speed.py [--boxes 4096] [--step]

Suppression and overlaps are compared with shapely's polygons on the same boxes, and must agree. ``--step`` also times training
steps of SECOND on random clouds with the voxels of the pre-training (a minute on two cores).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from olivine.downstream.detection.anchors import KITTI_ANCHORS, assign
from olivine.downstream.detection.losses import LossWeights, detection_loss
from olivine.downstream.detection.rotated import bev_iou, bev_of, suppress
from olivine.downstream.detection.second import VOXELS, Second
from olivine.downstream.detection.training_scenes import Sample, make_batch
from olivine.train.backbone import build_backbone


def boxes_of(count: int, generator: np.random.Generator) -> np.ndarray:
    """Boxes as a head gives them: several around each object."""
    objects = generator.uniform([0, -40, -2], [70, 40, 0], (max(1, count // 20), 3))
    place = objects[generator.integers(0, len(objects), count)] + generator.normal(0, 0.4, (count, 3))
    size = np.array([3.9, 1.6, 1.5]) * np.exp(generator.normal(0, 0.1, (count, 3)))
    return np.c_[place, size, generator.uniform(-3, 3, count)]


def best_of(times: int, call: Callable[[], Any]) -> tuple[float, Any]:
    seconds, result = [], None
    for _ in range(times):
        begun = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds), result


def plain_suppress(boxes: np.ndarray, score: np.ndarray, threshold: float) -> list[int]:
    """The greedy rule over shapely's polygons."""
    import shapely

    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * boxes[:, None, 3:5]
    turned = np.stack([corners[..., 0] * c[:, None] - corners[..., 1] * s[:, None],
                       corners[..., 0] * s[:, None] + corners[..., 1] * c[:, None]], -1)  # fmt: skip
    shapes = shapely.polygons(turned + boxes[:, None, :2])
    area = shapely.area(shapes)
    kept: list[int] = []
    for i in np.argsort(-score, kind="stable"):
        shared = shapely.area(shapely.intersection(shapes[i], shapes[kept])) if kept else np.zeros(0)
        if not (shared > threshold * (area[i] + area[kept] - shared)).any():
            kept.append(int(i))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=4096)
    parser.add_argument("--step", action="store_true")
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    boxes, score = boxes_of(given.boxes, generator), generator.uniform(size=given.boxes)
    suppress(boxes[:4], score[:4], 0.01)  # compiled
    ours, kept = best_of(3, lambda: suppress(boxes, score, 0.01))
    plain, wanted = best_of(1, lambda: plain_suppress(boxes, score, 0.01))
    assert kept.tolist() == wanted
    print(f"suppression of {given.boxes} boxes to {len(kept)}: {1e3 * ours:.1f} ms, {plain / ours:.0f} times shapely's")
    bev_iou(bev_of(boxes[:2]), bev_of(boxes[:2]))
    seconds, _ = best_of(3, lambda: bev_iou(bev_of(boxes[:1000]), bev_of(boxes[:1000])))
    print(f"IoU of a million pairs: {1e3 * seconds:.1f} ms")
    if given.step:
        torch.manual_seed(0)
        network = Second(build_backbone("voxelnet"), VOXELS["pretraining"])
        points = generator.uniform([0, -40, -2, 1], [70, 40, 1, 2], (20_000, 4)).astype(np.float32)
        sample = Sample(points, boxes[:20].astype(np.float32), np.ones(20, np.int64))
        batch = make_batch([sample] * 2, ["a", "b"], VOXELS["pretraining"], 16_000, torch.device("cpu"))
        anchors = network.anchors.view(-1, 7)

        def step() -> None:
            targets = assign(network.anchors, batch.boxes, batch.kinds, KITTI_ANCHORS)
            out = network(batch.clouds)
            terms = detection_loss(out.logit, out.code, out.direction, targets, anchors, LossWeights())
            torch.stack(list(terms.values())).sum().backward()

        targets_s, _ = best_of(2, lambda: assign(network.anchors, batch.boxes, batch.kinds, KITTI_ANCHORS))
        step_s, _ = best_of(2, step)
        print(
            f"a step of 2 clouds, {len(batch.clouds.voxels.feature)} voxels: {step_s:.2f} s, of which targets {targets_s:.3f} s"
        )


if __name__ == "__main__":
    main()
