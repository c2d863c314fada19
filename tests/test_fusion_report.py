"""What the report says of fusion and closure: scores before and after, who was left out, variance, figures, the page."""

import dataclasses
import doctest
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fields import field_of

import smscale
from smscale import config, pipeline
from smscale.errors import InputError
from smscale.evaluate import Figure, Section, Table, fusion_figures, write_report
from smscale.evaluate.palette import colour_of, label_of
from smscale.evaluate.report import spelled
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import pooling_levels
from smscale.fusion.scoring import error_sums, standardised_left_out
from smscale.fusion.solve import pose
from smscale.fusion.variogram import Variogram, empirical_variogram
from smscale.pipeline import fusion_page
from smscale.pipeline.fusion_drawing import draw_closure, pooled_steps, variogram_panels
from smscale.pipeline.fusion_page import closure_section, fusion_section, status_section
from smscale.pipeline.fusion_scores import (
    PAPER,
    AtStations,
    at_stations,
    before_and_after,
    calibration,
    held_out_scores,
    left_out,
    measurement_variance,
    side_by_side,
)
from smscale.pipeline.layout import layout_of
from smscale.pipeline.plan import plan_of
from smscale.pipeline.run import Run
from smscale.schema import Status
from smscale.workspace import Workspace

FUSED = ("gda_kriging", "gda_idw", "gra_kriging", "gra_idw")
VARIOGRAM = Variogram("exponential", 0.002, 40.0, 0.0005)
NAN = float("nan")


def at(observed, background, held=None, within=None, **fused):
    """Stations (n, t) with a map "rf" and fused maps."""
    seen = np.array(observed, float)
    n = len(seen)
    return AtStations(
        [f"S{i}" for i in range(n)],
        seen,
        np.zeros(seen.shape, bool) if held is None else np.array(held, bool)[:, None] & np.ones(seen.shape, bool),
        np.ones(n, bool) if within is None else np.array(within),
        np.full(seen.shape, np.nan),
        {"rf": np.array(background, np.float32)} | {k: np.array(v, np.float32) for k, v in fused.items()},
        {},
        "rf",
        "rf",
    )


@pytest.fixture(scope="module")
def network():
    """40 stations whose residuals have exactly the variogram that kriging is given, 60 steps, a tenth silent."""
    rng = np.random.default_rng(3)
    coords = np.column_stack([rng.uniform(100, 102, 40), rng.uniform(30, 32, 40)])
    field = Kriging(VARIOGRAM).fit(coords, np.zeros(40))
    root = np.linalg.cholesky(field._matrix())
    values = root @ rng.normal(size=(40, 60)) + rng.normal(0, 0.05, 60)
    values[rng.random(values.shape) < 0.1] = np.nan
    return coords, values


def test_examples_of_the_document_run():
    found = doctest.testfile(str(Path(__file__).parents[1] / "docs" / "fusion.md"), module_relative=False)
    assert found.attempted > 15
    assert found.failed == 0


def test_every_key_of_the_fusion_is_in_the_document_with_its_default():
    text = (Path(__file__).parents[1] / "docs" / "fusion.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `fusion\.(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    words = {None: ("all", "none")}
    for key in dataclasses.fields(config.Fusion):
        shown, default = rows.pop(key.name).strip().strip("`"), key.default
        if isinstance(default, tuple):
            assert [item.strip() for item in shown.strip("[]").split(",")] == [
                f"{d:g}" if isinstance(d, float) else d for d in default
            ]
        else:
            expected = (
                str(default).lower()
                if isinstance(default, bool | str)
                else f"{default:g}"
                if default is not None
                else ""
            )
            assert shown in words.get(default, (expected,)), key.name
    assert not rows, "keys that are none"


# -- before and after ---------------------------------------------------------------------------


def test_gains_are_shares_of_the_error_before():
    raw = {
        "rf": {"rmse": 0.10, "mae": 0.08, "n": 50},
        "rf_closed": {"rmse": 0.11, "mae": 0.08, "n": 50},
        "gda_idw": {"rmse": 0.08, "mae": 0.06, "n": 50},
    }
    table = before_and_after(raw).set_index("source")
    assert table["rmse_gain"].tolist() == pytest.approx([NAN, -10, 20], nan_ok=True)
    assert table["mae_gain"].tolist() == pytest.approx([NAN, 0, 25], nan_ok=True)
    assert table["paper_name"].tolist() == ["before fusion", "", "GDA_IDW"]
    assert table["paper_rmse"].tolist() == pytest.approx([0.0980, NAN, 0.0944], nan_ok=True)
    # 1 - 0.0944 / 0.0980 and 1 - 0.0757 / 0.0784
    assert table.loc["gda_idw", ["paper_rmse_gain", "paper_mae_gain"]].tolist() == pytest.approx(
        [3.673, 3.444], abs=1e-3
    )
    assert table["n"].tolist() == [50] * 3


def test_the_papers_numbers_are_those_of_its_table_2():
    assert PAPER["before"] == (0.0980, 0.0784)
    assert [PAPER[name] for name in FUSED] == [(0.0950, 0.0761), (0.0944, 0.0757), (0.0960, 0.0769), (0.0946, 0.0758)]


def test_held_out_scores_are_on_pairs_that_every_map_shares():
    observed = [[0.2, 0.3, 0.1, 0.2], [0.1, 0.2, 0.3, NAN]]
    ground = [[0.1, 0.2, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3]]
    fused = [[0.2, 0.3, NAN, 0.2], [0.3, 0.3, 0.3, 0.3]]
    stations = at(observed, ground, held=[True, False], gda_idw=fused)
    found = held_out_scores(stations)
    assert found["raw"]["rf"]["n"] == found["raw"]["gda_idw"]["n"] == 3
    assert found["raw"]["rf"]["rmse"] == pytest.approx(0.1, abs=1e-6)
    assert found["raw"]["gda_idw"]["rmse"] == pytest.approx(0, abs=1e-6)
    # the map is off by the same at every step: nothing of it is left without the bias
    row = side_by_side(found).set_index("source").loc["rf"]
    assert row["debiased_rmse"] == pytest.approx(0, abs=1e-6)
    assert row["debiased_n"] == 3


# -- what was left out --------------------------------------------------------------------------


def test_each_station_and_value_is_left_out_for_its_first_reason():
    observed = np.full((7, 3), 0.2)
    observed[1] = NAN
    observed[4, 1:] = NAN
    ground = np.full((7, 3), 0.3)
    ground[3] = NAN  # a masked cell
    ground[4, 0] = NAN  # a value when the station is silent only
    ground[5, 2] = NAN
    stations = at(
        observed,
        ground,
        held=[False, False, True, False, False, False, False],
        within=[False, True, True, True, True, True, True],
    )
    table = left_out(stations).set_index("reason")
    assert table["stations"].tolist() == [7, 1, 1, 1, 1, 1, 2]
    assert table["values"].tolist() == [16, 3, 0, 3, 3, 2, 5]
    assert table.iloc[1:].sum().tolist() == table.iloc[0].tolist()


# -- variance -----------------------------------------------------------------------------------


def test_standardised_errors_of_the_right_model_have_a_root_mean_square_of_one(network):
    errors = standardised_left_out(field_of(*network, Kriging(VARIOGRAM)))
    # 2 160 errors, correlated within a step: about 3 % of sampling noise
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(1.0, abs=0.08)
    twice = standardised_left_out(field_of(network[0], 2 * network[1], Kriging(VARIOGRAM)))
    assert np.sqrt(np.nanmean(twice**2)) == pytest.approx(2 * np.sqrt(np.mean(errors**2)), rel=1e-6)


def test_standardised_errors_equal_kriging_without_the_station(network):
    coords, values = network
    column = values[:12, 0]
    column = np.where(np.isnan(column), 0.0, column)
    ours = standardised_left_out(field_of(coords[:12], column[:, None], Kriging(VARIOGRAM)))
    for i in range(12):
        others = np.arange(12) != i
        model = Kriging(VARIOGRAM).fit(coords[:12][others], column[others])
        predicted, variance = model.predict(coords[[i]], return_variance=True)
        assert ours[i] == pytest.approx((column[i] - predicted[0]) / np.sqrt(variance[0] + VARIOGRAM.nugget), rel=1e-6)


@pytest.mark.parametrize("how", [InverseDistance(), Kriging(VARIOGRAM, neighbours=8)])
def test_there_is_no_left_out_variance_without_a_closed_form(network, how):
    assert standardised_left_out(field_of(*network, how)).size == 0


def test_measurement_variance_is_the_nugget_unless_kriging_is_exact(network):
    coords, values = network
    assert measurement_variance(field_of(coords, values, Kriging(VARIOGRAM))).tolist() == [0.0005] * 60
    assert measurement_variance(field_of(coords, values, Kriging(VARIOGRAM, exact=True))).tolist() == [0] * 60
    assert np.isnan(measurement_variance(field_of(coords, values, InverseDistance()))).all()


def test_calibration_at_held_out_stations_counts_kriging_and_measurement_variance(network):
    coords, values = network
    held = np.arange(40) < 12
    ground = np.full(values.shape, 0.3)
    field = pose(coords, np.where(held[:, None], np.nan, 0.3 + values), ground, interpolator=Kriging(VARIOGRAM)).solve()
    fused = 0.3 + field.evaluate_points(coords).T
    spread = np.concatenate([field.variance(x[[0]], x[[1]]).reshape(1, -1) for x in coords])
    stations = at(0.3 + values, ground, held=held, gda_kriging=fused)
    stations.variances["gda_kriging"] = spread
    rows = calibration(
        stations, {"gda_kriging": field}, {"gda_kriging": error_sums(standardised_left_out(field))}
    ).set_index("stations")
    assert rows.loc["held out", "n"] == np.isfinite(values[:12]).sum()
    # the true model: 1 and 68 %, of some 650 errors that share their neighbours
    assert rows["standardised"].tolist() == pytest.approx([1.0, 1.0], abs=0.15)
    assert rows["within"].tolist() == pytest.approx([68, 68], abs=8)


# -- variograms ---------------------------------------------------------------------------------


def test_pooled_steps_are_those_that_share_the_model():
    time = pd.to_datetime(["2017-06-10T06", "2017-06-10T18", "2017-09-10T06", "2017-06-11T06"]).values
    overpass = np.array(["AM", "PM", "AM", "AM"])
    levels = pooling_levels(time, overpass, "season-overpass")
    assert pooled_steps("JJA AM", "group", levels).tolist() == [True, False, False, True]
    assert pooled_steps("JJA AM", "all steps", levels).all()
    own = pooling_levels(time, overpass, "step")
    label = str(own[0, 3])
    assert pooled_steps(label, "step", own).tolist() == [False, False, False, True]
    assert pooled_steps(label, "group", own).tolist() == [True, False, False, True]
    assert pooled_steps("all", "all steps", pooling_levels(time, overpass, "all")).all()


def test_variogram_panels_hold_the_pairs_that_were_fitted(network):
    coords, values = network
    levels = np.array([["a"] * 30 + ["b"] * 30])
    panels = variogram_panels(field_of(coords, values, Kriging(), levels), levels)
    assert list(panels) == ["a", "b"]
    lag, gamma, count = empirical_variogram(coords, values[:, 30:])
    np.testing.assert_allclose(panels["b"].gamma, gamma, rtol=1e-12)
    np.testing.assert_array_equal(panels["b"].pairs, count)
    assert panels["b"].h[-1] == pytest.approx(1.05 * lag.max())


def test_spatial_bias_has_a_variogram_of_its_own(network):
    coords, values = network
    offset = np.linspace(-0.1, 0.1, 40)[:, None]
    field = pose(coords, 0.3 + values + offset, np.full(values.shape, 0.3), systematic="spatial-bias").solve()
    panels = variogram_panels(field, np.empty((0, 60), np.str_))
    assert list(panels) == ["persistent bias", "all steps"]


# -- figures ------------------------------------------------------------------------------------


def draw(folder):
    rng = np.random.default_rng(0)
    grid = {"lat": np.linspace(31, 30, 12), "lon": np.linspace(100, 101.5, 15)}
    values = xr.DataArray(rng.uniform(0.1, 0.4, (12, 15)), grid, ("lat", "lon"))
    points = pd.DataFrame({"lon": [100.2, 100.9], "lat": [30.2, 30.8], "kind": ["merged", "held out"]})
    h = np.linspace(1, 60, 50)
    fitted = fusion_figures.Variogram(
        [10, 30, 50], [1, 2, 2.2], [5, 50, 20], h, 2 - np.exp(-h / 20), 1.0, "words", "a bound"
    )
    given = fusion_figures.Variogram([], [], [], h, 2 - np.exp(-h / 20), 1.0, "given")
    time = pd.date_range("2017-06-10", periods=12, freq="12h").values
    many = pd.date_range("2017-06-10", periods=800, freq="12h").values
    methods = ["kriging", "idw", "mean residual", "none"]
    panels = [
        fusion_figures.Panel("map", values.where(values > 0.15), points=points),
        fusion_figures.Panel("spread", values, "spread"),
        fusion_figures.Panel("nothing", values * np.nan, "difference"),
    ]
    return [
        fusion_figures.maps_side_by_side(panels, folder / "maps.png", title="Maps"),
        fusion_figures.variograms({"a": fitted, "b": given}, folder / "variograms.png", label="semivariance"),
        fusion_figures.reporting_stations(time, [3, 2, 1, 0] * 3, methods * 3, folder / "few.png"),
        fusion_figures.reporting_stations(many, [3, 2, 1, 0] * 200, methods * 200, folder / "many.png"),
    ]


def test_figures_show_something_and_are_the_same_bytes_each_time(tmp_path):
    first, again = draw(tmp_path / "a"), draw(tmp_path / "b")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        pixels = matplotlib.image.imread(one)[..., :3]
        assert (pixels.min(axis=2) < 0.95).mean() > 0.01


def test_figures_of_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="panel"):
        fusion_figures.maps_side_by_side([], tmp_path / "x.png")
    with pytest.raises(InputError, match="panel"):
        fusion_figures.variograms({}, tmp_path / "x.png", label="")


def test_closed_maps_have_a_name_and_a_colour():
    assert label_of("gabp_closed") == "GABP, closed"
    assert colour_of("gabp_closed") == colour_of("rf_closed") != colour_of("gabp")


# -- the page -----------------------------------------------------------------------------------


def test_sections_stand_between_scores_and_figures_and_empty_ones_are_left_out(tmp_path):
    fusion_figures.reporting_stations([0], [1], ["idw"], tmp_path / "figures" / "one.png")
    parts = [
        Table("T <1>", "note", [{"source": "rf", "remarks": "long words"}], wrap="prose"),
        Figure("one.png", "F", "c"),
    ]
    sections = [Section("fusion", "Fusion", "lead <b>", parts), Section("closure", "Closure", "nothing", [])]
    page = write_report(
        tmp_path, "t", {}, tables=[("S", "", [{"source": "rf", "rmse": 1.0}])], sections=sections
    ).read_text("utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == ["scores", "fusion", "data"]
    assert "lead &lt;b&gt;" in page
    assert page.index("T &lt;1&gt;") < page.index("figures/one.png") < page.index('<section id="data"')
    assert '<table class="prose">' in page
    with pytest.raises(InputError, match="absent"):
        write_report(tmp_path, "t", {}, sections=[Section("f", "F", "", [Figure("absent.png", "a", "b")])])


def test_there_is_no_section_where_there_is_nothing(tiny_recipe):
    recipe = config.read(tiny_recipe)
    nothing = {"background": "gabp", "stations": 0, "final": "soil_moisture_gabp", "why": "none"}
    assert not fusion_section(recipe, nothing, None, {}).parts
    assert not closure_section(recipe, nothing, []).parts


@pytest.mark.parametrize(("by", "told"), [("kriging", False), ("idw", True), ("mean", True)])
def test_a_map_whose_bias_field_states_no_variance_is_named(by, told):
    record = {"name": "spatial-bias", "by": by, "stations": 3, "mean": 0.01, "mean_variance": 0.0}
    fields = {name: {"systematic": record, "variograms": {}} for name in ("gda_kriging", "gda_idw")}
    (table,) = fusion_page._systematic(fields)
    assert ("difference, kriging: the bias field is by" in table.note) == told


def test_status_counts_cells_that_have_a_value_without_stations():
    models = {"cells": 1000, "status": {"rf": {"valid": 600, "no_lst": 400}}}
    fused = {"status": {"gda_idw": {"valid": 600, "no_lst": 400, "fused_idw": 450, "not_fused": 550}}}
    (table,) = status_section(models, fused).parts
    row = table.rows.set_index("source").loc["gda_idw"]
    assert row.to_dict() == {"value": 60, "by IDW": 45, "value, not fused": 15, "no LST": 40}


def test_run_tells_before_and_after_as_the_arrays_do(tiny_run: Path):
    opened = smscale.open(tiny_run)
    found = opened.metrics["stations"]
    rows = {row["source"]: row for row in found["before_and_after"]}
    best = opened.metrics["models"]["best"]
    assert list(rows) == [best, *FUSED]
    own = {row["source"]: row for row in found["held_out"]}
    for source in rows:  # all of these maps have a value at the same moments
        assert rows[source]["rmse"] == pytest.approx(own[source]["rmse"], rel=1e-9)
        assert rows[source]["n"] == own[source]["n"]
    assert rows["gda_idw"]["rmse_gain"] == pytest.approx(100 * (1 - own["gda_idw"]["rmse"] / own[best]["rmse"]))
    merged = found["left_out"][-1]
    assert merged["values"] == opened.metrics["fusion"]["leave_one_out_pairs"]
    assert {row["stations"] for row in found["calibration"]} == {"held out", "merged, left out one by one"}


def test_run_debiases_by_station(tiny_run: Path):
    opened = smscale.open(tiny_run)
    rows = {row["source"]: row for row in opened.metrics["stations"]["raw_and_debiased"]}
    for row in rows.values():
        assert row["debiased_rmse"] <= row["rmse"]
        assert row["debiased_n"] <= row["n"]


def test_run_page_tells_of_the_fusion(tiny_run: Path):
    page = (tiny_run / "report" / "index.html").read_text("utf-8")
    for heading in (
        "Fusion with stations",
        "Table 2",
        "GDA_Kriging",
        "How many steps were fused by what",
        "Variograms",
        "Status",
    ):
        assert heading in page, heading
    assert "Coarse-mean closure" not in page
    for name in (
        "fusion-stations.png",
        "variograms-gda-kriging.png",
        "variograms-gra-kriging.png",
        "fusion-variance.png",
    ):
        assert f"figures/{name}" in page


def test_closure_is_told_as_the_arrays_have_it(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, copy_run: Callable[..., Path]
):
    root = copy_run(tiny_run, tmp_path / "run", without=("report",))
    chosen = ["closure=weighted", "fusion.residuals=[difference]", "fusion.interpolators=[idw]", "fusion.taper_km=15"]
    recipe = pipeline.with_region(config.read(tiny_recipe, chosen))
    pipeline.run(recipe, Workspace(root), cluster=None, only="fuse", progress=False)
    order = ("ingest", "match", "train", "downscale", "fuse", "evaluate")
    run, layout = Run(recipe, Workspace(root), order, progress=False), layout_of(recipe)
    fused, best, maps = run.report("fuse"), run.report("train")["best"], run.workspace.maps

    stations = at_stations(run, layout, plan_of(recipe, layout), fused)
    assert stations.compared == [best, f"{best}_closed", "gda_idw"]
    row, col = layout.grid.index(run.workspace.stations["lon"].values, run.workspace.stations["lat"].values)
    closed = maps[f"soil_moisture_{best}_closed"].values
    np.testing.assert_array_equal(stations.series[f"{best}_closed"], closed[:, row, col].T)

    coarse = run.workspace.coarse.load()
    retrieved = coarse["soil_moisture"].where(coarse["weight"] > 0)
    step = int(np.isfinite(closed).mean(axis=(1, 2)).argmax())
    (tmp_path / "figures").mkdir()
    figure = draw_closure(run, layout, best, step, retrieved, tmp_path / "figures")
    states, means, shown = closure_section(recipe, fused, [figure]).parts
    assert shown is figure
    # every coarse cell at every step
    assert sum(row["count"] for row in states.rows) == layout.coarse.shape[0] * layout.coarse.shape[1] * 12
    assert [row["source"] for row in means.rows] == [
        best,
        f"{best}_closed",
        *([fused["final"]] * (fused["final"] == "gda_idw")),
    ]
    assert means.rows[1]["root mean square"] < means.rows[0]["root mean square"]
    own = fused["status"][f"{best}_closed"]
    assert 0 <= own["held_by_limit"] < own["valid"] == np.isfinite(closed).sum()
    assert (
        f"holds back the correction of {spelled(own['held_by_limit'])} of {spelled(own['valid'])} cells" in states.note
    )

    (table,) = status_section(run.report("downscale"), fused).parts
    row = table.rows.set_index("source").loc["gda_idw"]
    status, known = maps["status_gda_idw"].values, np.isfinite(maps["gda_idw"].values)
    apart = known & ((status & np.uint32(Status.NOT_FUSED)) != 0)
    assert 0 < apart.sum() < known.sum(), "the taper leaves some cells alone"
    assert row["value, not fused"] == pytest.approx(100 * apart.mean(), abs=0.006)
    untouched = known & ((status & np.uint32(Status.CLOSURE_NOT_APPLIED)) != 0)
    assert row["closure not applied"] == pytest.approx(100 * untouched.mean(), abs=0.006)
