"""One tiny nature run through every stage: what lies in the workspace, and that it is what it says."""

import filecmp
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import rioxarray
import xarray as xr
import zarr

import smscale
from smscale import cli, config, pipeline, schema
from smscale.cluster import connect
from smscale.errors import SmscaleError
from smscale.models import load_model
from smscale.schema import MISSING_BITS, PAPER_PREDICTORS, Status
from smscale.workspace import Workspace

STAGES = ("simulate", "ingest", "match", "train", "downscale", "fuse", "evaluate")
MODELS = ("gabp", "cnn", "rf", "xgb")
FUSED = ("gda_kriging", "gda_idw", "gra_kriging", "gra_idw")
#: tiny.yaml: twelve steps of a 0.68 by 0.9 degree region; chunks of 30 cells, shards of four steps by two by two chunks.
STEPS, ROWS, COLS = 12, 68, 90
TINY = Path(__file__).parent / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def opened(tiny_run: Path) -> Workspace:
    return smscale.open(tiny_run)


def run(recipe: Path, root: Path, *settings: str, **options: Any) -> str:
    """Run in this process; what it said."""
    said: list[str] = []
    pipeline.run(
        config.read(recipe, settings),
        Workspace(root),
        **{"cluster": None, "progress": False} | options,
        say=said.append,
    )
    return "".join(said)


def stages_done(said: str) -> list[str]:
    return re.findall(r"^(\w+) +done in", said, re.MULTILINE)


def plain(path: Path, group: str | None = None) -> xr.Dataset:
    """A group as anybody's xarray opens it."""
    return xr.open_zarr(path, group=group, consolidated=False)


# -- the cube -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "times", "names"),
    [
        ("overpass", STEPS, ["lst", "lst_view_time"]),
        ("eight_day", 2, ["et"]),
        ("sixteen_day", 2, ["ndvi", "evi"]),
        ("static", None, ["elevation", "slope", "aspect", "northness", "eastness"]),
    ],
)
def test_fine_groups_hold_one_cube_each(tiny_run: Path, group: str, times: int | None, names: list[str]) -> None:
    cube = plain(tiny_run / "cube.zarr", f"fine/{group}")
    values = cube["values"]
    leading = {} if times is None else {"time": times}
    assert dict(values.sizes) == {**leading, "lat": ROWS, "lon": COLS, "variable": len(names)}
    assert values.dims == (*leading, "lat", "lon", "variable")
    assert values.dtype == np.float32
    assert cube["variable"].values.tolist() == names
    assert cube.attrs["crs"] == "EPSG:4326"
    assert cube.attrs["Conventions"].startswith("CF-")
    array = zarr.open_array(tiny_run / "cube.zarr" / "fine" / group / "values", mode="r")
    assert array.metadata.zarr_format == 3
    assert array.chunks == (*(1 for _ in leading), 30, 30, 1), "a variable's plane must be readable alone"
    slab = {"overpass": 4}.get(group, 1)
    assert array.shards == (*(slab for _ in leading), 60, 60, len(names))


def test_land_cover_is_classes(tiny_run: Path) -> None:
    cover = zarr.open_array(tiny_run / "cube.zarr" / "fine" / "land_cover" / "land_cover", mode="r")
    assert (cover.dtype, cover.shape) == (np.uint8, (1, ROWS, COLS))
    assert set(np.unique(cover[:])) <= {*range(1, 18), 255}
    labelled = smscale.open(tiny_run).land_cover
    assert labelled.dims == ("year", "lat", "lon")
    assert labelled["year"].values.tolist() == [2017]
    assert len(str(labelled.attrs["flag_meanings"]).split()) == len(np.atleast_1d(labelled.attrs["flag_values"])) == 17


def test_steps_are_local_solar_dates(opened: Workspace) -> None:
    expected = schema.overpass_steps("2017-07-10", "2017-07-15", (102.8 + 103.7) / 2)
    for cube in (opened.fine["overpass"], opened.coarse, opened.maps):
        np.testing.assert_array_equal(cube["time"].values, expected["time"].values)
        np.testing.assert_array_equal(cube["overpass"].values.tolist(), expected["overpass"].values.tolist())
        np.testing.assert_array_equal(cube["local_date"].values, expected["local_date"].values)
        np.testing.assert_array_equal(cube["day_sequence"].values, expected["day_sequence"].values)


def test_fine_variables_carry_units_and_stay_in_range(opened: Workspace) -> None:
    for cadence, cube in opened.fine.items():
        assert tuple(cube.data_vars) == schema.CADENCES[cadence]
        assert cube.attrs["crs"] == "EPSG:4326"
        for name, data in cube.data_vars.items():
            known = schema.VARIABLES[str(name)]
            assert data.attrs["units"] == known.units
            assert data.chunks is not None, "lazy"
            values = data.values[np.isfinite(data.values)]
            assert values.size
            assert values.min() >= known.valid_min
            assert values.max() <= known.valid_max


def test_coarse_lies_on_ease2_cells(opened: Workspace) -> None:
    coarse = opened.coarse
    grid = smscale.Grid.ease2(36, 102.8, 31.66, 103.7, 32.34)
    np.testing.assert_allclose(coarse["lat"], grid.lat, rtol=0, atol=1e-12)
    np.testing.assert_allclose(coarse["x"], grid.x, rtol=0, atol=1e-6)
    assert coarse.attrs["crs"] == "EPSG:6933"
    for name in PAPER_PREDICTORS:
        if schema.VARIABLES[name].cadence == "coordinate":
            continue
        fraction = coarse[f"valid_fraction_{name}"].values
        assert ((fraction >= 0) & (fraction <= 1 + 1e-6)).all()
        least = 0.05 if name == "lst" else 0.3
        values = coarse[name].values
        there = values != 255 if name == "land_cover" else np.isfinite(values)
        assert (fraction[there] >= least - 1e-6).all()
        assert (fraction[~there] < least + 1e-6).all()


def test_plain_xarray_and_rioxarray_find_orientation_and_crs(tiny_run: Path) -> None:
    maps = plain(tiny_run / "maps.zarr")
    assert (np.diff(maps["lat"]) < 0).all()
    assert (np.diff(maps["lon"]) > 0).all()
    for data in (maps["soil_moisture_rf"], plain(tiny_run / "cube.zarr", "fine/overpass")["values"].isel(variable=0)):
        data = data.rio.set_spatial_dims("lon", "lat")
        assert data.rio.crs.to_epsg() == 4326
        transform = data.rio.transform(recalc=True)
        np.testing.assert_allclose(tuple(transform)[:6], (0.01, 0, 102.8, 0, -0.01, 32.34), rtol=0, atol=1e-9)
        np.testing.assert_allclose(tuple(data.rio.transform())[:6], tuple(transform)[:6], rtol=0, atol=1e-9)
    assert rioxarray.__version__


def test_elevation_is_that_of_the_truth(tiny_run: Path, opened: Workspace) -> None:
    """The truth's own 0.01 degree elevation: orientation and registration of the fine grid."""
    truth = plain(tiny_run / "world" / "truth.zarr", "fine")
    np.testing.assert_array_equal(truth["lat"], opened.fine["static"]["lat"])
    found, true = opened.fine["static"]["elevation"].values, truth["elevation"].values
    both = np.isfinite(found) & np.isfinite(true)
    assert np.corrcoef(found[both], true[both])[0, 1] > 0.999
    assert np.abs(found - true)[both].mean() < 15, "metres: the two average different pixels of one cell"


# -- the UTC-day trap ---------------------------------------------------------------------------


def test_coarse_retrievals_stand_at_the_local_date_of_their_own_time(tiny_run: Path, opened: Workspace) -> None:
    """Every retrieval of every granule, by h5py: found at the step of its local solar date and half-day, and only there."""
    coarse = opened.coarse.load()
    grid = smscale.Grid.ease2(36, 102.8, 31.66, 103.7, 32.34)
    lat, lon = grid.lat, grid.lon
    origin = np.datetime64("2000-01-01T12:00:00")  # J2000, seconds of TT-like count that SMAP files use
    best: dict[tuple[int, int, int], tuple[float, float]] = {}
    before_utc_date = 0
    for path in sorted((tiny_run / "world" / "smap").glob("*.h5")):
        file_day = pd.Timestamp(re.search(r"_(\d{8})_", path.name)[1])  # type: ignore[index]
        with h5py.File(path) as file:
            for suffix, overpass in (("", "AM"), ("_pm", "PM")):
                group = file[f"Soil_Moisture_Retrieval_Data_{overpass}"]
                moisture = group[f"soil_moisture{suffix}"]
                seconds = group[f"tb_time_seconds{suffix}"]
                for r in range(3):
                    for c in range(3):
                        row, col = _global_cell(lat[r], lon[c])
                        value, at = float(moisture[row, col]), float(seconds[row, col])
                        if at <= 0:
                            continue
                        local = pd.Timestamp(origin) + pd.Timedelta(seconds=at + lon[c] * 240)
                        step = np.flatnonzero(
                            (coarse["local_date"].values == np.datetime64(local.date()))
                            & (coarse["overpass"].values == ("PM" if local.hour >= 12 else "AM"))
                        )
                        if not step.size:
                            continue
                        before_utc_date += local.date() != file_day.date()
                        away = abs(local.hour + local.minute / 60 - (18 if local.hour >= 12 else 6))
                        key = (int(step[0]), r, c)
                        if key not in best or away < best[key][0]:
                            best[key] = (away, value if value > 0 else np.nan)
    expected = np.full(coarse["soil_moisture"].shape, np.nan, np.float32)
    for key, (_, value) in best.items():
        expected[key] = value
    assert before_utc_date > 5, "the trap is in these files"
    assert np.isfinite(expected).sum() > 40
    np.testing.assert_array_equal(coarse["soil_moisture"].values, expected)


def _global_cell(lat: float, lon: float) -> tuple[int, int]:
    """Row and column of the global 36 km grid, by its definition (964 columns; x = R cos 30 lon, y = R sin lat / cos 30)."""
    from pyproj import Transformer

    x, y = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(lon, lat)
    return int((7314540.83 - y) // 36032.220840584), int((x + 17367530.45) // 36032.220840584)


# -- samples and models -------------------------------------------------------------------------


def test_samples_are_the_cells_that_have_everything(tiny_run: Path, opened: Workspace) -> None:
    table, coarse = opened.samples, opened.coarse.load()
    assert list(table.columns[:14]) == [*PAPER_PREDICTORS, "soil_moisture", "weight"]
    assert not table[[*PAPER_PREDICTORS, "soil_moisture", "weight"]].isna().any(axis=None)
    assert (table["weight"] > 0).all()
    assert not table["land_cover"].isin([13, 15, 17]).any()
    assert len(table) == opened.metrics["samples"]["samples"]
    step = np.searchsorted(coarse["time"].values, table["time"].values)
    row, col = table["row"].to_numpy(), table["col"].to_numpy()
    assert (table["cell"] == row * 3 + col).all()
    assert not table.duplicated(["time", "cell"]).any()
    for name in ("lst", "ndvi", "evi", "et", "soil_moisture", "weight"):
        np.testing.assert_array_equal(table[name].to_numpy(np.float32), coarse[name].values[step, row, col])
    for name in ("elevation", "slope", "aspect"):
        np.testing.assert_array_equal(table[name].to_numpy(np.float32), coarse[name].values[row, col])
    np.testing.assert_allclose(table["longitude"], coarse["lon"].values[col])
    np.testing.assert_array_equal(table["overpass"] == 1, coarse["overpass"].values[step] == "PM")
    whole = np.isfinite(coarse["soil_moisture"].values) & (coarse["weight"].values > 0)
    for name in ("lst", "ndvi", "evi", "et"):
        whole &= np.isfinite(coarse[name].values)
    for name in ("elevation", "slope", "aspect"):
        whole &= np.isfinite(coarse[name].values)[None]
    whole &= ~np.isin(coarse["land_cover"].values, [13, 15, 17, 255])
    assert whole.sum() == len(table)


def test_samples_csv_is_the_papers_form(tiny_run: Path, opened: Workspace) -> None:
    written = pd.read_csv(tiny_run / "samples.csv")
    assert list(written.columns) == [*PAPER_PREDICTORS, "soil_moisture"]
    kept = opened.samples[list(written.columns)]
    np.testing.assert_allclose(written.to_numpy(float), kept.to_numpy(float), rtol=1e-5)


def test_predictors_view_is_lazy_and_matched(opened: Workspace) -> None:
    view = opened.predictors()
    assert view.dims == ("time", "lat", "lon", "variable")
    assert view.shape == (STEPS, ROWS, COLS, 12)
    assert view["variable"].values.tolist() == list(PAPER_PREDICTORS)
    assert view.chunks is not None
    assert view.dtype == np.float32
    assert view.name == "predictors"
    assert "standard_name" not in view.attrs, "twelve variables have no one name"
    step = opened.steps["time"].values[7]
    one = opened.predictors(step)
    assert one.shape == (1, ROWS, COLS, 12)
    np.testing.assert_array_equal(one.values[0], view.sel(time=step).values)
    few = opened.predictors(slice("2017-07-11", "2017-07-12"))
    assert few.sizes["time"] == 4
    planes = one.isel(time=0)
    fine = opened.fine
    np.testing.assert_array_equal(planes.sel(variable="lst"), fine["overpass"]["lst"].sel(time=step))
    np.testing.assert_array_equal(planes.sel(variable="elevation"), fine["static"]["elevation"])
    assert (planes.sel(variable="overpass") == 1).all(), "step 7 is a PM"
    assert (planes.sel(variable="day_sequence") == 4).all()
    np.testing.assert_allclose(planes.sel(variable="longitude")[0], fine["static"]["lon"], rtol=1e-6)
    composites = fine["eight_day"]
    nearest = np.abs(composites["time"].values - step).argmin()
    np.testing.assert_array_equal(planes.sel(variable="et"), composites["et"].isel(time=nearest))
    cover = opened.land_cover.isel(year=0).values.astype(float)
    np.testing.assert_array_equal(planes.sel(variable="land_cover"), np.where(cover == 255, np.nan, cover))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_predicts_its_map(tiny_run: Path, opened: Workspace, name: str) -> None:
    model = load_model(tiny_run / "models" / name)
    assert tuple(model.features) == PAPER_PREDICTORS
    assert not list((tiny_run / "models" / name).glob("*.pkl"))
    field = opened.maps[f"soil_moisture_{name}"].isel(time=7).values
    rows, cols = np.nonzero(np.isfinite(field))
    pick = np.linspace(0, rows.size - 1, 200).astype(int)
    X = opened.predictors(opened.steps["time"].values[7]).values[0, rows[pick], cols[pick]]
    expected = np.clip(model.predict(X), 0.0, 0.6)
    np.testing.assert_allclose(field[rows[pick], cols[pick]], expected, rtol=0, atol=2e-6)


# -- the maps -----------------------------------------------------------------------------------


def test_maps_hold_models_fusions_and_uncertainty(tiny_run: Path, opened: Workspace) -> None:
    maps = opened.maps
    expected = {f"soil_moisture_{m}" for m in MODELS} | {f"status_{m}" for m in MODELS}
    expected |= set(FUSED) | {f"status_{n}" for n in FUSED} | {"status", "uncertainty"}
    expected |= {"gda_kriging_variance", "gra_kriging_variance"}
    assert set(maps.data_vars) == {*expected, "station_count"}
    assert maps["station_count"].dims == ("time",)
    for name, data in maps[sorted(expected)].data_vars.items():
        assert data.dims == ("time", "lat", "lon")
        assert data.dtype == (np.uint32 if str(name).startswith("status") else np.float32)
        array = zarr.open_array(tiny_run / "maps.zarr" / str(name), mode="r")
        assert (array.chunks, array.shards) == ((1, 30, 30), (4, 60, 60))
    stack = np.stack([maps[f"soil_moisture_{m}"].values.astype(np.float64) for m in MODELS])
    np.testing.assert_allclose(maps["uncertainty"].values, np.std(stack, axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*(f"soil_moisture_{m}" for m in MODELS), *FUSED])
def test_every_missing_cell_says_why(opened: Workspace, name: str) -> None:
    maps = opened.maps
    data = maps[name]
    status = maps[str(data.attrs["ancillary_variables"])]
    bits = status.values
    missing = np.isnan(data.values)
    assert missing.any()
    assert (~missing).any()
    assert ((bits & int(MISSING_BITS)) != 0)[missing].all()
    assert not ((bits & int(MISSING_BITS)) != 0)[~missing].any()
    assert data.values[~missing].min() >= 0.0
    assert data.values[~missing].max() <= 0.6
    assert data.attrs["units"] == "m3 m-3"
    np.testing.assert_array_equal(status.attrs["flag_masks"], [1 << n for n in range(15)])
    assert len(str(status.attrs["flag_meanings"]).split()) == 15
    assert not (bits >> 14).any()  # no patch network here


def test_status_bits_are_what_they_say(opened: Workspace) -> None:
    bits = opened.maps["status_rf"].values
    planes = opened.predictors().to_dataset("variable").load()
    np.testing.assert_array_equal((bits & int(Status.NO_LST)) != 0, np.isnan(planes["lst"]))
    np.testing.assert_array_equal((bits & int(Status.WATER_ICE_URBAN)) != 0, planes["land_cover"].isin([13, 15, 17]))
    other = np.zeros(bits.shape, bool)
    for name in PAPER_PREDICTORS:
        other |= np.isnan(planes[name].values) & (name != "lst")
    np.testing.assert_array_equal((bits & int(Status.PREDICTOR_MISSING)) != 0, other)
    table, present = opened.samples, np.isfinite(opened.maps["soil_moisture_rf"].values)
    known, validation = table, opened.metrics["models"]["rows"]["validation"]
    assert 0 < validation < len(known)
    beyond = np.zeros(bits.shape, bool)
    for name in PAPER_PREDICTORS:  # the training rows are some of the table's: what lies outside all lies outside them
        values = known[name].to_numpy(np.float32)
        beyond |= (planes[name].values < values.min()) | (planes[name].values > values.max())
    assert ((bits & int(Status.OUTSIDE_TRAINING_RANGE)) != 0)[beyond & present].all()
    assert not ((bits & int(Status.OUTSIDE_TRAINING_RANGE)) != 0)[~present].any()


def test_fused_cells_say_how(opened: Workspace) -> None:
    maps, report = opened.maps, opened.metrics["fusion"]
    how = int(Status.FUSED_KRIGING | Status.FUSED_IDW | Status.FUSED_MEAN_RESIDUAL | Status.NOT_FUSED)
    background = maps[f"soil_moisture_{report['background']}"].values
    for name in FUSED:
        bits = maps[f"status_{name}"].values & np.uint32(how)
        assert (np.vectorize(lambda b: int(b).bit_count())(bits) == 1).all(), "one way for each cell"
        untouched = np.isfinite(background) & (bits == int(Status.NOT_FUSED))
        np.testing.assert_array_equal(maps[name].values[untouched], background[untouched])
        if name.endswith("idw"):
            assert not (bits & int(Status.FUSED_KRIGING)).any()
    np.testing.assert_array_equal(maps["status"], maps[f"status_{report['final']}"])
    assert report["final"] in FUSED


# -- scores and report --------------------------------------------------------------------------


def _scores(reference: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    keep = np.isfinite(reference) & np.isfinite(estimate)
    r, e = reference[keep].astype(np.float64), estimate[keep].astype(np.float64)
    error = e - r
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "ubrmse": float(error.std()),
        "cc": float(np.corrcoef(r, e)[0, 1]),
        "n": int(keep.sum()),
    }


def test_scores_against_the_truth_follow_from_the_arrays(tiny_run: Path, opened: Workspace) -> None:
    truth = plain(tiny_run / "world" / "truth.zarr", "fine")["soil_moisture"].values
    maps, coarse = opened.maps, opened.coarse
    grid = smscale.Grid.ease2(36, 102.8, 31.66, 103.7, 32.34)
    kept = coarse["soil_moisture"].where(coarse["weight"] > 0).values
    row = np.searchsorted(-grid.lat_edges, -maps["lat"].values) - 1
    col = np.searchsorted(grid.lon_edges, maps["lon"].values) - 1
    fields = {"smap": kept[:, row[:, None], col[None, :]]}
    fields |= {m: maps[f"soil_moisture_{m}"].values for m in MODELS} | {n: maps[n].values for n in FUSED}
    rows = {r["source"]: r for r in opened.metrics["truth"]["own_cells"]}
    assert set(rows) == set(fields)
    for source, field in fields.items():
        for score, value in _scores(truth, field).items():
            assert rows[source][score] == pytest.approx(value, rel=1e-5, abs=1e-7), (source, score)
    shared = np.logical_and.reduce([np.isfinite(f) for f in fields.values()])
    for r in opened.metrics["truth"]["shared_cells"]:
        assert r["rmse"] == pytest.approx(
            _scores(np.where(shared, truth, np.nan), fields[r["source"]])["rmse"], rel=1e-5
        )
        assert r["n"] == shared.sum()


def test_scores_at_held_out_stations_follow_from_the_arrays(opened: Workspace) -> None:
    stations, maps = opened.stations.load(), opened.maps
    held = opened.metrics["fusion"]["held_out"]
    assert len(held) == round(0.3 * stations.sizes["station"])
    steps = maps["time"].values
    observed = np.full((len(held), steps.size), np.nan)
    estimate = {n: np.full(observed.shape, np.nan) for n in (*(f"soil_moisture_{m}" for m in MODELS), *FUSED)}
    for i, name in enumerate(held):
        one = stations.sel(station=name)
        for t, step in enumerate(steps):
            away = np.abs(one["time"].values - step)
            near = away <= np.timedelta64(1, "h")
            values = one["soil_moisture"].values[near]
            known = np.isfinite(values)
            if known.any():
                observed[i, t] = values[known][np.argmin(away[near][known])]
        for source in estimate:
            estimate[source][i] = (
                maps[source].sel(lat=float(one["lat"]), lon=float(one["lon"]), method="nearest").values
            )
    rows = {r["source"]: r for r in opened.metrics["stations"]["held_out"]}
    for source, values in estimate.items():
        for score, value in _scores(observed, values).items():
            assert rows[source.removeprefix("soil_moisture_")][score] == pytest.approx(value, rel=1e-5), (source, score)


def test_held_out_stations_did_not_touch_the_maps(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    """Other values at held-out stations, the same maps."""
    root = copy_run(tiny_run, tmp_path / "run", without=("report",))
    for stage in ("fuse", "evaluate"):
        Workspace(root).forget(stage)
    held = smscale.open(tiny_run).metrics["fusion"]["held_out"]
    values = zarr.open_array(root / "cube.zarr" / "stations" / "soil_moisture", mode="r+")
    for i, name in enumerate(smscale.open(root).stations["station"].values.tolist()):
        if name in held:
            values[i] = 0.99
    run(TINY, root, only="fuse")
    for name in FUSED:
        np.testing.assert_array_equal(smscale.open(root).maps[name], smscale.open(tiny_run).maps[name])


def test_status_counts_in_metrics_are_those_of_the_maps(opened: Workspace) -> None:
    for name, counts in opened.metrics["status"].items():
        bits = opened.maps[f"status_{name}"].values
        for flag in Status:
            assert counts.get(str(flag.name).lower(), 0) == np.count_nonzero(bits & np.uint32(flag)), (name, flag)


def test_held_out_stations_do_not_pass_for_silent_ones(opened: Workspace) -> None:
    fusion = opened.metrics["fusion"]
    assert fusion["held_out_stations"] > 0
    assert {way["left_out"]["stations_silent"] for way in fusion["fields"].values()} == {0}


def test_report_page_has_its_figures_and_names_what_was_left_out(tiny_run: Path, opened: Workspace) -> None:
    page = (tiny_run / "report" / "index.html").read_text()
    figures = re.findall(r'src="([^"]+)"', page)
    assert {"figures/maps.png", "figures/box.png", "figures/daily.png"} <= set(figures)
    for name in figures:
        assert (tiny_run / "report" / name).read_bytes().startswith(b"\x89PNG")
    for problem in opened.metrics["data"]["problems"]:
        assert problem["file"] in page
    assert "/tmp" not in page
    assert str(tiny_run) not in page


def test_metrics_are_strict_json_without_places_and_clocks(tiny_run: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tiny_run / "report" / "metrics.json").read_text()
    json.loads(text, parse_constant=refuse)
    assert str(tiny_run) not in text
    assert "seconds" not in text


# -- again --------------------------------------------------------------------------------------


def test_every_stage_says_what_it_did_and_the_end_says_where(tiny_run: Path) -> None:
    said = (tiny_run.parent / "said.txt").read_text()
    assert stages_done(said) == list(STAGES)
    assert "RMSE" in said
    assert str(tiny_run / "maps.zarr") in said
    assert str(tiny_run / "report" / "index.html") in said


def test_second_run_does_nothing_and_says_so(tiny_run: Path, digests: Callable[[Path], dict[str, str]]) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*") if p.is_file() and "recipe.json" not in p.name}
    said = run(TINY, tiny_run)
    assert [
        re.match(rf"{stage} +nothing to do", line) is not None
        for stage, line in zip(STAGES, said.splitlines(), strict=False)
    ] == [True] * 7
    assert "final map" in said
    after = {p: p.stat().st_mtime_ns for p in before}
    assert {p.name for p in before if before[p] != after[p]} <= {".lock"}


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("title=another", ["evaluate"]),
        ("fusion.idw_neighbours=3", ["fuse", "evaluate"]),
        ("bounds=[0.05, 0.3]", ["downscale", "fuse", "evaluate"]),
        ("resources.workers=1", []),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path], setting: str, redone: list[str]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    assert stages_done(run(TINY, root, setting)) == redone
    assert stages_done(run(TINY, root, setting)) == []


def test_fewer_fusions_leave_no_old_ones(tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    run(TINY, root, "fusion.interpolators=[idw]", only="fuse")
    found = set(smscale.open(root).maps.data_vars)
    assert {"gda_idw", "gra_idw", "status"} <= found
    assert not {"gda_kriging", "status_gra_kriging"} & found


def test_only_does_one_stage_and_wants_those_before_it(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    Workspace(root).forget("evaluate")
    assert stages_done(run(TINY, root, only="evaluate")) == ["evaluate"]
    Workspace(root).forget("match")
    with pytest.raises(SmscaleError, match="match is not finished"):
        run(TINY, root, only="train")
    with pytest.raises(SmscaleError, match="ingest"):
        run(TINY, root, "smap.quality=strict", only="fuse")
    assert not (tmp_path / "none").exists()


def test_fresh_forgets_and_touches_nothing_else(tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    (root / "notes.txt").write_text("mine")
    with pytest.raises(SmscaleError, match="not finished"):
        run(TINY, root, only="match", fresh=True)
    assert (root / "notes.txt").read_text() == "mine"
    left = {p.name for p in root.iterdir()}
    assert not left & {"cube.zarr", "maps.zarr", "samples.parquet", "samples.csv", "models", "report"}


def test_fresh_spares_a_folder_that_is_no_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.bin").write_text("dear")
    code = cli.main(["run", str(TINY), "--workspace", str(tmp_path), "--fresh", "--only", "match", "--cluster", "none"])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "models" / "mine.bin").read_text() == "dear"


def test_another_recipe_is_refused_in_this_workspace(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    with pytest.raises(SmscaleError, match="holds the run of recipe 'tiny'"):
        run(TINY, tiny_run, "name=other")


# -- the same bytes -----------------------------------------------------------------------------


def _differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


@pytest.mark.slow
def test_models_are_trained_anew_where_the_recipe_changes_and_two_workers_give_the_same_bytes(
    tiny_run: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    """Another workspace, other times of the files, one cluster of two for both runs instead of this process."""
    root = tmp_path / "run"
    root.mkdir()
    shutil.copytree(tiny_run / "world", root / "world", copy_function=shutil.copy)
    with connect("local", workers=2) as client:
        address = client.scheduler.address
        said = run(
            TINY,
            root,
            "predictors=[longitude, lst, overpass]",
            "models={rf: {trees: 3, grid: {min_samples_leaf: [2]}}}",
            "fusion.residuals=[ratio]",
            cluster=address,
        )
        assert "simulate   nothing to do" in said
        assert stages_done(said) == list(STAGES[1:])
        assert set(smscale.open(root).maps.data_vars) == {
            "soil_moisture_rf", "status_rf", "uncertainty", "status", "gra_kriging", "gra_idw", "status_gra_kriging", "status_gra_idw",
            "gra_kriging_variance", "station_count",
        }  # fmt: skip
        assert sorted(p.name for p in (root / "models").iterdir()) == ["rf"]
        assert stages_done(run(TINY, root, cluster=address)) == list(STAGES[2:])
    assert not _differing(digests(root), digests(tiny_run))
    compared = filecmp.dircmp(root / "world", tiny_run / "world")
    assert not compared.diff_files
