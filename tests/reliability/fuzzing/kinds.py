"""Every kind of file of the world: which files, how they are changed, what reads them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from olivine.common.settings import settings_to_plain

from .mutations import (
    change_archive,
    change_bytes,
    change_image,
    change_json,
    change_json_lines,
    change_text,
    change_values,
)
from .world import SHORT

NOW = 2e9  # of the accounts of jobs, which speak of the last minutes


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        files: of the world.
        change: the mutation of its bytes.
        read: reads the file as the commands do; gives what came of it, for comparison.
        recorded: a digest of the file is on record, so that a changed result is wrong.
        commands: arguments of whole commands that read it; OUT stands for a folder of the case's own.
        weight: share of the cases, relative to the others.
    """

    files: list[Path]
    change: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], Any]
    recorded: bool = False
    commands: tuple[tuple[str, ...], ...] = ()
    weight: float = 1.0


def plain_digest(*values: Any) -> str:
    """SHA-256 of what a reader gave: arrays, tensors, dataclasses, plain values."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            state.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif torch.is_tensor(value):
            state.update(plain_digest(value.detach().numpy()).encode())
        elif isinstance(value, dict):
            state.update(plain_digest(*(x for item in value.items() for x in item)).encode())
        elif isinstance(value, (list, tuple)):
            state.update(plain_digest("[", *value).encode())
        else:
            state.update(repr(value).encode())
    return state.hexdigest()


def kinds_of(world: Path) -> dict[str, Kind]:
    """Every kind of file with its reader."""
    from olivine.cluster.status import read_status
    from olivine.downstream.results import read_result
    from olivine.downstream.weights import import_weights
    from olivine.labelgen.images import read_image
    from olivine.labelgen.import_labels import load_class_map
    from olivine.labelgen.labeler import ImageTask
    from olivine.labelgen.oracle import parse_error_model, read_world_classes
    from olivine.labelgen.prompts import DEFAULT_VOCABULARY, load_vocabulary
    from olivine.labelgen.store import open_store, read_score_map, read_values
    from olivine.pairs.feature_maps import FeatureMaps
    from olivine.pairs.shards import open_shards
    from olivine.readers import open_dataset
    from olivine.readers.index import open_index
    from olivine.report.contents import read_losses, read_scores
    from olivine.study.config import load_study
    from olivine.study.rows import read_rows
    from olivine.train.checkpoint import load_backbone
    from olivine.train.metrics_log import MetricsLog
    from olivine.train.run_folder import read_identity
    from olivine.train.settings import load_settings

    labels, pairs, run_folder = Path("data/labels/nuscenes"), "data/pairs/nuscenes", "runs/cpu"
    index = open_index(labels / "frames")
    cameras = {
        path: (frame, c)
        for frame in index.frames()
        for c, camera in enumerate(frame.cameras)
        for path in (
            frame.image_path(camera),
            labels / f"{camera.key}.png",
            labels / "segments" / f"{camera.key}.png",
            labels / "scores" / f"{camera.key}.png",
            *frame.image_truth[c],
        )
    }
    cameras = {Path(os.path.relpath(path)): found for path, found in cameras.items()}
    clouds = {Path(os.path.relpath(frame.root / frame.point_file)): frame for frame in index.frames()}
    point_labels = {Path(os.path.relpath(frame.root / frame.point_label_file)): frame for frame in index.frames()}
    kitti = open_dataset("semantickitti", "kitti").frames()

    def frames_of(name: str, folder: str) -> Callable[[Path], Any]:
        def read(_: Path) -> Any:
            return [repr(frame) for frame in open_dataset(name, folder).frames()]

        return read

    def task(path: Path) -> ImageTask:
        frame, c = cameras[path]
        return ImageTask(frame, c)

    def label_map(path: Path) -> Any:
        frame, c = cameras[path]
        store = open_store(labels)
        camera = frame.cameras[c]
        return [read(camera, frame.scene) for read in (store.label_map, store.segment_map, store.score_map)]

    def score_map(path: Path) -> Any:
        """As it is imported: without its digest."""
        frame, c = cameras[path]
        return read_score_map(path, "x", frame.cameras[c], label=open_store(labels).label_map(frame.cameras[c]))

    def store(_: Path) -> Any:
        opened = open_store(labels)
        return [opened.classes, *(opened.unit(scene.name) for scene in opened.index().scenes)]

    def frame_index(_: Path) -> Any:
        # Its root has no part in the digest, for a data set may move; the commands are given the root that it names.
        return [repr(frame) for frame in open_index(labels / "frames", "data/nuscenes").frames()]

    def shards(path: Path) -> Any:
        opened = open_shards(Path(*path.parts[:4]))
        return [vars(record) if hasattr(record, "__dict__") else repr(record) for record in opened]

    def kitti_frame(path: Path) -> Any:
        frame = kitti[0] if path.parts[2] == kitti[0].scene else kitti[-1]
        return frame.points(), frame.point_labels()

    def network(path: Path) -> Any:
        found, content = load_backbone(path)
        return found.state_dict(), settings_to_plain_or(content.get("settings")), content.get("method_state")

    def imported(path: Path) -> Any:
        out = Path("scratch/imported/last.pt")
        shutil.rmtree(out.parent, ignore_errors=True)
        import_weights(path, out, load_settings("cpu"))
        return load_backbone(out)[0].state_dict()

    def log(path: Path) -> Any:
        folder = Path("scratch/log")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("steps.csv", "epochs.csv"):
            if path.with_name(name).is_file():
                shutil.copy(path.with_name(name), folder)
        before = MetricsLog(folder, 1)
        means = before.means_of_epoch(0)
        before.close()
        return (
            means,
            (folder / path.name).read_bytes() if path.is_file() else b"",
            read_losses(path) if path.name == "steps.csv" else (),
        )

    def stored_maps(path: Path) -> Any:
        maps = FeatureMaps(path.parent)
        count = len(maps._read_table(0)["crc32"]) // maps.identity["cameras"]
        return [maps.read(0, i, c, False) for i in range(count) for c in range(maps.identity["cameras"])]

    def of(pattern: str) -> list[Path]:
        found = sorted(path for path in Path().glob(pattern) if path.is_file())
        assert found, pattern
        return found

    score, build = ("score-labels", "--out", "OUT"), ("build-pairs", "--workers", "1", "--out", "OUT")
    label = ("labelgen", "--dataset", "nuscenes", "--out", "OUT")
    report = ("report", "--out", "OUT", "--frames", "1", "--run", run_folder)
    train = ("pretrain", "--out", "OUT", "--dry-run")
    return {
        "nuScenes table": Kind(of("data/nuscenes/v1.0-mini/*.json"), change_json, frames_of("nuscenes", "data/nuscenes"), commands=(label,), weight=3),
        "camera image": Kind([p for p in cameras if "samples" in p.parts], change_image, lambda p: read_image(task(p)), commands=(build, report)),
        "point file": Kind(sorted(clouds), change_values, lambda p: clouds[p].points(), commands=(build,)),
        "point labels": Kind(sorted(point_labels), change_values, lambda p: point_labels[p].point_labels(), commands=(build,)),
        "exact masks": Kind(
            [p for p in cameras if "truth" in p.parts], change_image, lambda p: read_values(p, "x", cameras[p][0].cameras[cameras[p][1]]),
            commands=(label, score),
        ),
        "synthetic.json": Kind(of("data/nuscenes/synthetic.json"), change_json, lambda p: read_world_classes(p), commands=(label,)),
        "KITTI calibration": Kind(of("kitti/sequences/*/calib.txt"), change_text, frames_of("semantickitti", "kitti"), weight=2),
        "KITTI times": Kind(of("kitti/sequences/*/times.txt"), change_text, frames_of("semantickitti", "kitti")),
        "KITTI poses": Kind(of("kitti/poses/*.txt"), change_text, frames_of("semantickitti", "kitti")),
        "KITTI image": Kind(of("kitti/sequences/*/image_2/*.png"), change_image, frames_of("semantickitti", "kitti")),
        "KITTI points": Kind(of("kitti/sequences/*/velodyne/*.bin"), change_values, kitti_frame),
        "KITTI labels": Kind(of("kitti/sequences/*/labels/*.label"), change_values, kitti_frame),
        "label manifest": Kind(of("data/labels/nuscenes/manifest.json"), change_json, store, True, (build, score), 2),
        "label unit": Kind(of("data/labels/nuscenes/units/*.json"), change_json, store, False, (build, score), 2),
        "label map": Kind([p for p in cameras if p.parts[:3] == labels.parts and not {"segments", "scores"} & {*p.parts}], change_image, label_map, True, (build, score, report), 2),
        "segment map": Kind([p for p in cameras if "segments" in p.parts], change_image, label_map, True, (build,)),
        "score map": Kind([p for p in cameras if "scores" in p.parts], change_image, label_map, True, (build, score)),
        "imported score map": Kind([p for p in cameras if "scores" in p.parts], change_image, score_map),
        "frame index": Kind(of("data/labels/nuscenes/frames/index.json"), change_json, frame_index, True, (build, score), 2),
        "frames of a scene": Kind(of("data/labels/nuscenes/frames/*.jsonl"), change_json_lines, frame_index, True, (build, score), 2),
        "shard manifest": Kind(of(f"{pairs}/*/manifest.json"), change_json, shards, True, (train, ("build-pairs", "--describe", f"{pairs}/train"))),
        "data set of shards": Kind(of(f"{pairs}/*/dataset.json"), change_json, lambda p: repr(open_shards(p.parent).benchmark), True, (("predict", "--checkpoint", f"{run_folder}/finetune-100", "--out", "OUT"),)),
        "shard metadata": Kind(of(f"{pairs}/*/*.zarr/**/zarr.json"), change_json, shards, True, (("build-pairs", "--check", f"{pairs}/train"),), 2),
        "shard chunk": Kind(of(f"{pairs}/*/*.zarr/**/c/**/*"), change_bytes, shards, True, (("build-pairs", "--check", f"{pairs}/train"),), 2),
        "job account": Kind(of("data/*/nuscenes.logs/**/job.json"), change_json, lambda p: repr(read_status(p.parent, NOW)), commands=(("status", "data/labels/nuscenes"),)),
        "job events": Kind(of("data/*/nuscenes.logs/**/*.jsonl"), change_json_lines, lambda p: repr(read_status(p.parents[1], NOW)), commands=(("status", "data/labels/nuscenes"),)),
        "settings": Kind([Path("cpu.yaml")], change_text, lambda p: repr(load_settings(p)), commands=((*train, "--config", "cpu.yaml"),), weight=2),
        "prompts": Kind([Path("p.yaml")], change_text, lambda p: repr(load_vocabulary(p)), commands=((*label, "--prompts", "p.yaml"),)),
        "error model": Kind([Path("e.yaml")], change_text, lambda p: repr(parse_error_model(str(p))), commands=((*label, "--error", "e.yaml"),)),
        "class map": Kind([Path("c.yaml")], change_text, lambda p: repr(load_class_map(p, DEFAULT_VOCABULARY)), commands=((*label, "--labeler", "import", "--camseg", str(labels), "--classes", "c.yaml"),)),
        "study": Kind([Path("s.yaml")], change_text, lambda p: repr(load_study(p)), commands=(("study", "--config", "s.yaml", "--out", "OUT", "--dry-run"),), weight=2),
        "checkpoint": Kind([Path(run_folder, "last.pt")], change_archive, network, True, (("export", "--checkpoint", run_folder, "--out", "OUT/x.pt"),), 2),
        "fine-tuned checkpoint": Kind([Path(run_folder, "finetune-100/last.pt")], change_archive, network, True, (("predict", "--checkpoint", f"{run_folder}/finetune-100", "--out", "OUT"),)),
        "foreign weights": Kind([Path("backbone.pt")], change_archive, imported, True, (("import-weights", "backbone.pt", "--config", "cpu", "--out", "OUT/last.pt"),), 1),
        "run.json": Kind(of(f"{run_folder}/run.json"), change_json, lambda p: repr(read_identity(p, "x")), commands=(("pretrain", *SHORT, "--out", run_folder),)),
        "steps.csv": Kind(of(f"{run_folder}/steps.csv") + of(f"{run_folder}/epochs.csv"), change_text, log, commands=(report,)),
        "scores.json": Kind(of("runs-study/runs/*/probe-*/scores.json"), change_json, lambda p: (repr(read_result(p)), [(r["name"], r["scores"]) for r in read_scores(p)]), True),
        "study row": Kind(of("runs-study/rows/*.json"), change_json, lambda p: repr(read_rows([p.parents[1]])), True, (("study", "--merge", "runs-study", "--out", "OUT"),), 2),
        "study.json": Kind(of("runs-study/study.json"), change_json, lambda p: None, False, (("study", "--merge", "runs-study", "--out", "OUT"),), 0.1),
        "stored feature maps": Kind(of("runs-study/features/*/maps-00000.bin"), change_bytes, stored_maps, True),
        "table of stored maps": Kind(of("runs-study/features/*/*.json"), change_json, stored_maps),
    }  # fmt: skip


def settings_to_plain_or(value: Any) -> Any:
    return value if isinstance(value, (dict, type(None))) else settings_to_plain(value)
