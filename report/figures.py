"""Pictures for slides and papers: label overlays, labelled points on the image and from above, losses, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.colors import NO_LABEL, class_colors
from ..common.images import open_image
from ..labelgen.store import LabelStore
from ..pairs.shards import FrameRecord, ShardSet
from .contents import LOSS_NAMES, Contents

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_RANGE = 51.2  # metres shown from above: the range the 3D network sees


def draw_pictures(contents: Contents, shards: ShardSet | None, chosen: Sequence[int], folder: Path) -> int:
    """Draw PNG files for slides and papers into ``folder``; what cannot be drawn joins ``contents.missing``.

    Args:
        shards: whose frames are drawn; None for none.
        chosen: frames, as positions in the shards.

    Returns:
        How many were drawn.
    """
    drawn: list[str] = []

    def draw(name: str, make: Callable[[], Figure]) -> None:
        figure = contents.attempt(name, make)
        if figure is not None:
            figure.savefig(folder / name)
            drawn.append(name)

    for number, position in enumerate(chosen if shards is not None else ()):
        assert shards is not None
        record = contents.attempt("a frame", lambda position=position: shards.record(position))  # type: ignore[misc]
        if record is not None:
            _draw_frame(contents, shards, record, number, draw)
    if contents.curves:
        draw("loss.png", lambda: _losses(contents.curves))
    probe = dict(contents.scores).get("linear probe")
    if probe:
        draw("probe.png", lambda: _scores(probe))
    return len(drawn)


def _draw_frame(
    contents: Contents, shards: ShardSet, record: FrameRecord, number: int, draw: Callable[..., None]
) -> None:
    store = contents.labels
    if store is not None:
        draw(f"labels-{number}.png", lambda: _labels(store, record))
    if record.image is not None:
        draw(f"points-{number}.png", lambda: _points(shards, record))
    else:
        contents.missing.append("points on the image (the shards hold no images)")
    draw(f"above-{number}.png", lambda: _from_above(shards, record))


def _labels(store: LabelStore, record: FrameRecord) -> Figure:
    frame = next(
        (f for s in store.index().select() if s.name == record.scene for f in s.frames() if f.token == record.token),
        None,
    )
    if frame is None:
        raise OlivineError("not in the labels' index", where=record.token, remedy="take the labels of these shards")
    images = [_overlay(store, frame, camera) for camera in frame.cameras]
    return _mosaic(images, [c.name for c in frame.cameras], store.classes)


def _points(shards: ShardSet, record: FrameRecord) -> Figure:
    images = [_points_on_image(shards, record, c) for c in range(len(shards.cameras))]
    return _mosaic(images, list(shards.cameras), shards.classes)


def _overlay(store: LabelStore, frame: Any, camera: Any) -> Image:
    from PIL import Image

    with open_image(frame.image_path(camera), size=(camera.width, camera.height)) as opened:
        image = opened.convert("RGB")
    label = store.label_map(camera, frame.scene)
    colors = Image.fromarray(class_colors(store.classes)[label])
    mask = Image.fromarray(np.where(label > 0, 140, 0).astype(np.uint8))
    image.paste(colors, (0, 0), mask)
    width = _width(len(frame.cameras))
    return image.resize((width, round(width * image.height / image.width)))


def _width(cameras: int) -> int:
    """Pixels of one camera's image: a wide one alone, as KITTI's, has the figure to itself."""
    return 640 if cameras > 2 else 1240


def _points_on_image(records: ShardSet, record: FrameRecord, camera: int) -> Image:
    from PIL import Image, ImageDraw

    assert record.image is not None
    with open_image(record.image[camera], where=f"frame {record.token}") as opened:
        image = opened.convert("RGB")
    width = _width(len(records.cameras))
    scale = width / image.width
    image = image.resize((width, round(scale * image.height)))
    # Faded, so that the points stand out.
    image = Image.blend(image, Image.new("RGB", image.size, (255, 255, 255)), 0.35)
    draw = ImageDraw.Draw(image)
    colors = class_colors(records.classes)
    colors[0] = NO_LABEL
    mine = record.pair_camera == camera
    for (u, v), label in zip((record.pair_uv[mine] + 0.5) * scale - 0.5, record.pair_label[mine], strict=True):
        r, g, b = (int(c) for c in colors[label])
        draw.ellipse((u - 1.5, v - 1.5, u + 1.5, v + 1.5), fill=(r, g, b))
    return image


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _mosaic(images: list[Image], names: list[str], classes: tuple[str, ...]) -> Figure:
    columns = min(3, len(images)) if len(images) > 2 else 1
    rows = -(-len(images) // columns)
    ratio = images[0].height / images[0].width
    wide = 4.2 if columns > 1 else 11.3
    figure = _figure(wide * columns, wide * ratio * rows + 0.5 * rows + 0.6)
    for position, (image, name) in enumerate(zip(images, names, strict=True)):
        axes = figure.add_subplot(rows, columns, position + 1)
        axes.imshow(np.asarray(image))
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    _legend(figure, classes)
    return figure


def _legend(figure: Figure, classes: tuple[str, ...]) -> None:
    from matplotlib.patches import Patch

    colors = class_colors(classes) / 255
    handles = [Patch(color=tuple(c), label=name) for c, name in zip(colors[1:], classes, strict=True)]
    handles.append(Patch(color=tuple(np.array(NO_LABEL) / 255), label="no label"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8, frameon=False)


def _from_above(records: ShardSet, record: FrameRecord) -> Figure:
    """The cloud from above: weak labels, and beside them the ground truth where there is one."""
    weak = np.full((len(record.points), 3), 225, np.uint8)
    colors = class_colors(records.classes)
    colors[0] = NO_LABEL
    weak[record.pair_point] = colors[record.pair_label]
    panels = [("weak labels (light: no camera sees the point)", weak)]
    if record.point_label is not None:
        truth = class_colors(records.point_classes)
        truth[0] = (225, 225, 225)
        panels.append(("ground truth", truth[record.point_label]))
    figure = _figure(6.2 * len(panels), 6.8)
    for position, (title, color) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), position + 1)
        order = np.argsort(record.points[:, 2], kind="stable")  # what is high is drawn last
        axes.scatter(
            record.points[order, 0],
            record.points[order, 1],
            c=color[order] / 255.0,
            s=2.5,
            linewidths=0,
            rasterized=True,
        )
        axes.set(xlim=(-_RANGE, _RANGE), ylim=(-_RANGE, _RANGE), xlabel="x / m", ylabel="y / m", aspect="equal")
        axes.set_title(title, fontsize=10)
    _legend(figure, records.classes)
    return figure


def _losses(curves: Mapping[str, NDArray[np.float64]]) -> Figure:
    figure = _figure(9, 4.8)
    left = figure.add_subplot()
    # L_kl is a negative log-density: its scale is another than the contrastive losses'.
    right = left.twinx() if "loss_scr" in curves else left
    for position, (name, values) in enumerate(curves.items()):
        axes = right if name == "loss_scr" else left
        label = LOSS_NAMES.get(name, name)
        axes.plot(values[:, 0], values[:, 1], label=label, color=f"C{position}", linewidth=1.4)
    left.set(xlabel="step", ylabel="contrastive losses", title="Pre-training")
    if right is not left:
        right.set_ylabel("consistency loss")
    left.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _scores(results: list[dict[str, Any]]) -> Figure:
    classes = list(results[0]["scores"]["iou"])
    figure = _figure(10, 5)
    axes = figure.add_subplot()
    width = 0.8 / len(results)
    for position, result in enumerate(results):
        scores = result["scores"]
        values = [100 * scores["iou"].get(c, 0.0) for c in classes] + [100 * scores["mean_iou"]]
        places = np.arange(len(values)) + position * width
        bars = axes.bar(places, values, width, label=f"{result['name']}: mIoU {100 * scores['mean_iou']:.1f}")
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(np.arange(len(classes) + 1) + 0.4 - width / 2, [*classes, "mean"], rotation=40, ha="right")
    axes.set(ylabel="IoU / %", title="Linear probe on the frozen backbone")
    axes.legend(frameon=False)
    return figure
