"""export: files that GDAL, xarray and rioxarray read as what they are; tables of points and polygons."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_workspace import GRID, STEPS, fill, make, tasks
from pyproj import Geod

from smscale import exports, schema
from smscale.errors import InputError, RecipeError
from smscale.export import Layer, Step, cut, write_geotiffs, write_netcdf, write_points, write_polygons
from smscale.export.geotiff import FINGERPRINT
from smscale.export.layer import transform
from smscale.export.polygons import cell_areas, read_polygons
from smscale.export.tables import _whole_chunks
from smscale.grid import Grid
from smscale.workspace import Workspace, open_workspace

gdalinfo = pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not installed")


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    return make(tmp_path / "made")


def layer_of(values: np.ndarray, grid: Grid, kind: Any = "continuous", **attrs: Any) -> Layer:
    """A layer of daily AM steps from 2017-06-29 on, without a status."""
    days = np.datetime64("2017-06-29") + np.arange(values.shape[0])
    steps = tuple(
        Step(i, f"{d}_AM", str(d)[:7], d.astype("datetime64[ns]") - np.timedelta64(1, "h"), d, "AM", version=f"v{i}")
        for i, d in enumerate(days)
    )
    data = xr.DataArray(
        values, dims=("time", "lat", "lon"), name="field", attrs={"long_name": "a field", "units": "K", **attrs}
    )
    return Layer("field", "run", data, None, grid, kind, steps)


def of_place(grid: Grid, steps: int = 3) -> np.ndarray:
    """(steps, lat, lon) float32: the row and column of each pixel, and its step."""
    row, col = np.indices(grid.shape)
    return (np.arange(steps)[:, None, None] * 1e6 + row * 1000 + col).astype(np.float32)


EASE = Grid.ease2(36, 97.0, 26.0, 109.0, 35.0)
WIDE = Grid.latlon(97.35, 26.05, 108.54, 34.31)


# -- GeoTIFF ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid", [GRID, EASE, Grid.ease2(1, 103.0, 31.0, 103.3, 31.2), WIDE], ids=["small", "36km", "1km", "wide"]
)
def test_geotiffs_hold_the_values_where_they_lie(tmp_path: Path, grid: Grid) -> None:
    layer = layer_of(of_place(grid, 2), grid)
    done = write_geotiffs(layer, tmp_path)
    assert [p.name for p in done.written] == ["run_field_2017-06-29_AM.tif", "run_field_2017-06-30_AM.tif"]
    with rasterio.open(done.written[1]) as raster:
        assert raster.crs.to_epsg() == (4326 if grid.x is None else 6933)
        np.testing.assert_array_equal(raster.read(1), layer.values[1])
        for row, col in ((0, 0), (grid.shape[0] - 1, grid.shape[1] - 1), (2, 1)):
            x, y = raster.xy(row, col)
            expected = (grid.lon[col], grid.lat[row]) if grid.x is None else (grid.x[col], grid.y[row])  # type: ignore[index]
            np.testing.assert_allclose((x, y), expected, rtol=0, atol=1e-9 if grid.x is None else 1e-4)
        assert raster.transform.e < 0 < raster.transform.a  # north up
        assert np.isnan(raster.nodata)


def test_geotiffs_are_cloud_optimised(tmp_path: Path) -> None:
    grid = Grid.latlon(97.36, 26.06, 108.56, 34.30)  # 824 x 1120 cells: an overview's pixel is of four
    values = of_place(grid, 1)
    values[:, :300, :300] = np.nan
    (path,) = write_geotiffs(layer_of(values, grid), tmp_path).written
    with rasterio.open(path) as raster:
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.profile["blockxsize"] == raster.profile["blockysize"] == 512
        assert raster.compression.name == "deflate"
        assert raster.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert raster.overviews(1) == [2, 4][: len(raster.overviews(1))] != []
        with rasterio.open(path, overview_level=0) as smaller:
            halved = smaller.read(1)
        assert np.isnan(halved[:150, :150]).all()
        np.testing.assert_allclose(halved[200, 200], values[0, 400:402, 400:402].mean())
    header = path.read_bytes()[:4096]
    assert b"LAYOUT=IFDS_BEFORE_DATA" in header


def test_geotiffs_tell_when_and_what(tmp_path: Path, made: Workspace) -> None:
    done = exports.export(made, "gda_kriging", out=tmp_path)
    assert len(done.written) == 12  # six steps, each with its status
    with rasterio.open(tmp_path / "made_gda_kriging_2017-07-01_PM.tif") as raster:
        tags = raster.tags()
        assert (tags["TIME"], tags["LOCAL_DATE"], tags["OVERPASS"]) == ("2017-07-01T11:20:00Z", "2017-07-01", "PM")
        assert tags["TIFFTAG_DATETIME"] == "2017:07:01 11:20:00"
        assert raster.units == ("m3 m-3",)
        assert raster.descriptions == ("fused, 2017-07-01 PM",)
        np.testing.assert_array_equal(raster.read(1), made.maps["gda_kriging"].values[3])
    with rasterio.open(tmp_path / "made_gda_kriging_status_2017-07-01_PM.tif") as raster:
        assert raster.dtypes == ("uint32",)
        assert raster.nodata is None
        np.testing.assert_array_equal(raster.read(1), made.maps["status_gda_kriging"].values[3])
        masks = dict(zip(raster.tags(1)["flag_meanings"].split(), raster.tags(1)["flag_masks"].split(), strict=True))
        assert masks["no_lst"] == "4"


@gdalinfo
@pytest.mark.parametrize("grid", [WIDE, EASE], ids=["latlon", "ease"])
def test_gdalinfo_reads_a_geotiff_rightly(tmp_path: Path, grid: Grid) -> None:
    (path,) = write_geotiffs(layer_of(of_place(grid, 1), grid), tmp_path).written
    told = json.loads(
        subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, text=True, check=True).stdout
    )
    assert told["size"] == [grid.shape[1], grid.shape[0]]
    assert f'ID["EPSG",{4326 if grid.x is None else 6933}]' in told["coordinateSystem"]["wkt"]
    t = transform(grid)
    np.testing.assert_allclose(told["geoTransform"], (t.c, t.a, t.b, t.f, t.d, t.e), rtol=1e-12)
    corners = np.array(told["wgs84Extent"]["coordinates"][0])
    west, south, east, north = grid.bounds
    np.testing.assert_allclose(
        [corners[:, 0].min(), corners[:, 1].min(), corners[:, 0].max(), corners[:, 1].max()],
        (west, south, east, north),
        atol=1e-6,
    )
    assert told["bands"][0]["noDataValue"] == "NaN"
    assert told["bands"][0]["unit"] == "K"
    assert told["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [("class", np.uint8, 7), ("flags", np.uint32, 7), ("direction", np.float32, 7), ("continuous", np.float32, 5)],
)
def test_overviews_average_only_what_has_a_mean(tmp_path: Path, kind: Any, dtype: Any, expected: float) -> None:
    """2 x 2 pixels 7, 7, 5, 1: the mean is 5, the class of most area and the nearest pixel are 7."""
    values = np.tile(np.array([[7, 7], [5, 1]], dtype), (1, 300, 300))
    grid = Grid.latlon(100.0, 24.0, 106.0, 30.0)
    (path,) = write_geotiffs(layer_of(values, grid, kind), tmp_path).written
    with rasterio.open(path, overview_level=0) as smaller:
        assert (smaller.read(1) == expected).all()


# -- restarts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["geotiff", "netcdf"])
def test_files_that_are_there_are_skipped_and_what_is_lost_is_written(
    made: Workspace, tmp_path: Path, form: str
) -> None:
    first = exports.export(made, "gda_kriging", form, out=tmp_path)
    contents = {p: p.read_bytes() for p in first.written}
    first.written[-1].unlink()
    again = exports.export(open_workspace(made.root), "gda_kriging", form, out=tmp_path)
    assert (again.written, again.skipped) == (first.written[-1:], len(first.written) - 1)
    assert f"skipped    {len(first.written) - 1} file" in again.text
    if form == "geotiff":
        assert {p: p.read_bytes() for p in first.written} == contents


@pytest.mark.parametrize("form", ["geotiff", "netcdf", "csv"])
def test_files_of_other_data_are_written_anew(made: Workspace, tmp_path: Path, form: str) -> None:
    """One block of one step is done again with other values: only the files that hold it change."""
    points = tmp_path / "p.csv"
    points.write_text("id,lon,lat\na,100.005,29.995\n")
    more = {"points": points} if form == "csv" else {}
    first = exports.export(made, "gda_kriging", form, out=tmp_path / "out", **more)  # type: ignore[arg-type]
    record = made.ledger("fuse").folder / "fuse.4-0-0.json"
    text = record.read_text()
    checksum = json.loads(text)["result"]["written"][0]["checksum"]
    record.write_text(text.replace(checksum, "0" * 32))
    again = exports.export(open_workspace(made.root), "gda_kriging", form, out=tmp_path / "out", **more)  # type: ignore[arg-type]
    expected = {"geotiff": 4, "netcdf": 1, "csv": 1}[form]  # steps 4 and 5 with their status; July; the table
    assert len(again.written) == expected
    assert again.skipped == len(first.written) - expected


@pytest.mark.parametrize("writer", [write_geotiffs, write_netcdf])
def test_a_killed_export_leaves_no_half_file(
    tmp_path: Path, writer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(of_place(GRID), GRID)
    rows = Layer.rows

    def fail(self: Layer, step: Step, *rest: Any) -> np.ndarray:
        if step.index == 2:
            raise KeyboardInterrupt
        return rows(self, step, *rest)

    monkeypatch.setattr(Layer, "rows", fail)
    with pytest.raises(KeyboardInterrupt):
        writer(layer, tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names in (["run_field_2017-06-29_AM.tif", "run_field_2017-06-30_AM.tif"], ["run_field_2017-06.nc"])
    (tmp_path / ".run_field_2017-07-01_AM.part.tif").write_bytes(b"of a process that was killed")
    monkeypatch.setattr(Layer, "rows", rows)
    assert writer(layer, tmp_path).skipped == len(names)
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]


def test_two_exports_of_one_layer_into_one_folder_are_refused(tmp_path: Path) -> None:
    from smscale.export.files import claimed

    layer = layer_of(of_place(GRID), GRID)
    with claimed(tmp_path, layer.stem), pytest.raises(InputError, match="another export"):
        write_geotiffs(layer, tmp_path)


# -- NetCDF -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [GRID, EASE], ids=["latlon", "ease"])
def test_netcdf_opens_in_xarray_and_rioxarray(tmp_path: Path, grid: Grid) -> None:
    layer = layer_of(of_place(grid), grid)
    done = write_netcdf(layer, tmp_path)
    assert [p.name for p in done.written] == ["run_field_2017-06.nc", "run_field_2017-07.nc"]
    with xr.open_dataset(done.written[0], decode_coords="all") as data:
        assert list(data.data_vars) == ["field"]
        np.testing.assert_array_equal(data["field"].values, layer.values[:2])
        assert data["field"].dims == ("time", *(("lat", "lon") if grid.x is None else ("y", "x")))
        np.testing.assert_array_equal(data["time"].values, [s.time for s in layer.steps[:2]])
        np.testing.assert_array_equal(
            data["local_date"].values, np.array(["2017-06-29", "2017-06-30"], "datetime64[ns]")
        )
        assert data["field"].rio.crs.to_epsg() == (4326 if grid.x is None else 6933)
        for recalculated in (False, True):
            np.testing.assert_allclose(data.rio.transform(recalc=recalculated)[:6], transform(grid)[:6], rtol=1e-9)
        lat, lon = np.broadcast_arrays(data["lat"].values.reshape(grid.shape[0], -1), data["lon"].values)
        np.testing.assert_allclose(lat, np.tile(grid.lat[:, None], grid.shape[1]))
        np.testing.assert_allclose(lon, np.tile(grid.lon, (grid.shape[0], 1)))
        moved = data["field"].rio.reproject("EPSG:32648")
        assert np.isfinite(moved.values).any()


def test_netcdf_follows_cf(tmp_path: Path, made: Workspace) -> None:
    """What CF-1.11 asks of a file with flags, a grid mapping and bounds; checked where it can go wrong."""
    path = exports.export(made, "gda_kriging", "netcdf", out=tmp_path).written[0]
    with netCDF4.Dataset(path) as file:
        assert file.Conventions == "CF-1.11"
        assert {"title", "history", "source"} <= set(file.ncattrs())
        for name, variable in file.variables.items():
            if name == "spatial_ref" or name.endswith("_bounds"):
                continue
            assert {"standard_name", "long_name"} & set(variable.ncattrs()), name
            for attribute in ("valid_min", "valid_max", "flag_values", "flag_masks", "_FillValue"):
                if attribute in variable.ncattrs():
                    assert np.asarray(variable.getncattr(attribute)).dtype == variable.dtype, (name, attribute)
            for other in (
                getattr(variable, a, "") for a in ("bounds", "grid_mapping", "ancillary_variables", "coordinates")
            ):
                assert all(part in file.variables for part in other.split()), (name, other)
        for axis, letter in (("time", "T"), ("lat", "Y"), ("lon", "X")):
            assert file[axis].axis == letter
            assert "_FillValue" not in file[axis].ncattrs()
        bounds = file["lat_bounds"][:]
        np.testing.assert_allclose(bounds[:-1, 1], bounds[1:, 0])  # cells touch
        assert np.all((file["lat"][:] < bounds[:, 0]) & (file["lat"][:] > bounds[:, 1]))
        assert file["gda_kriging"].ancillary_variables == "status"
        assert file["spatial_ref"].grid_mapping_name == "latitude_longitude"
        assert len(file["status"].flag_masks) == len(file["status"].flag_meanings.split())
        assert file["status"].dtype == np.uint32
        assert file["gda_kriging"].filters()["zlib"]
        assert file["gda_kriging"].chunking()[0] == 1
    with xr.open_dataset(path) as data:
        np.testing.assert_array_equal(data["status"].values, made.maps["status_gda_kriging"].values[:2])
        np.testing.assert_array_equal(data["gda_kriging"].values, made.maps["gda_kriging"].values[:2])


@gdalinfo
@pytest.mark.parametrize("grid", [GRID, EASE], ids=["latlon", "ease"])
def test_gdalinfo_reads_netcdf_rightly(tmp_path: Path, grid: Grid) -> None:
    path = write_netcdf(layer_of(of_place(grid), grid), tmp_path).written[0]
    asked = ["gdalinfo", "-json", f'NETCDF:"{path}":field']
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert f'ID["EPSG",{4326 if grid.x is None else 6933}]' in told["coordinateSystem"]["wkt"]
    t = transform(grid)
    np.testing.assert_allclose(told["geoTransform"], (t.c, t.a, t.b, t.f, t.d, t.e), rtol=1e-9)
    assert len(told["bands"]) == 2


# -- what is chosen -----------------------------------------------------------------------------


def test_period_and_region_cut_whole_steps_and_cells() -> None:
    layer = layer_of(of_place(GRID, 5), GRID)
    chosen = cut(layer, ("2017-06-30", "2017-07-01"), (100.015, 29.955, 100.03, 29.97))
    assert [s.label for s in chosen.steps] == ["2017-06-30_AM", "2017-07-01_AM"]
    assert chosen.values.shape == (
        2,
        2,
        2,
    )  # the box touches columns 1 and 2, rows 3 and 4; it only shares edges with others
    np.testing.assert_array_equal(chosen.values[0], of_place(GRID, 5)[1, 3:5, 1:3])
    np.testing.assert_allclose(chosen.grid.bounds, (100.01, 29.95, 100.03, 29.97))


@pytest.mark.parametrize(
    ("period", "region", "said"),
    [
        (("2018-01-01", "2018-01-02"), None, "it covers 2017-06-29 to 2017-07-01"),
        (None, (10.0, 10.0, 11.0, 11.0), "which covers 100,29.95,100.07,30"),
        (None, (101.0, 10.0, 100.0, 11.0), "W < E"),
    ],
)
def test_an_empty_choice_is_refused(period: Any, region: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cut(layer_of(of_place(GRID), GRID), period, region)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"what": "sand"}, "has no such variable; it has gda_kriging, soil_moisture_rf, lst"),
        ({"form": "png"}, "expected geotiff, netcdf, csv"),
        ({"form": "csv"}, "needs one of --points"),
        ({"points": "p.csv"}, "other formats take neither"),
        ({"period": "2017"}, "expected two ISO dates"),
        ({"period": "june,july"}, "expected two ISO dates"),
        ({"region": "1,2,3"}, "expected W,S,E,N"),
        ({"form": "csv", "points": "nowhere.csv"}, "there is no file nowhere.csv"),
        ({"form": "csv", "polygons": "nowhere.json"}, "there is no file nowhere.json"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    made: Workspace, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((InputError, RecipeError), match=said) as refused:
        exports.export(made, **{"what": "gda_kriging", "out": tmp_path, **options})
    assert "\n" not in str(refused.value)


def test_final_is_the_map_that_fusion_chose(made: Workspace) -> None:
    assert exports.layer(made, "final").name == "gda_kriging"
    assert "final" in exports.available(made)


def test_a_step_that_is_done_again_has_another_version(made: Workspace) -> None:
    before = [s.version for s in exports.layer(made, "lst").steps]
    assert len(set(before)) == 3  # shards hold two steps
    fill(made)
    assert [s.version for s in exports.layer(open_workspace(made.root), "lst").steps] == before
    assert len(tasks(made)["ingest"]) == 12


# -- points -------------------------------------------------------------------------------------


def test_points_take_the_cell_that_they_lie_in(made: Workspace, tmp_path: Path) -> None:
    points = tmp_path / "sites.csv"
    points.write_text(
        "ID, Lon ,lat,note\n007,100.0649,29.9501,x\nedge,100.01,29.99,y\nwest,-259.935,29.955,z\nfar,99.9,29.99,\n"
    )
    done = exports.export(made, "gda_kriging", "csv", out=tmp_path, points=points)
    assert done.notes == ("1 points outside the grid: far",)
    table = pd.read_csv(done.written[0], dtype={"id": str})
    assert list(table.columns) == ["id", "time", "local_date", "overpass", "value", "status", "cell_lon", "cell_lat"]
    assert len(table) == 3 * 6
    values = made.maps["gda_kriging"].values
    for name, row, col in (
        ("007", 4, 6),
        ("edge", 1, 1),
        ("west", 4, 6),
    ):  # an edge belongs to the cell east and south of it
        mine = table[table["id"] == name]
        np.testing.assert_array_equal(mine["value"].to_numpy(np.float32), values[:, row, col])
        np.testing.assert_allclose(mine[["cell_lon", "cell_lat"]].iloc[0], (GRID.lon[col], GRID.lat[row]))
    assert table["time"].iloc[0] == "2017-06-29T23:20:00Z"
    assert table["local_date"].iloc[0] == "2017-06-30"
    holes = table["value"].isna()
    assert set(table["status"][holes]) == {"no_lst"}
    assert set(table["status"][~holes]) == {"fused_kriging"}
    about = json.loads(done.written[0].with_suffix(".json").read_text())
    assert "m3 m-3" in about["columns"]["value"]
    assert set(about["columns"]) == set(table.columns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,lon,lat\na,1,2\n", "lacks column id"),
        ("id,lon,lat\na,east,2\n", "line 2: lon is 'east'"),
        ("id,lon,lat\na,100,30\na,100.01,30\n", "two points are named a"),
        ("id,lon,lat\na,0,0\n", "no point lies within 100 to 100.07 E"),
        ("", "is no CSV"),
    ],
)
def test_wrong_points_are_refused(made: Workspace, tmp_path: Path, text: str, said: str) -> None:
    points = tmp_path / "p.csv"
    points.write_text(text)
    with pytest.raises(InputError, match=said):
        exports.export(made, "lst", "csv", out=tmp_path, points=points)


def test_classes_and_missing_points_are_written_as_they_are(tmp_path: Path) -> None:
    values = np.full((1, *GRID.shape), 12, np.uint8)
    values[0, 0, 0] = 255
    (tmp_path / "p.csv").write_text("id,lon,lat\na,100.005,29.995\nb,100.015,29.995\n")
    layer = layer_of(values, GRID, "class", _FillValue=np.uint8(255))
    table = pd.read_csv(write_points(layer, tmp_path / "p.csv", tmp_path).written[0], dtype=str)
    assert table["value"].tolist()[1] == "12"
    assert table["value"].isna().tolist() == [True, False]


# -- polygons -----------------------------------------------------------------------------------


def geojson(path: Path, *features: tuple[dict[str, Any], Any]) -> Path:
    made = [
        {"type": "Feature", "properties": p, "geometry": {"type": "Polygon", "coordinates": c}} for p, c in features
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": made}))
    return path


def box(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


@pytest.mark.parametrize("grid", [GRID, Grid.ease2(1, 99.9, 29.9, 100.2, 30.1)], ids=["latlon", "ease"])
def test_cells_of_a_polygon_have_its_area(tmp_path: Path, grid: Grid) -> None:
    """A triangle with a hole, whichever way its rings run: as much as pyproj's geodesic area says."""
    outer, hole = (
        [[100.002, 29.953], [100.061, 29.958], [100.03, 29.996], [100.002, 29.953]],
        box(100.02, 29.965, 100.03, 29.97),
    )
    geod = Geod(ellps="WGS84")
    areas = [abs(geod.polygon_area_perimeter(*_dense(ring).T)[0]) / 1e6 for ring in (outer, hole)]
    for rings in ([outer, hole], [outer[::-1], hole], [outer, hole[::-1]]):
        (polygon,) = read_polygons(geojson(tmp_path / "p.json", ({}, rings)))
        (rows, cols), inside, whole = cell_areas(polygon, grid)
        assert inside.shape == (rows.stop - rows.start, cols.stop - cols.start)
        np.testing.assert_allclose(inside.sum(), areas[0] - areas[1], rtol=3e-6)
        np.testing.assert_allclose(whole, inside.sum(), rtol=1e-9)


def _dense(ring: list[list[float]]) -> np.ndarray:
    """Points along straight lines in longitude and latitude: geodesics between corners bulge by half a metre."""
    corners = np.array(ring)
    share = np.linspace(0, 1, 500)[:, None]
    return np.vstack([a + share * (b - a) for a, b in pairwise(corners)])


def test_a_box_of_cells_and_halves_is_exact(tmp_path: Path) -> None:
    (polygon,) = read_polygons(geojson(tmp_path / "p.json", ({}, [box(100.01, 29.96, 100.035, 29.98)])))
    (rows, cols), inside, _ = cell_areas(polygon, GRID)
    assert (rows, cols) == (slice(2, 4), slice(1, 4))
    share = inside / GRID.cell_area[rows][:, None]
    np.testing.assert_allclose(share, [[1, 1, 0.5], [1, 1, 0.5]], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(99.98, 100.09), st.floats(29.93, 30.02)), min_size=3, max_size=3, unique=True))
def test_triangles_anywhere_have_the_area_of_their_clipping(corners: list[tuple[float, float]]) -> None:
    """Against Sutherland and Hodgman's clipping to the grid, in the same plane, for triangles that may leave the grid."""
    from smscale.export.polygons import Polygon, _area, _plane
    from smscale.grid import ease2_forward

    ring = np.array([*corners, corners[0]])
    (rows, _), inside, whole = cell_areas(Polygon("t", ((ring, False),)), GRID)
    clipped = _plane(ring, GRID)[:-1]
    (left, right), _ = ease2_forward(GRID.lon_edges[[0, -1]], 0.0)
    _, (low, high) = ease2_forward(0.0, GRID.lat_edges[[-1, 0]])
    for axis, limit, sign in ((0, left, 1), (0, right, -1), (1, low, 1), (1, high, -1)):
        clipped = _clip(clipped, axis, limit, sign)
    expected = abs(_area(np.vstack([clipped, clipped[:1]]))) / 1e6 if len(clipped) else 0.0
    assert inside.sum() == pytest.approx(expected, abs=1e-6)
    assert inside.sum() <= whole + 1e-9
    if inside.size:
        assert np.all(inside <= GRID.cell_area[rows][:, None] * (1 + 1e-9))


def _clip(points: np.ndarray, axis: int, limit: float, sign: int) -> np.ndarray:
    """A ring's part on one side of a line."""
    kept: list[np.ndarray] = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        within = [sign * (p[axis] - limit) >= 0 for p in (a, b)]
        if within[0]:
            kept.append(a)
        if within[0] != within[1]:
            kept.append(a + (limit - a[axis]) / (b[axis] - a[axis]) * (b - a))
    return np.array(kept)


def test_means_over_polygons_weigh_by_area_and_tell_what_is_valid(tmp_path: Path) -> None:
    values = np.zeros((2, *GRID.shape), np.float32)
    values[:, :, 1] = 4.0
    values[1, :, 0] = np.nan
    path = geojson(
        tmp_path / "basins.json",
        ({"id": "both"}, [box(100.0, 29.95, 100.015, 30.0)]),  # all of column 0, half of column 1
        ({"name": "leaves"}, [box(99.99, 29.95, 100.01, 30.0)]),  # half of it on the grid
        ({}, [box(0.0, 0.0, 1.0, 1.0)]),
    )
    done = write_polygons(layer_of(values, GRID), path, tmp_path)
    table = pd.read_csv(done.written[0], dtype={"id": str}).set_index(["local_date", "id"])
    first, second = table.loc["2017-06-29"], table.loc["2017-06-30"]
    assert first.loc["both", "value"] == pytest.approx(4 / 3, rel=1e-6)
    assert second.loc["both", "value"] == 4.0
    assert (first.loc["both", "valid_fraction"], second.loc["both", "valid_fraction"]) == (1.0, 0.3333)
    assert first.loc["leaves", "valid_fraction"] == 0.5
    assert (np.isnan(second.loc["leaves", "value"]), second.loc["leaves", "valid_fraction"]) == (True, 0.0)
    assert "3" not in first.index
    assert done.notes == ("1 polygons outside the grid: 3", "1 polygons only partly on the grid: leaves (50 %)")


def test_classes_have_the_one_of_most_area_and_directions_the_circular_mean(tmp_path: Path) -> None:
    path = geojson(
        tmp_path / "p.json", ({"id": "a"}, [box(100.0, 29.96, 100.025, 29.97)])
    )  # columns 0, 1 and half of 2
    classes = np.full((1, *GRID.shape), 255, np.uint8)
    classes[..., 0], classes[..., 1], classes[..., 2] = 10, 8, 10
    codes = np.arange(1, 18, dtype=np.uint8)
    layer = layer_of(classes, GRID, "class", _FillValue=np.uint8(255), flag_values=codes)
    assert pd.read_csv(write_polygons(layer, path, tmp_path / "class").written[0])["value"].tolist() == [10]
    angles = np.zeros((1, *GRID.shape), np.float32)
    angles[..., 0], angles[..., 1], angles[..., 2] = 350.0, 10.0, np.nan
    table = pd.read_csv(write_polygons(layer_of(angles, GRID, "direction"), path, tmp_path / "way").written[0])
    assert abs((table["value"][0] + 180) % 360 - 180) < 1e-5
    assert table["valid_fraction"][0] == 0.8


def test_polygons_on_a_large_chunked_grid_give_what_one_piece_gives(tmp_path: Path) -> None:
    """Two polygons over several tiles of whole chunks; of longitude the mean over a box is its middle."""
    lon = np.tile(WIDE.lon, (2, WIDE.shape[0], 1)).astype(np.float32)
    lon[1] += np.indices(WIDE.shape).sum(axis=0)
    path = geojson(
        tmp_path / "p.json",
        ({"id": "box"}, [box(99.5, 27.0, 104.5, 32.0)]),
        ({"id": "slope"}, [[[98.0, 27.0], [108.0, 28.5], [103.0, 34.0], [98.0, 27.0]]]),
    )
    whole = layer_of(lon, WIDE)
    chunked = replace(whole, values=whole.values.chunk({"time": 1, "lat": 230, "lon": 300}))
    assert len(_whole_chunks(chunked.values, 1)) == 2
    assert len(_whole_chunks(chunked.values, 2)) == 4
    one, many = (
        pd.read_csv(write_polygons(g, path, tmp_path / n).written[0]) for n, g in (("1", whole), ("n", chunked))
    )
    np.testing.assert_allclose(many["value"], one["value"], rtol=1e-6)  # summed in another order, written with 7 digits
    assert (many["valid_fraction"] == 1).all()
    assert one["value"][0] == pytest.approx(102.0, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no GeoJSON"),
        ('{"type": "Point", "coordinates": [1, 2]}', "holds no Polygon"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}', "at least 3 corners"),
        ('{"type": "Polygon", "coordinates": [[[1, 200], [3, 4], [5, 6], [1, 200]]]}', "degrees"),
        (json.dumps({"type": "Polygon", "coordinates": [box(0, 0, 1, 1)]}), "no polygon meets 100 to 100.07 E"),
    ],
)
def test_wrong_polygons_are_refused(made: Workspace, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        exports.export(made, "lst", "csv", out=tmp_path, polygons=path)


# -- a run of the pipeline ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "files"),
    [
        ("gda_idw", 24),
        ("lst", 12),
        ("slope", 1),
        ("land_cover", 1),
        ("et", 2),
        ("coarse/soil_moisture", 12),
        ("coarse/elevation", 1),
        ("status_rf", 12),
    ],
)
def test_what_a_run_holds_can_be_exported(tiny_run: Path, tmp_path: Path, what: str, files: int) -> None:
    workspace = open_workspace(tiny_run)
    layer = exports.layer(workspace, what)
    tiffs = exports.export(workspace, what, "geotiff", out=tmp_path)
    assert len(tiffs.written) == files
    group, _, short = what.rpartition("/")
    expected = np.stack([np.asarray(layer.values[s.index].values) for s in layer.steps])
    held = workspace.coarse if group else workspace.maps if what in workspace.maps else None
    if held is not None:
        np.testing.assert_array_equal(expected, held[short].values.reshape(expected.shape))
    plain = [p for p in tiffs.written if "_status_2" not in p.name]
    for path, values in zip(sorted(plain), expected, strict=True):
        with rasterio.open(path) as raster:
            np.testing.assert_array_equal(raster.read(1), values)
            assert raster.crs.to_epsg() == (6933 if group else 4326)
            assert FINGERPRINT in raster.tags()
    found = exports.export(workspace, what, "netcdf", out=tmp_path)
    with xr.open_dataset(found.written[0], decode_coords="all") as data:
        assert data[short].rio.crs.to_epsg() == (6933 if group else 4326)
        assert data[short].attrs["long_name"] == workspace_name(workspace, what)


def workspace_name(workspace: Workspace, what: str) -> str:
    return exports.available(workspace)[what]


def test_every_step_of_a_run_has_a_version_of_its_blocks(tiny_run: Path) -> None:
    """No layer falls back to the run as a whole: receipts cover them all."""
    workspace = open_workspace(tiny_run)
    versions = {
        name: {s.version for s in exports.layer(workspace, name).steps} for name in ("gda_idw", "lst", "slope", "et")
    }
    assert len(versions["gda_idw"]) == len(versions["lst"]) == 3  # shards of four steps
    assert len(set().union(*versions.values())) == 3 + 3 + 1 + 2


def test_period_steps_of_made_workspace_are_those_of_the_schema() -> None:
    assert STEPS["overpass"].values.tolist() == list(schema.OVERPASSES) * 3
