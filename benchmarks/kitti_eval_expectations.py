"""Make the random results and labels that the tests evaluate, with the AP that OpenPCDet's evaluation gives them.

    git clone https://github.com/open-mmlab/OpenPCDet
    python benchmarks/kitti_eval_expectations.py OpenPCDet tests/downstream/detection/kitti_eval_expectations.json

The evaluation is OpenPCDet's ``kitti_object_eval_python/eval.py`` (commit 8cacccec), with the overlaps of rotated rectangles
from shapely's polygons, since its own need a GPU. Its one difference to the benchmark's program is avoided: objects exactly
25 or 40 pixels high, which it ignores.

With ``--devkit evaluate_object_3d_offline.cpp --boost FOLDER`` (github.com/prclibo/kitti_eval, which is the benchmark's own
program reading folders, and Boost's headers) that program is built and run on the same files too, and the largest difference
of AP to ours is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("Car", "Pedestrian", "Cyclist")
SIZES = {"Car": (1.5, 1.6, 3.9), "Pedestrian": (1.7, 0.6, 0.8), "Cyclist": (1.7, 0.6, 1.8)}


def random_frames(count: int, seed: int) -> tuple[list[str], list[str]]:
    """The texts of label and result files: neighbours, hidden objects, DontCare, doubles, ties, empty frames."""
    generator = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(count):
        labels, results = [], []
        for _ in range(int(generator.integers(0, 9))):
            kind = str(generator.choice(["Car", "Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck"]))
            size = np.array(SIZES.get(kind, SIZES["Car" if kind in ("Van", "Truck") else "Pedestrian"]))
            size = size * generator.uniform(0.9, 1.1, 3)
            place = generator.uniform([-20, 1, 5], [20, 2, 60])
            left, top = generator.uniform(0, 900), generator.uniform(100, 200)
            box = np.array([left, top, left + generator.uniform(20, 90), top + generator.integers(20, 130) + 0.37])
            turn = generator.uniform(-3.1, 3.1)
            hidden = (round(float(generator.choice([0, 0, 0, 0.2, 0.6])), 2), int(generator.choice([0, 0, 0, 1, 2, 3])))
            labels.append(line(kind, hidden, box, size, place, turn))
            for _ in range(int(generator.choice([0, 1, 1, 1, 2]))):
                noise = generator.choice([0.01, 0.02, 0.05, 0.3])
                seen = box + noise * 10 * generator.normal(size=4)
                seen[2:] = np.maximum(seen[2:], seen[:2] + 3)
                claimed = str(generator.choice([kind, *CLASSES], p=[0.85, 0.05, 0.05, 0.05]))
                claimed = claimed if claimed in CLASSES else {"Person_sitting": "Pedestrian"}.get(claimed, "Car")
                score = round(float(generator.uniform()), 1 if generator.uniform() < 0.5 else 3)
                moved = place + noise * generator.normal(size=3) * [1, 0.5, 1]
                larger = size * np.exp(0.3 * noise * generator.normal(size=3))
                results.append(line(claimed, (-1, -1), seen, larger, moved, turn + noise * generator.normal(), score))
        for _ in range(int(generator.integers(0, 3))):
            corner = generator.uniform([0, 100], [900, 200])
            labels.append(line("DontCare", (-1, -1), np.r_[corner, corner + generator.uniform(50, 200, 2)], None))
            for _ in range(2):  # detections in it
                inner = np.r_[corner + generator.uniform(0, 20, 2), corner + generator.uniform(30, 60, 2) + 10]
                kind = str(generator.choice(CLASSES))
                place = generator.uniform([-20, 1, 5], [20, 2, 60])
                results.append(line(kind, (-1, -1), inner, SIZES[kind], place, 0.3, float(generator.uniform())))
        truth.append("".join(labels))
        found.append("".join(results))
    return truth, found


def line(kind: str, hidden: Any, box: Any, size: Any, place: Any = None, turn: float = -10, score: Any = None) -> str:
    size = (-1, -1, -1) if size is None else size
    place = (-1000, -1000, -1000) if place is None else place
    numbers = " ".join(f"{v:.2f}" for v in (*box, *size, *place, turn))
    return f"{kind} {hidden[0]} {hidden[1]} 0.10 {numbers}" + ("" if score is None else f" {score:.4f}") + "\n"


def annotations(texts: list[str], scored: bool) -> list[dict[str, Any]]:
    """As OpenPCDet's evaluation takes them."""
    made = []
    for text in texts:
        rows = [words.split() for words in text.splitlines()]
        numbers = np.array([[float(v) for v in row[1:]] for row in rows]).reshape(len(rows), 15 if scored else 14)
        made.append(
            {
                "name": np.array([row[0] for row in rows], dtype="U16"),
                "truncated": numbers[:, 0],
                "occluded": numbers[:, 1],
                "alpha": numbers[:, 2],
                "bbox": numbers[:, 3:7],
                "dimensions": numbers[:, [9, 7, 8]],
                "location": numbers[:, 10:13],
                "rotation_y": numbers[:, 13],
                **({"score": numbers[:, 14]} if scored else {}),
            }
        )
    return made


def polygons_iou(first: np.ndarray, second: np.ndarray, criterion: int = -1) -> np.ndarray:
    """What OpenPCDet's compiled operator computes, of rectangles (x, z, length, width, rotation_y)."""
    import shapely

    def polygon(row: np.ndarray) -> Any:
        x, z, length, width, turn = row
        c, s = np.cos(turn), np.sin(turn)
        corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * [length / 2, width / 2]
        return shapely.Polygon(corners @ np.array([[c, -s], [s, c]]) + [x, z])

    out = np.zeros((len(first), len(second)))
    shapes = [[polygon(row) for row in rows] for rows in (first, second)]
    for i, a in enumerate(shapes[0]):
        for j, b in enumerate(shapes[1]):
            shared = a.intersection(b).area
            whole = {-1: a.area + b.area - shared, 0: a.area, 1: b.area, 2: 1.0}[criterion]
            out[i, j] = shared / whole if shared else 0.0
    return out


def load_evaluation(checkout: Path) -> Any:
    folder = checkout / "pcdet" / "datasets" / "kitti" / "kitti_object_eval_python"
    package = types.ModuleType("kitti_eval_reference")
    package.__path__ = [str(folder)]
    stub = types.ModuleType("kitti_eval_reference.rotate_iou")
    stub.rotate_iou_gpu_eval = polygons_iou
    sys.modules |= {package.__name__: package, stub.__name__: stub}
    spec = importlib.util.spec_from_file_location("kitti_eval_reference.eval", folder / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_precision(source: Path, boost: Path, truth: list[str], found: list[str]) -> dict[str, np.ndarray]:
    """The 41 precisions by class and metric, [3, 41] each, of the benchmark's own program."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        labels, data = folder / "label_2", folder / "results" / "data"
        labels.mkdir()
        data.mkdir(parents=True)
        for i, (label, result) in enumerate(zip(truth, found)):
            (labels / f"{i:06d}.txt").write_text(label)
            (data / f"{i:06d}.txt").write_text(result)
        # Its statistics have six decimals; for this comparison more.
        (folder / "evaluate.cpp").write_text(source.read_text().replace('"%f "', '"%.15f "'))
        build = [
            "g++",
            "-O1",
            "-w",
            f"-I{boost}",
            f"-I{source.parent}",
            str(folder / "evaluate.cpp"),
            "-o",
            str(folder / "evaluate"),
        ]
        subprocess.run(build, check=True, stderr=subprocess.DEVNULL)
        run = [str(folder / "evaluate"), str(labels), str(folder / "results")]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kinds = ("image", "bev", "3d")
        names = {k: f"stats_{{}}_{n}.txt" for k, n in zip(kinds, ("detection", "detection_ground", "detection_3d"))}
        out = {}
        for metric, name in names.items():
            for kind in CLASSES:
                path = folder / "results" / name.format(kind.lower())
                out[f"{kind} {metric}"] = np.loadtxt(path)[:3]
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=70)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--devkit", type=Path, help="evaluate_object_3d_offline.cpp")
    parser.add_argument("--boost", type=Path, help="folder of boost's headers", default=Path("/usr/include"))
    given = parser.parse_args()
    reference = load_evaluation(given.checkout)
    truth, found = random_frames(given.frames, given.seed)
    least = np.tile(np.array([[[0.7, 0.5, 0.5]]]), (1, 3, 1))
    curves = []
    for metric in range(3):
        labels, results = annotations(truth, False), annotations(found, True)
        curves.append(reference.eval_class(labels, results, [0, 1, 2], [0, 1, 2], metric, least)["precision"][:, :, 0])
    precision = np.stack(curves, 1)  # class, metric, difficulty, 41
    ap = {"at_40": reference.get_mAP_R40(precision).tolist(), "at_11": reference.get_mAP(precision).tolist()}
    given.out.write_text(json.dumps({"truth": truth, "found": found, **ap}, indent=0) + "\n")
    print(f"{given.frames} frames; AP at 40, moderate, by class and metric:\n{np.array(ap['at_40'])[:, :, 1].round(2)}")
    if given.devkit:
        official = official_precision(given.devkit, given.boost, truth, found)
        theirs = np.stack([[official[f"{kind} {metric}"] for metric in ("image", "bev", "3d")] for kind in CLASSES])
        from olivine.downstream.detection.kitti_eval import evaluate
        from olivine.downstream.detection.kitti_format import read_objects

        with tempfile.TemporaryDirectory() as made:
            objects: list[list[Any]] = [[], []]
            for place, texts, scored in ((0, truth, False), (1, found, True)):
                for text in texts:
                    (Path(made) / "one.txt").write_text(text)
                    objects[place].append(read_objects(Path(made) / "one.txt", scored=scored))
        ours = evaluate(objects[0], objects[1])
        print(
            f"largest difference of AP to the benchmark's program: "
            f"{np.abs(ours.at_40 - 100 * theirs[..., 1:].mean(-1)).max():.1e} at 40, "
            f"{np.abs(ours.at_11 - 100 * theirs[..., ::4].mean(-1)).max():.1e} at 11, of percent"
        )


if __name__ == "__main__":
    main()
