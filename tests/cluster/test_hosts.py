"""Hosts that meet over TLS give the bytes of a run in one process; who has another authority's certificate stays outside."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts_here
import pytest

from smscale.cluster import certificates

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

#: A cut-off worker is given up soon, so that a test is short.
QUICK = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "6s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
}


class Place:
    """A scheduler on host 0 and one worker on each of two others, with certificates of one authority."""

    def __init__(self, hosts: hosts_here.Hosts, folder: Path) -> None:
        self.hosts, self.folder, self.running = hosts, folder, list["subprocess.Popen[str]"]()
        certificates.make(folder / "ours", 2, [hosts.address(i) for i in range(4)])
        certificates.make(folder / "theirs", 2)
        self.address = f"tls://{hosts.address(0)}:8786"
        self.start(
            0, "dask_scheduler", "--protocol", "tls", "--host", hosts.address(0), "--port", "8786", "--no-dashboard"
        )
        for i in (1, 2):
            self.start(i, "dask_worker", self.address, "--nthreads", "1", "--memory-limit", "1.5GiB", "--no-dashboard")

    def start(self, host: int, module: str, *arguments: str, certificate: str = "ours") -> Path:
        """A daemon of dask on a host; the file of what it says."""
        at = self.folder / certificate
        tls = [
            "--tls-ca-file",
            str(at / "ca.pem"),
            "--tls-cert",
            str(at / "host.pem"),
            "--tls-key",
            str(at / "host.key"),
        ]
        log = self.folder / f"{len(self.running)}.log"
        command = [*self.hosts.inside(host), sys.executable, "-m", f"distributed.cli.{module}", *arguments, *tls]
        with log.open("w") as file:
            self.running.append(
                subprocess.Popen(
                    command, env={**os.environ, **QUICK}, stdout=file, stderr=file, text=True, start_new_session=True
                )
            )
        return log

    def profile(self, folder: Path, certificate: str = "ours", address: str = "") -> Path:
        path, at = folder / "place.yaml", self.folder / certificate
        tls = f"tls: {{ca: {at}/ca.pem, cert: {at}/host.pem, key: {at}/host.key}}\n" if certificate else ""
        times = "connect_timeout: 90s\nstart_timeout: 120s\n"
        path.write_text(f"kind: address\naddress: {address or self.address}\nworkers: 2\n{tls}{times}")
        return path

    def run(self, recipe: Path, workspace: Path, profile: Path) -> "subprocess.Popen[str]":
        """`smscale run` on host 3."""
        command = [sys.executable, "-m", "smscale.cli", "run", str(recipe), "--workspace", str(workspace), "--quiet"]
        return subprocess.Popen(
            [*self.hosts.inside(3), *command, "--cluster", str(profile)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if why := hosts_here.lacking():
        pytest.skip(why)
    with hosts_here.hosts(4) as hosts:
        made = Place(hosts, tmp_path_factory.mktemp("hosts"))
        try:
            yield made
        finally:
            hosts_here.stop(made.running)


def refusal(run: "subprocess.Popen[str]") -> str:
    _, told = run.communicate(timeout=150)
    assert run.returncode == 2, told
    assert told.count("\n") == 1, told
    return told


def test_certificate_of_another_authority_is_refused(place: Place, tiny_recipe: Path, tmp_path: Path) -> None:
    told = refusal(place.run(tiny_recipe, tmp_path / "w", place.profile(tmp_path, "theirs")))
    assert "the scheduler's certificate is refused:" in told
    assert "both sides need certificates of one `smscale certificates`" in told


def test_plain_tcp_is_refused(place: Place, tiny_recipe: Path, tmp_path: Path) -> None:
    profile = place.profile(tmp_path, "", place.address.replace("tls", "tcp"))
    told = refusal(place.run(tiny_recipe, tmp_path / "w", profile))
    assert "the scheduler speaks TLS only: use tls:// with its certificates" in told


#: A hundred and fifty blocks of a fifth of a second.
BLOCKS = """
import sys, time
from pathlib import Path
from smscale import blocks, cluster
with cluster.connect(sys.argv[1], 1, "1GiB") as client:
    tasks = [blocks.Task(str(x), time.sleep, (0.2,)) for x in range(150)]
    assert len(blocks.run(tasks, blocks.Ledger(Path(sys.argv[2])), client, progress=False).results) == 150
"""


def test_run_whose_own_cable_is_pulled_for_half_a_minute_goes_on(place: Place, tmp_path: Path) -> None:
    profile, ledger = place.profile(tmp_path), tmp_path / "ledger"
    run = subprocess.Popen(
        [*place.hosts.inside(3), sys.executable, "-c", BLOCKS, str(profile), str(ledger)],
        env={**os.environ, **QUICK}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while len(list(ledger.glob("*.json"))) < 10:
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    place.hosts.cable(3, plugged=False)
    time.sleep(30)
    place.hosts.cable(3, plugged=True)
    _, told = run.communicate(timeout=150)
    assert run.returncode == 0, told
    assert len(list(ledger.glob("*.json"))) == 150


def test_hosts_over_tls_give_the_same_bytes_though_one_is_cut_off(
    place: Place, tiny_recipe: Path, tiny_run: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    stranger = place.start(
        3, "dask_worker", place.address, "--nthreads", "1", "--death-timeout", "30", certificate="theirs"
    )
    run = place.run(tiny_recipe, tmp_path / "w", place.profile(tmp_path))
    ledger, until = tmp_path / "w" / "world" / "ledger", time.monotonic() + 300
    while not list(ledger.glob("*/*.json")):
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.2)
    place.hosts.cable(2, plugged=False)
    _, told = run.communicate(timeout=900)
    place.hosts.cable(2, plugged=True)
    assert run.returncode == 0, told
    assert digests(tmp_path / "w") == digests(tiny_run)
    assert "TLS certificate does not match" in stranger.read_text()
    assert (place.folder / "0.log").read_text().count("Register worker addr") == 2, "no third worker"
