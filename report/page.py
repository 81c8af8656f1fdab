"""The page of ``olivine report``: one HTML file that needs nothing beside it and no network."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..common import Failure, OlivineError, PathLike, atomic_directory, package_versions, write_bytes
from ..common.colors import NO_LABEL, class_colors
from ..labelgen.store import LabelStore
from . import charts
from .charts import escape, percent, swatch, table
from .contents import LOSS_NAMES, Contents, Sources, read_contents
from .figures import draw_pictures
from .frames import EDGES, Statistics, View, choose_frames, make_view, read_statistics


@dataclass(frozen=True)
class ReportSummary:
    """What was written, and what is not in it because its input is not there.

    Attributes:
        page: the file to open or to send.
        mebibytes: its size.
        frames: that can be stepped through.
        pictures: PNG files beside it, for slides and papers.
    """

    page: Path
    mebibytes: float
    frames: int
    pictures: int
    left_out: tuple[str, ...] = ()
    failures: list[Failure] = field(default_factory=list)


def write_report(sources: Sources, out: PathLike, frames: int = 3) -> ReportSummary:
    """Write ``index.html`` and the pictures into the folder ``out``, whole or not at all.

    Args:
        sources: the folders to read; what is missing of them is said on the page.
        frames: how many frames can be stepped through: the worst first and the median one last, where labels or
            predictions rank them, else spread over the shards.

    Raises:
        OlivineError: there is nothing to report, or ``frames`` is below 1.
    """
    if frames < 1:
        raise OlivineError(f"--frames {frames} draws nothing", remedy="give it 1 or more")
    contents = read_contents(sources)
    shards = contents.shards
    found = contents.attempt("statistics", lambda: read_statistics(contents, shards)) if shards is not None else None
    for problem in dict.fromkeys(found.problems if found is not None else ()):
        contents.missing.append(f"a frame: {problem}")
    # Shards that are gone are as good as none: the label maps can still be shown.
    readable = shards if found is not None and found.frames else None
    chosen = choose_frames(found, frames) if found is not None and readable else [(k, "") for k in range(frames)]
    view = make_view(contents, readable, chosen)
    with atomic_directory(out) as folder:
        pictures = draw_pictures(contents, readable, [index for index, _ in chosen], folder)
        text = _page(contents, found if readable else None, view)
        write_bytes(folder / "index.html", text.encode())
    left_out = tuple(dict.fromkeys(contents.missing))
    size = round(len(text.encode()) / 2**20, 2)
    return ReportSummary(Path(out) / "index.html", size, len(view.frames), pictures, left_out)


def _page(contents: Contents, found: Statistics | None, view: View) -> str:
    title = _title(contents)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(contents),
        _result(contents),
        _missing(contents),
        _frames(view),
        _scores(contents),
        _classes(contents, found),
        _quality(contents, found),
        _losses(contents),
        _study(contents),
        _provenance(contents),
    ]
    assets = resources.files(__package__) / "assets"
    style, program = (assets / "page.css").read_text("utf-8"), (assets / "view.js").read_text("utf-8")
    scripts = ""
    if view.frames:
        scripts = _json_script("spec", json.dumps(view.spec, allow_nan=False))
        scripts += "".join(_json_script(f"frame-{k}", text) for k, text in enumerate(view.frames))
        scripts += f"<script>{program}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>{style}</style></head>\n'
        f"<body><main>\n{chr(10).join(filter(None, parts))}\n</main>\n{scripts}</body></html>\n"
    )


def _json_script(name: str, text: str) -> str:
    # "<" as an escape: nothing in the data can end the element.
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>\n'


def _settings(contents: Contents) -> dict[str, Any]:
    return contents.identity["settings"] if contents.identity is not None else {}


def _title(contents: Contents) -> str:
    settings = _settings(contents)
    name = settings.get("name") or settings.get("method", {}).get("name")
    data = contents.shards.dataset if contents.shards is not None else None
    if data is None and contents.labels is not None:
        data = str(contents.labels.manifest.get("data", {}).get("dataset", "label maps"))
    parts = [f"run {name}" if name else "", f"on {data}" if name and data else data or ""]
    return "olivine: " + (" ".join(filter(None, parts)) or "report")


def _facts(contents: Contents) -> str:
    facts: list[tuple[str, str]] = []
    if (shards := contents.shards) is not None:
        version = shards.manifest["recipe"]["version"]
        facts.append(("data set", f"{shards.dataset} {version}".strip()))
        facts.append((f"{shards.split} frames", f"{len(shards):,}"))
        facts.append(("pairs", f"{shards.manifest['pairs']:,}"))
    labeler = _labeler(contents)
    if labeler:
        facts.append(("labeler", labeler))
    settings = _settings(contents)
    if settings:
        facts.append(("method", str(settings.get("method", {}).get("name", "unknown"))))
        facts.append(("3D network", str(settings.get("backbone", {}).get("name", "unknown"))))
        facts.append(("image encoder", str(settings.get("image", {}).get("encoder", "none"))))
    if contents.curves:
        last = max(curve[-1, 0] for curve in contents.curves.values())
        facts.append(("steps", f"{int(last) + 1:,}"))
    items = "".join(f"<li>{escape(name)}<b>{escape(value)}</b></li>" for name, value in facts)
    return f'<ul class="facts">{items}</ul>' if items else ""


def _labeler(contents: Contents) -> str:
    if contents.labels is not None:
        return str(contents.labels.manifest.get("labeler", ""))
    if contents.shards is not None:
        return str(contents.shards.manifest.get("provenance", {}).get("labels", {}).get("labeler", ""))
    return ""


def _result(contents: Contents) -> str:
    sentences = []
    for title, results in contents.scores[:2]:
        by_name = {r["name"]: 100 * r["scores"]["mean_iou"] for r in results}
        random = by_name.pop("random weights", None)
        for name, value in by_name.items():
            beside = f", random weights {random:.1f} %" if random is not None else ""
            sentences.append(f"{title[0].upper()}{title[1:]}, {name}: {value:.1f} % mean IoU{beside}.")
    caveats = []
    if contents.scores:
        caveats.append("one run with one seed, so nothing is known of the spread")
        notes = [note for _, results in contents.scores for r in results for note in r.get("notes", ())]
        caveats += dict.fromkeys(str(note) for note in notes)
        absent = {c for _, results in contents.scores for r in results for c in r["scores"].get("absent", ())}
        if absent:
            caveats.append(f"classes that the validation frames lack are left out ({', '.join(sorted(absent))})")
    elif contents.identity is not None:
        sentences.append("This run has no score yet.")
    if contents.progress:
        caveats.append(contents.progress)
    if _labeler(contents) == "oracle":
        caveats.append("weak labels are ground truth with made errors (the oracle), not a foundation model's")
    if not sentences:
        return ""
    caveat = f" <small>Read with care: {escape('; '.join(caveats))}.</small>" if caveats else ""
    return f'<p class="result">{escape(" ".join(sentences))}{caveat}</p>'


def _missing(contents: Contents) -> str:
    if not contents.missing:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(contents.missing))
    return f'<div class="missing"><b>Not on this page</b><ul>{items}</ul></div>'


def _frames(view: View) -> str:
    if not view.frames:
        return ""
    return f"""<h2>Frames</h2>
<noscript><p>The frames need JavaScript; the tables below do not.</p></noscript>
<div class="tools"{" hidden" if len(view.frames) == 1 else ""}><button type="button" id="previous">previous</button>
<input type="range" id="slider" min="1" max="{len(view.frames)}" value="1" aria-label="frame">
<button type="button" id="next">next</button></div>
<p id="caption" aria-live="polite"></p>
<div class="tools"><label>colour by <select id="mode"></select></label>
<label><input type="checkbox" id="points" checked> points on the images</label>
<label><input type="checkbox" id="overlay"> label maps on the images</label>
<label>at <input type="range" id="opacity" min="10" max="100" value="55" aria-label="opacity of the label maps"></label></div>
<div class="tools" id="legend" aria-label="classes to show"></div>
<p id="ramp" hidden><span id="ramp-low"></span> <b></b> <span id="ramp-high"></span></p>
<div class="tools"><button type="button" id="all">all classes</button><button type="button" id="none">no class</button></div>
<div id="images"></div>
<section id="scene3d"><h3>The cloud</h3>
<canvas id="cloud" tabindex="0" role="img" aria-label="The frame's points in 3D. Arrow keys turn, plus and minus zoom."></canvas>
<p class="soft">Drag to turn, wheel or two fingers to zoom, Shift and drag to move; point at a point to read it.</p>
<div class="tools"><button type="button" id="reset">from behind</button><button type="button" id="above">from above</button></div>
<p id="readout" aria-live="off"></p></section>"""


def _scores(contents: Contents) -> str:
    if not contents.scores:
        return ""
    columns = [(f"{title}, {r['name']}", r["scores"]) for title, results in contents.scores for r in results]
    classes = list(dict.fromkeys(name for _, scores in columns for name in scores["iou"]))
    colors = dict(zip(classes, class_colors(classes)[1:]))
    rows = [
        [swatch(colors[name]) + escape(name), *(percent(scores["iou"].get(name)) for _, scores in columns)]
        for name in classes
    ]
    rows.append(["<b>mean</b>", *(f"<b>{percent(scores['mean_iou'])}</b>" for _, scores in columns)])
    return "<h2>Scores</h2>" + table(["IoU / %", *(escape(name) for name, _ in columns)], rows)


def _classes(contents: Contents, found: Statistics | None) -> str:
    shards, store = contents.shards, contents.labels
    classes = shards.classes if shards is not None else store.classes if store is not None else ()
    if not classes:
        return ""
    names, colors = ["no label", *classes], [NO_LABEL, *class_colors(classes)[1:]]
    columns: list[tuple[str, list[str]]] = []
    pixels = _pixels(contents) if store is not None and store.classes == classes else None
    if pixels is not None and pixels.sum():
        columns.append(("pixels / %", [percent(float(v), 2) for v in pixels / pixels.sum()]))
    if shards is not None:
        count = shards.class_count
        columns.append(("pairs", [f"{int(v):,}" for v in count]))
        columns.append(("pairs / %", [percent(float(v), 2) for v in count / max(1, count.sum())]))
    scores = contents.label_scores
    if scores is not None:
        for kind in ("iou", "precision", "recall"):
            values = [scores[kind].get(name) for name in names]
            columns.append((f"label map {'IoU' if kind == 'iou' else kind} / %", [_of_percent(v) for v in values]))
    rows = [
        [swatch(color) + escape(name), *(cells[k] for _, cells in columns)]
        for k, (name, color) in enumerate(zip(names, colors))
    ]
    text = "<h2>Classes</h2>" + table(["class", *(name for name, _ in columns)], rows)
    if found is None:
        return text
    rows = []
    for k in range(len(EDGES) - 1):
        total = int(found.pairs[k].sum())
        shares = found.pairs[k] / max(1, total)
        rows.append(
            [
                _distance(k),
                f"{int(found.points[k]):,}",
                percent(found.seen[k] / found.points[k] if found.points[k] else None),
                f"{total:,}",
                percent(1 - float(shares[0]) if total else None),
                charts.stacked_bar(shares.tolist(), names, colors),
            ]
        )
    head = ["distance", "points", "seen by a camera / %", "pairs", "with a label / %", "labels of the pairs"]
    note = f"Of {found.frames} frame{'s, evenly spread over' if found.frames > 1 else ' of'} {found.of}."
    return f'{text}<h3>By distance</h3>{table(head, rows)}<p class="soft">{note}</p>'


def _of_percent(value: float | None) -> str:
    return percent(None if value is None else value / 100)


def _distance(k: int) -> str:
    return f"{EDGES[k]:g}–{EDGES[k + 1]:g} m" if np.isfinite(EDGES[k + 1]) else f"from {EDGES[k]:g} m"


def _pixels(contents: Contents) -> Any:
    """Pixels of each value over the finished scenes of the label store, int64 [K + 1]."""
    store = contents.labels
    assert store is not None
    total = np.zeros(len(store.classes) + 1, np.int64)
    for path in sorted((store.root / "units").glob("[!.]*.json")):
        record = contents.attempt("pixels of a scene", lambda path=path: store.unit(path.stem))  # type: ignore[misc]
        if record is not None and len(record["pixels"]) == len(total):
            total += np.array(record["pixels"], np.int64)
    return total


def _quality(contents: Contents, found: Statistics | None) -> str:
    lines = []
    scores = contents.label_scores
    if scores is not None and scores["mean_iou"] is not None:
        truth = "the exact masks" if scores["against"] == "masks" else "the labelled points"
        text = f"Against {truth}: mean IoU {scores['mean_iou']:.1f} % over {scores['images']:,} images"
        cover = "" if scores["coverage"] is None else f", {scores['coverage']:.1f} % of what has a class has a label"
        lines.append(f"<p>{text}{cover}.</p>")
        if contents.labels is not None and _of_other_maps(scores, contents.labels):
            lines.append("<p>These scores are of other label maps than those of this page: score them again.</p>")
    if found is not None:
        lines += _at_points(contents, found)
    return "<h2>Label quality</h2>" + "".join(lines) if lines else ""


def _of_other_maps(scores: dict[str, Any], store: LabelStore) -> bool:
    """Whether ``score.json`` is of another store, or of maps that have been made again; False where it does not say."""
    now = {scene: store.maps_digest(scene) for scene in scores.get("maps", {})}
    made_again = any(now[scene] and then not in ("", now[scene]) for scene, then in scores.get("maps", {}).items())
    return made_again or scores.get("labels") not in (None, store.digest)


def _at_points(contents: Contents, found: Statistics) -> list[str]:
    lines = []
    if found.known.any():
        rows = []
        for k in range(len(EDGES) - 1):
            known, right = int(found.known[k].sum()), int(found.right[k].sum())
            rows.append([_distance(k), f"{known:,}", percent(right / known if known else None)])
        lines.append("<h3>With ground truth: weak labels of the pairs</h3>")
        lines.append(table(["distance", "pairs whose class is a prompt", "right / %"], rows))
    if found.twice:
        share = percent(found.agreeing / found.twice)
        text = f"Of {found.twice:,} points that two cameras see, {share} % carry the same weak label in both."
        lines.append(f"<h3>Without ground truth</h3><p>{text}</p>")
    if found.scores:
        values = np.array(list(found.scores.values()))
        text = f"By frame {percent(float(values.mean()))} % {found.ranked_by} in the mean, "
        text += f"from {percent(float(values.min()))} to {percent(float(values.max()))} % over {len(values)} frames."
        lines.append(f"<p>{escape(text)}</p>")
    return lines


def _losses(contents: Contents) -> str:
    shown = [charts.line_chart(LOSS_NAMES.get(name, name), curve) for name, curve in contents.curves.items()]
    return f'<h2>Losses</h2><div class="charts">{"".join(shown)}</div>' if shown else ""


def _study(contents: Contents) -> str:
    if contents.study is None:
        return ""
    text, picture = contents.study
    image = ""
    if picture is not None:
        source = base64.b64encode(picture).decode()
        image = f'<img class="study" alt="The tables above as a chart" src="data:image/png;base64,{source}">'
    return f"<h2>Study</h2>{charts.markdown(text)}{image}"


def _provenance(contents: Contents) -> str:
    sources, rows = contents.sources, []
    versions = {"olivine that wrote this page": package_versions(["olivine"])["olivine"]}
    if (store := contents.labels) is not None:
        rows.append(("label maps", str(store.root), store.digest))
        versions |= {f"{name}, label maps": v for name, v in store.manifest.get("packages", {}).items()}
    if (shards := contents.shards) is not None:
        rows.append((f"shards ({shards.split})", str(shards.path), shards.digest))
        packages = shards.manifest["provenance"]["packages"]
        versions |= {f"{name}, shards": ", ".join(found) for name, found in packages.items()}
    if contents.identity is not None:
        rows.append(("run: its training shards", str(sources.run), str(contents.identity["data"].get("digest", ""))))
        encoder = contents.identity.get("encoder")
        if isinstance(encoder, dict):
            rows.append(("image encoder's weights", str(encoder.get("kind", "")), str(encoder.get("digest", ""))))
    if contents.predictions is not None:
        rows.append(("predictions", str(contents.predictions.folder), ""))
    if contents.study is not None:
        rows.append(("study", str(sources.study), ""))
    versions |= package_versions(["torch", "numpy"])
    places = table(
        ["what", "where", "SHA-256"], [[escape(cell) for cell in row] for row in rows if row[1] != "None"], "text"
    )
    packages_table = table(["package", "version"], [[escape(k), escape(str(v))] for k, v in versions.items()], "text")
    commands = "\n".join(_commands(contents))
    details = [
        f"<details><summary>{name}</summary><pre>{escape(json.dumps(value, indent=1, sort_keys=True))}</pre></details>"
        for name, value in (
            ("settings of the labels", contents.labels.manifest["settings"] if contents.labels is not None else None),
            ("settings of the pairs", shards.manifest["recipe"]["settings"] if shards is not None else None),
            ("settings of the run", contents.identity["settings"] if contents.identity is not None else None),
        )
        if value is not None
    ]
    return (
        f"<h2>Provenance</h2>{places}<h3>Commands</h3><p class='soft'>As the folders tell it; settings that are not the "
        f"defaults are below.</p><pre>{escape(commands)}</pre>{''.join(details)}"
        f"<details><summary>versions</summary>{packages_table}</details>"
    )


def _commands(contents: Contents) -> list[str]:
    sources, commands = contents.sources, []
    if (store := contents.labels) is not None:
        dataset = store.manifest.get("data", {}).get("dataset", "DATASET")
        labeler = store.manifest.get("labeler", "auto")
        commands.append(f"olivine labelgen --dataset {dataset} --labeler {labeler} --out {store.root}")
    if (shards := contents.shards) is not None:
        commands.append(f"olivine build-pairs --labels {store.root if store else 'LABELS'} --out {shards.path.parent}")
    if contents.identity is not None:
        trained = _settings(contents).get("data", {})
        trained = trained.get("shards") if isinstance(trained, dict) else None
        name = _settings(contents).get("name", "auto")
        commands.append(f"olivine pretrain --config {name} --shards {trained or 'SHARDS'} --out {sources.run}")
    return commands or ["none: there is no stage's folder"]
