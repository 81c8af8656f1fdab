"""SECOND's parts against OpenPCDet's own values, and the network as a whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from olivine.common import OlivineError
from olivine.downstream.detection.anchors import KITTI_ANCHORS, AnchorSettings, assign, make_anchors
from olivine.downstream.detection.boxes import aligned_iou, decode, encode, wrap
from olivine.downstream.detection.losses import LossWeights, detection_loss
from olivine.downstream.detection.schedule import CycleSettings, rate_and_momentum
from olivine.downstream.detection.second import (
    VOXELS,
    AnchorHead,
    HeadOutput,
    PlaneBackbone,
    PlaneSettings,
    Second,
    Selection,
)
from olivine.train.backbone import Clouds, build_backbone
from olivine.train.voxelize import VoxelSettings, voxelize

# Made by OpenPCDet itself, in benchmarks/second_expectations.py.
EXPECTED = Path(__file__).with_name("second_expectations.npz")
RANGE = (0.0, -3.2, -3.0, 6.4, 3.2, 1.0)
SMALL = PlaneSettings((1, 1), (4, 6), (5, 3))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(EXPECTED) as file:
        return {name: file[name] for name in file.files}


def state(expected: dict[str, np.ndarray], part: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{part} "): torch.from_numpy(v) for n, v in expected.items() if n.startswith(f"{part} ")}


def targets_of(expected):
    boxes = [torch.from_numpy(expected[f"boxes {i}"]) for i in range(2)]
    anchors = make_anchors(KITTI_ANCHORS, RANGE, (16, 16))
    return anchors, assign(anchors, [b[:, :7] for b in boxes], [b[:, 7].long() for b in boxes], KITTI_ANCHORS)


def test_anchors_are_openpcdets(expected):
    anchors = make_anchors(KITTI_ANCHORS, RANGE, (16, 16))
    theirs = expected["anchors"]
    assert theirs.shape == (1, 16, 16, 3, 2, 7)
    assert np.abs(anchors.numpy() - theirs.reshape(16, 16, 6, 7)).max() < 1e-5


def test_every_anchor_becomes_the_box_that_openpcdet_assigns_to_it(expected):
    _, targets = targets_of(expected)
    assert np.array_equal(targets.label.numpy(), expected["labels"])
    assert {-1, 0, 1, 2, 3} == set(np.unique(expected["labels"]))
    assert np.abs(targets.code.numpy() - expected["codes"]).max() < 1e-5


def test_the_plane_backbone_and_the_head_give_openpcdets_values(expected):
    plane, head = PlaneBackbone(7, SMALL).eval(), AnchorHead(8, 6, 3)
    plane.load_state_dict(state(expected, "plane"))
    head.load_state_dict(state(expected, "head"))
    with torch.no_grad():
        features = plane(torch.from_numpy(expected["features"]))
        output = head(features)
    assert np.abs(features.numpy() - expected["features 2d"]).max() < 1e-5
    assert np.abs(output.logit.numpy() - expected["logits"]).max() < 1e-5


def output_of(expected) -> HeadOutput:
    head = AnchorHead(8, 6, 3)
    head.load_state_dict(state(expected, "head"))
    with torch.no_grad():
        output: HeadOutput = head(torch.from_numpy(expected["features 2d"]))
    return output


def test_the_losses_are_openpcdets(expected):
    anchors, targets = targets_of(expected)
    output = output_of(expected)
    terms = detection_loss(output.logit, output.code, output.direction, targets, anchors.view(-1, 7), LossWeights())
    found = [float(terms[name]) for name in ("classes", "boxes", "direction")]
    assert found == pytest.approx(expected["losses"].tolist(), abs=1e-5)


def test_decoded_boxes_are_openpcdets_and_the_best_of_them_are_found(expected):
    trunk = build_backbone("voxelnet")
    voxels = VoxelSettings(size_m=0.05, height_m=0.1, feature="mean", first_channel=0, feature_channels=4, crop=True, from_corner=True,
                           range_m=RANGE)  # fmt: skip
    network = Second(trunk, voxels, SMALL)
    output = output_of(expected)
    found = network.detections(output, Selection(score=0.005))
    for i, one in enumerate(found):
        score = torch.sigmoid(torch.from_numpy(expected["logits"][i])).max(1).values.numpy()
        assert len(one.score) > 1 and np.all(np.diff(one.score) <= 0)
        assert one.score[0] == pytest.approx(score.max(), abs=1e-6)
        for box, value in zip(one.boxes, one.score):
            rows = expected["decoded"][i, np.abs(score - value) < 1e-6]
            assert np.abs(rows - box).max(1).min() < 1e-5


def test_the_one_cycle_schedule_is_openpcdets(expected):
    found = [rate_and_momentum(step, 50, CycleSettings()) for step in range(50)]
    assert np.allclose(found, expected["one cycle"], rtol=1e-6)


def test_a_box_comes_back_from_its_code():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(20, 7, generator=generator, dtype=torch.float64) + 0.5
    anchors = torch.rand(20, 7, generator=generator, dtype=torch.float64) + 0.5
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-12)
    assert torch.allclose(wrap(torch.tensor([3.2, -3.2, 7.0]), 2 * math.pi).sin(), torch.tensor([3.2, -3.2, 7.0]).sin())
    quarter = torch.tensor([[0, 0, 0, 4, 2, 1, math.pi / 2]])
    assert aligned_iou(quarter, torch.tensor([[0, 0, 0, 2.0, 4, 1, 0]])) == pytest.approx(1)


def test_a_class_without_a_box_has_background_alone_and_a_box_that_no_anchor_matches_takes_the_nearest():
    anchors = make_anchors(KITTI_ANCHORS, RANGE, (16, 16))
    small = torch.tensor([[3.0, 0.1, -1, 1.5, 0.7, 1.5, 0.0]])  # far smaller than a car
    targets = assign(
        anchors, [small, small[:0]], [torch.tensor([1]), torch.tensor([], dtype=torch.int64)], KITTI_ANCHORS
    )
    label = targets.label.view(2, 16, 16, 6)
    assert (label[0] == 1).sum() >= 1 and (label[0, :, :, 2:] == 0).all() and (label[1] == 0).all()
    assert (targets.code.view(2, -1, 7)[0][targets.label[0] > 0].abs().sum(1) > 0).all()


def test_parameter_names_and_shapes_are_those_of_openpcdets_secondnet(expected):
    network = Second(build_backbone("voxelnet"), VOXELS["second"])
    ours = [f"{n} {list(v.shape)}" for n, v in network.state_dict().items() if not n.startswith("backbone_3d.")]
    assert ours == expected["full shapes"].tolist()


@pytest.mark.parametrize("preset", ["second", "pretraining"])
def test_the_presets_give_the_maps_of_openpcdet(preset):
    network = Second(build_backbone("voxelnet"), VOXELS[preset])
    assert network.backbone_2d.blocks[0][1].in_channels == 256
    cells = {"second": (200, 176), "pretraining": (100, 88)}[preset]
    assert tuple(network.anchors.shape) == (*cells, 6, 7)


def test_a_network_trains_on_one_cloud_until_it_finds_its_box():
    settings = VoxelSettings(size_m=0.1, height_m=0.2, feature="mean", first_channel=0, feature_channels=4, crop=True,
                             range_m=(0.0, -6.4, -5.0, 12.8, 6.4, 3.0), from_corner=True)  # fmt: skip
    network = Second(build_backbone("voxelnet"), settings, PlaneSettings((1, 1), (16, 16), (16, 16)), KITTI_ANCHORS[:1])
    box = torch.tensor([[6.0, 1.0, -1.0, 3.9, 1.6, 1.5, 0.4]])
    generator = torch.Generator().manual_seed(1)
    turn = torch.tensor([[math.cos(0.4), math.sin(0.4)], [-math.sin(0.4), math.cos(0.4)]])
    inside = (torch.rand(400, 3, generator=generator) - 0.5) * box[0, 3:6]
    inside[:, :2] = inside[:, :2] @ turn
    ground = torch.rand(800, 3, generator=generator) * torch.tensor([12.8, 12.8, 0.1]) - torch.tensor([0, 6.4, 1.9])
    points = torch.cat((torch.cat((inside + box[0, :3], ground)), torch.zeros(1200, 1)), 1)
    clouds = Clouds(points, torch.zeros(len(points), dtype=torch.int64), voxelize(points, None, settings), settings)
    targets = assign(network.anchors, [box], [torch.tensor([1])], KITTI_ANCHORS[:1])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        output = network(clouds)
        terms = detection_loss(
            output.logit, output.code, output.direction, targets, network.anchors.view(-1, 7), LossWeights()
        )
        sum(terms.values()).backward()
        optimizer.step()
    (found,) = network.detections(network(clouds))  # in training mode: the statistics of this cloud
    error = found.boxes[0] - box[0].numpy()
    error[6] = (error[6] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(error).max() < 0.3 and found.kind[0] == 1


def test_what_does_not_fit_is_one_line():
    with pytest.raises(OlivineError, match="SECOND stands on the trunk of a VoxelNet, not on a SRUNetSmall"):
        Second(build_backbone("srunet-small"), VOXELS["second"])
    low = VoxelSettings(
        size_m=0.1, height_m=0.2, crop=True, from_corner=True, range_m=(0.0, -6.4, -3.0, 12.8, 6.4, 1.0)
    )
    with pytest.raises(OlivineError, match="a grid of 128 x 128 x 20 voxels does not fit"):
        Second(build_backbone("voxelnet"), low, anchors=(AnchorSettings("Car", (4, 2, 2), -1),))
