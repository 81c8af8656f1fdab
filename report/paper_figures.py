"""The figures of a paper about a pre-trained network: class imbalance, similarity maps, t-SNE; see OLIVINE's 4 to 7."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, PathLike, atomic_directory, write_bytes
from ..common.colors import NO_LABEL, class_colors
from ..downstream.embeddings import Embeddings, Sample, SimilarityMap, embed_sample, find_frame, similarity_maps
from ..downstream.embeddings import class_names as names_of
from ..pairs.shards import ShardSet, open_shards

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = ("png", "pdf", "svg")
_RANGE = 51.2  # metres shown from above, at most
_MAP = "viridis"  # told apart by the colour-blind, and in grey
_GROUND = "#15181d"  # behind points: low similarity is dark, high is bright


@dataclass(frozen=True)
class FiguresSummary:
    """What was drawn.

    Attributes:
        figures: names of the files.
        frame: token of the similarity maps' frame, and ``points`` the rows in it.
        embeddings: what was compared.
        tsne_points: of each class.
        left_out: what is not there, and why.
    """

    figures: tuple[str, ...]
    frame: str
    points: tuple[int, ...]
    embeddings: tuple[str, ...]
    tsne_points: dict[str, int]
    left_out: tuple[str, ...] = ()
    failures: list[Failure] = field(default_factory=list)


def draw_figures(
    checkpoint: PathLike,
    shards: PathLike,
    out: PathLike,
    *,
    frame: str | None = None,
    points: Sequence[int] = (),
    per_class: int = 200,
    features: str = "heads",
    suffix: str = "png",
    seed: int = 0,
) -> FiguresSummary:
    """Write the figures into the folder ``out``, whole or not at all.

    Args:
        checkpoint: run folder or checkpoint file.
        shards: folder of shards, whose points have classes.
        frame: of the similarity maps, see :func:`~olivine.downstream.embeddings.find_frame`; ``points`` rows in it.
        per_class: points of each class in the t-SNE, at most.
        features: ``heads`` or ``backbone``.
        suffix: ``png``, ``pdf`` or ``svg``.
        seed: of random weights, draw and t-SNE.

    Raises:
        OlivineError: see :mod:`~olivine.downstream.embeddings`; or another suffix, or shards without a frame.
    """
    if suffix not in SUFFIXES:
        raise OlivineError(f"--suffix {suffix}", remedy=f"give one of {', '.join(SUFFIXES)}")
    opened = open_shards(shards)
    if len(opened) == 0:
        raise OlivineError("the shard set holds no frames", where=shards, remedy="run olivine build-pairs")
    number = find_frame(opened, frame)
    embeddings = Embeddings(checkpoint, opened, features, seed)
    maps = similarity_maps(embeddings, number, points)
    sample = embed_sample(embeddings, per_class, seed=seed)
    figures = {"imbalance": imbalance_figure(opened)}
    figures |= {f"similarity-{k}": similarity_figure(one, names_of(opened)) for k, one in enumerate(maps)}
    figures["tsne"] = tsne_figure(sample)
    with atomic_directory(out) as folder:
        for name, figure in figures.items():
            _save(figure, folder / f"{name}.{suffix}")
    left_out = [f"similarity on the image: {embeddings.no_images}"] if embeddings.no_images else []
    if not embeddings.no_images:
        left_out += [f"the image of point {one.point}: no camera sees it" for one in maps if one.image is None]
    return FiguresSummary(
        tuple(f"{name}.{suffix}" for name in figures),
        opened.token(number),
        tuple(one.point for one in maps),
        tuple(space.name for space in embeddings.spaces),
        sample.counts,
        tuple(left_out),
    )


def _save(figure: Figure, path: Path) -> None:
    """The same bytes whenever it is drawn."""
    import matplotlib

    no_date: dict[str, Any] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[path.suffix[1:]]
    data = io.BytesIO()  # Matplotlib's PDF writer does not say that a disk is full
    with matplotlib.rc_context({"svg.hashsalt": "olivine", "pdf.fonttype": 42}):
        figure.savefig(data, format=path.suffix[1:], metadata=no_date)
    write_bytes(path, data.getvalue())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def _legend(figure: Figure, names: Sequence[str], present: NDArray[Any], columns: int) -> None:
    """The colours of the classes that are there; 0 is what has none."""
    from matplotlib.lines import Line2D

    colors = _colors(names)
    values = [*np.unique(present[present > 0]), *([0] if (present == 0).any() else [])]
    dots = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=colors[value], label=name.replace("_", " "))
        for value, name in ((value, ("no class", *names)[value]) for value in values)
    ]
    columns = -(-len(dots) // -(-len(dots) // columns))  # rows of one length
    figure.legend(handles=dots, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _colors(names: Sequence[str]) -> NDArray[np.float64]:
    colors = class_colors(names)
    colors[0] = NO_LABEL
    return colors / 255


def imbalance_figure(shards: ShardSet) -> Figure:
    """Pairs of each weak label in the whole set, on a logarithmic scale, with their share; the most frequent first."""
    count = shards.class_count
    order = np.argsort(-count, kind="stable")
    names = np.array(["no label", *shards.classes])
    figure = _figure(6.4, 0.9 + 0.25 * len(order))
    axes = figure.add_subplot()
    colors = _colors(shards.classes)
    bars = axes.barh(names[order], count[order], color=colors[order], edgecolor="black", linewidth=0.4)
    total = max(1, int(count.sum()))
    axes.bar_label(bars, [f"{n:,} ({100 * n / total:.2g} %)" if n else "none" for n in count[order]], padding=3, size=7)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 30 * max(1, int(count.max())))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.minorticks_off()
    axes.set(xlabel="pairs (logarithmic)", title=f"{total:,} pairs of {shards.dataset}, {shards.split}, by weak label")
    return figure


def similarity_figure(one: SimilarityMap, names: Sequence[str]) -> Figure:
    """The chosen point among the classes, and its similarity to every point and pixel for each kind of embedding."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    columns = 1 + len(one.at_points)
    shown = [*one.at_points.values(), *one.at_pixels.values()]
    scale = Normalize(np.floor(10 * min(float(np.nanmin(value)) for value in shown)) / 10, 1)
    ratio = 0.0 if one.image is None else one.image.shape[0] / one.image.shape[1]
    figure = _figure(3.3 * columns + 0.6, 3.3 * (1 + ratio) + 1.3)
    rows = 1 if one.image is None else 2
    grid = figure.add_gridspec(rows, columns, height_ratios=[1, ratio][:rows])
    reach = min(_RANGE, float(np.percentile(np.abs(one.points[:, :2]), 99.5)))
    axes_of = []

    def above(column: int, title: str, colors: NDArray[Any], order: NDArray[np.int64]) -> None:
        axes = figure.add_subplot(grid[0, column])
        x, y = one.points[order, :2].T
        axes.scatter(x, y, c=colors[order], s=1.6, linewidths=0, rasterized=True)
        _star(axes, *one.points[one.point, :2])
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="x / m", facecolor=_GROUND)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=7)
        if column == 0:
            axes.set_ylabel("y / m")
        else:
            axes.set_yticklabels([])
        axes_of.append(axes)

    def on_image(column: int, picture: NDArray[Any], **options: Any) -> None:
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(picture, **options)
        _star(axes, *one.pixel)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(one.camera if column == 0 else "", fontsize=8)
        axes_of.append(axes)

    above(0, "classes, chosen point (star)", _colors(names)[one.label], np.argsort(one.points[:, 2], kind="stable"))
    if one.image is not None:
        on_image(0, one.image)
    mappable = ScalarMappable(scale, _MAP)
    for column, (name, value) in enumerate(one.at_points.items(), 1):
        colors = mappable.to_rgba(value)
        colors[np.isnan(value)] = (0.35, 0.35, 0.35, 1)
        # What is most similar is drawn last, over the rest.
        above(column, name.replace(", ", "\n"), colors, np.argsort(np.nan_to_num(value, nan=-2), kind="stable"))
        if one.image is not None:
            on_image(column, one.at_pixels[name], cmap=_MAP, norm=scale)
    bar = figure.colorbar(mappable, ax=axes_of, fraction=0.02, pad=0.01)
    bar.set_label("cosine similarity to the chosen point")
    what = one.class_name or "no class"
    figure.suptitle(f"Point {one.point} ({what}) of frame {one.token}", fontsize=11)
    _legend(figure, names, one.label, 2 + 2 * columns)
    return figure


def _star(axes: Any, x: float, y: float) -> None:
    axes.plot(x, y, marker="*", markersize=11, color="white", markeredgecolor="black", markeredgewidth=0.9)


def tsne_figure(sample: Sample) -> Figure:
    """Where t-SNE puts the sampled points, coloured by class, for each kind of embedding."""
    figure = _figure(4 * len(sample.place), 5.2)
    order = np.random.default_rng(0).permutation(len(sample.label))  # no class lies over all others
    colors = _colors(sample.names)[sample.label]
    for column, (name, place) in enumerate(sample.place.items(), 1):
        axes = figure.add_subplot(1, len(sample.place), column)
        x, y = place[order].T
        axes.scatter(x, y, c=colors[order], s=7, linewidths=0.15, edgecolors="black", rasterized=True)
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.set_title(name.replace(", ", "\n"), fontsize=10)
    most = max(sample.counts.values())
    figure.suptitle(
        f"t-SNE of {len(sample.label):,} points, at most {most} of each of {len(sample.counts)} classes, "
        f"from {sample.frames} of {sample.of_frames} frames (perplexity {sample.perplexity:.3g}, seed {sample.seed})",
        fontsize=9,
    )
    _legend(figure, sample.names, sample.label, 4 * len(sample.place) - 2)
    return figure
