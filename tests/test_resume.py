"""A run killed at any moment, started again, ends with the bytes of the run that nobody disturbed."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lives import STAGES, Life, arguments_of, differing
from whole import assert_only_whole_things_show, assert_product_files_are_whole

from smscale import cli, config, pipeline, store
from smscale.errors import SmscaleError
from smscale.workspace import Workspace


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
        ("fuse", (store.plain, "_publish"), 4),
        ("fuse", (Workspace, "finish"), 1),
        ("evaluate", (Workspace, "finish"), 1),
        ("match", (Workspace, "forget"), 4),
        ("match", (store.plain, "_publish"), 2),
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
