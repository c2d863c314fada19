"""What ingest takes of a folder, and what it does with files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.transform import from_origin
from test_sources_appeears import GEOGRAPHIC, lst_name, request, write_layer

from smscale import config, cube, schema, store
from smscale.errors import InputError, RecipeError
from smscale.pipeline.ingest import arrays, fine, inputs
from smscale.pipeline.ingest.inputs import Inputs
from smscale.pipeline.layout import layout_of
from smscale.sources.appeears import lattice_of
from smscale.sources.catalogue import Catalogue, Granule, scan
from smscale.sources.dem import describe, open_dem

RECIPE = """
name: here
inputs: raw
region: [101.0, 30.0, 101.4, 30.3]
period: [2017-06-20, 2017-07-20]
"""


def layout(tmp_path: Path, *settings: str):
    path = tmp_path / "here.yaml"
    path.write_text(RECIPE)
    recipe = config.read(path, settings)
    return layout_of(recipe), recipe


def dem_file(path: Path, west: float, north: float, shape: tuple[int, int], step: float) -> Path:
    """Hills that know where they lie."""
    lon = west + (np.arange(shape[1]) + 0.5) * step
    lat = north - (np.arange(shape[0]) + 0.5) * step
    values = 2000 + 500 * np.sin(40 * lon)[None, :] * np.cos(55 * lat)[:, None] + 100 * (lon[None, :] - west)
    with rasterio.open(
        path, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="float32", crs="EPSG:4326",
        transform=from_origin(west, north, step, step),
    ) as file:  # fmt: skip
        file.write(values.astype(np.float32), 1)
    return path


def with_dem(*paths: Path) -> Inputs:
    tiles = [describe(path) for path in paths]
    boxes = tuple(tile.box for tile in tiles)
    return Inputs({}, tuple(map(str, paths)), boxes, inputs._halo(tiles), (), (), ())


@pytest.mark.parametrize("step", [0.001, 0.004, 0.0075])  # finer and coarser than a third of a cell
def test_terrain_of_windows_is_that_of_the_whole_region_whatever_the_elevation_model(tmp_path: Path, step: float):
    place, _ = layout(tmp_path, "chunks={lat: 13, lon: 17, shard: [1, 1, 1]}")
    path = str(tmp_path / "cube.zarr")
    tile = dem_file(tmp_path / "hills.tif", 100.9, 30.4, (round(0.5 / step), round(0.6 / step)), step)
    found = with_dem(tile)
    arrays._create_fine(place, path, "fine/static", xr.Dataset(), 1)
    for rows, cols in place.tiles():
        window = place.grid.window(rows, cols)
        fine.static_block(path, (rows, cols), window, found.dem_touching(window), found.dem_halo)
    whole = cube.static_layers(open_dem(tile), place.grid)
    assert all(whole[name].notnull().all() for name in ("elevation", "slope", "aspect"))
    written = store.read(path, "fine/static", "values")
    for i, name in enumerate(schema.CADENCES["static"]):
        np.testing.assert_array_equal(written[..., i], whole[name].values, err_msg=name)


def test_a_window_beside_an_elevation_tile_has_none_and_a_hole_is_named(tmp_path: Path):
    place, _ = layout(tmp_path)
    path = str(tmp_path / "cube.zarr")
    found = with_dem(
        dem_file(tmp_path / "a.tif", 101.0, 30.2, (100, 100), 0.002),
        dem_file(tmp_path / "b.tif", 101.2, 30.4, (100, 100), 0.002),
    )
    beside = place.grid.window(slice(20, 30), slice(20, 40))  # south of b, east of a: both touch its halo only
    assert found.dem_touching(beside) == ()
    assert len(found.dem_touching(place.grid)) == 2
    arrays._create_fine(place, path, "fine/static", xr.Dataset(), 1)
    everything = (slice(0, 30), slice(0, 40))
    report = fine.static_block(path, everything, place.grid, found.dem_touching(place.grid), found.dem_halo)
    (hole,) = report["problems"]
    assert hole["what"].startswith("no elevation tile covers W 101.2 S 30 E 101.4") or "; " in hole["what"]
    assert report["valid"] == 2 * 20 * 20 - 20 * 10  # of a 20 x 20 cells, of b the 20 x 10 within the region


def vegetation(*days: str) -> Catalogue:
    granules = tuple(Granule(Path(f"{day}.hdf"), "MOD13A2", day, (26, 5), "061", "1") for day in days)
    return Catalogue(Path(), granules, (), (), (), (), ())


def test_the_composite_before_the_period_is_taken_for_runs_that_never_look_ahead(tmp_path: Path):
    place, recipe = layout(tmp_path)
    catalogue = vegetation("2017-05-09", "2017-05-25", "2017-06-10", "2017-06-26", "2017-07-12", "2017-07-28")
    granules = inputs._granules(catalogue, place, recipe)
    found = Inputs(granules, (), (), 0.0, (), (), ())
    composites = found.composites("sixteen_day", place)
    # 2017-06-20 lies in the composite that began on 06-10 and ends on 06-25: the last that is over is that of 05-25
    assert [first for first, _ in composites][:2] == ["2017-05-25", "2017-06-10"]
    times = arrays._composite_times(composites)
    assert (schema.composite_index(times, place.steps["time"].values, never_later=True) >= 0).all()


def test_a_region_counted_from_0_to_360_is_that_of_negative_longitudes(tmp_path: Path):
    east, _ = layout(tmp_path, "region=[250.0, 30.0, 250.4, 30.3]")
    west, _ = layout(tmp_path, "region=[-110.0, 30.0, -109.6, 30.3]")
    np.testing.assert_array_equal(east.grid.lon_edges, west.grid.lon_edges)
    assert east.steps["time"].values[0] == west.steps["time"].values[0]


# -- layers and tiles that do not fit ---------------------------------------------------------------


def source_of(folder: Path) -> tuple[fine.Source, dict]:
    granules = scan(folder).granules
    source = fine.Source("LST", "none", cube.Lattice(*lattice_of(granules[0].path)))
    return source, {g.date: {cube.AREA: tuple(map(str, g.files))} for g in granules}


def overpasses(tmp_path: Path, place, source: fine.Source, files: dict) -> tuple[dict, np.ndarray]:
    path = str(tmp_path / "cube.zarr")
    arrays._create_overpass(place, path, "fine/overpass", slice(0, 2), 2)
    labels = [("2017-06-10", "AM"), ("2017-06-10", "PM")]
    whole = [(slice(0, place.grid.shape[0]), slice(0, place.grid.shape[1]))]
    report = fine.overpass_block(path, "fine/overpass", slice(0, 2), whole, place.grid, labels, files, source)
    return report, store.read(path, "fine/overpass", "values")


def test_a_date_on_other_pixels_than_its_request_is_left_out_and_named(tmp_path: Path):
    request(tmp_path / "raw")
    place, _ = layout(tmp_path, "region=[100.0, 29.95, 100.04, 30.0]", "period=[2017-06-10, 2017-06-10]")
    source, files = source_of(tmp_path / "raw")
    _, right = overpasses(tmp_path, place, source, files)
    assert np.isfinite(right[1, ..., 0]).any()
    moved = GEOGRAPHIC * GEOGRAPHIC.translation(0.25, 0)
    for name in [p.name for p in (tmp_path / "raw").glob("*doy2017161*")]:
        with rasterio.open(tmp_path / "raw" / name) as file:
            values = file.read(1)
        write_layer(tmp_path / "raw", name, values, transform=moved)
    report, values = overpasses(tmp_path, place, source, {d: f for d, f in files.items() if d == "2017-06-10"})
    assert np.isnan(values).all()
    assert [p["what"] for p in report["problems"]] == [
        "lies on other pixels than the first date of its request: download it again"
    ]


def test_lst_without_its_view_times_is_left_out_and_named(tmp_path: Path):
    request(tmp_path / "raw", ("2017161",))
    (tmp_path / "raw" / lst_name("Day_view_time", "2017161")).unlink()
    place, _ = layout(tmp_path, "region=[100.0, 29.95, 100.04, 30.0]", "period=[2017-06-10, 2017-06-10]")
    report, values = overpasses(tmp_path, place, *source_of(tmp_path / "raw"))
    assert np.isnan(values).all()
    assert {p["what"] for p in report["problems"]} == {
        f"LST of the {view} and its view time do not both lie there: left out" for view in ("day", "night")
    }


@pytest.mark.real_data
def test_a_cropped_tile_is_left_out_and_named(real, tmp_path: Path):
    cropped = str(real("modis/MOD13A2.A2016145.h18v04.006.2016166145124.hdf"))
    with pytest.raises(InputError, match="a whole tile 1200 x 1200: download it whole"):
        fine.Source("VI", "strict").read([cropped], ("ndvi",))


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("products={LST: XYZ}", "key products.LST: found 'XYZ', expected one of MYD11A1"),
        ("products={DEM: SRTM}", "key products: found DEM, expected families among SPL3SMP, LST"),
        ("smap.errors={recommended: 0.04}", "key smap.errors: .* add not_recommended"),
        ("smap.errors={recomended: 0.04}", "key smap.errors: .* did you mean recommended"),
    ],
)
def test_what_no_reader_knows_is_refused_before_anything_is_read(tmp_path: Path, setting: str, what: str):
    where, recipe = layout(tmp_path, setting)
    with pytest.raises(RecipeError, match=f"here.yaml: {what}"):
        inputs.gather(tmp_path, where, recipe)


def test_files_that_are_broken_are_named_where_a_whole_family_is_missing(tmp_path: Path):
    (tmp_path / "MOD16A2.A2017193.h26v05.061.2017202120000.hdf").write_bytes(b"<html>")
    where, recipe = layout(tmp_path)
    with pytest.raises(InputError, match=r"Broken files there: MOD16A2\.A2017193\S+ is a web page"):
        inputs.gather(tmp_path, where, recipe)


def test_a_table_that_the_recipe_does_not_fit_is_named_with_the_reason(tmp_path: Path):
    path = tmp_path / "own.csv"
    path.write_text("name,time,lat,lon,soil_moisture\nA,2017-06-20,30.1,101.1,0.2\n")
    columns = inputs.ColumnMap.from_mapping({"columns": {"station": "ID"}})
    assert "has no column 'ID' for station" in inputs._why_unknown(path, columns)
    assert inputs._why_unknown(path, None) == "not a file that is read here"


def test_elevation_tiles_that_overlap_and_differ_are_named(tmp_path: Path):
    place, _ = layout(tmp_path)
    path = str(tmp_path / "cube.zarr")
    first = dem_file(tmp_path / "a.tif", 100.9, 30.4, (300, 300), 0.002)
    second = dem_file(tmp_path / "b.tif", 100.9, 30.4, (300, 300), 0.002)
    with rasterio.open(second, "r+") as file:
        values = file.read(1)
        values[:, 150:] += 500  # from 101.2 E
        file.write(values, 1)
    found = with_dem(first, second)
    arrays._create_fine(place, path, "fine/static", xr.Dataset(), 1)
    everything = (slice(0, 30), slice(0, 40))
    report = fine.static_block(path, everything, place.grid, found.dem_touching(place.grid), found.dem_halo)
    (conflict,) = report["problems"]
    assert "overlap and differ" in conflict["what"]
    assert conflict["what"].endswith("of a.tif, b.tif")
    assert conflict["count"] == report["dem"]["overlap_conflicts"] >= 100 * 150
