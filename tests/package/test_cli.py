"""The command line's manners: one line for what is wrong, exit codes 0, 1, 2, no traceback."""

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["labelgen"], "no data set in data/. Link one"),
        (["labelgen", "--dataset", "nuscenes"], "no nuscenes data set here"),
        (["labelgen", "--dataset", "waymo", "--root", "."], "no data set 'waymo'. Did you mean"),
        (["labelgen", "--root", "."], "no data set is recognized here. Add --dataset with one of"),
        (["init-rig", "."], "holds no point files (.bin"),
        (["labelgen", "--dataset", "rig", "--root", "."], "write one with: olivine init-rig"),
        (["build-pairs"], "run olivine labelgen first"),
        (["pretrain"], "Run olivine build-pairs first"),
        (["check-labels"], "run olivine build-pairs first"),
        (["features"], "Run olivine build-pairs first"),
        (["features", "--part", "4/4"], "from 0 to N-1"),
        (["pretrain", "--set", "run.epoch=3", "--print-config"], "did you mean 'run.epochs'?"),
        (["pretrain", "--set", "data.shards=elsewhere"], "elsewhere"),
        (["build-pairs", "--around", "3"], "--around 3. Add --consolidate"),
        (["build-pairs", "--consolidate", "--around", "0"], "give at least 1"),
        (["build-pairs", "--tracks"], "--tracks. Add --consolidate"),
        (["build-pairs", "--also", "elsewhere"], "--also elsewhere. Add --consolidate"),
        (["probe"], "no run in runs/. Run olivine pretrain first"),
        (["report"], "run olivine labelgen first"),
        (["view"], "no data set in data/. Link one"),
        (["study"], "no shards here. Make them: olivine synth"),
        (["study", "--merge"], "olivine study --merge A B"),
        (["study", "--merge", ".", "--seed", "0"], "--seed does not go with --merge"),
        (["study", "--power", "2", "--row", "base"], "--row does not go with --power"),
        (["study", "--config", "study-dmo"], "use one of study-demo"),
        (["status"], "no job has left an account here"),
        (["launch", "probe"], "cannot launch probe"),
        (["nonsense"], "No such command 'nonsense'"),
        (["labelgen", "--nonsense"], "No such option"),
        (["synth", "--scenes", "0"], "scenes"),
        (["synth", "--scenes", "many"], "a valid integer"),
    ],
)
def test_a_wrong_call_is_one_line_that_says_what_to_do(arguments, says, olivine, tmp_path):
    done = olivine(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("olivine: ")
    assert says.lower() in lines[-1].lower()
    assert len([line for line in lines if line.startswith("olivine: ")]) == 1


def test_a_process_of_its_own_ends_with_the_same_line_and_exit_code(olivine, tmp_path):
    there, here = (olivine("pretrain", cwd=tmp_path, process=process) for process in (True, False))
    assert (there.returncode, there.stderr) == (here.returncode, here.stderr)
    assert there.returncode == 2


def test_the_largest_data_set_is_the_one_with_most_frames(tmp_path, monkeypatch):
    """nuScenes' table of samples is far more bytes than KITTI's files are many: what counts is frames."""
    from olivine.commands import defaults

    monkeypatch.chdir(tmp_path)
    for version, frames in (("v1.0-mini", 2), ("v1.0-trainval", 3)):
        table = tmp_path / "data/nuscenes" / version / "sample.json"
        table.parent.mkdir(parents=True)
        table.write_text(json.dumps([{"token": "t" * 32, "scene_token": "s" * 32} for _ in range(frames)], indent=0))
    clouds = tmp_path / "data/semantickitti/sequences/00/velodyne"
    clouds.mkdir(parents=True)
    assert defaults.choose_dataset(None, None)[0] == "nuscenes"
    for k in range(4):
        (clouds / f"{k:06d}.bin").touch()
    name, root, why = defaults.choose_dataset(None, None)
    assert (name, str(root)) == ("semantickitti", "data/semantickitti")
    assert why == "the largest of nuscenes (3 frames), semantickitti (4 frames)"


def test_of_labels_and_shards_of_one_size_those_named_as_their_data_set_are_taken_or_none(tmp_path, monkeypatch):
    """The alphabet says nothing: maps of another view, which only vote, came before those of the images."""
    from olivine.commands import defaults
    from olivine.common import OlivineError

    def labels(name: str, frames: int = 3) -> Path:
        folder = Path("data/labels") / name
        (folder / "frames").mkdir(parents=True)
        (folder / "manifest.json").touch()
        index = {"dataset": "nuscenes", "scenes": [{"frames": frames}]}
        (folder / "frames/index.json").write_text(json.dumps(index))
        return folder

    def shards(name: str, frames: int = 3) -> Path:
        folder = Path("data/pairs") / name / "train"
        folder.mkdir(parents=True)
        manifest = {"recipe": {"dataset": "nuscenes"}, "shards": [{"frames": frames}]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    monkeypatch.chdir(tmp_path)
    of_labels, of_shards = (lambda: defaults.choose_labels(None, None)), (lambda: defaults.choose_shards(None, "train"))
    for make, choose, option in ((labels, of_labels, "labels"), (shards, of_shards, "shards")):
        mirrored, halves = make("mirrored"), make("halves")
        with pytest.raises(OlivineError, match=f"halves.* and .*mirrored.* hold equally .* with --{option}"):
            choose()
        if option == "labels":
            assert defaults.choose_labels(None, None, [tmp_path / mirrored])[0] == halves
            with pytest.raises(OlivineError, match="no labels in data/labels but those of --also"):
                defaults.choose_labels(None, None, [mirrored, halves])
        named = make("nuscenes")
        make("another", 2)
        assert choose()[0] == named
        assert make("voted", 4) == choose()[0]


@pytest.mark.frames("synthetic")
def test_a_dry_run_of_labelgen_says_which_weights_are_not_here(olivine, nuscenes_keyframe, tmp_path):
    given = ("labelgen", "--root", nuscenes_keyframe, "--weights", tmp_path / "none", "--dry-run")
    done = olivine(*given, cwd=tmp_path)
    assert done.returncode == 2
    assert "needs weights that are not here" in done.stderr
    assert "olivine weights fetch swin-t bert-base-uncased vit-h" in done.stderr
    assert not list(tmp_path.iterdir())


def test_labelgens_segments_are_checked_before_a_dry_run_and_refused_of_a_preview(olivine, nuscenes_world, tmp_path):
    given = ("labelgen", "--root", nuscenes_world.root, "--weights", tmp_path / "none", "--dry-run", "--segments")
    done = olivine(*given, "sam", cwd=tmp_path)
    assert done.returncode == 2 and "--segments sam needs weights that are not here" in done.stderr
    image = next(nuscenes_world.root.glob("samples/CAM_FRONT/*"))
    done = olivine(*given, "masks", "--preview", image, cwd=tmp_path)
    assert done.returncode == 2 and "--segments masks with --preview. Leave it out" in done.stderr


def test_a_probe_of_one_split_says_that_it_needs_both(olivine, nuscenes_world, checkpoint, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/val").symlink_to(nuscenes_world.pairs / "val")
    done = olivine("probe", "--checkpoint", checkpoint, "--shards", "pairs", cwd=tmp_path)
    assert done.returncode == 2
    assert "olivine: pairs: holds shards of val/ alone" in done.stderr


def test_doctor_finds_this_installation_in_order(olivine, tmp_path):
    done = olivine("doctor", "--json", cwd=tmp_path)
    findings = {f["topic"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, done.stdout
    assert findings["opencv"]["state"] == "ok"
    assert findings["data set"]["remedy"].endswith("or: olivine synth")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {
        re.split(r"[<>=]", package)[0] for name in set(extras) - {"all", "dev", "docs"} for package in extras[name]
    }
    assert brought - {"numpy"} <= set(findings)


def test_doctor_names_what_is_broken_and_the_command_that_mends_it(tmp_path, monkeypatch):
    from olivine.commands import doctor

    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor._opencv()
    assert finding.state == "broken"
    assert "libGL.so.1" in finding.text
    assert "opencv-python-headless==" in finding.remedy


def test_doctor_says_what_a_package_does_not_support(monkeypatch):
    from olivine.commands import doctor

    versions = {"numpy": "2.4.6", "pillow": "12.0"}
    monkeypatch.setattr(
        doctor, "package_versions", lambda names: {name: versions.get(name, "absent") for name in names}
    )
    asked = [
        "numpy<2.0.0,>=1.22.0",
        "Pillow>6.2.1",
        "tqdm>1",
        "numpy<1; python_version < '3'",
        "numpy<1; extra == 'old'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    about = {"Requires-Python": [">=3.8,<3.13"]}
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: SimpleNamespace(get_all=about.get))
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 12, 3)))
    (finding,) = doctor._not_supported("nuscenes-devkit", "1.2.0")
    assert (finding.topic, finding.state) == ("nuscenes-devkit", "ok")
    assert finding.text == "asks for numpy<2.0.0,>=1.22.0, 2.4.6 is installed"
    assert finding.remedy == "pip install 'numpy<2.0.0,>=1.22.0', if it fails"
    assert doctor._install("nuscenes") == "pip install 'olivine[nuscenes]'"
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 13, 5)))
    python, numpy = doctor._not_supported("nuscenes-devkit", "1.2.0")
    assert python.text == "is for Python >=3.8,<3.13, this is 3.13.5"
    assert (
        numpy.text.endswith("2.4.6 is installed; numpy below 2 has no release for Python 3.13.5") and not numpy.remedy
    )
    assert doctor._install("nuscenes").endswith(", or as docs/install.md says for this Python")
    about.clear()
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: None)
    assert [f.topic for f in doctor._not_supported("transformers", "4.57.6")] == ["sam3"]
    assert not list(doctor._not_supported("transformers", "5.24.0"))


def test_every_command_has_an_example_in_its_help():
    from olivine.cli import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"Example: olivine {name}" in command.callback.__doc__, name


def test_dry_run_writes_nothing(olivine, tmp_path):
    done = olivine("synth", "--dry-run", "--out", "world", cwd=tmp_path)
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["labelgen", "build-pairs"])
def test_a_stage_takes_the_same_options_of_its_units(command, olivine, tmp_path):
    said = olivine(command, "--help", cwd=tmp_path).stdout
    for option in ("--executor", "--address", "--merge", "--part", "--workers"):
        assert option in said
    assert "--units" not in said
