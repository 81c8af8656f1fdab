"""The pictures: every one is made, opens, and what could not be drawn is said."""

import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.report.contents import Sources
from olivine.report.page import write_report


def test_the_folder_has_overlays_points_and_a_page_and_says_what_is_left_out(keyframe_report):
    folder, summary = keyframe_report
    names = {p.name for p in folder.iterdir()} - {".olivine.json"}
    assert names == {"labels-0.png", "points-0.png", "above-0.png", "index.html"}
    assert (summary.pictures, summary.frames) == (3, 1)
    assert [text.split(":")[0] for text in summary.left_out] == [
        "losses and scores",
        "label quality of whole images",
    ]
    for name in names - {"index.html"}:
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.width > 500


@pytest.mark.frames("synthetic")
def test_the_loss_curve_and_the_scores_are_drawn_from_a_runs_folder(keyframe_folders, tmp_path):
    run = tmp_path / "run"
    (run / "probe").mkdir(parents=True)
    (run / "steps.csv").write_text("step,loss,loss_ppkt,loss_scr\n0,3,3.0,\n1,2,2.0,-5\n")
    score = '{"iou": {"car": 0.5}, "mean_iou": 0.5}'
    (run / "probe" / "scores.json").write_text(f'[{{"name": "random weights", "scores": {score}}}]')
    summary = write_report(Sources(shards=keyframe_folders / "shards", run=run), tmp_path / "out")
    assert {"loss.png", "probe.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not [text for text in summary.left_out if text.startswith(("losses", "scores"))]
    page = (tmp_path / "out/index.html").read_text()
    assert "random weights" in page and "point-pixel InfoNCE" in page


@pytest.mark.frames("synthetic")
def test_no_frame_is_refused_and_leaves_nothing(keyframe_folders, tmp_path):
    with pytest.raises(OlivineError, match="--frames 0"):
        write_report(Sources(shards=keyframe_folders / "shards"), tmp_path / "out", frames=0)
    assert not (tmp_path / "out").exists()
