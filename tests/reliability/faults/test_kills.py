"""SIGKILL at any moment: the same command afterwards ends with the same bytes, or a line that says what to do.

The quick tests kill at two changes of the file system; the soak tests at every change, and at OLIVINE_KILLS (5) random
moments of each stage (seed OLIVINE_KILLS_SEED, 0).
"""

import os

import numpy as np
import pytest

KILLS = int(os.environ.get("OLIVINE_KILLS", 5))
SEED = int(os.environ.get("OLIVINE_KILLS_SEED", 0))


def goes_on(machine, stage: str, expected: dict) -> str:
    """What is wrong with the command's second run, empty where nothing is."""
    again = machine.run(stage)
    if again.code != 0:
        return f"exit code {again.code}: {again.said[-600:]}"
    found = machine.tree()
    other = [name for name in expected | found if expected.get(name) != found.get(name)]
    return f"other files: {other}" if other else f"left {machine.leftovers()}" if machine.leftovers() else ""


@pytest.mark.stages("build-pairs", of="resumed")
def test_a_kill_at_any_change_of_the_file_system_costs_nothing_that_was_finished(depth, stage, machine):
    expected, _ = machine.reference(stage)
    machine.clean()
    assert machine.run(stage, machine.at_change(1 << 60, None)).code == 0
    count = machine.changes
    bad = {}
    numbers = range(1, count + 1) if depth == "all" else (count // 2, count - 1)
    for number in numbers:
        machine.clean()
        assert machine.run(stage, machine.at_change(number, None)).code == -9
        if what := goes_on(machine, stage, expected):
            bad[number] = what
    print(f"killed at every change, {stage}: {len(numbers)} kills, {len(bad)} bad")
    assert not bad, "\n".join(f"{case}: {what}" for case, what in bad.items())


@pytest.mark.stages(of="resumed")
def test_a_kill_at_any_moment_costs_nothing_that_was_finished(stage, machine):
    expected, seconds = machine.reference(stage)
    random = np.random.default_rng((SEED, *stage.encode()))
    bad, alive = {}, 0
    for moment in random.uniform(0, seconds, KILLS):
        machine.clean()
        alive += machine.kill(stage, moment)
        if what := goes_on(machine, stage, expected):
            bad[moment] = what
    print(f"killed at random moments, {stage}: {KILLS} kills, {alive} before the end, {len(bad)} bad")
    assert not bad, "\n".join(f"{case}: {what}" for case, what in bad.items())
