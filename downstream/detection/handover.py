"""Weights and a configuration for OpenPCDet's detectors: what ``olivine export --for`` writes.

The configuration changes one of OpenPCDet's own (named as its base) where the trunk asks for it: the voxels that it was trained
with, four values of a point, the plain or the residual form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common import OlivineError, PathLike, check_output_file, read_bytes, write_bytes
from ...common.settings import settings_from_plain
from ...common.tensors import write_tensors
from ...train.backbones.voxelnet import VoxelNet
from ...train.checkpoint import checkpoint_file, load_backbone
from ...train.voxelize import VoxelSettings
from ..layouts import read_weights, to_openpcdet
from .detect import KIND, read_detector
from .second import VOXELS
from .settings import DetectionSettings

MADE = "# Made by olivine export --for"


@dataclass(frozen=True)
class Detector:
    """One of OpenPCDet's detectors.

    Attributes:
        base: the configuration that ours changes, from OpenPCDet's ``tools/``.
        data: the data set's configuration, from there.
        residual: whether the base has the residual trunk.
        range_m: the cloud's range in the plane: x low, y low, x high, y high.
        voxels: of a cloud in training and in testing.
    """

    base: str
    data: str
    residual: bool
    range_m: tuple[float, float, float, float]
    voxels: tuple[int, int]


_KITTI_RANGE = (0.0, -40.0, 70.4, 40.0)
DETECTORS = {
    "second": Detector(
        "cfgs/kitti_models/second.yaml",
        "cfgs/dataset_configs/kitti_dataset.yaml",
        False,
        _KITTI_RANGE,
        (16_000, 40_000),
    ),
    "pv_rcnn": Detector(
        "cfgs/kitti_models/pv_rcnn.yaml",
        "cfgs/dataset_configs/kitti_dataset.yaml",
        False,
        _KITTI_RANGE,
        (16_000, 40_000),
    ),
    "centerpoint": Detector(
        "cfgs/nuscenes_models/cbgs_voxel01_res3d_centerpoint.yaml",
        "cfgs/dataset_configs/nuscenes_dataset.yaml",
        True,
        (-51.2, -51.2, 51.2, 51.2),
        (60_000, 60_000),
    ),
}


@dataclass(frozen=True)
class HandoverSummary:
    """What was written.

    Attributes:
        out: the weights.
        configuration: to start from.
        base: OpenPCDet's configuration that it changes.
        parameters: tensors written.
        head: whether a trained 2D backbone and head are among them.
        notes: what a reader of its scores there should know.
    """

    out: Path
    configuration: Path
    base: str
    parameters: int
    head: bool
    notes: tuple[str, ...] = ()


def export_for(detector: str, checkpoint: PathLike, out: PathLike, *, overwrite: bool = False) -> HandoverSummary:
    """Write a VoxelNet's weights in OpenPCDet's names, and a configuration beside them.

    Args:
        detector: of :data:`DETECTORS`.
        checkpoint: run folder or file; of a run of ``olivine detect``, the whole of SECOND is written for ``second``.
        out: the weights, ``….pth``; the configuration goes beside it as ``….yaml``.
        overwrite: replace an earlier export.

    Raises:
        OlivineError: an unknown detector, another backbone, voxels that the detector's configuration has no form for, a
            detector of another range, other classes or another 2D backbone, or a file that is there.
    """
    if detector not in DETECTORS:
        raise OlivineError(f"--for {detector}", remedy=f"choose {', '.join(DETECTORS)}")
    out = Path(out)
    if out.suffix.lower() in (".yaml", ".yml"):
        raise OlivineError(
            "is the weights' file, and the configuration is written beside it as .yaml",
            where=out,
            remedy="give --out a name that ends in .pth",
        )
    configuration = out.with_suffix(".yaml")
    path = checkpoint_file(checkpoint)
    check_output_file(out, _is_weights, overwrite=overwrite, inputs=(path,))
    network, content = load_backbone(path)
    if not isinstance(network, VoxelNet):
        raise OlivineError(
            f"holds a {content['backbone']['name']}, and {detector} stands on VoxelNet",
            where=path,
            remedy="pre-train with --config voxelnet",
        )
    plain = content.get("voxels") or content["settings"]["voxels"]
    voxels = settings_from_plain(VoxelSettings, plain, str(path))
    residual = bool(content["backbone"].get("residual", False))
    text = _configuration(detector, voxels, residual, path)
    state: dict[str, Tensor] = {f"backbone_3d.{name}": value for name, value in to_openpcdet(network).items()}
    head = content.get("kind") == KIND and detector == "second"
    notes: tuple[str, ...] = ()
    if head:
        trained = read_detector(path)[1]
        _check_preset(trained, path)
        state |= content["head_state"]
        if trained.intensity != "raw":
            notes = (
                "trained on another form of the intensity than OpenPCDet's, and will score less there: fine-tune it there, or "
                "train it with olivine detect --set intensity=raw",
            )
    data = text.encode()
    # The configuration is first, and the same one may be there: what a full disk left is no obstacle to a second run.
    if not (configuration.is_file() and read_bytes(configuration, "choose another --out file") == data):
        check_output_file(configuration, _is_configuration, overwrite=overwrite, inputs=(path,))
        write_bytes(configuration, data)
    write_tensors(out, {"model_state": state})
    return HandoverSummary(out, configuration, DETECTORS[detector].base, len(state), head, notes)


def _check_preset(settings: DetectionSettings, path: Path) -> None:
    """Raise unless OpenPCDet's ``second.yaml`` has a detector's range, classes and 2D backbone.

    Raises:
        OlivineError: names the first setting that differs.
    """
    preset = DetectionSettings(preset=settings.preset, range_m=VOXELS[settings.preset].range_m)
    settings = replace(settings, range_m=settings.voxel_settings().range_m)
    for key in ("range_m", "classes", "plane_layers", "plane_channels", "plane_up_channels"):
        theirs, ours = getattr(settings, key), getattr(preset, key)
        if theirs != ours:
            raise OlivineError(
                f"was trained with {key}={list(theirs)}, and OpenPCDet's second.yaml has {list(ours)}",
                where=path,
                remedy="export the trunk alone: olivine export --layout openpcdet",
            )


def _configuration(detector: str, voxels: VoxelSettings, residual: bool, path: Path) -> str:
    import yaml

    one = DETECTORS[detector]
    height = voxels.height_m or voxels.size_m
    preset = next((v for v in VOXELS.values() if (v.size_m, v.height_m) == (voxels.size_m, height)), None)
    fits = preset is not None and (detector != "centerpoint" or preset is VOXELS["pretraining"])
    if not fits or voxels.feature != "mean" or (voxels.first_channel, voxels.feature_channels) != (0, 4):
        raise OlivineError(
            f"was trained with voxels of {voxels.size_m} x {voxels.size_m} x {height} m and {voxels.feature} of "
            f"{voxels.feature_channels} values, which {detector} has no configuration for",
            where=path,
            remedy="export the weights alone: olivine export --layout openpcdet",
        )
    assert preset is not None
    low, high = preset.range_m[2], preset.range_m[5]
    points = ["x", "y", "z", "intensity"]
    source = [*points, "timestamp"] if detector == "centerpoint" else points
    cut: dict[str, Any] = {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True}
    shuffle = {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": detector == "centerpoint"}}
    made = {
        "NAME": "transform_points_to_voxels",
        "VOXEL_SIZE": [preset.size_m, preset.size_m, height],
        "MAX_POINTS_PER_VOXEL": preset.max_points,
        "MAX_NUMBER_OF_VOXELS": dict(zip(("train", "test"), one.voxels)),
    }
    content: dict[str, Any] = {
        "_BASE_CONFIG_": one.base,
        "DATA_CONFIG": {
            "_BASE_CONFIG_": one.data,
            "POINT_CLOUD_RANGE": [*one.range_m[:2], low, *one.range_m[2:], high],
            "POINT_FEATURE_ENCODING": {
                "encoding_type": "absolute_coordinates_encoding",
                "used_feature_list": points,
                "src_feature_list": source,
            },
            "DATA_PROCESSOR": [cut, shuffle, made],
        },
        "MODEL": {"BACKBONE_3D": {"NAME": "VoxelResBackBone8x" if residual else "VoxelBackBone8x"}},
    }
    if detector == "pv_rcnn":
        # Its own, which the data set's base would replace.
        content["DATA_CONFIG"]["DATA_AUGMENTOR"] = {"AUG_CONFIG_LIST": _pv_rcnn_augmentation()}
    head = f"{MADE} {detector}; use it in OpenPCDet's tools/ (python train.py --cfg_file … --pretrained_model …).\n"
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def _pv_rcnn_augmentation() -> list[dict[str, Any]]:
    """What OpenPCDet's ``pv_rcnn.yaml`` has instead of its data set's."""
    classes = ("Car", "Pedestrian", "Cyclist")
    sampling = {
        "NAME": "gt_sampling",
        "USE_ROAD_PLANE": True,
        "DB_INFO_PATH": ["kitti_dbinfos_train.pkl"],
        "PREPARE": {"filter_by_min_points": [f"{c}:5" for c in classes], "filter_by_difficulty": [-1]},
        "SAMPLE_GROUPS": [f"{c}:{n}" for c, n in zip(classes, (15, 10, 10))],
        "NUM_POINT_FEATURES": 4,
        "DATABASE_WITH_FAKELIDAR": False,
        "REMOVE_EXTRA_WIDTH": [0.0, 0.0, 0.0],
        "LIMIT_WHOLE_SCENE": False,
    }
    flip = {"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"]}
    turn = {"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": [-0.78539816, 0.78539816]}
    return [sampling, flip, turn, {"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [0.95, 1.05]}]


def _is_weights(path: Path) -> bool:
    try:
        return read_weights(path)[0] == "openpcdet"
    except OlivineError:
        return False


def _is_configuration(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MADE)) == MADE.encode()
