"""Figures of scores: estimates against a reference, and one score by source, split or period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from smscale.evaluate.canvas import (
    SOIL_MOISTURE,
    page,
)
from smscale.evaluate.palette import colour_of, label_of
from smscale.evaluate.report import spelled
from smscale.evaluate.scores import scores

Floats = NDArray[np.float64]

#: Points above which a scatter becomes a density.
MAX_POINTS = 3000

_METRIC_LABELS = {
    "rmse": "RMSE (m³ m⁻³)",
    "mae": "MAE (m³ m⁻³)",
    "ubrmse": "ubRMSE (m³ m⁻³)",
    "bias": "bias (m³ m⁻³)",
    "cc": "correlation",
    "kge": "KGE",
    "r2": "R²",
}


def scatter(
    reference: ArrayLike,
    estimates: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    reference_label: str = "stations",
    label: str = SOIL_MOISTURE,
    title: str = "",
) -> Path:
    """Estimates against the reference, one panel per source, with the 1:1 line and the scores.

    Points become a density, logarithmic in each panel, where any panel has more than 3 000 pairs; all panels share their axes.

    Parameters
    ----------
    reference : (n,) values
    estimates : source -> (n,) values; NaN pairs are left out
    """
    ref = np.asarray(reference, np.float64)
    data = {name: np.asarray(values, np.float64) for name, values in estimates.items()}
    low, high = _span([ref, *data.values()])
    dense = any((np.isfinite(ref) & np.isfinite(values)).sum() > MAX_POINTS for values in data.values())
    columns = min(len(data), 4) if len(data) != 5 else 3
    rows = -(-len(data) // columns)
    with page(path, max(4.4, 2.75 * columns + 0.7), 2.9 * rows + 0.5, title) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for i, (ax, (name, values)) in enumerate(zip(axes.flat, data.items(), strict=False)):
            _draw_pairs(ax, ref, values, colour_of(name), (low, high), dense)
            ax.set_title(label_of(name))
            ax.tick_params(labelbottom=i + columns >= len(data))
        for ax in axes.flat[len(data) :]:
            ax.remove()
        figure.supxlabel(f"{reference_label}: {label}", fontsize=9.5)
        figure.supylabel(f"estimate: {label}", fontsize=9.5)
    return Path(path)


def score_bars(
    table: pd.DataFrame,
    path: str | Path,
    *,
    metrics: Sequence[str] = ("rmse", "mae", "cc"),
    title: str = "",
) -> Path:
    """Scores by source, one panel per metric, values at the bars.

    Parameters
    ----------
    table : columns source and the metrics (and n, shown beside the names), as `scores.score_table` gives it
    """
    sources = [str(s) for s in table["source"]]
    labels = [label_of(s) for s in sources]
    if "n" in table.columns:
        labels = [f"{name}  (n = {spelled(n)})" for name, n in zip(labels, table["n"], strict=True)]
    with page(path, 3.0 + 2.4 * len(metrics), 1.0 + 0.33 * len(sources), title) as figure:
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            values = table[metric].to_numpy(np.float64)
            bars = ax.barh(range(len(sources)), np.nan_to_num(values), 0.66, color=[colour_of(s) for s in sources])
            ax.bar_label(
                bars,
                [f"{v:.4f}".replace("-", "−") if np.isfinite(v) else "none" for v in values],
                padding=3,
                fontsize=8.5,
            )
            ax.set_title(_METRIC_LABELS.get(metric, metric))
            ax.margins(x=0.55 if (values < 0).any() else 0.3)
            ax.axvline(0, color="#444444", linewidth=0.8)
            ax.tick_params(axis="y", length=0)
            ax.xaxis.set_major_locator(MaxNLocator(3))
        axes[0].set_yticks(range(len(sources)), labels)
        axes[0].invert_yaxis()
    return Path(path)


def split_bars(table: pd.DataFrame, path: str | Path, *, label: str = "RMSE (m³ m⁻³)", title: str = "") -> Path:
    """RMSE of every model, one panel per split on one axis: what a random split promises, and what blocked ones hold.

    Parameters
    ----------
    table : columns split, model and rmse, a row each; splits and models in the order in which they are drawn
    """
    grid = table.pivot(index="model", columns="split", values="rmse")
    grid = grid.loc[list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["split"]))]
    models = [str(m) for m in grid.index]
    with page(path, 1.8 + 2.0 * grid.shape[1], 1.2 + 0.33 * len(models), title) as figure:
        axes = figure.subplots(1, grid.shape[1], sharex=True, sharey=True, squeeze=False)[0]
        for ax, (split, values) in zip(axes, grid.items(), strict=True):
            bars = ax.barh(range(len(models)), values.fillna(0), 0.66, color=[colour_of(m) for m in models])
            ax.bar_label(bars, [f"{v:#.3g}" if np.isfinite(v) else "none" for v in values], padding=3, fontsize=8.5)
            ax.set_title(str(split))
            ax.margins(x=0.3)
            ax.tick_params(axis="y", length=0)
            ax.xaxis.set_major_locator(MaxNLocator(3))
        axes[0].set_yticks(range(len(models)), [label_of(m) for m in models])
        axes[0].invert_yaxis()
        figure.supxlabel(label, fontsize=9)
    return Path(path)


def period_bars(table: pd.DataFrame, path: str | Path, *, label: str = "MAE (m³ m⁻³)", title: str = "") -> Path:
    """Bars of one score by month or season, grouped, one colour per source.

    Parameters
    ----------
    table : index the periods, columns sources
    """
    width = 0.84 / max(len(table.columns), 1)
    with page(path, max(5.0, min(11.0, 1.5 + len(table) * (0.3 + 0.22 * len(table.columns)))), 3.8, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        for i, name in enumerate(table.columns):
            x = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * width
            ax.bar(
                x, table[name].to_numpy(np.float64), width * 0.92, color=colour_of(str(name)), label=label_of(str(name))
            )
        ax.set_xticks(range(len(table)), [str(period) for period in table.index])
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel(label)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(table.columns), 5))
    return Path(path)


def _span(arrays: Sequence[Floats]) -> tuple[float, float]:
    values = np.concatenate([a.ravel() for a in arrays])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.5
    low, high = float(finite.min()), float(finite.max())
    margin = 0.04 * (high - low) or 0.01
    return low - margin, high + margin


def _draw_pairs(
    ax: Axes, reference: Floats, estimate: Floats, colour: str, span: tuple[float, float], dense: bool
) -> None:
    both = np.isfinite(reference) & np.isfinite(estimate)
    if dense and both.any():
        ax.hexbin(
            reference[both],
            estimate[both],
            gridsize=45,
            extent=(*span, *span),
            bins="log",
            mincnt=1,
            cmap="Blues",
            linewidths=0.1,
        )
    else:
        ax.scatter(reference[both], estimate[both], s=7, color=colour, alpha=0.45, linewidths=0)
    ax.plot(span, span, color="#444444", linewidth=0.9)
    ax.set_xlim(span)
    ax.set_ylim(span)
    ax.set_aspect("equal")
    ax.set_box_aspect(1)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    s = scores(reference, estimate)
    text = f"RMSE {s['rmse']:.4f}\nCC {s['cc']:.3f}\nbias {s['bias']:+.4f}\nn {spelled(s['n'])}"
    ax.text(
        0.04,
        0.96,
        text,
        transform=ax.transAxes,
        va="top",
        fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
    )
