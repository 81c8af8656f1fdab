"""The page: one file, well-formed and escaped; its figures; in a browser what a reader does with it; and what is missing."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from olivine.commands.defaults import report_sources
from olivine.common import OlivineError, sha256_file
from olivine.downstream.benchmarks import PredictionReader, PredictionWriter
from olivine.labelgen.score import score_labels
from olivine.labelgen.store import open_store, read_label_manifest, write_label_manifest, write_record
from olivine.pairs.shards import ShardSet, open_shards
from olivine.report import contents
from olivine.report.charts import markdown, smooth
from olivine.report.contents import Contents, Sources
from olivine.report.frames import EDGES, choose_frames, make_view, prompt_values, read_statistics
from olivine.report.page import _quality, write_report
from olivine.report.shown import UNSEEN
from olivine.train.checkpoint import save_checkpoint

VOID = {"meta", "link", "img", "input", "br", "path"}
EVIL = "<script>alert('x')</script>\"&amp;"


class Strict(HTMLParser):
    """Every element is closed in its order; what a reader needs is there; nothing is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.count: dict[str, int] = {}
        self.scripts: dict[str, str] = {}
        self.language = ""
        self._script = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.count[tag] = self.count.get(tag, 0) + 1
        self.language = given.get("lang", self.language)
        self.ids += [given["id"]] if "id" in given else []
        self._script = given.get("id", "program") if tag == "script" else ""
        assert tag != "img" or given.get("alt")
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "href"):
            assert given.get(name, "data:").startswith("data:"), given[name][:100]
        if tag not in VOID and tag != "polyline":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self._script and self.open and self.open[-1] == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def strict(text: str) -> Strict:
    # SVG's own elements, which HTML's parser does not know as empty.
    return Strict(re.sub(r"<(path|polyline)([^>]*)/>", "", text))


def refuse(constant: str) -> None:
    raise ValueError(constant)


@pytest.fixture(scope="module")
def world_report(nuscenes_world, tmp_path_factory):
    """The report of a synthetic world with predictions of which the second frame's are the worst."""
    folder = tmp_path_factory.mktemp("world-report")
    shards = open_shards(nuscenes_world.pairs / "val")
    raw = shards.shard(0).attributes["point_class_raw"]
    writer = PredictionWriter(folder / "predictions-val", shards, shards.point_classes, raw, pre_trained=True)
    for frame in range(len(shards)):
        truth = np.maximum(shards.point_label(frame), 1)
        writer.write(frame, np.where(np.arange(len(truth)) % (2 if frame == 1 else 4), truth, truth % 16 + 1))
        writer.write_confidence(frame, np.linspace(0, 1, len(truth)))
    run = folder / "run"
    (run / "probe").mkdir(parents=True)
    identity = {"kind": "pretrain", "settings": {"name": EVIL, "run": {"epochs": 3}}, "data": {"digest": "d" * 64}}
    (run / "run.json").write_text(json.dumps(identity))
    steps = "".join(f"{k},{5 - 0.1 * k},{'nan' if k == 3 else 4 - 0.1 * k}\n" for k in range(40))
    (run / "steps.csv").write_text(f"step,loss,loss_ppkt\n{steps}")
    save_checkpoint(run / "last.pt", {"kind": "pretrain", "step": 40, "steps": 60})
    scores = {"iou": {"car": 0.5, EVIL: 0.1}, "mean_iou": 0.25}
    result = {"name": EVIL, "scores": scores, "notes": [f"note {EVIL}"]}
    (run / "probe/scores.json").write_text(json.dumps([result]))
    study = folder / "study"
    study.mkdir()
    (study / "table.md").write_text(f"# {EVIL}\n\n| row | mIoU |\n|-----|-----:|\n| {EVIL} | 1.0 |\n\nA fact.\n")
    Image.new("RGB", (9, 9)).save(study / "table.png")
    sources = Sources(nuscenes_world.pairs.parent / "labels", None, shards.path, run, folder / "predictions-val", study)
    summary = write_report(sources, folder / "out")
    return sources, summary, (folder / "out/index.html").read_text()


def frames_of(page: Strict) -> list[dict]:
    names = sorted(name for name in page.scripts if name.startswith("frame-"))
    return [json.loads(page.scripts[name], parse_constant=refuse) for name in names]


def test_the_page_is_one_well_formed_file_that_fetches_nothing(world_report):
    _, summary, text = world_report
    page = strict(text)
    assert page.language == "en"
    assert len(set(page.ids)) == len(page.ids)
    assert page.count["h1"] == 1 and page.count["svg"] == 1
    assert summary.frames == len(frames_of(page)) == 2
    assert "http" not in page.scripts["program"]
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_what_comes_from_data_is_escaped(world_report, nuscenes_world, tmp_path, monkeypatch):
    sources, _, text = world_report
    assert EVIL not in text and "&lt;script&gt;alert" in text
    kept = ShardSet.record
    monkeypatch.setattr(ShardSet, "record", lambda self, i: dataclasses.replace(kept(self, i), scene=EVIL))
    write_report(dataclasses.replace(sources, predictions=None), tmp_path / "out", frames=1)
    text = (tmp_path / "out/index.html").read_text()
    page = strict(text)
    assert EVIL not in text
    assert frames_of(page)[0]["scene"] == EVIL
    assert set(page.scripts) == {"spec", "frame-0", "program"}


def test_a_frame_on_the_page_is_the_shards_frame(world_report, nuscenes_world):
    sources, _, text = world_report
    shards = open_shards(sources.shards)
    frames = frames_of(strict(text))
    assert [frame["token"] for frame in frames] == [
        shards.token(1),
        shards.token(0),
    ]  # the worst first, the median last
    record, frame = shards[1], frames[0]
    points = np.frombuffer(base64.b64decode(frame["points"]), "<i2").reshape(-1, 3) / 100
    np.testing.assert_allclose(points, record.points[:, :3], atol=0.0051)
    values = {name: np.frombuffer(base64.b64decode(v), np.uint8) for name, v in frame["values"].items()}
    assert set(values) == {"weak", "truth", "prediction", "confidence", "camera"}
    np.testing.assert_array_equal(values["truth"], record.point_label)
    first = {}
    for point, camera, label in zip(record.pair_point, record.pair_camera, record.pair_label):
        first.setdefault(int(point), (int(label), int(camera)))
    for point in range(0, len(points), 97):
        assert (values["weak"][point], values["camera"][point]) == first.get(point, (UNSEEN, UNSEEN))
    camera = frame["cameras"][2]
    mine = record.pair_camera == 2
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(camera["point"]), "<u4"), record.pair_point[mine])
    uv = np.frombuffer(base64.b64decode(camera["uv"]), "<u2").reshape(-1, 2) / 16
    np.testing.assert_allclose(uv, record.pair_uv[mine] + 0.5, atol=1 / 16)


def test_the_statistics_are_what_a_count_point_by_point_gives(nuscenes_world):
    shards = open_shards(nuscenes_world.pairs / "val")
    found = read_statistics(Contents(Sources()), shards)
    lookup = prompt_values(shards)
    seen, pairs, right, known = set(), {}, 0, 0
    twice = agreeing = 0
    for index in range(len(shards)):
        record = shards[index]
        by_point: dict[int, list[int]] = {}
        for point, label in zip(record.pair_point.tolist(), record.pair_label.tolist()):
            x, y, z = record.points[point, :3].astype(float)
            place = sum((x * x + y * y + z * z) ** 0.5 >= edge for edge in EDGES[1:])
            seen.add((index, point))
            pairs[place, label] = pairs.get((place, label), 0) + 1
            by_point.setdefault(point, []).append(label)
            true = int(lookup[record.point_label[point]])
            known += true > 0
            right += true > 0 and true == label
        for labels in by_point.values():
            for one, other in itertools.pairwise(labels):
                twice += 1
                agreeing += one == other
    assert found.seen.sum() == len(seen)
    assert {(k, c): n for (k, c), n in np.ndenumerate(found.pairs) if n} == pairs
    assert (found.known.sum(), found.right.sum()) == (known, right)
    assert (found.twice, found.agreeing) == (twice, agreeing)
    assert found.ranked_by == "of the pairs have their true class as weak label"


def test_labels_named_as_the_benchmark_names_them_are_the_points_classes(nuscenes_world, monkeypatch):
    shards = open_shards(nuscenes_world.pairs / "val")
    monkeypatch.setattr(shards, "classes", ("driveable_surface", "car"))
    found = dict(zip(shards.point_classes, prompt_values(shards)[1:].tolist()))
    assert {name: value for name, value in found.items() if value} == {"driveable_surface": 1, "car": 2}


def test_the_worst_frames_come_first_and_the_median_last():
    found = read_like(scores={0: 0.9, 1: 0.2, 2: 0.5, 3: 0.4, 4: 0.8})
    assert [index for index, _ in choose_frames(found, 3)] == [1, 3, 2]
    assert [index for index, _ in choose_frames(found, 1)] == [1]
    assert "worst of 5 frames" in choose_frames(found, 3)[0][1]
    assert [index for index, _ in choose_frames(read_like(scores={}), 3)] == [0, 2, 4]


def read_like(scores):
    from olivine.report.frames import Statistics

    none = np.zeros(0, np.int64)
    return Statistics(5, 5, none, none, none, none, none, scores=scores, ranked_by="right")


def test_predictions_are_read_as_they_were_written_and_damaged_ones_are_told(kitti_world, tmp_path):
    shards = open_shards(kitti_world.pairs / "val")
    raw = shards.shard(0).attributes["point_class_raw"]
    label = np.random.default_rng(0).integers(1, 20, len(shards.points(0)))
    PredictionWriter(tmp_path / "p", shards, shards.point_classes, raw, pre_trained=True).write(0, label)
    reader = PredictionReader(tmp_path / "p", shards)
    np.testing.assert_array_equal(reader.read(0, len(label)), label)
    assert reader.confidence(0, len(label)) is None
    (path,) = (tmp_path / "p").rglob("*.label")
    whole = path.read_bytes()
    for damage, says in ((whole[:-4], "bytes"), (b"\xff" * len(whole), "no class has")):
        path.write_bytes(damage)
        with pytest.raises(OlivineError, match=says):
            reader.read(0, len(label))


def test_a_curve_is_smoothed_by_the_mean_of_the_values_before():
    values = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(smooth(values, 4), [values[max(0, k - 3) : k + 1].mean() for k in range(30)])


def test_a_studys_markdown_becomes_tables():
    text = markdown("# S\n\n## T\n\n| a | b |\n|---|--:|\n| x<y | 1 |\n\nA fact,\nover two lines.\n")
    assert text.startswith("<h3>S</h3><h3>T</h3>") and "<td>x&lt;y</td><td>1</td>" in text
    assert text.endswith("<p>A fact, over two lines.</p>")


@pytest.mark.parametrize(
    "gone", ["shards", *(pytest.param(g, marks=pytest.mark.soak) for g in ("labels", "run")), "both"]
)
def test_what_is_gone_is_said_and_the_rest_is_shown(gone, world_report, nuscenes_world, tmp_path):
    sources, _, _ = world_report
    shutil.copytree(sources.shards, tmp_path / "val")
    sources = dataclasses.replace(sources, shards=tmp_path / "val", predictions=None)
    if gone == "shards":
        for shard in (tmp_path / "val").glob("*.zarr"):
            shutil.rmtree(shard)
    elif gone == "labels":
        sources = dataclasses.replace(sources, labels=tmp_path / "nowhere")
    elif gone == "run":
        (tmp_path / "empty").mkdir()
        sources = dataclasses.replace(sources, run=tmp_path / "empty")
    else:
        sources = dataclasses.replace(sources, labels=tmp_path / "nowhere", shards=tmp_path / "nowhere")
    summary = write_report(sources, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    page = strict(text)
    said = " ".join(summary.left_out)
    assert {"shards": "a file is gone", "labels": "manifest.json", "run": "run.json", "both": "no shards here"}[
        gone
    ] in said
    assert "Not on this page" in text
    assert summary.frames == {"shards": 3, "labels": 2, "run": 2, "both": 0}[gone]
    frames = frames_of(page)
    assert all(frame["points"] for frame in frames) == (gone != "shards") or not frames
    assert all(frame["cameras"] for frame in frames)  # of the data set where the shards are gone


def test_label_maps_that_the_shards_were_not_made_of_are_left_out_and_said(nuscenes_world, tmp_path, monkeypatch):
    """By default those are taken that they were made of, also where others are larger or come first."""
    monkeypatch.chdir(tmp_path)
    theirs = nuscenes_world.pairs.parent / "labels"
    for name in ("another", "theirs"):
        shutil.copytree(theirs, Path("data/labels") / name)
    manifest = read_label_manifest(Path("data/labels/another/manifest.json"), "")
    write_label_manifest(Path("data/labels/another/manifest.json"), {**manifest, "labeler": "another"})
    shards = nuscenes_world.pairs / "val"
    sources = report_sources(None, None, None, shards, None, None)
    assert sources.labels == Path("data/labels/theirs")
    assert contents.read_contents(sources).labels is not None

    found = contents.read_contents(report_sources(None, Path("data/labels/another"), None, shards, None, None))
    said = f"those in data/labels/another are not the labels that the shards in {shards} were made of. Name that folder"
    assert found.labels is None and any(said in text for text in found.missing)
    assert contents.read_labels_and_shards(found.sources).labels is None
    shutil.rmtree("data/labels/theirs")
    sources = report_sources(None, None, None, shards, None, None)
    assert sources.labels is None
    assert any(
        "that the shards were made of. Name that folder" in text for text in contents.read_contents(sources).missing
    )


def test_scores_of_maps_that_were_made_again_are_called_so(nuscenes_world, tmp_path):
    shutil.copytree(nuscenes_world.pairs.parent / "labels", tmp_path / "labels")
    store, out = open_store(tmp_path / "labels"), tmp_path / "labels-scores"
    score_labels(store, out, split="val")
    sources = Sources(store.root, out)

    def says_so() -> bool:
        return "These scores are of other label maps" in _quality(contents.read_contents(sources), None)

    assert not says_so()
    scene = store.index().select("val")[0].name
    record = store.unit(scene)
    path = store.root / "units" / f"{scene}.json"
    write_record(path, {**record, "sha256": ["0" * 64, *record["sha256"][1:]]})  # as labelgen leaves it
    assert says_so()


def test_of_label_maps_alone_a_damaged_scene_is_said_and_the_others_frames_are_shown(nuscenes_world, tmp_path):
    shutil.copytree(nuscenes_world.pairs.parent / "labels", tmp_path / "labels")
    first = min((tmp_path / "labels/frames").glob("*.jsonl"))
    first.write_text("{")
    summary = write_report(Sources(tmp_path / "labels"), tmp_path / "out")
    assert summary.frames == 3 and first.name in " ".join(summary.left_out)
    page = strict((tmp_path / "out/index.html").read_text())
    assert all(frame["cameras"] and frame["scene"] != first.stem for frame in frames_of(page))


def test_predictions_of_shards_without_labels_are_shown_by_name(nuscenes_world, world_report, tmp_path, monkeypatch):
    sources, _, _ = world_report
    shards = open_shards(sources.shards)
    raw = shards.shard(0).attributes["point_class_raw"]
    writer = PredictionWriter(tmp_path / "p", shards, shards.point_classes, raw, pre_trained=True)
    writer.begin("a" * 64)
    for frame in range(len(shards)):
        writer.write(frame, np.full(len(shards.points(frame)), 3))
    names, shards.point_classes = shards.point_classes, ()
    monkeypatch.setattr(contents, "open_shards", lambda path: shards)
    found = contents.read_labels_and_shards(dataclasses.replace(sources, predictions=tmp_path / "p"))
    spec = make_view(found, shards, [(0, "")]).spec
    (mode,) = (mode for mode in spec["modes"] if mode["key"] == "prediction")
    assert mode["names"] == ["none", *names]


def test_predictions_of_a_network_that_was_replaced_are_left_out(nuscenes_world, world_report, tmp_path):
    sources, _, _ = world_report
    shards, folder = open_shards(sources.shards), tmp_path / "finetune-100" / "predictions-val"
    raw = shards.shard(0).attributes["point_class_raw"]
    folder.mkdir(parents=True)
    (folder.parent / "last.pt").write_bytes(b"one network")
    (folder.parent / "run.json").write_text(json.dumps({"kind": "finetune", "settings": {}, "data": {}}))
    writer = PredictionWriter(folder, shards, shards.point_classes, raw, pre_trained=True)
    writer.begin(sha256_file(folder.parent / "last.pt"))
    for frame in range(len(shards)):
        writer.write(frame, np.full(len(shards.points(frame)), 3))
    sources = Sources(shards=sources.shards, predictions=folder)
    assert contents.read_labels_and_shards(sources).predictions is not None
    (folder.parent / "last.pt").write_bytes(b"another one")
    found = contents.read_labels_and_shards(sources)
    assert found.predictions is None and "of another network" in found.missing[-1]
    assert "olivine predict again" in found.missing[-1]
    # Beside a pre-training's checkpoint lie predictions of the fine-tunings from it.
    (folder.parent / "run.json").write_text(json.dumps({"kind": "pretrain", "settings": {}, "data": {}}))
    assert contents.read_labels_and_shards(sources).predictions is not None


def test_a_run_that_is_not_finished_says_so_beside_its_scores(world_report):
    text = world_report[2]
    assert "step 40 of 60: the run is not finished" in text
    assert "one run with one seed" in text


def test_a_run_of_fewer_steps_than_its_epochs_have_is_finished_when_they_are_done(world_report, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world_report[0].run, run)
    settings = {"name": "cpu", "run": {"epochs": 8, "steps": 4}}
    (run / "run.json").write_text(json.dumps({"kind": "pretrain", "settings": settings, "data": {}}))
    (run / "epochs.csv").write_text("step,epoch\n1,1\n3,2\n")
    save_checkpoint(run / "last.pt", {"kind": "pretrain", "step": 4, "steps": 4})
    write_report(Sources(run=run), tmp_path / "out")
    assert "not finished" not in (tmp_path / "out/index.html").read_text()


def test_the_commands_name_no_label_maps_where_there_are_none(world_report, tmp_path):
    write_report(Sources(shards=world_report[0].shards), tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    assert "build-pairs --labels LABELS --out" in text and "--labels None" not in text


def shot(browser) -> tuple[int, str]:
    code = "[cloud.drawn, document.querySelector('#caption').textContent]"
    return tuple(browser.run(code))


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_in_a_browser_nothing_is_fetched_nothing_complains_and_nothing_sticks_out(width, scheme, browser, world_report):
    browser.open(world_report[1].page, width, scheme)
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    dark = browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    drawn, _ = shot(browser)
    assert drawn > 1000
    colors = "new Set(new Uint32Array(cloud.canvas.getContext('2d').getImageData(0, 0, cloud.canvas.width, cloud.canvas.height).data.buffer))"
    assert browser.run(f"{colors}.size") > 4
    assert browser.run("[...document.images].every((i) => i.hidden || i.naturalWidth > 0 || !i.src)")


def test_in_a_browser_the_slider_changes_the_frame(browser, world_report):
    browser.open(world_report[1].page, 1400)
    _, first = shot(browser)
    source = browser.run("document.querySelector('#images img').src")
    browser.run("(() => { const s = byId('slider'); s.value = 2; s.dispatchEvent(new Event('input')); })()")
    _, second = shot(browser)
    assert first.startswith("Frame 1 of 2") and second.startswith("Frame 2 of 2")
    assert browser.run("document.querySelector('#images img').src") != source
    browser.run("byId('previous').click()")
    assert shot(browser)[1] == first
    assert browser.complaints() == []


def test_in_a_browser_a_class_is_switched_off_and_every_colour_is_shown(browser, world_report, nuscenes_world):
    browser.open(world_report[1].page, 1400)
    record = open_shards(nuscenes_world.pairs / "val")[1]
    assert browser.run("[...byId('mode').options].map((o) => o.value)") == [
        "weak", "truth", "prediction", "confidence", "camera", "distance",
    ]  # fmt: skip
    browser.run("(() => { byId('mode').value = 'truth'; byId('mode').dispatchEvent(new Event('change')); })()")
    legend = browser.run("[...document.querySelectorAll('#legend label')].map((l) => l.textContent)")
    assert len(legend) == len(np.unique(record.point_label))
    browser.run("byId('none').click()")
    assert shot(browser)[0] == 0
    browser.run("document.querySelector('#legend input').click()")
    shown = browser.run("cloud.colors.filter((c) => c).length")
    assert shown == (record.point_label == np.unique(record.point_label)[0]).sum()
    for mode in ("confidence", "camera", "distance"):
        browser.run(f"(() => {{ byId('mode').value = '{mode}'; byId('mode').dispatchEvent(new Event('change')); }})()")
        assert browser.run("cloud.colors.every((c) => c)"), mode
    browser.run("byId('overlay').click()")
    assert browser.run("document.querySelector('.overlay').style.opacity") == "0.55"
    browser.run("cloud.turn(1, 0.2)")
    assert browser.complaints() == []


def test_in_a_browser_a_wide_image_has_the_full_width(browser, kitti_world, tmp_path):
    sources = Sources(kitti_world.pairs.parent / "labels", shards=kitti_world.pairs / "val")
    page = write_report(sources, tmp_path / "out").page
    browser.open(page, 1400)
    image, text = browser.run(
        "[document.querySelector('#images img').clientWidth, document.querySelector('main').clientWidth]"
    )
    assert image == text
    assert browser.complaints() == []


def test_the_command_finds_what_there_is_and_says_what_there_is_not(world_report, nuscenes_world, olivine, tmp_path):
    (tmp_path / "data/pairs").mkdir(parents=True)
    (tmp_path / "data/pairs/nuscenes").symlink_to(nuscenes_world.pairs)
    shutil.copytree(Path(world_report[0].run), tmp_path / "runs/begun")
    done = olivine("report", "--frames", 1, cwd=tmp_path, check=True)
    assert "label maps: none in data/labels" in done.stdout
    assert "steps<b>40</b>" in (tmp_path / "report/index.html").read_text()
