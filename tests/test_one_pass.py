"""The pass that predicts and fuses: the same maps whatever the blocks, in one pass or in two stages, closed or not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestRegressor

import smscale
from smscale import config, pipeline, store
from smscale.config import PREDICTORS
from smscale.errors import InputError, RecipeError
from smscale.grid import grid_of
from smscale.models import save_model
from smscale.pipeline.fuse import Merge
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.merging import merge_block
from smscale.pipeline.plan import plan_of
from smscale.pipeline.prediction import Prediction
from smscale.pipeline.run import Run
from smscale.pipeline.stations import mapped_series, predicted_series, station_cells
from smscale.schema import Status
from smscale.verify import verify
from smscale.workspace import Workspace, plane_values, predictor_plane

FUSED = ("gda_kriging", "gda_idw", "gra_kriging", "gra_idw")


@pytest.fixture(scope="module")
def made(tiny_run: Path, tiny_recipe: Path) -> tuple[Run, Layout]:
    """The finished tiny run, as its stages see it."""
    recipe = pipeline.with_region(config.read(tiny_recipe))
    order = ("ingest", "match", "train", "downscale", "fuse", "evaluate")
    return Run(recipe, Workspace(tiny_run), order, progress=False), layout_of(recipe)


def map_digests(root: Path) -> dict[str, str]:
    files = [p for p in (root / "maps.zarr").rglob("*") if p.is_file()]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@st.composite
def windows(draw: st.DrawFn, shape: tuple[int, int, int] = (12, 68, 90)) -> tuple[slice, slice, slice]:
    """Some steps, rows and columns of the tiny grid, at least two cells along each side."""
    parts = []
    for size, least in zip(shape, (1, 2, 2), strict=True):
        start = draw(st.integers(0, size - least))
        parts.append(slice(start, draw(st.integers(start + least, size))))
    return parts[0], parts[1], parts[2]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=windows())
def test_any_window_gives_the_maps_to_rounding(made: tuple[Run, Layout], region: tuple[slice, slice, slice]) -> None:
    run, layout = made
    grid = layout.grid.window(*region[1:])
    maps = run.workspace.maps_path
    for name, values, status in Prediction.of(run).predict(["gabp", "rf"], grid, region):
        np.testing.assert_allclose(values, store.read(maps, "", f"soil_moisture_{name}", region), atol=2e-6)
        np.testing.assert_array_equal(status, store.read(maps, "", f"status_{name}", region))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=windows())
def test_any_window_is_fused_alike(
    made: tuple[Run, Layout],
    region: tuple[slice, slice, slice],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a block of any shape would write, against the maps that stand."""
    run, layout = made
    merge = Merge(run, layout, plan_of(run.recipe, layout), run.upstream("downscale"))
    kept: dict[str, np.ndarray] = {}
    with monkeypatch.context() as patch:
        patch.setattr(store, "write", lambda url, group, name, where, values: kept.update({name: values.copy()}) or {})
        merge_block(merge.merging(run.report("fuse")), layout.grid.window(*region[1:]), region)
    assert {*FUSED, "status", "gda_kriging_variance"} <= set(kept)
    for name, values in kept.items():
        held = store.read(run.workspace.maps_path, "", name, region)
        if name.startswith("status"):
            np.testing.assert_array_equal(values, held)
        else:
            np.testing.assert_allclose(values, held, atol=2e-6)


@pytest.mark.parametrize("never_later", [False, True])
def test_planes_read_by_block_are_those_of_the_lazy_view(made: tuple[Run, Layout], never_later: bool) -> None:
    workspace = made[0].workspace
    steps, rows, cols = workspace.steps.isel(time=slice(3, 9)), slice(11, 40), slice(0, 90)
    for name in PREDICTORS:
        lazy = predictor_plane(workspace, name, steps, never_later)
        lazy = lazy.isel({d: w for d, w in (("lat", rows), ("lon", cols)) if d in lazy.dims})
        lazy = lazy.expand_dims({d: 1 for d in ("time", "lat", "lon") if d not in lazy.dims})
        found = plane_values(workspace, name, steps, never_later, rows, cols)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(*np.broadcast_arrays(found, lazy.transpose("time", "lat", "lon").values), name)


def test_the_small_pass_finds_what_the_maps_hold_at_the_stations(
    made: tuple[Run, Layout], tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    run, layout = made
    run = replace(run, workspace=Workspace(copy_run(run.workspace.root, tmp_path / "run")))
    blocks = plan_of(run.recipe, layout).blocks
    best = run.report("train")["best"]
    predicted = predicted_series(run, layout, blocks, Prediction.of(run), best, "again")
    mapped = mapped_series(run, layout, blocks, "fuse", [f"soil_moisture_{best}"], "once more")
    assert np.isfinite(predicted).sum() > 20
    np.testing.assert_allclose(predicted, mapped[f"soil_moisture_{best}"], atol=2e-6)


def test_two_stages_write_the_bytes_of_one_pass(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    for stage in ("downscale", "fuse"):
        Workspace(root).forget(stage)
    for stage in ("downscale", "fuse"):
        pipeline.run(config.read(tiny_recipe), Workspace(root), cluster=None, only=stage, progress=False)
    assert map_digests(root) == map_digests(tiny_run)


def test_exact_closure_brings_coarse_means_to_the_retrievals(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    recipe = config.read(tiny_recipe, ["closure=exact", "bounds=[0, 1]"])
    pipeline.run(recipe, Workspace(root), cluster=None, only="downscale", progress=False)
    pipeline.run(recipe, Workspace(root), cluster=None, only="fuse", progress=False)
    workspace = smscale.open(root)
    report = workspace.finished("fuse")["report"]
    name = f"soil_moisture_{report['background']}"
    closed, status = workspace.maps[f"{name}_closed"].load(), workspace.maps[f"status_{report['background']}_closed"]
    untouched = (status & np.uint32(Status.CLOSURE_NOT_APPLIED)) != 0
    valid = closed.notnull()
    assert 0 < float((untouched & valid).sum()) < float(valid.sum())
    coarse = workspace.coarse.load()
    retrieved = coarse["soil_moisture"].where(coarse["weight"] > 0).values
    grid = grid_of(coarse)

    def off(data: xr.DataArray) -> np.ndarray:
        mean = smscale.upscale(data.assign_attrs(units="m3 m-3"), grid, min_valid_fraction=0.35).values
        return np.abs(mean - retrieved)[np.isfinite(mean) & np.isfinite(retrieved)]

    after, before = off(closed), off(workspace.maps[name].load())
    assert after.size >= 3, "cells that clouds leave enough of"
    assert np.median(before) > 0.01
    assert np.median(after) < 1e-6
    means = report["closure"]["coarse_mean_errors"]
    assert means["aim"]["rmse"] < 0.05 * means["model"]["rmse"], "only what is clipped at the bounds is missing"
    assert means["soil_moisture_" + report["background"] + "_closed"]["rmse"] < means["model"]["rmse"]
    assert set(report["closure"]["coarse_cells"]) == {"closed", "limited", "no_retrieval", "too_little_valid"}
    assert not (root / "ledger" / "fuse" / "sums").exists()


def test_a_worker_too_small_is_refused_before_the_run_with_chunks_that_fit(tiny_recipe: Path, tmp_path: Path) -> None:
    sets = ["resources.memory_per_worker=1.2GiB", "chunks={time: 8, lat: 2000, lon: 2000, shard: [4, 1, 1]}"]
    recipe = replace(
        config.read(tiny_recipe, sets), region=(90.0, 20.0, 110.0, 40.0), period=("2017-06-01", "2017-06-30")
    )
    with pytest.raises(RecipeError, match=r"memory_per_worker: 1229 MiB given.*chunks: \{.*which fits"):
        pipeline.run(recipe, Workspace(tmp_path / "run"), cluster=None, progress=False)
    assert not (tmp_path / "run").exists()


def test_fused_layers_say_what_they_are(tiny_run: Path) -> None:
    maps = smscale.open(tiny_run).maps
    assert maps["station_count"].dims == ("time",)
    assert int(maps["station_count"].max()) > 0
    assert {n for n in maps if str(n).endswith("_variance")} == {"gda_kriging_variance", "gra_kriging_variance"}
    assert maps["gda_kriging_variance"].attrs["units"] == "m6 m-6"
    variance, status = maps["gda_kriging_variance"].values, maps["status_gda_kriging"].values
    by_kriging = (status & np.uint32(Status.FUSED_KRIGING)) != 0
    known = np.isfinite(maps["gda_kriging"].values)
    assert np.isfinite(variance[by_kriging & known]).all()
    assert np.isnan(variance[~by_kriging]).all()
    assert maps.attrs["source"].startswith("synthetic SMAP retrievals")
    assert "doi:10.3390/rs15184451" in maps.attrs["references"]


def test_stations_outside_the_grid_have_no_cell(made: tuple[Run, Layout]) -> None:
    run, layout = made
    row, col = station_cells(run.workspace, layout.grid.window(slice(0, 5), slice(0, 5)))
    assert ((row < 0) == (col < 0)).all()
    assert (row < 0).any()


@pytest.mark.parametrize("closure", ["none", "weighted"])
def test_what_was_solved_is_solved_again_where_its_file_is_lost(
    closure: str, tiny_run: Path, tiny_recipe: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    recipe = config.read(tiny_recipe, [f"closure={closure}", "fusion.interpolators=[idw]", "fusion.residuals=[ratio]"])
    pipeline.run(recipe, Workspace(root), cluster=None, only="fuse", progress=False)
    before, solved = map_digests(root), Workspace(root).finished("fuse")
    Workspace(root).unfinish("fuse")
    (root / "ledger" / "fuse" / "fields" / "gra_idw" / "solved-0.npz").unlink()
    shutil.rmtree(root / "ledger" / "fuse" / "closure", ignore_errors=True)
    next((root / "ledger" / "fuse").glob("0+*.json")).unlink()
    pipeline.run(recipe, Workspace(root), cluster=None, only="fuse", progress=False)
    assert map_digests(root) == before
    assert Workspace(root).finished("fuse") == solved
    assert not verify(Workspace(root)).defects
    kept = root / "ledger" / "fuse" / "fields" / "gra_idw" / "posed-0.npz"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert [defect.where for defect in verify(Workspace(root)).defects] == ["ledger/fuse/fields/gra_idw/posed-0.npz"]


def test_a_model_of_other_predictors_is_named(made: tuple[Run, Layout], tmp_path: Path) -> None:
    table = pd.DataFrame({"lst": [290.0, 300.0, 310.0, 280.0], "rain_10d": [0.0, 1.0, 2.0, 3.0]})
    forest = RandomForestRegressor(2, random_state=0).fit(table.to_numpy(np.float32), [0.1, 0.2, 0.3, 0.1])
    save_model(tmp_path / "models" / "rf", forest, list(table), table, {}, {})
    shutil.copytree(made[0].workspace.cube, tmp_path / "cube.zarr")
    prediction = replace(Prediction.of(made[0]), root=str(tmp_path), models=("rf",))
    region = (slice(0, 2), slice(0, 4), slice(0, 4))
    with pytest.raises(InputError, match=r"trained on rain_10d, which the cube does not have: train it in this run"):
        list(prediction.predict(["rf"], made[1].grid.window(*region[1:]), region))


def test_every_option_at_once_leaves_no_silent_hole(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    options = (
        "systematic: spatial-bias, taper_km: 15, pooling: step, neighbours: 6, negative_weights: zero, exact: true"
    )
    recipe = config.read(tiny_recipe, [f"fusion={{{options}, variogram: matern}}", "closure=weighted"])
    pipeline.run(recipe, Workspace(root), cluster=None, only="fuse", progress=False)
    maps, report = smscale.open(root).maps.load(), Workspace(root).finished("fuse")["report"]
    closed = f"soil_moisture_{report['background']}_closed"
    fused = Status.FUSED_KRIGING | Status.FUSED_IDW | Status.FUSED_MEAN_RESIDUAL
    for name in FUSED:
        values, status = maps[name].values, maps[f"status_{name}"].values
        assert (status[np.isnan(values)] != 0).all()
        far = np.isfinite(values) & (status & np.uint32(Status.NOT_FUSED) != 0)
        assert not (status[far] & np.uint32(fused)).any()
        assert far.any(), "the taper leaves cells as they are"
        np.testing.assert_array_equal(values[far], maps[closed].values[far])
        found = report["fields"][name]
        assert (found["systematic"]["name"], found["taper_km"]) == ("spatial-bias", 15.0)
    assert report["closure"]["kind"] == "weighted"
