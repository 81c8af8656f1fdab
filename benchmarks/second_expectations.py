"""Make the values of OpenPCDet's SECOND that the tests compare with: anchors, targets, codes, losses, decoding, schedule.

    git clone https://github.com/open-mmlab/OpenPCDet
    python benchmarks/second_expectations.py OpenPCDet tests/downstream/detection/second_expectations.npz

OpenPCDet's own Python (commit 8cacccec) runs on the CPU; its compiled operators and spconv are stubs, for nothing of them
is called. The head and the 2D backbone are small; also written are the names and shapes of the full ones.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import yaml

RANGE = [0.0, -3.2, -3.0, 6.4, 3.2, 1.0]
CELLS = np.array([128, 128, 40])


class Section(dict):
    """A mapping whose keys are attributes too, as easydict has it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def section(value: Any) -> Any:
    if isinstance(value, dict):
        return Section({k: section(v) for k, v in value.items()})
    return [section(v) for v in value] if isinstance(value, list) else value


def load_reference(checkout: Path) -> None:
    """Make ``pcdet`` importable without its compiled parts."""
    for name in ("pcdet", "pcdet.models", "pcdet.models.dense_heads", "pcdet.models.backbones_2d", "pcdet.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    stubs = ("SharedArray", "pcdet.ops", "pcdet.ops.iou3d_nms", "pcdet.ops.roiaware_pool3d")
    for name in (*stubs, "pcdet.ops.iou3d_nms.iou3d_nms_utils", "pcdet.ops.roiaware_pool3d.roiaware_pool3d_utils"):
        sys.modules[name] = MagicMock()
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    sys.path.insert(0, str(checkout / "tools" / "train_utils"))


def boxes_of(count: int, generator: np.random.Generator) -> np.ndarray:
    """Boxes [N, 8] with their class, some near anchors."""
    sizes = np.array([[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [1.76, 0.6, 1.73]])
    kind = generator.integers(0, 3, count)
    place = generator.uniform([0.3, -3, -1.5], [6, 3, -0.5], (count, 3))
    heading = generator.choice([0, 1.57, np.pi, generator.uniform(-3, 3)], count) + generator.normal(0, 0.1, count)
    size = sizes[kind] * np.exp(generator.normal(0, 0.1, (count, 3)))
    return np.c_[place, size, heading, kind + 1].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    load_reference(given.checkout)
    heads = importlib.import_module("pcdet.models.dense_heads.anchor_head_single")
    planes = importlib.import_module("pcdet.models.backbones_2d.base_bev_backbone")
    model = section(yaml.safe_load((given.checkout / "tools/cfgs/kitti_models/second.yaml").read_text())["MODEL"])
    names = ["Car", "Pedestrian", "Cyclist"]
    saved: dict[str, np.ndarray] = {}

    torch.manual_seed(1)
    small = section(
        {
            "LAYER_NUMS": [1, 1],
            "LAYER_STRIDES": [1, 2],
            "NUM_FILTERS": [4, 6],
            "UPSAMPLE_STRIDES": [1, 2],
            "NUM_UPSAMPLE_FILTERS": [5, 3],
        }
    )
    plane = planes.BaseBEVBackbone(small, 7).eval()
    head = heads.AnchorHeadSingle(model.DENSE_HEAD, 8, 3, names, CELLS, RANGE, True)
    torch.nn.init.normal_(head.conv_box.weight, std=0.05)
    torch.nn.init.normal_(head.conv_cls.weight, std=0.5)
    for module in plane.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    features = torch.randn(2, 7, 16, 16)
    generator = np.random.default_rng(2)
    clouds = [boxes_of(9, generator), boxes_of(5, generator)]
    padded = torch.zeros(2, 9, 8)
    for i, boxes in enumerate(clouds):
        padded[i, : len(boxes)] = torch.from_numpy(boxes)
    with torch.no_grad():
        data = {"spatial_features": features, "gt_boxes": padded, "batch_size": 2}
        data = plane(data)
        head.train()
        data = head(data)
        losses = head.get_loss()[1]
    out = head.forward_ret_dict
    saved |= {f"plane {name}": value.numpy() for name, value in plane.state_dict().items()}
    saved |= {f"head {name}": value.numpy() for name, value in head.state_dict().items()}
    saved |= {f"boxes {i}": boxes for i, boxes in enumerate(clouds)}
    saved["features"] = features.numpy()
    saved["features 2d"] = data["spatial_features_2d"].numpy()
    saved["anchors"] = torch.cat(head.anchors, -3).numpy()
    saved["labels"] = out["box_cls_labels"].numpy()
    saved["codes"] = out["box_reg_targets"].numpy()
    saved["logits"] = data["batch_cls_preds"].numpy()
    saved["decoded"] = data["batch_box_preds"].numpy()
    saved["losses"] = np.array([losses[f"rpn_loss_{name}"] for name in ("cls", "loc", "dir")])

    full = planes.BaseBEVBackbone(model.BACKBONE_2D, 256)
    whole = heads.AnchorHeadSingle(
        model.DENSE_HEAD, 512, 3, names, np.array([1408, 1600, 40]), [0, -40, -3, 70.4, 40, 1]
    )
    shapes = [f"backbone_2d.{n} {list(v.shape)}" for n, v in full.state_dict().items()]
    shapes += [f"dense_head.{n} {list(v.shape)}" for n, v in whole.state_dict().items()]
    saved["full shapes"] = np.array(shapes)

    optimization = importlib.import_module("optimization.learning_schedules_fastai")
    settings = section(
        yaml.safe_load((given.checkout / "tools/cfgs/kitti_models/second.yaml").read_text())
    ).OPTIMIZATION
    held = types.SimpleNamespace(lr=0.0, mom=0.0)
    optimization.LRSchedulerStep.__init__.__globals__["OptimWrapper"] = types.SimpleNamespace
    cycle = optimization.OneCycle(held, 50, settings.LR, list(settings.MOMS), settings.DIV_FACTOR, settings.PCT_START)
    rates = []
    for step in range(50):
        cycle.step(step)
        rates.append((held.lr, held.mom))
    saved["one cycle"] = np.array(rates)
    np.savez_compressed(given.out, **saved)
    positive = int((saved["labels"] > 0).sum())
    print(f"{len(saved)} arrays in {given.out}: {positive} matched anchors, losses {saved['losses'].round(4)}")


if __name__ == "__main__":
    main()
