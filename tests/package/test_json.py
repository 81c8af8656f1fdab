"""--json: one strict JSON object on standard output, the same frame around every command's, also where it fails."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from olivine.commands import console

FRAME = {"command", "ok", "out", "seconds", "failures", "error"}


def strict(text: str) -> dict[str, Any]:
    """The one object of a command's output; what is no JSON, as NaN is none, is refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict) and set(found) >= FRAME
    return found


@pytest.fixture(scope="module")
def place(nuscenes_world, checkpoint, tmp_path_factory):
    """A folder with what the commands read, by their default paths."""
    folder = tmp_path_factory.mktemp("json")
    (folder / "data/pairs").mkdir(parents=True)
    (folder / "data/labels").mkdir()
    (folder / "data/pairs/nuscenes").symlink_to(nuscenes_world.pairs)
    (folder / "data/labels/nuscenes").symlink_to(nuscenes_world.pairs.parent / "labels")
    (folder / "data/nuscenes").symlink_to(nuscenes_world.root)
    (folder / "runs/some").mkdir(parents=True)
    (folder / "runs/some/last.pt").symlink_to(checkpoint)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["synth", "--dry-run", "--out", "new"],
        ["labelgen", "--dry-run"],
        ["build-pairs", "--dry-run"],
        ["build-pairs", "--describe", "data/pairs/nuscenes/val"],
        ["build-pairs", "--check", "data/pairs/nuscenes/val"],
        ["score-labels", "--out", "scores"],
        ["pretrain", "--dry-run"],
        ["pretrain", "--print-config"],
        ["features", "--dry-run"],
        ["probe", "--dry-run"],
        ["finetune", "--dry-run"],
        ["report", "--frames", "1"],
        ["weights", "list"],
        ["doctor", "--quick"],
        ["export", "--out", "e.pt"],
        ["labelgen", "--preview", "PREVIEW"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_prints_one_strict_object(arguments, place, nuscenes_world, olivine):
    image = next((nuscenes_world.root / "samples/CAM_BACK").iterdir())
    words = [str(image) if word == "PREVIEW" else word for word in arguments]
    done = olivine(*words, "--json", cwd=place)
    found = strict(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["ok"] is True and found["error"] is None and found["failures"] == []
    assert found["command"].split()[0] == words[0]


@pytest.mark.parametrize(
    "arguments",
    [["pretrain", "--set", "nonsense=1"], ["build-pairs", "--no-such"], ["report", "--frames", "0"], ["nothing"]],
)
def test_an_error_is_an_object_too(arguments, place, olivine):
    done = olivine(*arguments, "--json", cwd=place)
    found = strict(done.stdout)
    assert done.returncode == 2
    assert found["ok"] is False and found["command"] == arguments[0]
    assert done.stderr.strip().splitlines()[-1] == f"olivine: {found['error']}"


def test_numbers_that_json_has_not_are_null_and_what_a_library_prints_is_elsewhere(capfd, monkeypatch):
    def app(standalone_mode):
        print("a library's chatter")
        console.emit("x", {"loss": float("nan"), "most": np.float64("inf"), "of": {"a": [float("-inf"), 1.5]}})

    monkeypatch.setattr(sys, "argv", ["olivine", "x", "--json"])
    with pytest.raises(SystemExit):
        console.run(app)
    out, err = capfd.readouterr()
    monkeypatch.setattr(sys, "stdout", later := io.StringIO())
    console.emit("y", {})  # the next command of the process has an output of its own
    assert strict(later.getvalue())["command"] == "y" and not capfd.readouterr().out
    found = strict(out)
    assert (found["loss"], found["most"], found["of"]) == (None, None, {"a": [None, 1.5]})
    assert "chatter" in err


def test_after_two_dashes_json_is_another_programs(olivine, tmp_path):
    done = olivine("submit", "--", "labelgen", "--json", cwd=tmp_path)
    assert done.stdout == "" and done.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["probe", "--no-random", "--dry-run"], "probe --no-random is now called --no-beside-random"),
        (["finetune", "--labels=weak", "--dry-run"], "finetune --labels is now called --learn-from"),
        (["features", "--shard", "0/2", "--dry-run"], "features --shard is now called --part"),
    ],
)
def test_an_option_by_its_old_name_works_and_says_the_new_one(arguments, note, place, olivine):
    done = olivine(*arguments, cwd=place, check=True)
    assert f"note: {note}" in done.stderr
    if "weak" in arguments[1]:
        assert "weak labels" in done.stdout


def test_what_dry_run_estimates_is_what_comes_of_it(place, nuscenes_keyframe, keyframe_camseg, olivine, tmp_path):
    labels = [
        "labelgen",
        "--dataset",
        "nuscenes",
        "--root",
        nuscenes_keyframe,
        "--labeler",
        "import",
        "--camseg",
        keyframe_camseg,
    ]
    plan = strict(olivine(*labels, "--dry-run", "--json", cwd=tmp_path, check=True).stdout)
    assert not list(tmp_path.iterdir())
    made = strict(olivine(*labels, "--json", cwd=tmp_path, check=True).stdout)
    assert plan["images"] == made["images"] == 6
    plan = strict(olivine("build-pairs", "--dry-run", "--json", cwd=tmp_path, check=True).stdout)
    olivine("build-pairs", "--workers", 1, cwd=tmp_path, check=True)
    taken = sum(os.path.getsize(path) for path in (tmp_path / "data/pairs/nuscenes/val").rglob("*") if path.is_file())
    assert plan["images"] == 6
    assert 0.7 * taken < 1e9 * plan["gigabytes"] + 5e5 < 1.6 * taken + 5e5


def test_a_preview_draws_what_labelgen_stores(place, nuscenes_world, tmp_path, olivine):
    from olivine.labelgen.preview import find_image, preview_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.readers import open_dataset

    store = open_store(place / "data/labels/nuscenes")
    frames = open_dataset("nuscenes", nuscenes_world.root).frames()
    camera = frames[3].cameras[2]
    for name in (camera.image, str(nuscenes_world.root / camera.image)):
        task = find_image(type(nuscenes_world.root)(name), frames)
        assert task.camera.key == camera.key
    summary, found = preview_labels(task, nuscenes_world.root, LabelSettings("oracle"), tmp_path / "x.png")
    np.testing.assert_array_equal(found.label, store.label_map(camera))
    assert sum(summary.pixels.values()) == pytest.approx(1)
    with Image.open(tmp_path / "x.png") as drawing:
        assert drawing.size == (camera.width, 2 * camera.height)
    dry = olivine("labelgen", "--preview", camera.image, "--dry-run", cwd=place, check=True)
    assert "would write the label map of" in dry.stdout and not list(place.glob(f"{Path(camera.image).stem}*"))
    done = olivine("labelgen", "--preview", "nowhere.jpg", cwd=place)
    assert done.returncode == 2 and "is no image of the data set" in done.stderr


def test_a_limit_labels_the_first_scenes_and_the_rest_goes_on_later(nuscenes_world, olivine, tmp_path):
    run = ["labelgen", "--dataset", "nuscenes", "--root", nuscenes_world.root, "--json"]
    assert strict(olivine(*run, "--limit", 2, cwd=tmp_path, check=True).stdout)["units"] == 2
    made = strict(olivine(*run, cwd=tmp_path, check=True).stdout)
    assert (made["units"], made["units_kept"]) == (10, 2)
    assert olivine(*run, "--limit", -1, cwd=tmp_path).returncode == 2


def test_a_finished_run_says_so(place, olivine, tmp_path):
    words = [
        "pretrain",
        "--shards",
        place / "data/pairs/nuscenes/train",
        "--set",
        "run.steps=1",
        "--set",
        "method.pairs=256",
    ]
    words += ["--set", "method.scr=false", "--out", "run"]
    assert "is finished" not in olivine(*words, cwd=tmp_path, check=True).stdout
    said = olivine(*words, cwd=tmp_path, check=True).stdout
    assert "this run is finished: 1 of 1 steps were made before" in said
    assert "nan" not in said
    again = strict(olivine(*words, "--json", cwd=tmp_path, check=True).stdout)
    assert again["first_loss"] is None and again["step"] == again["steps"] == 1
