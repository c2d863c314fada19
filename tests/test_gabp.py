"""GABPRegressor: scikit-learn's contract, what its folds and artefacts promise, Lightning against the plain loop."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from smscale.errors import InputError
from smscale.models.gabp import GABPRegressor
from smscale.models.network import fold
from smscale.models.samples import implied_groups, inner_folds, merge_rows, scaling_of, standardised

QUICK: dict[str, Any] = {
    "population": 20,
    "generations": 8,
    "members": 2,
    "restarts": 1,
    "decays": (0.01,),
    "max_hidden": 4,
    "max_steps": 15,
    "random_state": 0,
    "n_jobs": 1,
}
Table = tuple[NDArray[np.float64], NDArray[np.float64]]


def quick(**changes: Any) -> GABPRegressor:
    return GABPRegressor(**{**QUICK, "engine": "numpy", **changes})


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 100, 0.01, 5] + [0, 3000, 0, -20]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, 0.25 + 0.05 * np.tanh(2 * z[:, 0]) + 0.03 * z[:, 1] * (z[:, 2] > 0) + 0.01 * rng.normal(size=300)


def test_scikit_learns_own_checks_all_pass() -> None:
    results = check_estimator(quick(), on_fail=None, on_skip=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


def test_lightning_drives_the_same_steps_as_the_plain_loop(table: Table) -> None:
    plain, driven = quick().fit(*table), quick(engine="lightning", n_jobs=2).fit(*table)
    np.testing.assert_array_equal(plain.predict(table[0]), driven.predict(table[0]))
    assert plain.lm_trace_ == driven.lm_trace_
    assert plain.stopped_ == driven.stopped_


def test_lightning_logs_checkpoints_and_calls_back(table: Table, tmp_path: Path) -> None:
    from pytorch_lightning import Callback, LightningModule, Trainer

    class Watcher(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
            self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    watcher = Watcher()
    options = {"callbacks": [watcher], "enable_checkpointing": True, "default_root_dir": tmp_path}
    model = quick(engine="lightning", trainer_options=options).fit(*table)
    assert watcher.seen[0].keys() == {"mse", "validation_mse", "damping", "active"}
    errors = [step["validation_mse"] for step in watcher.seen]
    assert errors == sorted(errors, reverse=True)
    assert watcher.seen[-1]["active"] == 0
    assert len(watcher.seen) == max(len(trace) for trace in model.lm_trace_) - 1
    assert list(tmp_path.rglob("*.ckpt"))


def test_import_needs_no_torch() -> None:
    code = "import sys, smscale.models.gabp, smscale.models.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fit_is_reproducible_whatever_the_threads(table: Table) -> None:
    first, second, other = quick().fit(*table), quick(n_jobs=2).fit(*table), quick(random_state=1).fit(*table)
    np.testing.assert_array_equal(first.predict(table[0]), second.predict(table[0]))
    assert not np.array_equal(first.predict(table[0]), other.predict(table[0]))


def test_fit_recovers_a_surface_that_a_line_cannot(table: Table) -> None:
    x, y = table
    model = GABPRegressor(random_state=0, engine="numpy", generations=20, members=3).fit(x[:200], y[:200])
    error = np.sqrt(np.mean((model.predict(x[200:]) - y[200:]) ** 2))
    line = make_pipeline(StandardScaler(), Ridge()).fit(x[:200], y[:200])
    assert error < 0.75 * np.sqrt(np.mean((line.predict(x[200:]) - y[200:]) ** 2))
    assert model.inner_score_ == pytest.approx(error, rel=0.4)
    assert model.n_hidden_ == sum(model.members_hidden_) == len(model.network_["b1"])


def test_scale_of_predictors_and_target_does_not_matter(table: Table) -> None:
    """Powers of two, so that standardised values are the same to the last bit."""
    x, y = table
    plain, scaled = quick().fit(x, y), quick().fit(x * 1024, y * 64)
    np.testing.assert_allclose(scaled.predict(x * 1024) / 64, plain.predict(x), rtol=1e-6)


def test_members_mean_is_one_network(table: Table) -> None:
    model = quick(members=3).fit(*table)
    network = fold(model.network_)
    z = (table[0] - model.network_["mean"]) / model.network_["scale"]
    w = model.network_
    by_hand = w["target_mean"] + w["target_scale"] * (np.tanh(z @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"])
    np.testing.assert_allclose(network.predict(table[0]), by_hand, atol=1e-6)


def test_inner_folds_keep_groups_whole_and_cover_every_row() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 17, 400)
    folds = inner_folds(group, 5, rng)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(400))
    for train, held in folds:
        assert not set(group[train]) & set(group[held])
        assert 40 < len(held) < 120
    assert len(inner_folds(group[:40], 50, rng)) == len(set(group[:40]))
    assert len(inner_folds(np.zeros(9, np.int64), 3, rng)) == 3


def test_groups_change_the_inner_folds_and_their_length_is_checked(table: Table) -> None:
    x, y = table
    groups = np.repeat([f"station {i}" for i in range(10)], 30)
    assert quick().fit(x, y, groups=groups).inner_score_ != quick().fit(x, y).inner_score_
    with pytest.raises(InputError, match=r"one label a row, shape \(300,\); got shape \(10,\)"):
        quick().fit(x, y, groups=groups[:10])


def test_without_groups_folds_are_clusters_of_near_rows(table: Table) -> None:
    samples = merge_rows(*table, np.ones(300), None)
    samples = standardised(samples, scaling_of(samples))
    label = implied_groups(samples, 0)
    spread = np.mean([samples.X[label == c].var(axis=0).sum() for c in np.unique(label)])
    assert len(np.unique(label)) == 25
    assert spread < 0.6 * samples.X.var(axis=0).sum()


def test_weights_count_as_repetitions(table: Table) -> None:
    x, y = table[0][:60], table[1][:60]
    weight = np.random.default_rng(1).integers(0, 4, 60)
    weighted = quick().fit(x, y, sample_weight=weight)
    repeated = quick().fit(np.repeat(x, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_array_equal(weighted.predict(x), repeated.predict(x))


def test_traces_tell_the_training(table: Table) -> None:
    model = quick(members=1, validation="rows").fit(*table)
    (trace,), (steps,) = model.ga_trace_, model.lm_trace_
    assert np.all(np.diff(trace.best) >= 0)
    assert np.all(trace.mean <= trace.best)
    assert [entry.step for entry in steps] == list(range(len(steps)))
    assert steps[-1].mse < steps[0].mse < 2 * table[1].var()
    assert min(entry.validation_mse for entry in steps) == pytest.approx(model.inner_score_**2)


def test_goal_is_in_units_of_the_target(table: Table) -> None:
    goal = 0.5 * float(table[1].var())
    model = quick(members=1, validation="rows", mse_goal=goal, max_steps=60).fit(*table)
    assert model.stopped_ == ["goal"]
    assert model.lm_trace_[0][-1].mse <= goal
    assert all(entry.mse > goal for entry in model.lm_trace_[0][:-1])


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
def test_few_rows_give_a_finite_model(table: Table, rows: int) -> None:
    model = quick(members=5).fit(table[0][:rows], table[1][:rows])
    assert np.isfinite(model.predict(table[0])).all()


def test_constant_columns_and_constant_target_give_a_finite_model(table: Table) -> None:
    x = table[0].copy()
    x[:, 1] = 0.1
    assert np.isfinite(quick().fit(x, table[1]).predict(x)).all()
    constant = quick().fit(x, np.full(300, 0.3)).predict(x)
    np.testing.assert_allclose(constant, 0.3, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 2}, "population must be at least 4, got 2"),
        ({"max_hidden": 1}, "max_hidden must be at least 2"),
        ({"engine": "torch"}, "engine must be one of lightning, numpy, got 'torch'"),
        ({"validation": "years"}, "validation must be one of blocks, rows"),
        ({"decays": ()}, "decays must be"),
        ({"genetics": {"mutatoin": 1}}, "genetics has no mutatoin; it takes population"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(table: Table, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        quick(**changes).fit(*table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_values_are_refused(table: Table, bad: float) -> None:
    x = table[0].copy()
    x[3, 2] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        quick().fit(x, table[1])
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        quick().fit(*table).predict(x)


def test_values_too_large_to_standardise_are_refused(table: Table) -> None:
    with pytest.raises(InputError, match="too large to be standardised"):
        quick().fit(table[0] * 1e200, table[1])


def test_paper_settings_are_the_papers() -> None:
    paper = GABPRegressor.paper(random_state=5)
    assert (paper.population, paper.generations, paper.mse_goal, paper.damping) == (100, 4000, 0.001, 0.05)
    assert (paper.members, paper.validation, paper.validation_fraction) == (1, "rows", 0.3)
    assert set(paper.PAPER_ASSUMED) <= set(paper.get_params())
    clone(paper)


def test_works_in_a_pipeline_with_cross_validation_and_pickles(table: Table) -> None:
    groups = np.repeat(np.arange(10), 30)
    pipeline = make_pipeline(StandardScaler(), quick())
    scores = cross_val_score(pipeline, *table, groups=groups, cv=GroupKFold(3))
    assert scores.shape == (3,)
    model = quick().fit(*table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(table[0]), model.predict(table[0]))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("grouped", [True, False])
def test_unseen_stations_are_predicted_better_than_by_ridge(real: Callable[[str], Path], grouped: bool) -> None:
    """Defaults, on USCRN 2020, whole stations held out (measured, every 6th row: 0.083 to 0.086; ridge 0.0985)."""
    x, y, station = _uscrn(real("stations/uscrn_daily_2020.parquet"))
    ours, ridge = np.empty_like(y), np.empty_like(y)
    for train, test in GroupKFold(3).split(x, y, station):
        model = GABPRegressor(random_state=0, engine="numpy")
        ours[test] = model.fit(x[train], y[train], station[train] if grouped else None).predict(x[test])
        ridge[test] = make_pipeline(StandardScaler(), Ridge()).fit(x[train], y[train]).predict(x[test])
    assert np.mean((ours - y) ** 2) < 0.9 * np.mean((ridge - y) ** 2)


def _uscrn(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
    """Twelve predictors, 5 cm soil moisture and station of every 18th row."""
    days = pd.read_parquet(path).sort_values(["wban", "lst_date"])
    days["rain_1"] = days["p_daily_calc"].fillna(0)
    for span in (3, 10, 30):
        days[f"rain_{span}"] = days.groupby("wban")["rain_1"].transform(lambda s, n=span: s.rolling(n, 1).sum())
    angle = 2 * np.pi * days["lst_date"].dt.day_of_year / 366
    days = days.assign(sine=np.sin(angle), cosine=np.cos(angle))
    predictors = [
        "longitude", "latitude", "sur_temp_daily_avg", "t_daily_avg", "solarad_daily", "rh_daily_avg",
        "rain_1", "rain_3", "rain_10", "rain_30", "sine", "cosine",
    ]  # fmt: skip
    days = days.dropna(subset=[*predictors, "soil_moisture_5_daily"]).iloc[::18]
    return days[predictors].to_numpy(float), days["soil_moisture_5_daily"].to_numpy(float), days["wban"].to_numpy()
