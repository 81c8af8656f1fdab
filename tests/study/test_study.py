"""A study: what it runs, what it never runs twice, and what it never takes from elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from olivine.common import OlivineError
from olivine.common.locks import HeldError
from olivine.study import run as study_module
from olivine.study.config import study_from_plain
from olivine.study.rows import Row, Run, find_row, grounds, read_rows, write_row
from olivine.study.run import Ground, list_study, merge_studies, plan_study, run_study, study_power


@dataclass(frozen=True)
class _Done:
    """What stands for the summary of a pre-training and of a probe."""

    interrupted: bool = False
    steps: int = 1
    labels_mean_iou: float | None = None
    by_scene: dict = field(default_factory=dict)

    @property
    def scores(self):
        return _Scores()


@dataclass(frozen=True)
class _Scores:
    mean_iou: float = 0.5
    frequency_weighted_iou: float = 0.5
    iou: dict = field(default_factory=dict)
    absent: tuple = ()


def test_a_row_on_shards_of_its_own_is_pre_trained_on_those_and_probed_on_the_studys(plain, tmp_path, monkeypatch):
    def opened(path):
        other = path.parent.name == "regions"
        tokens = ("a", "b") if not other or same else ("a", "c")
        return SimpleNamespace(
            path=path, digest=f"{path.parent.name} {path.name}", tokens=tokens, point_classes=("car",)
        )

    trained, probed = [], []
    monkeypatch.setattr(study_module, "open_shards", opened)
    monkeypatch.setattr(study_module, "pretrain", lambda settings, _: trained.append(settings.data.shards) or _Done())
    monkeypatch.setattr(study_module, "linear_probe", lambda *a, **_: [probed.append(a[1:3]) or _Done()])
    monkeypatch.setattr(study_module, "_save_random", lambda *_: None)
    rows = {"base": {}, "other": {"data.shards": "../regions"}}
    plain = {
        **plain,
        "rows": rows,
        "tables": [],
        "claims": [],
        "shards": str(tmp_path / "pairs"),
        "features": "encoder",
    }
    study = study_from_plain(plain, "small.yaml")
    for name in ("pairs/train", "pairs/val"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    with pytest.raises(OlivineError, match=r"\.\./regions/train: no shards here. Make them: make the-ground"):
        run_study(study, tmp_path / "study", (0,))
    (tmp_path / "regions" / "train").mkdir(parents=True)
    (tmp_path / "regions" / "train" / "manifest.json").write_text("{}")
    same = False
    with pytest.raises(OlivineError, match=r"regions/train: the frames are not those of .*pairs/train"):
        run_study(study, tmp_path / "study", (0,))
    same = True
    assert run_study(study, tmp_path / "study", (0,)).done == 4
    whole = tmp_path / "pairs"
    assert trained == [str(whole / "train"), str(whole / "../regions/train")]
    assert probed == [(whole / "train", whole / "val")] * 2
    digests = {
        r.row: r.configuration["pretrain"]["train"] for r in read_rows([tmp_path / "study"]) if r.stage == "probe"
    }
    assert digests == {"base": "pairs train", "other": "regions train"}


def test_maps_are_stored_for_the_rows_that_read_images_alone(plain, monkeypatch, tmp_path, ground):
    rows = {"base": {"image.encoder": "small"}, "UOV-TMP": {"method.name": "uov-tmp"}}
    study = study_from_plain({**plain, "rows": rows, "tables": [], "claims": []}, "small.yaml")
    stored, trained = [], {}
    monkeypatch.setattr(study_module, "store_maps", lambda *a: stored.append(a) or [SimpleNamespace(folder="maps")])
    monkeypatch.setattr(
        study_module, "pretrain", lambda s, _: trained.update({s.method.name: s.image.stored}) or _Done()
    )
    ground.train.path = tmp_path
    for run in plan_study(study, ground, (0,)):
        if run.stage == "pretrain":
            study_module._do(study, ground, run, tmp_path)
    assert trained == {"olivine": "maps", "uov-tmp": None} and len(stored) == 1


def test_runs_go_seed_by_seed_and_random_weights_are_not_pre_trained(small, ground):
    runs = [(run.row, run.seed, run.stage) for run in plan_study(small, ground, (0, 1))]
    one = [("random", "probe"), ("base", "pretrain"), ("base", "probe"), ("whole", "pretrain"), ("whole", "probe")]
    assert runs == [(row, seed, stage) for seed in (0, 1) for row, stage in one]


def test_a_configuration_is_everything_that_decides_a_result_and_nothing_else(plain, small, ground):
    def digests(given=None, ground=ground):
        study = study_from_plain({**plain, **(given or {})}, "small.yaml")
        return {(r.row, r.stage): r.digest for r in plan_study(study, ground, (0,))}

    before = digests()
    changed = digests({"rows": {**plain["rows"], "whole": {"method.scr": False}}})
    assert {key for key in before if before[key] != changed[key]} == {("whole", "pretrain"), ("whole", "probe")}
    assert digests({"set": {"data.workers": 3, "run.threads": 1}}) == before
    probed = digests({"probe": {"epochs": 9}})
    assert {key for key in before if before[key] != probed[key]} == {key for key in before if key[1] == "probe"}
    assert digests({"probe": {"augment": False}})["base", "probe"] != before["base", "probe"]
    for other in (replace(ground, train=SimpleNamespace(digest="x")), replace(ground, encoder="x")):
        assert digests(ground=other)["base", "pretrain"] != before["base", "pretrain"]
    assert digests({"features": "encoder"})["base", "pretrain"] != before["base", "pretrain"]
    vit = {"rows": {**plain["rows"], "whole": {"image.encoder": "small-vit"}}}
    two = [digests(vit, replace(ground, encoders={("small-vit", None): each * 64})) for each in "vw"]
    assert [row for row, stage in two[0] if two[0][row, stage] != two[1][row, stage] and stage == "pretrain"] == [
        "whole"
    ]
    # Random weights depend on the network alone.
    assert digests({"set": {"optimizer.lr": 0.7}})["random", "probe"] == before["random", "probe"]
    assert digests({"set": {"voxels.size_m": 0.7}})["random", "probe"] != before["random", "probe"]


def test_the_released_names_of_settings_mean_the_same_rows(plain, ground):
    def digests(plain):
        return {(r.row, r.seed, r.stage): r.digest for r in plan_study(study_from_plain(plain, "s.yaml"), ground, (0,))}

    today = {"method.wcd": False, "method.mode": "random", "method.pairs": 99, "method.dimension": 32}
    then = {"loss.wcd": False, "sampling.mode": "random", "sampling.pairs": 99, "backbone.out_channels": 32}
    rows = [{**plain["rows"], "base": changes} for changes in (today, then)]
    new, old = (digests({**plain, "rows": row}) for row in rows)
    assert new == old != digests(plain)


def test_an_interrupted_study_goes_on_and_repeats_nothing(small, counted, tmp_path, monkeypatch):
    do = study_module._do

    def stops(study, ground, run, out):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return do(study, ground, run, out)

    monkeypatch.setattr(study_module, "_do", stops)
    with pytest.raises(KeyboardInterrupt):
        run_study(small, tmp_path)
    assert len(list((tmp_path / "rows").glob("*.json"))) == 3
    monkeypatch.setattr(study_module, "_do", do)
    assert [line["state"] for line in list_study(small, tmp_path, (0,))] == ["done"] * 3 + ["to do"] * 2
    summary = run_study(small, tmp_path)
    assert (summary.runs, summary.kept, summary.done) == (15, 3, 12)
    assert len(counted) == len(set(counted)) == 15
    table = summary.table.read_bytes()
    assert run_study(small, tmp_path).done == 0
    assert summary.table.read_bytes() == table
    assert summary.picture.read_bytes()[:4] == b"\x89PNG"


def test_a_row_of_another_configuration_is_never_taken(plain, small, counted, tmp_path):
    run_study(small, tmp_path, (0,))
    counted.clear()
    other = study_from_plain({**plain, "rows": {**plain["rows"], "whole": {"method.scr": False}}}, "small.yaml")
    summary = run_study(other, tmp_path, (0,))
    assert counted == [("whole", 0, "pretrain"), ("whole", 0, "probe")]
    assert (summary.kept, summary.done) == (3, 2)


def test_what_a_row_costs_stands_beside_its_scores(small, counted, ground, tmp_path):
    for run in plan_study(small, ground, (0, 1), ("base",)):
        if run.stage == "pretrain":
            folder = tmp_path / "runs" / study_module._folder_name(small, ground, run)
            folder.mkdir(parents=True)
            lines = [f"{step},0,{seconds},{100 + run.seed}" for step, seconds in enumerate((9.0, 0.25, 0.5))]
            (folder / "steps.csv").write_text("\n".join(["step,epoch,seconds,memory_mib", *lines]) + "\n")
    run_study(small, tmp_path)
    table = (tmp_path / "cost.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith("| base")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["base", "0.500", "101", "6"]
    assert "whole" not in table


def test_one_seed_a_call_ends_in_the_table_of_all(small, counted, tmp_path):
    whole = run_study(small, tmp_path / "whole")
    for seed in (2, 0, 1):
        last = run_study(small, tmp_path / "parts", (seed,))
    assert last.table.read_text() == whole.table.read_text()


def test_a_run_that_fails_is_listed_and_the_others_go_on(small, counted, tmp_path, monkeypatch):
    do = study_module._do

    def fails(study, ground, run, out):
        if run.row == "base" and run.stage == "pretrain":
            raise OlivineError("the loss is not finite")
        return do(study, ground, run, out)

    monkeypatch.setattr(study_module, "_do", fails)
    summary = run_study(small, tmp_path, (0,))
    assert [failure.unit for failure in summary.failures] == ["base, seed 0, pretrain", "base, seed 0, probe"]
    assert ("whole", 0, "probe") in counted
    assert "not run" in summary.table.read_text()


# -- joining


def test_folders_of_one_seed_each_join_into_the_table_of_all(small, counted, tmp_path):
    whole = run_study(small, tmp_path / "whole")
    for seed in small.seeds:
        run_study(small, tmp_path / f"s{seed}", (seed,))
    merged = merge_studies([tmp_path / f"s{seed}" for seed in small.seeds], tmp_path / "merged")
    assert merged.table.read_text() == whole.table.read_text()
    assert (tmp_path / "merged" / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()


def test_rows_by_themselves_join_into_the_table_of_all(small, counted, tmp_path):
    whole = run_study(small, tmp_path / "whole")
    for row in small.rows:
        run_study(small, tmp_path / row, rows=(row,))
    merged = merge_studies([tmp_path / row for row in small.rows], tmp_path / "merged")
    assert merged.table.read_text() == whole.table.read_text()
    with pytest.raises(OlivineError, match=r"no row 'bsae'.*Rows are .*base"):
        run_study(small, tmp_path / "none", rows=("bsae",))


def test_folders_that_do_not_belong_together_are_not_joined(plain, small, counted, ground, tmp_path, monkeypatch):
    run_study(small, tmp_path / "a", (0,))
    monkeypatch.setattr(study_module, "open_ground", lambda study: replace(ground, encoder="other"))
    run_study(small, tmp_path / "b", (1,))
    with pytest.raises(OlivineError, match=r"of another configuration .*weights is eeee.* there and other here"):
        merge_studies([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    other = study_from_plain({**plain, "name": "other"}, "other.yaml")
    run_study(other, tmp_path / "d", (1,))
    with pytest.raises(OlivineError, match="holds another study than"):
        merge_studies([tmp_path / "a", tmp_path / "d"], tmp_path / "c")
    with pytest.raises(OlivineError, match="Name folders that olivine study wrote"):
        merge_studies([tmp_path / "a", tmp_path / "empty"], tmp_path / "c")
    monkeypatch.setattr(study_module, "open_ground", lambda study: ground)
    run_study(small, tmp_path / "e", (7,))
    with pytest.raises(OlivineError, match=r"e: base, pretrain is of seed 7, which the study has not"):
        merge_studies([tmp_path / "a", tmp_path / "e"], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    run_study(replace(small, seeds=(7,), plain={**small.plain, "seeds": [7]}), tmp_path / "e")
    assert merge_studies([tmp_path / "a", tmp_path / "e"], tmp_path / "c").runs == 10


@pytest.mark.parametrize(("moved", "joined"), [(0, True), (3, True), (30, False)])
def test_rows_of_shards_that_another_processor_made_join_when_it_is_said(
    moved, joined, small, counted, ground, tmp_path, monkeypatch
):
    """As many of 100,000 held-out points are of another class there."""
    do = study_module._do

    def with_counts(study, ground, run, out):
        result = do(study, ground, run, out)
        other = moved if ground.validation.digest == "w" * 64 else 0
        return {**result, "by_scene": {"a": {"car": [40_000 - other, 1, 2], "road": [60_000 + other, 1, 2]}}}

    monkeypatch.setattr(study_module, "_do", with_counts)
    run_study(small, tmp_path / "a", (0, 1))
    other = replace(ground, train=SimpleNamespace(digest="u" * 64), validation=SimpleNamespace(digest="w" * 64))
    monkeypatch.setattr(study_module, "open_ground", lambda study: other)
    run_study(small, tmp_path / "b", (2,))
    both = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(OlivineError, match=r"of another configuration .*train is tttt.* there and uuuu.* here"):
        merge_studies(both, tmp_path / "c")
    if not joined:
        with pytest.raises(OlivineError, match=r"of its held-out points 0\.03% are of another class.*other shards"):
            merge_studies(both, tmp_path / "c", other_processors=True)
        return
    summary = merge_studies(both, tmp_path / "c", other_processors=True)
    assert summary.runs == 15 and f"vvvvvvvv has seeds 0, 1; wwwwwwww has seeds 2): {10 * moved}.0 of a million" in (
        summary.table.read_text()
    )
    assert "seeds for 2 points" in study_power(tmp_path / "c", 2, other_processors=True)
    # So does a folder that goes on elsewhere: what is whole stays, what is not is run.
    (tmp_path / "a" / "rows" / "base.seed-1.probe.json").unlink()
    counted.clear()
    summary = run_study(small, tmp_path / "a", (0, 1, 2), other_processors=True)
    assert summary.runs == 15 and summary.done == 7 and summary.kept == 8
    assert {(row, seed) for row, seed, _ in counted} == {("base", 1), ("random", 2), ("base", 2), ("whole", 2)}
    assert "different processors" in summary.table.read_text()
    # Any other difference is still one.
    monkeypatch.setattr(study_module, "open_ground", lambda study: replace(other, encoder="other"))
    run_study(small, tmp_path / "d", (2,))
    with pytest.raises(OlivineError, match=r"of another configuration"):
        merge_studies([tmp_path / "a", tmp_path / "d"], tmp_path / "e", other_processors=True)


def test_a_seed_with_probes_on_both_processors_shards_is_said_of_both():
    """Whichever stage comes first: a merge reads the fine-tunings before the probes."""
    counts = {"mean_iou": 0.5, "by_scene": {"a": {"car": [1, 1, 1]}}}

    def row(seed, stage, validation):
        run = Run("base", seed, stage, {"validation": validation})
        return Row("base", seed, stage, run.digest, run.family, run.configuration, counts)

    rows = [
        row(3, "finetune", "v"),
        row(2, "probe", "v"),
        row(3, "probe", "v"),
        row(3, "probe", "w"),
        row(4, "probe", "w"),
    ]
    for order in (rows, rows[::-1]):
        assert grounds(order) == [("v", [2, 3], 0.0), ("w", [3, 4], 0.0)]


def test_a_damaged_row_is_named(tmp_path):
    run = Run("base", 0, "probe", {"probe": {"epochs": 3}})
    write_row(tmp_path, run, {"mean_iou": 0.25})
    assert find_row(tmp_path, run).result == {"mean_iou": 0.25}
    path = run.file(tmp_path)
    row = json.loads(path.read_text())
    row["configuration"]["probe"]["epochs"] = 4  # no longer what the digest is of
    path.write_text(json.dumps(row))
    with pytest.raises(OlivineError, match=r"base\.seed-0\.probe\.json: is not a row of a study"):
        read_rows([tmp_path])


def test_each_fine_tuning_of_several_has_its_labels_and_is_its_own_stage(plain, monkeypatch, tmp_path):
    ways = {
        "weak": {"labels": "weak"},
        "voted": {"labels": "weak", "shards": "../voted", "rounds": 2},
        "truth": {"rows": ["whole"]},
    }
    study = study_from_plain({**plain, "finetune": ways}, "ways.yaml")
    one = study_from_plain({**plain, "finetune": {"labels": "weak"}}, "one.yaml")
    assert study.stages == ("pretrain", "probe", "weak", "voted", "truth")
    assert one.stages == ("pretrain", "probe", "finetune")
    names = {"train": SimpleNamespace(digest="t"), "val": SimpleNamespace(digest="v")}
    ground = Ground(*names.values(), "e", {"../voted": SimpleNamespace(digest="u")}, {"../voted": names["val"]})
    runs = {run.stage: run.configuration for run in plan_study(study, ground, (0,), ("whole",))}
    assert [runs[way]["train"] for way in ways] == ["t", "u", "t"]
    assert runs["voted"]["finetune"]["rounds"] == 2
    assert [run.stage for run in plan_study(study, ground, (0,), ("random",))] == ["probe", "weak", "voted"]
    # A way alone has the very configuration that it has among several: its finished rows stay good.
    (alone,) = [run for run in plan_study(one, ground, (0,), ("whole",)) if run.stage == "finetune"]
    assert alone.configuration == runs["weak"]

    done = []
    monkeypatch.setattr(study_module, "finetune", lambda *a: done.append(a[1:3]) or _Done())
    monkeypatch.setattr(study_module, "finetune_rounds", lambda *a, rounds: done.append((*a[1:3], rounds)) or [_Done()])
    for run in plan_study(study, ground, (0,), ("whole",)):
        if run.stage in ways:
            study_module._do(study, ground, run, tmp_path)
    parts = [(place / "train", place / "val") for place in (Path("nowhere"), Path("nowhere/../voted"))]
    assert done == [parts[0], (*parts[1], 2), parts[0]]


def test_a_seed_is_fine_tuned_on_streets_of_its_own_and_every_row_on_the_same(plain, monkeypatch, tmp_path, ground):
    given = {**plain, "finetune": {"fraction": 25, "streets": 2}}
    study = study_from_plain(given, "streets.yaml")
    done = []
    monkeypatch.setattr(study_module, "finetune", lambda *a: done.append((a[-1].seed, a[-1].part, a[-2])) or _Done())
    places = {}
    for run in plan_study(study, ground, (0, 1, 2), ("base", "whole")):
        if run.stage == "finetune":
            study_module._do(study, ground, run, tmp_path)
            places.setdefault(run.seed, []).append([part for _, part, _ in done])
            assert {seed for seed, _, _ in done} == {run.seed}
            assert len({place for _, _, place in done}) == 2
            assert run.configuration["finetune"]["streets"] == 2
            done.clear()
    assert places == {0: [[0, 1]] * 2, 1: [[2, 3]] * 2, 2: [[0, 1]] * 2}  # of four quarters
    with pytest.raises(OlivineError, match=r"2 streets of 100 %.*smaller fraction"):
        study_from_plain({**given, "finetune": {"streets": 2}}, "streets.yaml")


# -- the whole way, on streets


@pytest.mark.soak  # `make demo` runs a study too
def test_a_study_of_streets_scores_every_row_and_its_pictures_are_encoded_once(
    plain, nuscenes_world, tmp_path, monkeypatch
):
    from olivine.downstream.probe import ProbeSettings, linear_probe
    from olivine.train import encoder

    plain = {
        **plain,
        "shards": str(nuscenes_world.pairs),
        "set": {
            "run.steps": 2,
            "method.warmup": 0.5,
            "voxels.size_m": 2.0,
            "run.batch": 2,
            "image.height": 24,
            "image.width": 40,
        },
        "probe": {"epochs": 2},
        "finetune": {"few": {"fraction": 25, "epochs": 1}, "weak": {"labels": "weak", "epochs": 1, "rounds": 1}},
    }
    study = study_from_plain(plain, "streets.yaml")
    summary = run_study(study, tmp_path / "study", (0,))
    assert not summary.failures
    assert summary.done == 11
    rows = {(row.row, row.stage): row.result for row in read_rows([tmp_path / "study"])}
    assert rows["whole", "probe"]["mean_iou"] != rows["base", "probe"]["mean_iou"]
    # Random weights are scored as `olivine probe` scores them.
    run = next((tmp_path / "study" / "runs").glob("whole.*"))
    direct = linear_probe(run, *nuscenes_world.splits, tmp_path / "probe", ProbeSettings(epochs=2))
    assert direct[0].scores.mean_iou == rows["random", "probe"]["mean_iou"]
    assert direct[1].scores.mean_iou == rows["whole", "probe"]["mean_iou"]
    # What weak labels teach stands beside what they are themselves.
    weak = [result["labels_mean_iou"] for (_, stage), result in rows.items() if stage == "weak"]
    assert len(set(weak)) == 1
    assert f"weak: the weak labels of the validation frames are themselves {100 * weak[0]:.2f}" in (
        summary.table.read_text()
    )
    # A second seed reads the features that the first one stored.
    monkeypatch.setattr(encoder.ImageEncoder, "forward", None)
    assert run_study(study, tmp_path / "study", (1,)).done == 11
    assert "images are not augmented" in summary.table.read_text()


_HOLDER = """
import sys, time
from pathlib import Path
from olivine.common.locks import take_lock
handle = take_lock(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(600)
"""


def test_a_row_that_another_process_is_at_is_left_to_it_and_to_nobody_once_it_is_dead(small, counted, ground, tmp_path):
    run = next(run for run in plan_study(small, ground, (0,)) if run.row == "base")
    folder = tmp_path / "runs" / study_module._folder_name(small, ground, run)
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder / ".row.lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "taken\n"
            summary = run_study(small, tmp_path, (0,))
        finally:
            other.kill()
    assert (summary.runs, summary.done, summary.kept, summary.held_by_others) == (5, 3, 0, 2)
    assert not [row for row, *_ in counted if row == "base"]
    summary = run_study(small, tmp_path, (0,))
    assert (summary.done, summary.kept, summary.held_by_others) == (2, 3, 0)


def test_a_row_is_taken_up_again_whose_process_ended_meanwhile(small, counted, tmp_path, monkeypatch):
    do_row, tried = study_module._do_row, []

    def held_once(study, ground, runs, out):
        tried.append(runs[0][1].row)
        if tried == ["random"]:
            raise HeldError("process 1")
        return do_row(study, ground, runs, out)

    monkeypatch.setattr(study_module, "_do_row", held_once)
    summary = run_study(small, tmp_path, (0,))
    assert tried == ["random", "base", "whole", "random"]
    assert (summary.done, summary.held_by_others) == (5, 0)
