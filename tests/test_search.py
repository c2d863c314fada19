"""The search: the same table wherever it runs, no fit repeated, failures named, Hyperband, and what a recipe may ask for."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from scipy.stats import uniform
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV, ParameterSampler
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info, threadpool_limits

from smscale.errors import InputError, RecipeError, TaskError
from smscale.models import zoo
from smscale.models.forests import TunedForest
from smscale.models.ridge import ridge_coefficients
from smscale.models.samples import inner_folds
from smscale.models.search import Searched
from smscale.models.search.hyperband import hyperband
from smscale.models.search.records import one_thread
from smscale.models.search.trials import candidates, search

SPACE = {"max_depth": [1, 3, 6], "min_samples_leaf": [1, 10]}


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    return X, np.sin(2 * X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.normal(size=200), np.repeat(np.arange(20), 10)


@pytest.fixture(scope="module")
def client() -> Client:
    """Two worker processes."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


class _Eigen(RegressorMixin, BaseEstimator):
    """A ridge by eigenvectors, whose last bits follow the threads of BLAS."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = alpha

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "_Eigen":
        self.threads_ = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        self.slopes_ = ridge_coefficients(X, y, np.ones(len(y)), self.alpha)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X @ self.slopes_


class Lost(Ridge):
    """A ridge that the machine fails where alpha is 2."""

    def __init__(self, alpha: float = 1.0, how: str = "memory"):
        super().__init__(alpha=alpha)
        self.how = how

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "Lost":
        if self.alpha == 2:
            if self.how == "worker":
                os._exit(1)
            raise MemoryError if self.how == "memory" else OSError("no space left on device")
        return super().fit(X, y, sample_weight)


class Epochs(RegressorMixin, BaseEstimator):
    """A regressor with partial_fit whose settings must keep their types."""

    def __init__(self, hidden: tuple = (1,), depth: np.int64 | None = None, rate: float = 0.1, wrong: str = ""):
        self.hidden = hidden
        self.depth = depth
        self.rate = rate
        self.wrong = wrong

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Epochs":
        return self.partial_fit(X, y)

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> "Epochs":
        if self.wrong:
            raise MemoryError
        assert type(self.hidden) is tuple
        assert self.depth is None or type(self.depth) is np.int64
        mean = getattr(self, "mean_", 0.0)
        self.mean_ = mean + self.rate * (y.mean() - mean) + 1e-3 * sum(self.hidden) * (self.depth or 0)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), self.mean_)


class Counted(RegressorMixin, BaseEstimator):
    """A tree that leaves a file for each fit, and can be told to fail or to answer NaN."""

    def __init__(self, folder: str = "", max_depth: int = 1, wrong: str = ""):
        self.folder = folder
        self.max_depth = max_depth
        self.wrong = wrong

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "Counted":
        if self.wrong == "raises":
            raise RuntimeError("this setting\nis wrong")
        number = len(list(Path(self.folder).iterdir()))
        if number == 5 and Path(f"{self.folder}.kill").exists():
            raise KeyboardInterrupt
        (Path(self.folder) / f"{number}-{self.max_depth}").touch()
        self.tree_ = DecisionTreeRegressor(max_depth=self.max_depth).fit(X, y, sample_weight)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.tree_.predict(X) * (np.nan if self.wrong == "nan" else 1)


def folds_of(groups: np.ndarray, count: int = 4) -> list:
    return inner_folds(groups, count, np.random.default_rng(0))


# --- what it finds -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learns_grid_search(table: tuple) -> None:
    X, y, groups = table
    folds = folds_of(groups)
    found = search(DecisionTreeRegressor(random_state=0), candidates(SPACE), X, y, folds)
    theirs = GridSearchCV(DecisionTreeRegressor(random_state=0), SPACE, cv=folds, scoring="neg_mean_squared_error").fit(
        X, y
    )
    # folds of equal size: pooled and averaged mean squares agree
    np.testing.assert_allclose(found["rmse"] ** 2, -theirs.cv_results_["mean_test_score"], rtol=1e-12)
    assert found[list(SPACE)].to_dict("records") == theirs.cv_results_["params"]
    assert found.index[found["chosen"]].tolist() == [theirs.best_index_]
    assert (found["failure"] == "").all()


def test_random_settings_are_scikit_learns_sample_of_the_space() -> None:
    assert candidates(SPACE, "random", 4, seed=3) == list(ParameterSampler(SPACE, 4, random_state=3))
    assert len(candidates(SPACE, "random", 100)) == 6
    with pytest.raises(InputError, match="at least one value"):
        candidates({"max_depth": []})


def test_weights_count_where_a_fit_is_scored(table: tuple) -> None:
    X, y, groups = table
    weight = np.where(groups < 10, 1.0, 0.0)
    folds = [(np.arange(100, 200), np.arange(100)), (np.arange(100), np.arange(200))]
    weighted = search(Ridge(), [{"alpha": 1.0}], X, y, folds[1:], weight=weight)
    model = Ridge(alpha=1.0).fit(X[:100], y[:100])
    error = model.predict(X[:100]) - y[:100]
    assert weighted["rmse"][0] == pytest.approx(np.sqrt(np.mean(error**2)))


def test_where_it_runs_changes_nothing(table: tuple, client: Client) -> None:
    X, y, groups = table
    model = Searched(DecisionTreeRegressor(random_state=0), SPACE, how="random", candidates=4, folds=3)
    here = clone(model).fit(X, y, groups)
    with client.as_current():
        there = clone(model).fit(X, y, groups)
    in_a_task = client.submit(clone(model).fit, X, y, groups).result(timeout=60)
    for other in (there, in_a_task):
        pd.testing.assert_frame_equal(
            here.inner_table_.drop(columns="seconds"), other.inner_table_.drop(columns="seconds")
        )
        np.testing.assert_array_equal(here.predict(X), other.predict(X))


def test_the_choice_is_made_inside_the_rows_that_are_fitted(table: tuple) -> None:
    """Rows that score see a search only through what was chosen without them."""
    X, y, groups = table
    changed = y.copy()
    changed[150:] += 100
    fits = [Searched(Ridge(), {"alpha": [0.1, 10.0]}).fit(X[:150], part[:150], groups[:150]) for part in (y, changed)]
    assert fits[0].best_params_ == fits[1].best_params_
    np.testing.assert_array_equal(fits[0].predict(X), fits[1].predict(X))


@pytest.mark.parametrize(
    "model",
    [TunedForest({"min_samples_leaf": (5,)}, folds=2, trees=3), Searched(_Eigen(), {"alpha": [0.1, 1.0]}, folds=2)],
)
def test_the_threads_of_the_process_change_nothing(model: BaseEstimator) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1500, 100))  # enough for BLAS to divide the work
    y = X @ rng.normal(size=100) + rng.normal(size=1500)
    fits = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fits.append(clone(model).fit(X, y, np.arange(1500) // 100).best_estimator_)
    if isinstance(model, Searched):
        assert [fit.threads_ for fit in fits] == [1, 1]
    np.testing.assert_array_equal(*(fit.predict(X) for fit in fits))


def test_one_thread_is_one_thread_and_is_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
        assert all(pool["num_threads"] == 1 for pool in threadpool_info() if pool["user_api"] == "blas")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_progress_is_a_bar_on_stderr_for_who_asks(table: tuple, capsys: pytest.CaptureFixture) -> None:
    X, y, groups = table
    for progress in (False, True):
        search(Ridge(), [{"alpha": 1.0}], X, y, folds_of(groups), progress=progress)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("4/4" in err) == progress


# --- it goes on ----------------------------------------------------------------------------------------------------


def test_a_killed_search_repeats_no_finished_fit(table: tuple, tmp_path: Path) -> None:
    X, y, groups = table
    fits, records = tmp_path / "fits", tmp_path / "records"
    fits.mkdir()
    folds = folds_of(groups)
    settings = [{"max_depth": 1}, {"max_depth": 2}, {"max_depth": 3}]
    kill = tmp_path / "fits.kill"
    kill.touch()
    with pytest.raises(KeyboardInterrupt):
        search(Counted(str(fits)), settings, X, y, folds, records=records)
    assert len(list(fits.iterdir())) == len(list(records.glob("*.json"))) == 5
    kill.unlink()
    again = search(Counted(str(fits)), settings, X, y, folds, records=records)
    assert len(list(fits.iterdir())) == 12  # every setting on every fold once
    afresh = search(Counted(str(fits)), settings, X, y, folds)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), afresh.drop(columns="seconds"))


def test_records_are_of_just_these_rows_folds_and_settings(table: tuple, tmp_path: Path) -> None:
    X, y, groups = table
    fits, records = tmp_path / "fits", tmp_path / "records"
    fits.mkdir()
    folds = folds_of(groups, 2)

    def fits_made(estimator: Counted, *arguments: object, **more: object) -> int:
        before = len(list(fits.iterdir()))
        search(estimator, [{"max_depth": 2}], *arguments, records=records, **more)
        return len(list(fits.iterdir())) - before

    model = Counted(str(fits))
    assert fits_made(model, X, y, folds) == 2
    assert fits_made(model, X, y, folds) == 0
    assert fits_made(model, X, y, folds, weight=np.full(len(y), 2.0)) == 2
    assert fits_made(model, X, y + 1, folds) == 2
    assert fits_made(model, X, y, folds[::-1]) == 0
    assert fits_made(Counted(str(fits), wrong="other"), X, y, folds) == 2
    assert fits_made(model, X, y, folds) == 0
    assert not list(records.glob("*.part"))


def cut(record: Path) -> None:
    record.write_text(record.read_text()[:20])


def edited(**changes: object) -> Callable[[Path], object]:
    return lambda record: record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def folder_in_place(record: Path) -> None:
    record.unlink()
    record.mkdir()


def of_another_fit(record: Path) -> None:
    other = next(path for path in record.parent.glob("*.json") if path != record)
    record.write_text(other.read_text())


SPOILERS: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda record: record.write_bytes(b""),
    "no text": lambda record: record.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda record: record.write_text("[1]"),
    "deep": lambda record: record.write_text("[" * 100_000),
    "a folder": folder_in_place,
    "a link to nothing": lambda record: (record.unlink(), record.symlink_to("/nowhere/at/all")),
    "sums of NaN": edited(sums=[float("nan")] * 2),
    "smaller sums": edited(sums=[1.0, 0.0]),
    "sums in words": edited(sums="ab"),
    "fewer sums": edited(sums=[]),
    "another time": edited(seconds=-1.0),
    "another seal": edited(sealed="0" * 32),
    "of another fit": of_another_fit,
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_spoiled_record_is_never_used_and_its_fit_is_done_again_and_counted(
    table: tuple, tmp_path: Path, name: str
) -> None:
    X, y, groups = table
    fits, records = tmp_path / "fits", tmp_path / "records"
    fits.mkdir()
    arguments = (Counted(str(fits)), [{"max_depth": 1}, {"max_depth": 2}], X, y, folds_of(groups, 2))
    before = search(*arguments, records=records)
    SPOILERS[name](sorted(records.glob("*.json"))[1])
    with pytest.warns(UserWarning, match="records: 1 of 4 records are cut short, altered or of another fit"):
        again = search(*arguments, records=records)
    assert len(list(fits.iterdir())) == 5
    pd.testing.assert_frame_equal(before.drop(columns="seconds"), again.drop(columns="seconds"))
    assert not list(records.glob("*.part"))
    if name != "a folder":  # in whose place nothing can be kept
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            search(*arguments, records=records)
        assert len(list(fits.iterdir())) == 5


def test_a_file_where_the_records_folder_should_be_is_one_line_and_nothing_is_fitted(
    table: tuple, tmp_path: Path, client: Client
) -> None:
    X, y, groups = table
    (tmp_path / "file").write_text("mine")
    fits = tmp_path / "fits"
    fits.mkdir()
    for records in (tmp_path / "file", tmp_path / "file" / "deeper"):
        model = Searched(Counted(str(fits)), {"max_depth": [1]}, folds=2, records=records)
        stepped = Searched(Epochs(), {"rate": [0.1]}, how="hyperband", calls=3, records=records)
        for estimator in (model, stepped):
            with client.as_current(), pytest.raises(InputError, match="finished fits cannot be kept there") as error:
                estimator.fit(X, y, groups)
            assert "\n" not in str(error.value)
    assert not list(fits.iterdir())
    assert (tmp_path / "file").read_text() == "mine"


def test_workers_share_the_records(table: tuple, tmp_path: Path, client: Client) -> None:
    X, y, groups = table
    fits = tmp_path / "fits"
    fits.mkdir()
    model = Searched(Counted(str(fits)), {"max_depth": [1, 2, 3]}, folds=3, records=tmp_path / "records")
    with client.as_current():
        there = model.search(X, y, groups)
    assert len(list((tmp_path / "records").glob("*.json"))) == 9
    made = len(list(fits.iterdir()))
    here = clone(model).fit(X, y, groups)
    assert len(list(fits.iterdir())) == made + 1  # the final fit on all rows
    pd.testing.assert_frame_equal(there, here.inner_table_)  # seconds too: they are those of the fits once made


def test_forests_keep_their_fits_too(table: tuple, tmp_path: Path) -> None:
    X, y, groups = table
    model = TunedForest({"min_samples_leaf": (5,)}, folds=2, trees=5, records=str(tmp_path)).fit(X, y, groups)
    entries = [json.loads(record.read_text()) for record in tmp_path.glob("*.json")]
    assert len(entries) == 4  # two choices of columns on two folds
    assert {entry["setting"]["columns"] for entry in entries} == {"all", "varying"}
    again = clone(model).fit(X, y, groups)
    pd.testing.assert_frame_equal(model.inner_table_, again.inner_table_)


# --- it fails in one line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["raises", "nan"])
@pytest.mark.parametrize("on_a_client", [False, True])
def test_settings_that_fail_are_left_out_and_named(
    table: tuple, tmp_path: Path, client: Client, wrong: str, on_a_client: bool
) -> None:
    X, y, groups = table
    settings = [{"wrong": wrong}, {"wrong": ""}]
    arguments = (Counted(str(tmp_path)), settings, X, y, folds_of(groups, 2))
    reason = "RuntimeError: this setting is wrong" if wrong == "raises" else "not finite"
    with pytest.warns(FitFailedWarning, match=f"1 of 2 settings .*{reason}"):
        found = _on(client, *arguments) if on_a_client else search(*arguments)
    assert np.isnan(found["rmse"][0])
    assert reason in found["failure"][0]
    assert found["chosen"].tolist() == [False, True]
    with pytest.raises(InputError, match=f"none of 1 settings could be fitted on 200 rows; .*{reason}"):
        search(arguments[0], settings[:1], *arguments[2:])


def _on(client: Client, *arguments: object, **more: object) -> pd.DataFrame:
    with client.as_current():
        return search(*arguments, **more)


@pytest.mark.parametrize("how", ["memory", "disk"])
@pytest.mark.parametrize("on_a_client", [False, True])
def test_a_fit_that_the_machine_failed_ends_the_search_and_is_no_failed_setting(
    table: tuple, tmp_path: Path, client: Client, how: str, on_a_client: bool
) -> None:
    X, y, groups = table
    arguments = (Lost(how=how), [{"alpha": 1.0}, {"alpha": 2.0}], X, y, folds_of(groups, 2))
    reason = "MemoryError" if how == "memory" else "OSError: no space left"
    with pytest.raises(TaskError, match=f"alpha': 2.0.* through no fault of a setting: {reason}"):
        _on(client, *arguments, records=tmp_path) if on_a_client else search(*arguments, records=tmp_path)
    with pytest.raises(TaskError, match=reason):  # nor of a search around it
        search(Searched(Lost(how=how), {"alpha": [1.0, 2.0]}, folds=2), [{"folds": 2}, {"folds": 3}], *arguments[2:])
    if on_a_client:  # the others finish, and are kept
        assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_fit_lost_with_its_worker_ends_the_search(table: tuple) -> None:
    X, y, groups = table
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(TaskError, match=r"of 4 fits lost, .*: (KilledWorker|a worker that held)"),
    ):
        _on(client, Lost(how="worker"), [{"alpha": 1.0}, {"alpha": 2.0}], X, y, folds_of(groups, 2))


def test_bad_input_is_one_line(table: tuple) -> None:
    X, y, _ = table
    holed = X.copy()
    holed[0, 0] = np.nan
    for rows, settings, message in (
        (holed, {}, "contains NaN"),
        (X, {"how": "best"}, "how must be one of grid, random, hyperband, got 'best'"),
        (X, {"validation": "days"}, "validation must be one of"),
        (X, {"space": {}}, "at least one value"),
        (X, {"space": {"alfa": [1.0]}}, "space: alfa is unknown; expected among alpha, "),
        (X, {"space": {"alpha": 1.0}}, "at least one value for alpha, as a list, got 1.0"),
        (X, {"space": {"alpha": uniform(0, 1)}}, "alpha is a distribution; how must be random"),
        (X, {"candidates": 0}, "candidates must be a whole number of at least 1, got 0"),
        (X, {"folds": 1}, "folds must be a whole number of at least 2, got 1"),
        (X, {"calls": 0}, "calls must be a whole number of at least 1, got 0"),
        (X, {"random_state": -1}, "random_state must be None, a RandomState or a whole number"),
        (X, {"space": {"alpha": [-1.0]}}, "the first: {'alpha': -1.0}: InvalidParameterError"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Searched(Ridge(), {"alpha": [1.0]}).set_params(**settings).fit(rows, y)
        assert "\n" not in str(error.value)
    for values in (["wet"] * len(y), np.array(["0.1"] * len(y)), np.array(["wet"] * len(y), object)):
        with pytest.raises(InputError, match=r"y must hold numbers|could not convert string"):
            Searched(Ridge(), {"alpha": [1.0]}).fit(X, values)
    with pytest.raises(InputError, match="takes no sample_weight"):
        Searched(_Unweighted(), {"alpha": [1.0]}).fit(X, y, sample_weight=np.ones(len(y)))
    few = Searched(Ridge(), {"alpha": [0.1, 1.0]}).fit(X[:5], y[:5])
    assert np.isfinite(few.predict(X)).all()
    two = Searched(Ridge(), {"alpha": [0.1, 1.0]}, folds=3).fit(X[:6], y[:6], np.repeat([0, 1, 2], 2))
    assert np.isfinite(two.inner_score_)


def test_random_states_are_scikit_learns(table: tuple) -> None:
    X, y, groups = table

    def scored(random_state: object) -> list[float]:
        model = Searched(DecisionTreeRegressor(max_features=1, random_state=0), SPACE, folds=3)
        return model.set_params(random_state=random_state).fit(X, y, groups).inner_table_["rmse"].tolist()

    assert scored(np.random.RandomState(3)) == scored(np.random.RandomState(3))
    assert scored(np.int64(3)) == scored(3)
    assert scored(None) != scored(None)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("on_a_client", [False, True])
def test_estimators_that_want_unbroken_rows_are_searched(
    table: tuple, client: Client, order: str, on_a_client: bool
) -> None:
    X, y, groups = table
    arguments = (SVR(), [{"C": 1.0}, {"C": 10.0}], np.asarray(X, order=order), y, folds_of(groups))
    found = _on(client, *arguments) if on_a_client else search(*arguments)
    assert (found["failure"] == "").all()
    assert found["rmse"].max() < y.std()


class Unbroken(Epochs):
    """Takes rows as compiled code does."""

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> "Unbroken":
        assert X.flags.c_contiguous
        assert y.flags.c_contiguous
        return super().partial_fit(X, y)


def test_hyperband_gives_unbroken_rows(table: tuple, client: Client) -> None:
    X, y, groups = table
    with client.as_current():
        _, found = hyperband(Unbroken(), {"rate": [0.1, 0.5]}, np.asfortranarray(X), y, folds_of(groups)[0], calls=3)
    assert (found["failure"] == "").all()


class _Unweighted(Ridge):
    def fit(self, X: np.ndarray, y: np.ndarray) -> "_Unweighted":
        return super().fit(X, y)


def test_scikit_learns_checks_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(Searched(Ridge(), {"alpha": [0.1, 1.0]}, folds=2), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] in ("failed", "xfail")] == []


# --- Hyperband -----------------------------------------------------------------------------------------------------

RATES = {"alpha": [1e-4, 1e-2, 1.0, 10.0], "eta0": [1e-3, 1e-2, 0.1]}


def test_hyperband_finds_a_good_setting_and_goes_on_by_brackets(table: tuple, tmp_path: Path, client: Client) -> None:
    X, _, groups = table
    y = X @ [1.0, -2.0, 0.5]
    model = Searched(SGDRegressor(random_state=0), RATES, how="hyperband", calls=9, folds=4, records=tmp_path)
    with client.as_current():
        found = clone(model).fit(X, y, groups)
        kept = sorted(tmp_path.glob("*.json"))
        written = [record.stat().st_mtime_ns for record in kept]
        kept[0].unlink()  # as if it had been killed in one bracket
        again = clone(model).search(X, y, groups)
    assert len(kept) == 3  # brackets of 9 calls
    assert [record.stat().st_mtime_ns for record in kept[1:]] == written[1:]
    columns = [*RATES, "bracket", "calls", "rmse", "chosen"]
    pd.testing.assert_frame_equal(found.inner_table_[columns], again[columns])
    assert found.best_params_["alpha"] <= 1e-2
    assert found.inner_table_["calls"].max() == 9
    assert found.score(X, y) > 0.95
    # the halving is real: most settings get fewer calls than the best
    assert (found.inner_table_["calls"] < 9).mean() > 0.3


def test_hyperband_holds_out_the_folds_rows_and_names_what_fails(table: tuple, client: Client) -> None:
    X, y, groups = table
    train, held = folds_of(groups)[0]
    with client.as_current():
        _, found = hyperband(SGDRegressor(random_state=0), {"alpha": [1e-3, -1.0]}, X, y, (train, held), calls=3)
        with pytest.raises(InputError, match="none of"):
            hyperband(SGDRegressor(), {"alpha": [-1.0]}, X, y, (train, held), calls=3)
    good = found.loc[found["alpha"] > 0]
    assert (found.loc[found["alpha"] < 0, "failure"] != "").all()
    entry = good.iloc[0]
    model = SGDRegressor(random_state=0, alpha=1e-3)
    for _ in range(int(entry["calls"])):
        model.partial_fit(X[train], y[train])
    assert entry["rmse"] == pytest.approx(np.sqrt(np.mean((model.predict(X[held]) - y[held]) ** 2)), rel=1e-9)


def test_a_resumed_bracket_has_settings_of_the_same_types(table: tuple, tmp_path: Path, client: Client) -> None:
    X, y, groups = table
    space = {"hidden": [(1,), (2, 1)], "depth": [np.int64(5), np.int64(7), None], "rate": uniform(0.1, 0.8)}
    arguments = (X, y, folds_of(groups)[0])
    with client.as_current():
        settings, found = hyperband(Epochs(), space, *arguments, calls=9, records=tmp_path)
        kept = sorted(tmp_path.glob("*.json"))
        written = [record.stat().st_mtime_ns for record in kept]
        space["rate"] = uniform(0.1, 0.8)  # another object, as in another process
        again, resumed = hyperband(Epochs(), space, *arguments, calls=9, records=tmp_path)
        assert [record.stat().st_mtime_ns for record in kept] == written
        assert len(list(tmp_path.glob("*.json"))) == len(kept) == 3
        kept[0].write_text(kept[0].read_text()[:30])  # broken: run again, not raised
        with pytest.warns(UserWarning, match="1 of 3 records are cut short"):
            repaired = hyperband(Epochs(), space, *arguments, calls=9, records=tmp_path)[1]
        space["rate"] = uniform(0.1, 0.7)
        hyperband(Epochs(), space, *arguments, calls=9, records=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 6
    pd.testing.assert_frame_equal(found, resumed)
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), repaired.drop(columns="seconds"))
    assert json.loads(kept[0].read_text())["rows"]
    assert settings == again
    assert {type(setting["hidden"]) for setting in again} == {tuple}
    assert {type(setting["depth"]) for setting in again} == {np.int64, type(None)}
    assert found["failure"].eq("").all()


def test_hyperband_ends_where_the_machine_fails_a_fit(table: tuple, client: Client) -> None:
    X, y, groups = table
    with client.as_current(), pytest.raises(TaskError, match="through no fault of a setting: MemoryError"):
        hyperband(Epochs(), {"wrong": ["", "memory"]}, X, y, folds_of(groups)[0], calls=3)


def test_hyperband_needs_partial_fit_and_a_client(table: tuple) -> None:
    X, y, _ = table
    with pytest.raises(InputError, match="Ridge has none"):
        Searched(Ridge(), {"alpha": [1.0]}, how="hyperband").fit(X, y)
    with pytest.raises(InputError, match="needs a dask client"):
        Searched(SGDRegressor(), RATES, how="hyperband").fit(X, y)


# --- recipes -------------------------------------------------------------------------------------------------------


def test_a_recipe_asks_for_a_search_of_any_model(table: tuple, tmp_path: Path) -> None:
    X, y, groups = table
    settings = {
        "search": {"how": "random", "candidates": 2, "space": {"max_hidden": [2, 3], "members": [2]}, "folds": 2},
        "population": 8,
        "generations": 2,
        "max_steps": 3,
    }
    model = zoo.build("gabp", settings, seed=3, records=tmp_path).fit(X, y, groups=groups)
    assert isinstance(model, Searched)
    assert model.best_params_["max_hidden"] in (2, 3)
    network = zoo.fitted(model)
    assert type(network).__name__ == "GABPRegressor"
    assert network.get_params()["generations"] == 2
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert zoo.fitted(network) is network


def test_a_search_of_a_forest_is_its_own_grid() -> None:
    model = zoo.build("rf", {"search": {"how": "random", "candidates": 3, "space": {"max_depth": [2, 4]}, "folds": 4}})
    assert isinstance(model, TunedForest)
    assert (model.grid, model.how, model.candidates, model.folds) == ({"max_depth": [2, 4]}, "random", 3, 4)


def test_a_recipe_asks_for_hyperband_of_the_cnn(table: tuple, tmp_path: Path, client: Client) -> None:
    X, y, groups = (part[:80] for part in table)
    asked = {
        "how": "hyperband",
        "calls": 3,
        "folds": 2,
        "space": {"learning_rate": [1e-3, 1e-2], "dropout": [0.0, 0.2]},
    }
    settings = {"search": asked, "filters": [2, 2, 2, 2], "members": 1, "epochs": 2}
    with client.as_current():
        model = zoo.build("cnn", settings, seed=3, records=tmp_path).fit(X, y, groups=groups)
        again = zoo.build("cnn", settings, seed=3, records=tmp_path).search(X, y, groups=groups)
        afresh = zoo.build("cnn", settings, seed=3).search(X, y, groups=groups)
    assert (model.inner_table_["failure"] == "").all()
    assert model.inner_table_["calls"].max() == 3
    assert set(model.best_params_) == {"learning_rate", "dropout"}
    network = zoo.fitted(model)
    assert network.get_params() | model.best_params_ == network.get_params()
    assert network.epochs == 2
    assert np.isfinite(model.predict(X)).all()
    assert len(list(tmp_path.glob("*.json"))) == 2  # brackets of 3 calls
    pd.testing.assert_frame_equal(model.inner_table_, again)  # seconds too: read, not run
    columns = ["learning_rate", "dropout", "calls", "rmse", "chosen"]
    pd.testing.assert_frame_equal(afresh[columns], again[columns])


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("gabp", ["max_hidden"], r"models.gabp.search: found \['max_hidden'\], expected space"),
        ("gabp", {"how": "grid"}, "expected space"),
        ("gabp", {"space": {"max_hidden": 8}}, "search.space: found .* expected lists of values by name"),
        ("gabp", {"space": {"hidden": [8]}}, "models.gabp.search.space has no setting hidden"),
        ("gabp", {"space": {"max_hidden": ["many"]}}, "max_hidden: found 'many', expected a whole number"),
        ("gabp", {"space": {"max_hidden": [8]}, "how": "bayes"}, "how: found 'bayes', expected one of grid, random"),
        ("gabp", {"space": {"max_hidden": [8]}, "fold": 3}, "fold is unknown; expected among how, space"),
        ("gabp", {"space": {"max_hidden": [8]}, "folds": 1}, "folds: found 1, expected a whole number of at least 2"),
        ("gabp", {"space": {"max_hidden": [8]}, "how": "hyperband"}, "hyperband needs a model with partial_fit"),
        ("rf", {"space": {"max_depth": [8]}, "how": "hyperband"}, "hyperband needs a model with partial_fit"),
        ("xgb", {"space": {"max_hidden": [8]}}, "max_hidden is unknown"),
    ],
)
def test_a_wrong_search_is_one_line(name: str, asked: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        zoo.build(name, {"search": asked})


def test_a_search_beside_the_forests_own_settings_is_refused() -> None:
    with pytest.raises(RecipeError, match="folds stands in search and beside it"):
        zoo.build("rf", {"folds": 3, "search": {"space": {"max_depth": [2]}, "folds": 4}})
