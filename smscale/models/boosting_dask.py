"""XGBoost on a table that outgrows one worker: tuned on a part of it, grown on all of it by `xgboost.dask`.

Every worker keeps its own rows, and only histograms travel. With one worker of one thread the result is reproducible; with
more, sums are added in no fixed order and the last digits differ between runs, which the model's record says (`workers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import xgboost.dask
from dask.utils import parse_bytes
from sklearn.base import clone

from smscale.errors import InputError
from smscale.models.boosting import BoostedTrees, TunedXGB
from smscale.models.residual_trees import ResidualTrees, linear_part, varying
from smscale.models.samples import Samples, group_labels
from smscale.models.search.settings import plain_seed
from smscale.models.tree_arrays import Linear

#: Bytes of memory that a local search and fit take at their peak for each byte of the table as float64: the table, sorted and
#: merged, its folds, float32 copies and XGBoost's own. Measured: 16.8 for 500 000 x 12 and five folds.
FACTOR = 17
#: Rows on which the linear part is fitted and settings are tuned: coefficients of a dozen predictors need no more.
SAMPLE_ROWS = 200_000
#: Share of the blocks that stops the boosting, and the rounds without improvement after which it stops.
HELD, PATIENCE = 0.2, 30


def outgrows(table_bytes: int, client: Any) -> bool:
    """Whether a local fit of a table of so many bytes (as float64) takes more than the smallest worker may use."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [parse_bytes(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
    return bool(limits) and table_bytes * FACTOR > min(limits)


def fit_distributed(
    client: Any,
    table: Any,
    predictors: Sequence[str],
    target: str,
    weight: str | None = None,
    groups: str | None = None,
    model: ResidualTrees | None = None,
    seed: int = 0,
    stop: bool = True,
) -> ResidualTrees:
    """Linear part and booster of a table that no worker need hold.

    Parameters
    ----------
    client : dask client
    table : dask DataFrame, or the path of a parquet file or folder
    predictors, target, weight, groups : columns; `groups` are labels kept whole where rounds are chosen
    model : settings, as `TunedXGB.best_estimator_` has them; None tunes TunedXGB on SAMPLE_ROWS of the rows first
    stop : stop early on whole groups

    Returns
    -------
    ResidualTrees, fitted, as TunedXGB keeps it: its artefact is of the same kind. With `groups` and `stop`, boosting stops
    after PATIENCE rounds without improvement on a HELD share of whole groups, and never after more rounds than the settings
    have; without, it takes just those. `trees_.workers_` says how many workers took part.

    Raises
    ------
    InputError : a value is not finite, or there are fewer than two rows
    """
    frame = _frame(table, [*predictors, target, *(name for name in (weight, groups) if name)])
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    with _on(client):
        frame = frame.repartition(npartitions=max(frame.npartitions, workers)).persist()
        rows = _checked(frame, [*predictors, target, *([weight] if weight else [])])
        sample = _sampled(frame, rows, seed)
        if model is None:
            model = _tuned(sample, predictors, target, weight, groups, seed)
        fitted = _on_a_line(model, _samples(sample, predictors, target, weight, groups))
        fitted.trees_ = _boosted(
            client, clone(model.trees), frame, list(predictors), target, weight, groups if stop else None, fitted
        )
    return fitted


def fit_in_memory(client: Any, model: ResidualTrees, samples: Samples) -> ResidualTrees:
    """`fit_distributed` of rows that are here, its linear part fitted here on all of them.

    `model` has settings and the rounds to grow, so no blocks stop it.
    """
    import dask.dataframe as dd

    names = [f"x{number}" for number in range(samples.X.shape[1])]
    rows = pd.DataFrame(samples.X, columns=names).assign(y=samples.y, weight=samples.weight, group=samples.group)
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    edges = np.linspace(0, len(rows), min(workers, len(rows)) + 1).astype(int)
    fitted = _on_a_line(model, samples)
    with _on(client):
        parts = client.scatter([rows.iloc[a:b] for a, b in pairwise(edges)])
        frame = dd.from_delayed(parts, meta=rows.iloc[:0])
        fitted.trees_ = _boosted(client, clone(model.trees), frame, names, "y", "weight", None, fitted)
    return fitted


def _on(client: Any) -> Any:
    """Lazy tables are computed on the client's workers, which alone hold their rows, whatever scheduler is set around."""
    return dask.config.set(scheduler=client.get)


def _on_a_line(model: ResidualTrees, samples: Samples) -> ResidualTrees:
    """A clone of `model`, fitted but for its trees: linear part, and the columns that trees may see."""
    fitted = clone(model)
    predictors = fitted.n_features_in_ = samples.X.shape[1]
    fitted.linear_ = linear_part(samples, model.base == "ridge", model.share, plain_seed(model.random_state))
    fitted.columns_ = varying(samples.X, samples.group) if model.columns == "varying" else np.arange(predictors)
    return fitted


def _frame(table: Any, columns: list[str]) -> Any:
    import dask.dataframe as dd

    frame = dd.read_parquet(str(table)) if isinstance(table, str | Path) else table
    if absent := [name for name in columns if name not in frame.columns]:
        raise InputError(f"the table lacks {', '.join(absent)}; it has {', '.join(map(str, frame.columns))}")
    return frame[list(dict.fromkeys(columns))]


def _checked(frame: Any, columns: list[str]) -> int:
    """How many rows; InputError where a value is not finite."""
    counts = frame.map_partitions(_counts, columns, meta=_counts(frame._meta, columns)).sum().compute()
    rows, bad = int(counts["rows"]), {name: int(counts[name]) for name in columns if counts[name]}
    if bad:
        found = ", ".join(f"{name} in {count}" for name, count in bad.items())
        raise InputError(f"{found} of {rows} rows of the table is not finite; leave those rows out")
    if rows < 2:
        raise InputError(f"boosting needs two rows; the table has {rows}")
    return rows


def _counts(part: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    bad = {name: [int((~np.isfinite(part[name].to_numpy(np.float64))).sum())] for name in columns}
    return pd.DataFrame({"rows": [len(part)], **bad})


def _sampled(frame: Any, rows: int, seed: int) -> pd.DataFrame:
    """At most about SAMPLE_ROWS rows, in this process: the same ones, in the same order, however the table is divided."""
    if rows > SAMPLE_ROWS:
        frame = frame.map_partitions(_drawn, SAMPLE_ROWS / rows, seed, meta=frame._meta)
    sample = frame.compute()
    return sample.sort_values(list(sample.columns), ignore_index=True)


def _drawn(part: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A `share` of the rows, by their content and the seed alone."""
    seeded = part.copy()
    seeded.insert(0, "seed of the draw", seed)  # a column: the hash's own key is for text alone
    return part[(pd.util.hash_pandas_object(seeded, index=False) < np.uint64(share * 2.0**64)).to_numpy()]


def _samples(
    sample: pd.DataFrame, predictors: Sequence[str], target: str, weight: str | None, groups: str | None
) -> Samples:
    X = sample[list(predictors)].to_numpy(np.float64)
    labels = None if groups is None else group_labels(sample[groups].to_numpy(), len(sample))
    return Samples(
        X,
        sample[target].to_numpy(np.float64),
        np.ones(len(X)) if weight is None else sample[weight].to_numpy(np.float64),
        np.arange(len(X), dtype=np.int64) if labels is None else labels,
    )


def _tuned(
    sample: pd.DataFrame, predictors: Sequence[str], target: str, weight: str | None, groups: str | None, seed: int
) -> ResidualTrees:
    tuned = TunedXGB(distributed=False, random_state=seed).fit(
        sample[list(predictors)].to_numpy(np.float32),
        sample[target].to_numpy(np.float64),
        groups=None if groups is None else sample[groups].to_numpy(),
        sample_weight=None if weight is None else sample[weight].to_numpy(np.float64),
    )
    return tuned.best_estimator_


def _boosted(
    client: Any,
    trees: BoostedTrees,
    frame: Any,
    predictors: list[str],
    target: str,
    weight: str | None,
    groups: str | None,
    fitted: ResidualTrees,
) -> BoostedTrees:
    """`trees`, its booster grown by all workers on what the linear part leaves."""
    mean = 1.0 if weight is None else float(frame[weight].mean().compute())
    held = _held(frame, groups, plain_seed(trees.random_state))
    columns = [predictors[number] for number in fitted.columns_]
    arguments = (predictors, columns, target, weight, fitted.linear_, mean, groups, held)
    whole = frame.map_partitions(_rest, *arguments, meta=_rest(frame._meta, *arguments)).persist()
    stopping: dict[str, Any] = {}
    training = whole
    if held is not None:
        training = whole[~whole["held"]]
        evals = [(_matrix(client, whole[whole["held"]], columns), "held")]
        stopping = {"evals": evals, "early_stopping_rounds": PATIENCE}
    with xgboost.config_context(verbosity=0):
        found = xgboost.dask.train(
            client, trees.parameters(), _matrix(client, training, columns), trees.rounds, verbose_eval=False, **stopping
        )
    booster = found["booster"]
    trees.booster_ = booster[: booster.best_iteration + 1] if held is not None else booster
    trees.booster_.feature_names = trees.booster_.feature_types = None  # of the columns seen, as dask names them
    trees.booster_.set_param({"nthread": 1})
    trees.n_features_in_ = len(columns)
    trees.workers_ = len({worker for holders in client.who_has(whole).values() for worker in holders})
    return trees


def _rest(
    part: pd.DataFrame,
    predictors: list[str],
    columns: list[str],
    target: str,
    weight: str | None,
    linear: Linear,
    mean: float,
    groups: str | None,
    held: list[Any] | None,
) -> pd.DataFrame:
    """The columns that trees see; what the linear part leaves of the target, weights with a mean of 1, who is held out."""
    X = np.ascontiguousarray(part[predictors].to_numpy(np.float32))
    seen = pd.DataFrame(X, columns=predictors, index=part.index)[columns]
    return seen.assign(
        rest=part[target].to_numpy(np.float64) - linear.under(X),
        share=1.0 if weight is None else part[weight].to_numpy(np.float64) / mean,
        held=False if held is None else part[groups].isin(held).to_numpy(),
    ).set_axis([*(f"x{number}" for number in range(len(columns))), "rest", "share", "held"], axis=1)


def _held(frame: Any, groups: str | None, seed: int) -> list[Any] | None:
    """Labels of the blocks that stop the boosting; None where there are no blocks, or one alone."""
    if groups is None:
        return None
    labels = np.sort(frame[groups].unique().compute().to_numpy())
    if labels.size < 2:
        return None
    count = min(max(1, round(HELD * labels.size)), labels.size - 1)
    return list(np.random.default_rng(seed).permutation(labels)[:count])


def _matrix(client: Any, part: Any, columns: list[str]) -> Any:
    seen = [f"x{number}" for number in range(len(columns))]
    return xgboost.dask.DaskDMatrix(client, part[seen], part["rest"], weight=part["share"])
