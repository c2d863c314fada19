"""Building models by name, scoring them under splits, choosing by inner scores alone; importances."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from smscale.errors import InputError, RecipeError
from smscale.models import selection, zoo
from smscale.models.splits import RandomSplit, SpaceBlockSplit, TimeBlockSplit

FAST = {
    "cnn": {"epochs": 2, "filters": (2, 2, 2, 2)},
    "rf": {"grid": {"min_samples_leaf": (2, 20)}, "folds": 2, "trees": 8},
    "xgb": {"grid": {"max_depth": (2,)}, "folds": 2},
}
PREDICTORS = ["a", "b", "row", "col"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Target of one predictor, plus a value per 3 x 3 block that only its own rows can tell."""
    rng = np.random.default_rng(0)
    rows = 600
    row, col = rng.integers(0, 12, (2, rows))
    own = rng.normal(scale=0.05, size=(4, 4))[row // 3, col // 3]
    a, b = rng.normal(size=(2, rows))
    date = pd.Timestamp("2017-06-10") + pd.to_timedelta(rng.integers(0, 40, rows), unit="D")
    columns = {"a": a, "b": b, "row": row, "col": col, "local_date": date, "weight": rng.uniform(0.5, 1, rows)}
    return pd.DataFrame(columns | {"soil_moisture": 0.2 + 0.02 * a + own})


def test_scores_equal_scikit_learns_and_their_identities_hold() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=50)
    estimate = 0.5 * reference + 0.3 + 0.1 * rng.normal(size=50)
    scores = selection.score_fold(np.append(reference, np.nan), np.append(estimate, 1.0))
    assert scores["n"] == 50
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(reference, estimate))
    assert scores["mae"] == pytest.approx(mean_absolute_error(reference, estimate))
    assert scores["r2"] == pytest.approx(r2_score(reference, estimate))
    assert scores["cc"] == pytest.approx(np.corrcoef(reference, estimate)[0, 1])
    assert scores["bias"] == pytest.approx((estimate - reference).mean())
    assert scores["ubrmse"] ** 2 + scores["bias"] ** 2 == pytest.approx(scores["rmse"] ** 2)
    assert scores["sigma_ratio"] == pytest.approx(estimate.std() / reference.std())


def test_scores_of_nothing_and_of_a_constant_are_nan_not_an_error() -> None:
    assert selection.score_fold([np.nan], [1.0])["n"] == 0
    constant = selection.score_fold([0.2, 0.2], [0.1, 0.3])
    assert constant["rmse"] == pytest.approx(0.1)
    assert np.isnan(constant["cc"])
    assert np.isnan(constant["r2"])


def test_random_split_flatters_a_forest_and_blocks_tell(table: pd.DataFrame) -> None:
    splits = {"random": RandomSplit(), "space-block": SpaceBlockSplit(4), "time-block": TimeBlockSplit(2)}
    scores = selection.evaluate_splits("rf", FAST["rf"], table, PREDICTORS, "soil_moisture", splits).set_index("split")
    assert list(scores.index) == list(splits)
    assert scores.loc["space-block", "rmse"] > 1.5 * scores.loc["random", "rmse"]
    assert scores.loc["space-block", "n"] == scores.loc["time-block", "n"] == len(table)
    assert scores["folds"].tolist() == [1, 4, 2]
    assert (scores["fit_seconds"] > 0).all()


def test_tasks_are_independent_picklable_and_reproducible(table: pd.DataFrame) -> None:
    tasks = selection.plan_tasks(FAST, table, {"space-block": SpaceBlockSplit(2)}, seed=3)
    assert [(task.model, task.fold) for task in tasks] == [(m, f) for f in (0, 1) for m in FAST]
    arguments = (table, PREDICTORS, "soil_moisture")
    forward = [selection.run_task(task, *arguments) for task in tasks]
    backward = [selection.run_task(pickle.loads(pickle.dumps(task)), *arguments) for task in reversed(tasks)][::-1]
    for one, two in zip(forward, backward, strict=True):
        pd.testing.assert_frame_equal(one.drop(columns="fit_seconds"), two.drop(columns="fit_seconds"))
    assert selection.score_table(forward)["model"].tolist() == list(FAST)


def test_inner_scores_choose_without_the_test_rows(table: pd.DataFrame) -> None:
    X, y = table[PREDICTORS].to_numpy(np.float32), table["soil_moisture"].to_numpy()
    groups = (table["row"] // 3 * 10 + table["col"] // 3).to_numpy()
    inner = selection.inner_scores({name: FAST[name] for name in ("cnn", "rf")}, X, y, groups, folds=2)
    assert inner["n"].tolist() == [len(y)] * 2
    assert selection.choose_best(inner) == inner.loc[inner["rmse"].idxmin(), "model"]


def test_choose_best_takes_the_first_of_equals_and_ignores_nan() -> None:
    assert selection.choose_best({"gabp": np.nan, "cnn": 0.05, "rf": 0.04, "xgb": 0.04}) == "rf"
    with pytest.raises(InputError, match="no model has a finite"):
        selection.choose_best({"gabp": np.nan})


def test_table_with_missing_values_or_columns_is_refused(table: pd.DataFrame) -> None:
    holed = table.assign(a=table["a"].where(table.index != 5))
    with pytest.raises(InputError, match="a in 1 of 600 rows"):
        selection.evaluate_splits("rf", {}, holed, PREDICTORS, "soil_moisture", {"random": RandomSplit()})
    with pytest.raises(InputError, match="lacks lst"):
        selection.check_table(table, ["a", "lst"])


@pytest.mark.parametrize("name", ["cnn", "rf", "xgb"])
def test_build_gives_settings_and_seed(name: str) -> None:
    model = zoo.build(name, FAST[name], seed=7)
    parameters = model.get_params(deep=False)
    assert parameters["random_state"] == 7
    assert all(parameters[key] == value for key, value in FAST[name].items())


def test_build_knows_the_papers_preset_and_refuses_the_unknown() -> None:
    assert zoo.build("cnn", {"preset": "paper", "epochs": 3}).get_params()["dropout"] == 0.2
    assert zoo.build("cnn", {"preset": "paper", "epochs": 3}).get_params()["epochs"] == 3
    for name, settings, message in (
        ("svm", {}, "'svm' is unknown"),
        ("rf", {"depth": 3}, "no setting depth"),
        ("rf", {"preset": "paper"}, "no preset 'paper'"),
    ):
        with pytest.raises(RecipeError, match=message):
            zoo.build(name, settings)


@pytest.mark.parametrize("name", ["cnn", "rf", "xgb"])
def test_importances_find_the_predictor_that_matters(name: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)).astype(np.float32)
    y = 0.3 + 0.1 * X[:, 1]
    settings = FAST[name] | ({"epochs": 20, "learning_rate": 0.01, "filters": (6, 6, 6, 6)} if name == "cnn" else {})
    model = zoo.build(name, settings, 0).fit(X, y)
    table = zoo.importances(model, X, y, ["x", "y", "z"], repeats=2)
    assert table.index[0] == "y"
    if name == "cnn":
        assert table["impurity"].isna().all()
    else:
        assert table["impurity"].sum() == pytest.approx(1)
        assert table["impurity"].idxmax() == "y"
