"""Hyper-parameter search on inner folds: by grid or at random through dask-ml, for any regressor, here or on a cluster.

Every fit of every setting is one task. It runs in one thread, fails alone, and where a folder of records is given it is
written there when done, so that a search that was killed and started again repeats no finished fit. What comes out does
not depend on where the fits ran: scores are sums over held-out rows, added up in the order of the folds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import dask
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.utils.validation import has_fit_parameter
from tqdm import tqdm

from smscale.block_window import LOST_SECONDS
from smscale.errors import InputError, SmscaleError, TaskError
from smscale.models.record import versions
from smscale.models.samples import (
    Floats,
    Fold,
    Labels,
    Samples,
    implied_groups,
    scaling_of,
    standardised,
)
from smscale.models.search.records import (
    active_client,
    checked_folder,
    fingerprint,
    loaded_distributed,
    named,
    one_thread,
    read_record,
    report_spoiled,
    write_record,
)
from smscale.models.search.settings import spaces
from smscale.places import Place, place

Setting = Mapping[str, Any]
Space = Mapping[str, Sequence[Any]]

WAYS = ("grid", "random", "hyperband")
VALIDATIONS = ("blocks", "rows")
FOLDS = 5
#: Settings that a random search draws, and calls of partial_fit that Hyperband's longest run gets.
CANDIDATES, CALLS = 20, 27
#: A search whose workers were lost is sent again so often; others are looked for so often.
SENT_AGAIN, LOOK_SECONDS = 3, 0.2
#: Most settings that a warning names, and most characters of a reason.
NAMED, LONGEST = 3, 240


class Measure(Protocol):
    """What a fit is scored by: sums over held-out rows, which add over folds, and what they come to."""

    def sums(self, model: Any, X: Floats, y: Floats, weight: Floats, group: Labels) -> Floats:
        """(m,) sums over the rows of X (n, k), y (n,), weight (n,), group (n,) labels."""
        ...

    def summary(self, sums: Floats) -> dict[str, float]:
        """Of the folds' sums (folds, m): `rmse` over all rows, `spread` (standard deviation of the folds'), and more."""
        ...


class SquaredError(BaseEstimator):
    """Weighted mean squared error of `predict`."""

    def sums(self, model: Any, X: Floats, y: Floats, weight: Floats, group: Labels) -> Floats:
        """Weight, and weighted squares of the error."""
        return np.array([weight.sum(), weight @ (np.asarray(model.predict(X), np.float64).ravel() - y) ** 2])

    def summary(self, sums: Floats) -> dict[str, float]:
        """rmse and spread, units of y."""
        weight, squares = sums.T
        return {"rmse": float(np.sqrt(squares.sum() / weight.sum())), "spread": float(np.sqrt(squares / weight).std())}


class Outcome(NamedTuple):
    """Of one setting on one fold: the measure's sums, the seconds it took, and in one line why it failed ("" if not).

    spoiled : a record of it was there, and could not be used
    """

    sums: tuple[float, ...]
    seconds: float
    failure: str
    spoiled: bool = False


# --- the search ----------------------------------------------------------------------------------------------------


def candidates(space: Space, how: str = "grid", count: int = CANDIDATES, seed: int = 0) -> list[dict[str, Any]]:
    """Settings to try: all of `space`, or (how "random") `count` of them, drawn without repeats where it holds lists only.

    Raises
    ------
    InputError : the space is empty, one of its entries has no values, `how` is neither, or `count` is below 1
    """
    wrong = (
        spaces(space, list(space), "a search's space", distributions=how == "random")
        if space
        else ["its space is empty"]
    )
    if how not in ("grid", "random") or count < 1:
        wrong.append(f"how must be grid or random, of at least one setting; got {how!r}, {count!r}")
    if wrong:
        raise InputError(f"a search needs at least one value for each name of its space: {'; '.join(wrong)}")
    if how == "grid":
        return list(ParameterGrid({name: list(values) for name, values in space.items()}))
    lists_only = not any(hasattr(values, "rvs") for values in space.values())
    least = min(count, len(ParameterGrid(dict(space)))) if lists_only else count
    return list(ParameterSampler(dict(space), least, random_state=seed % 2**32))


def search(
    estimator: BaseEstimator,
    settings: Sequence[Setting],
    X: Floats,
    y: Floats,
    folds: Sequence[Fold],
    groups: Labels | None = None,
    weight: Floats | None = None,
    measure: Measure | None = None,
    records: Path | str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Fit every setting on every fold, on the active dask client, or here where there is none and inside a dask task.

    Parameters
    ----------
    estimator : regressor whose `set_params` takes the settings; `groups` and `weight` are passed to a `fit` that takes them
    settings : what to try, from `candidates`
    X, y : (n, k), (n,) finite;  groups, weight : (n,)
    folds : (training, held-out) rows
    measure : by default SquaredError, weighted
    records : folder, seen by all workers, that keeps each finished fit; None keeps none
    progress : a bar on stderr

    Returns
    -------
    DataFrame, a row per setting in their order: the setting's columns, what the measure's summary has (`rmse`, units of y,
    and `spread` first), `seconds` of all its fits, `failure` (one line, "" where all folds were fitted; the scores of others
    are NaN) and `chosen` (True on the first of the lowest).

    Raises
    ------
    InputError : no setting could be fitted on all folds
    TaskError : a fit was lost to the machine (memory, disk, a worker), which says nothing about its setting; with `records`,
        the next search goes on from the fits that finished

    Warns
    -----
    FitFailedWarning : some could not; they are named
    UserWarning : records were spoiled, and their fits done again
    """
    checked_folder(records)
    measure = measure or SquaredError()
    weight = np.ones(len(y)) if weight is None else weight
    rows: Floats = np.column_stack([y, weight, np.zeros(len(y)) if groups is None else groups]).astype(np.float64)
    trial = Trial(
        estimator, grouped=groups is not None, measure=measure, records=None if records is None else str(records)
    )
    outcomes = _run(trial, [dict(setting) for setting in settings], X, rows, list(folds), progress)
    table = _tidy(settings, outcomes, measure)
    report_spoiled(sum(outcome.spoiled for fits in outcomes for outcome in fits), len(settings) * len(folds), records)
    _report_failures(table, settings, len(X))
    return table


class Trial(BaseEstimator):
    """What dask-ml fits: it keeps its rows, and does all its work when it is scored.

    `rows` (n, 3) are target, weight and label of each row of X, so that held-out rows have their weights too.
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        setting: Setting | None = None,
        grouped: bool = False,
        measure: Any = None,
        records: str | None = None,
    ):
        self.estimator = estimator
        self.setting = setting
        self.grouped = grouped
        self.measure = measure
        self.records = records

    def fit(self, X: Floats, rows: Floats) -> Trial:
        """Keep the training rows."""
        self.training_ = X, rows
        return self

    def outcome(self, X: Floats, rows: Floats) -> Outcome:
        """Fit, and measure on X, rows; or read what was recorded of just that."""
        record = self._record(X, rows)
        found, spoiled = read_record(record, _outcome_of)
        if found is not None:
            return found
        start = time.perf_counter()
        try:
            with one_thread():
                sums = self.measure.sums(self._fitted(), X, rows[:, 0], rows[:, 1], rows[:, 2].astype(np.int64))
            if not np.isfinite(sums).all():
                raise InputError("its predictions are not finite")
        except TaskError:  # of a search inside
            raise
        except (MemoryError, OSError) as error:
            raise lost_to_the_machine(f"the fit of {self.setting}", error) from error
        except Exception as error:  # whatever an estimator raises, the other settings go on
            return Outcome((), time.perf_counter() - start, _one_line(error), spoiled)
        found = Outcome(tuple(sums.tolist()), time.perf_counter() - start, "", spoiled)
        if record is not None:
            write_record(record, {"setting": self.setting, "sums": found.sums, "seconds": found.seconds})
        return found

    def _fitted(self) -> Any:
        X, rows = self.training_
        model = clone(self.estimator).set_params(**(self.setting or {}))
        y, weight, _ = np.ascontiguousarray(rows.T)  # compiled estimators (SVR) take no strided column
        groups = rows[:, 2].astype(np.int64) if self.grouped else None
        return fit_with(model, np.ascontiguousarray(X), y, groups, weight)

    def _record(self, X: Floats, rows: Floats) -> Place | None:
        """The file of this fit: named by all that its outcome depends on."""
        if self.records is None:
            return None
        parts = {
            "estimator": [type(self.estimator).__qualname__, self.estimator.get_params()],
            "setting": self.setting,
            "grouped": self.grouped,
            "measure": repr(self.measure),
            "versions": versions(),
            "data": [fingerprint(part) for part in (*self.training_, X, rows)],
        }
        return place(self.records) / f"{named(parts)}.json"


def _run(
    trial: Trial, settings: list[dict[str, Any]], X: Floats, rows: Floats, folds: list[Fold], progress: bool
) -> list[list[Outcome]]:
    """Outcomes by setting and fold, through dask-ml's grid search over whole settings (random ones are drawn before)."""
    from dask_ml.model_selection import GridSearchCV

    scheduler = _Scheduler(progress)
    GridSearchCV(
        trial,
        {"setting": settings},
        scoring=_outcome,
        cv=folds,
        refit=False,
        iid=False,
        error_score="raise",
        scheduler=scheduler,
    ).fit(X, rows)
    by_fold = [scheduler.outcomes[i : i + len(settings)] for i in range(0, len(scheduler.outcomes), len(settings))]
    return [list(of_setting) for of_setting in zip(*by_fold, strict=True)]


def _outcome_of(kept: Any) -> Outcome:
    return Outcome(tuple(map(float, kept["sums"])), float(kept["seconds"]), "")


def _outcome(trial: Trial, X: Floats, rows: Floats) -> Outcome:
    return trial.outcome(X, rows)


class _Scheduler:
    """What dask-ml takes for a dask scheduler: runs its graph, shows progress, and keeps the outcomes for itself.

    dask-ml's own loop over a client runs a task that raises again for ever, and passes on numbers only. Here every task runs
    to its end once, and the first that raised ends the search.
    """

    def __init__(self, progress: bool):
        self.progress = progress
        self.outcomes: list[Outcome] = []

    def __call__(self, graph: dict[Any, Any], keys: list[Any], **options: Any) -> list[tuple[float, float, float]]:
        client = active_client()
        with tqdm(total=len(keys), unit="fit", desc="search", disable=not self.progress) as bar:
            results = _here(graph, keys, bar) if client is None else _on(client, graph, keys, bar)
        self.outcomes = [score for _, score, _ in results]
        return [(seconds, float(not score.failure), scoring) for seconds, score, scoring in results]


def _here(graph: dict[Any, Any], keys: list[Any], bar: Any) -> list[Any]:
    wanted = set(keys)

    def done(key: Any, *_: Any) -> None:
        bar.update(key in wanted)

    with dask.callbacks.Callback(posttask=done):
        return list(dask.get(graph, keys))


def _on(client: Any, graph: dict[Any, Any], keys: list[Any], bar: Any) -> list[Any]:
    """Run on a client; where a task is lost for good, the others finish (and are recorded) first.

    Rows go with the worker that holds them, and everything with the scheduler: then all is sent again, and finished fits are read
    from their records.
    """
    again = 0
    while True:
        bar.reset()
        try:
            return _sent(client, graph, keys, bar)
        except (CancelledError, OSError) as error:  # the line to the scheduler broke, or rows went with a worker
            if again == SENT_AGAIN:
                raise lost_to_the_machine("the search", error) from error
            again += 1
            _await_workers(client)


def _sent(client: Any, graph: dict[Any, Any], keys: list[Any], bar: Any) -> list[Any]:
    """Results of a graph; arrays are sent once.

    Raises
    ------
    CancelledError
        if what was sent is gone.
    """
    # Under names of their own: those of a search that is sent again may still be on their way out.
    sent = {
        key: client.scatter(part, hash=False) if isinstance(part, np.ndarray) else part for key, part in graph.items()
    }
    futures = client.get(sent, keys, sync=False)
    try:
        for _ in loaded_distributed().as_completed(set(futures), raise_errors=False):
            bar.update()
        failed = [future for future in futures if future.status == "error"]
        if failed:
            reason = failed[0].exception()
            if isinstance(reason, SmscaleError):
                raise reason
            raise lost_to_the_machine(f"{len(failed)} of {len(futures)} fits", reason)
        if any(future.status != "finished" for future in futures):
            raise CancelledError("a worker that held the rows is gone")
        return [future.result() for future in futures]
    finally:
        for future in futures:  # their names are wanted again
            future.release()


def _await_workers(client: Any) -> None:
    """Wait for the scheduler and a worker, as long as the engine does."""
    patience = float(dask.config.get("smscale.lost-timeout", LOST_SECONDS))
    until = time.monotonic() + patience
    while client.status != "running" or not client.scheduler_info(n_workers=-1)["workers"]:
        if client.status not in ("running", "connecting") or time.monotonic() > until:
            raise lost_to_the_machine("the search", f"no worker is left, and none came within {patience:g} s")
        time.sleep(LOOK_SECONDS)


def _tidy(settings: Sequence[Setting], outcomes: list[list[Outcome]], measure: Measure) -> pd.DataFrame:
    table = pd.DataFrame([dict(setting) for setting in settings])
    failures = [next((outcome.failure for outcome in folds if outcome.failure), "") for folds in outcomes]
    summaries = [
        {} if failure else measure.summary(np.array([outcome.sums for outcome in folds]))
        for folds, failure in zip(outcomes, failures, strict=True)
    ]
    scores = pd.DataFrame(summaries, index=table.index)
    table[list(scores.columns)] = scores
    table["seconds"] = [sum(outcome.seconds for outcome in folds) for folds in outcomes]
    table["failure"] = failures
    rmse = table["rmse"].to_numpy(np.float64) if "rmse" in table else np.full(len(table), np.nan)
    table["chosen"] = np.arange(len(table)) == np.nanargmin(np.append(rmse, np.inf))
    return table


def _report_failures(table: pd.DataFrame, settings: Sequence[Setting], rows: int) -> None:
    failed = np.flatnonzero(table["failure"] != "")
    if not failed.size:
        return
    reason = table["failure"].iloc[failed[0]]
    if failed.size == len(table):
        raise InputError(
            f"none of {len(table)} settings could be fitted on {rows} rows; the first: {settings[0]}: {reason}"
        )
    some = ", ".join(str(dict(settings[i])) for i in failed[:NAMED]) + (" ..." if failed.size > NAMED else "")
    warnings.warn(
        f"{failed.size} of {len(table)} settings could not be fitted and are left out: {some} ({reason})",
        FitFailedWarning,
        stacklevel=3,
    )


def lost_to_the_machine(what: str, reason: Any) -> TaskError:
    """To raise where memory, a disk or a worker failed: a choice among the settings left would depend on the day."""
    return TaskError(
        f"{what} lost, through no fault of a setting: {_one_line(reason)}; free memory or disk, and run again"
    )


def _one_line(error: Any) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."  # XGBoost's have a stack behind them
    return f"{type(error).__name__}: {text}".removesuffix(": ") if isinstance(error, BaseException) else text


# --- one estimator, its search inside ------------------------------------------------------------------------------


def as_they_are(X: Floats, y: Floats, weight: Floats, group: Labels | None) -> Samples:
    """A table neither sorted nor merged; without `group`, every row is its own."""
    return Samples(X, y, weight, np.arange(len(y), dtype=np.int64) if group is None else group)


def with_groups(samples: Samples, validation: str, seed: int, names: Sequence[str] | None = None) -> Samples:
    """Samples without groups, given those that inner folds keep whole: "blocks" that the predictors imply, or "rows"."""
    if validation == "rows":
        return samples._replace(group=np.arange(len(samples.y), dtype=np.int64))
    return samples._replace(group=implied_groups(standardised(samples, scaling_of(samples)), seed, names))


def fit_with(model: Any, X: Floats, y: Floats, groups: Labels | None, weight: Floats) -> Any:
    """`model.fit` with the groups and the weights, where it takes them."""
    extra: dict[str, Any] = {}
    if groups is not None and has_fit_parameter(model, "groups"):
        extra["groups"] = groups
    if has_fit_parameter(model, "sample_weight"):
        extra["sample_weight"] = weight
    return model.fit(X, y, **extra)
