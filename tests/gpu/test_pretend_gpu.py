"""Promises of the path through CUDA, on a GPU that is pretended: the CPU's numbers, one device, few waits and launches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from budgets import FINE_TUNING_WAITS, LABELER_WAITS, MOST, Budget

ENGINE = "train/sparse/"
soak = partial(pytest.param, marks=pytest.mark.soak)
PRESETS = ("cpu", "paper", "voxelnet", "ppkt", "slidr", "st-slidr", "seal", "uov-tmp", "distil")
# cpu is the same method as paper and has PPKT's term; seal and st-slidr have SLidR's.
LONG = ("paper", "ppkt", "slidr")
CASES = [soak(preset) if preset in LONG else preset for preset in PRESETS]
# What the network asks the engine for is made ahead from the third step on.
STEPS = {preset: 4 if preset in MOST else 3 for preset in PRESETS}


def changes(preset: str, shards: Path) -> list[str]:
    small = ["image.encoder=small", "image.height=56", "image.width=104", "data.workers=0", f"data.shards={shards}"]
    small += [
        "augment.crop_min_pairs=50",
        "augment.cuboid_min_pairs=50",
        f"run.steps={STEPS[preset]}",
        "backbone.engine=torch",
    ]
    if preset in ("cpu", "paper", "ppkt", "voxelnet"):
        small.append("method.pairs=100")
    if preset in ("cpu", "paper", "voxelnet"):
        small.append("method.warmup=0.34")
    if preset == "voxelnet":
        return [*small, "run.batch=2", "run.group=1", "voxels.size_m=0.4"]
    if preset == "paper":
        return [*small, "run.batch=4", "run.group=1", "voxels.size_m=1.6"]
    return [*small, "run.batch=2", "run.group=1", "voxels.size_m=0.8", "backbone.name=srunet-small"]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, on_pretend_gpu: Callable[..., Any], streets: Path, streets_with_regions: Path
) -> dict[str, Any]:
    """By preset that a test asks for, and by device: the rows of a run, and what was counted."""
    ours = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("preset") for item in ours}
    wanted = {p: changes(p, streets_with_regions if p == "uov-tmp" else streets) for p in PRESETS if p in asked}
    found: dict[str, Any] = on_pretend_gpu("runs", wanted)
    return found


@pytest.mark.parametrize("preset", CASES)
def test_a_run_has_the_numbers_of_the_cpu_on_one_device_by_deterministic_operators(
    preset: str, runs: dict[str, Any]
) -> None:
    by_device = runs[preset]
    assert len(by_device["cuda"]["rows"]) == STEPS[preset]
    for ours, theirs in zip(by_device["cuda"]["rows"], by_device["cpu"]["rows"], strict=True):
        # The norm sums up in another order: its last digit differs.
        norms = [float(row.pop("gradient_norm")) for row in (ours, theirs)]
        assert norms[0] == pytest.approx(norms[1], rel=3e-7)
        assert ours == theirs
    assert by_device["cuda"]["refused"] == {}


@pytest.mark.parametrize("preset", CASES)
def test_what_is_made_ahead_and_the_step_wait_for_each_other(preset: str, runs: dict[str, Any]) -> None:
    assert runs[preset]["cuda"]["streams"] == 2
    assert runs[preset]["cuda"]["races"] == []


def test_a_wait_between_streams_that_is_left_out_is_found(on_pretend_gpu: Callable[..., Any]) -> None:
    found = on_pretend_gpu("races", None)
    assert found.pop("none") == []
    assert len(found) == 3
    for fault, lines in found.items():
        assert lines, fault


@pytest.mark.parametrize("preset", [soak(preset) if preset in LONG else preset for preset in MOST])
def test_a_step_waits_and_launches_no_more_than_its_budget(preset: str, runs: dict[str, Any]) -> None:
    # Maps of the engine are made ahead too, and the step does not wait for them.
    assert not [line for line in runs[preset]["cuda"]["waits"] if line.startswith(ENGINE)]
    for kind in Budget._fields:
        counted = {line: n for line, n in runs[preset]["cuda"][kind].items() if not line.startswith(ENGINE)}
        most = getattr(MOST[preset], kind)
        said = "\n".join(f"{n:6} {line}" for line, n in sorted(counted.items(), key=lambda item: -item[1])[:40])
        assert sum(counted.values()) <= most, f"{preset}: {sum(counted.values())} {kind}, at most {most}\n{said}"


@pytest.mark.parametrize("precision", ["32-true", soak("16-mixed")])
def test_a_stopped_run_ends_with_the_same_bits_and_is_probed(
    precision: str, on_pretend_gpu: Callable[..., Any], streets: Path
) -> None:
    found = on_pretend_gpu("resume_and_probe", [*changes("cpu", streets), f"run.precision={precision}", "run.steps=3"])
    assert found["resumed"] == 1
    assert found["same"]
    assert 0 <= found["scores"][0] <= 1


@pytest.mark.soak
def test_a_fine_tuning_is_the_cpus_with_its_frames_made_ahead_on_another_stream(
    on_pretend_gpu: Callable[..., Any], streets: Path
) -> None:
    found = on_pretend_gpu("fine_tuning", {"changes": changes("cpu", streets), "shards": str(streets)})
    on_gpu, on_cpu = found["cuda"], found["cpu"]
    assert len(on_gpu["rows"]) == 4
    assert (on_gpu["rows"], on_gpu["scores"]) == (on_cpu["rows"], on_cpu["scores"])
    # The steps' stream, and that of a thread in training and of one in scoring.
    assert (on_gpu["races"], on_gpu["streams"], on_gpu["refused"]) == ([], 3, {})
    assert sum(found["waits"].values()) <= FINE_TUNING_WAITS, found["waits"]  # those of the engine among them


@pytest.mark.soak
def test_bench_measures_there_what_it_measures_on_a_cpu(on_pretend_gpu: Callable[..., Any], streets: Path) -> None:
    found = on_pretend_gpu("bench", changes("cpu", streets))
    assert found["cuda"]["step"]["loss"] == found["cpu"]["step"]["loss"]
    assert found["cuda"]["network"]["voxels"] == found["cpu"]["network"]["voxels"]
    for part in ("whole", "layer"):
        assert found["cuda"]["network"][part]["torch"]["backward_s"] > 0
    assert all(seconds > 0 for seconds in found["cuda"]["stages"].values())


@pytest.fixture(scope="module")
def labelers(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """By labeler the settings of networks at reduced size."""
    networks, folders = request.getfixturevalue("tiny_networks"), request.getfixturevalue("tiny_folders")
    mm: Path = request.getfixturevalue("mm_folders")
    return {
        "grounded-sam": {key: str(path) for key, path in asdict(networks).items()},
        "hf-grounded-sam": {"detector_checkpoint": str(folders.detector), "sam_checkpoint": str(folders.sam)},
        "mm-grounded-sam2": {"detector_checkpoint": str(mm / "detector"), "sam_checkpoint": str(mm / "sam")},
    }


@pytest.mark.parametrize("name", [name if name == "hf-grounded-sam" else soak(name) for name in LABELER_WAITS])
def test_a_batch_of_labels_waits_no_more_than_its_budget_and_is_the_cpus(
    name: str, labelers: dict[str, dict[str, Any]], on_pretend_gpu: Callable[..., Any]
) -> None:
    size = {"short_side": 160, "long_side": 320, "precision": "float32"}
    found = on_pretend_gpu("labeler", {"name": name, **labelers[name], **size})
    assert found["cuda"] == found["asking the GPU"]  # to the last digit
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        # The CPU samples in another order: a pixel whose mask's logit is nearly 0 may fall on the other side.
        assert np.mean(np.array(ours[0]) != np.array(theirs[0])) < 2e-3
        assert len(ours[1]) > 2
        assert [value for box in ours[1] for value in box] == pytest.approx(
            [v for box in theirs[1] for v in box], rel=1e-3
        )
    assert sum(found["waits"].values()) + found["events"] <= LABELER_WAITS[name], found["waits"]
    assert found["asked"] > 20  # of transformers 5; 4 asks some hundreds of times


def test_faults_that_are_made_on_purpose_are_found(on_pretend_gpu: Callable[..., Any]) -> None:
    found = on_pretend_gpu("faults", None)
    assert "same device" in found["mixed"]
    assert "'cuda' device type for generator" in found["generator"]
    assert "numpy" in found["numpy"]
    assert found["waits"] == [0, 1, 1, 1, 1, 1]
    assert any("median" in line and "determin" in line for line in found["refused"])
