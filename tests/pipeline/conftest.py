"""The command line as a user runs it: a process of its own, in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def olivine() -> Run:
    """Run a command in ``cwd`` and expect ``code``; a traceback is always a failure."""

    def run(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "olivine.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run
