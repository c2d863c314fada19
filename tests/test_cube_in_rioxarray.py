"""A cube opened by plain xarray and rioxarray, as a stranger does: CRS, orientation, bounds, reprojection."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from smscale.grid import ease2_forward, grid_of

LATLON = ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover")


def opened(run: Path, group: str) -> xr.Dataset:
    store, name = ("maps.zarr", None) if group == "maps" else ("cube.zarr", group)
    return xr.open_zarr(run / store, group=name, consolidated=False)


@pytest.mark.parametrize("group", [*LATLON, "maps"])
def test_longitude_latitude_groups_have_crs_and_north_up(tiny_run: Path, group: str) -> None:
    data = opened(tiny_run, group)
    grid = grid_of(data)
    for given in (data, *(v for v in data.data_vars.values() if {"lat", "lon"} <= set(v.dims))):
        assert given.rio.crs.to_epsg() == 4326
        assert (given.rio.x_dim, given.rio.y_dim) == ("lon", "lat")
        west, south, east, north = given.rio.bounds()
        np.testing.assert_allclose((west, south, east, north), grid.bounds, atol=1e-9)
        for recalculated in (False, True):  # GeoTransform as stored, and of the coordinates
            t = given.rio.transform(recalc=recalculated)
            np.testing.assert_allclose((t.a, t.b, t.c, t.d, t.e, t.f), (0.01, 0, west, 0, -0.01, north), atol=1e-9)


def test_a_map_reprojects_to_where_it_lies(tiny_run: Path) -> None:
    """Longitude and latitude as values: in UTM they are what pyproj says of the pixel's place."""
    data = opened(tiny_run, "maps")["gda_idw"].isel(time=0)
    lon = (data * 0 + data["lon"]).fillna(data["lon"]).astype(np.float64).rio.write_crs(data.rio.crs)
    moved = lon.rio.reproject("EPSG:32648", resolution=1000)
    from pyproj import Transformer

    y, x = np.unravel_index(int(np.isfinite(moved.values).ravel().argmax()) + moved.shape[1] * 20 + 20, moved.shape)
    there, _ = Transformer.from_crs(32648, 4326, always_xy=True).transform(moved["x"].values[x], moved["y"].values[y])
    assert moved.values[y, x] == pytest.approx(there, abs=0.01)  # nearest neighbour: within a cell


def projected(data: xr.Dataset) -> xr.Dataset:
    """As docs/outputs.md says it."""
    return data.swap_dims(lat="y", lon="x").drop_vars(["lat", "lon"]).rio.write_crs(data.attrs["crs"])


def test_the_coarse_group_is_right_with_x_and_y_as_dimensions(tiny_run: Path) -> None:
    data = opened(tiny_run, "coarse")
    given = projected(data)
    assert given.rio.crs.to_epsg() == 6933
    size = 36032.220840584
    t = given.rio.transform(recalc=True)
    x, y = data["x"].values, data["y"].values
    np.testing.assert_allclose((t.a, t.b, t.c, t.d, t.e, t.f), (size, 0, x[0] - size / 2, 0, -size, y[0] + size / 2))
    assert given["soil_moisture"].rio.crs.to_epsg() == 6933
    west, south, east, north = given.rio.transform_bounds("EPSG:4326")
    np.testing.assert_allclose((west, south, east, north), grid_of(data).bounds, atol=1e-6)


def test_the_coarse_group_is_matched_to_the_maps(tiny_run: Path) -> None:
    """Each fine cell takes the coarse cell that its centre lies in."""
    coarse, maps = opened(tiny_run, "coarse"), opened(tiny_run, "maps")
    step = int(np.isfinite(coarse["soil_moisture"].values).sum(axis=(1, 2)).argmax())
    given = projected(coarse)["soil_moisture"].isel(time=step).load()
    matched = given.rio.reproject_match(maps["gda_idw"].isel(time=step))
    assert matched.shape == (maps.sizes["lat"], maps.sizes["lon"])
    x, _ = ease2_forward(maps["lon"].values, 0.0)
    _, y = ease2_forward(0.0, maps["lat"].values)
    expected = given.sel(x=xr.DataArray(x, dims="lon"), y=xr.DataArray(y, dims="lat"), method="nearest")
    np.testing.assert_array_equal(matched.values, expected.transpose("lat", "lon").values)


@pytest.fixture(scope="module")
def ease_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine cube on EASE-Grid 2.0 at 1 km, as `grid: {kind: ease2}` makes it."""
    from smscale import schema, store
    from smscale.grid import Grid

    grid = Grid.ease2(1, 103.0, 31.5, 103.2, 31.7)
    path = tmp_path_factory.mktemp("ease") / "cube.zarr"
    values = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    data = xr.Dataset({"values": (("lat", "lon"), values)}, schema.grid_coords(grid), schema.grid_attrs(grid))
    store.create(path, "fine/static", data, {})
    store.publish(path, "fine/static")
    return path


def test_a_fine_cube_on_ease_is_right_with_x_and_y_as_dimensions(ease_group: Path) -> None:
    data = projected(xr.open_zarr(ease_group, group="fine/static", consolidated=False))
    assert data.rio.crs.to_epsg() == 6933
    t = data.rio.transform(recalc=True)
    np.testing.assert_allclose((t.a, t.e), (1000.89502334956, -1000.89502334956), rtol=1e-12)
    assert t.c <= ease2_forward(103.0, 0.0)[0] < t.c + t.a


def test_the_truth_of_a_nature_run_has_crs_and_orientation(tiny_run: Path) -> None:
    truth = xr.open_zarr(tiny_run / "world" / "truth.zarr", group="fine", consolidated=False)
    assert truth.rio.crs.to_epsg() == 4326
    assert truth["soil_moisture"].rio.crs.to_epsg() == 4326
    t = truth.rio.transform()
    np.testing.assert_allclose((t.a, t.e), (0.01, -0.01), atol=1e-9)
    np.testing.assert_allclose(truth.rio.bounds(), grid_of(truth).bounds, atol=1e-9)


def test_every_group_is_tested(tiny_run: Path, groups_of: Callable[[Path], set[str]]) -> None:
    known = {*LATLON, "coarse", "stations"}
    assert groups_of(tiny_run / "cube.zarr") == known


@pytest.fixture
def groups_of() -> Callable[[Path], set[str]]:
    """Paths of a store's groups that hold arrays."""

    def of(store: Path) -> set[str]:
        arrays = [p.parent for p in store.rglob("zarr.json") if '"node_type": "array"' in p.read_text()]
        return {p.parent.relative_to(store).as_posix() for p in arrays}

    return of
