"""A training table of one's own: read, sieved and described; trained on as every other; reported without a map."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from smscale import blocks, schema, store
from smscale.config import TABLE_COLUMNS, Recipe, Table, with_environment
from smscale.errors import InputError, RecipeError
from smscale.evaluate import correlations, write_report
from smscale.evaluate import figures as draw
from smscale.pipeline.drawing import draw_training
from smscale.pipeline.page import model_tables, provenance, recipe_values
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run, sealed
from smscale.pipeline.train import train
from smscale.store_inspection import file_checksum

Stage = Callable[[Run], dict[str, Any]]

#: Share of the days of a trailing sum that must be known; their mean stands for the others.
KNOWN_DAYS = 0.8
WORDS = {
    "target": "no target",
    "valid": "target out of table.valid",
    "predictors": "a predictor is missing",
    "places": "no coordinates",
    "repeats": "a row that is there twice",
    "days": "day not taken (table.every)",
    "samples": "no weight",
}


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe with a table, in order."""
    return {"match": read, "train": train, "evaluate": evaluate}


def read(run: Run) -> dict[str, Any]:
    """Make samples.parquet of the recipe's table; the report says what was left out."""
    recipe, spec = run.recipe, _spec(run.recipe)
    path = _file(recipe)
    made_from = file_checksum(path)  # all of it: a value changed in the middle is another table
    fingerprint = store.fingerprint("table", 1, made_from, recipe.part("table", "predictors"))

    def work() -> dict[str, Any]:
        table, flow, missing = samples_of(_open(path), spec, recipe.predictors, path.name)
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        blocks.write_bytes(run.workspace.samples_path, content.getvalue())
        found = correlations(table, recipe.target, list(recipe.predictors), {"total": np.ones(len(table), bool)})
        return {
            "flow": flow,
            "missing": missing,
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
    path = recipe.resolve(text)
    if not path.is_file():
        raise InputError(f"{path}: no such table; set table.file to a parquet or CSV file")
    return path


def _open(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a parquet or CSV table ({' '.join(str(error).split())})") from None


def samples_of(
    raw: pd.DataFrame, spec: Table, predictors: Sequence[str], name: str = "the table"
) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """A file's table as the models take it.

    Returns
    -------
    table : target and predictors as numbers, all finite, and those of `TABLE_COLUMNS` that the file has
    flow : rows left after each sieve, in order
    missing : predictor -> rows that lack it, of those with a target

    Raises
    ------
    InputError
        in one line, where a column is not there or holds no numbers, or no row is left.
    """
    renamed = _renamed(raw, spec, name)
    _require(renamed, [spec.target, *spec.history], name, spec.columns)
    places = [c for c in ("longitude", "latitude", "row", "col") if c in renamed]
    renamed = renamed.assign(**{c: _numbers(renamed[c], c, name) for c in (*places, *spec.history)})
    table = _with_history(renamed, spec.history, name)
    table = _with_season(table)
    _require(table, predictors, name, spec.columns)
    numbers = table.assign(**{c: _numbers(table[c], c, name) for c in (spec.target, *predictors)})
    values = numbers[spec.target].to_numpy()
    sieves = {"target": np.isfinite(values)}
    if spec.valid is not None:
        sieves["valid"] = (values >= spec.valid[0]) & (values <= spec.valid[1])
    with np.errstate(over="ignore"):  # the models read float32: what is beyond it is missing
        known = np.isfinite(numbers[list(predictors)].to_numpy().astype(np.float32))
    sieves["predictors"] = known.all(axis=1)
    if places:
        sieves["places"] = np.isfinite(numbers[places].to_numpy()).all(axis=1)
    if (again := numbers.duplicated().to_numpy()).any():
        sieves["repeats"] = ~again
    if spec.every > 1:
        _require(numbers, ["local_date"], f"{name} (for table.every)", {})
        dates = numbers["local_date"]
        sieves["days"] = ((dates - dates.min()).dt.days % spec.every == 0).to_numpy()  # false where there is no date
    if "weight" in numbers:
        sieves["samples"] = _numbers(numbers["weight"], "weight", name) > 0
    kept, flow = np.ones(len(numbers), bool), {"all": len(numbers)}
    missing = {str(c): int((sieves["target"] & ~known[:, i]).sum()) for i, c in enumerate(predictors)}
    for step, sieve in sieves.items():
        kept &= sieve
        flow[step] = int(kept.sum())
    if not kept.any():
        steps = " -> ".join(f"{step} {count}" for step, count in flow.items())
        worst = max(missing, key=lambda c: missing[c])
        raise InputError(f"{name}: no row is left ({steps}); most often missing: {worst}, in {missing[worst]} rows")
    columns = dict.fromkeys([*(c for c in TABLE_COLUMNS if c in numbers), *predictors, spec.target])
    return numbers.loc[kept, list(columns)].reset_index(drop=True), flow, {k: v for k, v in missing.items() if v}


def _renamed(raw: pd.DataFrame, spec: Table, name: str) -> pd.DataFrame:
    """The table with the standard columns beside its own."""
    absent = [theirs for theirs in spec.columns.values() if theirs not in raw]
    if absent:
        raise InputError(f"{name} lacks {', '.join(absent)} (table.columns); it has {', '.join(map(str, raw.columns))}")
    table = raw.assign(**{ours: raw[theirs] for ours, theirs in spec.columns.items()})
    source = "local_date" if "local_date" in table else "time" if "time" in table else None
    if source is None:
        return table
    try:
        dates = pd.to_datetime(table[source], format="ISO8601").dt.normalize()
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: {source} holds no dates ({' '.join(str(error).split())[:80]})") from None
    if dates.dt.tz is not None:
        raise InputError(f"{name}: {source} has a time zone; give local_date, the local solar date, without one")
    return table.assign(local_date=dates.astype("datetime64[s]"))


def _require(table: pd.DataFrame, columns: Sequence[str], name: str, renamed: Mapping[str, str]) -> None:
    absent = [column for column in columns if column not in table]
    if absent:
        there = ", ".join(str(c) for c in table.columns if c not in renamed)
        raise InputError(f"{name} lacks {', '.join(absent)}; it has {there}")


def _numbers(column: pd.Series, label: str, name: str) -> np.ndarray:
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise InputError(f"{name}: column {label} holds no numbers, as {column.iloc[0]!r}") from None


def _with_history(table: pd.DataFrame, history: Mapping[str, Any], name: str) -> pd.DataFrame:
    """Trailing sums by station; a window with fewer than `KNOWN_DAYS` of its days is missing."""
    if not history:
        return table
    _require(table, ["station", "local_date"], f"{name} (for table.history)", {})
    dated = table.dropna(subset=["station", "local_date"])
    if dated.duplicated(["station", "local_date"]).any():
        raise InputError(f"{name}: table.history needs one row for each station and day; some have several")
    found = {}
    wide = dated.pivot(index="local_date", columns="station", values=list(history))
    wide = wide.reindex(pd.date_range(wide.index.min(), wide.index.max()))
    at = (
        wide.index.get_indexer(pd.Index(table["local_date"])),
        wide[next(iter(history))].columns.get_indexer(pd.Index(table["station"])),
    )
    known = (at[0] >= 0) & (at[1] >= 0)  # a row has a date and a station
    for column, lengths in history.items():
        for days in lengths:
            least = max(1, int(np.ceil(KNOWN_DAYS * days)))
            mean = wide[column].astype(float).rolling(days, min_periods=least).mean()
            found[f"{column}_{days}d"] = np.where(known, days * mean.to_numpy()[at], np.nan)
    return table.assign(**found)


def _with_season(table: pd.DataFrame) -> pd.DataFrame:
    if "local_date" not in table:
        return table
    return table.assign(**schema.season_angle(table["local_date"].dt.day_of_year.to_numpy()))


def evaluate(run: Run) -> dict[str, Any]:
    """Draw, and write report/index.html and report/metrics.json."""
    recipe = run.recipe
    fingerprint = store.fingerprint("table-evaluate", 1, run.upstream("train"), recipe.part("name", "title", "assumed"))

    def work() -> dict[str, Any]:
        matched, trained = run.report("match"), run.report("train")
        _write(run, matched, trained)
        return {"splits": trained["splits"], "validation": trained["validation"], "best": trained["best"]}

    return run.stage("evaluate", fingerprint, lambda: None, work)


def _write(run: Run, matched: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    recipe, folder, spec = run.recipe, run.workspace.report, _spec(run.recipe)
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
        data_notes=[
            {"file": Path(spec.file).name, "what": f"rows without {c}", "count": n}
            for c, n in matched["missing"].items()
        ],
        provenance=provenance(recipe),
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


def _flow(matched: Mapping[str, Any], folder: Path) -> tuple[str, str, str]:
    draw.sample_flow({"rows": matched["flow"]}, folder / "sample-flow.png", reasons=WORDS, title="What each step kept")
    return "sample-flow.png", "Sample flow", "Rows of the table that each sieve leaves."


def _correlations(matched: Mapping[str, Any], recipe: Recipe, folder: Path) -> tuple[str, str, str]:
    found = pd.DataFrame(matched["correlations"])
    draw.correlation_bars(found, folder / "correlations.png", title=f"Predictors and {recipe.target}")
    return "correlations.png", "Correlations", f"Pearson correlation of each predictor with {recipe.target}."
