"""A stage as SLURM jobs: an array over its parts and a job after it that merges and checks; pre-training by torchrun.

The scripts are beside this file. SLURM decides when and where; what is finished is seen from the output alone, so a stage
that is submitted again submits the parts with something left to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from ..common import Failure, OlivineError
from .journal import logs_of
from .plan import SEVERAL, Plan, ask_stage, ranges
from .ticket import FILE, VARIABLE, Ticket

_HERE = Path(__file__).parent
_GOES_ON = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_FED",
            "REQUEUE_HOLD", "SPECIAL_EXIT", "RESIZING", "SIGNALING", "STAGE_OUT")  # fmt: skip


@dataclass(frozen=True)
class SlurmSettings:
    """What is asked of SLURM.

    Attributes:
        partition: None for the cluster's default.
        nodes: machines at once.
        gpus: on each of them; processes where the partition has no GPUs.
        cpus: cores of one task. None is one; in pre-training one for each process, and where there are GPUs also for each
            worker of its loader, for one task is a whole machine's.
        parts: array tasks; 0 for four a place, at most one a unit.
        time: limit of one job, as SLURM writes it; None for the partition's.
        wait: come back when the last job has ended, and with its success.
    """

    partition: str | None = None
    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    parts: int = 0
    time: str | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("parts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OlivineError(f"--{name} {value}", remedy=f"give at least {least}")


@dataclass
class Submission:
    """What was submitted.

    Attributes:
        jobs: SLURM's job numbers, by purpose.
        units, units_left: of the stage.
        array: the parts that have something left to do, as SLURM writes them.
        logs: where the jobs' output goes.
        failures: a job that was waited for and failed.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    units: int = 0
    units_left: int = 0
    array: str = ""
    logs: Path = Path()
    failures: list[Failure] = field(default_factory=list)


def submit(command: Sequence[str], settings: SlurmSettings) -> Submission:
    """Submit a stage.

    Args:
        command: of ``olivine``: ``labelgen``, ``build-pairs`` or ``pretrain`` with its options.

    Raises:
        OlivineError: no SLURM here, no such partition, a stage that cannot be submitted or that refuses its options.
    """
    if not command or command[0] not in ("labelgen", "build-pairs", "pretrain"):
        raise OlivineError(
            f"cannot submit {' '.join(command) or 'nothing'}", remedy="labelgen, build-pairs or pretrain"
        )
    for taken in ("--part", "--shard", "--overwrite", "--executor"):
        if any(word == taken or word.startswith(f"{taken}=") for word in command):
            raise OlivineError(f"{taken} cannot be submitted", remedy="leave it out, or run the stage without SLURM")
    has_gpus = _check_cluster(settings)
    if command[0] == "pretrain":
        return _submit_pretrain(command, settings, has_gpus)
    places = settings.nodes * max(1, settings.gpus)
    plan = _plan(command, settings.parts or min(4 * places, SEVERAL))
    result = Submission(units=plan.units, units_left=plan.left, array=ranges(plan.open), logs=plan.logs / "slurm")
    if not plan.open:
        return result
    result.logs.mkdir(parents=True, exist_ok=True)
    for account in plan.accounts:
        account.open()
    Ticket.issue(plan.paths, plan.packages, plan.logs)
    ticket = {VARIABLE: str(plan.logs / FILE)}
    stage = [sys.executable, "-m", "olivine.cli", *command]
    options = [f"--cpus-per-task={settings.cpus or 1}", f"--output={_literal(result.logs)}/%A_%a.log"]
    options += ["--gpus-per-task=1", "--ntasks=1"] if has_gpus and settings.gpus and command[0] == "labelgen" else []
    array = f"--array={result.array}%{places}"
    result.jobs["array"] = _sbatch("array", settings, [array, *options], [str(plan.parts), *stage], ticket)
    after = [f"--dependency=afterany:{result.jobs['array']}", f"--output={_literal(result.logs)}/%j.log"]
    return _last("merge", settings, after, stage, result, ticket)


def _submit_pretrain(command: Sequence[str], settings: SlurmSettings, has_gpus: bool) -> Submission:
    given = [after for word, after in pairwise(command) if word == "--config"]
    given += [word.partition("=")[2] for word in command if word.startswith("--config=")]
    if has_gpus and set(given) <= {"auto"}:  # that is for the machine that trains to say; this one may have no GPU
        command = [*command, "--config", "paper"]
    planned = ask_stage([*command, "--dry-run", "--json"])
    if (world := settings.nodes * max(1, settings.gpus)) not in planned["processes"]:
        raise OlivineError(
            f"a batch of this run does not divide over {world} processes",
            where=f"--nodes {settings.nodes} --gpus {settings.gpus}",
            remedy=f"take {' or '.join(map(str, planned['processes'])) or 'another batch'} in all, or set run.batch",
        )
    result = Submission(logs=logs_of(Path(planned["out"])))
    result.logs.mkdir(parents=True, exist_ok=True)
    processes = max(1, settings.gpus)
    options = [f"--nodes={settings.nodes}", f"--output={_literal(result.logs)}/%j.log"]
    cores = max(settings.cpus or 1, processes)
    if has_gpus:  # one task starts the machine's processes, each with the workers of its loader
        cores = settings.cpus or processes * (1 + planned["workers"])
    options.append(f"--cpus-per-task={cores}")
    options += [f"--gpus-per-node={processes}"] if has_gpus else []
    return _last("pretrain", settings, options, [sys.executable, str(processes), *command], result)


def _last(
    name: str,
    settings: SlurmSettings,
    options: Sequence[str],
    arguments: Sequence[str],
    result: Submission,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Submission:
    """Submit the job that the stage ends with, and wait for it where asked to."""
    job = result.jobs[name] = _sbatch(name, settings, options, arguments, variables)
    if settings.wait and (state := _end_of(job)) != "COMPLETED":
        result.failures.append(Failure(f"job {job}", f"{state.lower()}; see {result.logs / job}.log"))
    return result


def _end_of(job: str) -> str:
    """The state that a job ends in.

    `sbatch --wait` looks ever more seldom, at last every half minute; this looks after 1.2 times the last pause.
    """
    pause = 0.5  # seconds
    while True:
        shown = _run(["scontrol", "--oneliner", "show", "job", job])
        state = dict(word.partition("=")[::2] for word in shown.stdout.split()).get("JobState", "")
        if "Invalid job id" in shown.stderr:
            raise OlivineError(f"SLURM does not know job {job} any more", remedy="look at its log, or submit again")
        if state and state not in _GOES_ON:  # no state: the controller is away for a moment
            return state
        time.sleep(pause)
        pause = min(1.2 * pause, 10)


def _literal(path: Path) -> str:
    """A path as SLURM writes it in a pattern of file names, where a percent sign begins a number of the job's."""
    return str(path).replace("%", "%%")


def _sbatch(
    script: str,
    settings: SlurmSettings,
    options: Sequence[str],
    arguments: Sequence[str],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Submit a script; returns the job's number.

    Args:
        variables: of the job's environment. They are sbatch's own too, which hands them on: in ``--export`` a comma of
            a path would begin the next variable.
    """
    general = ["--parsable", f"--job-name=olivine-{script}"]
    general += [f"--partition={settings.partition}"] if settings.partition else []
    general += [f"--time={settings.time}"] if settings.time else []
    command = ["sbatch", *general, "--export=ALL", *options, str(_HERE / f"{script}.sbatch"), *arguments]
    done = _run(command, {**os.environ, **variables})
    job = done.stdout.strip().split(";")[0]
    if done.returncode:
        reason = done.stderr.strip().removeprefix("sbatch: error: ").splitlines()
        raise OlivineError(
            f"sbatch refuses the job: {(reason or ['no reason given'])[0]}",
            remedy="look with: sinfo; --cpus sets the cores",
        )
    return job


def _check_cluster(settings: SlurmSettings) -> bool:
    """Raise unless SLURM answers and has what is asked for; returns whether the partition has GPUs."""
    if shutil.which("sbatch") is None:
        raise OlivineError(
            "no SLURM here (no sbatch)", remedy="run this on a machine that can submit, or CLUSTER=local"
        )
    listed = _run(["sinfo", "--noheader", "--format=%P %D %G"])
    if listed.returncode:
        raise OlivineError(
            f"SLURM does not answer ({(listed.stderr.strip().splitlines() or ['no reason given'])[0]})",
            remedy="look with: scontrol ping",
        )
    rows = [line.split() for line in listed.stdout.splitlines()]
    names = sorted({row[0].rstrip("*") for row in rows})
    wanted = settings.partition
    mine = [row for row in rows if (row[0].rstrip("*") == wanted if wanted else row[0].endswith("*"))]
    if not mine:
        what = f"no partition {wanted!r}" if wanted else "the cluster has no default partition"
        raise OlivineError(what, where="--partition", remedy=f"choose one of: {', '.join(names)}")
    if (nodes := sum(int(row[1]) for row in mine)) < settings.nodes:
        raise OlivineError(f"partition {mine[0][0]} has {nodes} nodes", where="--nodes", remedy=f"ask for {nodes}")
    return any("gpu" in row[2] for row in mine)


def has_jobs() -> bool:
    """Whether a job of this user's that :func:`submit` made runs or waits; False where there is no SLURM."""
    if shutil.which("squeue") is None:
        return False
    names = ",".join(f"olivine-{script}" for script in ("array", "merge", "pretrain"))
    return bool(
        _run(["squeue", "--noheader", f"--user={os.getuid()}", f"--name={names}", "--format=%i"]).stdout.strip()
    )


def _plan(command: Sequence[str], parts: int) -> Plan:
    plan = Plan.from_plain(ask_stage([*command, "--plan", str(parts)]))
    if plan.units < parts:  # rather fewer tasks than tasks with nothing to do
        plan = Plan.from_plain(ask_stage([*command, "--plan", str(plan.units)]))
    return plan


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, errors="replace")
