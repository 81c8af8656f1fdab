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
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.cases import SEED, Hang, odd_name, one_case
from fuzzing.kinds import kinds_of, plain_digest
from fuzzing.mutations import CODE_RAN
from fuzzing.world import make_world

CASES = int(os.environ.get("OLIVINE_FUZZ_CASES", 10_500))
ONLY = os.environ.get("OLIVINE_FUZZ_KIND", "").split(",")


@dataclass
class Counts:
    """Cases of one kind by outcome, and the bad ones."""

    outcomes: collections.Counter = field(default_factory=collections.Counter)
    bad: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The working directory of all cases."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_world(folder)
    return folder


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
