"""A data set is one file: nothing outside it knows its name, and one of the user's own goes through the whole pipeline."""

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.readers import dataset_class, dataset_names, index_dataset, open_dataset, recognize
from olivine.readers.benchmark import Benchmark, benchmark_from_plain

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "readers/recording.py",  # poses in a table of KITTI's form are poses in a table of KITTI's form
    "readers/recording_files.py",
    "readers/recording_start.py",
    "commands/detect.py",  # KITTI's benchmark of detection is what this command trains for
    "study/config.py",  # the folder of the demo's shards is the default of a study
}
"""Besides the writers of synthetic data sets, which write a real one's format; benchmarks and tests; and all prose."""


def strings_and_names(path):
    """What a module's code says, without comments and docstrings."""
    tree = ast.parse(path.read_text())
    prose = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                prose.add(id(statement.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value
        for attribute in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


def test_no_data_sets_name_stands_outside_its_file():
    files = {f"readers/{name.replace('-', '_')}.py" for name in dataset_names()}
    words = ("nuscenes", "kitti")
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.split("/")[0] in (
            "tests",
            "benchmarks",
            "docs",
            "synthetic",
            "build",
            ".venv",
            ".venv-docs",
            "data",
            "demo",
            "runs",
        ):
            continue
        if place in files or place in ALLOWED or place.startswith("downstream/detection/"):
            continue
        wrong += [f"{place}:{n}: {s}" for n, s in strings_and_names(path) if any(w in s.lower() for w in words)]
    assert not wrong


def test_names_are_the_files_and_a_wrong_one_names_the_nearest():
    assert {"nuscenes", "kitti", "semantickitti"} <= set(dataset_names())
    with pytest.raises(
        OlivineError, match=r"no data set 'nuscene'\. Did you mean 'nuscenes'\? There are argoverse2, kitti"
    ):
        dataset_class("nuscene")
    with pytest.raises(OlivineError, match=r"'my\.car:Car' cannot be imported"):
        dataset_class("my.car:Car")


@pytest.mark.frames("synthetic")
def test_a_folder_is_recognized_by_its_files(kitti_frame, kitti_world, nuscenes_world, tmp_path):
    assert recognize(nuscenes_world.root) == ["nuscenes"]
    assert recognize(kitti_frame) == ["kitti"]
    assert recognize(kitti_world.root) == ["semantickitti"]
    assert recognize(tmp_path) == []


@pytest.mark.parametrize("name", ["nuscenes", "kitti", "semantickitti"])
def test_what_a_benchmark_fixed_survives_json(name):
    benchmark = dataset_class(name).benchmark("v1.0-mini")
    assert benchmark_from_plain(json.loads(json.dumps(benchmark.to_plain())), "x.json", "again") == benchmark


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"fraction_of": "rooms"}, {"submission": {"file": 3}}, {"ground": None}]
)
def test_a_damaged_benchmark_is_one_line(change):
    with pytest.raises(OlivineError, match=r"^x\.json: [^\n]*again$|Again"):
        benchmark_from_plain({**Benchmark().to_plain(), **change}, "x.json", "again")


MY_CAR = '''
"""A data set of one's own: clouds of other columns in .npy files, one calibration, three classes."""

import json

import numpy as np

from olivine.common.images import image_size
from olivine.readers.benchmark import Benchmark
from olivine.readers.dataset import Dataset
from olivine.readers.frame import Camera


class MyCar(Dataset):
    name = "mycar"
    version = "1"
    prompts = {"ground": "road", "plants": "vegetation", "rest": None}
    intensity_offset = 0.5

    def __init__(self, root, version=None):
        self.root = root
        self.point_classes = ("ground", "plants", "rest")
        self.note = "my own car"

    @classmethod
    def count(cls, root):
        return len(list(root.glob("drive-*/cloud/*.npy")))

    @classmethod
    def state(cls, root, version):
        return list(root.glob("drive-*"))

    @classmethod
    def benchmark(cls, version):
        return Benchmark(batch=2)

    def frames(self, split=None):
        made = []
        calibration = json.loads((self.root / "calibration.json").read_text())
        matrices = [np.array(calibration[key]) for key in ("intrinsic", "lidar_to_camera")]
        for drive, its_split in (("drive-a", "train"), ("drive-b", "val")):
            if split not in (None, its_split):
                continue
            for k, cloud in enumerate(sorted((self.root / drive / "cloud").glob("*.npy"))):
                image = f"{drive}/left/{cloud.stem}.png"
                camera = Camera("left", image, *image_size(self.root / image, "record it again"), *matrices)
                made.append(
                    self.make_frame(
                        token=f"{drive}/{cloud.stem}", scene=drive, split=its_split, timestamp=100_000 * k,
                        point_file=f"{drive}/cloud/{cloud.name}", point_columns=4, pose=np.full((4, 4), np.nan),
                        cameras=(camera,), point_label_file="in the cloud", truth_folder="truth", detail="5 columns",
                    )
                )
        return made

    @classmethod
    def cloud(cls, frame):
        assert frame.detail == "5 columns"
        rows = np.load(frame.root / frame.point_file)
        return np.ascontiguousarray(rows[:, [2, 1, 0, 3]], np.float32)

    @classmethod
    def labels(cls, frame):
        return np.load(frame.root / frame.point_file)[:, 4].astype(np.uint8)
'''


@pytest.fixture
def my_car(kitti_world, tmp_path, monkeypatch):
    """The folder of such a data set, made of a synthetic one, and its class on the path."""
    root, source = tmp_path / "mycar", kitti_world.root
    frames = open_dataset("semantickitti", source).frames()
    for frame in frames:
        drive, camera = {"00": "drive-a", "08": "drive-b"}[frame.scene], frame.cameras[0]
        stem = frame.token.split("/")[1]
        for folder in ("cloud", "left"):
            (root / drive / folder).mkdir(parents=True, exist_ok=True)
        label = frame.point_labels()
        mine = np.select([np.isin(label, (9, 10, 11)), np.isin(label, (15, 16)), label > 0], [1, 2, 3])
        points = frame.points()
        np.save(root / drive / "cloud" / f"{stem}.npy", np.c_[points[:, [2, 1, 0, 3]].astype(np.float64), mine])
        shutil.copy(frame.image_path(camera), root / drive / "left" / f"{stem}.png")
        for kind, path in zip(("class", "instance"), frame.image_truth[0]):
            (root / "truth" / kind / drive / "left").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / "truth" / kind / drive / "left" / f"{stem}.png")
    shutil.copy(source / "synthetic.json", root / "synthetic.json")
    plain = {"intrinsic": camera.intrinsic.tolist(), "lidar_to_camera": camera.lidar_to_camera.tolist()}
    (root / "calibration.json").write_text(json.dumps(plain))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mycar_reader.py").write_text(MY_CAR)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    return root, frames


def test_a_data_set_in_one_file_outside_the_package_goes_through_the_whole_pipeline(my_car, tmp_path):
    from olivine.downstream.probe import linear_probe
    from olivine.downstream.settings import ProbeSettings
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.score import score_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.check import check_shards
    from olivine.pairs.settings import PairSettings
    from olivine.pairs.shards import open_shards
    from olivine.train.loop import pretrain
    from olivine.train.settings import load_settings

    root, originals = my_car
    labels, pairs = tmp_path / "labels", tmp_path / "pairs"
    index, note = index_dataset(labels / "frames", "mycar_reader:MyCar", root)
    assert note == "my own car; 4 frames in 2 scenes"
    assert "index at hand" in index_dataset(labels / "frames", "mycar_reader:MyCar", root)[1]
    code = Path(sys.modules["mycar_reader"].__file__)
    code.write_text(code.read_text() + "# corrected\n")
    assert index_dataset(labels / "frames", "mycar_reader:MyCar", root)[1] == note  # listed anew
    for mine, original in zip(index.frames(), originals, strict=True):
        assert np.array_equal(mine.points(), original.points())
        assert mine.boxes() is None and mine.dataset == "mycar"
    assert not generate_labels(index, labels, LabelSettings("oracle")).failures
    scored = score_labels(open_store(labels), against="points")
    assert not scored.failures and scored.iou["road"] is not None
    for split in ("train", "val"):
        assert not build_pairs(open_store(labels), pairs / split, PairSettings(), split=split).failures
        assert check_shards(pairs / split).failures == []
    shards = open_shards(pairs / "train")
    facts = Benchmark(batch=2, prompts={"ground": "road", "plants": "vegetation"})
    assert (shards.dataset, shards.intensity_offset, shards.benchmark) == ("mycar", 0.5, facts)
    changes = [f"data.shards={pairs / 'train'}", "voxels.size_m=0.8", "run.epochs=4", "data.workers=0"]
    pretrain(load_settings("cpu", changes), tmp_path / "run")
    settings = ProbeSettings(epochs=1, batch=1, accelerator="cpu")
    (result, *_) = linear_probe(tmp_path / "run", pairs / "train", pairs / "val", tmp_path / "probe", settings)
    assert result.classes == ("ground", "plants", "rest") and result.scores.scorer_mean_iou is None


def test_commands_call_its_folders_by_its_short_name(my_car, tmp_path, monkeypatch):
    from olivine.commands import defaults

    root, _ = my_car
    monkeypatch.chdir(tmp_path)
    assert defaults.choose_dataset("mycar_reader:MyCar", root)[:2] == ("mycar_reader:MyCar", root)
    assert defaults.choose_dataset("mycar_reader:MyCar", None)[1].as_posix() == "data/mycar"
    for name in ("mycar_reader:MyCar", "mycar"):
        assert defaults.choose_labels(None, name)[0].as_posix() == "data/labels/mycar"


def test_shards_from_before_the_benchmarks_file_say_what_to_run(kitti_world, tmp_path):
    from olivine.pairs.shards import open_shards

    shutil.copytree(kitti_world.splits[1], tmp_path / "val")
    (tmp_path / "val" / "dataset.json").unlink()
    with pytest.raises(OlivineError, match=r"dataset\.json: no such file\. Run the same olivine build-pairs again"):
        _ = open_shards(tmp_path / "val").benchmark
    shutil.copy(kitti_world.splits[1] / "dataset.json", tmp_path / "val")
    text = (tmp_path / "val" / "dataset.json").read_text()
    (tmp_path / "val" / "dataset.json").write_text(text.replace('"batch": 10', '"batch": 11'))
    with pytest.raises(OlivineError, match="damaged: its content does not match its digest"):
        _ = open_shards(tmp_path / "val").benchmark
