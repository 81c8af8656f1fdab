"""How a command speaks: notes, summaries as a table or one JSON object, errors in one line with an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from ..common import Failure, OlivineError, disk_error, memory_error

_START = time.monotonic()
# Of a run's processes the first speaks: torchrun numbers them by RANK, Lightning Fabric its own by LOCAL_RANK alone.
_QUIET = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0"
_REPEATED = (
    "out",
    "labels",
    "seconds",
    "confusion",
    "calibration",
)  # of a summary: printed below it, or too wide for a line


_answer: TextIO | None = None  # where the one JSON object goes; None without --json


def note(text: str, as_json: bool) -> None:
    """Say what was chosen: on standard output, or beside it where that is for a machine."""
    if not _QUIET:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def show(read: Callable[[], str]) -> None:
    """Print a text, such as a table in a file that the first process has written; the others do not read it."""
    if not _QUIET:
        print(read(), flush=True)


def say_plan(what: str, out: Path, as_json: bool, **estimate: float) -> None:
    """What ``--dry-run`` prints.

    Args:
        estimate: what it would come to, such as ``images=360`` and ``gigabytes=0.1``.
    """
    if as_json:
        return emit(_command(), {"plan": what, **estimate}, out)
    said = {
        name.replace("_", " "): f"about {_short(value)}" if value else "nearly 0" for name, value in estimate.items()
    }
    about = ", ".join(f"{value} {name}" for name, value in said.items())
    print(f"would write {what} to {out}" + (f": {about}" if about else ""))


def emit(
    command: str,
    fields: Mapping[str, Any],
    out: Path | None = None,
    failures: list[Failure] | None = None,
    error: str | None = None,
) -> None:
    """Print the one JSON object of ``--json``.

    It always has ``command``, ``ok``, ``out``, ``seconds``, ``failures`` and ``error``; beside them is what the command
    has to say. It is strict JSON: a number that is not finite is null.
    """
    if _QUIET:
        return
    whole = {
        "command": command,
        "ok": error is None and not failures,
        "out": None if out is None else str(out),
        "seconds": round(time.monotonic() - _START, 1),
        "failures": [dataclasses.asdict(failure) for failure in failures or ()],
        "error": error,
    }
    text = json.dumps(strict({**fields, **whole}), allow_nan=False, default=str)
    print(text, file=_answer or sys.stdout, flush=True)


def _command() -> str:
    """The command that was given."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    return words[0] if words else "olivine"


def strict(value: Any) -> Any:
    """Plain values with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


def finish(command: str, summary: Any, out: Path | None, as_json: bool) -> None:
    """Print one summary; see :func:`finish_many`."""
    finish_many(command, [("", summary)], out, as_json)


def finish_many(command: str, summaries: list[tuple[str, Any]], out: Path | None, as_json: bool) -> None:
    """Print the summaries (dataclasses whose ``failures`` are listed last); exit 1 if a unit failed."""
    rows = {name: dataclasses.asdict(summary) for name, summary in summaries}
    failures = [Failure(**f) for row in rows.values() for f in row.pop("failures", [])]
    if _QUIET:
        pass
    elif as_json:
        emit(command, rows[""] if list(rows) == [""] else rows, out, failures)
    else:
        for name, row in rows.items():
            shown = {k: v for k, v in row.items() if not _says_nothing(v) and k not in _REPEATED}
            print(f"{command} {name}".rstrip())
            for key, value in shown.items():
                lines = _lines(value)
                print(f"  {key.replace('_', ' '):24} {lines[0]}")
                for line in lines[1:]:
                    print(f"  {'':24} {line}")
        if rows:
            seconds = round(time.monotonic() - _START, 1)
            print(f"  {'seconds':24} {seconds}" + (f"\n  {'written to':24} {out}" if out else ""))
        if failures:
            print(f"{len(failures)} failed:")
            for failure in failures:
                print(f"  {failure.unit}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _says_nothing(value: Any) -> bool:
    return value in (None, [], (), {}, "") or (isinstance(value, float) and math.isnan(value))


def _lines(value: Any) -> list[str]:
    """A value as lines: what is said in words, or is long, has a line for each thing."""
    text = _short(value)
    words = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if words and (len(text) > 100 or any(" " in item for item in value)):
        return [_short(item) for item in value]
    return [text]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v)
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


RENAMED = {
    "labelgen": {"--shard": "--part"},
    "build-pairs": {"--shard": "--part"},
    "features": {"--shard": "--part"},
    "probe": {"--random": "--beside-random", "--no-random": "--no-beside-random"},
    "finetune": {"--labels": "--learn-from"},
}
"""Options by their names up to version 0.1, which go on working for one version."""


def _with_new_names(words: list[str]) -> list[str]:
    """The command line with options by their names of now, and a note for each that had an old one."""
    command = next((word for word in words[1:] if not word.startswith("-")), "")
    new, own = [], True
    for word in words:
        own = own and word != "--"  # what follows is another program's
        name, equals, value = word.partition("=")
        renamed = RENAMED.get(command, {}).get(name) if own else None
        if renamed is not None:
            print(f"note: {command} {name} is now called {renamed}", file=sys.stderr)
        new.append(word if renamed is None else f"{renamed}{equals}{value}")
    return new


_TYPER_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt before we see it
INTERRUPTED = "interrupted. What is finished is kept; run the same command again to go on"


def run(app: typer.Typer) -> NoReturn:
    """Run the command line and exit with 0, 1 (some units failed) or 2 (bad input); errors are one line."""
    global _answer
    try:
        _run(app)
    finally:
        _answer = None  # in a process that goes on, the next command has its own


def _run(app: typer.Typer) -> NoReturn:
    global _answer
    sys.argv = _with_new_names(sys.argv)
    given = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    _answer = sys.stdout if "--json" in given else None
    # Nothing but the one object goes to standard output, whatever a library prints.
    quiet = contextlib.redirect_stdout(sys.stderr) if _answer is not None else contextlib.nullcontext()
    try:
        with quiet:
            code = app(standalone_mode=False)
    except OlivineError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _interrupted()
    except OSError as error:
        if (memory := memory_error(error)) is not None:
            _fail(str(memory), 1)
        _fail(str(disk_error(error, error.filename or "output")), 1)
    except MemoryError as error:
        if os.environ.get("OLIVINE_TRACEBACK"):
            raise
        # What the frames hold makes room for the line.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        _fail(str(memory_error(error)), 1)
    except Exception as error:
        _fail_other(error)
    if code == _TYPER_INTERRUPTED:
        _interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _fail_other(error: Exception) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        sys.exit(0)
    click_message = getattr(error, "format_message", None)
    if click_message is not None:  # what the option parser has to say
        _fail(f"{click_message().rstrip('.')}. Run the command with --help for its options", 2)
    if isinstance(error.__cause__, EOFError):  # which the option parser takes for a user's Ctrl-D
        error = error.__cause__
    if type(error).__name__ == "Abort":
        _interrupted()
    if os.environ.get("OLIVINE_TRACEBACK"):
        raise error
    if (memory := memory_error(error)) is not None:
        _fail(str(memory), 1)
    _fail(
        f"this is a bug in olivine ({type(error).__name__}: {error}). "
        "Run it again with OLIVINE_TRACEBACK=1 and report what it prints",
        2,
    )


def _interrupted() -> NoReturn:
    # Where Ctrl-C falls into Python source that is compiled at run time (a dataclass being made), CPython notes it and
    # `python -m` ends by the signal whatever is caught; the next such source clears the note.
    eval("None")
    _fail(INTERRUPTED, 1)


def _fail(line: str, code: int) -> NoReturn:
    line = " ".join(line.split())
    print(f"olivine: {line}", file=sys.stderr, flush=True)
    if _answer is not None:
        emit(_command(), {}, error=line)
    sys.exit(code)
