"""Scores: hand-computed, against NumPy, SciPy and scikit-learn, and by blocks."""

import itertools
import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smscale.errors import InputError
from smscale.evaluate.scores import (
    EXTENDED_SCORES,
    SCORES,
    SUMS,
    correlations,
    extended_scores,
    finalise_scores,
    merge_sums,
    score_sums,
    score_table,
    scores,
)


def test_scores_by_hand():
    # d = 1, 0, 1, 2: mean 1, mean square 6 / 4, mean |d| 1, variance 2 / 4
    found = scores([1, 2, 3, 4], [2, 2, 4, 6])
    assert found["bias"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(np.sqrt(1.5))
    assert found["mae"] == pytest.approx(1.0)
    assert found["ubrmse"] == pytest.approx(np.sqrt(0.5))
    # deviations -1.5 -0.5 0.5 1.5 and -1.5 -1.5 0.5 2.5: products 7, squares 5 and 11
    assert found["cc"] == pytest.approx(7 / np.sqrt(55))
    expected = 1 - np.sqrt((7 / np.sqrt(55) - 1) ** 2 + (np.sqrt(11 / 5) - 1) ** 2 + (3.5 / 2.5 - 1) ** 2)
    assert found["kge"] == pytest.approx(expected)
    assert found["n"] == 4
    assert isinstance(found["n"], int)
    assert tuple(found) == SCORES


def test_scores_equal_independent_libraries():
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.05, 0.5, 500)
    estimate = 0.1 + 0.7 * reference + 0.03 * rng.standard_normal(500)
    found = extended_scores(reference, estimate)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(reference, estimate), rel=1e-12)
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(reference, estimate), rel=1e-12)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(reference, estimate), rel=1e-12)
    assert found["cc"] == pytest.approx(scipy.stats.pearsonr(reference, estimate).statistic, rel=1e-12)
    assert found["ubrmse"] == pytest.approx(np.std(estimate - reference), rel=1e-12)
    assert found["sigma_ratio"] == pytest.approx(np.std(estimate) / np.std(reference), rel=1e-12)
    assert found["mean_reference"] == pytest.approx(reference.mean())
    assert found["mean_estimate"] == pytest.approx(estimate.mean())
    assert tuple(found) == EXTENDED_SCORES


def test_scores_leave_out_pairs_with_nan_on_either_side():
    nan = np.nan
    with_holes = scores([1, nan, 2, 3, 4, 9], [2, 5, 2, 4, 6, nan])
    assert with_holes == scores([1, 2, 3, 4], [2, 2, 4, 6])


@pytest.mark.parametrize(("reference", "estimate", "n"), [([], [], 0), ([1.0], [2.0], 1), ([1, np.nan], [1, 2], 1)])
def test_scores_of_fewer_than_two_pairs_are_nan_with_n(reference, estimate, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(reference, estimate)
    assert found.pop("n") == n
    assert all(np.isnan(value) for value in found.values())


def test_scores_of_a_constant_have_no_correlation():
    found = scores([0.1, 0.2, 0.3], [0.2, 0.2, 0.2])
    assert np.isnan(found["cc"])
    assert np.isnan(found["kge"])
    assert found["rmse"] == pytest.approx(np.sqrt(0.02 / 3))
    # 0.1 three times has no exact mean in binary: still a constant
    assert np.isnan(scores([0.1, 0.1, 0.1], [0.1, 0.2, 0.3])["cc"])


def test_perfect_estimate():
    x = np.linspace(0.1, 0.4, 7)
    assert scores(x, x) == pytest.approx(
        {"rmse": 0, "mae": 0, "cc": 1, "bias": 0, "ubrmse": 0, "kge": 1, "n": 7}, abs=1e-14
    )


def test_scores_keep_their_digits_far_from_zero():
    d = np.array([1.0, -1.0, 2.0, -2.0] * 25)
    x = np.arange(100.0)
    near, far = scores(x, x + d), scores(x + 1e9, x + 1e9 + d)
    assert far["rmse"] == pytest.approx(near["rmse"], rel=1e-12)
    assert far["cc"] == pytest.approx(near["cc"], rel=1e-9)


def test_scores_say_which_shapes_differ():
    with pytest.raises(InputError, match=r"\(3,\) and \(2,\)"):
        scores([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="DataArrays"):
        scores(np.ones(3), np.ones(3), dim="time")
    with pytest.raises(InputError, match="numbers"):
        scores(["dry", "wet"], [0.1, 0.2])
    with pytest.raises(InputError, match="different indexes"):
        scores(pd.Series([1.0, 2.0]), pd.Series([1.0, 2.0], index=[1, 2]))


values = st.floats(-1, 1, width=32) | st.just(np.nan)


@settings(deadline=None, max_examples=150)
@given(
    arrays(np.float64, st.tuples(st.just(2), st.integers(0, 40)), elements=values),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_merged_sums_equal_the_sums_of_the_whole(pairs, cuts):
    reference, estimate = pairs
    cuts = [0, *sorted(min(c, reference.size) for c in cuts), reference.size]
    parts = [score_sums(reference[a:b], estimate[a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(merge_sums(parts), score_sums(reference, estimate), rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(arrays(np.float64, (2, 3, 5), elements=values), st.permutations(range(3)))
def test_merging_does_not_depend_on_order(pairs, order):
    sums = score_sums(*pairs, axis=1)
    np.testing.assert_allclose(merge_sums(sums), merge_sums(sums[list(order)]), rtol=1e-12, atol=1e-14)


def test_merged_blocks_of_a_map_score_as_the_map():
    rng = np.random.default_rng(4)
    truth = rng.uniform(0.1, 0.5, (20, 30))
    estimate = truth + 0.05 * rng.standard_normal(truth.shape)
    estimate[3:9, 4:11] = np.nan
    blocks = [
        score_sums(truth[i : i + 7, j : j + 11], estimate[i : i + 7, j : j + 11])
        for i in range(0, 20, 7)
        for j in range(0, 30, 11)
    ]
    merged, whole = finalise_scores(merge_sums(blocks)), scores(truth, estimate)
    assert merged["n"] == whole["n"] == 600 - 42
    assert merged == pytest.approx(whole, rel=1e-12)


def test_score_sums_over_chosen_axes():
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 4, 3, 6))
    b[1, 2] = np.nan
    sums = score_sums(a, b, axis=(0, 2))
    assert sums.shape == (3, len(SUMS))
    found = finalise_scores(sums)
    for i in range(3):
        one = scores(a[:, i], b[:, i])
        assert {name: float(found[name][i]) for name in SCORES} == pytest.approx(one, rel=1e-12)
    np.testing.assert_allclose(merge_sums(score_sums(a, b, axis=2), axis=0), sums, rtol=1e-12, atol=1e-15)


def test_merging_nothing_gives_no_pairs():
    assert finalise_scores(merge_sums([]))["n"] == 0
    assert finalise_scores(merge_sums([np.zeros(9), np.zeros(9)]))["n"] == 0
    with pytest.raises(InputError, match="9 values"):
        merge_sums(np.ones((3, 4)))


@pytest.fixture
def cube():
    rng = np.random.default_rng(7)
    shape = (5, 4, 6)
    coords = {"time": pd.date_range("2017-06-10", periods=5), "lat": np.arange(4.0)[::-1], "lon": np.arange(6.0)}
    truth = xr.DataArray(rng.uniform(0.1, 0.5, shape), coords, ("time", "lat", "lon"))
    estimate = truth + 0.03 * rng.standard_normal(shape)
    return truth, estimate.where(rng.random(shape) > 0.2)


@pytest.mark.parametrize("dim", ["time", ["lat", "lon"], ["time", "lon"]])
@pytest.mark.parametrize("chunks", [{"time": 2, "lat": 3, "lon": 4}, {"time": 1, "lat": 1, "lon": 6}])
def test_lifted_scores_chunked_equal_plain_and_stay_lazy(cube, dim, chunks):
    truth, estimate = cube
    plain = scores(truth, estimate, dim)
    chunked = scores(truth.chunk(chunks), estimate.chunk({"time": 3}), dim)
    assert all(isinstance(chunked[name].data, da.Array) for name in SCORES)
    xr.testing.assert_allclose(chunked.compute(), plain, rtol=1e-11)
    assert plain["n"].dtype == chunked["n"].dtype == np.int64
    kept = set(truth.dims) - set([dim] if isinstance(dim, str) else dim)
    assert set(plain.dims) == kept == set(plain.coords)


def test_lifted_scores_equal_scores_of_each_slice(cube):
    truth, estimate = cube
    found = scores(truth, estimate, ["lat", "lon"])
    for i in range(5):
        one = scores(truth[i].values, estimate[i].values)
        assert {name: float(found[name][i]) for name in SCORES} == pytest.approx(one, rel=1e-12)


def test_labelled_scores_find_dims_by_name_and_broadcast(cube):
    truth, estimate = cube
    whole = scores(truth.values, estimate.values)
    assert scores(truth, estimate.transpose("lon", "time", "lat")) == pytest.approx(whole, rel=1e-12)
    assert scores(truth.chunk({"lat": 2}), estimate) == pytest.approx(whole, rel=1e-12)
    assert scores(truth.isel(time=0, drop=True), estimate, "time").sizes == {"lat": 4, "lon": 6}


def test_labelled_scores_refuse_other_coordinates(cube):
    truth, estimate = cube
    with pytest.raises(InputError, match="same coordinates"):
        scores(truth, estimate.assign_coords(lon=estimate.lon + 0.01), "time")
    with pytest.raises(InputError, match="band"):
        scores(truth, estimate, "band")


def test_score_table_by_group_and_on_common_rows():
    nan = np.nan
    table = pd.DataFrame(
        {
            "stations": [1, 2, 3, 4, nan, 6.0],
            "smap": [1, nan, 3, 5, 5, 6.0],
            "rf": [2, 2, 4, 6, 5, nan],
            "month": [6, 6, 6, 7, 7, 7],
        }
    )
    assert score_table(table, "stations", ["smap", "rf"])["n"].tolist() == [4, 4]
    assert score_table(table, "stations", ["smap", "rf"], common=True)["n"].tolist() == [3, 3]
    by = score_table(table, "stations", ["smap", "rf"], by="month")
    assert list(by.columns) == ["source", "month", *SCORES]
    assert by[["source", "month", "n"]].to_numpy().tolist() == [
        ["smap", 6, 2],
        ["smap", 7, 2],
        ["rf", 6, 3],
        ["rf", 7, 1],
    ]
    with pytest.raises(InputError, match="xgb"):
        score_table(table, "stations", ["xgb"])


def test_correlations_and_their_p_values_equal_scipy():
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.standard_normal((60, 3)), columns=["ndvi", "lst", "soil_moisture"])
    table["soil_moisture"] += 0.5 * table["ndvi"]
    summer = np.arange(60) < 25
    found = correlations(table, "soil_moisture", ["ndvi", "lst"], {"total": np.ones(60), "summer": summer}).set_index(
        ["subset", "predictor"]
    )
    for subset, mask in (("total", slice(None)), ("summer", summer)):
        for predictor in ("ndvi", "lst"):
            expected = scipy.stats.pearsonr(table[predictor][mask], table["soil_moisture"][mask])
            assert found.loc[(subset, predictor), "cc"] == pytest.approx(expected.statistic, rel=1e-10)
            assert found.loc[(subset, predictor), "p"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.loc[("summer", "lst"), "n"] == 25


def test_correlation_of_a_constant_or_perfect_predictor():
    table = pd.DataFrame({"soil_moisture": [0.1, 0.2, 0.3, 0.4], "flat": 1.0, "same": [1.0, 2.0, 3.0, 4.0]})
    found = correlations(table, "soil_moisture", ["flat", "same"]).set_index("predictor")
    assert found.loc["flat", ["cc", "p"]].isna().all()
    assert found.loc["same", "cc"] == pytest.approx(1.0)
    assert found.loc["same", "p"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("n", "known"), [(0, False), (1, False), (2, False), (3, True)])
def test_fewer_than_three_pairs_have_no_p_value(n, known):
    rows = np.arange(5) < n
    table = pd.DataFrame({"soil_moisture": [0.1, 0.3, 0.2, 0.4, 0.5], "ndvi": [1.0, 2.0, 4.0, 3.0, 5.0]})
    found = correlations(table, "soil_moisture", ["ndvi"], {"few": rows}).iloc[0]
    assert found["n"] == n
    assert np.isfinite(found["p"]) == known


@pytest.mark.parametrize("constant", [0.1, np.float32(287.3), 1e-9])
def test_a_constant_that_binary_numbers_cannot_hold_has_no_correlation(constant):
    table = pd.DataFrame({"soil_moisture": np.random.default_rng(0).random(31), "flat": constant})
    found = correlations(table, "soil_moisture", ["flat"], series=None).iloc[0]
    assert np.isnan(found["cc"])
    assert np.isnan(found["p"])


def series_table(phi, cells, steps, rng):
    """Two unrelated AR(1) processes in each of some cells, rows shuffled."""
    noise = rng.standard_normal((2, cells, steps)) * np.sqrt(1 - phi**2)
    noise[..., 0] /= np.sqrt(1 - phi**2)
    for t in range(1, steps):
        noise[..., t] += phi * noise[..., t - 1]
    cell, time = np.indices((cells, steps))
    table = pd.DataFrame({"cell": cell.ravel(), "time": time.ravel(), "a": noise[0].ravel(), "b": noise[1].ravel()})
    return table.sample(frac=1, random_state=0)


def test_effective_size_of_autoregressive_series_is_bretherton_s():
    table = series_table(0.8, 20, 2000, np.random.default_rng(0))
    found = correlations(table, "a", ["b"], series=["cell"]).iloc[0]
    assert found["n"] == 40_000
    # 40 000 samples of a lag-1 correlation that is known to 0.003: n_effective to 2 %.
    assert found["n_effective"] == pytest.approx(40_000 * (1 - 0.64) / (1 + 0.64), rel=0.03)


def test_p_effective_rejects_unrelated_series_as_often_as_it_says():
    """The plain p-value finds significance in most pairs of unrelated persistent series, the effective one in about 5 %."""
    rng = np.random.default_rng(1)
    found = pd.concat([correlations(series_table(0.9, 4, 150, rng), "a", ["b"], series=["cell"]) for _ in range(300)])
    plain, effective = (found["p"] < 0.05).mean(), (found["p_effective"] < 0.05).mean()
    assert plain > 0.4
    assert 0.02 < effective < 0.11  # 15 of 300 expected, and estimates of r are somewhat low


def test_effective_size_of_independent_samples_is_their_number():
    table = series_table(0.0, 50, 100, np.random.default_rng(2))
    found = correlations(table, "a", ["b"], series=["cell"]).iloc[0]
    assert found["n_effective"] == pytest.approx(5000, rel=0.01)
    assert found["p_effective"] == pytest.approx(found["p"], abs=0.01)


def test_every_row_its_own_series_changes_nothing():
    table = series_table(0.9, 4, 30, np.random.default_rng(2))
    found = correlations(table, "a", ["b"], series=["cell", "time"]).iloc[0]
    assert found["n_effective"] == found["n"]
    assert found["p_effective"] == found["p"]


def test_effective_size_of_nothing_is_nothing():
    table = series_table(0.9, 4, 30, np.random.default_rng(2))
    found = correlations(table, "a", ["b"], {"none": np.zeros(len(table))}, series=["cell"]).iloc[0]
    assert found["n_effective"] == found["n"] == 0
    assert np.isnan(found["p_effective"])
