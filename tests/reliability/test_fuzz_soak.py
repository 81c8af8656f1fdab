"""Every kind of file that a command reads, changed in one place at a time: one line that names it, or the same result.

OLIVINE_FUZZ_CASES (10,500) and OLIVINE_FUZZ_SEED (0) choose how many cases and which; OLIVINE_FUZZ_KIND some kinds alone, with commas;
OLIVINE_FUZZ_KEEP a folder for the changed files.
A case is one file of a small world, changed by a random mutation and read by what reads it, or by a whole command:

* ``refused``: one line that names the file, its folder or its frame;
* ``same``: accepted, and what came of it is what comes of the unchanged file;
* ``other``: accepted as another input, which is right only where no digest of the file is on record (somebody's
  settings, images or calibration);
* ``bad``: a traceback, several lines, no name, over 60 s, another file of the world gone or changed, or a changed result
  where a digest is on record.

The table is printed, and written to the file that OLIVINE_FUZZ_REPORT names.
"""

import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from olivine import cli
from olivine.commands import console
from olivine.common import OlivineError, digest
from olivine.common.settings import settings_to_plain

CASES = int(os.environ.get("OLIVINE_FUZZ_CASES", 10_500))
SEED = int(os.environ.get("OLIVINE_FUZZ_SEED", 0))
ONLY = os.environ.get("OLIVINE_FUZZ_KIND", "").split(",")
SECONDS = 60
OTHER_RESULT = "accepted with another result"
NOW = 2e9  # of the accounts of jobs, which speak of the last minutes
CODE_RAN = Path(tempfile.gettempdir()) / f"olivine-fuzz-code-ran-{os.getpid()}"
COMMAND_SHARE = 0.04  # of cases that go through a whole command instead of its reader

# --- mutations ----------------------------------------------------------------------------------------------------

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


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
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


def _json(data: bytes, rng: np.random.Generator) -> bytes:
    """One change of a JSON text: bytes, values, or values under a digest that is made to match."""
    if rng.random() < 0.25:
        return _bytes(data, rng)
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


def _json_lines(data: bytes, rng: np.random.Generator) -> bytes:
    lines = data.splitlines() or [b"{}"]
    at = int(rng.integers(len(lines)))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _text(data: bytes, rng: np.random.Generator) -> bytes:
    """One change of YAML, CSV, or a table of numbers."""
    if rng.random() < 0.25:
        return _bytes(data, rng)
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


def _image(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged image, or another format, mode or size under the same name."""
    if rng.random() < 0.6:
        return _bytes(data, rng)
    with Image.open(io.BytesIO(data)) as opened:
        picture, suffix = opened.convert("RGB"), opened.format
    target = io.BytesIO()
    match int(rng.integers(8)):
        case 0:
            Image.fromarray(np.zeros((*picture.size[::-1],), np.uint16)).save(target, "PNG")
        case 1:
            picture.convert("CMYK").save(target, "JPEG")
        case 2:
            picture.save(target, "PNG", save_all=True, append_images=[Image.new("RGB", picture.size)])
        case 3:
            return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file pop showpage\n"
        case 4:
            head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2
            return head + bytes(rng.integers(0, 9, 40, np.uint8))
        case 5:
            picture.resize((picture.width + int(rng.integers(1, 5)), picture.height)).save(target, suffix)
        case 6:
            picture.save(target, str(rng.choice(["GIF", "BMP", "TIFF", "WEBP", "PPM"])))
        case _:
            picture.convert(str(rng.choice(["L", "1"]))).save(target, "PNG")
    return target.getvalue()


class _Code:
    def __reduce__(self) -> Any:
        return (os.system, (f"touch {CODE_RAN}",))


def _archive(data: bytes, rng: np.random.Generator) -> bytes:
    """A changed file of PyTorch's: bits, tensors of other shapes or with NaN, code, an archive in another form."""
    if rng.random() < 0.6:
        return _bytes(data, rng)
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


def _values(data: bytes, rng: np.random.Generator) -> bytes:
    """A changed file of float32 or integers: bytes, or one value of it."""
    if rng.random() < 0.5 or len(data) < 16:
        return _bytes(data, rng)
    values = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
    values[int(rng.integers(len(values)))] = rng.choice(np.array([np.nan, np.inf, 1e38, -1e6, 0, 255], np.float32))
    return values.tobytes()


# --- what is read ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        files: of the world.
        change: the mutation of its bytes.
        read: reads the file as the commands do; gives what came of it, for comparison.
        recorded: a digest of the file is on record, so that a changed result is wrong.
        commands: arguments of whole commands that read it; OUT stands for a folder of the case's own.
        weight: share of the cases, relative to the others.
    """

    files: list[Path]
    change: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], Any]
    recorded: bool = False
    commands: tuple[tuple[str, ...], ...] = ()
    weight: float = 1.0


@dataclass
class Counts:
    """Cases of one kind by outcome, and the bad ones."""

    outcomes: collections.Counter = field(default_factory=collections.Counter)
    bad: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))


class Hang(BaseException):
    pass


SHORT = ("--set", "run.steps=1", "--set", "method.pairs=64", "--set", "method.scr=false")
STUDY = """name: tiny
shards: data/pairs/nuscenes
preset: cpu
seeds: [0]
set: {run.steps: 1, method.pairs: 64, method.scr: false}
probe: {epochs: 1}
rows:
  random: null
  whole: {}
tables:
  - {title: T, stage: probe, rows: [random, whole], against: random}
claims:
  - {stage: probe, better: whole, than: random, by: 5}
"""
PROMPTS = "- car\n- {name: road, words: the road, class: street, kind: stuff}\n- {name: bus, class: car}\n"
ERRORS = "boundary: 1.5\nmissed: 0.3\nconfusion_matrix: {car: {truck: 0.2}}\nleakage_distance: 8\n"
CLASS_MAP = "0: null\n1: car\n2: road\n255: null\n"


def run(*arguments: object) -> int:
    """A whole command in this process; its exit code."""
    sys.argv = ["olivine", *map(str, arguments)]
    try:
        console.run(cli.app)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every kind of file, made by the commands themselves; the working directory of all cases."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["olivine"])
        tiny = ("--scenes", 2, "--frames", 1, "--image-scale", 0.05, "--workers", 1)
        Path("s.yaml").write_text(STUDY)
        Path("p.yaml").write_text(PROMPTS)
        Path("e.yaml").write_text(ERRORS)
        Path("c.yaml").write_text(CLASS_MAP)
        for arguments in [
            ("synth", *tiny),
            ("labelgen", "--segments", "slic"),
            ("build-pairs", "--workers", 1, "--segments"),
            ("pretrain", *SHORT),
            ("finetune", "--epochs", 1),
            ("export", "--out", "backbone.pt"),
            ("study", "--config", "s.yaml", "--out", "runs-study"),
            ("synth", *tiny, "--format", "semantickitti", "--out", "kitti"),
        ]:
            assert run(*arguments) == 0, arguments
        with open("cpu.yaml", "w") as settings, contextlib.redirect_stdout(settings):
            assert run("pretrain", "--print-config", "--shards", "data/pairs/nuscenes") == 0
        yield folder


def plain_digest(*values: Any) -> str:
    """SHA-256 of what a reader gave: arrays, tensors, dataclasses, plain values."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            state.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif torch.is_tensor(value):
            state.update(plain_digest(value.detach().numpy()).encode())
        elif isinstance(value, dict):
            state.update(plain_digest(*(x for item in value.items() for x in item)).encode())
        elif isinstance(value, (list, tuple)):
            state.update(plain_digest("[", *value).encode())
        else:
            state.update(repr(value).encode())
    return state.hexdigest()


def kinds_of(world: Path) -> dict[str, Kind]:
    """Every kind of file with its reader."""
    from olivine.cluster.status import read_status
    from olivine.downstream.results import read_result
    from olivine.downstream.weights import import_weights
    from olivine.labelgen.images import read_image
    from olivine.labelgen.import_labels import load_class_map
    from olivine.labelgen.labeler import ImageTask
    from olivine.labelgen.oracle import parse_error_model, read_world_classes
    from olivine.labelgen.prompts import DEFAULT_VOCABULARY, load_vocabulary
    from olivine.labelgen.store import open_store, read_values
    from olivine.pairs.shards import open_shards
    from olivine.readers import nuscenes, open_dataset
    from olivine.readers.frame import open_index
    from olivine.report.figures import read_losses, read_scores
    from olivine.study.config import load_study
    from olivine.study.rows import read_rows
    from olivine.train.checkpoint import load_backbone
    from olivine.train.metrics_log import MetricsLog
    from olivine.train.pixel_features import read_features
    from olivine.train.run_folder import read_identity
    from olivine.train.settings import load_settings

    labels, pairs, run_folder = Path("data/labels/nuscenes"), "data/pairs/nuscenes", "runs/cpu"
    index = open_index(labels / "frames")
    cameras = {
        path: (frame, c)
        for frame in index.frames()
        for c, camera in enumerate(frame.cameras)
        for path in (
            frame.image_path(camera),
            labels / f"{camera.key}.png",
            labels / "segments" / f"{camera.key}.png",
            *frame.image_truth[c],
        )
    }
    cameras = {Path(os.path.relpath(path)): found for path, found in cameras.items()}
    clouds = {Path(os.path.relpath(frame.root / frame.point_file)): frame for frame in index.frames()}
    point_labels = {Path(os.path.relpath(frame.root / frame.point_label_file)): frame for frame in index.frames()}
    kitti = open_dataset("semantickitti", "kitti").frames()

    def frames_of(name: str, folder: str) -> Callable[[Path], Any]:
        def read(_: Path) -> Any:
            nuscenes._open_devkit.cache_clear()  # else the tables of the case before would be taken
            return [repr(frame) for frame in open_dataset(name, folder).frames()]

        return read

    def task(path: Path) -> ImageTask:
        frame, c = cameras[path]
        return ImageTask(frame, c)

    def label_map(path: Path) -> Any:
        frame, c = cameras[path]
        store = open_store(labels)
        camera = frame.cameras[c]
        return store.label_map(camera, frame.scene), store.segment_map(camera, frame.scene)

    def store(_: Path) -> Any:
        opened = open_store(labels)
        return [opened.classes, *(opened.unit(scene.name) for scene in opened.index().scenes)]

    def frame_index(_: Path) -> Any:
        # Its root has no part in the digest, for a data set may move; the commands are given the root that it names.
        return [repr(frame) for frame in open_index(labels / "frames", "data/nuscenes").frames()]

    def shards(path: Path) -> Any:
        opened = open_shards(Path(*path.parts[:4]))
        return [vars(record) if hasattr(record, "__dict__") else repr(record) for record in opened]

    def kitti_frame(path: Path) -> Any:
        frame = kitti[0] if path.parts[2] == kitti[0].scene else kitti[-1]
        return frame.points(), frame.point_labels()

    def network(path: Path) -> Any:
        found, content = load_backbone(path)
        return found.state_dict(), settings_to_plain_or(content.get("settings")), content.get("method_state")

    def imported(path: Path) -> Any:
        out = Path("scratch/imported/last.pt")
        shutil.rmtree(out.parent, ignore_errors=True)
        import_weights(path, out, load_settings("cpu"))
        return load_backbone(out)[0].state_dict()

    def log(path: Path) -> Any:
        folder = Path("scratch/log")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("steps.csv", "epochs.csv"):
            if path.with_name(name).is_file():
                shutil.copy(path.with_name(name), folder)
        before = MetricsLog(folder, 1)
        means = before.means_of_epoch(0)
        before.close()
        return (
            means,
            (folder / path.name).read_bytes() if path.is_file() else b"",
            read_losses(path) if path.name == "steps.csv" else (),
        )

    stored_pairs = np.arange(len(np.load(next(Path().glob("runs-study/features/*/frame-000000.npy")))))

    def of(pattern: str) -> list[Path]:
        found = sorted(path for path in Path().glob(pattern) if path.is_file())
        assert found, pattern
        return found

    score, build = ("score-labels", "--out", "OUT"), ("build-pairs", "--workers", "1", "--out", "OUT")
    label = ("labelgen", "--dataset", "nuscenes", "--out", "OUT")
    report = ("report", "--out", "OUT", "--frames", "1", "--run", run_folder)
    train = ("pretrain", "--out", "OUT", "--dry-run")
    return {
        "nuScenes table": Kind(of("data/nuscenes/v1.0-mini/*.json"), _json, frames_of("nuscenes", "data/nuscenes"), commands=(label,), weight=3),
        "camera image": Kind([p for p in cameras if "samples" in p.parts], _image, lambda p: read_image(task(p)), commands=(build, report)),
        "point file": Kind(sorted(clouds), _values, lambda p: clouds[p].points(), commands=(build,)),
        "point labels": Kind(sorted(point_labels), _values, lambda p: point_labels[p].point_labels(), commands=(build,)),
        "exact masks": Kind(
            [p for p in cameras if "truth" in p.parts], _image, lambda p: read_values(p, "x", cameras[p][0].cameras[cameras[p][1]]),
            commands=(label, score),
        ),
        "synthetic.json": Kind(of("data/nuscenes/synthetic.json"), _json, lambda p: read_world_classes(p), commands=(label,)),
        "KITTI calibration": Kind(of("kitti/sequences/*/calib.txt"), _text, frames_of("semantickitti", "kitti"), weight=2),
        "KITTI times": Kind(of("kitti/sequences/*/times.txt"), _text, frames_of("semantickitti", "kitti")),
        "KITTI poses": Kind(of("kitti/poses/*.txt"), _text, frames_of("semantickitti", "kitti")),
        "KITTI image": Kind(of("kitti/sequences/*/image_2/*.png"), _image, frames_of("semantickitti", "kitti")),
        "KITTI points": Kind(of("kitti/sequences/*/velodyne/*.bin"), _values, kitti_frame),
        "KITTI labels": Kind(of("kitti/sequences/*/labels/*.label"), _values, kitti_frame),
        "label manifest": Kind(of("data/labels/nuscenes/manifest.json"), _json, store, True, (build, score), 2),
        "label unit": Kind(of("data/labels/nuscenes/units/*.json"), _json, store, False, (build, score), 2),
        "label map": Kind([p for p in cameras if p.parts[:3] == labels.parts and "segments" not in p.parts], _image, label_map, True, (build, score, report), 2),
        "segment map": Kind([p for p in cameras if "segments" in p.parts], _image, label_map, True, (build,)),
        "frame index": Kind(of("data/labels/nuscenes/frames/index.json"), _json, frame_index, True, (build, score), 2),
        "frames of a scene": Kind(of("data/labels/nuscenes/frames/*.jsonl"), _json_lines, frame_index, True, (build, score), 2),
        "shard manifest": Kind(of(f"{pairs}/*/manifest.json"), _json, shards, True, (train, ("build-pairs", "--describe", f"{pairs}/train"))),
        "shard metadata": Kind(of(f"{pairs}/*/*.zarr/**/zarr.json"), _json, shards, True, (("build-pairs", "--check", f"{pairs}/train"),), 2),
        "shard chunk": Kind(of(f"{pairs}/*/*.zarr/**/c/**/*"), _bytes, shards, True, (("build-pairs", "--check", f"{pairs}/train"),), 2),
        "job account": Kind(of("data/*/nuscenes.logs/**/job.json"), _json, lambda p: repr(read_status(p.parent, NOW)), commands=(("status", "data/labels/nuscenes"),)),
        "job events": Kind(of("data/*/nuscenes.logs/**/*.jsonl"), _json_lines, lambda p: repr(read_status(p.parents[1], NOW)), commands=(("status", "data/labels/nuscenes"),)),
        "settings": Kind([Path("cpu.yaml")], _text, lambda p: repr(load_settings(p)), commands=((*train, "--config", "cpu.yaml"),), weight=2),
        "prompts": Kind([Path("p.yaml")], _text, lambda p: repr(load_vocabulary(p)), commands=((*label, "--prompts", "p.yaml"),)),
        "error model": Kind([Path("e.yaml")], _text, lambda p: repr(parse_error_model(str(p))), commands=((*label, "--error", "e.yaml"),)),
        "class map": Kind([Path("c.yaml")], _text, lambda p: repr(load_class_map(p, DEFAULT_VOCABULARY)), commands=((*label, "--labeler", "import", "--camseg", str(labels), "--classes", "c.yaml"),)),
        "study": Kind([Path("s.yaml")], _text, lambda p: repr(load_study(p)), commands=(("study", "--config", "s.yaml", "--out", "OUT", "--dry-run"),), weight=2),
        "checkpoint": Kind([Path(run_folder, "last.pt")], _archive, network, True, (("export", "--checkpoint", run_folder, "--out", "OUT/x.pt"),), 2),
        "fine-tuned checkpoint": Kind([Path(run_folder, "finetune-100/last.pt")], _archive, network, True, (("predict", "--checkpoint", f"{run_folder}/finetune-100", "--out", "OUT"),)),
        "foreign weights": Kind([Path("backbone.pt")], _archive, imported, True, (("import-weights", "backbone.pt", "--config", "cpu", "--out", "OUT/last.pt"),), 1),
        "run.json": Kind(of(f"{run_folder}/run.json"), _json, lambda p: repr(read_identity(p, "x")), commands=(("pretrain", *SHORT, "--out", run_folder),)),
        "steps.csv": Kind(of(f"{run_folder}/steps.csv") + of(f"{run_folder}/epochs.csv"), _text, log, commands=(report,)),
        "scores.json": Kind(of("runs-study/runs/*/probe-*/scores.json"), _json, lambda p: (repr(read_result(p)), [(r["name"], r["scores"]) for r in read_scores(p)]), True),
        "study row": Kind(of("runs-study/rows/*.json"), _json, lambda p: repr(read_rows([p.parents[1]])), True, (("study", "--merge", "runs-study", "--out", "OUT"),), 2),
        "study.json": Kind(of("runs-study/study.json"), _json, lambda p: None, False, (("study", "--merge", "runs-study", "--out", "OUT"),), 0.1),
        "stored features": Kind(of("runs-study/features/*/*.npy"), _bytes, lambda p: read_features(p.parent, 0, stored_pairs), True),
    }  # fmt: skip


def settings_to_plain_or(value: Any) -> Any:
    return value if isinstance(value, (dict, type(None))) else settings_to_plain(value)


# --- one case -------------------------------------------------------------------------------------------------------


def snapshot(world: Path, but: Path) -> dict[str, object]:
    """Every file of the world, without the one that is changed, locks, and the cases' own folder: bytes, or size and time."""
    found: dict[str, object] = {}
    for folder, names, files in os.walk(world):
        if Path(folder) == world and "scratch" in names:
            names.remove("scratch")
        for name in files:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            small = state.st_size < 100_000 and os.path.isfile(path)
            found[os.path.relpath(path, world)] = (
                Path(path).read_bytes() if small else (state.st_size, state.st_mtime_ns)
            )
    return {name: what for name, what in found.items() if name != str(but) and not name.endswith(".run.lock")}


def names_it(line: str, path: Path) -> bool:
    """Whether a line of error names a file, its folder (a data set's tables are told apart by the devkit) or its frame."""
    words = {path.name, path.stem, *(part for part in path.parts[:-1] if part not in ("data", "c", "0"))}
    return any(word in line for word in words) or "--" in line


def outcome_of_reader(kind: Kind, path: Path, expected: str) -> tuple[str, str]:
    try:
        result = plain_digest(kind.read(path))
    except OlivineError as error:
        line = str(error)
        if "\n" in line or not names_it(line, path):
            return "bad", f"the line names no file: {line[:90]}"
        return "refused", ""
    except Hang:
        return "bad", f"over {SECONDS} s"
    except Exception as error:  # anything else is what is looked for
        place = traceback.extract_tb(error.__traceback__)
        ours = [f for f in place if "olivine" in f.filename or "/pp-" in f.filename] or place
        own = [f for f in place if "site-packages" not in f.filename and "/tests/" not in f.filename] or ours
        return "bad", f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno} ({str(error)[:60]})"
    if result == expected:
        return "same", ""
    return ("bad", OTHER_RESULT) if kind.recorded else ("other", "")


def outcome_of_command(arguments: tuple[str, ...], path: Path, world: Path) -> tuple[str, str]:
    out = Path("scratch/out")
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    before = snapshot(world, path)
    said, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = run(*(str(a).replace("OUT", str(out)) for a in arguments))
    except Hang:
        return "bad", f"{arguments[0]}: over {SECONDS} s"
    except BaseException as error:
        return "bad", f"{arguments[0]}: {type(error).__name__} leaves the command ({str(error)[:60]})"
    after = snapshot(world, path)
    lost = [name for name, state in before.items() if after.get(name) != state and ".logs/" not in name]
    if lost:
        return "bad", f"{arguments[0]}: {lost[0]} is lost or changed"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("olivine: ")]
    text = said.getvalue() + errors.getvalue()
    if "this is a bug" in text or "Traceback" in text:
        line = next(line for line in text.splitlines() if "this is a bug" in line or "Traceback" in line)
        return "bad", f"{arguments[0]}: {line[:110]}"
    if code == 0:
        return "accepted", ""
    if code not in (1, 2) or (not lines and "failed" not in text):
        return "bad", f"{arguments[0]}: exit code {code} without a line"
    return "refused", ""


def put(path: Path, changed: bytes, others: list[Path], rng: np.random.Generator) -> None:
    """Put the changed bytes where the file was; now and then nothing, a folder, or a link."""
    if rng.random() < 0.97:
        return void(path.write_bytes(changed))
    path.unlink()
    match int(rng.integers(5)):
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(others[int(rng.integers(len(others)))].resolve())
        case 4:
            path.symlink_to(path.name)


def is_sealed(data: bytes) -> bool:
    """Whether changed bytes fit their own digests, as if olivine or PyTorch had written them so: that is no damage."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    with contextlib.suppress(ValueError):
        value = json.loads(data)
        if isinstance(value, dict) and "digest" in value:
            return bool(value["digest"] == digest({k: v for k, v in value.items() if k != "digest"}))
    return False


def void(_: object) -> None:
    return None


def put_back(path: Path, data: bytes, state: os.stat_result) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def one_case(kind: Kind, name: str, number: int, expected: dict[Any, str], world: Path) -> tuple[str, str]:
    rng = np.random.default_rng([SEED, number, *name.encode()])
    path = kind.files[int(rng.integers(len(kind.files)))]
    data, state = path.read_bytes(), path.stat()
    changed = kind.change(data, rng)
    put(path, changed, kind.files, rng)
    if keep := os.environ.get("OLIVINE_FUZZ_KEEP"):
        Path(keep, f"{name}-{number}").write_bytes(changed)
    signal.alarm(SECONDS)
    try:
        if kind.commands and (rng.random() < COMMAND_SHARE or kind.weight < 0.5):
            arguments = kind.commands[int(rng.integers(len(kind.commands)))]
            outcome, why = outcome_of_command(arguments, path, world)
        else:
            outcome, why = outcome_of_reader(kind, path, expected[name, path])
            if why == OTHER_RESULT and is_sealed(changed):
                outcome, why = "other", ""
    finally:
        signal.alarm(0)
        put_back(path, data, state)
    return outcome, f"{why} (case {number}, {path.name})"


LETTERS = ["\n", "\t", "'", '"', "`", "$(touch x)", ";", "&", "|", "<b>", "%s", "{}", "\\", "*", "?", "[a]", "~", "#", ",", "=",
           "-", "--x", " ", ".", "漢", "é", "\u202e", "🚗", "\x7f", "\x1b[31m", "\udcff", "a", "b", "x" * 60]  # fmt: skip


def odd_name(number: int, world: Path) -> tuple[str, str]:
    """A whole command whose input and output folders have names that a shell, a table or HTML would stumble over."""
    rng = np.random.default_rng([SEED, number, 1])
    name = "".join(LETTERS[int(i)] for i in rng.integers(len(LETTERS), size=int(rng.integers(1, 7))))
    folder = Path("odd")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if name in (".", "..") or len(os.fsencode(name)) > 200:
        name = "x"
    cases: list[tuple[str, tuple[str, ...]]] = [
        ("data/labels/nuscenes", ("score-labels", "--labels", "IN", "--out", "OUT")),
        ("data/labels/nuscenes", ("report", "--labels", "IN", "--run", "runs/cpu", "--frames", "1", "--out", "OUT")),
        ("data/pairs/nuscenes/train", ("build-pairs", "--describe", "IN")),
        ("data/pairs/nuscenes/train", ("pretrain", "--dry-run", "--shards", "IN", "--out", "OUT")),
        ("data/nuscenes", ("labelgen", "--dataset", "nuscenes", "--root", "IN", "--out", "OUT")),
        ("data/labels", ("status", "IN")),
        ("cpu.yaml", ("pretrain", "--dry-run", "--config", "IN.yaml", "--out", "OUT")),
        ("s.yaml", ("study", "--dry-run", "--config", "IN", "--out", "OUT")),
        ("runs/cpu", ("export", "--checkpoint", "IN", "--out", "OUT.pt")),
        ("backbone.pt", ("import-weights", "IN", "--config", "cpu", "--out", "OUT")),
        ("p.yaml", ("labelgen", "--dataset", "nuscenes", "--prompts", "IN", "--out", "OUT")),
        ("nowhere", ("probe", "--checkpoint", "IN", "--out", "OUT")),
    ]
    target, arguments = cases[int(rng.integers(len(cases)))]
    link = folder / (name + (".yaml" if "IN.yaml" in arguments else ""))
    if target != "nowhere":
        link.symlink_to(Path(target).resolve())
    given = tuple(
        str(link) if a in ("IN", "IN.yaml") else a.replace("OUT", f"scratch/{name}") if a.startswith("OUT") else a
        for a in arguments
    )
    signal.alarm(SECONDS)
    try:
        outcome, why = outcome_of_command(given, link, world)
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    return outcome, f"{why} (case {number}, {name!r})"


@pytest.mark.soak
def test_a_changed_file_is_one_line_or_changes_nothing(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["olivine"])
    monkeypatch.delenv("OLIVINE_TRACEBACK", raising=False)
    Path("scratch").mkdir(exist_ok=True)
    CODE_RAN.unlink(missing_ok=True)
    kinds = {name: kind for name, kind in kinds_of(world).items() if any(part in name for part in ONLY)}
    every = [(name, kind, path) for name, kind in kinds.items() for path in kind.files]
    expected = {(name, path): plain_digest(kind.read(path)) for name, kind, path in every}
    total = sum(kind.weight for kind in kinds.values()) / 0.98  # the rest is odd names
    counts: dict[str, Counts] = {}
    started = time.monotonic()

    def alarm(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    warnings.simplefilter("ignore")
    try:
        for name, kind in [
            *kinds.items(),
            *([("odd names", None)] if any(part in "odd names" for part in ONLY) else []),
        ]:
            count = counts[name] = Counts()
            for number in range(round(CASES * (kind.weight / total if kind else 0.02))):
                if kind:
                    outcome, why = one_case(kind, name, number, expected, world)
                else:
                    outcome, why = odd_name(number, world)
                if CODE_RAN.exists():
                    outcome, why = "bad", f"code in it ran, {why}"
                    CODE_RAN.unlink()
                count.outcomes[outcome] += 1
                if outcome == "bad":
                    count.bad[why.rpartition(" (case")[0]].append(why)
    finally:
        signal.signal(signal.SIGALRM, before)
    text = table(counts, time.monotonic() - started)
    print(text)
    if report := os.environ.get("OLIVINE_FUZZ_REPORT"):
        Path(report).write_text(text)
    bad = [f"{name}: {len(all_)} x {all_[0]}" for name, count in counts.items() for all_ in count.bad.values()]
    assert not bad, "\n".join(bad)
    # The world is as it was: nothing above was refused for what an earlier case left behind.
    assert {(name, path): plain_digest(kind.read(path)) for name, kind, path in every} == expected


def table(counts: dict[str, Counts], seconds: float) -> str:
    """The report, as Markdown."""
    columns = ("cases", "refused", "same", "other", "accepted", "bad")
    lines = [f"Seed {SEED}, {seconds / 60:.0f} minutes.", "", f"| kind of file | {' | '.join(columns)} |"]
    lines.append("|---|" + "--:|" * len(columns))
    total: collections.Counter = collections.Counter()
    for name, count in counts.items():
        row = {**count.outcomes, "cases": count.outcomes.total()}
        total.update(row)
        lines.append(f"| {name} | {' | '.join(f'{row.get(c, 0):,}' for c in columns)} |")
    lines.append(f"| all | {' | '.join(f'{total[c]:,}' for c in columns)} |")
    return "\n".join(lines) + "\n"
