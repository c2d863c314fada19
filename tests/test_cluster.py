"""Profiles are read strictly; what is not there, or not as the profile says, is one line within its time-outs."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from dask_here import Dask, dask_here
from distributed import Security

from smscale import cli, cluster, owners
from smscale.cluster import batch, certificates, kubernetes, local, profile, slurm
from smscale.cluster.profile import Slurm, Tls
from smscale.cluster.start import Need
from smscale.errors import RecipeError, StoreError

DEPLOY = Path(__file__).parents[1] / "deploy"
PACKAGED = Path(cluster.__file__).parent / "manifests" / "daskcluster.yaml"


def refusal(where: str | Path, memory: str = "700MiB", workers: int | None = 1) -> str:
    """The one line that refuses a cluster."""
    with pytest.raises(RecipeError) as told, cluster.connect(str(where), workers, memory):
        pass
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
    return str(told.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A profile of these keys."""

    def write(**values: Any) -> Path:
        path = tmp_path / "place.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


# -- profiles ----------------------------------------------------------------------------------------


def test_profiles_that_come_with_the_package_are_whole() -> None:
    assert profile.names() == ["address-tls", "kubernetes", "local", "slurm", "slurm-gpu"]
    kinds = {name: profile.read(name) for name in profile.names()}
    assert {name: one.kind for name, one in kinds.items()} == {
        "address-tls": "address",
        "kubernetes": "kubernetes",
        "local": "local",
        "slurm": "slurm",
        "slurm-gpu": "slurm",
    }
    assert (DEPLOY / "profiles" / "slurm.yaml").read_bytes() == Path(kinds["slurm"].path).read_bytes()


def test_profile_of_the_user_goes_before_the_one_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "smscale" / "profiles"
    folder.mkdir(parents=True)
    (folder / "slurm.yaml").write_text("kind: slurm\npartition: mine\nworkers: {min: 2, max: 9}\n")
    read = profile.read("slurm")
    assert isinstance(read, Slurm)
    assert read.partition == "mine"
    assert (read.workers.min, read.workers.max) == (2, 9) if read.workers else False


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "cloud"}, "key kind: found 'cloud', expected one of local, address, slurm, kubernetes"),
        ({"kind": "slurm", "partion": "x"}, "unknown key partion; did you mean partition?"),
        ({"kind": "local", "partition": "x"}, "unknown key partition; expected one of kind, workers"),
        ({"kind": "slurm", "workers": "two"}, "key workers: found 'two', expected keys and values"),
        ({"kind": "slurm", "workers": {"min": 3, "max": 2}}, "expected a number of at least 1, or {min, max}"),
        ({"kind": "slurm", "start_timeout": "soon"}, "key start_timeout: found 'soon', expected a time above 0"),
        ({"kind": "slurm", "lost_timeout": "0s"}, "key lost_timeout: found '0s', expected a time above 0"),
        ({"kind": "slurm", "walltime": 14400}, "key walltime: found 14400, expected text"),
        ({"kind": "slurm", "groups": {"gpu": {"worker": 1}}}, "unknown key groups.gpu.worker; did you mean"),
        ({"kind": "slurm", "groups": {"cpu": {}}}, "key groups: found 'cpu'"),
        ({"kind": "slurm", "memory": "lots"}, "key memory: found 'lots', expected a size, as 4GiB"),
        ({"kind": "slurm", "port": 70_000}, "key port: found 70000, expected 1 to 65535"),
        ({"kind": "slurm", "local_folder": "/a b"}, "key local_folder: found '/a b', expected a path of plain letters"),
        ({"kind": "address"}, "key address is missing; expected text"),
        ({"kind": "address", "address": "http://x:80"}, "expected tcp://host:port or tls://host:port"),
        ({"kind": "address", "address": "tcp://x:1", "tls": {"ca": "a", "cert": "b", "key": "c"}}, "expected tls://host"),
    ],
)  # fmt: skip
def test_wrong_profile_is_one_line(write: Callable[..., Path], values: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as told:
        profile.read(str(write(**values)))
    assert str(told.value).startswith("place.yaml: ")
    assert expected in str(told.value)


@pytest.mark.parametrize(
    "where",
    ["clowd", "nowhere.yaml", "tcp://host", "tls://:8786", "tcp://host:0", "tcp://host:65536", "../slurm", "tcp://a..b:8786", f"tcp://{70 * 'a'}:8786"],
)  # fmt: skip
def test_place_that_is_none_is_one_line_before_anything_else(where: str) -> None:
    with pytest.raises(RecipeError) as told, cluster.when_needed(where, 1, "1GiB"):
        pass
    assert "\n" not in str(told.value)
    assert where in str(told.value)


def test_profile_is_no_way_to_run_python(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"kind: !!python/object/apply:os.system ['touch {tmp_path}/harm']\n")
    assert "not valid YAML" in refusal(path)
    assert not (tmp_path / "harm").exists()


# -- this machine ------------------------------------------------------------------------------------


def test_more_memory_than_the_machine_has_is_refused() -> None:
    assert "4 workers of resources.memory_per_worker 900GiB need 3.52 TiB, this machine has" in refusal(
        "local", "900GiB", 4
    )


def test_each_gpu_gets_a_worker_and_the_others_see_none(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "gpus", lambda: ["0", "3"])
    place = write(kind="local", workers=1, gpus=1, gpu_memory="1GiB")
    with cluster.connect(str(place), 4, "700MiB") as client:
        seen = client.run(lambda dask_worker: (__import__("os").environ["CUDA_VISIBLE_DEVICES"], dask_worker.name))
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert sorted(seen.values()) == [("", "cpu-0"), ("0", "gpu-0")]
    held = {worker["name"]: (worker["resources"], worker["memory_limit"]) for worker in workers}
    assert held == {"cpu-0": ({}, 700 * 2**20), "gpu-0": ({"GPU": 1}, 2**30)}
    assert "key gpus: found 3, this machine has 2" in refusal(write(kind="local", gpus=3))


@pytest.mark.parametrize(
    ("torch", "visible", "found"),
    [("2.13.0+cpu", None, []), ("2.13.0", None, ["0", "1"]), ("2.13.0", "1", ["1"]), ("2.13.0", "", []), ("2.13.0", "-1", [])],
)  # fmt: skip
def test_gpus_are_those_that_torch_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, visible: str | None, found: list[str]
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local, "version", lambda name: torch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == found


# -- a scheduler's address, with and without TLS -----------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tls]:
    """Certificates by name; `late` are of the authority of `ours`, and expired."""
    folder = tmp_path_factory.mktemp("certificates")
    ours = certificates.make(folder / "ours")
    certificates.make(folder / "theirs")
    request, late = folder / "late.csr", folder / "late.pem"
    ca = ["-CA", ours.ca, "-CAkey", ours.ca.replace(".pem", ".key"), "-CAcreateserial", "-days", "-1"]
    for command in (
        ["openssl", "req", "-new", "-key", ours.key, "-subj", "/CN=late", "-out", str(request)],
        ["openssl", "x509", "-req", "-in", str(request), *ca, "-out", str(late)],
    ):
        subprocess.run(command, check=True, capture_output=True)

    def of(name: str) -> Tls:
        if name == "late":
            return Tls(ours.ca, str(late), ours.key)
        return Tls(*(str(folder / name / file) for file in ("ca.pem", "host.pem", "host.key")))

    return of


@pytest.fixture(scope="module")
def here() -> Iterator[Dask]:
    with dask_here() as here:
        yield here


def secured(files: Tls) -> Security:
    roles = {f"tls_{role}_{part}": getattr(files, part) for role in ("scheduler", "worker") for part in ("cert", "key")}
    return Security(tls_ca_file=files.ca, require_encryption=True, **roles)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("ours", "ours", "no worker within start_timeout 0.3s: start them with: dask worker tls://"),
        (None, None, "no worker within start_timeout 0.3s: start them with: dask worker tcp://"),
        ("ours", None, "the scheduler speaks TLS only: use tls:// with its certificates"),
        (None, "ours", "what listens there speaks no TLS: use tcp://"),
        ("ours", "theirs", "the scheduler's certificate is refused: .*another authority; both sides need certificates of one"),
        ("late", "ours", "the scheduler's certificate is refused: certificate has expired: make new ones"),
        ("ours", "late", "the scheduler refuses the certificate of this side: certificate expired: make new ones"),
    ],
)  # fmt: skip
def test_certificates_and_protocols_that_do_not_meet_are_told(
    here: Dask, made: Callable[[str], Tls], write: Callable[..., Path], theirs: str | None, ours: str | None, expected: str
) -> None:  # fmt: skip
    scheduler = here.scheduler(secured(made(theirs)) if theirs else None)
    at = scheduler.address.split("://")[1]
    address = {"address": f"tls://{at}", "tls": vars(made(ours))} if ours else {"address": f"tcp://{at}"}
    start = time.monotonic()
    told = refusal(write(kind="address", connect_timeout="6s", start_timeout="0.3s", **address))
    here.end(scheduler)
    assert re.search(expected, told), told
    assert time.monotonic() - start < 6


def test_files_of_certificates_that_are_wrong_are_named(made: Callable[[str], Tls], write: Callable[..., Path]) -> None:
    ours, theirs = made("ours"), made("theirs")
    files = {"ca": ours.ca, "cert": ours.cert, "key": theirs.key}
    told = refusal(write(kind="address", address="tls://127.0.0.1:1", tls=files))
    assert f"{theirs.key} are no authority, certificate and its key (KEY_VALUES_MISMATCH)" in told
    told = refusal(write(kind="address", address="tls://127.0.0.1:1", tls={**files, "key": "gone.key"}))
    assert "gone.key cannot be read; `smscale certificates FOLDER` makes certificates" in told
    assert "tls:// needs certificates: a profile with tls: {ca, cert, key}, or DASK_" in refusal("tls://127.0.0.1:1")


def test_address_where_no_scheduler_is_is_told_within_the_time(write: Callable[..., Path]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        told = refusal(write(kind="address", address=nobody, connect_timeout="0.5s"))
        assert told == f"cluster place: no scheduler at {nobody} within 0.5 s: nothing listens there"
        assert time.monotonic() - start < 2
    told = refusal(write(kind="address", address="tcp://nowhere.invalid:8786", connect_timeout="0.5s"))
    assert told.endswith("within 0.5 s: no host nowhere.invalid is known")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        told = refusal(write(kind="address", address=at, connect_timeout="0.6s"))
        assert told.endswith("what listens there is no dask scheduler")


def test_worker_with_less_memory_than_the_recipe_says_is_refused(here: Dask, write: Callable[..., Path]) -> None:
    scheduler = here.scheduler()
    worker = here.worker(scheduler, nthreads=2, memory_limit="2GiB")
    place = write(kind="address", address=scheduler.address)
    with cluster.connect(str(place), 5, "1GiB") as client:
        assert client.submit(int, 7).result() == 7
    told = refusal(place, "1.5GiB")
    assert (
        f"worker {worker.address} has 2.00 GiB for 2 threads, the recipe's resources.memory_per_worker is 1.5GiB"
        in told
    )


# -- certificates ------------------------------------------------------------------------------------


def test_keys_are_for_their_owner_alone_and_nothing_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["certificates", str(tmp_path / "c"), "--days", "3", "--host", "node1", "--host", "10.0.0.1"]
    assert cli.main(command) == 0
    said = yaml.safe_load(capsys.readouterr().out.splitlines()[1])
    assert set(said["tls"]) == {"ca", "cert", "key"}
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()}
    assert set(files) == {"ca.pem", "ca.key", "host.pem", "host.key"}
    assert files["ca.key"] == files["host.key"] == 0o600
    shown = subprocess.run(
        ["openssl", "x509", "-in", said["tls"]["cert"], "-noout", "-text", "-checkend", str(3 * 86400 - 600)],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, "valid for so long"
    assert "DNS:localhost, IP Address:127.0.0.1, DNS:node1, IP Address:10.0.0.1" in shown.stdout
    ca = ["openssl", "verify", "-CAfile", said["tls"]["ca"], said["tls"]["cert"]]
    assert subprocess.run(ca, capture_output=True).returncode == 0
    assert cli.main(command) == 2
    assert "holds ca.pem already" in capsys.readouterr().err


def test_certificates_that_make_no_sense_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="--days 0: expected 1 to 3650"):
        certificates.make(tmp_path, 0)
    with pytest.raises(RecipeError, match="expected a host's name or address"):
        certificates.make(tmp_path, 1, ["a,DNS:b"])
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="certificates cannot be written"):
        certificates.make(tmp_path / "file" / "x")
    (tmp_path / "openssl").write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    (tmp_path / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(certificates, "OPENSSL_SECONDS", 0.1)
    with pytest.raises(RecipeError, match="openssl req did not end within"):
        certificates.make(tmp_path)
    (tmp_path / "openssl").unlink()
    with pytest.raises(RecipeError, match="the command openssl is not on PATH"):
        certificates.make(tmp_path)


# -- Slurm and Kubernetes that are not there; what is asked of those that are -------------------------


def test_slurm_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal("slurm") == "cluster slurm: no Slurm here: sbatch is not on PATH; start the run on a login node"


def test_slurm_whose_controller_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "squeue", "scancel", "sinfo"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'slurm_load_partitions: Unable to contact controller' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    interrupt = signal.getsignal(signal.SIGINT)
    assert refusal("slurm").endswith("Slurm does not answer: slurm_load_partitions: Unable to contact controller")
    assert signal.getsignal(signal.SIGINT) is interrupt, "dask-jobqueue takes it on import"


class Queue:
    """Slurm's commands on a queue in memory."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.submitted: list[str] = []
        self.silent: set[str] = set()  # commands that do their work, and answer too late

    def __call__(self, command: list[str], given: str | None = None) -> "subprocess.CompletedProcess[str]":
        out = ""
        if command[0] == "sbatch":
            self.submitted.append(str(given))
            self.jobs[out := str(len(self.submitted))] = "RUNNING|None"
        elif command[0] == "squeue":
            out = "\n".join(f"{job}|{state}" for job, state in self.jobs.items())
        elif command[1].startswith("--name=smscale-"):
            self.jobs.clear()
        elif "scancel" not in self.silent:
            for job in command[1:]:
                self.jobs.pop(job, None)
        silent = command[0] in self.silent
        return subprocess.CompletedProcess(command, int(silent), "" if silent else out, "no answer" if silent else "")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(slurm, "_command", made)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 3600)  # the test looks itself
    monkeypatch.setattr(slurm, "SHORT_SECONDS", 0)
    return made


def jobs_of(tmp_path: Path, least: int, most: int) -> slurm._Jobs:
    made = slurm._Jobs(
        [slurm._Kind(lambda name: name, least, most)], SimpleNamespace(workers={}, tasks={}), "p", tmp_path
    )
    made.start()
    return made


def test_job_that_ended_is_asked_for_again_later_each_time(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path, 2, 2)
    jobs.scheduler.workers["a"] = 1
    del queue.jobs["1"]
    jobs._look()
    assert set(queue.jobs) == {"2", "3"}
    monkeypatch.setattr(slurm, "SHORT_SECONDS", 60)
    del queue.jobs["3"]
    jobs._look()
    assert set(queue.jobs) == {"2"}, "it lived for a moment: not at once"
    assert 0 < jobs.slots[0].again - time.monotonic() <= 1
    jobs.slots[0].again = 0
    jobs._look()
    assert set(queue.jobs) == {"2", "4"}
    jobs.close()
    assert not queue.jobs


def test_jobs_that_are_not_needed_are_given_back_and_asked_for_again(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path, 1, 3)
    assert len(queue.jobs) == 3
    jobs.scheduler.workers["a"] = 1
    monkeypatch.setattr(slurm, "IDLE_SECONDS", -1)
    jobs._look()
    assert set(queue.jobs) == {"1"}
    monkeypatch.setattr(slurm, "IDLE_SECONDS", 300)
    jobs.scheduler.tasks["block"] = 1
    jobs._look()
    assert set(queue.jobs) == {"1", "4", "5"}
    jobs.close()


def test_job_of_which_slurm_did_not_tell_the_number_is_cancelled_and_asked_for_again_later(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SHORT_SECONDS", 60)
    jobs = jobs_of(tmp_path, 2, 2)
    jobs.scheduler.workers["a"] = 1
    for slot in jobs.slots:
        slot.since = -1e9
    queue.jobs.clear()
    queue.silent = {"sbatch"}
    jobs._look()
    assert set(queue.jobs) == {"3", "4"}, "both were asked for, though the first had no answer"
    assert jobs.trouble.endswith("sbatch refuses the job: no answer")
    queue.silent = set()
    jobs._look()
    assert not queue.jobs, "whose they are nobody knows; and it is too early for others"
    for slot in jobs.slots:
        slot.again = 0
    jobs._look()
    assert set(queue.jobs) == {"5", "6"}
    queue.silent = {"sbatch"}
    queue(["sbatch"])
    jobs.close()
    assert not queue.jobs


def test_job_that_could_not_be_given_back_is_still_known(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path, 1, 2)
    jobs.scheduler.workers["a"] = 1
    monkeypatch.setattr(slurm, "IDLE_SECONDS", -1)
    queue.silent = {"scancel"}
    jobs._look()
    assert [slot.job for slot in jobs.slots] == ["1", "2"]
    queue.silent = set()
    jobs._look()
    assert set(queue.jobs) == {"1"}
    jobs.close()


def test_jobs_are_looked_after_whatever_happens(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.01)
    looks: list[str] = []

    def look(self: slurm._Jobs) -> None:
        looks.append("")
        if len(looks) == 1:
            raise ValueError("squeue said what nobody expects")

    monkeypatch.setattr(slurm._Jobs, "_look", look)
    jobs = jobs_of(tmp_path, 1, 1)
    until = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert jobs.thread.is_alive()
    jobs.close()
    assert len(looks) >= 3


def test_keys_of_a_run_let_nobody_else_in_and_those_of_killed_runs_go(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    others = {"live": f"{owners.machine()}-{os.getppid()}", "elsewhere": f"{'0' * 16}-{ended.pid}"}
    gone, old = tmp_path / f"tls-{owners.machine()}-{ended.pid}-ab", tmp_path / "tls-old"
    kept = {tmp_path / f"tls-{owner}-ab" for owner in others.values()}
    for folder in (gone, old, *kept):
        folder.mkdir()
    os.utime(old, (0, 0))
    made = Slurm(path=str(tmp_path / "p.yaml"))
    with slurm._security(made, tmp_path) as security:
        assert security is not None
        (own,) = set(tmp_path.glob("tls-*")) - kept
        assert {path.name for path in own.iterdir()} == {"ca.pem", "host.pem", "host.key"}
    assert set(tmp_path.glob("tls-*")) == kept


RECIPE = str(Path(__file__).parent / "recipes" / "tiny.yaml")


@pytest.mark.parametrize(
    ("allocation", "expected"),
    [
        ({}, ""),
        ({"MEM_PER_CPU": "4096", "CPUS_ON_NODE": "1"}, ""),
        ({"MEM_PER_CPU": "2500", "CPUS_ON_NODE": "1"}, "the first node gives 2500M, 1 worker of .* the scheduler and the run need 3328M: sbatch --mem-per-cpu=3328M"),
        ({"MEM_PER_CPU": "2500", "CPUS_ON_NODE": "4", "TASKS_PER_NODE": "4(x2),1"}, ""),
        ({"MEM_PER_CPU": "1000", "CPUS_ON_NODE": "9", "TASKS_PER_NODE": "1"}, "a task gets 1000M, .* needs 1792M"),
        ({"MEM_PER_NODE": "8000", "CPUS_ON_NODE": "8", "TASKS_PER_NODE": "8"}, "the first node gives 8000M, 8 workers"),
    ],
)  # fmt: skip
def test_allocation_that_does_not_hold_the_workers_is_refused(allocation: dict[str, str], expected: str) -> None:
    told = {f"SLURM_{name}": value for name, value in allocation.items()}
    ask = partial(batch.worker_memory, RECIPE, ["resources.memory_per_worker=1.5GiB"], told)
    if not expected:
        assert ask() == "1.5GiB"
        return
    with pytest.raises(RecipeError, match=expected):
        ask()


def test_script_of_a_job_says_what_the_profile_and_the_recipe_ask_for(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    place = profile.read(
        str(
            write(
                kind="slurm",
                workers={"min": 3, "max": 8},
                cores=4,
                partition="day",
                account="me",
                interface="lo",
                environment=["module load python"],
                directives=["--qos=low"],
                groups={"gpu": {"partition": "big", "workers": 2}},
            )
        )
    )
    assert isinstance(place, Slurm)
    scripts = slurm._Scripts(
        place, "tls://10.0.0.1:9", secured(Tls("/s/ca.pem", "/s/host.pem", "/s/host.key")), tmp_path
    )
    kinds, least = slurm._kinds(place, Need(None, "1.5GiB"), scripts)
    assert least == 3
    assert [(kind.least, kind.most) for kind in kinds] == [(1, 2), (0, 2)]
    cpu, gpu = (kind.script("night").splitlines() for kind in kinds)
    wanted = {
        "#SBATCH -p day",
        "#SBATCH -A me",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=7168M",
        "#SBATCH --qos=low",
    }
    assert {*wanted, "module load python", "export CUDA_VISIBLE_DEVICES="} <= set(cpu)
    for part in ("tls://10.0.0.1:9", "--nthreads 1", "--nworkers 4", "--memory-limit 1.50GiB", "--tls-key /s/host.key"):
        assert part in cpu[-1], part
    assert {"#SBATCH -p big", "#SBATCH --gres=gpu:1", "#SBATCH --mem=3840M", "#SBATCH --qos=low"} <= set(gpu)
    assert "--resources GPU=1" in gpu[-1]
    assert "export CUDA_VISIBLE_DEVICES=" not in gpu


def test_kubernetes_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert f"no Kubernetes here: {tmp_path}/none is not there" in refusal("kubernetes")


def test_pods_too_small_for_the_recipe_are_refused() -> None:
    told = refusal("kubernetes", "3GiB")
    assert "daskcluster.yaml: a worker's limits.memory is 2Gi, the recipe's resources.memory_per_worker 3GiB" in told


def test_manifest_gets_the_number_and_memory_of_the_recipe() -> None:
    asked = profile.read("kubernetes")
    assert isinstance(asked, profile.Kubernetes)
    made, groups = kubernetes.manifests(asked, Need(3, "1.5 GiB"))
    assert groups == []
    assert made["spec"]["worker"]["replicas"] == 3
    arguments = made["spec"]["worker"]["spec"]["containers"][0]["args"]
    assert arguments[-2:] == ["--nthreads=1", "--memory-limit=1.5GiB"]


class There:
    """A DaskCluster that a server holds."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.metadata, self.deleted = made["metadata"], False

    def delete(self) -> None:
        self.deleted = True

    def exists(self) -> bool:
        return not self.deleted


class Kube:
    """Stands for dask-kubernetes' cluster: keeps what it was asked for, and is a scheduler that runs here."""

    asked: dict[str, Any]
    address: str
    did: list[Any]
    there: dict[str, There]
    fault: Exception | None

    def __init__(self, **asked: Any) -> None:
        type(self).asked, type(self).did = asked, []
        name = asked["custom_cluster_spec"]["metadata"]["name"]
        if name in self.there:
            raise ValueError(f"Cluster {name} already exists")
        self.there[name] = There(asked["custom_cluster_spec"])
        if self.fault is not None:
            raise self.fault
        self.scheduler_address, self.status, self.security = self.address, None, None

    def adapt(self, minimum: int, maximum: int) -> None:
        self.did.append((minimum, maximum))

    def add_worker_group(self, name: str, custom_spec: dict[str, Any]) -> None:
        self.did.append((name, custom_spec["replicas"]))

    def close(self) -> None:
        self.did.append("closed")


@pytest.fixture
def kube(here: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kube]]:
    """dask-kubernetes and kr8s, as far as they are used, with a server that holds DaskClusters by name."""
    modules = {
        name: ModuleType(name) for name in ("dask_kubernetes.operator.kubecluster.kubecluster", "kr8s", "kr8s.objects")
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    class NotFoundError(Exception):
        pass

    def get(name: str, namespace: str | None) -> There:
        if name not in Kube.there:
            raise NotFoundError
        return Kube.there[name]

    mode = type("CreateMode", (), {"CREATE_ONLY": "create only"})
    kubecluster, kr8s, objects = modules.values()
    vars(kubecluster).update(KubeCluster=Kube, CreateMode=mode, reap_clusters=lambda: None)
    vars(kr8s).update(api=lambda: type("Api", (), {"version": lambda self: {}})(), NotFoundError=NotFoundError)
    vars(objects).update(new_class=lambda kind, version: SimpleNamespace(get=get))
    (tmp_path / "config").touch()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(kubernetes, "END_SECONDS", 2.0)
    scheduler = here.scheduler()
    worker, Kube.address, Kube.there, Kube.fault = here.worker(scheduler), scheduler.address, {}, None
    yield Kube
    here.end(worker)
    here.end(scheduler)


def test_kubernetes_cluster_is_made_used_and_ended(
    kube: type[Kube], write: Callable[..., Path], tmp_path: Path
) -> None:
    both = [path.read_text() for path in (DEPLOY / "kubernetes" / f"{n}.yaml" for n in ("cluster", "gpu-workers"))]
    (tmp_path / "both.yaml").write_text("\n---\n".join(both))
    place = write(
        kind="kubernetes", manifest="both.yaml", workers={"min": 1, "max": 5}, cluster="night", namespace="n",
        lost_timeout="123s",
    )  # fmt: skip
    with cluster.connect(str(place), 3, "1GiB") as client:
        assert client.submit(int, 7).result() == 7
        assert client._timeout == 123, "it looks so long for a scheduler that went away"
    assert Kube.asked["custom_cluster_spec"]["metadata"]["name"] == "night"
    assert (Kube.asked["namespace"], Kube.asked["create_mode"]) == ("n", "create only")
    service = Kube.asked["custom_cluster_spec"]["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == "night"
    assert Kube.did == [("smscale-gpu", 1), (1, 5), "closed"]
    assert Kube.there["night"].deleted


@pytest.mark.parametrize("fault", ["it fails", "nothing comes", "it is interrupted"])
def test_kubernetes_cluster_that_did_not_come_up_in_time_is_deleted(
    kube: type[Kube], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    place = write(kind="kubernetes", manifest=str(PACKAGED), start_timeout="0.5s")
    if fault == "it fails":
        kube.fault = TimeoutError("no scheduler pod")
    elif fault == "nothing comes":
        begin = kube.__init__
        monkeypatch.setattr(kube, "__init__", lambda self, **asked: (begin(self, **asked), time.sleep(2))[0])
    else:
        monkeypatch.setattr(kube, "add_worker_group", lambda *a, **k: 1 / 0)
    with pytest.raises(BaseException), cluster.connect(str(place), 3, "1GiB"):  # noqa: B017
        raise KeyboardInterrupt
    assert [one.deleted for one in kube.there.values()] == [True]


def test_kubernetes_cluster_of_another_run_stays(kube: type[Kube], write: Callable[..., Path]) -> None:
    other = There({"metadata": {"name": "night", "annotations": {kubernetes.RUN: "another"}}})
    kube.there["night"] = other
    told = refusal(write(kind="kubernetes", manifest=str(PACKAGED), cluster="night"))
    assert "Kubernetes says ValueError: Cluster night already exists" in told
    assert not other.deleted


def test_kubernetes_cluster_that_stays_is_told(
    kube: type[Kube], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(There, "exists", lambda self: True)
    monkeypatch.setattr(kubernetes, "END_SECONDS", 0.3)
    told = refusal(write(kind="kubernetes", manifest=str(PACKAGED), cluster="night"))
    assert "DaskCluster night may still be there (kubectl delete daskcluster night)" in told


def test_dask_goes_on_where_a_cluster_has_ended(tmp_path):
    """In a process of its own: there `distributed`, with its settings, is first imported for the cluster."""
    code = (
        "if __name__ == '__main__':\n"
        "    import dask.array, sys\n"
        "    from smscale import cluster\n"
        "    with cluster.connect('local', 1, '500MiB'): pass\n"
        "    print(int(dask.array.ones(3).sum().compute()))\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=90)
    assert done.stdout == "3\n", done.stderr[-500:]
