"""Changes of files' bytes: one random mutation of JSON, text, images, PyTorch's archives, arrays, or of any bytes."""

import contextlib
import copy
import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from olivine.common import digest

CODE_RAN = Path(tempfile.gettempdir()) / f"olivine-fuzz-code-ran-{os.getpid()}"

NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "nan", "1e5",
    "../../escape", "/etc/passwd", "a\0b", "a\nb", "é漢字\u202e", "\ud800", "' \" $(x) <b>", "x" * 5000, [], {}, [[]], [None],
    {"": None}, {"a": {"b": 1}}, [1, "a", None], [0] * 7,
]  # fmt: skip
TOKENS = [
    b"nan", b"inf", b"-1", b"1e400", b"99999999999999999999", b"", b"x", b"\xff\xfe", b"\0", b"'", b'"', b"!!python/object:os.system",
    b"*a", b"&a", b"{", b"}", b"[", b"]", b"- ", b": ", b"\t", b"2020-01-01", b"0x1F", b"~", b".nan", b".inf", b"=1+1", b"\r",
    b",", b";", b"\xe2\x80\xae", b"0.5", b"true", b"null", b"|", b">", b"%", b"#", b"...", b"---\n",
]  # fmt: skip
BOMB = b"a: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{c}: &{c} [{','.join([f'*{p}'] * 8)}]\n".encode() for p, c in zip("abcdefghi", "bcdefghij")
)


def change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One change of any file's bytes."""
    data, size = bytearray(data), len(data)
    at = int(rng.integers(size)) if size else 0
    few = int(rng.integers(1, 9))
    match int(rng.integers(9)):
        case 0 | 1 | 2:
            if size:
                data[at] ^= 1 << int(rng.integers(8))
        case 3:
            for _ in range(few if size else 0):
                data[int(rng.integers(size))] = int(rng.integers(256))
        case 4:
            del data[at:]
        case 5:
            data[at:at] = rng.bytes(few)
        case 6:
            del data[at : at + few]
        case 7:
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        case _:
            whole = [
                b"",
                rng.bytes(200),
                bytes(1000),
                b"\xff" * 16,
                data * 2,
                data[: size // 2] + data[:10],
                b"PK\3\4" + data,
            ]
            return bytes(whole[int(rng.integers(len(whole)))])
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested plain values."""
    found, left = [], [value]
    while left:
        inner = left.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            found.append((inner, key))
            left.append(inner[key])
    return found


def _plain(value: Any, rng: np.random.Generator) -> Any:
    """One change of nested plain values."""
    value = copy.deepcopy(value)
    places = _places(value)
    if not places or rng.random() < 0.03:
        return NASTY[int(rng.integers(len(NASTY)))]
    # By depth first, so that the few keys at the top meet as much as the thousands of numbers below.
    inner, key = places[int(len(places) * rng.random() ** 3)]
    nasty = NASTY[int(rng.integers(len(NASTY)))]
    match int(rng.integers(7)):
        case 0 | 1 | 2:
            inner[key] = nasty
        case 3:
            del inner[key]
        case 4 if isinstance(inner, dict):
            inner[str(nasty)] = inner.pop(key)
        case 4:
            inner.insert(key, copy.deepcopy(inner[key]))
        case 5:
            number = inner[key]
            inner[key] = number + 1 if isinstance(number, (int, float)) and number is not True else [number]
        case _:
            other, name = places[int(rng.integers(len(places)))]
            inner[key] = copy.deepcopy(
                other.get(name) if isinstance(other, dict) else other[name] if name < len(other) else 0
            )
    return value


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def change_json(data: bytes, rng: np.random.Generator) -> bytes:
    """One change of a JSON text: bytes, values, or values under a digest that is made to match."""
    if rng.random() < 0.25:
        return change_bytes(data, rng)
    if rng.random() < 0.02:
        depth = int(rng.choice([70, 5000, 200_000]))
        return b"[" * depth + b"]" * depth
    value = json.loads(data)
    if isinstance(value, dict) and "digest" in value and rng.random() < 0.3:
        inner = _plain({k: v for k, v in value.items() if k != "digest"}, rng)
        if isinstance(inner, dict):
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                return _dumped({**inner, "digest": digest(inner)})
    return _dumped(_plain(value, rng))


def change_json_lines(data: bytes, rng: np.random.Generator) -> bytes:
    lines = data.splitlines() or [b"{}"]
    at = int(rng.integers(len(lines)))
    lines[at] = change_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def change_text(data: bytes, rng: np.random.Generator) -> bytes:
    """One change of YAML, CSV, or a table of numbers."""
    if rng.random() < 0.25:
        return change_bytes(data, rng)
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    token = TOKENS[int(rng.integers(len(TOKENS)))]
    match int(rng.integers(7)):
        case 0 | 1:
            words = lines[at].split(b" ")
            words[int(rng.integers(len(words)))] = token
            lines[at] = b" ".join(words)
        case 2:
            cells = lines[at].split(b",")
            cells[int(rng.integers(len(cells)))] = token
            lines[at] = b",".join(cells)
        case 3:
            del lines[at]
        case 4:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
        case 5:
            lines[at] = lines[at] + token
        case _:
            whole = [
                BOMB,
                b"- " * 500,
                b"{" * 5000,
                b"a: " + b"x" * 3_000_000,
                b"[]",
                b"null",
                b"1",
                b"'",
                b"\xef\xbb\xbf" + data,
            ]
            return whole[int(rng.integers(len(whole)))]
    return b"\n".join(lines)


def change_image(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged image, or another format, mode or size under the same name."""
    if rng.random() < 0.6:
        return change_bytes(data, rng)
    with Image.open(io.BytesIO(data)) as opened:
        image, suffix = opened.convert("RGB"), opened.format
    target = io.BytesIO()
    match int(rng.integers(8)):
        case 0:
            Image.fromarray(np.zeros((*image.size[::-1],), np.uint16)).save(target, "PNG")
        case 1:
            image.convert("CMYK").save(target, "JPEG")
        case 2:
            image.save(target, "PNG", save_all=True, append_images=[Image.new("RGB", image.size)])
        case 3:
            return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file pop showpage\n"
        case 4:
            head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2
            return head + bytes(rng.integers(0, 9, 40, np.uint8))
        case 5:
            image.resize((image.width + int(rng.integers(1, 5)), image.height)).save(target, suffix)
        case 6:
            image.save(target, str(rng.choice(["GIF", "BMP", "TIFF", "WEBP", "PPM"])))
        case _:
            image.convert(str(rng.choice(["L", "1"]))).save(target, "PNG")
    return target.getvalue()


class _Code:
    def __reduce__(self) -> Any:
        return (os.system, (f"touch {CODE_RAN}",))


def change_archive(data: bytes, rng: np.random.Generator) -> bytes:
    """A changed file of PyTorch's: bits, tensors of other shapes or with NaN, code, an archive in another form."""
    if rng.random() < 0.6:
        return change_bytes(data, rng)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = [
        (i, k)
        for i, k in [(content, k) for k in content] + _places(content)
        if isinstance(i, dict) and torch.is_tensor(i[k])
    ]
    plain = [(i, k) for i, k in _places(content) if not torch.is_tensor(i[k])]
    inner, key = tensors[int(rng.integers(len(tensors)))]
    target = io.BytesIO()
    match int(rng.integers(7)):
        case 0:
            inner[key] = torch.full_like(inner[key], -1) * (torch.nan if inner[key].is_floating_point() else 1)
        case 1:
            inner[key] = inner[key].reshape(-1)[: max(1, inner[key].numel() // 2)].clone()
        case 2:
            inner[str(NASTY[int(rng.integers(len(NASTY)))])] = inner.pop(key)
        case 3:
            inner[key] = NASTY[int(rng.integers(len(NASTY)))]
        case 4 if plain:
            place, name = plain[int(rng.integers(len(plain)))]
            place[name] = NASTY[int(rng.integers(len(NASTY)))]
        case 5:
            inner[key] = _Code()
        case _:
            whole: list[Callable[[], bytes]] = [
                lambda: pickle.dumps(_Code()),
                lambda: pickle.dumps({"a": 1}),
                lambda: _zip({"x/data.pkl": pickle.dumps(_Code()), "x/version": b"3"}),
                lambda: _zip({"../escape/data.pkl": b"\x80\x02}.", "x": b"3"}),
                lambda: _zip({}),
            ]
            return whole[int(rng.integers(len(whole)))]()
    torch.save(content, target)
    return target.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def change_values(data: bytes, rng: np.random.Generator) -> bytes:
    """A changed file of float32 or integers: bytes, or one value of it."""
    if rng.random() < 0.5 or len(data) < 16:
        return change_bytes(data, rng)
    values = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
    values[int(rng.integers(len(values)))] = rng.choice(np.array([np.nan, np.inf, 1e38, -1e6, 0, 255], np.float32))
    return values.tobytes()
