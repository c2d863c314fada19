"""A training table of one's own: read and described; trained on as every other; reported without a map."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from smscale import store
from smscale.config import Recipe, Table, with_environment
from smscale.errors import RecipeError
from smscale.evaluate import correlations, write_report
from smscale.evaluate import figures as draw
from smscale.pipeline.drawing import draw_training
from smscale.pipeline.page import model_tables, provenance, recipe_values
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run, sealed
from smscale.pipeline.run_page import FROM_REPORT
from smscale.pipeline.table_reading import WORDS, constant_columns, needed_columns, open_table, readable, samples_of
from smscale.pipeline.train import train
from smscale.places import write_bytes
from smscale.store_inspection import file_checksum

Stage = Callable[[Run], dict[str, Any]]


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe with a table, in order."""
    return {"match": read, "train": train, "evaluate": evaluate}


def read(run: Run) -> dict[str, Any]:
    """Make samples.parquet of the recipe's table; the report says what was left out."""
    recipe, spec = run.recipe, _spec(run.recipe)
    path = _file(recipe)
    made_from = file_checksum(path)  # all of it: a value changed in the middle is another table
    fingerprint = store.fingerprint("table", 2, made_from, recipe.part("table", "predictors"))

    def work() -> dict[str, Any]:
        table, flow, missing = samples_of(
            open_table(path), spec, recipe.predictors, path.name, needed_columns(recipe.split)
        )
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        write_bytes(run.workspace.samples_path, content.getvalue())
        found = correlations(table, recipe.target, list(recipe.predictors), {"total": np.ones(len(table), bool)})
        return {
            "flow": flow,
            "missing": missing,
            "constant": constant_columns(table, recipe.predictors),
            "samples": len(table),
            "correlations": records(found),
            "files": sealed(run.workspace, "samples.parquet"),
        }

    return run.stage("match", fingerprint, lambda: None, work)


def _spec(recipe: Recipe) -> Table:
    if recipe.table is None:
        raise RecipeError(f"{recipe.path}: key table is missing")
    return recipe.table


def _file(recipe: Recipe) -> Path:
    given = _spec(recipe).file
    text, unset = with_environment(given)
    if unset:
        raise RecipeError(
            f"table.file is {given} but {unset[0]} is not set: set it in the environment, or --set table.file=PATH"
        )
    return readable(recipe.resolve(text))


def evaluate(run: Run) -> dict[str, Any]:
    """Draw, and write report/index.html and report/metrics.json."""
    recipe = run.recipe
    fingerprint = store.fingerprint("table-evaluate", 1, run.upstream("train"), recipe.part("name", "title", "assumed"))

    def work() -> dict[str, Any]:
        matched, trained = run.report("match"), run.report("train")
        with run.workspace.report_to_write() as folder:
            _write(run, folder, matched, trained)
        return {"splits": trained["splits"], "validation": trained["validation"], "best": trained["best"]}

    return run.stage("evaluate", fingerprint, lambda: None, work)


def _write(run: Run, folder: Path, matched: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    recipe, spec = run.recipe, _spec(run.recipe)
    figures, units = folder / "figures", spec.units.get(recipe.target, "")
    shown = [_flow(matched, figures), _correlations(matched, recipe, figures), *draw_training(trained, figures, units)]
    metrics = {
        "name": recipe.name,
        "target": recipe.target,
        "samples": matched["flow"],
        "models": {
            k: trained[k]
            for k in ("rows", "validation", "training", "inner", "splits", "gap", "best", "chosen", "blocks")
        },
    }
    split = recipe.split
    write_report(
        folder,
        recipe.title or recipe.name,
        metrics,
        tables=model_tables(metrics["models"], units),
        figures=shown,
        data_notes=_notes(matched, Path(spec.file).name),
        provenance=provenance(recipe),
        run_page=FROM_REPORT,
        summary=(
            f"{recipe.target} from {len(recipe.predictors)} predictors: {matched['samples']} of {matched['flow']['all']} rows. "
            f"The best model on inner folds is {trained['best']}."
        ),
        headline={"target": recipe.target, "samples": matched["samples"], "best model": trained["best"]},
        method={
            "table": f"{Path(spec.file).name}; predictors {', '.join(recipe.predictors)}.",
            "train": f"{', '.join(recipe.models)} on {trained['rows']['training']} rows; {split.validation} split, {trained['rows']['validation']} for validation.",
            "blocks": trained["blocks"],
        },
        recipe=yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True),
    )


def _notes(matched: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    missing = {f"rows without {column}": count for column, count in matched["missing"].items()}
    constant = {f"{column} has one value: no model can use it": matched["samples"] for column in matched["constant"]}
    return [{"file": name, "what": what, "count": count} for what, count in (missing | constant).items()]


def _flow(matched: Mapping[str, Any], folder: Path) -> tuple[str, str, str]:
    draw.sample_flow({"rows": matched["flow"]}, folder / "sample-flow.png", reasons=WORDS, title="What each step kept")
    return "sample-flow.png", "Sample flow", "Rows of the table that each sieve leaves."


def _correlations(matched: Mapping[str, Any], recipe: Recipe, folder: Path) -> tuple[str, str, str]:
    found = pd.DataFrame(matched["correlations"])
    draw.correlation_bars(found, folder / "correlations.png", title=f"Predictors and {recipe.target}")
    return "correlations.png", "Correlations", f"Pearson correlation of each predictor with {recipe.target}."
