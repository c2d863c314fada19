"""A training table of one's own, from a file to samples: read, sieved, every row that is left out counted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from smscale import schema
from smscale.config import TABLE_COLUMNS, Split, Table
from smscale.errors import InputError

#: Share of the days of a trailing sum that must be known; their mean stands for the others.
KNOWN_DAYS = 0.8
#: Why a sieve leaves rows out.
WORDS = {
    "target": "no target",
    "valid": "target out of table.valid",
    "predictors": "a predictor is missing",
    "places": "no coordinates",
    "labels": "no station or date",
    "repeats": "a row that is there twice",
    "days": "day not taken (table.every)",
    "samples": "no weight",
}
#: Columns that a split cannot do without; places are (row, col) or (longitude, latitude).
NEEDS = {
    "time-block": ("local_date",),
    "space-block": ("row",),
    "station-block": ("station",),
    "space-time": ("row", "local_date"),
}
#: What a parquet file begins with, whatever it is called, and a workbook; bytes of a file's head that are looked at.
PARQUET, ZIP, HEAD = b"PAR1", b"PK\x03\x04", 65536


def readable(path: Path) -> Path:
    """The path itself, where a file is there."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such table"
        raise InputError(f"{path}: {what}; set table.file to a parquet or CSV file")
    return path


def open_table(path: Path) -> pd.DataFrame:
    """The table in a parquet or CSV file.

    Raises
    ------
    InputError
        in one line, where it is neither, or a CSV with other separators than commas, or with a column twice.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    try:
        if head.startswith(PARQUET) or path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        if b"\0" in head or head.startswith(ZIP):
            raise ValueError("binary")
        _check_header(head.decode("utf-8-sig", errors="ignore").split("\n")[0], path)
        return pd.read_csv(path, low_memory=False)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a parquet or CSV table (no UTF-8 text); save it as CSV in UTF-8") from None
    except (OSError, ValueError, pd.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a parquet or CSV table ({' '.join(str(error).split())})") from None


def _check_header(line: str, path: Path) -> None:
    """Refuse other separators than commas, and a name given twice, which pandas would change in silence."""
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if mark in line and "," not in line:
            raise InputError(f"{path}: its columns lie between {word}; save it with commas, and points in its decimals")
    names = [name.strip('"') for name in line.strip().split(",")]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: column {twice} is there twice; name each column once")


def needed_columns(split: Split) -> dict[str, str]:
    """Column of the table -> the split of a recipe that needs it."""
    named = {"split.validation": split.validation, "split.inner": split.inner}
    wanted = [*named.items(), *(("split.compare", how) for how in split.compare)]
    return {column: f"{key} {how}" for key, how in reversed(wanted) for column in NEEDS.get(how or "", ())}


def samples_of(
    raw: pd.DataFrame,
    spec: Table,
    predictors: Sequence[str],
    name: str = "the table",
    needed: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """A file's table as the models take it.

    Parameters
    ----------
    needed : of `needed_columns`: what the table must have

    Returns
    -------
    table : target and predictors as numbers, all finite, and those of `TABLE_COLUMNS` that the file has
    flow : rows left after each sieve, in order
    missing : predictor -> rows that lack it, of those with a target

    Raises
    ------
    InputError
        in one line, where a column is not there or holds no numbers, the target is constant or a predictor, or no row is left.
    """
    if raw.empty:
        raise InputError(f"{name} has no rows")
    table = _dated(_renamed(raw, spec, name), name)
    _require(table, [spec.target, *spec.history], name)
    _check_roles(raw, spec, predictors, name)
    places = [c for c in ("longitude", "latitude", "row", "col") if c in table]
    table = table.assign(**{c: _numbers(table[c], c, name) for c in (*places, *spec.history)})
    table = _with_season(_with_history(table, spec.history, name))
    _require(table, predictors, name)
    _require_needed(table, needed or {}, name)
    numbers = table.assign(**{c: _numbers(table[c], c, name) for c in (spec.target, *predictors)})
    known = _float32(numbers[list(predictors)])
    sieves = _sieves(numbers, spec, known, places, name)
    missing = {str(c): int((sieves["target"] & ~known[:, i]).sum()) for i, c in enumerate(predictors)}
    kept, flow = np.ones(len(numbers), bool), {"all": len(numbers)}
    for step, sieve in sieves.items():
        kept &= sieve
        flow[step] = int(kept.sum())
    if not kept.any():
        raise InputError(f"{name}: no row is left, {_why_none(flow, numbers[spec.target], spec, missing)}")
    columns = dict.fromkeys([*(c for c in TABLE_COLUMNS if c in numbers), *predictors, spec.target])
    samples = numbers.loc[kept, list(columns)].reset_index(drop=True)
    _check_signal(samples, spec.target, predictors, name)
    return samples, flow, {k: v for k, v in missing.items() if v}


def constant_columns(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those that have one value alone."""
    return [name for name in columns if np.ptp(table[name].to_numpy()) == 0]


def _sieves(table: pd.DataFrame, spec: Table, known: np.ndarray, places: list[str], name: str) -> dict[str, np.ndarray]:
    """Step -> the rows (n,) that it lets through, in order; some steps only where they leave any out."""
    values = table[spec.target].to_numpy()
    sieves: dict[str, Any] = {"target": _float32(table[[spec.target]])[:, 0]}
    if spec.valid is not None:
        sieves["valid"] = (values >= spec.valid[0]) & (values <= spec.valid[1])
    sieves["predictors"] = known.all(axis=1)
    if places:
        sieves["places"] = np.isfinite(table[places].to_numpy()).all(axis=1)
    labelled = table[[c for c in ("station", "local_date") if c in table]].notna().all(axis=1).to_numpy()
    if not labelled.all():
        sieves["labels"] = labelled
    if (again := table.duplicated()).any():
        sieves["repeats"] = (~again).to_numpy()
    if spec.every > 1:
        _require(table, ["local_date"], f"{name} (for table.every)")
        dates = table["local_date"]
        sieves["days"] = ((dates - dates.min()).dt.days % spec.every == 0).to_numpy()  # false where there is no date
    if "weight" in table:
        weight = _numbers(table["weight"], "weight", name)
        sieves["samples"] = np.isfinite(weight) & (weight > 0)
    return sieves


def _float32(table: pd.DataFrame) -> np.ndarray:
    """(n, k) bool: a value that is there, and that models, which read float32, can hold."""
    with np.errstate(over="ignore"):
        return np.isfinite(table.to_numpy(np.float64).astype(np.float32))


def _why_none(flow: Mapping[str, int], target: pd.Series, spec: Table, missing: Mapping[str, int]) -> str:
    steps = list(flow)
    last = next(step for step in steps if not flow[step])
    found = f"{WORDS[last]} in all {flow[steps[steps.index(last) - 1]]}"
    worst = max(missing, key=lambda c: missing[c], default="")
    more = {
        "target": f"{spec.target} holds no finite number that float32 can hold",
        "valid": f"{spec.target} lies between {target.min():g} and {target.max():g}",
        "predictors": f"most often {worst}, in {missing.get(worst, 0)} rows",
        "samples": "weights are numbers above 0",
    }
    return f"{found} ({' -> '.join(f'{step} {n}' for step, n in flow.items())})" + (
        f"; {more[last]}" if last in more else ""
    )


# -- columns -------------------------------------------------------------------------------------


def _renamed(raw: pd.DataFrame, spec: Table, name: str) -> pd.DataFrame:
    """The table with the standard columns beside its own."""
    absent = [theirs for theirs in spec.columns.values() if theirs not in raw]
    if absent:
        raise InputError(f"{name} lacks {', '.join(absent)} (table.columns); {_offer(absent[0], raw)}")
    return raw.assign(**{ours: raw[theirs] for ours, theirs in spec.columns.items()})


def _require(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    absent = [column for column in columns if column not in table]
    if absent:
        raise InputError(f"{name} lacks {', '.join(absent)}; {_offer(absent[0], table)}")


def _offer(absent: str, table: pd.DataFrame) -> str:
    """What there is, and what may have been meant."""
    there = [str(column) for column in table.columns]
    near = difflib.get_close_matches(absent, there, 1)
    shown = ", ".join(repr(column) if column != column.strip() else column for column in there)
    return f"it has {shown}" + (f"; did you mean {near[0]!r}?" if near else "")


def _require_needed(table: pd.DataFrame, needed: Mapping[str, str], name: str) -> None:
    for column, split in needed.items():
        either = [("row", "col"), ("longitude", "latitude")] if column == "row" else [(column,)]
        if not any(set(names) <= set(table.columns) for names in either):
            wanted = " or ".join(" and ".join(names) for names in either)
            raise InputError(
                f"{name} has no {wanted}, which {split} needs; say in table.columns what the file calls it, or take another split"
            )


def _check_roles(raw: pd.DataFrame, spec: Table, predictors: Sequence[str], name: str) -> None:
    """Refuse what would tell the models the target, and units of nothing."""
    if spec.target in spec.history:
        raise InputError(f"table.history.{spec.target}: sums up to a row's own day hold its target; sum another column")
    hidden = [p for p in predictors if spec.columns.get(p) == spec.target]
    if hidden:
        raise InputError(f"predictor {hidden[0]} is the target {spec.target} itself (table.columns); leave it out")
    over = [f"{c}_{days}d" for c, lengths in spec.history.items() for days in lengths if f"{c}_{days}d" in raw]
    if over:
        raise InputError(f"{name} has a column {over[0]} already, which table.history would write over; rename it")
    for column in spec.units:
        if column not in (spec.target, *predictors) and column not in raw:
            near = difflib.get_close_matches(column, [spec.target, *predictors], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"table.units has {column}, which is neither the target nor a column{hint}")


def _check_signal(samples: pd.DataFrame, target: str, predictors: Sequence[str], name: str) -> None:
    """Refuse a table in which nothing can be learned, or nothing need be."""
    if len(samples) < 2:
        return
    if constant_columns(samples, [target]):
        value = samples[target].iloc[0]
        raise InputError(f"{name}: {target} is {value:g} in all {len(samples)} rows; there is nothing to learn")
    if len(constant_columns(samples, predictors)) == len(predictors):
        raise InputError(f"{name}: each predictor has one value in all {len(samples)} rows; give some that vary")
    same = [p for p in predictors if np.array_equal(samples[p].to_numpy(), samples[target].to_numpy())]
    if same:
        raise InputError(f"{name}: predictor {same[0]} equals the target in all {len(samples)} rows; leave it out")


def _numbers(column: pd.Series, label: str, name: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(
            f"{name}: column {label} holds dates; a predictor is a number, as day_of_year_sin and _cos are"
        )
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        wrong = column.notna() & pd.to_numeric(column, errors="coerce").isna()
        shown = column[wrong] if wrong.any() else column
        text = str(shown.iloc[0])
        fix = "code classes as numbers, leave what is missing empty"
        if re.fullmatch(r"-?\d+,\d+", text):
            fix = "write decimals with a point"
        raise InputError(
            f"{name}: column {label} holds no numbers, as {text!r}, in {len(shown)} of {len(column)} rows; {fix}"
        ) from None


# -- dates ---------------------------------------------------------------------------------------


def _dated(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with `local_date` as dates, from that column or, where there is none, `time`."""
    source = "local_date" if "local_date" in table else "time" if "time" in table else None
    if source is None:
        return table
    given = table[source]
    if pd.api.types.is_numeric_dtype(given):  # 20170610 is read as a date, 161 is not
        given = given.astype("Int64" if (given.dropna() % 1 == 0).all() else object).astype("string")
    try:
        dates = pd.to_datetime(given, format="ISO8601").dt.normalize()
    except (ValueError, TypeError, AttributeError):
        wrong = given[given.notna() & pd.to_datetime(given, format="ISO8601", errors="coerce", utc=True).isna()]
        found = f"as {str((wrong if len(wrong) else given).iloc[0])!r}, in {len(wrong)} of {len(given)} rows"
        raise InputError(f"{name}: {source} holds no dates, {found}; write them as 2017-06-10") from None
    if dates.dt.tz is not None:
        raise InputError(f"{name}: {source} has a time zone; give local_date, the local solar date, without one")
    return table.assign(local_date=dates.astype("datetime64[s]"))


def _with_history(table: pd.DataFrame, history: Mapping[str, Any], name: str) -> pd.DataFrame:
    """Trailing sums by station; a window with fewer than `KNOWN_DAYS` of its days is missing."""
    if not history:
        return table
    _require(table, ["station", "local_date"], f"{name} (for table.history)")
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
