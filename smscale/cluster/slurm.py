"""Workers as Slurm jobs: scripts by dask-jobqueue, the scheduler in this process, ended jobs asked for again."""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from smscale import owners
from smscale.cluster import certificates, tls
from smscale.cluster.profile import Group, Slurm, mib, seconds, size
from smscale.cluster.start import WORKER_MEMORY, Need, Started, begin, wanted
from smscale.errors import RecipeError

if TYPE_CHECKING:
    from distributed import Security

#: Between two looks at the queue: less would burden a controller that many share.
LOOK_SECONDS = 5.0
#: A command of Slurm's that takes longer asks a controller that does not answer.
COMMAND_SECONDS = 30.0
#: A job that ended sooner is asked for again later each time, up to so late.
SHORT_SECONDS = 60.0
#: So many jobs may end before the first worker comes; then others would, too.
VAIN_ENDS = 3
#: Without a block to do for so long, workers above the least number are given back.
IDLE_SECONDS = 300.0
#: Memory of the process that watches a worker, and of the job's shell.
WATCHER_BYTES = 256 * 2**20
#: Of dask's command: without pages, and nothing of what is served without them either is for other machines.
NO_PAGES = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
#: Validity of the certificates that a run makes for itself.
DAYS = 90


@contextmanager
def submit(profile: Slurm, need: Need) -> Iterator[Started]:
    """A scheduler here, and jobs that join it; both end with the context."""
    from distributed import Client

    _require_slurm(profile)
    with ExitStack() as stack:
        logs = Path(profile.log_folder).expanduser()
        _make(logs, profile)
        security = stack.enter_context(_security(profile, logs))
        cluster = stack.enter_context(
            begin(
                profile,
                {},
                interface=profile.interface,
                port=profile.port or 0,
                protocol="tls://" if security else "tcp://",
                security=security,
            )
        )
        client = stack.enter_context(Client(cluster))
        kinds, least = _kinds(profile, need, _Scripts(profile, cluster.scheduler_address, security, logs))
        jobs = _Jobs(kinds, cluster.scheduler, profile.name, logs)
        stack.callback(jobs.close)
        jobs.start()
        yield Started(client, least, jobs.state)


@dataclass
class _Kind:
    """Jobs of one script: `least` to `most` of them."""

    script: Callable[[str], str]
    least: int
    most: int


@dataclass
class _Slot:
    """One job that is wanted, under the id that it has now; a spare one only while there is something to do."""

    kind: _Kind
    spare: bool
    job: str = ""
    since: float = 0.0
    pause: float = 0.0
    again: float = 0.0

    def wait(self, now: float, short: bool) -> None:
        """Until it is asked for again: not at all, or longer than the last time where that went wrong soon."""
        self.pause = min(max(2 * self.pause, 1), SHORT_SECONDS) if short else 0
        self.again = now + self.pause


class _Jobs:
    """Keeps as many jobs in the queue as are wanted: one that ended (its time, its node, its network) is asked for again."""

    def __init__(self, kinds: Sequence[_Kind], scheduler: Any, profile: str, logs: Path) -> None:
        self.name = f"smscale-{secrets.token_hex(4)}"
        self.scheduler, self.profile, self.logs = scheduler, profile, logs
        self.slots = [_Slot(kind, spare=i >= kind.least) for kind in kinds for i in range(kind.most)]
        self.told: dict[str, str] = {}
        self.ends, self.came, self.trouble = 0, False, ""
        self.worked = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._keep, name="slurm-jobs", daemon=True)

    def start(self) -> None:
        """Submit all; what Slurm refuses now is refused."""
        for slot in self.slots:
            slot.job, slot.since = self._sbatch(slot.kind), time.monotonic()
        self.thread.start()

    def state(self) -> str:
        """What the jobs do, as squeue says."""
        self._notice()
        if self.ends >= VAIN_ENDS and not self.came:
            raise RecipeError(
                f"cluster {self.profile}: {self.ends} jobs ended before a worker came: {self._last_words()} (logs in {self.logs})"
            )
        if self.trouble:
            return self.trouble
        said = sorted(set(self.told.values()))
        return f"{len(self.told)} jobs are {', '.join(said)}" if said else "no job is in the queue"

    def close(self) -> None:
        """Cancel what is there: by name, since a job may be of a command that gave no answer."""
        self.over.set()
        if self.thread.is_alive():
            self.thread.join(COMMAND_SECONDS)
        _command(["scancel", f"--name={self.name}"])

    def _keep(self) -> None:
        while not self.over.wait(LOOK_SECONDS if self.came else LOOK_SECONDS / 5):
            try:
                self._look()
            except Exception as error:  # the controller may come back; and who looks no more would ask for no job again
                self.trouble = _one_line(str(error))

    def _look(self) -> None:
        self.told = dict(self._queue())
        self.trouble, now = "", time.monotonic()
        self._notice()
        if strays := set(self.told) - {slot.job for slot in self.slots}:  # of a command that gave no answer in time
            _command(["scancel", *sorted(strays)])
        for slot in self.slots:
            if slot.spare and now - self.worked > IDLE_SECONDS:
                self._give_back(slot)
            elif slot.job not in self.told:
                self._again(slot, now)

    def _notice(self) -> None:
        """Whether workers came at all, and when they last had something to do."""
        self.came = self.came or bool(self.scheduler.workers)
        if self.scheduler.tasks or not self.came:
            self.worked = time.monotonic()

    def _queue(self) -> Iterator[tuple[str, str]]:
        """State and reason of every job that is in the queue."""
        done = _command(["squeue", "--noheader", "--me", "--name", self.name, "--format", "%i|%T|%r"])
        if done.returncode:
            raise RecipeError(f"squeue: {_one_line(done.stderr)}")
        for line in done.stdout.splitlines():
            job, state, reason = line.strip().split("|", 2)
            yield job, state if reason == "None" else f"{state} ({reason})"

    def _give_back(self, slot: _Slot) -> None:
        if slot.job not in self.told or _command(["scancel", slot.job]).returncode == 0:
            slot.job = ""

    def _again(self, slot: _Slot, now: float) -> None:
        if slot.job:  # it ended since the last look
            self.ends += 1
            slot.wait(now, short=now - slot.since < SHORT_SECONDS)
            slot.job = ""
        if now >= slot.again and not self.over.is_set():
            try:
                slot.job, slot.since = self._sbatch(slot.kind), now
            except RecipeError as error:
                slot.wait(now, short=True)
                self.trouble = _one_line(str(error))

    def _sbatch(self, kind: _Kind) -> str:
        done = _command(["sbatch", "--parsable"], kind.script(self.name))
        if done.returncode:
            raise RecipeError(f"cluster {self.profile}: sbatch refuses the job: {_one_line(done.stderr)}")
        return done.stdout.strip().split(";")[0]

    def _last_words(self) -> str:
        """The last line of the newest log."""
        logs = sorted(self.logs.glob(f"{self.name}-*.err"), key=lambda path: path.stat().st_mtime)
        for path in reversed(logs):
            if lines := [line for line in path.read_text(errors="replace").splitlines() if line.strip()]:
                return _one_line(lines[-1])[:300]
        return "they said nothing"


@dataclass(frozen=True)
class _Job:
    """What is asked of Slurm for so many workers: `memory` is what they hold together, `whole` that of the job (bytes)."""

    workers: int
    memory: int
    whole: int
    group: Group | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scripts:
    """Texts of a run's jobs, by dask-jobqueue."""

    profile: Slurm
    scheduler: str
    security: Security | None
    logs: Path

    def of(self, name: str, asked: _Job) -> str:
        """The script of such a job."""
        from dask_jobqueue.slurm import SLURMJob

        profile, group = self.profile, asked.group
        job = SLURMJob(
            self.scheduler,
            name="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}",
            job_name=name,
            queue=(group and group.partition) or profile.partition,
            account=profile.account,
            walltime=profile.walltime,
            cores=asked.workers,
            processes=asked.workers,
            memory=f"{asked.memory}B",
            job_mem=mib(asked.whole),
            python=shlex.quote(str(Path(profile.python or sys.executable).expanduser())),
            interface=profile.interface,
            protocol="tls://" if self.security else None,
            security=self.security,
            death_timeout=int(seconds(profile.connect_timeout)),
            local_directory=profile.local_folder or "${TMPDIR:-/tmp}",
            log_directory=str(self.logs),
            worker_extra_args=[*NO_PAGES, *(["--resources", "GPU=1"] if group and group.gpu else [])],
            job_script_prologue=[*profile.environment, *_exports(profile), *asked.lines],
            job_extra_directives=_directives(group, profile),
        )
        return str(job.job_script())


def _kinds(profile: Slurm, need: Need, scripts: _Scripts) -> tuple[list[_Kind], int]:
    """The jobs that a profile asks for, and the workers with which a run begins."""
    workers = wanted(profile, need)
    least, most = (math.ceil(n / profile.cores) for n in (workers.min, workers.max))
    held = profile.cores * size(need.memory)
    whole = size(profile.memory) if profile.memory else held + profile.cores * WATCHER_BYTES
    if whole < held:
        raise RecipeError(
            f"cluster {profile.name}: key memory: found {profile.memory}, which does not hold {profile.cores} workers of the recipe's "
            f"resources.memory_per_worker {need.memory}: expected at least {mib(held)}, or fewer cores"
        )
    named = profile.groups
    blind = ("export CUDA_VISIBLE_DEVICES=",) if any(group.gpu for group in named.values()) else ()
    plain = _Job(profile.cores, held, whole, lines=blind)
    made = [_Kind(partial(scripts.of, asked=plain), least, most)]
    for group in named.values():
        memory = need.with_gpu(group.memory, group.gpu)
        one = _Job(1, memory, memory + WATCHER_BYTES, group)
        made.append(_Kind(partial(scripts.of, asked=one), 0, group.workers))
    return made, workers.min


def _exports(profile: Slurm) -> list[str]:
    """Settings on the nodes: dask's, and what other libraries must not see."""
    values = {
        **WORKER_MEMORY,
        "distributed.comm.timeouts.connect": f"{seconds(profile.connect_timeout)}s",
        "distributed.admin.low-level-log-length": 0,
    }
    named = {f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": value for key, value in values.items()}
    # Lightning would count Slurm's tasks as its own processes.
    return [*(f"export {name}={value}" for name, value in named.items()), "unset SLURM_NTASKS"]


def _directives(group: Group | None, profile: Slurm) -> list[str]:
    """The profile's and the group's; a GPU of which neither says a word is asked for in Slurm's general way."""
    own = [*profile.directives, *(group.directives if group else ())]
    silent = group is not None and group.gpu and not any("gpu" in line for line in own)
    return [*own, "--gres=gpu:1"] if silent else own


@contextmanager
def _security(profile: Slurm, logs: Path) -> Iterator[Security | None]:
    """The profile's certificates, or some that end with the run, or none where the profile says so."""
    if profile.security == "none":
        yield None
        return
    if profile.tls is not None:
        yield tls.security(profile.tls, profile)
        return
    _sweep(logs)
    folder = logs / f"tls-{owners.this_process()}-{secrets.token_hex(8)}"
    try:
        made = certificates.make(folder, DAYS)
        (folder / certificates.CA_KEY).unlink()  # nobody else is let in
        yield tls.security(made, profile)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(logs: Path) -> None:
    """Remove the keys of runs that were killed: those of this machine, and all that are too old to be of use."""
    for left in logs.glob("tls-*"):
        with suppress(OSError):  # another run does the same
            old = time.time() - left.stat().st_mtime > DAYS * 86400
            if old or owners.is_gone(left.name.removeprefix("tls-").rpartition("-")[0]):
                shutil.rmtree(left, ignore_errors=True)


def _require_slurm(profile: Slurm) -> None:
    where = f"cluster {profile.name}"
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise RecipeError(f"{where}: no Slurm here: {command} is not on PATH; start the run on a login node")
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue  # noqa: F401
    except ImportError:
        raise RecipeError(f"{where}: dask-jobqueue is not installed: pip install 'smscale[cluster]'") from None
    finally:  # version 0.9 takes Ctrl-C for itself when it is imported, and would end the run without a word
        signal.signal(signal.SIGINT, interrupt)
    found = psutil.net_if_addrs()
    if profile.interface is not None and profile.interface not in found:
        raise RecipeError(f"{where}: key interface: found {profile.interface!r}, expected one of {', '.join(found)}")
    done = _command(["sinfo", "--noheader", "--format", "%P"])
    if done.returncode:
        raise RecipeError(f"{where}: Slurm does not answer: {_one_line(done.stderr)}")


def _make(folder: Path, profile: Slurm) -> None:
    if not re.fullmatch(r"[\w./~+-]+", str(folder)):  # it stands in the jobs' scripts
        raise RecipeError(
            f"cluster {profile.name}: key log_folder: found {str(folder)!r}, expected a path of plain letters"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"cluster {profile.name}: key log_folder: {folder} cannot be made ({error.strerror})"
        ) from None
    if not os.access(folder, os.W_OK):
        raise RecipeError(f"cluster {profile.name}: key log_folder: {folder} cannot be written")


def _command(arguments: list[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(arguments, input=given, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            arguments, 1, "", f"{arguments[0]} gave no answer within {COMMAND_SECONDS:.0f} s"
        )
    except OSError as error:
        return subprocess.CompletedProcess(arguments, 1, "", f"{arguments[0]} does not start ({error.strerror})")


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no reason is given"
