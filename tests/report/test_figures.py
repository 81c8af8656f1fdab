"""The pictures: every one is made, opens, and what could not be drawn is said."""

import pytest
from PIL import Image

from olivine.common import OlivineError


@pytest.fixture(scope="module")
def folders(tmp_path_factory, nuscenes_keyframe, keyframe_camseg):
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.settings import PairSettings
    from olivine.readers import index_dataset

    folder = tmp_path_factory.mktemp("report")
    index, _ = index_dataset(folder / "labels" / "frames", "nuscenes", nuscenes_keyframe)
    generate_labels(index, folder / "labels", LabelSettings(labeler="import", camseg=keyframe_camseg))
    build_pairs(open_store(folder / "labels"), folder / "shards", PairSettings(workers=1), split="val")
    return folder


def test_the_folder_has_overlays_points_and_a_page_and_says_what_is_left_out(folders, tmp_path):
    from olivine.report.figures import draw_report

    summary = draw_report(folders / "labels", folders / "shards", None, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()} - {".olivine.json"}
    assert names == {"labels-0.png", "points-0.png", "above-0.png", "index.html"}
    assert summary.pictures == 3
    assert [text.split(" (")[0] for text in summary.left_out] == ["loss curve", "probe table"]
    page = (tmp_path / "out" / "index.html").read_text()
    for name in names - {"index.html"}:
        assert name in page
        with Image.open(tmp_path / "out" / name) as picture:
            picture.load()
            assert picture.width > 500


@pytest.mark.frames("synthetic")
def test_the_loss_curve_and_the_scores_are_drawn_from_a_runs_folder(folders, tmp_path):
    from olivine.report.figures import draw_report

    run = tmp_path / "run"
    (run / "probe").mkdir(parents=True)
    (run / "steps.csv").write_text("step,loss,loss_ppkt,loss_scr\n0,3,3.0,\n1,2,2.0,-5\n")
    score = '{"iou": {"car": 0.5}, "mean_iou": 0.5}'
    (run / "probe" / "scores.json").write_text(f'[{{"name": "random weights", "scores": {score}}}]')
    summary = draw_report(folders / "labels", folders / "shards", run, tmp_path / "out")
    assert {"loss.png", "probe.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert summary.left_out == ()


@pytest.mark.frames("synthetic")
def test_no_frame_is_refused_and_leaves_nothing(folders, tmp_path):
    from olivine.report.figures import draw_report

    with pytest.raises(OlivineError, match="--frames 0"):
        draw_report(folders / "labels", folders / "shards", None, tmp_path / "out", frames=0)
    assert not (tmp_path / "out").exists()
