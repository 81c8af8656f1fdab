"""The site of the pages: which there are and in what order. Built by ``make docs`` (build.py copies the pages first)."""

from __future__ import annotations

# Three kinds of pages, kept apart. A page that is not here is no part of the site, and a test says so.
NAVIGATION = {
    "To learn": ("install", "first-hour", "own-data", "nuscenes", "openpcdet", "choosing"),
    "To look up": (
        *(
            "command-line",
            "settings",
            "api",
            "report",
            "datasets",
            "synthetic",
            "labelgen",
            "regions",
            "pairs",
            "shards",
        ),
        *("pretrain", "downstream", "detection", "cluster", "troubleshooting", "glossary", "versions"),
        *("../CHANGELOG", "../CONTRIBUTING"),
    ),
    "The evidence": (
        "study",
        "study-full",
        "study-labels",
        "study-settings",
        "study-first",
        "reliability",
        "sparse",
        "sparse-cpu",
        "gpu",
    ),
}

project = "olivine"
copyright = "the olivine authors"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "furo"
html_title = "olivine"
html_copy_source = False
html_static_path = ["wide.css"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
# The pages' indented blocks are shell commands, layouts and output: no one language.
highlight_language = "text"
# As GitHub makes them, so that one link works in both places.
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False
nitpicky = True


def _navigation() -> str:
    """The three kinds as Sphinx' tables of contents, seen at the side of every page."""
    parts = []
    for caption, names in NAVIGATION.items():
        entries = "\n".join(name.removeprefix("../") if name.startswith("../") else f"docs/{name}" for name in names)
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n")
    return "".join(parts)


def _add_navigation(app: object, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += _navigation()


def setup(app: object) -> None:
    """What Sphinx calls: the README, which is the first page, gets the navigation."""
    app.connect("source-read", _add_navigation)  # type: ignore[attr-defined]
