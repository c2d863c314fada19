"""train: the table to fitted models, scored on rows that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from smscale import store
from smscale.blocks import Task
from smscale.config import Recipe, Split
from smscale.errors import InputError
from smscale.models import correlation, save_model, selection, splits, zoo
from smscale.models.cnn.patch import own_name, patch_columns
from smscale.models.record import unit_of
from smscale.pipeline import surroundings
from smscale.pipeline.plain import plain, records
from smscale.pipeline.run import Run, sealed
from smscale.places import write_text
from smscale.workspace import Workspace

#: Training rows for each inner fold without which no model is fitted: a fold of fewer scores nothing.
ROWS_PER_FOLD = 4
#: The table of every model under every split, in the report's folder. It holds how long fits took: no two runs write the same.
SCORES = "training.csv"


@dataclass(frozen=True)
class Training:
    """What every task is made from; the samples lie in the workspace.

    split : the recipe's, its block sizes filled in
    units : of target and predictors, where the schema does not know them
    provenance : what an artefact says of where it comes from
    neighbours : of a patch network, how many values its samples have of neighbouring cells, and for how many the cell itself
        stands in
    """

    root: str
    models: Mapping[str, Mapping[str, Any]]
    predictors: tuple[str, ...]
    target: str
    split: Split
    seed: int
    units: Mapping[str, str]
    provenance: Mapping[str, Any]
    neighbours: Mapping[str, int] = field(default_factory=dict)

    @property
    def workspace(self) -> Workspace:
        return Workspace.at(self.root)

    def sides(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training and of the validation side."""
        blocks = _splitter(self.split, self.split.validation, 2, self.seed)
        return next(iter(splits.hold_out(blocks, self.split.fraction).split(table)))

    def seen_by(self, name: str) -> tuple[Training, pd.DataFrame]:
        """What a model trains on: the samples, and of a patch network the coarse cells around each as further predictors."""
        table, patch = self.workspace.samples, surroundings.patch_of(name, self.models[name])
        if patch == 1:
            return self, table
        columns = patch_columns(self.predictors, patch)
        units = {column: unit_of(own_name(column), self.units) for column in columns}
        wide, filled = surroundings.widened(self.workspace, table, self.predictors, patch)
        stood_in = {"values": int(filled.size * (len(columns) - len(self.predictors))), "stood_in": int(filled.sum())}
        return replace(self, predictors=tuple(columns), units={**self.units, **units}, neighbours=stood_in), wide

    def matrix(self, table: pd.DataFrame) -> np.ndarray:
        return table[list(self.predictors)].to_numpy(np.float32)

    def values(self, table: pd.DataFrame) -> np.ndarray:
        return table[self.target].to_numpy(np.float64)

    def weights(self, table: pd.DataFrame) -> np.ndarray | None:
        return table["weight"].to_numpy(np.float64) if "weight" in table else None

    @property
    def blocks(self) -> dict[str, Any]:
        return {"cells": self.split.block_cells, "days": self.split.block_days}

    def groups(self, table: pd.DataFrame) -> np.ndarray | None:
        """Blocks that inner folds keep whole."""
        how = self.split.validation if self.split.inner is None else self.split.inner
        return None if how == "random" else splits.inner_groups(table, how, **self.blocks)

    def compared(self, table: pd.DataFrame) -> list[selection.Task]:
        """Every model, and what they are compared with, on every fold of the splits that the recipe asks for."""
        wanted: dict[str, splits.Splitter] = {
            name: _splitter(self.split, name, self.split.folds, self.seed) for name in self.split.compare
        }
        models = {name: dict(settings) for name, settings in self.models.items()}
        return selection.plan_tasks(models, table, wanted, self.seed, selection.BASELINES)


def _splitter(split: Split, how: str, folds: int, seed: int) -> splits.Splitter:
    """The splitter of a recipe; the random one draws its rows once."""
    days, cells = {"days": split.block_days}, {"cells": split.block_cells}
    settings: dict[str, dict[str, Any]] = {
        "random": {"fraction": split.fraction},
        "time-block": {"n_splits": folds, **days},
        "space-block": {"n_splits": folds, **cells},
        "station-block": {"n_splits": folds},
        "space-time": {"n_splits": folds, **cells, **days},
    }
    return splits.make_split(how, seed=seed, **settings[how])


def measured_blocks(split: Split, table: pd.DataFrame, target: str, seed: int) -> tuple[Split, str]:
    """The split with block sizes, and where they come from: the recipe, or how far the target is correlated."""
    if split.block_days and split.block_cells:
        return split, f"blocks of {split.block_days} days and {split.block_cells} coarse cells, as the recipe says"
    found = correlation.block_sizes(table, target, max(split.folds, 2), seed=seed)
    days, cells = split.block_days or found.days, split.block_cells or found.cells
    return replace(split, block_days=days, block_cells=cells), found.line


def training_of(recipe: Recipe, workspace: Workspace, made_from: str) -> tuple[Training, str]:
    """What the tasks of a recipe's training share, and how large blocks were chosen."""
    split, line = measured_blocks(recipe.split, workspace.samples, recipe.target, recipe.seed)
    provenance = {
        "recipe": store.fingerprint(recipe.part("predictors", "table", "split", "models", "seed")),
        "data": made_from,
        "period": list(recipe.period or ()),
        "region": list(recipe.region or ()),
        "fine_grid": recipe.part("grid")["grid"],
        "coarse_grid": "EASE-Grid 2.0, 36 km (EPSG:6933)",
        "split": split.validation,
        "seed": recipe.seed,
    }
    if recipe.table is not None:
        for name in ("fine_grid", "coarse_grid", "period", "region"):
            del provenance[name]
    shared = Training(
        str(workspace.root),
        recipe.models,
        recipe.predictors,
        recipe.target,
        split,
        recipe.seed,
        recipe.table.units if recipe.table else {},
        provenance,
    )
    return shared, line


def train(run: Run) -> dict[str, Any]:
    """Fit every model on the training side; the report has validation scores, inner scores and the best by those."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "train", 3, run.upstream("match"), recipe.part("predictors", "table", "split", "models", "seed")
    )

    def work() -> dict[str, Any]:
        table = run.workspace.samples
        selection.check_table(table, [*recipe.predictors, recipe.target])
        how, line = training_of(recipe, run.workspace, run.upstream("match"))
        _refuse_too_few(how, table)
        compared = how.compared(table)  # before anything is fitted: a split may not suit the table
        results = fits(run, how, list(recipe.models), fingerprint)
        tasks = [Task(f"inner/{name}", inner_task, (how, name), fingerprint) for name in recipe.models]
        folds = [
            Task(f"split/{i}-{task.split}-{task.fold}-{task.model}", split_task, (how, i), fingerprint)
            for i, task in enumerate(compared)
        ]
        results |= run.blocks("train", [*tasks, *folds])
        scored = _scored(recipe, [results[task.key] for task in folds]) if folds else pd.DataFrame()
        _write_scores(run, scored)
        return {**_report(how, table, results, scored), "blocks": line, "files": sealed(run.workspace, "models")}

    return run.stage("train", fingerprint, lambda: None, work)


def fits(run: Run, how: Training, names: Sequence[str], fingerprint: str) -> dict[str, Any]:
    """Results of `fit_task`, by key. A model that searches is fitted here, so that its search has all workers."""
    tasks = {name: Task(f"fit/{name}", fit_task, (how, name), fingerprint) for name in names}
    wide = [name for name in names if hasattr(zoo.build(name, how.models[name]), "records")]
    found = run.here("train", [tasks[name] for name in wide], "search")
    return {**found, **run.blocks("train", [tasks[name] for name in names if name not in wide], "fit")}


def _refuse_too_few(how: Training, table: pd.DataFrame) -> None:
    known, unseen = (len(side) for side in how.sides(table)) if len(table) > 1 else (0, 0)
    least = ROWS_PER_FOLD * how.split.inner_folds
    if known < least or unseen < 1:
        more = "give more rows"
        if "region" in how.provenance:
            more = "lengthen the period, widen the region or lower match.min_lst_valid_fraction"
        raise InputError(
            f"{len(table)} sample{'s' * (len(table) != 1)} {'are' if len(table) != 1 else 'is'} too few to train on: {known} train, at least {least} must (split.inner_folds {how.split.inner_folds}), "
            f"{unseen} validate; {more}"
        )


def fit_task(how: Training, name: str) -> dict[str, Any]:
    """Fit one model on the training side, keep it as an artefact, score it on the validation side."""
    (how, table), workspace = how.seen_by(name), how.workspace
    known, unseen = (table.iloc[rows] for rows in how.sides(table))
    model, _ = selection.fit_fold(
        name,
        how.models[name],
        how.matrix(known),
        how.values(known),
        how.groups(known),
        how.weights(known),
        how.seed,
        records=str(workspace.root / "ledger" / "train" / "search" / name),
    )
    scores = {
        side: plain(selection.score_fold(how.values(rows), model.predict(how.matrix(rows))))
        for side, rows in (("validation", unseen), ("training", known))
    }
    with workspace.model_to_write(name) as folder:
        save_model(
            folder,
            zoo.fitted(model),
            list(how.predictors),
            known[list(how.predictors)],
            {**how.provenance, "rows": len(known)},
            scores,
            units=how.units,
            target=how.target,
            name=name,
            kind=name,
        )
    return scores | told(model, how.matrix(unseen), how.values(unseen), how) | {"neighbours": dict(how.neighbours)}


def told(model: Any, X: np.ndarray, y: np.ndarray, how: Training, repeats: int = 3, rows: int = 5000) -> dict[str, Any]:
    """What a fitted model tells of itself: curves, importances on rows X (n, k), y (n,), what it chose.

    Importances of a patch are of a predictor in all its cells: the sum over them.
    """
    influence = zoo.importances(model, X, y, list(how.predictors), seed=how.seed, repeats=repeats, rows=rows)
    influence = influence.groupby(own_name, sort=False).sum(min_count=1)
    search = getattr(model, "inner_table_", None)
    return {
        "traces": traces_of(zoo.fitted(model)),
        "importances": {
            column: plain(influence[column].to_dict()) for column in influence if column != "permutation_std"
        },
        "chosen": plain(getattr(model, "best_params_", {}) or {}),
        "search": [] if search is None else records(search.drop(columns="seconds", errors="ignore")),
    }


def inner_task(how: Training, name: str) -> dict[str, Any]:
    """Score one model on inner folds of the training side: what models are compared by."""
    how, table = how.seen_by(name)
    known = table.iloc[how.sides(table)[0]]
    rows = selection.inner_scores(
        {name: how.models[name]},
        how.matrix(known),
        how.values(known),
        how.groups(known),
        how.weights(known),
        folds=how.split.inner_folds,
        seed=how.seed,
    )
    return {"rows": records(rows.drop(columns="fit_seconds"))}


def split_task(how: Training, i: int) -> dict[str, Any]:
    """The tally of one model on one fold of one split: the i-th that the recipe compares, made again from the table."""
    task = how.compared(how.workspace.samples)[i]
    seen, table = (how, how.workspace.samples) if task.model in selection.BASELINES else how.seen_by(task.model)
    return selection.tally(selection.run_task(task, table, list(seen.predictors), how.target, how.blocks))


def _scored(recipe: Recipe, tallies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of every model under every split; beside it the paper's figures, where they are of the same target."""
    if recipe.table is not None:
        return selection.score_table(tallies)
    return selection.split_table(tallies).dropna(axis=1, how="all")


def _write_scores(run: Run, scored: pd.DataFrame) -> None:
    if scored.empty:
        (run.workspace.report / SCORES).unlink(missing_ok=True)
        return
    run.workspace.report.mkdir(parents=True, exist_ok=True)
    text = scored.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(run.workspace.report / SCORES, text)


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


def _report(how: Training, table: pd.DataFrame, results: Mapping[str, Any], scored: pd.DataFrame) -> dict[str, Any]:
    models = list(how.models)
    inner = pd.DataFrame([row for name in models for row in results[f"inner/{name}"]["rows"]])
    train_rows, validation_rows = how.sides(table)
    between = len(table) - len(train_rows) - len(validation_rows)
    gap = {"gap": between} if between else {}
    fit = {name: results[f"fit/{name}"] for name in models}
    return {
        "rows": {"training": len(train_rows), "validation": len(validation_rows), **gap},
        "validation": [{"model": name, "split": how.split.validation, **fit[name]["validation"]} for name in models],
        "training": [{"model": name, **fit[name]["training"]} for name in models],
        "inner": records(inner),
        "splits": records(scored.drop(columns="fit_seconds", errors="ignore")),
        "gap": records(selection.split_gap(scored)) if len(how.split.compare) > 1 else [],
        "best": selection.choose_best(inner),
        **{
            key: {name: fit[name][key] for name in models}
            for key in ("traces", "importances", "chosen", "search", "neighbours")
        },
    }
