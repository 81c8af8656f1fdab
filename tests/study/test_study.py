"""A study: what it runs, what it never runs twice, what it never takes from elsewhere, and its statistics."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from olivine.common import OlivineError
from olivine.downstream.metrics import counts_by_class, scores
from olivine.study import run as study_module
from olivine.study.config import load_study, study_from_plain
from olivine.study.measures import Difference, Measures, paired_difference, seeds_needed
from olivine.study.rows import Row, Run, find_row, read_rows, write_row
from olivine.study.run import Ground, list_study, merge_studies, plan_study, run_study
from olivine.study.table import as_markdown, power_table

PLAIN = {
    "name": "small",
    "shards": "nowhere",
    "ground": "make the-ground",
    "seeds": [0, 1, 2],
    "rows": {"random": None, "base": {"method.wcd": False}, "whole": {}},
    "tables": [{"title": "All", "stage": "probe", "rows": ["random", "base", "whole"], "against": "base"}],
    "claims": [{"stage": "probe", "better": "whole", "than": "base", "by": 5}],
}


@pytest.fixture
def small():
    return study_from_plain(PLAIN, "small.yaml")


@pytest.fixture
def ground():
    return Ground(SimpleNamespace(digest="t" * 64), SimpleNamespace(digest="v" * 64), "e" * 64)


@pytest.fixture
def counted(monkeypatch, ground):
    """A study whose runs take no time: the list of runs done, with scores made of row and seed."""
    done = []

    def do(study, ground, run, out):
        done.append((run.row, run.seed, run.stage))
        value = {"random": 0.1, "base": 0.3, "whole": 0.4}[run.row] + 0.01 * run.seed * (1 + (run.row == "whole"))
        return {"mean_iou": value, "frequency_weighted_iou": value, "iou": {}, "absent": ["bus"]}

    monkeypatch.setattr(study_module, "_do", do)
    monkeypatch.setattr(study_module, "open_ground", lambda study: ground)
    return done


# -- statistics


def test_intervals_are_student_t_of_paired_differences():
    generator = np.random.default_rng(5)
    one, other = generator.normal(30, 2, 4), generator.normal(28, 2, 4)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = paired_difference({7: 99.0, **dict(enumerate(one))}, {8: 1.0, **dict(enumerate(other))})
    assert found.pairs == 4
    assert found.mean == pytest.approx((one - other).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_difference_is_resolved_only_where_its_interval_leaves_the_margin_out():
    assert Difference(6.0, 5.1, 6.9, 3).verdict(5) == "holds"
    assert Difference(6.0, 4.9, 7.1, 3).verdict(5) == "not resolved"
    assert Difference(2.0, 1.0, 3.0, 3).verdict(5) == "does not hold"
    single = paired_difference({0: 40.0}, {0: 30.0})
    assert (single.mean, single.low, single.verdict()) == (10.0, -math.inf, "not resolved")
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_table_says_means_spreads_and_what_is_not_resolved(small):
    scores = {
        ("random", "probe"): {0: 10.0, 1: 11.0, 2: 12.0},
        ("base", "probe"): {0: 20.0, 1: 21.0, 2: 22.0},
        ("whole", "probe"): {0: 21.0, 1: 20.5, 2: 23.0},
    }
    lines = {
        line.split("|")[1].strip(): line for line in as_markdown(small, Measures(scores)).splitlines() if "|" in line
    }
    assert all(cell in lines["random"] for cell in ("11.00", "1.00", "-10.00"))
    assert "not resolved" not in lines["random"]
    assert "21.50" in lines["whole"]
    assert "+0.50" in lines["whole"]
    assert "not resolved" in lines["whole"]
    # 0.5 ± 4.303 · 0.866 / √3 contains 0 and stays below 5.
    assert "-1.65 to +2.65" in lines["whole"]
    assert "does not hold" in lines["whole over base by 5 (linear probe)"]


def test_a_claim_compares_a_row_with_itself_in_another_stage():
    stages = {"finetune": {"weak": {"labels": "weak"}, "truth": {}}, "tables": []}
    claim = {"stage": "weak", "better": "whole", "than": "whole", "than_stage": "truth", "by": -3}
    study = study_from_plain({**PLAIN, **stages, "claims": [claim]}, "stages.yaml")
    scores = {("whole", "weak"): {0: 20.0, 1: 21.0}, ("whole", "truth"): {0: 22.0, 1: 22.8}}
    (line,) = [line for line in as_markdown(study, Measures(scores)).splitlines() if "whole over whole" in line]
    assert "by -3 (fine-tuning, weak over fine-tuning, truth)" in line
    assert "-1.90" in line
    with pytest.raises(OlivineError, match="no stage 'true'"):
        study_from_plain({**PLAIN, **stages, "claims": [{**claim, "than_stage": "true"}]}, "stages.yaml")


def test_seeds_are_those_of_published_power_tables():
    """Two-sided paired t-test, 5 %, 80 %: 10 pairs for an effect of one standard deviation, 34 for half of one."""
    assert [seeds_needed(2.0, margin) for margin in (2.0, 1.0, 4.0)] == [10, 34, 5]
    assert seeds_needed(0.0, 1.0) == 2 and seeds_needed(100.0, 1.0) is None


def test_a_claim_may_be_an_interaction_and_over_the_studys_own_classes():
    claims = [{"better": "whole", "than": "base", "beyond": ["base", "random"], "by": 1, "over": "classes"}]
    study = study_from_plain({**PLAIN, "classes": ["car"], "claims": claims}, "own.yaml")
    kept = {"random": (10, 11), "base": (20, 22), "whole": (32, 35)}
    scores = {(row, "probe"): dict(enumerate(map(float, values))) for row, values in kept.items()}
    (line,) = [one for one in as_markdown(study, Measures({}, scores)).splitlines() if "beyond" in one]
    # (12, 13) over (10, 11): 2 in both seeds.
    assert "whole over base beyond base over random by 1 (linear probe), 1 classes" in line
    assert "+2.00" in line and "+2.00 to +2.00" in line and "holds" in line
    assert "by 1" in power_table(study, Measures({}, scores), 2.0)
    for wrong, says in (({"beyond": ["base"]}, "Give two rows"), ({"beyond": ["base", "rndom"]}, "no row 'rndom'")):
        with pytest.raises(OlivineError, match=says):
            study_from_plain({**PLAIN, "claims": [{**claims[0], "over": "all", **wrong}]}, "own.yaml")
    with pytest.raises(OlivineError, match="over: classes, and no classes"):
        study_from_plain({**PLAIN, "claims": claims}, "own.yaml")


def test_an_interval_over_scenes_and_seeds_is_that_of_confusions_drawn_again_by_hand():
    generator, names = np.random.default_rng(3), ("car", "road", "tree")
    confusions = generator.integers(0, 50, (2, 2, 5, 4, 4))  # row, seed, scene
    confusions[:, :, :, 3] = confusions[0, 0, :, 3]
    rows = []
    for row, name in enumerate(("base", "whole")):
        for seed in range(2):
            by_scene = {str(k): counts_by_class(one, names) for k, one in enumerate(confusions[row, seed])}
            whole = scores(confusions[row, seed].sum(0), names)
            result = {"mean_iou": whole.mean_iou, "iou": whole.iou, "by_scene": by_scene}
            rows.append(Row(name, seed, "probe", "", "", {}, result))
    found = Measures.of(rows, ("car", "tree")).over_scenes([(("whole", "probe"), ("base", "probe"))], "all")
    draws = np.random.default_rng(0)
    times, seeds = draws.multinomial(5, np.full(5, 0.2), 2000), draws.integers(0, 2, (2000, 2))
    values = []
    for drawn, of_seeds in zip(times, seeds):
        again = np.tensordot(drawn, confusions, (0, 2))
        gain = [
            100 * (scores(again[1, seed], names).mean_iou - scores(again[0, seed], names).mean_iou) for seed in of_seeds
        ]
        values.append(np.mean(gain))
    assert found == pytest.approx(np.quantile(values, [0.025, 0.975]))
    first = scores(confusions[1, 0].sum(0), names).iou
    assert Measures.of(rows, ("car", "tree")).classes["whole", "probe"][0] == pytest.approx(
        50 * (first["car"] + first["tree"])
    )
    with pytest.raises(OlivineError, match="no validation point is bus"):
        Measures.of(rows, ("bus",))


# -- what is read


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"rows": {**PLAIN["rows"], "base": {"method.wdc": False}}},
            r"row 'base': no setting 'method.wdc'. Did you mean 'method.wcd'",
        ),
        (
            {"rows": {**PLAIN["rows"], "base": {"method.wcd": "perhaps"}}},
            r"method.wcd is 'perhaps', expected true or false",
        ),
        ({"set": {"run.step": 3}}, r"no setting 'run.step'. Did you mean 'run.steps'"),
        ({"preset": "gpu"}, r"no such settings file or preset"),
        ({"sets": {}}, r"no setting 'sets'"),
        ({"probe": {"epoch": 3}}, r"no setting 'epoch'. Did you mean 'epochs'"),
        ({"seeds": [1, 1]}, r"Give different numbers"),
        ({"rows": {}}, r"names no rows"),
        ({"rows": {"random": None, "base": {}, "whole": {}, "whole!": {}}}, r"make one file name"),
        ({"claims": [{"better": "whle", "than": "base"}]}, r"no row 'whle'. Did you mean 'whole'"),
        (
            {"claims": [{"stage": "finetune", "better": "whole", "than": "base"}]},
            r"no stage 'finetune'. Use probe, or add it",
        ),
        ({"finetune": {"a": {}, "b": {"label": "weak"}}}, r"finetune 'b': no setting 'label'. Did you mean 'labels'"),
        ({"finetune": {"probe": {"labels": "weak"}}}, r"finetune 'probe': cannot be a stage's name"),
        ({"finetune": {"a": {"rows": ["bse"]}, "b": {}}}, r"no row 'bse'. Did you mean 'base'"),
        ({"finetune": {"a": {"rounds": 1}}}, r"finetune 'a': 1 rounds. Rounds are for labels: weak"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(change, says):
    with pytest.raises(OlivineError, match=says) as caught:
        study_from_plain({**PLAIN, **change}, "small.yaml")
    assert "\n" not in str(caught.value)


def test_a_negative_seed_is_refused(small, ground):
    with pytest.raises(OlivineError, match="seed -1 is negative"):
        list(plan_study(small, ground, (-1,)))


def test_missing_shards_name_the_command_that_makes_them(small, tmp_path):
    with pytest.raises(OlivineError, match=r"no shards here. Make them: make the-ground"):
        run_study(small, tmp_path)


def test_a_row_on_shards_of_its_own_is_pre_trained_on_those_and_probed_on_the_studys(tmp_path, monkeypatch):
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
        **PLAIN,
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


def test_maps_are_stored_for_the_rows_that_read_images_alone(monkeypatch, tmp_path, ground):
    rows = {"base": {"image.encoder": "small"}, "UOV-TMP": {"method.name": "uov-tmp"}}
    study = study_from_plain({**PLAIN, "rows": rows, "tables": [], "claims": []}, "small.yaml")
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


def test_null_in_a_row_takes_a_setting_of_all_rows_back():
    rows = {"base": {}, "other": {"method.temperature": None, "method.name": "distil"}, "third": {"run.steps": None}}
    plain = {**PLAIN, "rows": rows, "tables": [], "claims": [], "set": {"method.temperature": 0.2, "run.steps": 7}}
    study = study_from_plain(plain, "null.yaml")
    assert study.rows["base"].method.temperature == 0.2 and study.rows["other"].run.steps == 7
    assert study.rows["third"].run.steps is None and study.rows["other"].method.name == "distil"


def test_the_studies_of_the_package_are_right():
    demo = load_study("configs/study-demo.yaml")
    assert list(demo.rows) == ["random", "InfoNCE", "whole method"]
    assert demo.rows["whole method"].method.scr
    assert not demo.rows["InfoNCE"].method.wcd
    assert not demo.rows["InfoNCE"].augment.crop  # stored features are of whole pictures


def test_the_study_of_the_draw_has_the_synthetic_studys_rows(ground):
    """Its finished rows may be copied from there: the same names stand for the same runs."""
    whole = {(r.row, r.seed, r.stage): r.digest for r in plan_study(load_study("study-synthetic"), ground, (0,))}
    draw = {(r.row, r.seed, r.stage): r.digest for r in plan_study(load_study("study-draw"), ground, (0,))}
    both = set(whole) & set(draw)
    assert {row for row, _, _ in set(draw) - both} == {"ground truth, uniform"}
    assert all(whole[run] == draw[run] for run in both)


def test_the_synthetic_study_is_the_papers_tables(ground):
    study = load_study("study-synthetic")
    runs = list(plan_study(study, ground, study.seeds))
    assert len(runs) == 105  # 11 configurations pre-trained, probed and fine-tuned, random weights without the first
    assert len({run.digest for run in runs}) == 105
    table_5 = {
        name: (s.method.wcd, s.method.scr, s.method.mode)
        for name, s in study.rows.items()
        if name in study.tables[0].rows and s is not None
    }
    assert table_5["base"][:2] == (False, False)
    assert table_5["WCD"] == (True, False, "random")
    assert table_5["SCR"][:2] == (False, True)
    assert table_5["WCD+SCR"] == (True, True, "random")
    assert table_5["WCD+DCAS"] == (True, False, "dcas")
    assert table_5["all"] == (True, True, "dcas")
    assert study.rows["ground truth"].data.labels == "truth"
    assert study.rows["deterministic"].method.distribution == "dirac"
    assert not study.rows["shared heads"].method.decoupled_heads


def test_the_studies_of_methods_differ_in_the_method_alone(ground):
    for name in ("study-methods", "study-methods-small"):
        study = load_study(name)
        rows = {row: settings for row, settings in study.rows.items() if settings is not None}
        assert {s.method.name for s in rows.values()} == {"olivine", "slidr", "st-slidr", "seal", "uov-tmp", "distil"}
        first = rows["PPKT"]
        assert (first.method.wcd, first.method.scr) == (False, False)
        for settings in rows.values():
            for part in ("backbone", "voxels", "image", "augment", "run"):
                assert getattr(settings, part) == getattr(first, part), part
            assert replace(settings.data, shards=None) == first.data
        assert {row for row, settings in rows.items() if settings.data.shards} == {"UOV-TMP"}
        assert study.features == "encoder"
        assert "--segments --clusters 1" in study.ground
        ground = replace(ground, others={"../regions": SimpleNamespace(digest="r" * 64)})
        assert len({run.digest for run in plan_study(study, ground, (0,))}) == len(
            list(plan_study(study, ground, (0,)))
        )


# -- what is run


def test_runs_go_seed_by_seed_and_random_weights_are_not_pre_trained(small, ground):
    runs = [(run.row, run.seed, run.stage) for run in plan_study(small, ground, (0, 1))]
    one = [("random", "probe"), ("base", "pretrain"), ("base", "probe"), ("whole", "pretrain"), ("whole", "probe")]
    assert runs == [(row, seed, stage) for seed in (0, 1) for row, stage in one]


def test_a_configuration_is_everything_that_decides_a_result_and_nothing_else(small, ground):
    def digests(plain=None, ground=ground):
        study = study_from_plain({**PLAIN, **(plain or {})}, "small.yaml")
        return {(r.row, r.stage): r.digest for r in plan_study(study, ground, (0,))}

    before = digests()
    changed = digests({"rows": {**PLAIN["rows"], "whole": {"method.scr": False}}})
    assert {key for key in before if before[key] != changed[key]} == {("whole", "pretrain"), ("whole", "probe")}
    assert digests({"set": {"data.workers": 3, "run.threads": 1}}) == before
    probed = digests({"probe": {"epochs": 9}})
    assert {key for key in before if before[key] != probed[key]} == {key for key in before if key[1] == "probe"}
    assert digests({"probe": {"augment": False}})["base", "probe"] != before["base", "probe"]
    for other in (replace(ground, train=SimpleNamespace(digest="x")), replace(ground, encoder="x")):
        assert digests(ground=other)["base", "pretrain"] != before["base", "pretrain"]
    assert digests({"features": "encoder"})["base", "pretrain"] != before["base", "pretrain"]
    vit = {"rows": {**PLAIN["rows"], "whole": {"image.encoder": "small-vit"}}}
    two = [digests(vit, replace(ground, encoders={("small-vit", None): each * 64})) for each in "vw"]
    assert [row for row, stage in two[0] if two[0][row, stage] != two[1][row, stage] and stage == "pretrain"] == [
        "whole"
    ]
    # Random weights depend on the network alone.
    assert digests({"set": {"optimizer.lr": 0.7}})["random", "probe"] == before["random", "probe"]
    assert digests({"set": {"voxels.size_m": 0.7}})["random", "probe"] != before["random", "probe"]


def test_the_released_names_of_settings_mean_the_same_rows(ground):
    def digests(plain):
        return {(r.row, r.seed, r.stage): r.digest for r in plan_study(study_from_plain(plain, "s.yaml"), ground, (0,))}

    today = {"method.wcd": False, "method.mode": "random", "method.pairs": 99, "method.dimension": 32}
    then = {"loss.wcd": False, "sampling.mode": "random", "sampling.pairs": 99, "backbone.out_channels": 32}
    rows = [{**PLAIN["rows"], "base": changes} for changes in (today, then)]
    new, old = (digests({**PLAIN, "rows": row}) for row in rows)
    assert new == old != digests(PLAIN)


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


def test_a_row_of_another_configuration_is_never_taken(small, counted, tmp_path):
    run_study(small, tmp_path, (0,))
    counted.clear()
    other = study_from_plain({**PLAIN, "rows": {**PLAIN["rows"], "whole": {"method.scr": False}}}, "small.yaml")
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


def test_folders_that_do_not_belong_together_are_not_joined(small, counted, ground, tmp_path, monkeypatch):
    run_study(small, tmp_path / "a", (0,))
    monkeypatch.setattr(study_module, "open_ground", lambda study: replace(ground, encoder="other"))
    run_study(small, tmp_path / "b", (1,))
    with pytest.raises(OlivineError, match=r"of another configuration .*weights is eeee.* there and other here"):
        merge_studies([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    other = study_from_plain({**PLAIN, "name": "other"}, "other.yaml")
    run_study(other, tmp_path / "d", (1,))
    with pytest.raises(OlivineError, match="holds another study than"):
        merge_studies([tmp_path / "a", tmp_path / "d"], tmp_path / "c")
    with pytest.raises(OlivineError, match="Name folders that olivine study wrote"):
        merge_studies([tmp_path / "a", tmp_path / "empty"], tmp_path / "c")


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


def test_each_fine_tuning_of_several_has_its_labels_and_is_its_own_stage(monkeypatch, tmp_path):
    ways = {
        "weak": {"labels": "weak"},
        "voted": {"labels": "weak", "shards": "../voted", "rounds": 2},
        "truth": {"rows": ["whole"]},
    }
    study = study_from_plain({**PLAIN, "finetune": ways}, "ways.yaml")
    one = study_from_plain({**PLAIN, "finetune": {"labels": "weak"}}, "one.yaml")
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


def test_a_seed_is_fine_tuned_on_streets_of_its_own_and_every_row_on_the_same(monkeypatch, tmp_path, ground):
    plain = {**PLAIN, "finetune": {"fraction": 25, "streets": 2}}
    study = study_from_plain(plain, "streets.yaml")
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
        study_from_plain({**plain, "finetune": {"streets": 2}}, "streets.yaml")


# -- the whole way, on streets


@pytest.mark.soak  # `make demo` runs a study too
def test_a_study_of_streets_scores_every_row_and_its_pictures_are_encoded_once(nuscenes_world, tmp_path, monkeypatch):
    from olivine.downstream.probe import ProbeSettings, linear_probe
    from olivine.train import encoder

    plain = {
        **PLAIN,
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
