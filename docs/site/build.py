"""Build the site of the pages into build/docs: ``make docs``.

The README, the changelog, CONTRIBUTING and docs/ are copied as they lie in the repository, so that a link that works there
works here. Sphinx treats every warning as an error (a page outside the navigation, a link to a page or a heading that is
not there). What it made is then read once more: every link between pages, with its anchor, leads somewhere, and no page
loads anything from the network. Links that leave the site are listed in build/docs/external-links.txt; nothing is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


def copy_pages(to: Path) -> None:
    """The pages as Sphinx reads them: the README is ``index.md``."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    shutil.copyfile(ROOT / "README.md", to / "index.md")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copyfile(ROOT / name, to / name)
    shutil.copytree(ROOT / "docs", to / "docs", ignore=shutil.ignore_patterns("site", "__pycache__"))


class Page(HTMLParser):
    """The names, links and loaded files of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names, links to or loads."""
        given = {key: value for key, value in attrs if value}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        # A link tag may only say where something is (rel=search, next, canonical).
        if tag in LOADED and LOADED[tag] in given and (tag != "link" or given.get("rel") in ("stylesheet", "icon")):
            self.loaded.append(given[LOADED[tag]])


def check_site(site: Path) -> tuple[list[str], dict[str, set[str]]]:
    """What is wrong in a built site, and each link that leaves it with the pages that have it."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    wrong: list[str] = []
    outside: dict[str, set[str]] = {}
    for path, page in pages.items():
        where = path.relative_to(site)
        wrong += [f"{where} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        inside = [url for url in page.loaded if not urlsplit(url).netloc and not url.startswith("data:")]
        for url in (*page.links, *inside):
            parts = urlsplit(url)
            if parts.scheme in ("http", "https"):
                outside.setdefault(url, set()).add(str(where))
                continue
            file, anchor = urldefrag(url)
            target = (path.parent / unquote(urlsplit(file).path)).resolve() if file else path
            if parts.scheme or not target.is_file():
                wrong.append(f"{where}: {url} leads nowhere")
            elif anchor and target in pages and unquote(anchor) not in pages[target].names:
                wrong.append(f"{where}: {url}: that page has no such heading")
    return wrong, outside


def main() -> int:
    """Build and check; the exit code."""
    source, site = ROOT / "build/docs-source", ROOT / "build/docs"
    copy_pages(source)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-n", "-W", "--keep-going", "-c", ROOT / "docs/site"]
    failed = subprocess.run([*map(str, command), "-d", str(ROOT / "build/docs-cache"), str(source), str(site)])
    if failed.returncode:
        return failed.returncode
    wrong, outside = check_site(site)
    lines = [f"{url}\t{' '.join(sorted(pages))}" for url, pages in sorted(outside.items())]
    (site / "external-links.txt").write_text("".join(f"{line}\n" for line in lines))
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{site / 'index.html'}; {len(lines)} links leave the site: {site / 'external-links.txt'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
