"""The recovery run on the real 9 km field: what is dropped and counted, interpolation as measured by others, all four models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from smscale import config, pipeline
from smscale.errors import InputError, RecipeError
from smscale.features.upscale import upscale
from smscale.grid import Grid
from smscale.pipeline.recovery import stages
from smscale.pipeline.recovery.interpolation import interpolate
from smscale.pipeline.recovery.plan import files_of
from smscale.pipeline.recovery.window import whole_cells
from smscale.schema import Status, grid_coords
from smscale.workspace import Workspace

RECIPE = Path(__file__).parents[1] / "pipelines" / "smap-l4-recovery.yaml"
QUICK = "models={rf: {trees: 8, folds: 2, grid: {min_samples_leaf: [5], max_features: [0.5]}}}"
ALL = (
    "models={gabp: {generations: 3, population: 20, members: 1, max_steps: 5, decays: [0.01]}, cnn: {epochs: 2}, "
    "rf: {trees: 8, folds: 2, grid: {min_samples_leaf: [5], max_features: [0.5]}}, xgb: {folds: 2, grid: {max_depth: [3]}}}"
)
WYOMING = "region=[-112, 39, -102, 46]"


def recover(root: Path, real: Callable[[str], Path], *settings: str, said: list[str] | None = None) -> dict[str, Any]:
    folder = real("smap").parent
    recipe = config.read(RECIPE, [f"recovery.folder={folder}", "split.folds=2", *settings])
    say = (said if said is not None else []).append
    return pipeline.run(recipe, Workspace(root), cluster=None, progress=False, say=say)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, real: Callable[[str], Path]) -> tuple[Workspace, dict[str, Any]]:
    root = tmp_path_factory.mktemp("recovery")
    return Workspace(root), recover(root, real, QUICK)


# -- whole cells, interpolation ---------------------------------------------------------------------


def test_partial_cells_are_dropped_when_window_starts_mid_cell() -> None:
    fine = Grid.ease2(9).window(slice(40, 40 + 10), slice(87, 87 + 12))
    coarse, (rows, cols) = whole_cells(fine, Grid.ease2(36, *fine.bounds))
    assert (coarse.row0, coarse.col0, coarse.shape) == (10, 22, (2, 2))
    assert (rows, cols) == (slice(0, 8), slice(1, 9))


def test_window_without_a_whole_cell_is_refused() -> None:
    fine = Grid.ease2(9).window(slice(42, 46), slice(87, 95))
    with pytest.raises(InputError, match="no coarse cell lies wholly within"):
        whole_cells(fine, Grid.ease2(36, *fine.bounds))


def test_whole_cells_of_a_longitude_latitude_grid_lie_inside_it() -> None:
    fine = Grid.latlon(100, 30, 103, 33, step=0.05)
    coarse, _ = whole_cells(fine, Grid.ease2(36, *fine.bounds))
    (west, south, east, north), (w, s, e, n) = coarse.bounds, fine.bounds
    assert w <= west < east <= e
    assert s <= south < north <= n
    assert max(west - w, e - east) < 360 / 964 * 1.01


@pytest.mark.parametrize("how", ["nearest", "bilinear", "cubic", "cubic_spline"])
def test_interpolation_keeps_a_constant_and_fills_gaps(how: str) -> None:
    coarse = Grid.ease2(36, 100, 30, 103, 33)
    fine = Grid.latlon(100.5, 30.5, 102.5, 32.5, step=0.1)
    values = np.full(coarse.shape, 0.25)
    values[2, 3] = np.nan
    np.testing.assert_allclose(interpolate(values, coarse, fine, how), 0.25, rtol=1e-12)


@pytest.mark.parametrize("how", ["bilinear", "cubic_spline"])
def test_interpolation_keeps_a_plane_inside(how: str) -> None:
    coarse = Grid.ease2(36).window(slice(100, 120), slice(700, 730))
    fine = Grid.ease2(9).window(slice(432, 448), slice(2840, 2860))
    plane, expected = (grid.x[None, :] / 1e6 - 2 * grid.y[:, None] / 1e6 for grid in (coarse, fine))  # type: ignore[index]
    # the spline's own edge condition reaches a few cells inwards
    np.testing.assert_allclose(interpolate(plane, coarse, fine, how), expected, atol=2e-3 if "spline" in how else 1e-9)


def test_bilinear_is_scipys_zoom_on_a_nested_grid() -> None:
    coarse, fine = (
        Grid.ease2(36).window(slice(100, 110), slice(700, 712)),
        Grid.ease2(9).window(slice(400, 440), slice(2800, 2848)),
    )
    values = np.random.default_rng(1).random(coarse.shape)
    expected = ndimage.zoom(values, 4, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(interpolate(values, coarse, fine, "bilinear"), expected, atol=1e-9)


def test_cubic_is_torchs_bicubic_on_a_nested_grid() -> None:
    torch = pytest.importorskip("torch")
    coarse, fine = (
        Grid.ease2(36).window(slice(100, 110), slice(700, 712)),
        Grid.ease2(9).window(slice(400, 440), slice(2800, 2848)),
    )
    values = np.random.default_rng(1).random(coarse.shape)
    expected = torch.nn.functional.interpolate(torch.tensor(values)[None, None], scale_factor=4, mode="bicubic")
    np.testing.assert_allclose(interpolate(values, coarse, fine, "cubic"), expected[0, 0].numpy(), atol=1e-9)


# -- recipe ------------------------------------------------------------------------------------------


def test_unset_folder_is_one_line_that_says_which_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMSCALE_REAL_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"SMSCALE_REAL_DATA is not set.*SPL4SMAU.*Altitude\.h5.*MCD12C1") as caught:
        stages(config.read(RECIPE, ["recovery.folder=${SMSCALE_REAL_DATA}"]))
    assert "\n" not in str(caught.value)


def test_folder_of_the_environment_goes_before_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMSCALE_REAL_DATA", str(tmp_path))
    with pytest.raises(InputError, match=str(tmp_path)):
        files_of(config.read(RECIPE))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks smap/SMAP_L4_SM_aup_input\.h5.*pvlib.*LP DAAC"):
        files_of(config.read(RECIPE, [f"recovery.folder={tmp_path}"]))


@pytest.mark.parametrize("name", ["lst", "ndvi"])
def test_predictor_that_a_recovery_has_not_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"predictors: found '{name}'.*in a recovery"):
        config.read(RECIPE, [f"predictors=[longitude, {name}]"])


# -- the real field ----------------------------------------------------------------------------------


@pytest.mark.real_data
def test_cells_are_counted(whole: tuple[Workspace, dict[str, Any]], real: Callable[[str], Path]) -> None:
    import h5py

    counts = whole[1]["ingest"]
    with h5py.File(real("smap/SMAP_L4_SM_aup_input.h5")) as file:
        valid = file["Analysis_Data/sm_surface_analysis"][:] != -9999
        assert int(file["cell_column"][0, 0]) % 4 == 3
    blocks = valid[:, 1:1121].reshape(127, 4, 280, 4).sum(axis=(1, 3))
    assert counts["fine_cells_valid"] == valid.sum() == 246_473
    assert counts["coarse_cells_partial_dropped"] == 2 * 127
    assert counts["fine_cells_dropped"] == 3 * 508
    assert counts["fine_cells_valid_dropped"] == valid[:, [0, 1121, 1122]].sum()
    assert counts["coarse_cells"] == 127 * 280
    assert counts["coarse_cells_whole"] == (blocks == 16).sum()
    assert counts["coarse_cells_kept"] == (blocks >= 8).sum() == len(whole[0].samples)
    assert counts["coarse_cells_too_little"] == ((blocks > 0) & (blocks < 8)).sum()
    assert counts["coarse_cells_empty"] == (blocks == 0).sum()


@pytest.mark.real_data
def test_coarse_field_is_the_plain_mean_of_four_by_four(
    whole: tuple[Workspace, dict[str, Any]], real: Callable[[str], Path]
) -> None:
    import h5py

    with h5py.File(real("smap/SMAP_L4_SM_aup_input.h5")) as file:
        field = file["Analysis_Data/sm_surface_analysis"][:, 1:1121].astype(np.float64)
    blocks = np.where(field == -9999, np.nan, field).reshape(127, 4, 280, 4).transpose(0, 2, 1, 3).reshape(127, 280, 16)
    enough = np.isfinite(blocks).sum(axis=-1) >= 8
    coarse = whole[0].coarse["soil_moisture"].values[0]
    # 9 km cells of one coarse cell have equal areas on the ellipsoid
    np.testing.assert_allclose(coarse[enough], np.nanmean(blocks[enough], axis=-1), atol=1e-6)
    assert np.isnan(coarse[~enough]).all()


@pytest.mark.real_data
def test_interpolations_score_as_measured_elsewhere(whole: tuple[Workspace, dict[str, Any]]) -> None:
    rmse = {row["source"]: row["rmse"] for row in whole[1]["evaluate"]["truth"]}
    # the reference values are given with four decimals
    assert rmse["nearest"] == pytest.approx(0.0463, abs=6e-5)
    assert rmse["bilinear"] == pytest.approx(0.0451, abs=6e-5)
    assert rmse["cubic"] == pytest.approx(0.0434, abs=6e-5)


@pytest.mark.real_data
def test_closure_agrees_with_the_coarse_field_better_than_the_map(whole: tuple[Workspace, dict[str, Any]]) -> None:
    workspace = whole[0]
    maps, target = workspace.maps.isel(time=0), workspace.coarse["soil_moisture"].values[0]
    coarse = Grid.ease2(36).window(slice(10, 137), slice(22, 302))
    fine = Grid.ease2(9).window(slice(40, 548), slice(88, 1208))
    away = {}
    for name in ("rf", "rf_closure"):
        field = xr.DataArray(maps[f"soil_moisture_{name}"].values, grid_coords(fine), ("lat", "lon"), "soil_moisture")
        away[name] = float(np.sqrt(np.nanmean((upscale(field, coarse).values - target) ** 2)))
    assert away["rf_closure"] < 0.5 * away["rf"]


@pytest.mark.real_data
def test_every_cell_without_a_value_has_its_reason(whole: tuple[Workspace, dict[str, Any]]) -> None:
    maps = whole[0].maps
    for name in ("rf", "rf_with_temperature", "rf_closure", "rf_with_temperature_closure"):
        values, status = maps[f"soil_moisture_{name}"].values, maps[f"status_{name}"].values
        missing = np.isnan(values)
        assert missing.any()
        assert ((status[missing] & (Status.NO_LST | Status.PREDICTOR_MISSING)) != 0).all()
        assert ((status[~missing] & Status.NO_LST) == 0).all()


@pytest.mark.real_data
def test_all_models_run_and_a_second_run_does_nothing(tmp_path: Path, real: Callable[[str], Path]) -> None:
    reports = recover(tmp_path, real, ALL, WYOMING)
    names = {f"{m}{t}{c}" for m in config.MODELS for t in ("", "_with_temperature") for c in ("", "_closure")}
    scored = {row["source"]: row for row in reports["evaluate"]["truth"]}
    assert names | {"nearest", "bilinear", "cubic", "cubic_spline"} == set(scored)
    assert all(row["n"] == scored["nearest"]["n"] and np.isfinite(row["rmse"]) for row in scored.values())
    workspace = Workspace(tmp_path)
    assert {p.name for p in (tmp_path / "models").iterdir()} == {n for n in names if not n.endswith("_closure")}
    assert {f"soil_moisture_{n}" for n in names} <= set(workspace.maps.data_vars)
    assert reports["train"]["best"] in {row["model"] for row in reports["train"]["folds"]}
    assert (workspace.report / "index.html").is_file()
    assert "truth" in workspace.metrics
    assert workspace.predictors().sizes["variable"] == 5
    said: list[str] = []
    assert recover(tmp_path, real, ALL, WYOMING, said=said) == reports
    assert sum("nothing to do" in line for line in said) == 6
