"""The world that is fuzzed: two tiny data sets and what every stage makes of them."""

import contextlib
import sys
from pathlib import Path

import pytest

from olivine import cli
from olivine.commands import console

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


def make_world(folder: Path) -> None:
    """Every kind of file, made by the commands themselves, in an empty folder."""
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
            ("labelgen", "--segments", "slic", "--scores"),
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
