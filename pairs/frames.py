"""One frame of a data set and its label maps, made into what a shard stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..labelgen.store import LabelStore
from ..readers.frame import Frame
from ..readers.project import look_up, project_points
from .density import bandwidth_of, distance_density
from .images import encode_image, encode_segments, scale_intrinsic, scale_pixels, stored_size
from .settings import PairSettings
from .shard_writer import ShardFrame


def build_frame(frame: Frame, position: int, store: LabelStore, settings: PairSettings) -> ShardFrame:
    """Project, label, weigh and shrink one frame.

    Args:
        frame: of the index that ``store`` belongs to.
        position: the frame's place in its scene.
        store: the label maps.
        settings: of build-pairs.

    Raises:
        OlivineError: a file of the frame or one of its label maps is missing, damaged or of
            another size, or no camera sees any of its points.
    """
    points = frame.points()
    if not frame.cameras:
        raise OlivineError("has no camera", where=f"frame {frame.token}", remedy="leave this frame out")
    point, camera, uv = project_points(points, frame.cameras, settings.min_depth)
    if settings.visibility == "occlusion":
        from .visibility import visible_pairs

        keep = visible_pairs(points, frame.cameras, point, camera, uv)
        point, camera, uv = point[keep], camera[keep], uv[keep]
    if settings.images and not len(point):
        raise OlivineError(
            f"no camera sees any of the {len(points)} points of frame {frame.token}",
            where=frame.root / frame.point_file,
            remedy="check the frame's calibration, or leave the frame out",
        )
    size = [stored_size(c.width, c.height, settings.image_scale) for c in frame.cameras]
    label, score = np.zeros(len(point), np.uint8), np.zeros(len(point), np.uint8)
    stored_uv = np.empty_like(uv)
    for c, view in enumerate(frame.cameras):
        mine = slice(*np.searchsorted(camera, (c, c + 1)))
        stored_uv[mine] = scale_pixels(uv[mine], (view.width, view.height), size[c])
        # A set without images is for probing, and may do without label maps.
        if settings.images or store.label_path(view).is_file():
            label[mine] = look_up(store.label_map(view, frame.scene), uv[mine])
            if (sure := store.score_map(view, frame.scene)) is not None:
                score[mine] = look_up(sure, uv[mine])
    plane = 2 if settings.distance == "plane" else 3
    distance = np.linalg.norm(points[:, :plane].astype(np.float64), axis=1)
    rule = settings.bandwidth
    bandwidth = bandwidth_of(distance, rule) if isinstance(rule, str) else float(rule)
    columns = {
        "points": points,
        "point_label": _point_label(frame, len(points)),
        "pair_point": point,
        "pair_camera": camera,
        "pair_label": label,
        "pair_score": score if store.scores else None,
        "pair_uv": stored_uv,
        "pair_density": distance_density(distance, bandwidth)[point].astype(np.float32),
        "image": [
            encode_image(frame.image_path(view), view, size[c], settings.jpeg_quality)
            for c, view in enumerate(frame.cameras)
        ]
        if settings.images
        else None,
        **_segments(frame, store, size, settings),
        "class_count": np.bincount(label, minlength=len(store.classes) + 1).astype(np.int64),
        "timestamp": np.int64(frame.timestamp),
        "pose": frame.pose,
        "intrinsic": np.stack(
            [scale_intrinsic(v.intrinsic, (v.width, v.height), size[c]) for c, v in enumerate(frame.cameras)]
        ),
        "lidar_to_camera": np.stack([view.lidar_to_camera for view in frame.cameras]),
        "image_size": np.array(size, np.int64),
    }
    return ShardFrame(frame.token, position, bandwidth, {k: v for k, v in columns.items() if v is not None})


def _point_label(frame: Frame, count: int) -> NDArray[np.uint8] | None:
    label = frame.point_labels()
    if label is not None and len(label) != count:
        raise OlivineError(
            f"{len(label)} labels for {count} points",
            where=frame.point_label_file,
            remedy="download the point labels again",
        )
    return label


def _segments(frame: Frame, store: LabelStore, size: list[tuple[int, int]], settings: PairSettings) -> dict[str, Any]:
    """The segment maps at the stored size, and the regions' phrases and features padded to the frame's fullest image."""
    if not settings.segments:
        return {}
    files, regions = [], []
    for c, view in enumerate(frame.cameras):
        segment = store.segment_map(view, frame.scene)
        if segment is None:
            raise OlivineError("the label store has no segment maps", where=store.root, remedy="leave out --segments")
        files.append(encode_segments(segment, size[c]))
        if settings.regions:
            regions.append(store.regions(view, segment, frame.scene))
    if not settings.regions:
        return {"segment": files}
    count = np.array([len(r.phrase) for r in regions], np.int64)
    phrase = np.zeros((len(regions), max(1, count.max())), np.uint8)
    feature = np.zeros((*phrase.shape, store.text.dimension), np.float16)
    for c, found in enumerate(regions):
        phrase[c, : count[c]], feature[c, : count[c]] = found.phrase, found.feature
    return {"segment": files, "region_count": count, "region_phrase": phrase, "region_feature": feature}
