"""How a command speaks: notes, summaries as a table or one JSON object, errors in one line with an exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import typer

from ..common import Failure, OlivineError, disk_error, memory_error

_START = time.monotonic()
_QUIET = os.environ.get("RANK", "0") != "0"  # of torchrun's processes, the first speaks
_REPEATED = (
    "out",
    "labels",
    "seconds",
    "confusion",
    "calibration",
)  # of a summary: printed below it, or too wide for a line


def note(text: str, as_json: bool) -> None:
    """Say what was chosen: on standard output, or beside it where that is for a machine."""
    if not _QUIET:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def say_plan(what: str, out: Path, as_json: bool) -> None:
    """What ``--dry-run`` prints."""
    print(json.dumps({"plan": what, "out": str(out)}) if as_json else f"would write {what} to {out}")


def finish(command: str, summary: Any, out: Path | None, as_json: bool) -> None:
    """Print one summary; see :func:`finish_many`."""
    finish_many(command, [("", summary)], out, as_json)


def finish_many(command: str, summaries: list[tuple[str, Any]], out: Path | None, as_json: bool) -> None:
    """Print the summaries (dataclasses whose ``failures`` are listed last); exit 1 if a unit failed."""
    rows = {name: dataclasses.asdict(summary) for name, summary in summaries}
    failures = [Failure(**f) for row in rows.values() for f in row.pop("failures", [])]
    seconds = round(time.monotonic() - _START, 1)
    if _QUIET:
        pass
    elif as_json:
        plain = rows[""] if list(rows) == [""] else rows
        listed = [dataclasses.asdict(f) for f in failures]
        print(
            json.dumps(
                {"command": command, "out": str(out), "seconds": seconds, **plain, "failures": listed}, default=str
            )
        )
    else:
        for name, row in rows.items():
            shown = {k: v for k, v in row.items() if v not in (None, [], (), {}, "") and k not in _REPEATED}
            print(f"{command} {name}".rstrip())
            for key, value in shown.items():
                print(f"  {key.replace('_', ' '):24} {_short(value)}")
        if rows:
            print(f"  {'seconds':24} {seconds}" + (f"\n  {'written to':24} {out}" if out else ""))
        if failures:
            print(f"{len(failures)} failed:")
            for failure in failures:
                print(f"  {failure.unit}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v)
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


_TYPER_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt before we see it
INTERRUPTED = "interrupted. What is finished is kept; run the same command again to go on"


def run(app: typer.Typer) -> NoReturn:
    """Run the command line and exit with 0, 1 (some units failed) or 2 (bad input); errors are one line."""
    try:
        code = app(standalone_mode=False)
    except OlivineError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _interrupted()
    except OSError as error:
        if (memory := memory_error(error)) is not None:
            _fail(str(memory), 1)
        _fail(str(disk_error(error, error.filename or "output")), 1)
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
    print(f"olivine: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
