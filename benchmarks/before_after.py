"""What changes bring: a benchmark of another revision and of this tree, run by turns in one run, each with its own program.

    python benchmarks/before_after.py [--rounds 2] REVISION [-- pretrain_speed.py --threads 1 --steps 5]

Prints what each run printed. Both sides must know the program and its options; real sample data are found by both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ["pretrain_speed.py", "--threads", "1", "--steps", "5"]


def unpack(revision: str, folder: Path) -> None:
    """A revision's files as the package ``olivine`` in a folder."""
    (folder / "olivine").mkdir(parents=True)
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", folder / "olivine"], input=packed, check=True)
    (folder / "shared").symlink_to(ROOT.parent / "shared")


def main() -> None:
    """Run both by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what git calls the other revision")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("program", nargs="*", default=PROGRAM, help="of benchmarks/, with its options, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        before, after = Path(name) / "before", Path(name) / "after"
        unpack(options.revision, before)
        after.mkdir()
        (after / "olivine").symlink_to(ROOT)
        for number in range(options.rounds):
            for way, folder in ((f"before ({options.revision})", before), ("after", after)):
                print(f"== round {number + 1}, {way}: {' '.join(options.program)}", flush=True)
                program = folder / "olivine/benchmarks" / options.program[0]
                subprocess.run(
                    [sys.executable, program, *options.program[1:]],
                    env={**os.environ, "PYTHONPATH": str(folder)},
                    check=True,
                    stderr=subprocess.DEVNULL,
                )


if __name__ == "__main__":
    main()
