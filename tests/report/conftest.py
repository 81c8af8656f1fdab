"""A headless Chromium for the tests of the page: $OLIVINE_CHROMIUM, what the system has, or Playwright's."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


NO_CHROMIUM = (
    "no Chromium here: apt-get install chromium, or pip install playwright && playwright install chromium, "
    "or name one in OLIVINE_CHROMIUM"
)


def chromium() -> str | None:
    """The browser to take.

    Raises:
        pytest.fail: the one that is named is none.
    """
    named = os.environ.get("OLIVINE_CHROMIUM")
    if named is not None and shutil.which(named) is None:
        pytest.fail(f"OLIVINE_CHROMIUM is {named}, which is no program", pytrace=False)
    downloads = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    playwrights = sorted(downloads.glob("chromium*/chrome-*/*"), reverse=True)
    there = [str(path) for path in playwrights if path.name in ("chrome", "headless_shell", "chrome-headless-shell")]
    return named or next(filter(None, map(shutil.which, (*NAMES, *there))), None)


class Browser:
    """One tab, driven over the DevTools protocol: JSON messages ended by a zero byte, on two pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The protocol wants descriptors 3 and 4.
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        command = ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        fds = (to_browser, from_browser)
        self._process = subprocess.Popen(command, pass_fds=fds, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a page and wait until it is there; ``events`` then holds what happened."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression in the page, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors on the console, exceptions, and every request that is not for the page or for data in it."""
        self.run("new Promise((done) => setTimeout(done, 100))")
        found = []
        for event in self.events:
            what, more = event.get("method"), event.get("params", {})
            if what == "Runtime.exceptionThrown":
                found.append(json.dumps(more))
            elif what in ("Runtime.consoleAPICalled", "Log.entryAdded"):
                found += [json.dumps(more)] if "error" in (more.get("type"), more.get("entry", {}).get("level")) else []
            elif what == "Network.requestWillBeSent":
                url = more["request"]["url"]
                found += [url] if not url.startswith("data:") and more.get("type") != "Document" else []
        return found

    def picture(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip(NO_CHROMIUM)
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def keyframe_folders(tmp_path_factory: pytest.TempPathFactory, nuscenes_keyframe: Path, keyframe_camseg: Path) -> Path:
    """``labels`` and ``shards`` of the keyframe."""
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.settings import PairSettings
    from olivine.readers import index_dataset

    folder = tmp_path_factory.mktemp("report")
    index, _ = index_dataset(folder / "labels" / "frames", "nuscenes", nuscenes_keyframe)
    generate_labels(index, folder / "labels", LabelSettings(labeler="import", camseg=keyframe_camseg))
    build_pairs(open_store(folder / "labels"), folder / "shards", PairSettings(workers=1), split="val")
    return folder


@pytest.fixture(scope="module")
def keyframe_report(keyframe_folders: Path) -> tuple[Path, Any]:
    """The report of the keyframe, and its summary."""
    from olivine.report.contents import Sources
    from olivine.report.page import write_report

    sources = Sources(labels=keyframe_folders / "labels", shards=keyframe_folders / "shards")
    return keyframe_folders / "out", write_report(sources, keyframe_folders / "out")
