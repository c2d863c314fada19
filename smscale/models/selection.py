"""Scores of models under splits, and the choice of one, by data that nothing was chosen on.

Three layers, and no row is in two of them at once: a split's test side scores; its training side is what a model is given;
the inner folds that the model makes of that (whole groups) choose generation, epoch, rounds and grid point. `choose_best`
compares models by inner scores alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.models import splits as splitting
from smscale.models import zoo
from smscale.models.forests import FOLDS, inner_folds

Values = NDArray[np.floating[Any]]

#: Scores of `score_fold`, in the order of the paper's and our tables.
SCORES = ("rmse", "mae", "cc", "r2", "bias", "ubrmse", "sigma_ratio")


class Task(NamedTuple):
    """One model on one fold: all that `run_task` needs, so that it can be sent to a worker alone."""

    model: str
    split: str
    fold: int
    settings: Mapping[str, Any]
    train: NDArray[np.intp]
    test: NDArray[np.intp]
    seed: int


def fit_fold(
    name: str,
    settings: Mapping[str, Any] | None,
    X_train: ArrayLike,
    y_train: ArrayLike,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[zoo.Model, float]:
    """A fitted model, and the seconds its fit took; a pure function of its arguments.

    X_train (n, k), y_train (n,), groups (n,) labels that inner folds keep whole, sample_weight (n,).
    """
    model = zoo.build(name, settings, seed)
    start = time.perf_counter()
    model.fit(X_train, y_train, groups=groups, sample_weight=sample_weight)
    return model, time.perf_counter() - start


def score_fold(reference: ArrayLike, estimate: ArrayLike) -> dict[str, float]:
    """Scores of estimate (n,) against reference (n,), pairs with NaN left out.

    rmse, mae, bias (estimate - reference) and ubrmse = sqrt(rmse^2 - bias^2) in the target's units; cc Pearson's correlation;
    r2 = 1 - SSE / sum of squares about the reference's mean; sigma_ratio = standard deviation of estimate over reference's; n the
    number of pairs. cc, r2 and sigma_ratio are NaN where a side is constant.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if not a.size:
        return dict.fromkeys(SCORES, np.nan) | {"n": 0}
    error = b - a
    mse, bias = float(np.mean(error**2)), float(error.mean())
    spread, spread_estimate = float(a.std()), float(b.std())
    product = float(np.mean((a - a.mean()) * (b - b.mean())))
    return {
        "rmse": np.sqrt(mse),
        "mae": float(np.abs(error).mean()),
        "cc": product / (spread * spread_estimate) if spread > 0 and spread_estimate > 0 else np.nan,
        "r2": 1 - mse / spread**2 if spread > 0 else np.nan,
        "bias": bias,
        "ubrmse": np.sqrt(max(mse - bias**2, 0.0)),
        "sigma_ratio": spread_estimate / spread if spread > 0 else np.nan,
        "n": int(a.size),
    }


def plan_tasks(
    models: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    splits: Mapping[str, splitting.Splitter],
    seed: int = 0,
) -> list[Task]:
    """Every model on every fold of every split: independent tasks for `run_task`, in a fixed order.

    models : name -> settings of `zoo.build`;  splits : name (a key of `splits.SPLITS`) -> splitter
    """
    folds = {name: list(splitter.split(table)) for name, splitter in splits.items()}
    return [
        Task(model, split, number, settings, train, test, seed)
        for split, pairs in folds.items()
        for number, (train, test) in enumerate(pairs)
        for model, settings in models.items()
    ]


def run_task(
    task: Task, table: pd.DataFrame, predictors: Sequence[str], target: str, blocks: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Predictions of one task's test rows: model, split, fold, row (in `table`), reference, estimate, fit_seconds.

    Inner folds keep the blocks of the task's own split whole; `blocks` are settings of `splits.inner_groups`. The table's
    `weight`, where it has one, weighs the training rows.
    """
    train, test = table.iloc[task.train], table.iloc[task.test]
    groups = None
    if task.split != "random":
        groups = splitting.inner_groups(train, task.split, **(blocks or {}))
    model, seconds = fit_fold(
        task.model,
        task.settings,
        train[list(predictors)].to_numpy(np.float32),
        train[target].to_numpy(np.float64),
        groups,
        train["weight"].to_numpy(np.float64) if "weight" in train else None,
        task.seed,
    )
    estimate = model.predict(test[list(predictors)].to_numpy(np.float32))
    return pd.DataFrame(
        {
            "model": task.model,
            "split": task.split,
            "fold": task.fold,
            "row": task.test,
            "reference": test[target].to_numpy(np.float64),
            "estimate": np.asarray(estimate, np.float64),
            "fit_seconds": seconds,
        }
    )


def score_table(predictions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row per model and split, in order of appearance: scores of all its folds' test rows together.

    Columns model, split, `SCORES`, n, folds, fit_seconds (of all folds).
    """
    rows = []
    for (model, split), part in pd.concat(predictions).groupby(["model", "split"], sort=False):
        seconds = part.groupby("fold")["fit_seconds"].first()
        scores = score_fold(part["reference"], part["estimate"])
        rows.append({"model": model, "split": split, **scores, "folds": seconds.size, "fit_seconds": seconds.sum()})
    return pd.DataFrame(rows)


def evaluate_splits(
    name: str,
    settings: Mapping[str, Any] | None,
    table: pd.DataFrame,
    predictors: Sequence[str],
    target: str,
    splits: Mapping[str, splitting.Splitter],
    seed: int = 0,
    blocks: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """`score_table` of one model under several splits, here and now; `plan_tasks` and `run_task` do it piecewise.

    Raises
    ------
    InputError : a row of the predictors or the target is not finite.
    """
    check_table(table, [*predictors, target])
    tasks = plan_tasks({name: settings or {}}, table, splits, seed)
    return score_table([run_task(task, table, predictors, target, blocks) for task in tasks])


def check_table(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column or has a missing or infinite value in one."""
    absent = [name for name in columns if name not in table]
    if absent:
        raise InputError(f"the sample table lacks {', '.join(absent)}; it has {', '.join(map(str, table.columns))}")
    bad = {name: int((~np.isfinite(table[name].to_numpy(np.float64))).sum()) for name in columns}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        found = ", ".join(f"{name} in {count}" for name, count in bad.items())
        raise InputError(f"{found} of {len(table)} rows of the sample table is not finite; leave those rows out")


def inner_scores(
    models: Mapping[str, Mapping[str, Any]],
    X: Values,
    y: Values,
    groups: ArrayLike | None,
    sample_weight: Values | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every model on the same inner folds of the training rows: what `choose_best` compares.

    groups (n,) stay whole, between and (by the models' own inner folds) inside them. Rows as `score_table`, split "inner".
    """
    labels = None if groups is None else np.asarray(groups)
    parts = []
    for number, (train, test) in enumerate(inner_folds(len(X), labels, folds, seed)):
        for name, settings in models.items():
            weight = None if sample_weight is None else sample_weight[train]
            inside = None if labels is None else labels[train]
            model, seconds = fit_fold(name, settings, X[train], y[train], inside, weight, seed)
            columns = {"row": test, "reference": y[test], "estimate": model.predict(X[test])}
            parts.append(
                pd.DataFrame({"model": name, "split": "inner", "fold": number, **columns, "fit_seconds": seconds})
            )
    return score_table(parts)


def choose_best(scores: Mapping[str, float] | pd.DataFrame) -> str:
    """The model with the lowest inner RMSE, the first of equals: `inner_scores`' table or name -> RMSE.

    Raises
    ------
    InputError : no score is finite.
    """
    values = (
        dict(zip(scores["model"], scores["rmse"], strict=True)) if isinstance(scores, pd.DataFrame) else dict(scores)
    )
    finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
    if not finite:
        raise InputError(f"no model has a finite inner score to choose by; got {values}")
    return min(finite, key=lambda name: finite[name])
