"""A run killed at any moment, started again, ends with the bytes of the run that nobody disturbed."""

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr

import smscale
from smscale import cli, config, pipeline, store
from smscale.errors import SmscaleError
from smscale.models import load_model
from smscale.workspace import Workspace

STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")
GROUPS = ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover", "coarse", "stations")
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


def live(arguments: list[str], log: Path) -> None:
    """The command line, as the leader of a session of its own."""
    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(cli.main(arguments))


class Life:
    """One process of the command line."""

    def __init__(self, recipe: Path, root: Path, cluster: str, only: str | None = None) -> None:
        arguments = [*arguments_of(recipe, root, cluster), *(["--only", only] if only else [])]
        self.log = root.parent / f"{root.name}-{time.monotonic_ns()}.log"
        self.process = NURSERY.Process(target=live, args=(arguments, self.log))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # of the nursery, which starts with the first process
            self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def wait_for(self, folder: Path, records: int) -> None:
        """Until a ledger folder holds so many records."""
        end = time.monotonic() + PATIENCE_SECONDS
        while len(list(folder.glob("*.json"))) < records:
            assert self.process.is_alive(), f"ended before it could be killed in {folder}: {self.said}"
            assert time.monotonic() < end, f"no progress in {folder}: {self.said}"
            time.sleep(0.005)

    def kill(self, everything: bool = True) -> list[psutil.Process]:
        """SIGKILL the process and (or not) all that it started; those that it started."""
        family = psutil.Process(self.pid).children(recursive=True)
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

    def code(self, seconds: float) -> int | None:
        """The exit code, waited for so long."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


@cache
def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder that nobody writes to."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_only_whole_things_show(root: Path, undisturbed: Path) -> None:
    """What any reader can see of a killed run is what the undisturbed run has."""
    for path in (*(f"cube.zarr/{group}" for group in GROUPS), "maps.zarr"):
        if contents.__wrapped__(root / path) == contents(undisturbed / path):
            continue  # the same bytes read the same
        try:
            seen = xr.open_zarr(root / path, consolidated=False, chunks=None)
        except (FileNotFoundError, KeyError):
            continue
        whole = xr.open_zarr(undisturbed / path, consolidated=False, chunks=None)
        for name, data in seen.data_vars.items():
            np.testing.assert_array_equal(data.values, whole[name].values, err_msg=f"{path}/{name}")
    if not (root / "ledger" / "recipe.json").is_file():
        return
    opened = smscale.open(root)
    for name in ("coarse", "stations", "maps", "land_cover"):
        with suppress(SmscaleError):
            assert getattr(opened, name).sizes
    for name in ("samples.parquet", "samples.csv", "report/metrics.json", "report/index.html"):
        if (root / name).exists():
            assert (root / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for model in (root / "models").glob("[a-z]*"):
        assert load_model(model).features
    if (root / "report" / "index.html").exists():
        for figure in re.findall(r'src="(figures/[^"]+)"', (root / "report" / "index.html").read_text()):
            assert (root / "report" / figure).read_bytes() == (undisturbed / "report" / figure).read_bytes()


def assert_product_files_are_whole(root: Path, undisturbed: Path) -> None:
    """What a killed simulation shows beside the truth is what the undisturbed one wrote."""
    for path in (root / "world").rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and not any(p.startswith(".") or p in ("ledger", "truth.zarr") for p in name.parts):
            assert path.read_bytes() == (undisturbed / name).read_bytes(), name
    with pytest.raises((FileNotFoundError, KeyError)):
        xr.open_zarr(root / "world" / "truth.zarr", group="fine", consolidated=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_once_in_every_stage(
    tiny_recipe: Path,
    tiny_run: Path,
    tmp_path: Path,
    digests: Callable[[Path], dict[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, rng = tmp_path / "run", random.Random(4451)
    for phase in ("land", "files"):
        life = Life(tiny_recipe, root, "none")
        life.wait_for(root / "world" / "ledger" / phase, 1)
        time.sleep(rng.uniform(0, 0.4))
        life.kill()
        assert_product_files_are_whole(root, tiny_run)
    for stage in STAGES:
        life = Life(tiny_recipe, root, "none")
        life.wait_for(root / "ledger" / stage, rng.randint(1, 3) if stage not in ("evaluate", "match") else 1)
        if stage == "ingest":
            assert cli.main(arguments_of(tiny_recipe, root, "none")) == 2
            refused = capsys.readouterr().err
            assert refused.count("\n") == 1
            assert f"process {life.pid}" in refused
        time.sleep(rng.uniform(0, 0.15))
        life.kill()
        assert_only_whole_things_show(root, tiny_run)
    assert "nothing to do" in Life(tiny_recipe, root, "none").finish()
    assert not differing(digests(root), digests(tiny_run))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_with_and_without_its_workers(
    tiny_recipe: Path,
    tiny_run: Path,
    tmp_path: Path,
    copy_run: Callable[..., Path],
    digests: Callable[[Path], dict[str, str]],
) -> None:
    """Of a cluster: first all at once; then the client alone, whose workers must not stay. The report is not made again."""
    root = copy_run(tiny_run, tmp_path / "run")
    for stage in reversed(STAGES[3:]):
        Workspace(root).forget(stage)
    life = Life(tiny_recipe, root, "local")
    life.wait_for(root / "ledger" / "downscale", 2)
    assert len(life.kill()) >= 2
    assert_only_whole_things_show(root, tiny_run)
    life = Life(tiny_recipe, root, "local")
    life.wait_for(root / "ledger" / "downscale", 5)
    orphans = life.kill(everything=False)
    assert_only_whole_things_show(root, tiny_run)
    done = {stage: sorted(p.name for p in (root / "ledger" / stage).glob("[0-9]*.json")) for stage in STAGES[3:5]}
    assert len(done["downscale"]) >= 5, "one pass"
    assert len(done["downscale"]) - len(done["fuse"]) in (0, 1), "makes the blocks of both stages"
    for stage in done:  # the rest of each alone, and without a cluster
        said = Life(tiny_recipe, root, "none", only=stage).finish()
        assert "Traceback" not in said
        assert "UserWarning" not in said
    changed = differing(digests(root), digests(tiny_run))
    assert changed
    assert all(name.startswith("report/") for name in changed)
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert not alive


class Death(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize(
    ("stage", "where", "moment"),
    [
        ("fuse", (Workspace, "forget"), 1),
        ("fuse", (store, "create"), 1),
        ("fuse", (store, "write"), 5),
        ("fuse", (store, "_publish"), 4),
        ("fuse", (Workspace, "finish"), 1),
        ("evaluate", (Workspace, "finish"), 1),
        ("match", (Workspace, "forget"), 4),
        ("match", (store, "_publish"), 2),
        ("match", (Workspace, "finish"), 1),
    ],
)
def test_stopped_at_an_awkward_moment(
    tiny_recipe: Path,
    tiny_run: Path,
    tmp_path: Path,
    copy_run: Callable[..., Path],
    digests: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    where: tuple[Any, str],
    moment: int,
) -> None:
    """Between two steps that a clock would rarely hit: the n-th call of a function is the last thing that happens."""
    root = copy_run(tiny_run, tmp_path / "run")
    record = root / "ledger" / f"{stage}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "of another time"}))
    prepared = root / "ledger" / f"{stage}.prepared.json"
    prepared.write_text(json.dumps({"fingerprint": "of another time"}))
    calls = 0
    original = getattr(*where)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise Death
        return original(*args, **kwargs)

    def run() -> None:
        pipeline.run(config.read(tiny_recipe), Workspace(root), cluster=None, progress=False, only=stage)

    with monkeypatch.context() as patch:
        patch.setattr(*where, dying)
        with pytest.raises(Death):
            run()
    assert_only_whole_things_show(root, tiny_run)
    run()
    assert_only_whole_things_show(root, tiny_run)
    there, expected = digests(root), digests(tiny_run)
    gone = {"match": ("samples", "models", "maps", "report"), "fuse": ("report",), "evaluate": ()}[stage]
    assert set(differing(there, expected)) <= {n for n in expected if n.startswith(gone) and n not in there}
    assert (root / "samples.parquet").exists()


def test_a_dead_holder_does_not_hold(tiny_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / ".lock").write_text("process 1 on some-other-machine")
    with Workspace(root).held():
        assert (root / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    with Workspace(root).held():
        pass


def test_fresh_that_was_killed_leaves_nothing_that_looks_finished(
    tiny_recipe: Path, tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    original = pipeline.remove
    removed: list[str] = []

    def dying(path: Path) -> None:
        if path.name == "cube.zarr":
            raise Death
        removed.append(path.name)
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "remove", dying)
        with pytest.raises(Death):
            pipeline.run(config.read(tiny_recipe), Workspace(root), cluster=None, progress=False, fresh=True)
    assert "maps.zarr" in removed
    assert [Workspace(root).finished(stage) for stage in STAGES] == [None] * len(STAGES)
    with pytest.raises(SmscaleError):
        pipeline.run(config.read(tiny_recipe), Workspace(root), cluster=None, progress=False, only="match")
