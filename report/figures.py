"""A folder of pictures: label overlays, labelled points on the image and from above, losses, scores."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, PathLike, atomic_directory, demand, digest, read_csv, read_json
from ..common.colors import NO_LABEL, class_colors
from ..common.images import open_image
from ..labelgen.store import LabelStore, open_store
from ..pairs.shards import FrameRecord, ShardSet, open_shards

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_LOSS_NAMES = {
    "loss_ppkt": "point-pixel InfoNCE (eq. 1)",
    "loss_wcd": "weakly-supervised contrast (eq. 2)",
    "loss_scr": "von Mises-Fisher consistency (eq. 13)",
}
_RANGE = 51.2  # metres shown from above: the range the 3D network sees


@dataclass(frozen=True)
class ReportSummary:
    """What was drawn, and what was not because its input is not there."""

    pictures: int
    left_out: tuple[str, ...] = ()
    failures: list[Failure] = field(default_factory=list)


def draw_report(
    labels: PathLike, shards: PathLike, run: PathLike | None, out: PathLike, frames: int = 3
) -> ReportSummary:
    """Draw the pictures into ``out``, whole or not at all, with ``index.html`` to look at them.

    Args:
        labels: label folder.
        shards: folder of shards; their frames are drawn.
        run: run folder with ``steps.csv`` and, after a probe, ``probe/scores.json``; None for neither.
        frames: how many frames to draw, spread over the shards.
    """
    store, records = open_store(labels), open_shards(shards)
    if frames < 1:
        raise OlivineError(f"--frames {frames} draws nothing", remedy="give it 1 or more")
    chosen = sorted({round(i) for i in np.linspace(0, len(records) - 1, min(frames, len(records)))})
    by_token = {frame.token: frame for frame in store.index().frames()}
    left_out = []
    with atomic_directory(out) as folder:
        titles: dict[str, str] = {}
        for number, position in enumerate(chosen):
            record = records[position]
            frame = by_token.get(record.token)
            if frame is None:
                left_out.append(f"label overlay of {record.token} (not in the labels' index)")
            else:
                titles[f"labels-{number}.png"] = f"Labels of {frame.scene}, frame {frame.token}"
                images = [_overlay(store, frame, camera) for camera in frame.cameras]
                _mosaic(images, [c.name for c in frame.cameras], store.classes).savefig(folder / f"labels-{number}.png")
            if record.image is not None:
                titles[f"points-{number}.png"] = f"Points with their weak label, frame {record.token}"
                images = [_points_on_image(records, record, c) for c in range(len(record.image))]
                figure = _mosaic(images, list(records.cameras), records.classes)
                figure.savefig(folder / f"points-{number}.png")
            else:
                left_out.append("points on the image (the shards hold no images)")
            titles[f"above-{number}.png"] = f"From above, frame {record.token}"
            _from_above(records, record).savefig(folder / f"above-{number}.png")
        metrics = Path(run) / "steps.csv" if run is not None else None
        if metrics is not None and metrics.is_file():
            titles["loss.png"] = "Losses of the pre-training"
            _losses(metrics).savefig(folder / "loss.png")
        else:
            left_out.append("loss curve (no steps.csv)")
        scores = Path(run) / "probe" / "scores.json" if run is not None else None
        if scores is not None and scores.is_file():
            titles["probe.png"] = "Linear probe"
            _scores(read_scores(scores)).savefig(folder / "probe.png")
        else:
            left_out.append("probe table (run olivine probe first)")
        _page(folder / "index.html", titles)
    return ReportSummary(len(titles), tuple(left_out))


def _overlay(store: LabelStore, frame: Any, camera: Any) -> Image:
    from PIL import Image

    with open_image(frame.image_path(camera), size=(camera.width, camera.height)) as opened:
        image = opened.convert("RGB")
    label = store.label_map(camera, frame.scene)
    colors = Image.fromarray(class_colors(store.classes)[label])
    mask = Image.fromarray(np.where(label > 0, 140, 0).astype(np.uint8))
    image.paste(colors, (0, 0), mask)
    return image.resize((640, round(640 * image.height / image.width)))


def _points_on_image(records: ShardSet, record: FrameRecord, camera: int) -> Image:
    from PIL import Image, ImageDraw

    assert record.image is not None
    with open_image(record.image[camera], where=f"frame {record.token}") as opened:
        image = opened.convert("RGB")
    scale = 640 / image.width
    image = image.resize((640, round(scale * image.height)))
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
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    ratio = images[0].height / images[0].width
    figure = _figure(4.2 * columns + 1.6, 4.2 * ratio * rows + 0.5 * rows)
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
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)


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
    figure = _figure(6.2 * len(panels) + 1.6, 6.2)
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


def read_losses(path: Path) -> dict[str, NDArray[np.float64]]:
    """The curve of each term of a run's ``steps.csv``, float64 [steps, 2]: step and value.

    Raises:
        OlivineError: the file is damaged, or a value of it is no number.
    """
    remedy = "move it away; resume the run to make it again"
    rows = read_csv(path, remedy=remedy)
    curves = {}
    for name in (n for n in (rows[0] if rows else {}) if n.startswith("loss_")):
        try:
            points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        except (KeyError, ValueError) as error:
            raise OlivineError(f"{name} or step is no number ({error})", where=path, remedy=remedy) from None
        if points:
            curves[name] = np.array(points)
    return curves


def _losses(path: Path) -> Figure:
    curves = read_losses(path)
    figure = _figure(9, 4.8)
    left = figure.add_subplot()
    # L_kl is a negative log-density: its scale is another than the contrastive losses'.
    right = left.twinx() if "loss_scr" in curves else left
    for position, (name, values) in enumerate(curves.items()):
        axes = right if name == "loss_scr" else left
        label = _LOSS_NAMES.get(name, name)
        axes.plot(values[:, 0], values[:, 1], label=label, color=f"C{position}", linewidth=1.4)
    left.set(xlabel="step", ylabel="contrastive losses", title="Pre-training")
    if right is not left:
        right.set_ylabel("consistency loss")
    left.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def read_scores(path: Path) -> list[dict[str, Any]]:
    """What ``scores.json`` holds for each backbone: ``name``, ``scores`` with ``iou`` and ``mean_iou``.

    Raises:
        OlivineError: the file is damaged.
    """
    remedy = "remove it and run olivine probe again"
    kind = [{"name": str, "scores": {"iou": {str: float}, "mean_iou": float}, "digest?": str}]
    results: list[dict[str, Any]] = demand(read_json(path, remedy), kind, path, remedy)
    if not results:
        raise OlivineError("holds no scores", where=path, remedy=remedy)
    if len({result["name"] for result in results}) < len(results):
        raise OlivineError("holds two results of one name", where=path, remedy=remedy)
    for result in results:
        stored = result.pop("digest", None)  # an older olivine wrote none
        if stored is not None and stored != digest(result):
            raise OlivineError("damaged: its content does not match its digest", where=path, remedy=remedy)
    return results


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


def _page(path: Path, titles: dict[str, str]) -> None:
    body = "".join(
        f'<figure><img src="{name}" style="max-width:100%"><figcaption>{html.escape(title)}</figcaption></figure>\n'
        for name, title in titles.items()
    )
    style = "font-family:sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>olivine</title><body style='{style}'><h1>olivine</h1>\n{body}</body>\n"
    )
