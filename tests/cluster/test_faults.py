"""Whatever ends in the middle of a run, a restart ends with the bytes of the run that nobody disturbed; the cost is counted."""

import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import hosts_here
import psutil
import pytest
from faults_here import (
    PHASES,
    Chain,
    Cluster,
    Tally,
    Undisturbed,
    awaited,
    cluster,
    end_at,
    enter,
    one_line,
    workers_of,
)
from lives import Life
from whole import assert_only_whole_things_show

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

#: Silence of a stopped worker: shorter than what a scheduler bears, and longer.
SHORT_STOP, LONG_STOP = 3.0, 25.0
#: How long a link is cut.
CUT = 30.0


@pytest.fixture(scope="module")
def undisturbed(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.made(tiny_recipe, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """What went wrong; shown when all of it is over."""
    tally = Tally()
    yield tally
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        for line in ("", *tally.text.splitlines()):
            plugins.getplugin("terminalreporter").write_line(line)


@pytest.fixture
def chain(undisturbed: Undisturbed, tally: Tally, tmp_path: Path) -> Chain:
    return Chain(undisturbed, tmp_path / "run", "one process", tally)


@pytest.mark.parametrize("seed", range(2))
def test_killed_before_a_change_of_a_file(chain: Chain, seed: int) -> None:
    """Once in every phase; what is written, renamed or removed next is not."""
    rng = random.Random(seed)
    for phase in PHASES:
        n = rng.randint(1, chain.undisturbed.changes[phase])
        life = chain.life("none", partial(end_at, chain.root, chain.mark(phase), n, "killed"))
        assert life.code() == -signal.SIGKILL, life.said
        chain.count(f"killed before change {n}", phase, ended=True)
        assert_only_whole_things_show(chain.root, chain.undisturbed.root)
        assert chain.again <= len(chain.tally.faults), "one block is in flight"
    chain.end(chain.life("none"))


@pytest.mark.parametrize("seed", range(1))
def test_killed_at_a_moment(chain: Chain, seed: int) -> None:
    """Once in every phase, in the middle of a calculation as well."""
    rng = random.Random(seed)
    for phase in PHASES:
        life = chain.life("none")
        chain.reach(life, phase, rng)
        life.kill()
        chain.count("killed", phase, ended=True)
        assert_only_whole_things_show(chain.root, chain.undisturbed.root)
    chain.end(chain.life("none"))


def test_killed_with_a_cluster_of_its_own(chain: Chain) -> None:
    """A worker (its nanny begins another), the client alone (its workers must not stay), or all at once."""
    chain.where, rng = "local cluster", random.Random(0)
    life = chain.life("local")
    for phase, what in (
        ("land", "worker killed"),
        ("files", "client killed"),
        ("ingest", "worker killed"),
        ("match", "all killed"),
        ("train", "worker killed"),
        ("train", "client killed"),
        ("downscale", "all killed"),
        ("downscale", "worker killed"),
        ("fuse", "client killed"),
    ):
        chain.reach(life, phase, rng)
        if what == "worker killed":
            rng.choice(awaited(partial(workers_of, psutil.Process(life.pid)))).kill()
        else:
            orphans = life.kill(everything=what == "all killed")
            assert not psutil.wait_procs(orphans, timeout=20)[1]
        chain.count(what, phase, ended=what != "worker killed")
        if what != "worker killed":
            life = chain.life("local")
    chain.end(life)


# -- a cluster that was there before ------------------------------------------------------------------


@pytest.fixture
def place(chain: Chain, tmp_path: Path) -> Iterator[Cluster]:
    chain.where = "tcp://"
    with cluster(tmp_path / "cluster", chain.blocks) as made:
        yield made


def stop_for(worker: psutil.Process, seconds: float) -> None:
    worker.suspend()
    time.sleep(seconds)
    worker.resume()


def test_parts_of_a_cluster_are_killed(chain: Chain, place: Cluster) -> None:
    """The run goes on by itself, unless it is the run that ends."""
    rng = random.Random(4451)
    parts = ["worker", "worker", "nanny", "nanny", "scheduler", "scheduler", "both workers", "everything"]
    faults = [f"{part} killed" for part in (*parts, "client", "client")]
    faults += ["worker stopped", "worker stopped for long"]
    rng.shuffle(faults)
    faults.insert(list(PHASES).index("train"), "scheduler killed")  # while a search has its fits on the workers
    life = chain.life(place.profile())
    for phase, fault in zip(PHASES, faults, strict=True):
        chain.reach(life, phase, rng)
        if fault == "client killed":
            life.kill()
        elif fault.startswith("worker stopped"):
            stop_for(rng.choice(awaited(place.workers)), LONG_STOP if fault.endswith("long") else SHORT_STOP)
        else:
            place.kill(fault.removesuffix(" killed"), rng)
        chain.count(fault, phase, ended=fault == "client killed")
        if fault == "client killed":
            life = chain.life(place.profile())
    chain.end(life)


def test_cluster_that_does_not_come_back_is_told_in_one_line(chain: Chain, place: Cluster) -> None:
    rng = random.Random(5)
    for phase, gone in (("files", "both workers"), ("ingest", "everything")):
        life = chain.life(place.profile(lost="5s"))
        chain.reach(life, phase, rng)
        place.tended = False
        place.kill("everything", rng)
        if gone == "both workers":
            place.begin("scheduler")
        assert "run again, finished blocks stay finished" in one_line(life)
        chain.count(f"{gone} gone for good", phase, ended=True)
        place.tended = True
        awaited(place.workers, 2)
    chain.end(chain.life(place.profile()))


def test_link_is_cut_for_half_a_minute(chain: Chain, tmp_path: Path) -> None:
    """Of the run itself, of a worker, of the scheduler."""
    if why := hosts_here.lacking():
        pytest.skip(why)
    chain.where, rng = "hosts", random.Random(6)
    with hosts_here.hosts(4) as hosts, cluster(tmp_path / "cluster", chain.blocks, hosts=hosts) as place:
        life = chain.life(place.profile(), partial(enter, hosts.space(3)))
        for phase, i, whose in (("files", 3, "the run"), ("ingest", 1, "a worker"), ("downscale", 0, "the scheduler")):
            chain.reach(life, phase, rng)
            hosts.cable(i, plugged=False)
            time.sleep(CUT)
            hosts.cable(i, plugged=True)
            chain.count(f"link of {whose} cut for {CUT:.0f} s", phase, ended=False)
        chain.end(life)


# -- memory -------------------------------------------------------------------------------------------


def test_worker_that_takes_too_much_memory_is_replaced(chain: Chain, place: Cluster) -> None:
    rng = random.Random(2)
    life = chain.life(place.profile())
    for phase in ("ingest", "train", "downscale"):
        chain.reach(life, phase, rng)
        place.hog.touch()
        while not (taken := place.hog.with_suffix(".taken")).exists():
            time.sleep(0.01)
        taken.unlink()
        chain.count("worker out of memory", phase, ended=False)
    chain.end(life)
    assert sum("exceeded 95% memory budget" in log.read_text() for log in place.folder.glob("worker-*.log"))


def test_workers_that_get_no_more_memory_are_told(chain: Chain, place: Cluster) -> None:
    """What a block asks for is refused by the system: it is tried again, then named."""
    rng = random.Random(3)
    life = chain.life(place.profile())
    chain.reach(life, "files", rng)
    limited = awaited(place.workers, 2)
    for worker in limited:
        limit_memory(worker, 1 << 20)
    if ended := life.code(60) != 0:
        assert re.search(r"failed 3 times: .*(MemoryError|allocate)", one_line(life))
    chain.count("workers get no more memory", "files", ended)
    for worker in limited:
        with suppress(ProcessLookupError):
            limit_memory(worker, resource.RLIM_INFINITY)
    chain.end(chain.life(place.profile()))


def limit_memory(process: psutil.Process, most: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


# -- a disk that is full ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1))
def test_disk_full_at_a_change_of_a_file(chain: Chain, seed: int) -> None:
    """Once in every phase nothing more can be written."""
    rng = random.Random(seed)
    chain.where = "disk"
    for phase in PHASES:
        n = rng.randint(1, chain.undisturbed.changes[phase])
        life = chain.life("none", partial(end_at, chain.root, chain.mark(phase), n, "full"))
        assert_says_full(life)
        chain.count(f"full at change {n}", phase, ended=True)
        assert_only_whole_things_show(chain.root, chain.undisturbed.root)
    chain.end(chain.life("none"))


def assert_says_full(life: Life) -> None:
    told = one_line(life)
    assert "No space left on device" in told
    assert "free the disk and run again" in told
    assert life.code() == 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("where", ["none", "local"])
def test_full_disk_again_and_again(
    undisturbed: Undisturbed, tally: Tally, tmp_path: Path, disk: Path, where: str
) -> None:
    """A disk that is enlarged a little each time: whatever library writes then meets the end of it in the middle of a file."""
    chain, rng = Chain(undisturbed, disk / "run", "small disk", tally), random.Random(where)
    chain.keep_beside(tmp_path)
    whole = sum(path.stat().st_size for path in undisturbed.root.rglob("*") if path.is_file())
    sizes = sorted(rng.uniform(0.05, 0.95) * whole for _ in range(6 if where == "none" else 3))
    for size in sizes:
        enlarge(disk, int(size))
        life = chain.life(where)
        assert_says_full(life)
        chain.count(f"full at {100 * size / whole:.0f} % ({where})", "", ended=True)
    enlarge(disk, 3 * whole)
    chain.end(chain.life(where))


def enlarge(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
