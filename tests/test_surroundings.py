"""A patch network in a run: what it sees of the coarse cells around a sample and around a cell of a map."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smscale import config, pipeline
from smscale.errors import RecipeError
from smscale.models import load_model
from smscale.models.cnn.patch import own_name, patch_columns, patch_offsets
from smscale.pipeline import surroundings
from smscale.schema import LAND_COVER_FILL, Status
from smscale.workspace import Workspace

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def patched(tiny_run: Path, copy_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny run trained with a patch network of 3 x 3 cells, and its maps."""
    root = copy_run(tiny_run, tmp_path_factory.mktemp("patched") / "run", without=("report",))
    recipe = config.read(TINY, ["models={cnn: {epochs: 3, patch: 3}}"])
    for stage in ("train", "downscale"):
        pipeline.run(recipe, Workspace(root), cluster=None, progress=False, only=stage)
    return Workspace(root)


def coarse_value(coarse: xr.Dataset, name: str, step: int, row: int, col: int) -> float:
    """One predictor of one coarse cell, read by xarray alone; NaN beyond the grid."""
    if not (0 <= row < coarse.sizes["lat"] and 0 <= col < coarse.sizes["lon"]):
        return np.nan
    if name in ("longitude", "latitude"):
        return float(coarse["lon"][col] if name == "longitude" else coarse["lat"][row])
    if name == "overpass":
        return float(coarse["overpass"].values[step] == "PM")
    field = coarse[name]
    value = float(field.isel({d: i for d, i in (("time", step), ("lat", row), ("lon", col)) if d in field.dims}))
    return np.nan if name == "land_cover" and value == LAND_COVER_FILL else value


def neighbours(coarse: xr.Dataset, names: list[str], step: int, row: int, col: int, own: list[float]) -> list[float]:
    """What the module's first lines say, cell by cell."""
    found = []
    for south, east in patch_offsets(3)[1:]:
        for name, mine in zip(names, own, strict=True):
            value = coarse_value(coarse, name, step, row + south, col + east)
            value = coarse_value(coarse, name, step, row, col) if np.isnan(value) else value
            found.append(mine if np.isnan(value) else value)
    return found


def test_samples_have_the_coarse_cells_around_them(patched: Workspace) -> None:
    names = list(patched.recipe["predictors"])
    table = patched.samples
    wide, filled = surroundings.widened(patched, table, names, 3)
    told = patched.finished("train")["report"]["neighbours"]["cnn"]
    assert told == {"values": len(table) * 8 * len(names), "stood_in": int(filled.sum())}
    assert 0 < told["stood_in"] < told["values"]
    assert list(wide.columns) == [*table.columns, *patch_columns(names, 3)[len(names) :]]
    pd.testing.assert_frame_equal(wide[list(table.columns)], table)
    coarse = patched.coarse.load()
    times = list(coarse["time"].values)
    away = []
    for i in np.linspace(0, len(table) - 1, 25).astype(int):
        sample = table.iloc[i]
        at = times.index(sample["time"].to_datetime64()), int(sample["row"]), int(sample["col"])
        expected = neighbours(coarse, names, *at, [float(sample[n]) for n in names])
        found = wide[patch_columns(names, 3)[len(names) :]].iloc[i].to_numpy()
        np.testing.assert_array_equal(found, np.float32(expected))
        away.append(not np.array_equal(found, np.tile(np.float32(sample[names].to_numpy(float)), 8)))
    assert np.mean(away) > 0.9  # the cells around a cell are not the cell


def test_a_map_is_what_the_network_says_of_each_cell_and_the_coarse_cells_around_it(patched: Workspace) -> None:
    names, model = list(patched.recipe["predictors"]), load_model(patched.model("cnn"))
    assert model.features == tuple(patch_columns(names, 3))
    coarse, maps = patched.coarse.load(), patched.maps
    predictors = patched.predictors().transpose("time", "lat", "lon", "variable").values
    drawn = np.argwhere(np.isfinite(maps["soil_moisture_cnn"].values))
    rng = np.random.default_rng(0)
    rows, values, edges, told, lacking = [], [], 0, [], []
    for step, i, j in rng.choice(drawn, 40, replace=False):
        own = [float(v) for v in predictors[step, i, j]]
        # The coarse cell whose centre is nearest: cells are rectangles in longitude and latitude.
        row = int(np.abs(coarse["lat"].values - float(maps["lat"][i])).argmin())
        col = int(np.abs(coarse["lon"].values - float(maps["lon"][j])).argmin())
        rows.append([*own, *neighbours(coarse, names, step, row, col, own)])
        values.append(float(maps["soil_moisture_cnn"][step, i, j]))
        told.append(bool(int(maps["status_cnn"][step, i, j]) & Status.NEIGHBOURS_FILLED))
        seen = [coarse_value(coarse, n, step, row + s, col + e) for s, e in patch_offsets(3)[1:] for n in names]
        lacking.append(bool(np.isnan(seen).any()))
        edges += row in (0, coarse.sizes["lat"] - 1) or col in (0, coarse.sizes["lon"] - 1)
    assert edges  # the border of the coarse grid was among them
    assert told == lacking
    np.testing.assert_allclose(np.clip(model.predict(np.float32(rows)), 0, 1), values, atol=2e-6)


def test_a_patch_makes_no_hole_in_a_map(patched: Workspace, tiny_run: Path) -> None:
    valid = np.isfinite(patched.maps["soil_moisture_cnn"].values)
    np.testing.assert_array_equal(valid, np.isfinite(Workspace(tiny_run).maps["soil_moisture_cnn"].values))
    assert valid.any()


def test_cells_for_which_a_neighbour_is_missing_are_told_apart(patched: Workspace) -> None:
    coarse = patched.coarse.load()
    whole = xr.Dataset(coords=coarse.coords).assign(
        ndvi=xr.zeros_like(coarse["ndvi"]), lst=xr.zeros_like(coarse["lst"])
    )
    whole["lst"][3, 2, 2] = np.nan
    around = surroundings.Surroundings(
        SimpleNamespace(coarse=whole),  # type: ignore[arg-type]
        patched.steps,
        coarse["lat"].values[:, None] + np.zeros(coarse["lon"].size),
        coarse["lon"].values[None, :] + np.zeros((coarse["lat"].size, 1)),
        ["ndvi", "lst"],
        3,
    )
    own = [np.ones(coarse["lst"].shape[1:], np.float32)] * 2
    border = np.ones(own[0].shape, bool)
    border[1:-1, 1:-1] = False
    near = border.copy()
    near[1:4, 1:4] = True
    near[2, 2] = border[2, 2]  # its own value is not one of its neighbours
    np.testing.assert_array_equal(around.at(0, own)[1], border)
    np.testing.assert_array_equal(around.at(3, own)[1], near)


def test_its_importances_are_by_predictor(patched: Workspace) -> None:
    report = patched.finished("train")["report"]
    assert set(report["importances"]["cnn"]["permutation"]) == set(patched.recipe["predictors"])
    assert own_name("lst[-1,+1]") == "lst"
    assert own_name("lst") == "lst"


def test_a_search_cannot_change_what_a_model_sees(tmp_path: Path) -> None:
    recipe = config.read(TINY, ["models.cnn.search={space: {patch: [1, 3]}}"])
    with pytest.raises(RecipeError, match=r"models\.cnn\.search\.space: patch cannot be searched"):
        pipeline.run(recipe, Workspace(tmp_path / "run"), cluster=None, progress=False)
