"""Lives of the command line: processes that begin at once, since everything is imported already, and end when a test says so."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from smscale import cli

STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")
#: Longest wait for a stage to show progress, on a machine that does much else.
PATIENCE_SECONDS = 240


#: Makes processes that have imported everything already: most of a short life would be imports.
NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(
    [
        "smscale.cli",
        "smscale.simulate.run",
        "smscale.pipeline.ingest",
        "smscale.pipeline.match",
        "smscale.pipeline.downscale",
        "smscale.pipeline.fuse",
        "smscale.pipeline.evaluate",
        "smscale.pipeline.drawing",
        "smscale.pipeline.surroundings",
        "smscale.models.zoo",
        "smscale.models.gabp.lightning",
        "smscale.models.cnn.lightning",
        "distributed",
        "h5py",
        "matplotlib.backends.backend_agg",
        "pyhdf.SD",
        "pytest",
        "rasterio",
        "xgboost",
    ]
)


def arguments_of(recipe: Path, root: Path, cluster: str) -> list[str]:
    return ["run", str(recipe), "--workspace", str(root), "--quiet", "--cluster", cluster]


def begun(target: Callable[..., Any], *args: Any) -> Any:
    """A process of the nursery."""
    process = NURSERY.Process(target=target, args=args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of the nursery, which starts with the first process
        process.start()
    assert process.pid is not None
    return process


def lead(log: Path) -> None:
    """Make this process the leader of a session of its own, which speaks into a file."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def live(arguments: list[str], log: Path, fates: Sequence[Callable[[], Any]]) -> None:
    """The command line, after its fates are sealed."""
    lead(log)
    for fate in fates:
        fate()
    sys.exit(cli.main(arguments))


class Life:
    """One process of the command line.

    Parameters
    ----------
    fates : called in it before it begins
    beside : folder of what it says; that of the workspace if not given
    """

    def __init__(
        self,
        recipe: Path,
        root: Path,
        cluster: str,
        only: str | None = None,
        fates: Sequence[Callable[[], Any]] = (),
        beside: Path | None = None,
    ) -> None:
        arguments = [*arguments_of(recipe, root, cluster), *(["--only", only] if only else [])]
        self.log = (beside or root.parent) / f"{root.name}-{time.monotonic_ns()}.log"
        self.process = begun(live, arguments, self.log, fates)
        self.pid = self.process.pid

    def wait_for(self, folder: Path, records: int) -> None:
        """Until a ledger folder holds so many records."""
        end = time.monotonic() + PATIENCE_SECONDS
        while len(list(folder.glob("*.json"))) < records:
            assert self.process.is_alive(), f"ended before it could be killed in {folder}: {self.said}"
            assert time.monotonic() < end, f"no progress in {folder}: {self.said}"
            time.sleep(0.005)

    def family(self) -> list[psutil.Process]:
        """Processes that it started, and those that these started."""
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self, everything: bool = True) -> list[psutil.Process]:
        """SIGKILL the process and (or not) all that it started; those that it started."""
        family = self.family()
        if everything:
            os.killpg(self.pid, signal.SIGKILL)
            for one in family:
                if one.is_running():
                    one.kill()
        else:
            self.process.kill()
        assert self.code(30) == -signal.SIGKILL, f"ended before the kill: {self.said}"
        return family

    def finish(self) -> str:
        assert self.code(PATIENCE_SECONDS) == 0, self.said
        return self.said

    def code(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """The exit code, waited for so long."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
