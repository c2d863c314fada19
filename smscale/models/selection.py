"""Scores of models under splits, and the choice of one, by data that nothing was chosen on.

Three layers, and no row is in two of them at once: a split's test side scores; its training side is what a model is given;
the inner folds that the model makes of that (whole groups) choose generation, epoch, rounds and grid point. `choose_best`
compares models by inner scores alone. Beside the models stand two baselines, fitted on the same folds: the mean of the
training rows, and a ridge regression.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels.score_sums import finalise_scores, merge_sums, score_sums
from smscale.models import splits as splitting
from smscale.models import zoo
from smscale.models.ridge import MeanBaseline, RidgeBaseline
from smscale.models.samples import group_labels, inner_folds
from smscale.schema import VARIABLES

Values = NDArray[np.floating[Any]]

#: Scores of `score_fold`, in the order of the paper's and our tables.
SCORES = ("rmse", "mae", "cc", "r2", "bias", "ubrmse", "sigma_ratio")
#: What a model must beat to be worth its training.
BASELINES = ("mean", "ridge")
FOLDS = 5
#: Chen et al. 2023, Remote Sens. 15, 4451, on their random 30 % of 8 670 samples, m3/m3: section 3.2 gives R2 ("0.76") and the mean
#: absolute error of GABP ("0.03"), and that of the CNN at its 570th epoch ("0.0355"). They state no score of the random forest on
#: samples; their figures of MAE against stations (figure 5) and table 2 (fusion) score maps, which these rows do not.
PAPER = {("gabp", "random"): {"r2": 0.76, "mae": 0.03}, ("cnn", "random"): {"mae": 0.0355}}
PAPER_SCORES = ("rmse", "mae", "cc", "r2")


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
    records: Path | str | None = None,
) -> tuple[zoo.Model, float]:
    """A fitted model, and the seconds its fit took; a pure function of its arguments.

    name : one of `zoo.MODELS` or `BASELINES`
    X_train (n, k), y_train (n,), groups (n,) labels that inner folds keep whole, sample_weight (n,).
    records : folder that keeps the finished fits of a search, see `zoo.build`

    Raises
    ------
    InputError : no row has weight
    """
    if sample_weight is not None and not np.any(np.asarray(sample_weight) > 0):
        raise InputError(f"model {name}: none of its {len(np.asarray(y_train))} training rows has a weight above 0")
    model = _built(name, settings, seed, records)
    start = time.perf_counter()
    model.fit(X_train, y_train, groups=groups, sample_weight=sample_weight)
    return model, time.perf_counter() - start


def _built(name: str, settings: Mapping[str, Any] | None, seed: int, records: Path | str | None) -> zoo.Model:
    if name in BASELINES:
        return MeanBaseline() if name == "mean" else RidgeBaseline(seed)
    return zoo.build(name, settings, seed, records)


def score_fold(reference: ArrayLike, estimate: ArrayLike) -> dict[str, float]:
    """Scores of estimate (n,) against reference (n,), pairs with NaN left out: `SCORES` as `kernels.score_sums` has them, and n.

    NaN with fewer than two pairs; cc, r2 and sigma_ratio also where a side is constant.
    """
    return _scores(score_sums(reference, estimate))


def _scores(sums: Values) -> dict[str, float]:
    found = finalise_scores(sums, extended=True)
    return {name: found[name] for name in (*SCORES, "n")}


def plan_tasks(
    models: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    splits: Mapping[str, splitting.Splitter],
    seed: int = 0,
    baselines: Sequence[str] = (),
) -> list[Task]:
    """Every model on every fold of every split: independent tasks for `run_task`, in a fixed order.

    models : name -> settings of `zoo.build`;  splits : name (a key of `splits.SPLITS`) -> splitter;  baselines : of `BASELINES`,
    on the same folds, after the models
    """
    models = {**models, **{name: {} for name in baselines}}
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
    """Predictions of one task's test rows: model, split, fold, row (in `table`), reference, estimate, unseen, fit_seconds.

    Inner folds keep the blocks of the task's own split whole (on a random split each row is its own), so that what is chosen
    is chosen as it is scored; `blocks` are settings of `splits.inner_groups`. The table's `weight`, where it has one, weighs the
    training rows. `unseen` (n,) bool: the row has a class that no training row has; it is predicted, and counted.
    """
    train, test = table.iloc[task.train], table.iloc[task.test]
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
            "unseen": unseen_classes(train, test, predictors),
            "fit_seconds": seconds,
        }
    )


def unseen_classes(train: pd.DataFrame, test: pd.DataFrame, predictors: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) bool: a test row has a class (a predictor of the schema's kind "class", as land cover) that no training row has."""
    found = np.zeros(len(test), dtype=bool)
    for name in predictors:
        if name in VARIABLES and VARIABLES[name].kind == "class":
            found |= ~test[name].isin(train[name]).to_numpy()
    return found


def tally(predictions: pd.DataFrame) -> dict[str, Any]:
    """What `run_task` gave, as a record of a few numbers that merges with those of other folds: what a ledger holds."""
    first = predictions.iloc[0]
    record = {
        "model": str(first["model"]),
        "split": str(first["split"]),
        "fold": int(first["fold"]),
        "sums": score_sums(predictions["reference"], predictions["estimate"]).tolist(),
        "fit_seconds": float(first["fit_seconds"]),
    }
    return record | ({"unseen": int(predictions["unseen"].sum())} if "unseen" in predictions else {})


def score_table(tallies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per model and split, in order of appearance: scores of all its folds' test rows together.

    tallies : of `tally`. Columns model, split, `SCORES`, n, folds, fit_seconds (of all folds), and unseen where they have it: rows
    of a class that their fold's training rows lack.
    """
    folds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in tallies:
        folds.setdefault((record["model"], record["split"]), []).append(record)
    rows: list[dict[str, Any]] = []
    for (model, split), parts in folds.items():
        scores = _scores(merge_sums([part["sums"] for part in parts]))
        seconds = sum(part["fit_seconds"] for part in parts)
        rows.append({"model": model, "split": split, **scores, "folds": len(parts), "fit_seconds": seconds})
        if "unseen" in parts[0]:
            rows[-1]["unseen"] = sum(part["unseen"] for part in parts)
    return pd.DataFrame(rows)


def split_table(tallies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The training table: `score_table` with what the paper states beside it, NaN where it states nothing.

    Further columns paper_rmse, paper_mae, paper_cc, paper_r2, on rows of the random split, as that is the paper's.
    """
    table = score_table(tallies)
    pairs = list(zip(table["model"], table["split"], strict=True))
    for score in PAPER_SCORES:
        table[f"paper_{score}"] = [PAPER.get(pair, {}).get(score, np.nan) for pair in pairs]
    return table


def split_gap(scores: pd.DataFrame) -> pd.DataFrame:
    """What a random split hides: RMSE of each blocked split over that of the random one.

    scores : of `score_table` or `split_table`. Columns model, random (its RMSE), then one a blocked split, in order of appearance; NaN
    where a model lacks one. No rows where no model was scored on a random split.
    """
    wide = scores.pivot(index="model", columns="split", values="rmse").reindex(scores["model"].unique())
    if "random" not in wide:
        return pd.DataFrame({"model": [], "random": []})
    blocked = [name for name in scores["split"].unique() if name != "random"]
    ratios = wide[blocked].div(wide["random"], axis=0)
    return pd.concat([wide["random"], ratios], axis=1).rename_axis(columns=None).reset_index()


def check_table(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column, has a missing or infinite value in one, or weights (`weight`) that cannot be."""
    absent = [name for name in columns if name not in table]
    if absent:
        raise InputError(f"the sample table lacks {', '.join(absent)}; it has {', '.join(map(str, table.columns))}")
    bad = {name: int((~np.isfinite(table[name].to_numpy(np.float64))).sum()) for name in columns}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        found = ", ".join(f"{name} in {count}" for name, count in bad.items())
        raise InputError(f"{found} of {len(table)} rows of the sample table is not finite; leave those rows out")
    if "weight" in table:
        weight = table["weight"].to_numpy(np.float64)
        wrong = int((~(np.isfinite(weight) & (weight >= 0))).sum())
        if wrong or not (weight > 0).any():
            what = f"is negative or not finite in {wrong}" if wrong else "is above 0 in none"
            raise InputError(
                f"weight {what} of {len(table)} rows of the sample table; weights are numbers >= 0, some above 0"
            )


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
    labels = group_labels(groups, len(X))
    if folds < 2 or len(X) < 2:
        raise InputError(f"inner scores need two rows and two folds; got {len(X)} rows, {folds} folds")
    dealt = np.arange(len(X), dtype=np.int64) if labels is None else labels
    parts = []
    for number, (train, test) in enumerate(inner_folds(dealt, folds, np.random.default_rng(seed))):
        for name, settings in models.items():
            weight = None if sample_weight is None else sample_weight[train]
            inside = None if labels is None else labels[train]
            model, seconds = fit_fold(name, settings, X[train], y[train], inside, weight, seed)
            columns = {"row": test, "reference": y[test], "estimate": model.predict(X[test])}
            parts.append(
                tally(
                    pd.DataFrame({"model": name, "split": "inner", "fold": number, **columns, "fit_seconds": seconds})
                )
            )
    return score_table(parts)


def choose_best(scores: pd.DataFrame) -> str:
    """The model with the lowest inner RMSE, the first of equals, of `inner_scores`' table; never a baseline.

    Raises
    ------
    InputError : no model's score is finite.
    """
    found = dict(zip(scores["model"], scores["rmse"].astype(float), strict=True))
    able = {name: rmse for name, rmse in found.items() if np.isfinite(rmse) and name not in BASELINES}
    if not able:
        raise InputError(f"no model has a finite inner score to choose by; got {found}")
    return min(able, key=lambda name: able[name])
