"""KITTI's evaluation: as OpenPCDet prints it, as a plain version says, and what it must give in the plain cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.downstream.detection.kitti_eval import LEAST_IOU, ap_table, evaluate, read_results
from olivine.downstream.detection.kitti_format import Objects, objects_of, read_objects, write_objects

# Labels, results and their AP, made by OpenPCDet's evaluation, in benchmarks/kitti_eval_expectations.py.
EXPECTED = Path(__file__).with_name("kitti_eval_expectations.json")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    plain = json.loads(EXPECTED.read_text())
    folder = tmp_path_factory.mktemp("objects")
    made = {"at_40": np.array(plain["at_40"]), "at_11": np.array(plain["at_11"])}
    for name, scored in (("truth", False), ("found", True)):
        made[name] = []
        for i, text in enumerate(plain[name]):
            (folder / f"{name}{i}.txt").write_text(text)
            made[name].append(read_objects(folder / f"{name}{i}.txt", scored=scored))
    return made


def test_ap_is_what_openpcdets_evaluation_gives(expected):
    found = evaluate(expected["truth"], expected["found"])
    assert expected["at_40"][..., 1].min() > 5  # a case with something to lose
    assert np.abs(found.at_40 - expected["at_40"]).max() < 1e-6
    assert np.abs(found.at_11 - expected["at_11"]).max() < 1e-6


def test_ap_is_that_of_a_plain_version_of_the_rules(expected):
    """Image boxes: their overlap needs no polygons, and DontCare regions count there alone."""
    found = evaluate(expected["truth"], expected["found"])
    for c, kind in enumerate(LEAST_IOU):
        for d in range(3):
            curve = plain_curve(expected["truth"], expected["found"], kind, d)
            assert found.at_40[c, 0, d] == pytest.approx(100 * sum(curve[1:]) / 40, abs=1e-6)
            assert found.at_11[c, 0, d] == pytest.approx(100 * sum(curve[::4]) / 11, abs=1e-6)


def plain_curve(truth, found, kind, difficulty):
    """The 41 precisions, object by object as the rules are told."""
    least = {"Car": 0.7}.get(kind, 0.5)
    height, occluded = (40, 25, 25)[difficulty], (0, 1, 2)[difficulty]
    truncated = (0.15, 0.3, 0.5)[difficulty]

    def share(a, b, of_first=False):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(w, 0) * max(h, 0)
        first, second = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
        return both / (first if of_first else first + second - both) if both else 0

    frames, total = [], 0
    for labels, results in zip(truth, found):
        objects, regions, detections = [], [], []
        for i in range(len(labels)):
            box, name = labels.image[i], labels.kind[i]
            if name == "DontCare":
                regions.append(box)
            seen = labels.occluded[i] <= occluded and labels.truncated[i] <= truncated and box[3] - box[1] >= height
            if name == kind or (kind, name) in (("Car", "Van"), ("Pedestrian", "Person_sitting")):
                objects.append((box, name == kind and seen))
                total += objects[-1][1]
        for j in range(len(results)):
            low = results.image[j, 3] - results.image[j, 1] < height
            if low or results.kind[j] == kind:
                detections.append((results.image[j], results.score[j], not low))
        frames.append((objects, regions, detections))

    def match(frame, threshold):
        objects, _, detections = frame
        free = [j for j, d in enumerate(detections) if threshold is None or d[1] >= threshold]
        scores = []
        for box, counts in objects:
            fits = [j for j in free if share(detections[j][0], box) > least]
            if not fits:
                continue
            if threshold is None:
                best = max(fits, key=lambda j: (detections[j][1], -j))
            else:
                best = max(
                    fits, key=lambda j: (detections[j][2], detections[j][2] and share(detections[j][0], box), -j)
                )
            free.remove(best)
            if counts and detections[best][2]:
                scores.append(detections[best][1])
        return scores, [detections[j] for j in free if detections[j][2]]

    scores = sorted((s for frame in frames for s in match(frame, None)[0]), reverse=True)
    chosen, recall = [], 0.0
    for i, score in enumerate(scores):
        here, after = (i + 1) / total, (i + 2) / total
        if i + 1 < len(scores) and after - recall < recall - here:
            continue
        chosen.append(score)
        recall += 1 / 40
    curve = [0.0] * 41
    for t, threshold in enumerate(chosen):
        right = wrong = 0
        for frame in frames:
            hits, left = match(frame, threshold)
            right += len(hits)
            wrong += sum(not any(share(d[0], region, True) > least for region in frame[1]) for d in left)
        curve[t] = right / (right + wrong) if right + wrong else 0.0
    return [max(curve[t:]) for t in range(41)]


def cars(count: int) -> Objects:
    """Cars in the open, each alone."""
    row = [0, 0, 0.1, 100, 100, 200, 160, 1.5, 1.6, 3.9, 0, 1.6, 10, 0.5, 0.9]
    rows = np.tile(row, (count, 1)).astype(float)
    rows[:, 3] += 150 * np.arange(count)
    rows[:, 5] += 150 * np.arange(count)
    rows[:, 10] += 10 * np.arange(count)
    return objects_of(["Car"] * count, rows)


def test_perfect_results_give_100_and_empty_ones_0(expected):
    truth = [cars(4) for _ in range(15)]
    empty = [frame.where(np.zeros(len(frame), bool)) for frame in truth]
    assert np.all(evaluate(truth, truth, ["Car"]).at_40 == 100) and np.all(evaluate(truth, truth, ["Car"]).at_11 == 100)
    assert np.all(evaluate(truth, empty, ["Car"]).at_40 == 0) and np.all(evaluate(truth, empty, ["Car"]).at_11 == 0)
    assert evaluate(truth, truth, ["Car"]).mean() == 100
    # The labels themselves as results of the random frames: every counted object is found, and nothing else.
    perfect = [f.where(np.isin(f.kind, list(LEAST_IOU))) for f in expected["truth"]]
    found = evaluate(expected["truth"], [replace(f, score=f.score + 0.5) for f in perfect])
    for c, d in np.ndindex(3, 3):
        n = int(found.counted[c, d])
        limit = 100.0 if n > 40 else 100 * max(n - 1, 0) / 40
        assert np.allclose(found.at_40[c, :, d], limit)


def test_neighbours_and_hidden_objects_neither_help_nor_harm():
    truth, found = cars(3), cars(3)
    many = [cars(4) for _ in range(15)]
    kind, occluded = truth.kind.copy(), truth.occluded.copy()
    kind[1], occluded[2] = "Van", 3
    for results in (found, found.where(np.array([0]))):
        score = evaluate([*many, replace(truth, kind=kind, occluded=occluded)], [*many, results], ["Car"])
        assert np.all(score.at_40 == 100)
    # A truck is no neighbour: the car found in its place is wrong.
    kind[1] = "Truck"
    score = evaluate([*many, replace(truth, kind=kind, occluded=occluded)], [*many, found], ["Car"])
    assert np.all(score.at_40 < 100)


def test_results_go_to_kittis_text_and_back(expected, tmp_path):
    for objects in expected["found"][:5]:
        write_objects(tmp_path / "a.txt", objects)
        back = read_objects(tmp_path / "a.txt", scored=True)
        assert back.kind.tolist() == objects.kind.tolist()
        for name in ("image", "size", "place", "turn", "score", "truncated", "occluded", "alpha"):
            assert np.allclose(getattr(back, name), getattr(objects, name), atol=1e-4)


GOOD = "Car 0 0 0.1 1 2 3 4 1.5 1.6 3.9 1 2 3 0.5"


@pytest.mark.parametrize(
    ("text", "scored", "says"),
    [
        (f"{GOOD}\nCar 1 2\n", False, r"a\.txt line 2: has 3 values, not 15"),
        (GOOD, True, "has 15 values, not 16"),
        (GOOD.replace("Car", "Lorry"), False, "names the type 'Lorry'"),
        (GOOD.replace("0.5", "half"), False, "is not a type and numbers"),
        (GOOD.replace("0.5", "nan"), False, "not finite"),
        (GOOD.replace("1.6", "-1.6"), False, "a box of negative size: 1.5 x -1.6 x 3.9 m"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, scored, says):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(OlivineError, match=says) as error:
        read_objects(tmp_path / "a.txt", scored=scored)
    assert "\n" not in str(error.value)


def test_results_of_the_image_alone_are_scored_there_and_match_nothing_else(tmp_path):
    truth, lines = cars(4), []
    for left, top, right, bottom in truth.image:
        lines.append(f"car -1 -1 -10 {left} {top} {right} {bottom} -1 -1 -1 -1000 -1000 -1000 -10 0.9\n")
    (tmp_path / "a.txt").write_text("".join(lines))
    found = read_objects(tmp_path / "a.txt", scored=True)
    score = evaluate([truth] * 15, [found] * 15, ["Car"])
    assert np.all(score.at_40[0, 0] == 100) and np.all(score.at_40[0, 1:] == 0)
    with pytest.raises(OlivineError, match="negative size"):  # of a label they are an error
        (tmp_path / "b.txt").write_text("".join(line.replace(" 0.9", "") for line in lines))
        read_objects(tmp_path / "b.txt")


def test_results_of_other_frames_and_unknown_classes_are_refused(tmp_path):
    write_objects(tmp_path / "000001.txt", cars(1))
    with pytest.raises(OlivineError, match="has no result of frame 000002"):
        read_results(tmp_path, ["000001", "000002"])
    with pytest.raises(OlivineError, match="holds a result of frame 000001, which is none"):
        read_results(tmp_path, [])
    with pytest.raises(OlivineError, match="does not evaluate the class 'Tram'"):
        evaluate([], [], ["Tram"])


def test_the_table_says_where_there_are_too_few_objects():
    text = ap_table(evaluate([cars(3)], [cars(3)], ["Car"]))
    assert "| Car, 3d (IoU 0.7) | 5.00 | 5.00 | 5.00 |" in text and "Car 3" in text
    assert "(n − 1)/40" not in ap_table(evaluate([cars(4)] * 15, [cars(4)] * 15, ["Car"]))
