"""Workers without smscale, or with another version, in processes of their own: one line, before the start and in the middle."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_here import Dask, dask_here
from distributed import Client

from smscale import blocks
from smscale.blocks import Ledger, Task
from smscale.errors import RecipeError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

#: Read by Python when it starts: no smscale there, neither its files nor its name.
WITHOUT = """
import importlib.metadata, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "smscale":
            raise ModuleNotFoundError("No module named 'smscale'", name="smscale")
sys.meta_path.insert(0, Finder())
real = importlib.metadata.version
def version(name):
    if name == "smscale":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
"""
OTHER = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.1" if name == "smscale" else real(name)
"""


@pytest.fixture
def here() -> Iterator[Dask]:
    with dask_here() as here:
        yield here


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Callable[[Any, str], None]]:
    """Start a worker process in which this was done first."""
    running: list[subprocess.Popen[bytes]] = []

    def start(scheduler: Any, code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            scheduler.address,
            "--nthreads",
            "1",
            "--no-nanny",
        ]
        running.append(
            subprocess.Popen(
                [*command, "--no-dashboard"],
                env={**os.environ, "PYTHONPATH": str(tmp_path)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    yield start
    for process in running:
        process.kill()
        process.wait()


def slowly(x: int) -> int:
    time.sleep(0.05)
    return x


@pytest.mark.parametrize(("code", "told"), [(WITHOUT, "no smscale"), (OTHER, "smscale 0.0.1")])
@pytest.mark.parametrize("when", ["before", "later"])
def test_stranger_is_refused_in_one_line(
    here: Dask, stranger: Callable[[Any, str], None], tmp_path: Path, code: str, told: str, when: str
) -> None:
    scheduler = here.scheduler()
    stranger(scheduler, code)
    if when == "later":
        here.worker(scheduler)
    with Client(scheduler.address) as client:
        if when == "before":
            client.wait_for_workers(1, timeout=120)
        tasks = [Task(f"{x}", slowly, (x,)) for x in range(4000)]
        with pytest.raises(RecipeError, match=rf"worker tcp://.* has {told}, this process .*: install the same there"):
            blocks.run(tasks, Ledger(tmp_path / "ledger"), client, progress=False)
