"""Scores: how sure a labeler is of each pixel, what they are of, and the oracle's that are as often right as they say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.compose import compose, paint_ranks
from olivine.labelgen.grounded import Boxes, GroundedSam
from olivine.labelgen.oracle import displacement_field, parse_error_model, spoil
from olivine.labelgen.oracle_scores import chance_of_right, displacements
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import LabelStore, encode_label_map, open_store
from olivine.labelgen.verify import verify_labels

SCORED = LabelSettings("oracle", scores=True)
SMALL = """{boundary: 1, missed: 0.5, missed_area: 60, leakage: 0.2, leakage_distance: 6,
    confusion_matrix: {car: {truck: 0.2}, truck: {car: 0.2}, pedestrian: {car: 0.1}}}"""
"""Errors at the scale of the made-up pictures; their few large regions are of one class each, so chance would decide."""
CAR, ROAD, TRUCK = (DEFAULT_VOCABULARY.value(n) for n in ("car", "road", "truck"))


def _cameras(world) -> list:
    return [camera for frame in world.index.frames() for camera in frame.cameras]


def _right(store: LabelStore, world, world_label: Callable) -> tuple[np.ndarray, np.ndarray]:
    """The score of each labelled pixel, 0 to 1, and whether its label is the exact one."""
    scores, right = [], []
    for camera in _cameras(world):
        label, score = store.label_map(camera), store.score_map(camera)
        assert np.array_equal(label > 0, score > 0)
        scores.append(score[label > 0] / 255)
        right.append((label == world_label(world.classes[camera.key]))[label > 0])
    return np.concatenate(scores), np.concatenate(right)


def test_a_painted_pixels_score_is_that_of_the_mask_on_top_times_its_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(25, 8, 9, generator=generator) * 3
    scores, things = torch.rand(25, generator=generator), torch.rand(25, generator=generator) > 0.5
    values = torch.randint(1, 14, (25,), generator=generator, dtype=torch.uint8)
    ranks = paint_ranks(scores, things, "layered")
    expected = torch.zeros(8, 9)
    for i in torch.argsort(ranks):  # painted one over the other
        inside = logits[i] > 0
        expected[inside] = scores[i] / (1 + torch.exp(-logits[i][inside]))
    for piece in (1, 3, 25):
        painted = compose(logits.split(piece), ranks, values, (8, 9), scores=scores)
        assert torch.allclose(painted.score, expected, atol=1e-6)
        plain = compose((logits > 0).split(piece), ranks, values, (8, 9))
        assert plain.score is None and torch.equal(plain.label, painted.label)


def test_grounded_sam_scores_by_the_prompts_own_score_and_a_label_never_0() -> None:
    labeler = GroundedSam(LabelSettings("grounded-sam", scores=True, device="cpu"), DEFAULT_VOCABULARY)
    logits = torch.full((2, 4, 6), -1.0)
    logits[0, :, :3], logits[1, :, 2:4] = 2.0, 0.001
    labeler.segmenter = type(
        "Fixed", (), {"mask_logits": lambda self, feature, boxes, size: logits[boxes[:, 0].long()]}
    )()
    boxes = Boxes(
        torch.tensor([[0.0, 0, 3, 4], [1, 0, 4, 4]]), torch.tensor([0.9, 0.8]), torch.tensor([0.8, 0.001]),
        torch.tensor([DEFAULT_VOCABULARY.classes.index("road"), DEFAULT_VOCABULARY.classes.index("car")]),
    )  # fmt: skip
    masks = labeler._masks(torch.zeros(1, 1, 1, 1), boxes.box, (4, 6))
    labelled = labeler._read([boxes], [labeler._paint(masks, boxes, (4, 6), boxes.box.device, boxes.text_score)])[0]
    assert labelled.label[0].tolist() == [ROAD, ROAD, CAR, CAR, 0, 0]
    road = round(255 * 0.8 / (1 + np.exp(-2.0)))
    assert labelled.score[0].tolist() == [road, road, 1, 1, 0, 0]
    assert "scores" in labeler.resolved() and "scores" not in replace_settings(labeler, scores=False).resolved()


def replace_settings(labeler: GroundedSam, **changes: object) -> GroundedSam:
    labeler.settings = replace(labeler.settings, **changes)
    return labeler


def test_the_oracles_calibrated_scores_say_how_many_are_right_at_every_level(make_world, world_label, tmp_path) -> None:
    world = make_world(5, 10)
    (tmp_path / "small.yaml").write_text(SMALL)
    generate_labels(world.index, tmp_path / "labels", replace(SCORED, error=str(tmp_path / "small.yaml")))
    score, right = _right(open_store(tmp_path / "labels"), world, world_label)
    bins = np.minimum((score * 15).astype(int), 14)
    error = sum(abs((score - right)[bins == k].sum()) for k in range(15)) / len(score)
    assert error < 0.02 and 0.5 < right.mean() < 0.97
    for level in (0.3, 0.6, 0.8, 0.9):
        above = score >= level
        assert above.sum() > 1000 and right[above].mean() == pytest.approx(score[above].mean(), abs=0.02)
    assert right[score < 0.6].mean() < right.mean() - 0.2  # and they tell the sure from the unsure


def test_over_confident_scores_say_too_much_in_the_same_order(make_world, world_label, tmp_path) -> None:
    world = make_world(2, 6)
    (tmp_path / "small.yaml").write_text(SMALL)
    for name in ("calibrated", "over"):
        settings = replace(SCORED, error=str(tmp_path / "small.yaml"), oracle_scores=name)
        generate_labels(world.index, tmp_path / name, settings)
    first, right = _right(open_store(tmp_path / "calibrated"), world, world_label)
    over, same = _right(open_store(tmp_path / "over"), world, world_label)
    assert np.array_equal(right, same) and over.mean() > right.mean() + 0.025
    assert np.abs(over - (1 - (1 - first) ** 2)).max() < 1.5 / 255
    with pytest.raises(OlivineError, match="--oracle-scores"):
        replace(SCORED, oracle_scores="sure")


def test_the_chance_is_what_drawing_the_errors_many_times_counts() -> None:
    label = np.zeros((60, 90), np.uint8)
    label[30:], label[10:30, 20:50], label[35:45, 30:42] = ROAD, DEFAULT_VOCABULARY.value("building"), CAR
    regions = label.astype(np.int32)
    model = parse_error_model("boundary=2,missed=0.6,missed_area=120,confusion=0.2,leakage=0.3,leakage_distance=5")
    given, right = np.zeros(label.shape), np.zeros(label.shape)
    for seed in range(500):
        spoilt, _ = spoil(label, regions, model, DEFAULT_VOCABULARY, np.random.default_rng(seed))
        given += spoilt > 0
        right += (spoilt == label) & (label > 0)
    chance = chance_of_right(label, regions, model, DEFAULT_VOCABULARY)
    counted = right / np.maximum(given, 1)
    often = given > 100
    error = np.abs(chance - counted)[often]
    assert error.mean() < 0.025 and np.quantile(error, 0.99) < 0.15 and often.mean() > 0.5


def test_the_displacements_are_those_of_the_field() -> None:
    field = np.concatenate(
        [displacement_field(160, 160, 2.0, np.random.default_rng(seed)).reshape(2, -1) for seed in range(40)], axis=1
    )
    offset, chance = displacements(2.0)
    for size in range(5):
        drawn = (np.abs(field).max(axis=0) <= size).mean()
        assert chance[np.abs(offset).max(axis=1) <= size].sum() == pytest.approx(drawn, abs=0.015)
    assert displacements(0.0)[0].tolist() == [[0, 0]]


def test_stores_without_scores_stay_the_same_stores_and_with_them_are_others(make_world, tmp_path) -> None:
    world = make_world(1, 2)
    plain, scored = LabelSettings("oracle"), replace(SCORED, oracle_scores="over")
    generate_labels(world.index, tmp_path / "plain", plain)
    generate_labels(world.index, tmp_path / "scored", scored)
    before, after = open_store(tmp_path / "plain"), open_store(tmp_path / "scored")
    assert before.scores == "" and before.score_map(_cameras(world)[0]) is None
    assert "scores" not in before.manifest["settings"] and "score_sha256" not in before.unit("scene-0000")
    assert not (tmp_path / "plain/scores").exists() and before.digest != after.digest
    for camera in _cameras(world):
        assert before.label_path(camera).read_bytes() == after.label_path(camera).read_bytes()
    for folder, settings in (("plain", scored), ("scored", plain), ("scored", SCORED)):
        with pytest.raises(OlivineError, match=r"other settings: settings\.scores"):
            generate_labels(world.index, tmp_path / folder, settings)


def test_a_score_map_that_is_lost_is_made_again_and_a_changed_one_is_found(make_world, tmp_path) -> None:
    world, labels = make_world(1, 2), tmp_path / "labels"
    generate_labels(world.index, labels, SCORED)
    store, camera = open_store(labels), _cameras(world)[1]
    path = store.score_path(camera)
    before = path.read_bytes()
    path.unlink()
    assert generate_labels(world.index, labels, SCORED).images > 0
    assert path.read_bytes() == before and verify_labels(world.index, labels, SCORED).failures == []
    Image.fromarray(np.full((camera.height, camera.width), 9, np.uint8)).save(path)
    for found in (
        verify_labels(world.index, labels, SCORED),
        generate_labels(world.index, labels, SCORED, merge_only=True),
    ):
        (failure,) = found.failures
        assert f"{path}: has other bytes than its record says" in failure.reason
    with pytest.raises(OlivineError, match="other bytes than its record"):
        open_store(labels).score_map(camera, "scene-0000")


@pytest.fixture
def exported(make_world, tmp_path) -> tuple:
    """A world, and a folder of its label maps and one of their scores, as olivine wrote them."""
    world = make_world(1, 2)
    generate_labels(world.index, tmp_path / "made", SCORED)
    shutil.copytree(tmp_path / "made/scores", tmp_path / "scores")
    for name in ("CAM_FRONT", "CAM_BACK"):
        shutil.copytree(tmp_path / "made" / name, tmp_path / "maps" / name)
    return world, LabelSettings("import", camseg=tmp_path / "maps", scores_from=tmp_path / "scores")


def test_scores_are_imported_value_for_value_and_belong_to_the_new_labels(exported, tmp_path) -> None:
    world, settings = exported
    assert generate_labels(world.index, tmp_path / "labels", settings).failures == []
    made, store = open_store(tmp_path / "made"), open_store(tmp_path / "labels")
    assert store.scores == "imported"
    for camera in _cameras(world):
        assert np.array_equal(store.score_map(camera), made.score_map(camera))
    again = replace(settings, camseg=tmp_path / "labels", scores_from=tmp_path / "labels/scores")
    assert generate_labels(world.index, tmp_path / "again", again).failures == []


def _other_labels(path: Path, maps: Path) -> None:
    label = np.asarray(Image.open(maps))
    maps.write_bytes(
        encode_label_map(np.where(label == ROAD, TRUCK, label).astype(np.uint8), DEFAULT_VOCABULARY.classes)
    )


SPOILERS: dict[str, Callable[[Path, Path], None]] = {
    "no such score map": lambda path, maps: path.unlink(),
    "is 10x10, not 128x96": lambda path, maps: Image.new("L", (10, 10)).save(path),
    "has 16 bits a pixel": lambda path, maps: Image.fromarray(np.zeros((96, 128), np.uint16)).save(path),
    "has RGB colours": lambda path, maps: Image.new("RGB", (128, 96)).save(path),
    "has the scores of another label map": _other_labels,
}


@pytest.mark.parametrize("message", SPOILERS)
def test_scores_that_do_not_fit_are_named_and_the_other_images_get_done(message, exported, tmp_path) -> None:
    world, settings = exported
    camera = _cameras(world)[1]
    path = tmp_path / "scores" / f"{camera.key}.png"
    SPOILERS[message](path, tmp_path / "maps" / f"{camera.key}.png")
    summary = generate_labels(world.index, tmp_path / "labels", settings)
    (failure,) = summary.failures
    assert summary.images == 3 and message in failure.reason and str(path) in failure.reason


def test_scores_of_somebody_else_say_nothing_of_their_labels_and_are_taken(exported, tmp_path) -> None:
    world, settings = exported
    for path in (tmp_path / "scores").rglob("*.png"):
        Image.fromarray(np.full(np.asarray(Image.open(path)).shape, 200, np.uint8)).save(path)
    assert generate_labels(world.index, tmp_path / "labels", settings).failures == []
    store = open_store(tmp_path / "labels")
    label, score = store.label_map(_cameras(world)[0]), store.score_map(_cameras(world)[0])
    assert set(score[label > 0]) == {200} and set(score[label == 0]) == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores_from": None, "scores": True}, "no scores of their own. Name the folder of scores"),
        ({"scores_from": Path("nowhere")}, "no such folder"),
        ({"scores_from": Path("made")}, r"holds label maps, not scores. Olivine's are in .*made/scores"),
        ({"labeler": "oracle"}, "--scores-from is for imported label maps, not for oracle"),
        ({"labeler": "regions"}, "--labeler regions gives no scores"),
        ({"oracle_scores": "over"}, "--oracle-scores over is for scores of the oracle. Leave it out"),
        (
            {"labeler": "oracle", "scores_from": None, "oracle_scores": "over"},
            "is for scores of the oracle. Add --scores",
        ),
    ],
)
def test_scores_that_cannot_be_had_are_refused_in_one_line(changes, message, exported, tmp_path, monkeypatch) -> None:
    world, settings = exported
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OlivineError, match=message):
        generate_labels(world.index, tmp_path / "labels", replace(settings, **changes))
