"""inspect: layouts, sizes and coverage as they are, on a page that fits a terminal."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from made_workspace import STEPS, field, make

from smscale import schema, store
from smscale.inspect import WIDTH, inspect
from smscale.workspace import Workspace, open_workspace


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    return make(tmp_path / "made")


def test_layout_and_sizes_are_those_on_disk(made: Workspace) -> None:
    rows = {f"{r['store']}/{r['array']}": r for r in inspect(made).arrays}
    row = rows["cube.zarr/fine/overpass/values"]
    assert row["dims"] == ["time", "lat", "lon", "variable"]
    assert (row["shape"], row["chunk"], row["shard"]) == ([6, 5, 7, 1], [1, 2, 2, 1], [2, 4, 4, 1])
    assert (row["dtype"], row["codec"]) == ("float32", "zstd 2")
    files = [p for p in (made.root / "cube.zarr/fine/overpass/values").rglob("*") if p.is_file()]
    assert (row["files"], row["bytes"]) == (len(files), sum(p.stat().st_size for p in files))
    assert row["logical_bytes"] == 6 * 5 * 7 * 4
    assert set(rows) == {
        "cube.zarr/fine/overpass/values",
        *(f"maps.zarr/{n}" for n in ("gda_kriging", "soil_moisture_rf", "status_gda_kriging")),
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_coverage_by_month_is_that_of_the_values(made: Workspace, threads: int) -> None:
    """The period runs from 30 June to 2 July: two months."""
    rows = {f"{r['group']}/{r['variable']}": r for r in inspect(made, threads=threads).coverage}
    assert set(rows) == {
        "fine/overpass/lst",
        "maps/gda_kriging",
        "maps/soil_moisture_rf",
    }  # of bits there is no coverage
    there = np.isfinite(field("lst")).sum(axis=(1, 2))
    june = STEPS["local_date"].values < np.datetime64("2017-07-01")
    assert june.sum() == 2
    row = rows["fine/overpass/lst"]
    assert row["months"] == {"2017-06": [int(there[june].sum()), 2 * 35], "2017-07": [int(there[~june].sum()), 4 * 35]}
    assert (row["valid"], row["cells"]) == (int(there.sum()), 6 * 35)


def test_coverage_of_classes_years_and_static_layers(made: Workspace) -> None:
    lat, lon = ("lat", np.array([3.0, 2.0, 1.0])), ("lon", np.array([1.0, 2.0]))
    classes = np.array([[[1, 255], [2, 3], [255, 17]]], np.uint8)
    shares = np.zeros((1, 17, 3, 2), np.uint8)
    cover = xr.Dataset(
        {
            "land_cover": (("year", "lat", "lon"), classes),
            "land_cover_fraction": (("year", "igbp_class", "lat", "lon"), shares),
        },
        {"year": ("year", np.array([2017], np.int32)), "lat": lat, "lon": lon},
    )
    values = np.ones((3, 2, 2), np.float32)
    values[0, :, 1] = np.nan
    static = xr.Dataset(
        {"values": (("lat", "lon", "variable"), values)}, {"lat": lat, "lon": lon, "variable": ["elevation", "slope"]}
    )
    weight = xr.Dataset({"weight": (("lat", "lon"), np.array([[0.0, 1.0], [np.nan, 2.0], [0.0, 0.0]], np.float32))})
    for group, data in (("fine/land_cover", cover), ("fine/static", static), ("coarse", weight)):
        store.create(made.cube, group, data, {})
        store.publish(made.cube, group)
    rows = {f"{r['group']}/{r['variable']}": r for r in inspect(made).coverage}
    assert rows["fine/land_cover/land_cover"]["months"] == {"2017": [4, 6]}
    assert rows["fine/static/elevation"]["months"] == {"": [6, 6]}
    assert rows["fine/static/slope"]["months"] == {"": [4, 6]}
    assert rows["coarse/weight"]["valid"] == 2  # accepted: neither 0 nor missing


def test_quick_takes_reports_and_reads_no_value(made: Workspace) -> None:
    made.finish("ingest", "ingest", {"coverage": {"overpass": {"valid": 30, "cells": 200, "cells_without_tile": 0}}})
    made.finish("downscale", "downscale", {"cells": 400, "status": {"rf": {"valid": 100, "no_lst": 300}}})
    for chunks in (made.root / "maps.zarr").glob("*/c"):
        if chunks.parent.name in ("gda_kriging", "soil_moisture_rf"):
            shutil.rmtree(chunks)
    rows = {f"{r['group']}/{r['variable']}": (r["valid"], r["cells"]) for r in inspect(made, quick=True).coverage}
    assert rows == {"fine/overpass/lst": (30, 200), "maps/soil_moisture_rf": (100, 400)}


def test_unfinished_arrays_are_shown_as_such(made: Workspace) -> None:
    path = made.root / "maps.zarr" / "gda_kriging"
    (path / "zarr.json").rename(path / "unfinished.json")
    (made.root / "ledger" / "fuse.json").unlink()
    facts = inspect(made)
    assert "gda_kriging (unfinished)" in facts.text
    assert not any(row["variable"] == "gda_kriging" for row in facts.coverage)
    assert "unfinished: fuse" in facts.text


def test_the_page_fits_a_terminal_whatever_the_sizes(made: Workspace) -> None:
    """A cube of years: its documents alone, no value."""
    n = 2 * 366 * 3
    steps = schema.overpass_steps(
        "2017-01-01", str(pd.Timestamp("2017-01-01") + pd.Timedelta(days=n // 2 - 1))[:10], 100.0
    )
    shape, dims = (n, 12345, 23456), ("time", "lat", "lon")
    names = ("a_variable_with_a_name_that_is_far_longer_than_any_page_has_room_for", "b")
    template = xr.Dataset({name: (dims, store.empty(shape, np.float32)) for name in names}, steps.coords)
    store.create(
        made.cube,
        "fine/wide",
        template,
        {"time": 1, "lat": 1000, "lon": 1000},
        {"time": 100, "lat": 10000, "lon": 10000},
    )
    store.publish(made.cube, "fine/wide")
    lines = inspect(made, quick=True).text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any("2196x12345x23456" in line and "100x10000x10000" in line for line in lines)


def test_a_run_is_described(tiny_run: Path) -> None:
    facts = inspect(open_workspace(tiny_run))
    text = facts.text
    assert max(map(len, text.splitlines())) <= WIDTH
    for said in (
        "recipe      tiny",
        "EPSG:4326",
        "EPSG:6933",
        "36.0 km",
        "2017-07-10 to 2017-07-15, 12 overpass steps",
    ):
        assert said in text
    assert "stages      ingest, match, train, downscale, fuse, evaluate" in text
    told = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    workspace = open_workspace(tiny_run)
    assert told["samples"] == len(workspace.samples)
    assert told["stations"] == workspace.stations.sizes["station"]
    assert told["grids"]["fine"]["shape"] == [workspace.maps.sizes["lat"], workspace.maps.sizes["lon"]]
    covered = {f"{r['group']}/{r['variable']}": r["valid"] for r in told["coverage"]}
    assert covered["maps/gda_idw"] == int(workspace.maps["gda_idw"].notnull().sum())
    assert covered["fine/overpass/lst"] == int(workspace.fine["overpass"]["lst"].notnull().sum())
    assert covered["fine/land_cover/land_cover"] == int((workspace.land_cover != schema.LAND_COVER_FILL).sum())


def test_quick_agrees_with_what_is_counted(tiny_run: Path) -> None:
    workspace = open_workspace(tiny_run)
    counted = {f"{r['group']}/{r['variable']}": (r["valid"], r["cells"]) for r in inspect(workspace).coverage}
    quick = {f"{r['group']}/{r['variable']}": (r["valid"], r["cells"]) for r in inspect(workspace, quick=True).coverage}
    assert {"fine/overpass/lst", "maps/soil_moisture_rf", "maps/gda_idw"} <= set(quick)
    assert quick == {name: counted[name] for name in quick}
