"""The statistics of a study: differences, intervals, power, interactions, scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from olivine.common import OlivineError
from olivine.downstream.metrics import counts_by_class, scores
from olivine.study.config import study_from_plain
from olivine.study.measures import Difference, Measures, paired_difference, seeds_needed
from olivine.study.rows import Row
from olivine.study.table import as_markdown, power_table


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


def test_a_claim_compares_a_row_with_itself_in_another_stage(plain):
    stages = {"finetune": {"weak": {"labels": "weak"}, "truth": {}}, "tables": []}
    claim = {"stage": "weak", "better": "whole", "than": "whole", "than_stage": "truth", "by": -3}
    study = study_from_plain({**plain, **stages, "claims": [claim]}, "stages.yaml")
    scores = {("whole", "weak"): {0: 20.0, 1: 21.0}, ("whole", "truth"): {0: 22.0, 1: 22.8}}
    (line,) = [line for line in as_markdown(study, Measures(scores)).splitlines() if "whole over whole" in line]
    assert "by -3 (fine-tuning, weak over fine-tuning, truth)" in line
    assert "-1.90" in line
    with pytest.raises(OlivineError, match="no stage 'true'"):
        study_from_plain({**plain, **stages, "claims": [{**claim, "than_stage": "true"}]}, "stages.yaml")


def test_seeds_are_those_of_published_power_tables():
    """Two-sided paired t-test, 5 %, 80 %: 10 pairs for an effect of one standard deviation, 34 for half of one."""
    assert [seeds_needed(2.0, margin) for margin in (2.0, 1.0, 4.0)] == [10, 34, 5]
    assert seeds_needed(0.0, 1.0) == 2 and seeds_needed(100.0, 1.0) is None


def test_a_claim_may_be_an_interaction_and_over_the_studys_own_classes(plain):
    claims = [{"better": "whole", "than": "base", "beyond": ["base", "random"], "by": 1, "over": "classes"}]
    study = study_from_plain({**plain, "classes": ["car"], "claims": claims}, "own.yaml")
    kept = {"random": (10, 11), "base": (20, 22), "whole": (32, 35)}
    scores = {(row, "probe"): dict(enumerate(map(float, values))) for row, values in kept.items()}
    (line,) = [one for one in as_markdown(study, Measures({}, scores)).splitlines() if "beyond" in one]
    # (12, 13) over (10, 11): 2 in both seeds.
    assert "whole over base beyond base over random by 1 (linear probe), 1 classes" in line
    assert "+2.00" in line and "+2.00 to +2.00" in line and "holds" in line
    assert "by 1" in power_table(study, Measures({}, scores), 2.0)
    for wrong, says in (({"beyond": ["base"]}, "Give two rows"), ({"beyond": ["base", "rndom"]}, "no row 'rndom'")):
        with pytest.raises(OlivineError, match=says):
            study_from_plain({**plain, "claims": [{**claims[0], "over": "all", **wrong}]}, "own.yaml")
    with pytest.raises(OlivineError, match="over: classes, and no classes"):
        study_from_plain({**plain, "claims": claims}, "own.yaml")


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
