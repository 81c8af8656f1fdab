"""Fetching weights: from a server on the loopback address that breaks off, changes, and lies."""

from __future__ import annotations

import hashlib
import socket
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.labelgen.catalogue import CATALOGUE, WeightFile, Weights, find_weights
from olivine.labelgen.weights import check_weights, fetch_weights, list_weights

CONTENT = np.random.default_rng(0).bytes(3_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT with ranges; ``breaks`` answers end after so many bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = CONTENT, '"one"'
        self.breaks: list[int] = []
        self.ranges: list[str | None] = []
        self.status: int | None = None
        self.gate: str | None = None
        self.tokens: list[str | None] = []
        self.honours_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        server.tokens.append(self.headers.get("Authorization"))
        if server.gate is not None and self.path == "/gate/model.pth":
            if self.headers.get("Authorization") != f"Bearer {server.gate}":
                self.send_error(401 if self.headers.get("Authorization") is None else 403)
                return
            self.send_response(302)
            self.send_header("Location", server.url.replace("127.0.0.1", "localhost"))
            self.end_headers()
            return
        if server.status is not None:
            self.send_error(server.status)
            return
        body, code = server.content, 200
        same = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.honours_ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            body, code = body[start:], 206
        self.send_response(code)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else len(body)
        self.wfile.write(body[:limit])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("olivine.labelgen.weights._WAITS", (0.0,) * 4)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def _catalogue(server, sha256=SHA256, size=3_500_000):
    return [Weights("model", "a test", "none", "here", (WeightFile("sub/model.pth", server.url, size, sha256),))]


def test_a_file_is_fetched_verified_and_not_fetched_again(server, tmp_path):
    summary = fetch_weights(["model"], tmp_path, _catalogue(server))
    assert (summary.failures, summary.fetched, summary.files) == ([], len(CONTENT), {"sub/model.pth": SHA256})
    assert (tmp_path / "sub/model.pth").read_bytes() == CONTENT
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["model.pth"]
    again = fetch_weights(["model"], tmp_path, _catalogue(server))
    assert (again.failures, again.fetched, len(server.ranges)) == ([], 0, 1)


def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path):
    server.breaks = [1_000_000, 700_000]
    summary = fetch_weights(["model"], tmp_path, _catalogue(server))
    assert summary.failures == [] and (tmp_path / "sub/model.pth").read_bytes() == CONTENT
    assert server.ranges[0] is None and len(server.ranges) == 3
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in server.ranges[1:]]
    assert 0 < starts[0] <= 1_000_000 < starts[1]


def test_a_fetch_that_was_given_up_goes_on_in_the_next_call(server, tmp_path):
    server.breaks = [400_000] * 4
    summary = fetch_weights(["model"], tmp_path, _catalogue(server))
    (failure,) = summary.failures
    assert "the connection failed after" in failure.reason and "goes on from there" in failure.reason.lower()
    assert not (tmp_path / "sub/model.pth").exists()
    again = fetch_weights(["model"], tmp_path, _catalogue(server))
    assert again.failures == [] and again.fetched < len(CONTENT)
    assert (tmp_path / "sub/model.pth").read_bytes() == CONTENT


def test_without_a_network_it_does_not_wait_for_one(server, tmp_path, monkeypatch):
    asked = []

    def no_name(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr("urllib.request.urlopen", no_name)
    (failure,) = fetch_weights(["model"], tmp_path, _catalogue(server)).failures
    assert "no way to the server" in failure.reason and "HTTPS_PROXY" in failure.reason
    assert len(asked) == 2


def test_a_file_that_changed_meanwhile_is_not_spliced(server, tmp_path):
    server.breaks = [1_000_000, 1, 1, 1]
    fetch_weights(["model"], tmp_path, _catalogue(server))
    server.content, server.etag = CONTENT[::-1], '"two"'
    other = hashlib.sha256(server.content).hexdigest()
    summary = fetch_weights(["model"], tmp_path, _catalogue(server, sha256=other))
    assert summary.failures == [] and (tmp_path / "sub/model.pth").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.honours_ranges = False
    server.breaks = [1_000_000]
    summary = fetch_weights(["model"], tmp_path, _catalogue(server))
    assert summary.failures == [] and (tmp_path / "sub/model.pth").read_bytes() == CONTENT


def test_a_wrong_digest_or_size_is_refused_and_nothing_is_left(server, tmp_path):
    for catalogue, message in (
        (_catalogue(server, sha256="0" * 64), f"has the SHA-256 {SHA256}"),
        (_catalogue(server, size=17), "its publisher says 17"),
    ):
        (failure,) = fetch_weights(["model"], tmp_path, catalogue).failures
        assert message in failure.reason
        assert not list((tmp_path / "sub").glob("*.pth")) and not list((tmp_path / "sub").glob(".*.part"))


def test_a_refusal_of_the_server_is_told_at_once(server, tmp_path):
    server.status = 404
    (failure,) = fetch_weights(["model"], tmp_path, _catalogue(server)).failures
    assert "404" in failure.reason and server.url in failure.reason and len(server.ranges) == 1


def _gated(server):
    file = WeightFile("sub/model.pth", server.url.replace("model.pth", "gate/model.pth"), 3_500_000, SHA256)
    return [Weights("model", "a test", "a licence", "https://page", (file,), gated=True)]


def test_a_gated_file_comes_with_a_token_which_goes_to_its_server_alone(server, tmp_path, monkeypatch):
    server.gate = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    assert fetch_weights(["model"], tmp_path, _gated(server)).files == {"sub/model.pth": SHA256}
    assert server.tokens == ["Bearer right", None]
    fetch_weights(["model"], tmp_path / "open", _catalogue(server))  # what is not gated is asked for without it
    assert server.tokens[2:] == [None]


@pytest.mark.parametrize(("token", "asked", "why"), [(None, 0, "no token is given"), ("wrong", 1, "answers 403")])
def test_a_refused_gated_file_is_one_line_that_names_page_and_licence(server, tmp_path, monkeypatch, token, asked, why):
    server.gate = "right"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    (failure,) = fetch_weights(["model"], tmp_path, _gated(server)).failures
    assert why in failure.reason and "https://page" in failure.reason and "a licence" in failure.reason
    assert "set HF_TOKEN" in failure.reason and "\n" not in failure.reason and "wrong" not in failure.reason
    assert len(server.ranges) == asked


def test_the_list_says_licence_and_gate_of_the_image_encoders(tmp_path):
    rows = {row["name"]: row for row in list_weights(tmp_path)}
    for size in "sbl":
        assert (rows[f"dinov2-vit{size}14"]["licence"], rows[f"dinov2-vit{size}14"]["gated"]) == ("Apache-2.0", False)
        assert (rows[f"dinov3-vit{size}16"]["licence"], rows[f"dinov3-vit{size}16"]["gated"]) == (
            "DINOv3 License",
            True,
        )


def test_check_finds_what_is_missing_and_what_was_changed(server, tmp_path):
    catalogue = _catalogue(server)
    (failure,) = check_weights(["model"], tmp_path, catalogue).failures
    assert "no such file" in failure.reason
    fetch_weights(["model"], tmp_path, catalogue)
    assert check_weights(["model"], tmp_path, catalogue).files == {"sub/model.pth": SHA256}
    (tmp_path / "sub/model.pth").write_bytes(b"x" + CONTENT[1:])
    (failure,) = check_weights([], tmp_path, catalogue).failures
    assert "has the SHA-256" in failure.reason


def test_a_file_without_a_published_digest_keeps_the_one_it_came_with(server, tmp_path):
    catalogue = _catalogue(server, sha256="", size=0)
    summary = fetch_weights(["model"], tmp_path, catalogue)
    assert summary.unverified == ["sub/model.pth"]
    assert check_weights(["model"], tmp_path, catalogue).unverified == []
    (tmp_path / "sub/model.pth").write_bytes(CONTENT[:-1])
    assert "has the SHA-256" in check_weights(["model"], tmp_path, catalogue).failures[0].reason


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"sub/model.pth": 3}', b"\xff"])
def test_a_damaged_table_of_digests_is_named_and_nothing_passes_for_checked(server, tmp_path, data):
    catalogue = _catalogue(server, sha256="", size=0)
    fetch_weights(["model"], tmp_path, catalogue)
    (tmp_path / "sha256.json").write_bytes(data)
    for look in (check_weights, fetch_weights):
        with pytest.raises(OlivineError, match=r"sha256\.json: .*Delete it"):
            look(["model"], tmp_path, catalogue)


def test_the_catalogue_names_every_model_with_licence_and_source(tmp_path):
    names = [entry["name"] for entry in list_weights(tmp_path)]
    assert {"swin-t", "swin-b", "bert-base-uncased", "vit-b", "vit-l", "vit-h", "hf-swin-t", "hf-vit-h"} <= set(names)
    for entry in CATALOGUE:
        assert entry.licence and entry.source.startswith("https://")
        assert all(f.url.startswith("https://") for f in entry.files)
        assert all(len(f.sha256) == 64 for f in entry.files if f.path.endswith(".pth"))
    with pytest.raises(OlivineError, match="no weights are called 'vit-x'"):
        find_weights("vit-x")
    with pytest.raises(OlivineError, match="Choose from swin-t"):
        fetch_weights(["vit-x"], tmp_path)
    with pytest.raises(OlivineError, match="Name what to fetch: swin-t"):
        fetch_weights([], tmp_path)
