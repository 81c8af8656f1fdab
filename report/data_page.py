"""The page of ``olivine check-data``: what is wrong, the figures, and points drawn on images."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, PathLike, atomic_directory, write_bytes, write_json
from ..common.images import open_image

_WIDTH = 800  # pixels of a drawing
_NEAR, _FAR = 2.0, 60.0  # metres, the ends of the colours


def write_data_page(
    out: PathLike,
    title: str,
    figures: Mapping[str, Any],
    failures: Sequence[Failure],
    views: Sequence[tuple[str, Path, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]],
) -> None:
    """Write ``index.html``, its drawings and ``check.json`` into the folder ``out``, whole or not at all.

    Args:
        figures: of the data set; ``share`` and ``fit`` are tables by camera.
        failures: what is wrong.
        views: caption, image, uv [M, 2], distance [M] in metres and whether each point is at a step in depth.
    """
    with atomic_directory(out) as folder:
        drawn = []
        for number, (caption, path, uv, distance, edge) in enumerate(views):
            name = f"view-{number:03d}.jpg"
            _draw(path, uv, distance, edge).save(folder / name, quality=88)
            drawn.append((name, caption))
        write_json(folder / "check.json", dict(figures))
        write_bytes(folder / "index.html", _page(title, figures, failures, drawn).encode())


def _draw(path: Path, uv: NDArray[np.float32], distance: NDArray[np.float32], edge: NDArray[np.bool_]) -> Any:
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    with open_image(path) as opened:
        image = opened.convert("RGB")
    scale = _WIDTH / image.width
    image = image.resize((_WIDTH, max(1, round(scale * image.height))))
    image = Image.blend(image, Image.new("RGB", image.size, (255, 255, 255)), 0.25)
    draw = ImageDraw.Draw(image)
    share = np.log(np.clip(distance, _NEAR, _FAR) / _NEAR) / np.log(_FAR / _NEAR)
    colors = (colormaps["turbo_r"](share)[:, :3] * 255).astype(int)
    # What is at a step in depth is drawn last and larger: it should lie on the rims of things.
    for k in np.argsort(edge, kind="stable"):
        u, v = (uv[k].astype(float) + 0.5) * scale - 0.5
        r = 2.2 if edge[k] else 1.0
        draw.ellipse((u - r, v - r, u + r, v + r), fill=tuple(colors[k]), outline=(0, 0, 0) if edge[k] else None)
    return image


def _page(title: str, figures: Mapping[str, Any], failures: Sequence[Failure], drawn: list[tuple[str, str]]) -> str:
    wrong = "".join(f"<li><b>{html.escape(f.unit)}</b>: {html.escape(f.reason)}</li>" for f in failures)
    found = f"<h2>{len(failures)} things are wrong</h2><ul>{wrong}</ul>" if failures else "<h2>Nothing is wrong</h2>"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in figures.get("notes", ()))
    plain = {key: value for key, value in figures.items() if isinstance(value, (int, float, str))}
    rows = "".join(
        f"<tr><td>{html.escape(key.replace('_', ' '))}</td><td>{value}</td></tr>" for key, value in plain.items()
    )
    cameras = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{share:.1f} %</td><td>{_number(figures['fit'].get(name))}</td>"
        f"<td>{_delay(figures['delay'].get(name))}</td></tr>"
        for name, share in figures["share"].items()
    )
    images = "".join(
        f'<figure><img src="{name}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
        for name, caption in drawn
    )
    return f"""<!doctype html>
<meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body {{ font-family: sans-serif; max-width: 54em; margin: 2em auto; }} img {{ max-width: 100%; }}
td, th {{ padding: 0.2em 1em 0.2em 0; text-align: left; }} figure {{ margin: 1em 0; }}</style>
<h1>{html.escape(title)}</h1>{found}{notes}<table>{rows}</table>
<h2>Cameras</h2><table><tr><th>camera</th><th>points it sees</th><th>fit of edges</th><th>image after the cloud: least, median, most</th></tr>{cameras}</table>
<p>The fit is how much rather points at a step in depth lie on image edges than other points do, in standard deviations
of the edge map. Below, points are coloured by distance (red {_NEAR:g} m, blue {_FAR:g} m); those with a rim are at a step
in depth, and should lie on the rims of things.</p>{images}
"""


def _delay(values: list[float] | None) -> str:
    return "not known" if values is None else ", ".join(f"{value:.1f}" for value in values) + " ms"


def _number(value: float | None) -> str:
    return "too few edges" if value is None else f"{value:.2f}"
