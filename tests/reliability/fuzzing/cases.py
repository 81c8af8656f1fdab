"""One case: a file of the world changed, read by its reader or by a whole command, put back; and what came of it."""

import contextlib
import io
import json
import os
import shutil
import signal
import traceback
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from olivine.common import OlivineError, digest

from .kinds import Kind, plain_digest
from .world import run

SEED = int(os.environ.get("OLIVINE_FUZZ_SEED", 0))
SECONDS = 60
OTHER_RESULT = "accepted with another result"
COMMAND_SHARE = 0.04  # of cases that go through a whole command instead of its reader


class Hang(BaseException):
    pass


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
    return {name: what for name, what in found.items() if name != str(but) and not name.endswith(".lock")}


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
