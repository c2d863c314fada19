"""Building models by name, scoring them under splits, choosing by inner scores alone; importances."""

import json
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from smscale.errors import InputError, RecipeError
from smscale.models import selection, zoo
from smscale.models.row_blocks import BlockError, space_blocks
from smscale.models.splits import (
    SPLITS,
    RandomSplit,
    SpaceBlockSplit,
    Splitter,
    StationBlockSplit,
    TimeBlockSplit,
    make_split,
)

PLAIN = {"base": ("mean",), "columns": ("all",)}
FAST = {
    "cnn": {"epochs": 2, "filters": (2, 2, 2, 2)},
    "rf": {"grid": {**PLAIN, "min_samples_leaf": (2, 20)}, "folds": 2, "trees": 8},
    "xgb": {"grid": {**PLAIN, "max_depth": (2,)}, "folds": 2},
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


def scored(
    models: dict[str, Any],
    table: pd.DataFrame,
    predictors: list[str],
    splits: dict[str, Splitter],
    baselines: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Scores of models under splits, as `train` makes them."""
    selection.check_table(table, [*predictors, "soil_moisture"])
    tasks = selection.plan_tasks(models, table, splits, baselines=baselines)
    found = [selection.run_task(task, table, predictors, "soil_moisture") for task in tasks]
    return selection.score_table([selection.tally(part) for part in found])


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


def test_folds_are_scored_together_from_their_sums() -> None:
    """As of all rows at once, to rounding; JSON keeps every digit."""
    rng = np.random.default_rng(4)
    reference = rng.normal(0.3, 0.05, 60)
    rows = pd.DataFrame(
        {"reference": reference, "estimate": reference + rng.normal(0.01, 0.03, 60), "fold": np.repeat([0, 1, 2], 20)}
    )
    parts = [part.assign(model="rf", split="random", fit_seconds=0.5) for _, part in rows.groupby("fold")]
    table = selection.score_table(json.loads(json.dumps([selection.tally(part) for part in parts])))
    whole = selection.score_fold(rows["reference"], rows["estimate"])
    assert table.loc[0, list(whole)].to_dict() == pytest.approx(whole, rel=1e-12)
    assert (table["folds"][0], table["fit_seconds"][0]) == (3, 1.5)


def test_scores_of_nothing_and_of_a_constant_are_nan_not_an_error() -> None:
    assert selection.score_fold([np.nan], [1.0])["n"] == 0
    constant = selection.score_fold([0.2, 0.2], [0.1, 0.3])
    assert constant["rmse"] == pytest.approx(0.1)
    assert np.isnan(constant["cc"])
    assert np.isnan(constant["r2"])


def test_random_split_flatters_a_forest_and_blocks_tell(table: pd.DataFrame) -> None:
    splits = {"random": RandomSplit(), "space-block": SpaceBlockSplit(4), "time-block": TimeBlockSplit(2)}
    scores = scored({"rf": FAST["rf"]}, table, PREDICTORS, splits).set_index("split")
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
    assert selection.score_table([selection.tally(part) for part in forward])["model"].tolist() == list(FAST)


def test_inner_scores_choose_without_the_test_rows(table: pd.DataFrame) -> None:
    X, y = table[PREDICTORS].to_numpy(np.float32), table["soil_moisture"].to_numpy()
    groups = (table["row"] // 3 * 10 + table["col"] // 3).to_numpy()
    inner = selection.inner_scores({name: FAST[name] for name in ("cnn", "rf")}, X, y, groups, folds=2)
    assert inner["n"].tolist() == [len(y)] * 2
    assert selection.choose_best(inner) == inner.loc[inner["rmse"].idxmin(), "model"]


class Spy:
    """Records the rows (their number is the last predictor) that each fit and each prediction sees; learns the mean."""

    seen: list[tuple[str, frozenset[int], Any]]

    def __init__(self, seen: list[tuple[str, frozenset[int], Any]]):
        self.seen = seen

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> "Spy":
        self.seen.append(("fit", rows_of(X), groups))
        self.mean = np.mean(y)
        return self

    def predict(self, X: Any) -> Any:
        self.seen.append(("predict", rows_of(X), None))
        return np.full(len(X), self.mean)


def rows_of(X: Any) -> frozenset[int]:
    return frozenset(np.asarray(X)[:, -1].astype(int).tolist())


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, frozenset[int], Any]]:
    seen: list[tuple[str, frozenset[int], Any]] = []
    monkeypatch.setattr(zoo, "build", lambda name, settings, seed, records=None: Spy(seen))
    return seen


@pytest.mark.parametrize("how", [name for name in SPLITS if name != "station-block"])
def test_a_model_is_fitted_on_no_row_that_scores_it(
    table: pd.DataFrame, spied: list[tuple[str, frozenset[int], Any]], how: str
) -> None:
    known = table.assign(number=np.arange(len(table)))
    splits = {how: make_split(how, n_splits=3)}
    scored({"spy": {}}, known, [*PREDICTORS, "number"], splits)
    assert [what for what, _, _ in spied] == ["fit", "predict"] * 3
    for (_, fitted, groups), (_, judged, _) in zip(spied[::2], spied[1::2], strict=True):
        assert not fitted & judged
        assert len(groups) == len(fitted)
        if how in ("space-block", "space-time"):  # the groups that a model chooses within are the split's own blocks
            blocks = space_blocks(table, 3)[sorted(fitted)]
            assert len(set(zip(groups, blocks, strict=True))) == len(set(blocks)) == len(set(groups))


def test_models_are_compared_on_rows_of_the_training_side_alone(
    table: pd.DataFrame, spied: list[tuple[str, frozenset[int], Any]]
) -> None:
    known = table.assign(number=np.arange(len(table)))
    train, test = next(SpaceBlockSplit(3).split(table))
    part = known.iloc[train]
    groups = space_blocks(part, 3)
    X = part[[*PREDICTORS, "number"]].to_numpy()
    selection.inner_scores({"spy": {}}, X, part["soil_moisture"].to_numpy(), groups, folds=3)
    block = dict(zip(train.tolist(), groups, strict=True))
    for (_, fitted, _), (_, scored, _) in zip(spied[::2], spied[1::2], strict=True):
        assert not (fitted | scored) & set(test.tolist())
        assert not {block[row] for row in fitted} & {block[row] for row in scored}


@pytest.fixture(scope="module")
def trap() -> pd.DataFrame:
    """Sixty stations whose targets are noise of their own, told apart by forty static columns: what memorises them wins at random."""
    rng = np.random.default_rng(0)
    station = np.repeat(np.arange(60), 12)
    static = rng.normal(size=(60, 40))[station]
    date = pd.Timestamp("2017-06-10") + pd.to_timedelta(np.tile(np.arange(12), 60), unit="D")
    columns = {f"s{number}": static[:, number] for number in range(40)}
    y = 0.2 + 0.05 * rng.normal(size=60)[station] + 0.005 * rng.normal(size=720)
    return pd.DataFrame({**columns, "station": station, "local_date": date, "soil_moisture": y})


def test_what_is_chosen_inside_a_blocked_split_does_not_memorise(trap: pd.DataFrame) -> None:
    """A ridge whose penalty saw its stations on both sides is far worse than the mean at new stations; a nested one is no worse."""
    static = [f"s{number}" for number in range(40)]
    splits = {"station-block": StationBlockSplit(5)}
    tasks = selection.plan_tasks({}, trap, splits, baselines=selection.BASELINES)
    found = [selection.tally(selection.run_task(task, trap, static, "soil_moisture")) for task in tasks]
    nested = selection.score_table(found).set_index("model")["rmse"]
    assert nested["ridge"] < 1.1 * nested["mean"]
    leaky = []
    for train, test in StationBlockSplit(5).split(trap):
        X, y = trap[static].to_numpy(), trap["soil_moisture"].to_numpy()
        model, _ = selection.fit_fold("ridge", {}, X[train], y[train], groups=np.arange(train.size))
        leaky.append(model.predict(X[test]) - y[test])
    assert np.sqrt(np.mean(np.concatenate(leaky) ** 2)) > 1.3 * nested["mean"]


def test_groups_that_are_not_given_are_found_and_keep_a_model_from_memorising(trap: pd.DataFrame) -> None:
    static = [f"s{number}" for number in range(40)]
    X, y = trap[static].to_numpy(), trap["soil_moisture"].to_numpy()
    for train, _ in StationBlockSplit(5).split(trap):
        blind, _ = selection.fit_fold("ridge", {}, X[train], y[train])
        given, _ = selection.fit_fold("ridge", {}, X[train], y[train], groups=trap["station"].iloc[train])
        assert blind.penalty_ == given.penalty_  # type: ignore[attr-defined]


# -- the table --------------------------------------------------------------------------------------


def tallies_of(model: str, split: str, error: float, folds: int = 2) -> list[dict[str, Any]]:
    reference = np.linspace(0.1, 0.4, 10)
    signs = np.where(np.arange(10) % 2, 1, -1)
    columns = {"model": model, "split": split, "row": np.arange(10), "reference": reference, "fit_seconds": 0.75}
    parts = [pd.DataFrame({**columns, "fold": fold, "estimate": reference + error * signs}) for fold in range(folds)]
    return [selection.tally(part) for part in parts]


def test_training_table_has_the_papers_figures_on_its_own_split_alone() -> None:
    """Chen et al. 2023, section 3.2: GABP R2 0.76 and MAE 0.03, CNN MAE 0.0355, on the validation rows of a random split."""
    models, kinds = ("gabp", "cnn", "rf", "xgb", "ridge", "mean"), ("random", "space-block")
    parts = [part for m in models for split in kinds for part in tallies_of(m, split, 0.02)]
    table = selection.split_table(parts)
    stated = table.set_index(["model", "split"])[["paper_rmse", "paper_mae", "paper_cc", "paper_r2"]]
    assert stated.loc[("gabp", "random"), ["paper_mae", "paper_r2"]].tolist() == [0.03, 0.76]
    assert stated.loc[("cnn", "random"), "paper_mae"] == 0.0355
    assert stated.notna().to_numpy().sum() == 3
    assert table["rmse"].to_numpy() == pytest.approx(0.02)
    assert table["n"].tolist() == [20] * 12
    assert table["fit_seconds"].tolist() == [1.5] * 12


def test_gap_is_the_blocked_error_over_the_random_one() -> None:
    parts = [
        *tallies_of("rf", "random", 0.02),
        *tallies_of("rf", "space-block", 0.05),
        *tallies_of("gabp", "random", 0.03),
        *tallies_of("gabp", "space-block", 0.045),
        *tallies_of("gabp", "time-block", 0.03),
    ]
    gap = selection.split_gap(selection.split_table(parts))
    assert list(gap.columns) == ["model", "random", "space-block", "time-block"]
    assert gap["model"].tolist() == ["rf", "gabp"]
    assert gap["space-block"].tolist() == pytest.approx([2.5, 1.5])
    assert gap["time-block"].tolist()[1] == pytest.approx(1.0)
    assert np.isnan(gap["time-block"][0])
    assert selection.split_gap(selection.score_table(tallies_of("rf", "space-block", 0.1))).empty


def test_baselines_stand_beside_the_models_on_the_same_folds(table: pd.DataFrame) -> None:
    splits = {"random": RandomSplit(), "space-block": SpaceBlockSplit(3)}
    scores = scored({"rf": FAST["rf"]}, table, PREDICTORS, splits, selection.BASELINES)
    assert scores["model"].tolist() == ["rf", "mean", "ridge"] * 2
    assert scores.groupby("split")["n"].nunique().tolist() == [1, 1]
    by = scores.set_index(["split", "model"])
    assert by.loc[("space-block", "mean"), "r2"] < 0.05
    assert np.isnan(by.loc[("random", "mean"), "cc"])
    assert by.loc[("random", "ridge"), "rmse"] < by.loc[("random", "mean"), "rmse"]
    tasks = selection.plan_tasks({"rf": FAST["rf"]}, table, splits)
    assert {task.model for task in tasks} == {"rf"}


def inner_rmse(**rmse: float) -> pd.DataFrame:
    return pd.DataFrame({"model": list(rmse), "rmse": list(rmse.values())})


def test_a_baseline_is_never_the_best_model() -> None:
    assert selection.choose_best(inner_rmse(mean=0.02, ridge=0.03, rf=0.04)) == "rf"
    with pytest.raises(InputError, match="no model has a finite"):
        selection.choose_best(inner_rmse(mean=0.02, rf=np.inf))


def test_rows_of_a_class_that_training_never_saw_are_predicted_and_counted(table: pd.DataFrame) -> None:
    only_in_one_block = ((table["row"] < 3) & (table["col"] < 3)).to_numpy()
    cover = np.where(only_in_one_block, 11, np.random.default_rng(0).integers(1, 4, len(table)))
    classed = table.assign(land_cover=cover)
    splits = {"random": RandomSplit(3), "space-block": SpaceBlockSplit(4)}
    scores = scored({"ridge": {}}, classed, [*PREDICTORS, "land_cover"], splits).set_index("split")
    assert scores["unseen"].tolist() == [0, only_in_one_block.sum()]
    assert scores["rmse"].notna().all()


def test_random_splits_choose_on_rows_since_rows_score(
    table: pd.DataFrame, spied: list[tuple[str, frozenset[int], Any]]
) -> None:
    known = table.assign(number=np.arange(len(table)))
    columns = [*PREDICTORS, "number"]
    scored({"spy": {}}, known, columns, {"random": RandomSplit()})
    groups = spied[0][2]
    assert np.unique(groups).size == len(groups)


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.inf}, "a in 1 of 600 rows of the sample table is not finite"),
        ({"soil_moisture": np.nan}, "soil_moisture in 1 of 600 rows"),
        ({"weight": np.nan}, "weight is negative or not finite in 1 of 600 rows"),
        ({"weight": -1.0}, "weight is negative or not finite in 1 of 600 rows"),
    ],
)
def test_rows_that_cannot_be_are_refused_in_one_line(
    table: pd.DataFrame, change: dict[str, float], message: str
) -> None:
    ((name, value),) = change.items()
    bad = table.assign(**{name: table[name].where(np.arange(len(table)) != 4, value)})
    with pytest.raises(InputError, match=message) as caught:
        scored({"rf": {}}, bad, PREDICTORS, {"random": RandomSplit()})
    assert "\n" not in str(caught.value)


def test_tables_that_cannot_be_cut_or_weighed_are_refused_in_one_line(table: pd.DataFrame) -> None:
    def held_out(changed: pd.DataFrame, splitter: Splitter) -> None:
        scored({"ridge": {}}, changed, PREDICTORS, {"space-block": splitter})

    with pytest.raises(InputError, match="weight is above 0 in none of 600 rows"):
        held_out(table.assign(weight=0.0), SpaceBlockSplit(3))
    with pytest.raises(BlockError, match="has 1 block of 3 coarse cells: nothing can be held out"):
        held_out(table.assign(row=0, col=0), SpaceBlockSplit(3))
    with pytest.raises(BlockError, match="ask for 2 to"):
        held_out(table.iloc[:3].assign(row=[0, 4, 8]), SpaceBlockSplit(5))
    train, _ = next(SpaceBlockSplit(2).split(table))
    lone = table.assign(weight=np.where(np.isin(np.arange(len(table)), train), 0.0, 1.0))
    with pytest.raises(InputError, match=r"none of its \d+ training rows has a weight above 0"):
        held_out(lone, SpaceBlockSplit(2))
    with pytest.raises(InputError, match="two rows and two folds; got 5 rows, 1 folds"):
        selection.inner_scores({"ridge": {}}, np.eye(5), np.arange(5.0), None, folds=1)
    with pytest.raises(InputError, match=r"one label a row, shape \(5,\); got shape \(3,\)"):
        selection.inner_scores({"ridge": {}}, np.eye(5), np.arange(5.0), [1, 2, 3])


def test_choose_best_takes_the_first_of_equals_and_ignores_nan() -> None:
    assert selection.choose_best(inner_rmse(gabp=np.nan, cnn=0.05, rf=0.04, xgb=0.04)) == "rf"
    with pytest.raises(InputError, match="no model has a finite"):
        selection.choose_best(inner_rmse(gabp=np.nan))


def test_table_with_missing_values_or_columns_is_refused(table: pd.DataFrame) -> None:
    holed = table.assign(a=table["a"].where(table.index != 5))
    with pytest.raises(InputError, match="a in 1 of 600 rows"):
        scored({"rf": {}}, holed, PREDICTORS, {"random": RandomSplit()})
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
        ("rf", {"preset": "fast"}, "no preset 'fast'"),
    ):
        with pytest.raises(RecipeError, match=message):
            zoo.build(name, settings)


@pytest.mark.parametrize("name", ["cnn", "rf", "xgb"])
def test_importances_find_the_predictor_that_matters(name: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)).astype(np.float32)
    y = 0.3 + 0.1 * np.abs(X[:, 1])  # nothing for a line that a model may start from
    settings = FAST[name] | ({"epochs": 20, "learning_rate": 0.01, "filters": (6, 6, 6, 6)} if name == "cnn" else {})
    model = zoo.build(name, settings, 0).fit(X, y)
    table = zoo.importances(model, X, y, ["x", "y", "z"], repeats=2)
    assert table.index[0] == "y"
    if name == "cnn":
        assert table["impurity"].isna().all()
    else:
        assert table["impurity"].sum() == pytest.approx(1)
        assert table["impurity"].idxmax() == "y"
