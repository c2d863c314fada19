"""train: the table to fitted models, scored on rows that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from smscale import store
from smscale.blocks import Task
from smscale.config import Split
from smscale.errors import InputError
from smscale.models import save_model, selection, splits
from smscale.models.zoo import importances
from smscale.pipeline.plain import plain, records
from smscale.pipeline.run import Run, sealed
from smscale.workspace import Workspace

TARGET = "soil_moisture"
#: Training rows for each inner fold without which no model is fitted: a fold of fewer scores nothing.
ROWS_PER_FOLD = 4


def train(run: Run) -> dict[str, Any]:
    """Fit every model on the training side; the report has validation scores, inner scores and the best by those."""
    recipe = run.recipe
    predictors = list(recipe.predictors)
    fingerprint = store.fingerprint(
        "train", 1, run.upstream("match"), recipe.part("predictors", "split", "models", "seed")
    )
    root = str(run.workspace.root)

    def work() -> dict[str, Any]:
        table = run.workspace.samples
        selection.check_table(table, [*predictors, TARGET])
        _refuse_too_few(table, recipe.split, recipe.seed)
        tasks = []
        for name, settings in recipe.models.items():
            given = (root, name, dict(settings), predictors, recipe.split, recipe.seed)
            tasks.append(Task(f"fit/{name}", fit_task, given, fingerprint))
            tasks.append(Task(f"inner/{name}", inner_task, given, fingerprint))
        compared = compared_tasks(recipe.models, table, recipe.split, recipe.seed)
        for i, task in enumerate(compared):
            tasks.append(
                Task(
                    f"split/{i}-{task.split}-{task.fold}-{task.model}",
                    split_task,
                    (root, i, dict(recipe.models), predictors, recipe.split, recipe.seed),
                    fingerprint,
                )
            )
        results = run.blocks("train", tasks)
        return {**_report(run, table, results, compared), "files": sealed(run.workspace, "models")}

    return run.stage("train", fingerprint, lambda: None, work)


def _refuse_too_few(table: pd.DataFrame, split: Split, seed: int) -> None:
    known, unseen = (len(side) for side in sides(table, split, seed)) if len(table) > 1 else (0, 0)
    least = ROWS_PER_FOLD * split.inner_folds
    if known < least or unseen < 1:
        raise InputError(
            f"{len(table)} samples are too few to train on: {known} train, at least {least} must (split.inner_folds {split.inner_folds}), "
            f"{unseen} validate; lengthen the period, widen the region or lower match.min_lst_valid_fraction"
        )


def sides(table: pd.DataFrame, split: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the validation side."""
    per_split: dict[str, dict[str, Any]] = {
        "random": {"fraction": split.fraction},
        "time-block": {"days": split.block_days},
        "space-block": {"cells": split.block_cells},
    }
    settings = per_split[split.validation]
    if split.validation != "random":
        settings["n_splits"] = max(2, round(1 / split.fraction))
    train_rows, validation_rows = next(iter(splits.make_split(split.validation, seed=seed, **settings).split(table)))
    return train_rows, validation_rows


def fit_task(
    root: str, name: str, settings: Mapping[str, Any], predictors: Sequence[str], split: Split, seed: int
) -> dict[str, Any]:
    """Fit one model on the training side, keep it as an artefact, score it on the validation side."""
    workspace = Workspace(Path(root))
    table = workspace.samples
    train_rows, validation_rows = sides(table, split, seed)
    known, unseen = table.iloc[train_rows], table.iloc[validation_rows]
    model, seconds = selection.fit_fold(
        name,
        settings,
        _matrix(known, predictors),
        _target(known),
        _groups(known, split),
        known["weight"].to_numpy(np.float64),
        seed,
    )
    scores = selection.score_fold(unseen[TARGET], model.predict(_matrix(unseen, predictors)))
    training = selection.score_fold(known[TARGET], model.predict(_matrix(known, predictors)))
    influence = importances(model, _matrix(unseen, predictors), _target(unseen), list(predictors), seed=seed, repeats=3)
    extra = {
        "validation": plain(scores),
        "training": plain(training),
        "split": split.validation,
        "rows": len(known),
        "seed": seed,
    }
    save_model(workspace.model(name), model, list(predictors), known[list(predictors)], extra, kind=name, name=name)
    return {
        "validation": plain(scores),
        "training": plain(training),
        "traces": traces_of(model),
        "importances": {
            column: plain(influence[column].to_dict()) for column in influence if column != "permutation_std"
        },
        "chosen": plain(getattr(model, "best_params_", {}) or {}),
        "seconds": seconds,
    }


def inner_task(
    root: str, name: str, settings: Mapping[str, Any], predictors: Sequence[str], split: Split, seed: int
) -> dict[str, Any]:
    """Score one model on inner folds of the training side: what models are compared by."""
    table = Workspace(Path(root)).samples
    known = table.iloc[sides(table, split, seed)[0]]
    groups = _groups(known, split)
    rows = selection.inner_scores(
        {name: settings},
        _matrix(known, predictors),
        _target(known),
        groups,
        known["weight"].to_numpy(np.float64),
        folds=split.inner_folds,
        seed=seed,
    )
    return {"rows": records(rows.drop(columns="fit_seconds"))}


def split_task(
    root: str, i: int, models: Mapping[str, Mapping[str, Any]], predictors: Sequence[str], split: Split, seed: int
) -> dict[str, Any]:
    """Predictions of one model on one fold of one split: the i-th that the recipe compares, made again from the table."""
    table = Workspace(Path(root)).samples
    task = compared_tasks(models, table, split, seed)[i]
    found = selection.run_task(task, table, list(predictors), TARGET, _blocks(split))
    return {"estimate": found["estimate"].tolist()}


def predicted(table: pd.DataFrame, task: selection.Task, found: Mapping[str, Any]) -> pd.DataFrame:
    """What `selection.score_table` takes, from a `split_task`'s estimates; how long a fit took is no part of a report."""
    columns = {"model": task.model, "split": task.split, "fold": task.fold, "row": task.test, "fit_seconds": 0.0}
    return pd.DataFrame({**columns, "reference": _target(table.iloc[task.test]), "estimate": found["estimate"]})


def compared_tasks(
    models: Mapping[str, Mapping[str, Any]], table: pd.DataFrame, split: Split, seed: int
) -> list[selection.Task]:
    """Tasks of the splits that the recipe compares side by side."""
    settings: dict[str, dict[str, Any]] = {
        "random": {"fraction": split.fraction},
        "time-block": {"days": split.block_days, "n_splits": split.folds},
        "space-block": {"cells": split.block_cells, "n_splits": split.folds},
        "space-time": {"cells": split.block_cells, "days": split.block_days, "n_splits": split.folds},
    }
    wanted: dict[str, splits.Splitter] = {
        name: splits.make_split(name, seed=seed, **settings[name]) for name in split.compare
    }
    return selection.plan_tasks({n: dict(s) for n, s in models.items()}, table, wanted, seed)


def _blocks(split: Split) -> dict[str, Any]:
    return {"cells": split.block_cells, "days": split.block_days}


def _groups(table: pd.DataFrame, split: Split) -> np.ndarray | None:
    """Blocks that inner folds keep whole."""
    how = split.validation if split.inner is None else split.inner
    return None if how == "random" else splits.inner_groups(table, how, **_blocks(split))


def _matrix(table: pd.DataFrame, predictors: Sequence[str]) -> np.ndarray:
    return table[list(predictors)].to_numpy(np.float32)


def _target(table: pd.DataFrame) -> np.ndarray:
    return table[TARGET].to_numpy(np.float64)


def traces_of(model: Any) -> dict[str, dict[str, list[float | None]]]:
    """Curves that a model kept of its training; of an ensemble those of its first member."""
    curves: dict[str, Mapping[str, Any]] = {}
    if hasattr(model, "ga_trace_"):
        first = model.ga_trace_[0]
        curves["genetic algorithm"] = {"best": first.best, "mean": first.mean}
        entries = model.lm_trace_[0]
        curves["Levenberg-Marquardt"] = {
            "training_mse": [e.mse for e in entries],
            "validation_mse": [e.validation_mse for e in entries],
        }
    elif hasattr(model, "history_"):
        curves["epochs"] = {name: values for name, values in model.history_.items() if name != "epoch"}
    return {title: {name: _floats(values) for name, values in lines.items()} for title, lines in curves.items()}


def _floats(values: Any) -> list[float | None]:
    return [float(v) if v is not None and np.isfinite(v) else None for v in values]


def _report(
    run: Run, table: pd.DataFrame, results: Mapping[str, Any], compared: Sequence[selection.Task]
) -> dict[str, Any]:
    models = list(run.recipe.models)
    inner = pd.DataFrame([row for name in models for row in results[f"inner/{name}"]["rows"]])
    predictions = []
    for i, task in enumerate(compared):
        found = results[f"split/{i}-{task.split}-{task.fold}-{task.model}"]
        predictions.append(predicted(table, task, found))
    train_rows, validation_rows = sides(table, run.recipe.split, run.recipe.seed)
    return {
        "rows": {"training": len(train_rows), "validation": len(validation_rows)},
        "validation": [
            {"model": name, "split": run.recipe.split.validation, **results[f"fit/{name}"]["validation"]}
            for name in models
        ],
        "training": [{"model": name, **results[f"fit/{name}"]["training"]} for name in models],
        "inner": records(inner),
        "splits": records(selection.score_table(predictions).drop(columns="fit_seconds")) if predictions else [],
        "best": selection.choose_best(inner),
        "traces": {name: results[f"fit/{name}"]["traces"] for name in models},
        "importances": {name: results[f"fit/{name}"]["importances"] for name in models},
        "chosen": {name: results[f"fit/{name}"]["chosen"] for name in models},
    }
