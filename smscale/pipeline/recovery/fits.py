"""train: every model on all coarse cells, the best chosen by folds of space blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smscale import store
from smscale.blocks import Task
from smscale.models import save_model, selection, splits, zoo
from smscale.pipeline.plain import records
from smscale.pipeline.recovery.plan import Variant
from smscale.pipeline.run import Run
from smscale.pipeline.train import Training, split_task, told, training_of
from smscale.places import remove


def train(run: Run, variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Fit every variant on all coarse cells, and score each on folds of space blocks: what the best is chosen by."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "recovery-train", 3, run.upstream("match"), recipe.part("predictors", "recovery", "split", "models", "seed")
    )
    blocked = replace(recipe, split=replace(recipe.split, compare=("space-block",)))

    def work() -> dict[str, Any]:
        table = run.workspace.samples
        shared, line = training_of(blocked, run.workspace, run.upstream("match"))
        fits, folds = [], {}
        for name, variant in variants.items():
            how = replace(shared, models={variant.model: variant.settings}, predictors=variant.predictors)
            fits.append(Task(f"fit/{name}", fit_task, (how, name, variant.model), fingerprint))
            for i, fold in enumerate(how.compared(table)):
                if fold.model == variant.model:
                    folds[name, i] = Task(f"fold/{name}-{i}", split_task, (how, i), fingerprint)
        results = run.blocks("train", [*folds.values(), *fits])
        scored = selection.score_table([results[task.key] | {"model": name} for (name, _), task in folds.items()])
        return {
            "samples": len(table),
            "blocks": line,
            "folds": records(scored.drop(columns="fit_seconds")),
            "best": selection.choose_best(scored),
            **{k: {name: results[f"fit/{name}"][k] for name in variants} for k in ("traces", "importances", "chosen")},
        }

    def prepare() -> None:
        remove(run.workspace.root / "models")

    return run.stage("train", fingerprint, prepare, work)


def fit_task(how: Training, name: str, model: str) -> dict[str, Any]:
    """Fit one variant on every coarse cell and keep it as an artefact."""
    workspace = how.workspace
    table = workspace.samples
    X, y = how.matrix(table), how.values(table)
    groups = splits.inner_groups(table, "space-block", **how.blocks)
    fitted, _ = selection.fit_fold(model, how.models[model], X, y, groups, how.weights(table), how.seed)
    names = list(how.predictors)
    with workspace.model_to_write(name) as folder:
        save_model(
            folder,
            zoo.fitted(fitted),
            names,
            table[names],
            {**how.provenance, "rows": len(table), "split": "none"},
            target=how.target,
            name=name,
            kind=model,
        )
    return told(fitted, X, y, how, repeats=2, rows=2000)
