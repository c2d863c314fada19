"""What goes wrong, and when: seeded moments of a run, fates of its process, a cluster whose parts can be ended, and the count of it all."""

import ctypes
import errno
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import psutil
import watched
from hosts_here import Hosts
from lives import STAGES, Life, begun, differing, lead

from smscale import block_task, block_window, cli

#: Parts of a run in their order, and where their records lie.
PHASES = {
    **{p: f"world/ledger/{p}" for p in ("terrain", "land", "calibration", "nature", "files", "smap", "report")},
    **{stage: f"ledger/{stage}" for stage in STAGES},
}
#: How much faster blocks may go than in the undisturbed run, on a machine that does much else.
FASTER = 4
#: What a record holds of how the block went, and files that hold how the run went.
OF_ITS_TIME = ("seconds", "sealed", "failures", "failure")
OF_THE_RUN = ("ledger/runs/", "report/run.html")


# -- what a run leaves ------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, Any]:
    """Every file of a workspace: bytes; records of the ledger without the time that they took."""
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or path.name.startswith(".") or name.startswith(OF_THE_RUN):
            continue  # hidden are the lock, and what a killed writer began
        found[name] = path.read_bytes()
        if "ledger/" in name and name.endswith(".json"):
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k not in OF_ITS_TIME}
    return found


def records(root: Path) -> dict[str, tuple[int, bytes]]:
    """Records of blocks: when they were written, and what they say."""
    found = (path for folder in PHASES.values() for path in (root / folder).glob("[!.]*.json"))
    return {p.relative_to(root).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


# -- a process that notes what it does, and does not do what it is fated not to ----------------------


def _changed(event: str, args: tuple[Any, ...]) -> str:
    """The file or folder that an audited event is about to change; empty where it changes none."""
    if event == "open":
        name, _, flags = args
        return _name(name) if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ""
    if event == "os.rename":
        return _name(args[1])
    return _name(args[0]) if event in ("os.remove", "os.mkdir", "os.rmdir") else ""


def _name(given: Any) -> str:
    return "" if isinstance(given, int) else os.fsdecode(given)


def _watch(root: Path, heard: Callable[[str, str], Any]) -> None:
    """Call `heard(event, path)` before this process changes a file or folder below a root."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        name = _changed(event, args)
        if name.startswith(f"{root}/"):
            heard(event, name)

    sys.addaudithook(hook)


def note_blocks(path: Path) -> None:
    """Here, and in the workers that this process begins."""
    watched.note_blocks(path)
    dask.config.set({watched.BEGUN: str(path), "distributed.worker.preload": [watched.__file__]})


def note_changes(root: Path, path: Path) -> None:
    """Write a line for every change of a file below a root."""
    line = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _watch(root, lambda event, name: os.write(line, f"{event} {name}\n".encode()))


def end_at(root: Path, mark: Path | None, n: int, how: str) -> None:
    """What happens before the n-th change of a file after `mark` was written.

    how : "killed", or "full": from then on no file can be written in this process
    """
    armed, so_far = mark is None or mark.exists(), 0

    def heard(event: str, name: str) -> None:
        nonlocal armed, so_far
        if not armed:
            armed = event == "os.rename" and name == str(mark)
            return
        so_far += 1
        if so_far >= n and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if so_far >= n and event in ("open", "os.mkdir", "os.rename"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _watch(root, heard)


# -- the run that nobody disturbs -------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """The workspace of a run, and how it came to be.

    contents : see `contents`
    marks : phase -> the file whose writing ends the phase before; None of the first
    changes : phase -> files and folders that it changes
    seconds : phase -> how long its blocks took, in the order in which they were done
    """

    recipe: Path
    root: Path
    contents: dict[str, Any]
    marks: dict[str, str | None]
    changes: dict[str, int]
    seconds: dict[str, list[float]]

    @classmethod
    def made(cls, recipe: Path, folder: Path) -> "Undisturbed":
        root, log = folder / "run", folder / "changes"
        Life(recipe, root, "none", fates=[partial(note_changes, root, log)]).finish()
        seconds, marks, mark = {}, {}, None
        for phase, where in PHASES.items():
            found = sorted((root / where).glob("[!.]*.json"), key=lambda p: p.stat().st_mtime_ns)
            seconds[phase] = [json.loads(p.read_bytes())["seconds"] for p in found]
            marks[phase] = mark
            last = root / "ledger" / f"{phase}.json" if phase in STAGES else found[-1]
            mark = last.relative_to(root).as_posix()
        lines = log.read_text().splitlines()
        places = [lines.index(f"os.rename {root}/{m}") if m else 0 for m in marks.values()] + [len(lines)]
        changes = {phase: b - a for phase, (a, b) in zip(PHASES, itertools.pairwise(places), strict=True)}
        return cls(recipe, root, contents(root), marks, changes, seconds)

    def moment(self, phase: str, rng: random.Random) -> tuple[int, float]:
        """A seeded moment of a phase: so many blocks done, and so many seconds later, within the next block."""
        taken = self.seconds[phase]
        done = rng.randrange(len(taken)) if len(taken) > 1 else 0
        return done, rng.uniform(0, max(taken[done], 0.05))


# -- a cluster whose parts end -----------------------------------------------------------------------

#: A lost part is given up soon, so that a test is short.
QUICK = {
    "distributed.scheduler.worker-ttl": "20s",
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}
PROFILE = "kind: address\naddress: {}\nworkers: {}\nconnect_timeout: 60s\nstart_timeout: 120s\nlost_timeout: {}\n"


def enter(space: str) -> None:
    """Make this process one of a host of its own (`hosts_here`)."""
    with open(f"/run/netns/{space}") as file:
        assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


def serve(kind: str, arguments: Sequence[str], log: Path, settings: dict[str, Any], space: str) -> None:
    """`dask scheduler` or `dask worker`."""
    from distributed.cli import dask_scheduler, dask_worker

    lead(log)
    if space:
        enter(space)
    dask.config.set({**QUICK, **settings})
    program = {"scheduler": dask_scheduler, "worker": dask_worker}[kind]
    program.main([*arguments, "--no-dashboard"], standalone_mode=False)


class Cluster:
    """A scheduler and two workers under nannies, processes of their own; what ends begins again, as under Slurm or Kubernetes.

    hosts : where they run, if not all on this one
    """

    NAMES = "scheduler", "worker-1", "worker-2"

    def __init__(self, folder: Path, blocks: Path, memory: str = "1.5GiB", hosts: Hosts | None = None) -> None:
        self.folder, self.memory, self.hosts = folder, memory, hosts
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"tcp://{self._address('scheduler')}:{self.port}"
        self.hog = folder / "hog"
        self.settings = {
            "distributed.worker.preload": [watched.__file__],
            watched.BEGUN: str(blocks),
            watched.HOG: str(self.hog),
        }
        self.running: dict[str, Any] = {}
        #: Whether what ends begins again.
        self.tended = True
        self.ended = threading.Event()
        self.keeper = threading.Thread(target=self._keep, daemon=True)

    def _address(self, name: str) -> str:
        return self.hosts.address(self.NAMES.index(name)) if self.hosts else "127.0.0.1"

    def profile(self, lost: str = "90s") -> str:
        path = self.folder / "cluster.yaml"
        path.write_text(PROFILE.format(self.address, 2, lost))
        return str(path)

    def _keep(self) -> None:
        while not self.ended.wait(0.1):
            for name in self.NAMES if self.tended else ():
                if name not in self.running or not self.running[name].is_alive():
                    self.begin(name)

    def begin(self, name: str) -> None:
        """Begin one part."""
        arguments = ["--host", self._address(name)]
        if name == "scheduler":
            arguments += ["--port", str(self.port)]
        else:
            arguments += [self.address, "--nthreads", "1", "--memory-limit", self.memory]
            arguments += ["--local-directory", str(self.folder / name)]
        space = self.hosts.space(self.NAMES.index(name)) if self.hosts else ""
        kind, log = name.partition("-")[0], self.folder / f"{name}.log"
        self.running[name] = begun(serve, kind, arguments, log, self.settings, space)

    def workers(self) -> list[psutil.Process]:
        """The processes that do blocks."""
        nannies = [one for name, one in self.running.items() if name != "scheduler" and one.is_alive()]
        return [worker for nanny in nannies for worker in workers_of(psutil.Process(nanny.pid))]

    def kill(self, what: str, rng: random.Random) -> None:
        """End a part of it: "worker", "nanny", "scheduler", "both workers", or "everything"."""
        awaited(self.workers)
        parts = {"scheduler": ["scheduler"], "nanny": [f"worker-{rng.randint(1, 2)}"], "everything": list(self.running)}
        for name in parts.get(what, ()):
            self.running[name].kill()
        if what in ("worker", "both workers"):
            found = self.workers()
            for worker in found if what == "both workers" else [rng.choice(found)]:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()

    def end(self) -> None:
        self.ended.set()
        self.keeper.join()
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def awaited(workers: Callable[[], list[psutil.Process]], n: int = 1) -> list[psutil.Process]:
    """Workers, once so many are there, whatever became of them before."""
    until = time.monotonic() + 120
    while len(found := workers()) < n:
        assert time.monotonic() < until, "no workers: see their logs"
        time.sleep(0.05)
    return found


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes below one that do blocks: no trackers of resources, no servers of forks."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@contextmanager
def cluster(folder: Path, blocks: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster that ends with the context."""
    folder.mkdir()
    made = Cluster(folder, blocks, **options)
    made.keeper.start()
    try:
        awaited(made.workers, 2)
        yield made
    finally:
        made.end()


# -- the count ---------------------------------------------------------------------------------------


@dataclass
class Fault:
    """One thing that went wrong.

    ended : whether it ended the run
    kept, again : blocks that were done before, and blocks that began once more after it
    """

    where: str
    what: str
    phase: str
    ended: bool
    kept: int
    again: int = 0


@dataclass
class Tally:
    """Everything that went wrong in a session, and what it cost."""

    faults: list[Fault] = field(default_factory=list)
    lost: int = 0
    altered: int = 0

    @property
    def text(self) -> str:
        form = "{:<14}{:<37}{:<13}{:<11}{:>11}{:>12}".format
        lines = [form("where", "what", "phase", "run ended", "done before", "done again")]
        lines += [form(f.where, f.what, f.phase, "yes" if f.ended else "no", f.kept, f.again) for f in self.faults]
        kinds = ", ".join(f"{n} {where}" for where, n in Counter(f.where for f in self.faults).items())
        most = max((f.again for f in self.faults), default=0)
        cost = f"{self.lost} blocks lost, {self.altered} altered, at most {most} done again"
        return "\n".join([*lines, f"{len(self.faults)} faults ({kinds}): {cost}"])


class Chain:
    """One workspace through many faults: after each, what was done stays; at the end all is as in the run that nobody disturbed."""

    def __init__(self, undisturbed: Undisturbed, root: Path, where: str, tally: Tally) -> None:
        self.undisturbed, self.root, self.where, self.tally = undisturbed, root, where, tally
        self.keep_beside(root.parent)
        self.held: dict[str, tuple[int, bytes]] = {}
        self.last: Fault | None = None
        self.again = 0

    def keep_beside(self, folder: Path) -> None:
        """Where the tests' own files lie."""
        self.beside = folder
        self.blocks = folder / f"{self.root.name}.begun"
        self.blocks.touch()

    def life(self, cluster: str, *fates: Callable[[], Any]) -> Life:
        fates = partial(note_blocks, self.blocks), *fates
        return Life(self.undisturbed.recipe, self.root, cluster, fates=fates, beside=self.beside)

    def in_flight(self, fault: Fault) -> int:
        """Blocks that may have been begun and not entered: one in one process, so many packs on two workers."""
        if fault.where == "one process":
            return 1
        phases = list(PHASES)
        near = phases[phases.index(fault.phase) :][:2] if fault.phase else phases  # it may have gone on to the next
        shortest = min(min(self.undisturbed.seconds[phase]) for phase in near) / FASTER
        pack = min(math.ceil(block_task.PACK_SECONDS / max(shortest, 1e-3)), block_window.PACK_MOST)
        return 2 * block_window.IN_FLIGHT_PER_THREAD * pack

    def mark(self, phase: str) -> Path | None:
        """The file whose writing begins a phase."""
        name = self.undisturbed.marks[phase]
        return self.root / name if name else None

    def reach(self, life: Life, phase: str, rng: random.Random) -> None:
        """Wait until a seeded moment of a phase, with at least a block more than there were."""
        done, seconds = self.undisturbed.moment(phase, rng)
        if mark := self.mark(phase):
            _wait_for_file(life, mark)
        folder = self.root / PHASES[phase]
        there = len(list(folder.glob("*.json")))
        most = len(self.undisturbed.seconds[phase]) - 1
        life.wait_for(folder, done if done > there or not there else min(there + 1, most))
        time.sleep(seconds)

    def count(self, what: str, phase: str, ended: bool) -> None:
        """Enter a fault."""
        self._check()
        self.last = Fault(self.where, what, phase, ended, len(self.held))
        self.tally.faults.append(self.last)

    def end(self, life: Life) -> None:
        """The run ends well, and everything is as it must be."""
        said = life.finish()
        assert "Traceback" not in said
        self._check()
        assert cli.main(["verify", str(self.root), "--quiet"]) == 0
        wrong = differing(contents(self.root), self.undisturbed.contents)
        self.tally.altered += len(wrong)
        assert not wrong

    def _check(self) -> None:
        """What was done before the last fault is there as it was; blocks that began once more since are counted."""
        now = records(self.root)
        lost = [name for name in self.held if name not in now]
        altered = [name for name, record in self.held.items() if name in now and now[name] != record]
        self.held = now
        self.tally.lost += len(lost)
        self.tally.altered += len(altered)
        assert not lost, f"{self.last}: lost {lost}"
        assert not altered, f"{self.last}: done again {altered}"
        lines = self.blocks.read_text().splitlines()
        again, self.again = len(lines) - len(set(lines)) - self.again, len(lines) - len(set(lines))
        if self.last is not None:
            self.last.again = again
            assert again <= self.in_flight(self.last), f"{self.last}: more than was in flight"


def _wait_for_file(life: Life, path: Path) -> None:
    until = time.monotonic() + 240
    while not path.exists():
        assert life.process.is_alive(), f"ended before {path}: {life.said}"
        assert time.monotonic() < until, f"no {path}: {life.said}"
        time.sleep(0.005)


def one_line(life: Life) -> str:
    """The one line in which a run that could not go on said why."""
    code, said = life.code(), life.said
    assert code in (1, 2), (code, said)
    assert "Traceback" not in said, said
    told = [line for line in said.splitlines() if line.startswith("smscale: ")]
    assert len(told) == 1, said
    assert re.fullmatch(r"smscale: .+", said.splitlines()[-1]), said
    return told[0]
