"""Days, tiles and composites that come later: the cube of many small ingests is that of one, and finished shards stay."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

from smscale import config, store
from smscale.pipeline.ingest import arrays, ingest
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run
from smscale.workspace import Workspace

GROUPS = ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover", "coarse", "stations")
FIRST, LAST = "2017-07-10", "2017-07-15"


@pytest.fixture(scope="module")
def raw(tiny_run, tmp_path_factory):
    """The raw files of the tiny world, by hard links, so that some can be taken away."""
    folder = tmp_path_factory.mktemp("raw") / "files"
    shutil.copytree(
        tiny_run / "world", folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.zarr", "ledger")
    )
    return folder


@pytest.fixture
def recipe(tiny_recipe):
    made = replace(config.read(tiny_recipe), world=None, inputs="raw", region=(102.8, 31.66, 103.7, 32.34))
    return replace(made, period=(FIRST, LAST))


def linked(raw, folder):
    """The raw files again, by hard links: some can be taken away."""
    shutil.copytree(raw, folder, copy_function=os.link)
    return folder


def cube(recipe, root, raw, last=LAST):
    """Ingest the days up to `last` into the workspace at `root`; the blocks that were done, by key."""
    made = replace(recipe, period=(FIRST, last))
    workspace = Workspace(Path(root))
    before = ages(workspace)
    ingest(Run(made, workspace, ("ingest", "match"), progress=False), layout_of(made), raw)
    return {key for key, age in ages(workspace).items() if before.get(key) != age}


def ages(workspace):
    folder = workspace.ledger("ingest").folder
    return {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.json")} if folder.is_dir() else {}


def shards(root):
    """Digest of every chunk of the fine variables below a workspace."""
    found = (p for p in Path(root, "cube.zarr", "fine").rglob("c/*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found if "/values/" in str(p)}


def assert_same_cube(a, b):
    for group in GROUPS:
        left, right = (xr.open_zarr(Path(r, "cube.zarr"), group=group, consolidated=False) for r in (a, b))
        xr.testing.assert_identical(left.load(), right.load())
    assert not store.exists(Path(a, "cube.zarr"), "fine/overpass_newest")


@pytest.fixture(scope="module")
def at_once(tiny_run, tiny_recipe, raw, tmp_path_factory):
    made = replace(config.read(tiny_recipe), world=None, inputs="raw", region=(102.8, 31.66, 103.7, 32.34))
    root = tmp_path_factory.mktemp("once")
    cube(made, root, raw)
    return root


@pytest.fixture(scope="module")
def begun(tiny_recipe, raw, tmp_path_factory):
    """A workspace of four days and then a fifth, which waits in a shard of its own; nobody writes to it."""
    made = replace(config.read(tiny_recipe), world=None, inputs="raw", region=(102.8, 31.66, 103.7, 32.34))
    root = tmp_path_factory.mktemp("begun")
    cube(made, root, raw, "2017-07-13")
    cube(made, root, raw, "2017-07-14")
    return root


def test_days_added_one_by_one_give_the_cube_of_one_go_and_touch_no_finished_shard(recipe, raw, at_once, tmp_path):
    held = {}
    lengths = []
    for last in ("2017-07-12", "2017-07-13", "2017-07-14", LAST):  # shards of 2 days
        cube(recipe, tmp_path, raw, last)
        now = shards(tmp_path)
        changed = {name for name in held if "newest" not in name and now.get(name) != held[name]}
        assert all(name.startswith("cube.zarr/fine/overpass/values/c/1/") for name in changed), changed
        assert not changed or last == "2017-07-13"  # the last shard was not full: the third and fourth day fill it
        held = now
        opened = Workspace(tmp_path)
        assert opened.fine["overpass"].sizes["time"] == opened.steps.sizes["time"] == opened.coarse.sizes["time"]
        lengths.append((opened.steps.sizes["time"], arrays.newest_steps(str(opened.cube))))
    assert lengths == [(6, 0), (8, 0), (10, 2), (12, 0)]  # the fifth day waits in a shard of its own
    assert_same_cube(tmp_path, at_once)


def test_the_newest_days_are_part_of_the_opened_cube(begun, at_once):
    opened, whole = Workspace(begun).fine["overpass"], Workspace(at_once).fine["overpass"]
    assert store.exists(Path(begun, "cube.zarr"), "fine/overpass_newest")
    xr.testing.assert_equal(opened.load(), whole.isel(time=slice(0, 10)).load())


def test_a_granule_that_comes_late_costs_only_the_blocks_that_it_touches(recipe, raw, at_once, tmp_path):
    partial = tmp_path / "raw"
    shutil.copytree(raw, partial, copy_function=os.link)
    (late,) = partial.rglob("MYD11A1.A2017192*.hdf")
    away = tmp_path / late.name
    late.rename(away)
    cube(recipe, tmp_path / "w", partial)
    held = shards(tmp_path / "w")
    away.rename(late)
    done = cube(recipe, tmp_path / "w", partial)
    # 2017-07-11: its own two days, and the night of the next morning.
    assert done == {"overpass.0-v05", "overpass.4-v05"}
    now = shards(tmp_path / "w")
    assert {name.split("/values/")[0] for name in held if held[name] != now[name]} <= {"cube.zarr/fine/overpass"}
    assert_same_cube(tmp_path / "w", at_once)


def test_a_composite_that_comes_late_lies_where_it_belongs(recipe, raw, at_once, tmp_path):
    partial = tmp_path / "raw"
    shutil.copytree(raw, partial, copy_function=os.link)
    composites = sorted(partial.rglob("MOD16A2*.hdf"))
    away = tmp_path / composites[0].name
    composites[0].rename(away)
    cube(recipe, tmp_path / "w", partial)
    assert Workspace(tmp_path / "w").fine["eight_day"].sizes["time"] == len(composites) - 1
    away.rename(composites[0])
    done = cube(recipe, tmp_path / "w", partial)
    assert {key.split(".")[0] for key in done} == {"eight_day"}
    assert_same_cube(tmp_path / "w", at_once)


def test_nothing_new_is_nothing_to_do(recipe, raw, tmp_path):
    cube(recipe, tmp_path, raw, "2017-07-12")
    assert cube(recipe, tmp_path, raw, "2017-07-12") == set()


def test_a_file_that_is_not_read_changes_only_what_the_report_says(recipe, raw, tmp_path):
    partial = tmp_path / "raw"
    shutil.copytree(raw, partial, copy_function=os.link)
    cube(recipe, tmp_path / "w", partial, "2017-07-12")
    before = Workspace(tmp_path / "w").finished("ingest")
    (partial / "notes.csv").write_text("a,b\n1,2\n")
    assert cube(recipe, tmp_path / "w", partial, "2017-07-12") == set()
    after = Workspace(tmp_path / "w").finished("ingest")
    assert after["fingerprint"] == before["fingerprint"], "what follows has no reason to begin anew"
    assert [p["file"] for p in after["report"]["problems"] if p not in before["report"]["problems"]] == ["notes.csv"]


def test_another_quality_of_smap_costs_only_the_retrievals(recipe, raw, at_once, tmp_path):
    shutil.copytree(at_once, tmp_path / "w")
    strict = replace(recipe, smap=replace(recipe.smap, quality="strict"))
    assert {key.split(".")[0] for key in cube(strict, tmp_path / "w", raw)} == {"smap"}
    cube(strict, tmp_path / "once", raw)
    assert_same_cube(tmp_path / "w", tmp_path / "once")


def test_a_shorter_period_begins_anew(recipe, raw, at_once, tmp_path):
    shutil.copytree(at_once, tmp_path, dirs_exist_ok=True)
    cube(recipe, tmp_path, raw, "2017-07-11")
    assert Workspace(tmp_path).steps.sizes["time"] == 4
    assert (
        json.loads((tmp_path / "ledger" / "ingest.json").read_text())["report"]["coverage"]["overpass"]["cells"]
        == 4 * 6120
    )


@pytest.mark.parametrize("where", ["extend", "write", "publish", "remove"])
def test_a_run_killed_while_days_are_added_goes_on(recipe, raw, begun, at_once, tmp_path, monkeypatch, where):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    original, calls = getattr(store, where), []

    def dies(*args, **kwargs):
        calls.append(args)
        if args[1:] == ("fine/overpass_newest",) if where == "remove" else len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(store, where, dies)
    with pytest.raises(KeyboardInterrupt):
        cube(recipe, tmp_path, raw)
    monkeypatch.setattr(store, where, original)
    cube(recipe, tmp_path, raw)
    assert_same_cube(tmp_path, at_once)


@pytest.mark.parametrize("last", ["2017-07-16", "2017-07-17"])
def test_a_run_killed_before_it_dropped_days_that_had_moved_takes_later_ones(
    recipe, raw, begun, tmp_path, monkeypatch, last
):
    shutil.copytree(begun, tmp_path / "w")
    original = store.remove

    def dies(*args):
        if args[1:] == ("fine/overpass_newest",):
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(store, "remove", dies)
    with pytest.raises(KeyboardInterrupt):
        cube(recipe, tmp_path / "w", raw)
    monkeypatch.setattr(store, "remove", original)
    done = cube(recipe, tmp_path / "w", raw, last)
    moved = {key for key in done if key.startswith("overpass.")}
    assert moved == (set() if last == "2017-07-16" else {"overpass.12-v05"})  # four new steps fill a shard
    cube(recipe, tmp_path / "once", raw, last)
    opened, whole = (Workspace(tmp_path / name).fine["overpass"].load() for name in ("w", "once"))
    xr.testing.assert_equal(opened, whole)


def test_another_column_map_costs_the_stations_alone(recipe, raw, at_once, tmp_path):
    shutil.copytree(at_once, tmp_path, dirs_exist_ok=True)
    assert cube(replace(recipe, stations={"zone": "UTC"}), tmp_path, raw) == {"stations"}


def test_what_says_where_stations_lie_is_an_input(recipe, raw, tmp_path):
    partial = linked(raw, tmp_path / "raw")
    table = partial / "places.csv"
    table.write_text("station,lat,lon\na,32.0,103.0\n")
    (partial / "values.csv").write_text("station,time,soil_moisture\na,2017-07-11 00:00,0.2\n")
    for path in partial.rglob("*.stm"):
        path.unlink()
    for path in partial.rglob("*.csv"):
        if path.name not in ("places.csv", "values.csv"):
            path.unlink()
    mapped = replace(recipe, stations={"table": "places.csv"})
    cube(mapped, tmp_path / "w", partial)
    assert Workspace(tmp_path / "w").stations["lon"].values.tolist() == [103.0]
    problems = json.loads((tmp_path / "w" / "ledger" / "ingest.json").read_text())["report"]["problems"]
    assert not [p for p in problems if p["file"] in ("places.csv", "values.csv")]
    table.write_text("station,lat,lon\na,32.0,103.1\n")
    assert cube(mapped, tmp_path / "w", partial) == {"stations"}
    assert Workspace(tmp_path / "w").stations["lon"].values.tolist() == [103.1]


def test_what_is_taken_away_leaves_nothing_behind(recipe, raw, tmp_path):
    partial = linked(raw, tmp_path / "raw")
    cube(recipe, tmp_path / "w", partial)
    assert Workspace(tmp_path / "w").coarse["soil_moisture"][8:].notnull().any()
    for path in [*partial.rglob("*.stm"), *partial.rglob("*stations*.csv")]:
        path.unlink()
    for day in ("13", "14", "15", "16"):
        for path in partial.rglob(f"SMAP_L3_SM_P_201707{day}*.h5"):
            path.unlink()
    cube(recipe, tmp_path / "w", partial)
    coarse = Workspace(tmp_path / "w").coarse
    assert coarse["soil_moisture"][8:].isnull().all()
    assert coarse["observation_time"][8:].isnull().all()
    assert coarse["soil_moisture"][:6].notnull().any()
    assert not store.exists(tmp_path / "w" / "cube.zarr", "stations")
