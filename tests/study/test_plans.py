"""A study as it is read: what is refused, what a row takes, and the studies of the package."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from olivine.common import OlivineError
from olivine.study.config import load_study, study_from_plain
from olivine.study.run import plan_study, run_study


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"rows": {"random": None, "base": {"method.wdc": False}, "whole": {}}},
            r"row 'base': no setting 'method.wdc'. Did you mean 'method.wcd'",
        ),
        (
            {"rows": {"random": None, "base": {"method.wcd": "perhaps"}, "whole": {}}},
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
        ({"finetune": {"fraction": 25, "streets": 5}}, r"finetune: 5 streets of 25 %, which has 4 parts"),
        ({"probe": {"devices": "2"}}, r"probe: devices is 2 .*one device. .*CUDA_VISIBLE_DEVICES"),
        ({"set": {"run.devices": "2"}}, r"run: devices is 2 .*one device"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(plain, change, says):
    with pytest.raises(OlivineError, match=says) as caught:
        study_from_plain({**plain, **change}, "small.yaml")
    assert "\n" not in str(caught.value)


def test_the_runs_of_a_study_take_one_device(plain, monkeypatch):
    """Processes that a run starts on other GPUs would each take another row, and mix their gradients with its own."""
    study = study_from_plain({**plain, "finetune": {"fraction": 25}}, "small.yaml")
    for settings in (study.rows["base"].run, study.random.run, study.probe, study.finetune["finetune"].settings):
        assert settings.devices == "1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OlivineError, match="Start it without torchrun, once for each GPU"):
        run_study(study, "nowhere")


def test_a_negative_seed_is_refused(small, ground):
    with pytest.raises(OlivineError, match="seed -1 is negative"):
        list(plan_study(small, ground, (-1,)))


def test_missing_shards_name_the_command_that_makes_them(small, tmp_path):
    with pytest.raises(OlivineError, match=r"no shards here. Make them: make the-ground"):
        run_study(small, tmp_path)


def test_null_in_a_row_takes_a_setting_of_all_rows_back(plain):
    rows = {"base": {}, "other": {"method.temperature": None, "method.name": "distil"}, "third": {"run.steps": None}}
    given = {**plain, "rows": rows, "tables": [], "claims": [], "set": {"method.temperature": 0.2, "run.steps": 7}}
    study = study_from_plain(given, "null.yaml")
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
