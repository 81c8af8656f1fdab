"""Fetch, list and check the foundation models' weights."""

from __future__ import annotations

import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import (
    Failure,
    OlivineError,
    PathLike,
    demand,
    disk_error,
    read_json,
    sha256_file,
    track,
    weights_folder,
    write_json,
)
from .catalogue import CATALOGUE, WeightFile, Weights, find_weights

SUMS = "sha256.json"
_CHUNK = 1 << 20
_WAITS = (0.0, 1.0, 5.0, 15.0)  # seconds before each attempt


@dataclass
class WeightsSummary:
    """What :func:`fetch_weights` or :func:`check_weights` did.

    Attributes:
        folder: the weights folder.
        files: path → SHA-256 of every file that is there and right.
        fetched: bytes that came over the network.
        unverified: files whose publisher's digest is not known; theirs was noted when they came.
        failures: files that are missing or wrong, and why.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    fetched: int = 0
    unverified: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def _known_sums(folder: Path) -> dict[str, str]:
    path, remedy = folder / SUMS, "delete it; the digests are noted again when files are fetched"
    if not path.exists():
        return {}
    sums: dict[str, str] = demand(read_json(path, remedy), {str: str}, path, remedy)
    return sums


def list_weights(folder: PathLike | None = None) -> list[dict[str, Any]]:
    """The catalogue: name, role, licence, gated or not, source, files with size, SHA-256, and whether each is in ``folder``."""
    base = Path(folder) if folder is not None else weights_folder()
    return [
        {
            "name": entry.name,
            "role": entry.role,
            "licence": entry.licence,
            "gated": entry.gated,
            "source": entry.source,
            "present": all((base / f.path).is_file() for f in entry.files),
            "files": [
                {"path": f.path, "url": f.url, "size": f.size, "sha256": f.sha256, "present": (base / f.path).is_file()}
                for f in entry.files
            ],
        }
        for entry in CATALOGUE
    ]


def _wrong(path: Path, file: WeightFile, sums: dict[str, str]) -> tuple[str, str]:
    """A file's SHA-256 and what is wrong with it, empty where nothing is."""
    size = path.stat().st_size
    digest = sha256_file(path)
    expected = file.sha256 or sums.get(file.path, "")
    if file.size and size != file.size:
        return digest, f"has {size} bytes, its publisher says {file.size}"
    if expected and digest != expected:
        return digest, f"has the SHA-256 {digest}, not {expected}"
    return digest, ""


def check_weights(
    names: Sequence[str] = (), folder: PathLike | None = None, catalogue: Sequence[Weights] = CATALOGUE
) -> WeightsSummary:
    """Compare files with the catalogue's sizes and digests.

    Args:
        names: catalogue names; without any, every model of which a file is there.
    """
    base = Path(folder) if folder is not None else weights_folder()
    summary = WeightsSummary(base)
    sums = _known_sums(base)
    chosen = _choose(names, catalogue)
    if not names:
        chosen = [entry for entry in chosen if any((base / f.path).exists() for f in entry.files)]
    for file in [f for entry in chosen for f in entry.files]:
        path = base / file.path
        if not path.is_file():
            summary.failures.append(Failure(file.path, f"{path}: no such file. Fetch it with olivine weights fetch"))
            continue
        digest, problem = _wrong(path, file, sums)
        if problem:
            summary.failures.append(Failure(file.path, f"{path}: {problem}. Delete it and fetch it again"))
            continue
        summary.files[file.path] = digest
        if not (file.sha256 or file.path in sums):
            summary.unverified.append(file.path)
    return summary


def fetch_weights(
    names: Sequence[str], folder: PathLike | None = None, catalogue: Sequence[Weights] = CATALOGUE
) -> WeightsSummary:
    """Fetch models' files, going on where an earlier call was cut off; what is there and right is left.

    A file appears under its name when its size and SHA-256 are right, not before. Gated files are asked for with the token
    in ``$HF_TOKEN``, which goes to their server and not along a redirection to another.

    Args:
        names: catalogue names.
        folder: the weights folder; ``$OLIVINE_WEIGHTS`` or ``~/.cache/olivine/weights`` without one.

    Raises:
        OlivineError: no name is given or one is unknown, or the disk is full.
    """
    if not names:  # all of them together are over 15 GB
        raise OlivineError(
            "no weights are named", remedy=f"name what to fetch: {', '.join(entry.name for entry in catalogue)}"
        )
    base = Path(folder) if folder is not None else weights_folder()
    summary = WeightsSummary(base)
    sums = _known_sums(base)
    for entry, file in [(model, f) for model in _choose(names, catalogue) for f in model.files]:
        path = base / file.path
        try:
            if path.is_file():
                digest, problem = _wrong(path, file, sums)
                if problem:
                    raise OlivineError(problem, where=path, remedy="delete it and fetch it again")
            else:
                digest, count = _fetch(file, path, entry)
                summary.fetched += count
        except OlivineError as error:
            if isinstance(error.__cause__, OSError):  # the disk: the next file would not fare better
                raise
            summary.failures.append(Failure(file.path, str(error)))
            continue
        summary.files[file.path] = digest
        if not file.sha256:
            summary.unverified.append(file.path)
            if sums.get(file.path) != digest:
                sums[file.path] = digest
                write_json(base / SUMS, sums)
    return summary


def _choose(names: Sequence[str], catalogue: Sequence[Weights]) -> list[Weights]:
    if catalogue is CATALOGUE:
        return [find_weights(name) for name in names] if names else list(CATALOGUE)
    return [entry for entry in catalogue if not names or entry.name in names]


def _url(file: WeightFile) -> str:
    # The hub's own variable for a mirror, as huggingface_hub honours it.
    mirror = os.environ.get("HF_ENDPOINT")
    return file.url.replace("https://huggingface.co", mirror.rstrip("/"), 1) if mirror else file.url


def _fetch(file: WeightFile, path: Path, entry: Weights) -> tuple[str, int]:
    """Fetch one file; returns its SHA-256 and the bytes that came."""
    part = path.with_name(f".{path.name}.part")
    token = os.environ.get("HF_TOKEN", "").strip() if entry.gated else ""
    if entry.gated and not token:
        raise _refused(entry, "no token is given")
    fetched = 0
    for attempt, wait in enumerate(_WAITS, 1):
        time.sleep(wait)
        try:
            fetched += _continue(_url(file), part, path.name, token)
            break
        except urllib.error.HTTPError as error:
            if entry.gated and error.code in (401, 403):
                raise _refused(entry, f"the server answers {error.code} to the token in HF_TOKEN") from None
            if error.code < 500 or attempt == len(_WAITS):
                raise OlivineError(
                    f"the server answers {error.code} {error.reason}",
                    where=_url(file),
                    remedy="check the network, or fetch it by hand",
                ) from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, socket.gaierror) and attempt > 1:
                raise OlivineError(
                    f"there is no way to the server ({reason})",
                    where=_url(file),
                    remedy="check the network or the proxy (HTTPS_PROXY), or fetch it by hand",
                ) from None
            if attempt == len(_WAITS):
                have = part.stat().st_size if part.exists() else 0
                raise OlivineError(
                    f"the connection failed after {have} bytes ({reason})",
                    where=_url(file),
                    remedy="run the command again; it goes on from there",
                ) from None
    digest, problem = _wrong(part, file, {})
    if problem:
        part.unlink()
        raise OlivineError(f"what came {problem}", where=_url(file), remedy="fetch it again, or from another place")
    os.replace(part, path)
    part.with_suffix(".etag").unlink(missing_ok=True)
    return digest, fetched


def _refused(entry: Weights, why: str) -> OlivineError:
    return OlivineError(
        f"{entry.name} is gated ({entry.licence}), and {why}",
        where=entry.source,
        remedy="accept the licence on that page, and set HF_TOKEN to a token of that account that may read it",
    )


def _continue(url: str, part: Path, name: str, token: str = "") -> int:
    """Append to ``part`` what is missing of a file; returns the bytes that came."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, part) from error
    tag = part.with_suffix(".etag")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "olivine"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
        # Without the tag of the bytes that are here, a file changed meanwhile would be
        # spliced; the digest would tell, but only after all of it had come.
        if tag.exists():
            request.add_header("If-Range", tag.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the part is too long: the digest decides
            return 0
        raise
    with response:
        if response.status != 206:
            have = 0
        if etag := response.headers.get("ETag"):
            tag.write_text(etag)
        length = response.headers.get("Content-Length") or ""
        left = int(length) if length.isdecimal() else 0
        total = max(1, -(-left // _CHUNK))
        count = 0
        try:
            with open(part, "ab" if have else "wb") as handle:
                for chunk in track(iter(lambda: response.read(_CHUNK), b""), name, total=total, unit="MiB"):
                    handle.write(chunk)
                    count += len(chunk)
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            raise
        except OSError as error:
            raise disk_error(error, part) from error
        if left and count < left:
            raise ConnectionResetError(f"{left - count} bytes are missing")
        return count
