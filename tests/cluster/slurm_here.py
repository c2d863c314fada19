"""A Slurm of one's own for tests: munge, a controller and nodes that are all this machine, in one folder, without cgroups.

Nobody else's Slurm is touched: SLURM_CONF names the folder's own configuration, ports are free ones, the key is its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
UP_SECONDS = 30


@dataclass(frozen=True)
class Slurm:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        return self.call("squeue", "--noheader", "--format", "%i").split()


def lacking() -> str:
    """Why no Slurm can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    absent = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return ""


@contextmanager
def running(folder: Path, nodes: int = 2, cores: int = 1, memory: int = 6000) -> Iterator[Slurm]:
    """Start nodes of so many cores and so much memory (MB), and end them."""
    for name in ("state", "log", "run", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "run" / "munge.key").write_bytes(os.urandom(1024))
    (folder / "run" / "munge.key").chmod(0o600)
    slurm = Slurm(folder)
    (folder / "slurm.conf").write_text(_configuration(folder, nodes, cores, memory))
    run, started = folder / "run", []
    try:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        munge = [f"--{option}={run / name}" for option, name in files.items()]
        started.append(
            _start(slurm, ["munged", "--foreground", "--force", *munge, f"--log-file={folder / 'log' / 'munged.log'}"])
        )
        _wait(lambda: (run / "munge.socket").exists(), "munged", folder)
        conf = str(folder / "slurm.conf")
        started.append(_start(slurm, ["slurmctld", "-D", "-c", "-f", conf]))
        for i in range(1, nodes + 1):
            (folder / "spool" / f"n{i}").mkdir()
            started.append(_start(slurm, ["slurmd", "-D", "-N", f"n{i}", "-f", conf]))
        idle = ["sinfo", "--noheader", "--Node", "--states", "idle", "--format", "%N"]
        _wait(lambda: len(set(slurm.call(*idle, check=False).split())) == nodes, "the nodes", folder)
        yield slurm
    finally:
        _empty(slurm)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _empty(slurm: Slurm) -> None:
    """Cancel what is left, and wait for its end: a job would outlive the daemons."""
    slurm.call("scancel", "--full", "--user", "root", check=False)
    until = time.monotonic() + UP_SECONDS
    while slurm.call("squeue", "--noheader", check=False).strip() and time.monotonic() < until:
        time.sleep(0.2)


def _start(slurm: Slurm, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with (slurm.folder / "log" / "started.log").open("ab") as log:
        return subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log, start_new_session=True)


def _wait(ready: Callable[[], bool], what: str, folder: Path) -> None:
    until = time.monotonic() + UP_SECONDS
    while not ready():
        assert time.monotonic() < until, (
            f"{what} did not come up: {(folder / 'log' / 'started.log').read_text()[-2000:]}"
        )
        time.sleep(0.1)


def _configuration(folder: Path, nodes: int, cores: int, memory: int) -> str:
    here = socket.gethostname().split(".")[0]
    ports = _free_ports(nodes + 1)
    settings: dict[str, object] = {
        "ClusterName": "tests",
        "SlurmctldHost": f"{here}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/run/munge.socket",
        "CredType": "cred/munge",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldPidFile": folder / "run" / "slurmctld.pid",
        "SlurmdPidFile": f"{folder}/run/slurmd-%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SchedulerParameters": "sched_interval=1,bf_interval=1",
        "ReturnToService": 2,
        "SlurmdTimeout": 15,
        "KillWait": 5,
        "SlurmdParameters": "config_overrides",
    }
    lines = [f"{key}={value}" for key, value in settings.items()]
    for i in range(1, nodes + 1):
        lines.append(
            f"NodeName=n{i} NodeHostname={here} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={cores} RealMemory={memory} State=UNKNOWN"
        )
    lines.append(f"PartitionName=debug Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP")
    lines.append(f"PartitionName=closed Nodes=n[1-{nodes}] MaxTime=INFINITE State=DOWN")
    return "\n".join(lines) + "\n"


def _free_ports(n: int) -> list[int]:
    """All at once, so that they differ."""
    held = [socket.socket() for _ in range(n)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
