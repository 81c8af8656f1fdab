"""Promises of a run: it learns, it resumes to the bit, it refuses what is not its own."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from olivine.common import OlivineError
from olivine.pairs.shards import open_shards
from olivine.train.build import open_validation
from olivine.train.checkpoint import load_backbone, load_checkpoint, newest_checkpoint, prune
from olivine.train.forward import Distiller
from olivine.train.loop import PretrainSummary, pretrain
from olivine.train.settings import PretrainSettings, load_settings

Settings = Callable[..., PretrainSettings]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path in it."""
    found: dict[str, torch.Tensor] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}/{key}")

    walk(load_checkpoint(path), "")
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def whole_run(small_shards: Path, small_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(small_settings(small_shards), out)
    return out


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_stopped_at_any_step_and_resumed_ends_with_the_same_bits(
    at: int,
    whole_run: Path,
    small_shards: Path,
    small_settings: Settings,
    tmp_path: Path,
    sigterm_in: Callable[[int], AbstractContextManager[None]],
) -> None:
    settings, out = small_settings(small_shards), tmp_path / "stopped"
    with sigterm_in(at):
        first = pretrain(settings, out)
    assert first.interrupted == (at < 5) and first.step == at + 1
    torch.manual_seed(99)  # another process would have another state
    second = pretrain(settings, out)
    assert second.resumed_from == at + 1 and second.step == 6
    expected, found = tensors(whole_run / "last.pt"), tensors(out / "last.pt")
    assert set(expected) == set(found) and len(expected) > 50
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    columns = ("step", "loss", "loss_ppkt", "loss_wcd", "gradient_norm", "pairs")
    steps = [[row[c] for c in columns] for row in rows(out / "steps.csv")]
    assert steps == [[row[c] for c in columns] for row in rows(whole_run / "steps.csv")]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_so_does_one_of_weights_of_another_type(
    precision: str,
    small_shards: Path,
    small_settings: Settings,
    tmp_path: Path,
    sigterm_in: Callable[[int], AbstractContextManager[None]],
) -> None:
    settings = small_settings(small_shards, f"run.precision={precision}", "run.steps=3", "image.dtype=float32")
    pretrain(settings, tmp_path / "whole")
    with sigterm_in(1):
        assert pretrain(settings, tmp_path / "stopped").interrupted
    assert pretrain(settings, tmp_path / "stopped").resumed_from == 2
    expected, found = (tensors(tmp_path / name / "last.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(expected[name].dtype == found[name].dtype for name in expected)
    assert expected["/method_state/statistics.mean"].dtype == torch.float64  # α of a change is lost in bfloat16


def test_without_its_last_checkpoint_a_run_goes_on_from_the_newest_and_no_other_takes_its_folder(
    small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    settings, out = small_settings(small_shards, "run.checkpoint_epochs=1"), tmp_path / "run"
    pretrain(settings, out)
    expected = tensors(out / "last.pt")
    (out / "last.pt").unlink()
    refuse(small_settings(small_shards, "seed=7"), out, "another run: seed is 0 there and 7 here")
    summary = pretrain(settings, out)
    assert summary.resumed_from == 5 and summary.notes == ("last.pt is gone, so it went on from epoch-0002.pt",)
    found = tensors(out / "last.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_numbered_checkpoints_go_by_their_number_and_come_though_a_step_is_longer_than_an_epoch(
    small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    for number in (9980, 9990, 10_000):
        (tmp_path / f"epoch-{number:04d}.pt").touch()
    (tmp_path / "epoch-mine.pt").touch()
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["epoch-10000.pt", "epoch-9990.pt", "epoch-mine.pt"]
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch-10000.pt"
    changes = "run.batch=6", "run.group=6", "run.steps=3", "run.checkpoint_epochs=3"  # an epoch has five frames
    pretrain(small_settings(small_shards, *changes), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").glob("epoch-*.pt")] == ["epoch-0003.pt"]


PROCESSES = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
import olivine.train.loop as loop
from olivine.train.forward import Distiller
from olivine.train.settings import read_settings
settings = read_settings(json.loads(sys.argv[1]), "test")
true_step = Distiller.forward
for out, killed_at in json.loads(sys.argv[2]):
    def step(self, ready, step, first_group):
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return true_step(self, ready, step, first_group)
    Distiller.forward = step
    child = os.fork()
    if child == 0:
        print(loop.pretrain(settings, out).resumed_from, flush=True)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == (0 if killed_at is None else -signal.SIGKILL), (out, ended)
"""


def run_in_processes(settings: PretrainSettings, *runs: tuple[Path, int | None]) -> list[int]:
    """The run in each folder in turn, by a process of its own, killed at the start of a step.

    They are forked from one that has imported everything. The steps that the finished ones were resumed from.
    """
    from olivine.common.settings import settings_to_plain

    plain = json.dumps(settings_to_plain(settings)), json.dumps([[str(out), killed_at] for out, killed_at in runs])
    done = subprocess.run([sys.executable, "-c", PROCESSES, *plain], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return [int(line) for line in done.stdout.split()]


@pytest.mark.soak
def test_a_killed_run_falls_back_to_its_last_checkpoint_and_ends_the_same(
    small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    """SIGKILL after its first epoch's checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    from_start, resumed = run_in_processes(small_settings(small_shards), (whole, None), (killed, 4), (killed, None))
    assert from_start == 0 < resumed < 4  # an epoch's end; five frames in batches of two
    expected, found = tensors(whole / "last.pt"), tensors(killed / "last.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [row["step"] for row in rows(killed / "steps.csv")] == ["0", "1", "2", "3", "4", "5"]


def test_workers_change_nothing(whole_run: Path, small_shards: Path, small_settings: Settings, tmp_path: Path) -> None:
    pretrain(small_settings(small_shards, "data.workers=2"), tmp_path / "run")
    expected, found = tensors(whole_run / "last.pt"), tensors(tmp_path / "run" / "last.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_run_does_nothing_again(whole_run: Path, small_shards: Path, small_settings: Settings) -> None:
    before = (whole_run / "last.pt").read_bytes()
    summary = pretrain(small_settings(small_shards), whole_run)
    assert summary.resumed_from == summary.steps == 6
    assert (whole_run / "last.pt").read_bytes() == before


def test_the_checkpoint_holds_the_network_and_where_it_came_from(whole_run: Path, small_shards: Path) -> None:
    from olivine.pairs.shards import open_shards

    network, content = load_backbone(whole_run)
    assert content["data"]["digest"] == open_shards(small_shards).digest
    assert content["data"]["classes"] == ["car", "road", "building", "tree"]
    assert content["settings"]["optimizer"]["lr"] == 0.05
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in content["backbone_state"].items())


def test_validation_picks_the_best_and_numbered_checkpoints_are_kept(
    small_shards: Path, small_settings: Settings, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    held_out = make_shards({"c": 2}, seed=5)
    changes = ("run.steps=10", "run.validate_epochs=1", "run.checkpoint_epochs=1", "run.keep=2", "method.scr=false")
    pretrain(small_settings(small_shards, f"data.validation={held_out}", *changes), tmp_path / "run")
    epochs = rows(tmp_path / "run" / "epochs.csv")
    values = [float(row["validation_loss"]) for row in epochs]
    assert len(values) == 4
    assert load_checkpoint(tmp_path / "run" / "best.pt")["best"] == pytest.approx(min(values), rel=1e-6)
    assert sorted(p.name for p in (tmp_path / "run").glob("epoch-*.pt")) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_held_out_frames_may_hold_a_class_that_the_training_frames_lack(
    small_settings: Settings, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    training, held_out = make_shards({"a": 2}, absent=2), make_shards({"c": 1}, seed=5)
    assert open_shards(training).class_count[2] == 0 < open_shards(held_out).class_count[2]
    changes = (f"data.validation={held_out}", "run.steps=1", "run.validate_epochs=1", "method.scr=false")
    pretrain(small_settings(training, *changes), tmp_path / "run")
    assert float(rows(tmp_path / "run" / "epochs.csv")[-1]["validation_loss"]) > 0


def test_gradient_accumulation_sees_the_same_pairs(
    small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    """In two passes a step draws what it draws in one; only batch norm differs, so the first losses are close."""
    for name, change in (("one", "run.accumulate=1"), ("two", "run.accumulate=2")):
        pretrain(small_settings(small_shards, change, "run.steps=2"), tmp_path / name)
    one, two = (rows(tmp_path / name / "steps.csv")[0] for name in ("one", "two"))
    assert one["pairs"] == two["pairs"] and one["share/car"] == two["share/car"]
    assert float(one["loss_ppkt"]) == pytest.approx(float(two["loss_ppkt"]), rel=0.05)


def test_clipping_bounds_the_step(small_shards: Path, small_settings: Settings, tmp_path: Path) -> None:
    summary = pretrain(
        small_settings(small_shards, "optimizer.clip=1e-9", "run.steps=2", "weight_decay=0"), tmp_path / "r"
    )
    start = load_backbone(summary.out)[1]["backbone_state"]
    from olivine.train.backbones import build_backbone

    fresh = build_backbone("srunet-small", seed=0, first_weights="kaiming").state_dict()
    assert max(float((start[n] - fresh[n]).abs().max()) for n in fresh if n.endswith("kernel")) < 1e-8


# --- refusals -------------------------------------------------------------------------------------------------------


def refuse(settings: PretrainSettings, out: Path, message: str, **options: bool) -> None:
    with pytest.raises(OlivineError, match=message) as caught:
        pretrain(settings, out, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_with_something_else_is_refused(
    whole_run: Path,
    small_shards: Path,
    small_settings: Settings,
    make_shards: Callable[..., Path],
    tmp_path: Path,
) -> None:
    same = small_settings(small_shards)
    refuse(same, whole_run, "holds a run already", resume=False)
    refuse(small_settings(small_shards, "optimizer.lr=0.1"), whole_run, r"another run: optimizer\.lr is 0\.05 there")
    refuse(small_settings(small_shards, "backbone.name=srunet34"), whole_run, r"another run: backbone\.name")
    refuse(small_settings(small_shards, "image.weights=random"), whole_run, "image encoder has other weights")
    other = make_shards({"a": 3, "b": 2}, classes=("car", "road", "building", "bush"))
    refuse(small_settings(other), whole_run, "other prompts")
    refuse(small_settings(make_shards({"a": 2, "b": 1})), whole_run, "its frames are others")
    (tmp_path / "notes.txt").write_text("mine")
    refuse(same, tmp_path, "not empty and holds no run")
    refuse(same, tmp_path / "notes.txt", "is a file")


def test_settings_that_do_not_fit_are_refused(small_shards: Path, small_settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refuse(small_settings(small_shards, "run.accelerator=cuda"), out, "devices asked for cannot be had") if not (
        torch.cuda.is_available()
    ) else None
    refuse(small_settings(small_shards, "run.batch=3", "run.group=2"), out, r"run\.batch.*multiple of 2")
    refuse(small_settings(small_shards, "image.encoder=resnet50"), out, "needs a weights file")
    with pytest.raises(OlivineError, match="no backbone 'resnet'"):
        small_settings(small_shards, "backbone.name=resnet")
    refuse(small_settings(tmp_path / "nowhere"), out, "nowhere")
    refuse(small_settings(small_shards, f"data.validation={tmp_path / 'elsewhere'}"), out, "elsewhere")
    refuse(
        small_settings(small_shards, "voxels.first_channel=4"),
        out,
        r"voxels\.first_channel: a point has 4 columns, not 1 from",
    )
    with pytest.raises(OlivineError, match="seed is -1"):
        small_settings(small_shards, "seed=-1")
    changes = "backbone.name=voxelnet", "voxels.feature=mean", "voxels.first_channel=0", "voxels.feature_channels=4"
    refuse(small_settings(small_shards, *changes), out, "counts voxels from a corner.*--config voxelnet")
    refuse(load_settings("cpu"), out, "no shards given")
    assert not out.exists() or not list(out.glob("*.pt"))


@pytest.mark.parametrize(
    ("warmup", "says"), [("0.0", "leaves no step for the class statistics"), ("1.0", "leaves none for the consistency")]
)
def test_a_warm_up_that_leaves_no_step_is_refused(
    small_shards: Path, small_settings: Settings, tmp_path: Path, warmup: str, says: str
) -> None:
    refuse(small_settings(small_shards, f"method.warmup={warmup}"), tmp_path / "run", says)
    with pytest.raises(OlivineError, match="bias correction with the public code's class means"):
        small_settings(small_shards, "method.bias_correction=true", "method.class_mean=group")


def test_the_steps_say_how_hard_the_consistency_pulls_and_a_collapse_is_told(
    whole_run: Path, small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(whole_run / "steps.csv")
    assert all(1 <= float(row["category_rank"]) <= 64 for row in table)
    assert [bool(row["scr_pull"]) for row in table] == [False] * 3 + [True] * 3
    last = table[-1]
    kappas = [float(value) for name, value in last.items() if name.startswith("kappa/")]
    assert 0 < float(last["scr_pull"]) <= max(kappas) <= 67
    monkeypatch.setattr("olivine.train.methods._olivine_log.rank_of_gram", lambda gram: 1.5)
    summary = pretrain(small_settings(small_shards), tmp_path / "run")
    assert summary.notes == (
        "the category embedding has collapsed: its effective rank is 1.50 (lower method.scr_weight)",
    )


def test_a_loss_that_is_not_finite_stops_with_its_frames_and_terms(
    small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import olivine.train.methods.olivine as step

    monkeypatch.setattr(step, "info_nce", lambda g, f, t: g.sum() * torch.nan)
    refuse(small_settings(small_shards), tmp_path / "run", "step 0 is not finite.*ppkt nan")
    written = json.loads((tmp_path / "run" / "non-finite.json").read_text())
    assert written["step"] == 0 and len(written["frames"]) == 2 and written["terms"]["ppkt"] == "nan"
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(
    small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import olivine.train.methods.olivine as step

    # The root's slope at 0 is infinite: the loss stays finite.
    monkeypatch.setattr(step, "info_nce", lambda g, f, t: (g.sum() * 0).sqrt())
    refuse(small_settings(small_shards), tmp_path / "run", "gradient of step 0 is not finite")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_too_little_memory_for_a_step_names_the_batch_and_what_to_lower(
    small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Distiller, "forward", forward)
    with pytest.raises(OlivineError) as error:
        pretrain(small_settings(small_shards), tmp_path / "run")
    for word in ("run.batch=", "run.accumulate=", "fewer frames at once: --set run.", "2.00 GiB"):
        assert word in str(error.value)


def test_a_folder_where_nothing_was_trained_may_be_taken(
    small_shards: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from olivine.train.forward import Distiller

    def fails(*arguments, **options):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            pretrain(small_settings(small_shards, "optimizer.lr=0.3"), tmp_path / "run")
    summary = pretrain(small_settings(small_shards, "run.steps=2"), tmp_path / "run")
    assert summary.step == 2


def test_a_damaged_or_foreign_checkpoint_is_refused(
    whole_run: Path, small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "cut.pt").write_bytes((whole_run / "last.pt").read_bytes()[:5000])
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    content = torch.load(out / "last.pt", weights_only=True)
    groups = {"state": {}, "param_groups": [*content["optimizer_state"]["param_groups"]] * 2}
    for changed, message in (
        ({key: value for key, value in content.items() if key != "best"}, "best"),
        ({key: value for key, value in content.items() if key != "optimizer_state"}, "optimizer_state"),
        ({**content, "optimizer_state": groups}, "its optimiser is another run's"),
    ):
        torch.save(changed, out / "last.pt")
        refuse(small_settings(small_shards), out, rf"last\.pt: .*{message}.*[Rr]emove it")
    for name, message in [
        ("cut.pt", "cannot be read"),
        ("foreign.pt", "not a checkpoint of olivine"),
        ("no.pt", "no such"),
    ]:
        with pytest.raises(OlivineError, match=message):
            load_checkpoint(tmp_path / name)


def test_held_out_shards_that_change_during_a_run_are_refused(
    small_shards: Path, small_settings: Settings, make_shards: Callable[..., Path], enter_more: Callable[[Path], None]
) -> None:
    held_out = make_shards({"c": 2}, seed=5)
    settings, shards = small_settings(small_shards, f"data.validation={held_out}"), open_shards(small_shards)
    for _ in range(2):
        assert len(list(open_validation(settings, shards, 0, 1))) == 1
    enter_more(held_out)
    with pytest.raises(OlivineError, match="has changed since this run opened it"):
        list(open_validation(settings, shards, 0, 1))


def test_a_run_on_a_set_that_is_not_finished_says_so_first_and_last(
    make_shards: Callable[..., Path],
    enter_more: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from olivine.cli import main

    shards = make_shards({"a": 2})
    enter_more(shards)
    done = PretrainSummary(tmp_path, tmp_path / "last.pt", 1, 1, 0, False, 1.0, 1.0, 1.0, 1.0, 0.0, ("another note",))
    monkeypatch.setattr("olivine.train.loop.pretrain", lambda *_, **__: done)
    arguments = ["pretrain", "--config", "cpu", "--shards", str(shards), "--out", str(tmp_path / "run"), "--json"]
    monkeypatch.setattr("sys.argv", ["olivine", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said, before = capsys.readouterr()
    note = f"{shards} holds 2 of the 3 frames of its split; build-pairs is not finished (olivine status)"
    assert note in before
    first, other = json.loads(said)["notes"]
    assert first.startswith(note) and other == "another note"
