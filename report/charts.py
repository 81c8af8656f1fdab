"""Tables and charts as HTML that a browser draws without a library, in light and dark. All text is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

escape = html.escape


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def swatch(color: Sequence[int]) -> str:
    """A small field of a colour, for tables."""
    r, g, b = (int(c) for c in color)
    return f'<i style="background:rgb({r} {g} {b})"></i>'


def percent(part: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 in percent; a dash for None."""
    return "–" if part is None or not math.isfinite(part) else f"{100 * part:.{digits}f}"


def stacked_bar(shares: Sequence[float], names: Sequence[str], colors: Sequence[Sequence[int]]) -> str:
    """Shares of a whole side by side; the names are its alternative text."""
    parts = []
    words = []
    for share, name, (r, g, b) in zip(shares, names, colors):
        if share > 0:
            words.append(f"{name} {percent(share)} %")
            title = escape(words[-1], quote=True)
            parts.append(f'<span style="width:{100 * share:.2f}%;background:rgb({r} {g} {b})" title="{title}"></span>')
    return f'<div class="bar" role="img" aria-label="{escape(", ".join(words), quote=True)}">{"".join(parts)}</div>'


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the last ``window`` values at each place; of fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    smoothed: NDArray[np.float64] = (total[stop] - total[start]) / (stop - start)
    return smoothed


def line_chart(title: str, curve: NDArray[np.float64]) -> str:
    """One curve as SVG: thin as logged, thick the mean of a twentieth of the steps before.

    Args:
        curve: float64 [steps, 2], step and value; values that are not finite are left out and counted below.
    """
    known = curve[np.isfinite(curve).all(1)]
    lost = len(curve) - len(known)
    if not len(known):
        return f"<figure><figcaption>{escape(title)}: no finite value</figcaption></figure>"
    window = max(1, len(known) // 20)
    thick = smooth(known[:, 1], window)
    low, high = float(known[:, 1].min()), float(known[:, 1].max())
    first, last = float(known[0, 0]), float(known[-1, 0])
    height, width = (high - low) or 1.0, (last - first) or 1.0

    def path(values: NDArray[np.float64]) -> str:
        # No more places than a screen shows.
        chosen = np.unique(np.linspace(0, len(values) - 1, 600).round().astype(int))
        x = 52 + 260 * (known[chosen, 0] - first) / width
        y = 150 - 125 * (values[chosen] - low) / height
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))

    text = f"{title}: from {thick[0]:.3g} to {thick[-1]:.3g} over the steps {first:.0f} to {last:.0f}"
    note = f"thick: mean of {window} steps" + (f"; {lost} values not finite" if lost else "")
    return (
        f'<figure><svg viewBox="0 0 320 175" role="img" aria-label="{escape(text, quote=True)}" fill="none" '
        'font-size="10" stroke-linejoin="round">'
        f'<path d="M52 20V150H312" stroke="currentColor" opacity=".4"/>'
        f'<polyline points="{path(known[:, 1])}" stroke="currentColor" opacity=".3"/>'
        f'<polyline points="{path(thick)}" stroke="var(--mark)" stroke-width="2.2"/>'
        f'<g fill="currentColor"><text x="48" y="28" text-anchor="end">{high:.3g}</text>'
        f'<text x="48" y="150" text-anchor="end">{low:.3g}</text><text x="52" y="164">step {first:.0f}</text>'
        f'<text x="312" y="164" text-anchor="end">{last:.0f}</text></g></svg>'
        f"<figcaption>{escape(text)} ({note})</figcaption></figure>"
    )


def markdown(text: str) -> str:
    """Headings, tables and paragraphs of the Markdown that olivine writes."""
    parts: list[str] = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        while lines and lines[0].startswith("#"):
            parts.append(f"<h3>{escape(lines.pop(0).lstrip('# '))}</h3>")
        rows = [[escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        if len(rows) > 1:
            parts.append(table(rows[0], rows[2:]))
        elif lines:
            parts.append(f"<p>{escape(' '.join(lines))}</p>")
    return "".join(parts)
