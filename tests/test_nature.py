"""The nature run: its noise, its land, its weather, its water, and that its files show what its truth says."""

import dataclasses
import json
import shutil
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyhdf.SD import SD
from rasterio.transform import from_origin

from smscale import sinusoidal, store
from smscale.errors import InputError, RecipeError
from smscale.grid import Grid, grid_of
from smscale.kernels import noise
from smscale.simulate import World, phases
from smscale.simulate.nature import Nature, Tuning, calibrate, share_of
from smscale.simulate.products import antenna, aqua_view, footprint_mean
from smscale.simulate.run import _sampled_land, eight_days, read_land, read_tuning, sixteen_days, stepped_days
from smscale.simulate.terrain import Land, dem_tile, land_window, made_elevation
from smscale.simulate.weather import Sky, clear_sky, solar_declination
from smscale.sources.dem import open_dem

WORLDS = Path(__file__).parents[1] / "pipelines" / "worlds"
TINY = WORLDS / "tiny.yaml"


@pytest.fixture(scope="module")
def world():
    return World.from_file(TINY)


@pytest.fixture(scope="module")
def out(tiny_run):
    """The tiny world, run in order; nobody writes to it."""
    return tiny_run / "world"


@pytest.fixture(scope="module")
def fine(out):
    return store.open_group(out / "truth.zarr", "fine").load()


@pytest.fixture(scope="module")
def daily(out):
    return store.open_group(out / "truth.zarr", "margin/daily").load()


@pytest.fixture(scope="module")
def land(world, out):
    """The land of the tiny world's north-western tile."""
    return read_land(world, str(out), slice(0, 60), slice(0, 60))


# -- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [1, 4])
def test_noise_in_the_plane_has_zero_mean_and_unit_variance(octaves):
    x, y = np.random.default_rng(0).random((2, 200_000)) * 5000
    values = noise.fbm(x, y, 5, octaves)
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1.0, abs=0.01)


def test_noise_in_space_has_unit_variance():
    x, y = np.random.default_rng(0).random((2, 50_000)) * 5000
    variance = np.mean([noise.fbm_at(x, y, z, 5).var() for z in np.linspace(0.05, 40, 12)])
    assert np.sqrt(variance) == pytest.approx(1.0, abs=0.02)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(0, 2**40))
def test_noise_of_a_point_does_not_depend_on_its_neighbours(x, y, seed):
    alone = noise.fbm([x], [y], seed, 3)[0]
    assert alone == noise.fbm([x + 7.0, x, 3.0], [y, y, 1.0], seed, 3)[1]
    # Continuous: a step of 1e-7 of a wavelength moves it by little.
    assert abs(noise.fbm([x + 1e-7], [y], seed, 3)[0] - alone) < 1e-4


def test_hashed_deviates_are_uniform_and_normal_and_differ_by_counter():
    counters = np.arange(100_000)
    u = noise.uniform(3, counters, 2)
    assert np.histogram(u, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert np.corrcoef(u[:-1], u[1:])[0, 1] == pytest.approx(0.0, abs=0.02)
    assert np.corrcoef(u, noise.uniform(3, counters, 3))[0, 1] == pytest.approx(0.0, abs=0.02)
    assert noise.normal(3, counters).std() == pytest.approx(1.0, abs=0.01)


# -- what is asked for --------------------------------------------------------------------------

GOOD = {"region": [102.0, 31.0, 103.0, 32.0], "start": "2017-07-10", "end": "2017-07-12"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sead": 1}, "did you mean seed"),
        ({"region": [102, 31, 103]}, "region: found"),
        ({"region": [103, 31, 102, 32]}, "west < east"),
        ({"seed": 1.5}, "seed: found 1.5, expected a whole number"),
        ({"seed": True}, "seed: found True"),
        ({"cloud_share": 1.2}, "cloud_share: found 1.2, expected 0.0 to 0.95"),
        ({"cloud_share": "half"}, "cloud_share: found 'half', expected a number"),
        ({"start": "July"}, "start: found 'July', expected an ISO date"),
        ({"end": "2017-07-01"}, "the period is empty"),
        ({"step": 0.007}, "step"),
        ({"step": 1 / 7}, "step"),
        ({"dem": ["nowhere.tif"]}, "dem: found no file"),
        ({"name": "two words"}, "name: found 'two words'"),
    ],
)
def test_a_wrong_world_is_refused_in_one_line(change, told):
    with pytest.raises(RecipeError) as caught:
        World.from_mapping(GOOD | change, "some/world.yaml")
    assert told in str(caught.value)
    assert "some/world.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match="region is missing"):
        World.from_mapping({"start": "2017-07-10", "end": "2017-07-12"})


@pytest.mark.parametrize("name", ["tiny", "demo", "sichuan"])
def test_the_shipped_worlds_are_valid_and_round_trip(name):
    world = World.from_file(WORLDS / f"{name}.yaml")
    assert World.from_mapping(world.to_mapping()) == world
    rows, cols = world.inner
    assert world.grid.window(rows, cols) == world.region_grid


def test_more_period_means_more_tasks_of_the_same_kind():
    short, long = (World.from_mapping(GOOD | {"end": end}) for end in ("2017-07-12", "2018-07-12"))
    tasks = [sum(len(t) for _, t in phases(w, "nowhere")) for w in (short, long)]
    assert tasks[1] > tasks[0] + 2 * 365
    names = [name for name, _ in phases(short, "nowhere")]
    assert names == ["terrain", "land", "calibration", "nature", "files", "smap", "report"]


# -- land ---------------------------------------------------------------------------------------


def test_terrain_rises_from_basin_to_plateau_with_ridges_and_valleys():
    world = World.from_file(WORLDS / "demo.yaml")
    west, south, east, north = world.region
    z = made_elevation(world, np.linspace(west, east, 200), np.linspace(north, south, 200))
    assert z[150:, 150:].mean() < 1200
    assert z[:100, :60].mean() > 2800
    assert np.ptp(z[:20, :20]) > 800
    assert np.ptp(z) > 4000


def test_dem_tiles_share_their_edges(out):
    tiles = {}
    for path in (out / "dem").glob("*.tif"):
        with rasterio.open(path) as file:
            assert file.shape == (1201, 1201)
            tiles[(round(file.bounds.left), round(file.bounds.bottom))] = file.read(1)
    pairs = [(a, b) for a in tiles for b in tiles if b == (a[0] + 1, a[1])]
    assert len(pairs) == 4
    for a, b in pairs:
        np.testing.assert_array_equal(tiles[a][:, -1], tiles[b][:, 0])
    for a, b in [(a, (a[0], a[1] + 1)) for a in tiles if (a[0], a[1] + 1) in tiles]:
        np.testing.assert_array_equal(tiles[b][-1], tiles[a][0])


def test_the_users_dem_takes_the_place_of_the_made_one(tmp_path):
    path = tmp_path / "plane.tif"
    transform = from_origin(101.0, 33.5, 0.01, 0.01)
    lon = 101.0 + 0.01 * (np.arange(300) + 0.5)
    plane = np.broadcast_to(1000 * (lon - 101.0), (300, 300)).astype(np.float32)
    options = {"driver": "GTiff", "width": 300, "height": 300, "count": 1, "dtype": "float32", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", transform=transform, **options) as file:
        file.write(plane, 1)
    world = World.from_mapping(GOOD | {"region": [102.3, 31.3, 102.7, 31.7], "dem": [str(path)]})
    tile = dem_tile(world, 102, 31)
    # Bilinear resampling of a plane is the plane: 1000 m a degree, to the rounding of int16.
    np.testing.assert_allclose(tile[600], 1000 + np.arange(1201) / 1.2, atol=1.0)
    with pytest.raises(InputError, match="must cover the region and its margin"):
        land_window(world, [], slice(0, 10), slice(0, 10))


def test_land_is_low_and_flat_where_it_is_wet(land):
    assert np.corrcoef(land.wetness_index.ravel(), land.position.ravel())[0, 1] < -0.4
    assert np.corrcoef(land.wetness_index.ravel(), land.slope.ravel())[0, 1] < 0.1
    assert set(np.unique(land.land_cover)) <= set(range(1, 18))


# -- weather ------------------------------------------------------------------------------------


def _part(land: Land, rows: slice, cols: slice) -> Land:
    return Land(**{f.name: getattr(land, f.name)[rows, cols] for f in dataclasses.fields(Land)})


def test_weather_is_the_same_from_any_window(world, land):
    rows, cols = slice(17, 40), slice(5, 33)
    day = pd.Timestamp("2017-07-12")
    whole, part = Sky(world, land).day(day), Sky(world, _part(land, rows, cols)).day(day)
    for name in ("rain", "detail", "air", "cloud_night", "cloud_day", "sun"):
        np.testing.assert_array_equal(getattr(whole, name)[..., rows, cols], getattr(part, name), err_msg=name)


def test_mean_rain_is_what_the_world_asks_for():
    world = World.from_mapping(GOOD | {"region": [95.0, 25.0, 110.0, 35.0], "rain": 4.0})
    lon, lat = np.meshgrid(np.arange(95, 110, 0.5), np.arange(25, 35, 0.5))
    flat = np.zeros(lon.shape)
    land = Land(lon, lat, flat + 1500.0, *[flat] * 5, flat.astype(np.uint8) + 10, flat, flat)
    sky = Sky(world, land)
    mean = np.mean([sky.day(day).rain.sum(axis=0) for day in pd.date_range("2017-06-20", "2017-08-18", freq="D")])
    # Height factor at 1500 m is 1.35, midsummer season 1.7 / 1.5 less its fall-off to the ends (0.96); 15 % sampling.
    assert mean == pytest.approx(4.0 * 1.35 * 1.7 / 1.5 * 0.96, rel=0.15)


def test_storms_have_structure_at_1_km_and_extent_of_tens_of_km(daily):
    rain = daily.rain.to_numpy()
    wet = rain[np.argmax(rain.mean(axis=(1, 2)))]
    lags = {lag: np.corrcoef(wet[:, :-lag].ravel(), wet[:, lag:].ravel())[0, 1] for lag in (1, 5, 60)}
    assert 0.5 < lags[1] < 0.99
    assert lags[1] > lags[5] > lags[60]


def test_clouds_take_their_share_and_persist_in_space(world, daily):
    cloudy = np.stack([daily.clouds.to_numpy() & 1, daily.clouds.to_numpy() >> 1])[:, 1:-1]
    assert cloudy.mean() == pytest.approx(world.cloud_share, abs=0.06)
    day = cloudy[1, np.argmin(abs(cloudy[1].mean(axis=(1, 2)) - 0.5))].astype(float)
    assert np.corrcoef(day[:, :-3].ravel(), day[:, 3:].ravel())[0, 1] > 0.4


def test_wet_days_are_cloudier(world, land):
    sky = Sky(world, land)
    days = [sky.day(day) for day in pd.date_range("2017-06-01", "2017-07-31", freq="D")]
    rain, index = np.array([d.rain[1] for d in days]), np.array([d.cloud_day for d in days])
    assert index[rain > 2].mean() > index[rain < 0.1].mean() + 0.5


def test_the_noon_sun_prefers_slopes_that_face_it():
    flat = np.zeros(3)
    slopes = np.array([0.0, 0.5, -0.5])  # flat, rising to the north (facing south), facing north
    land = Land(flat, flat + 31.0, flat, flat, flat, slopes, *[flat] * 2, flat.astype(np.uint8), flat, flat)
    level, south, north = clear_sky(land, solar_declination(355), 12.0)
    assert south > level > north
    east = dataclasses.replace(land, east_slope=-slopes, north_slope=flat)
    level, faces_east, faces_west = clear_sky(east, solar_declination(200), 8.0)
    assert faces_east > level > faces_west


# -- water --------------------------------------------------------------------------------------


def test_truth_is_bounded_by_residual_and_porosity_and_missing_on_water(fine):
    moisture = fine.soil_moisture.to_numpy()
    open_water = np.isin(fine.land_cover.to_numpy(), (15, 17))
    assert np.isnan(moisture[:, open_water]).all()
    known = moisture[:, ~open_water]
    assert np.isfinite(known).all()
    assert known.min() >= 0.029
    assert known.max() <= 0.451 + 0.02 * 2 * 2.5
    assert 0.12 < known.mean() < 0.40


def test_truth_steps_are_the_periods_overpasses(world, fine):
    assert fine.sizes["time"] == 2 * len(world.days)
    assert fine.overpass.to_numpy()[:2].tolist() == ["AM", "PM"]
    assert (fine.sizes["lat"], fine.sizes["lon"]) == world.region_grid.shape


def test_without_rain_the_soil_dries_ever_more_slowly(world, land):
    nature, weather = Nature(world, land, Tuning()), Sky(world, land).day(pd.Timestamp("2017-07-12"))
    clear = dataclasses.replace(weather, rain=np.zeros_like(weather.rain), cloud_day=np.full_like(weather.air, -3.0))
    state, means = dataclasses.replace(nature.start(), surface=nature.held.copy()), []
    for _ in range(12):
        state, today = nature.step(state, clear)
        means.append(float(np.nanmean(today.moisture_pm)))
    falls = -np.diff(means)
    assert np.all(falls > 0)
    assert falls[0] > 3 * falls[-1]
    assert means[-1] > 0.03


def test_surface_temperature_falls_with_water_where_it_is_scarce_and_not_where_it_is_plentiful(world, land):
    nature, weather = Nature(world, land, Tuning()), Sky(world, land).day(pd.Timestamp("2017-07-12"))
    start = dataclasses.replace(nature.start(), leaves=0.3 * nature.most_leaves)
    dry, moist, wet, wetter = (
        nature._noon(
            dataclasses.replace(start, surface=share * nature.held), weather, np.zeros(land.lon.shape), weather.swing
        )
        for share in (0.2, 0.5, 0.8, 1.1)
    )
    soil = ~nature.open_water & (land.slope < 20)
    assert (dry - moist)[soil].mean() > 1.5
    assert np.all(dry >= moist)
    np.testing.assert_allclose(wet, wetter)


def test_lst_and_soil_moisture_anomalies_are_negatively_correlated_on_clear_days(out, daily):
    moisture = store.open_group(out / "truth.zarr", "margin/overpass").soil_moisture.to_numpy()[1::2]
    z = store.open_group(out / "truth.zarr", "margin/land").elevation.to_numpy()
    found = []
    for step in range(1, daily.sizes["time"] - 1):
        clear = (daily.clouds.to_numpy()[step] < 2) & np.isfinite(moisture[step])
        if clear.mean() > 0.3:
            temperature = daily.lst_day.to_numpy()[step][clear]
            anomaly = temperature - np.polyval(np.polyfit(z[clear], temperature, 1), z[clear])
            found.append(np.corrcoef(anomaly, moisture[step][clear])[0, 1])
    assert found
    assert np.mean(found) < -0.25


def test_leaves_lag_what_water_allows(world, land):
    nature, weather = Nature(world, land, Tuning()), Sky(world, land).day(pd.Timestamp("2017-07-12"))
    start = nature.start()
    parched = dataclasses.replace(start, root=0.7 * nature.soil.wilting)
    green = (nature.most_leaves > 1.0) & ~nature.open_water
    one, _ = nature.step(parched, weather)
    lost = (start.leaves - one.leaves)[green] / start.leaves[green]
    assert 0.0 < lost.mean() < 0.1


# -- how much can be explained ------------------------------------------------------------------


def test_share_of_an_exact_line_is_one_and_of_noise_is_none():
    x, e = np.random.default_rng(0).standard_normal((2, 5000))
    columns = np.column_stack([2 * x, x])
    assert share_of(columns.T @ columns) == pytest.approx(1.0)
    columns = np.column_stack([x + e, x])
    assert share_of(columns.T @ columns) == pytest.approx(0.5, abs=0.03)


def test_the_explainable_share_is_what_was_asked_for(world, out):
    report = json.loads((out / "report.json").read_text())
    assert report["explainable_share"]["realised"] == pytest.approx(world.explainable_share, abs=0.05)
    assert 0.02 < report["explainable_share"]["spread_inside_coarse_cells"] < 0.09


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_another_share_is_calibrated_too(world, out, share):
    points, cell = _sampled_land(world, str(out))
    days = pd.date_range("2017-06-25", "2017-07-15", freq="D")
    asked = dataclasses.replace(world, explainable_share=share)
    tuning, found = calibrate(asked, points, cell, days, spin_up=15)
    assert found["pilot_share"] == pytest.approx(share, abs=0.04)
    assert (tuning.hidden > read_tuning(str(out)).hidden) == (share < world.explainable_share)


# -- the files show what the truth says ---------------------------------------------------------


def test_the_same_bytes_in_any_order(world, out, tmp_path):
    shutil.copytree(out / "dem", tmp_path / "dem")
    redone = "dem/N31E103.tif"
    (tmp_path / redone).unlink()
    for name, tasks in phases(world, str(tmp_path)):
        for task in reversed(tasks):
            if name != "terrain" or task.key in ("prepare", redone):
                task.call(*task.args)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    files = [p for p in files if p.parts[0] != "ledger"]
    assert len(files) > 20
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    different = [str(p) for p in files if (out / p).read_bytes() != (tmp_path / p).read_bytes()]
    assert different == []


def test_every_kind_of_file_is_there(world, out):
    names = {
        folder: len(list((out / "modis" / folder).glob("*.hdf")))
        for folder in ("MYD11A1", "MOD13A2", "MOD16A2", "MCD12Q1")
    }
    # 9 to 15 July by UTC; 26 June and 12 July; 4 and 12 July; 2017.
    assert names == {"MYD11A1": 7, "MOD13A2": 2, "MOD16A2": 2, "MCD12Q1": 1}
    assert len(list((out / "smap").glob("*.h5"))) == 7
    assert len(list((out / "stations" / "ismn").rglob("*.stm"))) == world.stations
    assert len(list((out / "dem").glob("*.tif"))) == 6


def _smap(out: Path, name: str) -> pd.DataFrame:
    """Every retrieval of the granules: UTC time, row, column, value (h5py alone)."""
    rows = []
    for path in sorted((out / "smap").glob("*.h5")):
        with h5py.File(path) as file:
            for group, suffix in (("Soil_Moisture_Retrieval_Data_AM", ""), ("Soil_Moisture_Retrieval_Data_PM", "_pm")):
                data = file[group]
                seen = data[f"soil_moisture{suffix}"][:] > 0
                row, col = np.nonzero(seen)
                utc = pd.to_datetime([t.decode() for t in data[f"tb_time_utc{suffix}"][:][seen]], utc=True).tz_localize(
                    None
                )
                values = data[f"{name}{suffix}"][:][seen]
                rows.append(
                    pd.DataFrame(
                        {"utc": utc, "row": row, "col": col, "value": values, "overpass": group[-2:], "file": path.name}
                    )
                )
    return pd.concat(rows, ignore_index=True)


def test_smap_is_the_footprint_mean_with_an_error_near_0_04(out):
    found = _smap(out, "soil_moisture")
    coarse = store.open_group(out / "truth.zarr", "coarse").load()
    assert len(found) > 10
    local = found.utc + pd.to_timedelta(coarse.lon.to_numpy()[found.col - found.col.min()] * 240, unit="s")
    assert (np.abs(local.dt.hour + local.dt.minute / 60 - np.where(found.overpass == "AM", 6, 18)) < 1.5).all()
    steps = {
        (pd.Timestamp(d).normalize(), o): k
        for k, (d, o) in enumerate(zip(coarse.local_date.to_numpy(), coarse.overpass.to_numpy(), strict=True))
    }
    grid = Grid.ease2(36, *World.from_file(TINY).region_grid.bounds)
    index = [steps[(t.normalize(), o)] for t, o in zip(local, found.overpass, strict=True)]
    truth = coarse.soil_moisture.to_numpy()[index, found.row - grid.row0, found.col - grid.col0]
    error = found.value - truth
    assert 0.02 < error.std() < 0.065
    assert abs(error.mean()) < 0.05


def test_smap_mornings_lie_in_the_file_of_the_utc_day_before(out):
    found = _smap(out, "soil_moisture")
    mornings = found[found.overpass == "AM"]
    assert len(mornings)
    for record in mornings.itertuples():
        assert f"{record.utc:%Y%m%d}" in record.file
        assert 21 <= record.utc.hour <= 23


def test_footprint_weights_are_an_antennas(world):
    rows, _, weights = antenna(world.grid, 103.2, 32.0)
    assert rows.stop - rows.start == pytest.approx(2 * 36 / 1.112, abs=2)
    assert weights.max() > 0
    np.testing.assert_allclose(footprint_mean(np.full(weights.shape, 0.3), weights), 0.3)
    # Half of the power lies within 20 km: exp(-4 ln 2 (20 / 40)^2) = 1/2.
    centre = weights[weights.shape[0] // 2]
    at_20_km = centre[weights.shape[1] // 2 + round(20 / (1.112 * np.cos(np.deg2rad(32.0))))]
    assert at_20_km / centre.max() == pytest.approx(0.5, abs=0.03)
    mostly_lost = np.where(np.arange(weights.shape[1]) < 0.8 * weights.shape[1], np.nan, np.full(weights.shape, 0.3))
    assert np.isnan(footprint_mean(mostly_lost, weights))


def _tile_index(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of h26v05 whose centres lie in the region, and the truth's cells they lie in."""
    x, y = sinusoidal.pixel_centres(26, 5, 1200)
    lon, lat = sinusoidal.inverse(*np.meshgrid(x, y))
    row, col = world.grid.index(lon, lat)
    inside = (row >= 0) & (col >= 0)
    return inside, row[inside], col[inside]


@pytest.mark.parametrize(("part", "bit", "shift"), [("Night", 1, 1), ("Day", 2, 0)])
def test_lst_files_are_cut_by_utc_day(world, out, daily, part, bit, shift):
    """At 103 E, 01:30 local solar is 18:38 UTC of the day before: the night of file D is that of local day D + 1."""
    inside, row, col = _tile_index(world)
    path = next((out / "modis" / "MYD11A1").glob("*.A2017193.*"))  # 12 July
    file = SD(str(path))
    stored = file.select(f"LST_{part}_1km").get() * 0.02
    view = file.select(f"{part}_view_time").get()
    assert (stored[~inside] == 0).all()
    days = daily.time.to_numpy().astype("datetime64[D]")
    step = int(np.flatnonzero(days == np.datetime64("2017-07-12"))[0]) + shift
    seen = stored[inside] > 0
    cloudy = (daily.clouds.to_numpy()[step][row, col] & bit) > 0
    np.testing.assert_array_equal(seen, ~cloudy)
    error = stored[inside][seen] - daily[f"lst_{part.lower()}"].to_numpy()[step][row, col][seen]
    assert abs(error.mean()) < 0.05
    assert 0.4 < error.std() < 1.1
    expected = 1.5 if part == "Night" else 13.5
    assert np.all(np.abs(view[inside][seen] * 0.1 - expected) < 0.9)


def test_view_times_vary_over_the_swath_and_from_day_to_day():
    hour, angle = aqua_view(6000, np.linspace(90, 115, 500), "day")
    assert np.ptp(hour) == pytest.approx(24.721 / 15, abs=0.05)
    assert np.abs(angle).max() < 65
    assert not np.allclose(hour, aqua_view(6001, np.linspace(90, 115, 500), "day")[0])


def test_ndvi_and_et_files_hold_the_composites(world, out):
    inside, row, col = _tile_index(world)
    truth = store.open_group(out / "truth.zarr", "margin/sixteen_day").load()
    cover = store.open_group(out / "truth.zarr", "margin/land").land_cover.to_numpy()
    path = next((out / "modis" / "MOD13A2").glob("*.A2017193.*"))
    ndvi = SD(str(path)).select("1 km 16 days NDVI").get()[inside] * 1e-4
    position = int(np.flatnonzero(truth.time.to_numpy().astype("datetime64[D]") == np.datetime64("2017-07-12"))[0])
    dry = cover[row, col] != 17
    error = (ndvi - truth.ndvi.to_numpy()[position][row, col])[dry]
    assert abs(error.mean()) < 0.005
    assert error.std() == pytest.approx(0.015, abs=0.004)
    et = SD(str(next((out / "modis" / "MOD16A2").glob("*.A2017193.*")))).select("ET_500m").get()
    known = (et > 0) & (et < 32700)
    assert 10 < (et[known] * 0.1).mean() < 45


def test_stations_follow_the_truth_of_their_cells(world, out, fine):
    table = pd.concat([pd.read_csv(p) for p in sorted((out / "stations" / "csv").glob("*.csv"))])
    assert table.station.nunique() == world.stations
    good = table[table.flag == "G"]
    means = good.groupby("station").agg(lat=("lat", "first"), lon=("lon", "first"), value=("soil_moisture", "mean"))
    row, col = world.region_grid.index(means.lon, means.lat)
    truth = fine.soil_moisture.to_numpy()[:, row, col].mean(axis=0)
    assert np.isfinite(truth).all()
    # Representativeness error of 0.035 and the wetter deeper layer lie between them.
    assert abs((means.value - truth).mean()) < 0.08
    assert (means.value - truth).std() < 0.09


def test_land_cover_file_shows_the_cells_class(world, out):
    path = next((out / "modis" / "MCD12Q1").glob("*.hdf"))
    igbp = SD(str(path)).select("LC_Type1").get()
    x, y = sinusoidal.pixel_centres(26, 5, 2400)
    row, col = world.grid.index(*sinusoidal.inverse(*np.meshgrid(x, y)))
    inside = row >= 0
    cover = store.open_group(out / "truth.zarr", "margin/land").land_cover.to_numpy()
    np.testing.assert_array_equal(igbp[inside], cover[row[inside], col[inside]])
    assert (igbp[~inside] == 255).all()


def test_composite_dates_of_the_tiny_world(world):
    assert eight_days(world) == [date(2017, 7, 4), date(2017, 7, 12)]
    assert sixteen_days(world) == [date(2017, 6, 26), date(2017, 7, 12)]
    assert stepped_days(world)[-1] == pd.Timestamp("2017-07-19")


def test_truth_lies_on_its_own_dem(out, fine):
    """The exact area mean of the DEM files is the truth's elevation: no shift by half a post."""
    dem = open_dem(sorted((out / "dem").glob("*.tif")), grid=grid_of(fine))
    np.testing.assert_allclose(dem, fine["elevation"], atol=0.6)  # the files hold whole metres
