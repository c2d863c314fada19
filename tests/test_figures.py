"""Figures: written, of the expected size, the same bytes each time, with no trace in the caller's Matplotlib."""

import subprocess
import sys

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smscale.errors import InputError
from smscale.evaluate import canvas, figures, map_figures
from smscale.evaluate.palette import SOURCES, colour_of, label_of
from smscale.evaluate.scores import correlations, score_table
from smscale.grid import Grid

SERIES = ("stations", "smap", "gabp", "gda_kriging")


def panel(grid, values):
    coords = {"lat": grid.lat, "lon": grid.lon}
    if grid.x is not None:
        coords |= {"x": ("lon", grid.x), "y": ("lat", grid.y)}
    return xr.DataArray(np.asarray(values, np.float32), coords, ("lat", "lon"))


@pytest.fixture(scope="module")
def panels():
    coarse, fine = Grid.ease2(36, 102, 30, 103, 31), Grid.latlon(102, 30, 103, 31, 0.05)
    rng = np.random.default_rng(0)
    smap, model = rng.uniform(0.1, 0.4, coarse.shape), rng.uniform(0.1, 0.4, fine.shape)
    model[3:6, 4:9] = np.nan
    return {"smap": panel(coarse, smap), "gabp": panel(fine, model)}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.uniform(0.1, 0.4, (60, 4)), columns=SERIES, index=pd.date_range("2017-06-10", periods=60))
    frame.iloc[::5, 1] = np.nan
    frame["month"] = frame.index.strftime("%Y-%m")
    return frame


def draw_all(panels, table, folder):
    """Every figure once; returns name -> path."""
    sources = list(SERIES[1:])
    points = pd.DataFrame(
        {"lon": [102.2, 102.7], "lat": [30.4, 30.6], "value": [0.2, 0.3], "kind": ["stations", "held-out stations"]}
    )
    importance = pd.DataFrame({"rf": [0.5, 0.3, 0.2], "xgb": [0.2, 0.5, 0.3]}, index=["lst", "ndvi", "slope"])
    fitness = pd.DataFrame({"best": [0.1, 0.2], "mean": [0.05, 0.1]}, index=pd.Index([1, 2], name="generation"))
    monthly = score_table(table, "stations", sources, by="month").pivot(index="month", columns="source", values="mae")
    elevation = xr.DataArray(np.add.outer(np.arange(20.0), np.arange(20.0)) * 100, panels["gabp"].coords)
    return {
        "maps": figures.maps(panels, folder / "maps.png", points=points, elevation=elevation, title="June"),
        "difference": figures.maps({"gabp": panels["gabp"] - 0.25}, folder / "difference.png", diverging=True),
        "box": figures.box_plot(table[list(SERIES)], folder / "box.png"),
        "pdf": figures.pdf_curves(table[list(SERIES)], folder / "pdf.png"),
        "daily": figures.daily_curves(table[list(SERIES)], folder / "daily.png"),
        "months": figures.period_bars(monthly[sources], folder / "months.png"),
        "scatter": figures.scatter(table["stations"], table[sources], folder / "scatter.png"),
        "importance": figures.importance_bars(importance, folder / "importance.png"),
        "correlation": figures.correlation_bars(correlations(table, "stations", sources), folder / "correlation.png"),
        "training": figures.training_curves({"GA": fitness}, folder / "training.png"),
        "flow": figures.sample_flow({"cells": 1000, "observed": 400, "predictors": 0}, folder / "flow.png"),
        "scores": figures.score_bars(score_table(table, "stations", sources), folder / "scores.png"),
    }


@pytest.fixture(scope="module")
def drawn(panels, table, tmp_path_factory):
    return draw_all(panels, table, tmp_path_factory.mktemp("figures"))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("pdf", 8.0),
        ("daily", 10.0),
        ("flow", 8.0),
        ("box", 4.8),
        ("correlation", 3.75),
        ("scores", 10.2),
        ("training", 4.3),
    ],
)
def test_figure_has_the_expected_width(drawn, name, width):
    pixels = mpl.image.imread(drawn[name])
    assert abs(pixels.shape[1] - width * canvas.DPI) <= 1


def test_every_figure_shows_something_and_leaves_no_part_behind(drawn):
    for path in drawn.values():
        pixels = mpl.image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 150, path
        assert (pixels.min(axis=2) < 0.95).mean() > 0.01, path
    assert {p.name for p in path.parent.iterdir()} == {p.name for p in drawn.values()}


def test_figures_are_the_same_bytes_whatever_the_users_settings(drawn, panels, table, tmp_path):
    with mpl.rc_context({"font.size": 30, "savefig.dpi": 20, "axes.facecolor": "red"}):
        again = draw_all(panels, table, tmp_path)
        assert mpl.rcParams["font.size"] == 30
    for name, path in drawn.items():
        assert path.read_bytes() == again[name].read_bytes(), name
        assert b"Software" not in path.read_bytes()[:400]


def test_figures_do_not_need_pyplot():
    code = "import sys, smscale.evaluate; assert 'matplotlib' not in sys.modules; import smscale.evaluate.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_maps_paint_each_cell_where_it_lies(tmp_path):
    # west half low, east half high, one missing cell in the middle row: read the picture back
    grid = Grid.latlon(0, -0.5, 1, 0.5, 0.25)
    values = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, axis=0)
    values[1, 0] = np.nan
    pixels = mpl.image.imread(figures.maps({"x": panel(grid, values)}, tmp_path / "x.png", limits=(0.0, 1.0)))[..., :3]
    dark = (np.abs(pixels - np.array(mpl.colormaps["YlGnBu"](1.0)[:3])).max(axis=2) < 0.01).sum(axis=0)
    pale = (np.abs(pixels - np.array(mpl.colormaps["YlGnBu"](0.0)[:3])).max(axis=2) < 0.01).sum(axis=0)
    columns_dark, columns_pale = np.flatnonzero(dark > 200), np.flatnonzero(pale > 200)
    map_dark = columns_dark[columns_dark < columns_pale.max() + 1.2 * np.ptp(columns_pale)]
    assert columns_pale.min() < map_dark.min()
    assert np.ptp(map_dark) == pytest.approx(np.ptp(columns_pale), rel=0.05)
    # one of eight pale cells is missing
    assert pale[columns_pale[20]] == pytest.approx(0.75 * dark[map_dark[20]], rel=0.05)


def test_cell_edges_of_ease_cells_are_the_grids_own():
    grid = Grid.ease2(36, 100, 28, 104, 33)
    lon, lat = canvas.cell_edges(panel(grid, np.zeros(grid.shape)))
    np.testing.assert_allclose(lon, grid.lon_edges, atol=1e-9)
    np.testing.assert_allclose(lat, grid.lat_edges, atol=1e-9)


def test_cell_edges_of_one_ease_row():
    grid = Grid.ease2(9, 100, 28, 104, 33).window(slice(7, 8), slice(0, 12))
    lon, lat = canvas.cell_edges(panel(grid, np.zeros(grid.shape)))
    np.testing.assert_allclose(lon, grid.lon_edges, atol=1e-9)
    np.testing.assert_allclose(lat, grid.lat_edges, atol=1e-9)


def test_cell_edges_of_latlon_cells():
    grid = Grid.latlon(100, 28, 100.3, 28.2, 0.1)
    lon, lat = canvas.cell_edges(panel(grid, np.zeros(grid.shape)))
    np.testing.assert_allclose(lon, grid.lon_edges, atol=1e-12)
    np.testing.assert_allclose(lat, grid.lat_edges, atol=1e-12)


def test_large_maps_are_averaged_down(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "MAX_MAP_CELLS", 10)
    grid = Grid.latlon(0, 0, 1, 1, 0.05)
    assert (
        figures.maps({"a": panel(grid, np.random.default_rng(0).random(grid.shape))}, tmp_path / "a.png").stat().st_size
        > 1000
    )


def test_figures_of_nothing_but_missing_values_are_still_drawn(panels, table, tmp_path):
    nothing = table[list(SERIES)] * np.nan
    figures.maps({"smap": panels["smap"] * np.nan}, tmp_path / "1.png")
    figures.box_plot(nothing, tmp_path / "2.png")
    figures.pdf_curves(nothing, tmp_path / "3.png")
    figures.daily_curves(nothing, tmp_path / "4.png")
    figures.scatter(nothing["stations"], nothing[["smap"]], tmp_path / "5.png")
    figures.correlation_bars(correlations(nothing, "stations", ["smap"]), tmp_path / "6.png")
    figures.score_bars(score_table(nothing, "stations", ["smap"]), tmp_path / "7.png")
    figures.period_bars(nothing[["smap"]].iloc[:2], tmp_path / "8.png")
    figures.sample_flow({"cells": 0}, tmp_path / "9.png")
    assert len(list(tmp_path.glob("*.png"))) == 9


def test_maps_without_panels_are_refused(tmp_path):
    with pytest.raises(InputError, match="panel"):
        figures.maps({}, tmp_path / "x.png")


def test_density_integrates_to_one_and_equals_the_normal():
    values = np.random.default_rng(0).normal(0.25, 0.05, 20000)
    x, y = map_figures._density(values, 0.0, 0.5)
    assert y.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-6)
    normal = np.exp(-0.5 * ((x - 0.25) / 0.05) ** 2) / (0.05 * np.sqrt(2 * np.pi))
    # sampling noise and the kernel's own smoothing: a few percent of the peak, 7.98
    assert np.abs(y - normal).max() < 0.4


def test_lone_values_have_no_neighbour():
    nan = np.nan
    assert map_figures._lone(np.array([1, nan, 2, 3, nan, nan, 4])).tolist() == [
        True,
        False,
        False,
        False,
        False,
        False,
        True,
    ]


def test_known_sources_differ_and_unknown_ones_keep_their_colour():
    compared = [(colour, dash) for name, (_, colour, dash) in SOURCES.items() if name not in ("coarse", "fused")]
    assert len(set(compared)) == len(compared)
    assert colour_of("my_model") == colour_of("my_model")
    assert label_of("my_model") == "my model"
    assert label_of("lst") == "LST"
