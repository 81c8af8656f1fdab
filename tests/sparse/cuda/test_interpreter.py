"""The promises of ``interpreted.py``, each by its name; Triton's interpreter needs a process that has it from the start."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILE = Path(__file__).with_name("interpreted.py")
ROOT = FILE.parents[3]


def _promises() -> list[object]:
    found = []
    for node in ast.parse(FILE.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            long = any("soak" in ast.unparse(decorator) for decorator in node.decorator_list)
            found.append(pytest.param(node.name, marks=[pytest.mark.soak] if long else []))
    return found


class Runs:
    """What the inner tests printed and how they ended, run once for the short ones and once for the long ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ended = folder, {}

    def of(self, name: str, long: bool) -> list[tuple[str, str]]:
        if long not in self.ended:
            report = self.folder / f"{long}.xml"
            command = [sys.executable, "-m", "pytest", str(FILE), "-p", "no:cacheprovider", "-p", "no:xdist"]
            command += ["-m", "soak" if long else "not soak", "--junitxml", str(report)]
            environment = os.environ | {"TRITON_INTERPRET": "1", "OLIVINE_FUSED": "0"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False
            )
            assert report.exists(), done.stdout + done.stderr
            self.ended[long] = list(ElementTree.parse(report).iter("testcase"))
        cases = [case for case in self.ended[long] if case.get("name", "").split("[")[0] == name]
        return [(case.get("name", ""), "\n".join(part.text or "" for part in case)) for case in cases]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("name", _promises())
def test_in_the_interpreter(name, runs, request):
    cases = runs.of(name, request.node.get_closest_marker("soak") is not None)
    assert cases
    failures = [f"{case}\n{text}" for case, text in cases if text]
    assert not failures, "\n\n".join(failures)
