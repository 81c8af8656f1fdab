"""How far a job is, seen from outside; plans; and what is said of bad input before any work."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from olivine.cluster import slurm
from olivine.cluster.journal import SILENT, Account, Journal, driver_lives
from olivine.cluster.plan import Plan, ranges
from olivine.cluster.ray_actors import RayCluster
from olivine.cluster.ray_torchrun import check_room
from olivine.cluster.slurm import SlurmSettings, submit
from olivine.cluster.status import find_jobs, read_status, watch_jobs
from olivine.cluster.ticket import Ticket, check_environment
from olivine.commands.defaults import choose_executor, gpus
from olivine.common import OlivineError, write_json, writer_name


def _job(tmp_path: Path, done: int, units: int) -> Path:
    """An output folder with ``done`` records, and its empty account."""
    (tmp_path / "out/units").mkdir(parents=True)
    for k in range(done):
        (tmp_path / f"out/units/u{k}.json").write_text("{}")
    logs = tmp_path / "out.logs"
    (logs / "drivers").mkdir(parents=True)
    write_json(logs / "job.json", {"job": "test", "out": "../out", "units": units})
    return logs


def _events(logs: Path, driver: str, events: list[tuple[float, str, str]]) -> Path:
    path = logs / "drivers" / f"{driver}.jsonl"
    lines = [{"time": t, "unit": u, "state": s, **({"error": "bad"} if s == "failed" else {})} for t, u, s in events]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_done_running_failed_rate_and_time_left(tmp_path: Path) -> None:
    logs, now = _job(tmp_path, 4, 20), time.time()
    here = f"{writer_name()}-abc"
    begun = [(now - 100 + 15 * k, f"u{k}", "running") for k in range(6)]
    ended = [(now - 85 + 15 * k, f"u{k}", "done") for k in range(4)]
    _events(logs, here, sorted([*begun, *ended, (now - 5, "u5", "failed")]))
    status = read_status(logs, now)
    assert (status.units, status.done, status.running, status.waiting) == (20, 4, 1, 14)
    assert [(f.unit, f.reason) for f in status.failures] == [("u5", "bad")]
    assert status.rate == pytest.approx(5 / 100) and status.seconds_left == pytest.approx(15 / 0.05)


def test_what_a_dead_driver_had_in_hand_is_waiting_again(tmp_path: Path) -> None:
    logs, now = _job(tmp_path, 0, 3), time.time()
    _events(logs, f"{writer_name(999999999)}-abc", [(now, "u0", "running")])
    gone = _events(logs, "elsewhere-12-abc", [(now, "u1", "running")])
    _events(logs, "elsewhere-13-abc", [(now, "u2", "running")])
    os.utime(gone, (now - 100, now - 100))  # no heartbeat any more
    status = read_status(logs, now)
    assert (status.running, status.waiting) == (1, 2) and status.seconds_left is None


def test_a_failure_that_a_later_run_mended_is_none(tmp_path: Path) -> None:
    logs, now = _job(tmp_path, 1, 1), time.time()
    _events(logs, "a-1-a", [(now - 9, "u0", "failed")])
    _events(logs, "b-1-a", [(now - 5, "u0", "running"), (now - 4, "u0", "done")])
    assert read_status(logs, now).failures == [] and read_status(logs, now).done == 1


def test_jobs_are_found_by_their_output_and_from_above(tmp_path: Path) -> None:
    logs = _job(tmp_path, 0, 1)
    assert find_jobs(tmp_path / "out") == find_jobs(tmp_path) == find_jobs(logs) == [logs]
    with pytest.raises(OlivineError, match="no job has left an account here"):
        find_jobs(tmp_path / "elsewhere")


def test_what_a_killed_driver_left_half_written_in_the_account_goes_when_it_is_opened_again(tmp_path: Path) -> None:
    logs = _job(tmp_path, 1, 1)
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    host = writer_name().rpartition("-")[0]
    (logs / f".job.json.partial-{host}-{dead.strip()}-abc123").write_text("{")
    Account(logs, "test", tmp_path / "out", 1).open()
    assert [path.name for path in logs.iterdir() if path.is_file()] == ["job.json"]


def test_a_watch_follows_jobs_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = _job(tmp_path, 1, 4)
    _events(logs, f"{writer_name()}-abc", [])  # a driver that lives, and has begun nothing yet
    shown = []

    @contextmanager
    def bar(description: str, total: int, unit: str, before: int) -> Iterator[Callable[[int], None]]:
        shown.append((before, total))
        yield shown.append

    def one_more(seconds: float) -> None:
        (tmp_path / f"out/units/u{len(shown) - 1}.json").write_text("{}")

    monkeypatch.setattr("olivine.cluster.status.progress", bar)
    monkeypatch.setattr("olivine.cluster.status.time.sleep", one_more)
    (status,) = watch_jobs(tmp_path / "out", idle=0)
    assert shown == [(1, 4), 0, 1, 1, 1] and (status.done, status.unfinished) == (4, 0)


def test_a_watch_ends_where_nobody_works_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = _job(tmp_path, 1, 2)
    _events(logs, f"{writer_name(999999999)}-abc", [(time.time(), "u1", "running")])  # was killed
    queue = iter([True, False])
    monkeypatch.setattr("olivine.cluster.status.has_jobs", lambda: next(queue))  # SLURM may bring another one
    (status,) = watch_jobs(tmp_path, seconds=0, idle=0)
    assert (status.done, status.running, status.waiting, status.drivers) == (1, 0, 1, 0)
    assert next(queue, None) is None


def test_ctrl_c_ends_a_watch_in_one_line(tmp_path: Path) -> None:
    logs = _job(tmp_path, 1, 4)
    _events(logs, f"{writer_name()}-abc", [])
    ours, theirs = pty.openpty()  # where a bar is drawn, as for a user
    command = [sys.executable, "-m", "olivine.cli", "status", str(logs), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True)
    os.close(theirs)
    said = b""
    while b"1/4" not in said:
        said += os.read(ours, 1000)
    os.killpg(process.pid, signal.SIGINT)
    with suppress(OSError):  # how a terminal's other side says that there is no more
        while more := os.read(ours, 1000):
            said += more
    assert process.wait() == 1 and process.stdout is not None and process.stdout.read() == ""
    assert said.count(b"olivine: interrupted") == 1 and b"Traceback" not in said
    os.close(ours)


def test_a_plan_names_the_parts_with_something_left(tmp_path: Path) -> None:
    # Units 0..9 of one split and 0..2 of another, in parts of every fourth: 5 is in part 1, 2 in part 2.
    one, other = [k != 5 for k in range(10)], [k != 2 for k in range(3)]
    accounts = [Account(tmp_path / f"out.logs/{s}", "test", tmp_path / f"out/{s}", n) for s, n in (("a", 10), ("b", 3))]
    plan = Plan.of(tmp_path, list(zip(accounts, (one, other))), 4, [tmp_path], ["olivine"])
    assert (plan.units, plan.left, plan.open) == (13, 2, (1, 2))
    assert Plan.from_plain(json.loads(json.dumps(plan.to_plain()))) == plan
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and ranges([]) == ""


# -- bad input -------------------------------------------------------------------------------------


def test_a_worker_that_does_not_see_the_drivers_folder_is_refused(tmp_path: Path) -> None:
    ticket = Ticket.issue([tmp_path], ["olivine", "numpy"], tmp_path)
    ticket.check()
    with pytest.raises(OlivineError, match=r"does not see this folder.*share under the same path"):
        Ticket.issue([tmp_path / "not mounted"], ["olivine"]).check()
    (tmp_path / "ticket.json").unlink()  # a folder of that name is there, but another one
    with pytest.raises(OlivineError, match="does not see this folder"):
        ticket.check()


def test_two_drivers_of_one_folder_leave_each_other_their_tickets(tmp_path: Path) -> None:
    one, other = (Ticket.of_driver([tmp_path], ["olivine"], tmp_path) for _ in range(2))
    one.check()
    one.withdraw()
    other.check()
    other.withdraw()
    assert not list(tmp_path.iterdir())


def test_a_worker_with_other_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = Ticket.issue([tmp_path], ["olivine", "numpy"], tmp_path)
    (tmp_path / "site/numpy-9.9.dist-info").mkdir(parents=True)
    (tmp_path / "site/numpy-9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(OlivineError, match=r"has other packages: numpy 9\.9 \(here .*Install the same versions"):
        ticket.check()
    monkeypatch.setenv("OLIVINE_TICKET", str(tmp_path / "ticket.json"))
    with pytest.raises(OlivineError, match="has other packages"):
        check_environment()
    monkeypatch.setenv("OLIVINE_TICKET", str(tmp_path / "gone/ticket.json"))
    with pytest.raises(OlivineError, match="does not see this folder"):
        check_environment()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ([], "cannot submit nothing"),
        (["probe"], "cannot submit probe"),
        (["labelgen", "--part", "0/2"], "--part cannot be submitted"),
        (["labelgen", "--overwrite"], "--overwrite cannot be submitted"),
        (["labelgen"], "no SLURM here"),
    ],
)
def test_what_cannot_be_submitted_is_said(command: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OlivineError, match=says):
        submit(command, SlurmSettings())


def test_more_than_a_ray_cluster_has_is_refused_whoever_is_at_work_there() -> None:
    head, small, large = {}, {"CPU": 1.0}, {"CPU": 4.0, "memory": 1e9}
    assert check_room([head, small, large, large], 2, 4) == "2 machines with 4 cores each"
    assert check_room([head, small, large], 1, 3) == "1 machine with 3 cores"
    with pytest.raises(OlivineError) as error:
        check_room([head, small, large, large], 3, 2)
    assert str(error.value) == (
        "the Ray cluster has no room for 3 machines with 2 cores each: it has 1 machine with 1 core, 2 machines with "
        "4 cores. Ask for no more than that, or start Ray on more machines with: ray start --address=HEAD:PORT"
    )
    with pytest.raises(
        OlivineError, match="2 machines with 2 GPUs each: it has 1 machine with 1 GPU, 1 machine with 2"
    ):
        check_room([large, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 8.0}], 2, 2)  # a process takes a core too
    with pytest.raises(OlivineError, match="it has no core to give"):
        check_room([head], 1, 1)
    with pytest.raises(OlivineError, match="--nodes 0"):
        check_room([large], 0, 1)


@pytest.mark.parametrize(("change", "says"), [({"nodes": 0}, "--nodes 0"), ({"parts": -1}, "--parts -1")])
def test_settings_of_slurm_are_checked(change: dict[str, int], says: str) -> None:
    with pytest.raises(OlivineError, match=says):
        SlurmSettings(**change)  # type: ignore[arg-type]


def test_an_address_where_no_ray_cluster_answers_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for address, says in ((f"127.0.0.1:{free}", "no Ray cluster answers"), ("nonsense", "give host:port")):
        program = f"from olivine.cluster.ray_actors import RayCluster; RayCluster({address!r}).connect()"
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert says.lower() in done.stderr.lower().splitlines()[-1] and time.monotonic() - started < 20


def test_ray_is_imported_by_nothing_but_its_own_executor() -> None:
    code = (
        "import sys, olivine.cli, olivine.pairs.build, olivine.labelgen.run, olivine.cluster.ray_actors;"
        "raise SystemExit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_question_to_a_busy_ray_cluster_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[object] = []
    ray = SimpleNamespace(
        cluster_resources=lambda: {"GPU": 1.0},
        remote=lambda **_: lambda function: SimpleNamespace(remote=lambda *_: function),
        wait=lambda refs, num_returns, timeout: ([], refs),
        cancel=lambda ref, force: cancelled.append(ref),
        get=lambda ref: pytest.fail("would wait for ever"),
    )
    monkeypatch.setattr(RayCluster, "connect", lambda self: ray)
    with pytest.raises(OlivineError, match=r"no worker of the Ray cluster became free within 60 s.*ray status"):
        RayCluster().ask(lambda: 1, (), ())
    assert len(cancelled) == 1


def test_gpus_are_numbered_from_0_whatever_devices_a_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "nvidia2", self / "nvidia3"]))
    assert gpus() == ("0", "1")


def test_a_watch_asks_slurm_for_jobs_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="7\n")

    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_run", run)
    assert slurm.has_jobs() and f"--user={os.getuid()}" in asked[0]


def test_many_gpus_get_no_more_parts_than_an_array_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(slurm, "_check_cluster", lambda settings: True)
    plan = Plan(tmp_path, (), 4, 0, 4, (), (), ())
    monkeypatch.setattr(slurm, "_plan", lambda command, parts: asked.append(parts) or plan)
    submit(["labelgen"], SlurmSettings(nodes=32, gpus=8))
    assert asked == [1000]
    with pytest.raises(OlivineError, match=r"--parts 1001.*1 to 1000"):
        Plan.of(tmp_path, [], 1001, (), ())


def test_executors_are_named() -> None:
    with pytest.raises(OlivineError, match="Choose local or ray"):
        choose_executor("dask", None, 0, 1)
    with pytest.raises(OlivineError, match="--address needs --executor ray"):
        choose_executor("local", "127.0.0.1:6379", 0, 1)


FAKE_SLURM = """#!{python}
import json, os, sys
if "sinfo" in sys.argv[0]:
    print("debug* 4 (null)")
else:
    with open({said!r}, "a") as file:
        print(json.dumps([sys.argv[1:], os.environ.get("OLIVINE_TICKET")]), file=file)
    print(7)
"""


def test_a_path_with_a_comma_or_a_percent_sign_reaches_slurm_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, logs = tmp_path / "bin", tmp_path / "a,B=1 %j" / "out.logs"
    tools.mkdir()
    logs.mkdir(parents=True)
    for name in ("sbatch", "sinfo"):
        (tools / name).write_text(FAKE_SLURM.format(python=sys.executable, said=str(tmp_path / "said")))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    plan = Plan(logs, (), 4, 4, 4, (0, 1, 2, 3), (tmp_path,), ("olivine",))
    monkeypatch.setattr(slurm, "_plan", lambda command, parts: plan)
    submit(["labelgen"], SlurmSettings())
    array, merge = (json.loads(line) for line in (tmp_path / "said").read_text().splitlines())
    for options, ticket in (array, merge):
        assert ticket == str(logs / "ticket.json") and "--export=ALL" in options
        (output,) = (o for o in options if o.startswith("--output="))
        assert str(logs).replace("%", "%%") in output and output.endswith(
            (".logs/slurm/%A_%a.log", ".logs/slurm/%j.log")
        )


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"\xff", b'{"job": 3, "out": "x", "units": 1}', b'{"job": "x", "units": 1}']
)
def test_a_damaged_account_is_one_line(tmp_path: Path, data: bytes) -> None:
    logs = _job(tmp_path, 0, 3)
    (logs / "job.json").write_bytes(data)
    with pytest.raises(OlivineError, match=r"job\.json: .*Delete it and run the job again"):
        read_status(logs)


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    logs, now = _job(tmp_path, 0, 3), time.time()
    path = _events(logs, "elsewhere-x-abc", [(now, "u0", "failed")])
    path.write_bytes(
        path.read_bytes() + b'\xff\n[]\n{"time": "x"}\n{"time": 1, "unit": [], "state": 2}\n' + b"[" * 9999
    )
    assert [f.unit for f in read_status(logs, now).failures] == ["u0"]


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"paths": 3, "versions": {}}', b'{"paths": []}'])
def test_a_damaged_ticket_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    (tmp_path / "ticket.json").write_bytes(data)
    monkeypatch.setenv("OLIVINE_TICKET", str(tmp_path / "ticket.json"))
    with pytest.raises(OlivineError, match=r"ticket\.json: .*Submit the job again"):
        check_environment()


@pytest.mark.parametrize("owner", [b"\xff\xfe", b"../../../etc/passwd", b"nobody", b"a\0b.jsonl", b""])
def test_a_claim_that_is_none_holds_a_unit_for_a_minute_and_no_longer(tmp_path: Path, owner: bytes) -> None:
    with Journal(tmp_path / "logs", "test", tmp_path / "out", 1) as journal:
        claim = tmp_path / "logs" / "claims" / "u"
        claim.write_bytes(owner)
        assert not journal.claim("u")
        old = time.time() - SILENT - 1
        os.utime(claim, (old, old))
        assert journal.claim("u")


@pytest.mark.parametrize("owner", ["", "elsewhere-1-abc.jsonl"])
def test_a_clock_that_was_set_back_leaves_no_claim_that_is_waited_for_all_day(tmp_path: Path, owner: str) -> None:
    with Journal(tmp_path / "logs", "test", tmp_path / "out", 1) as journal:
        tomorrow = time.time() + 86_400
        claim, driver = tmp_path / "logs" / "claims" / "u", tmp_path / "logs" / "drivers" / "elsewhere-1-abc.jsonl"
        for path, content in ((claim, owner), (driver, "")):
            path.write_text(content)
            os.utime(path, (tomorrow, tomorrow))
        assert journal.claim("u")


def test_a_driver_that_is_long_silent_is_dead_though_another_process_has_its_number(tmp_path: Path) -> None:
    """After a reboot, or in a container whose processes are numbered alike: nobody waits for it."""
    path = tmp_path / f"{writer_name()}-abc.jsonl"
    path.touch()
    assert driver_lives(path)
    os.utime(path, (time.time() - 2 * SILENT,) * 2)
    assert not driver_lives(path)
