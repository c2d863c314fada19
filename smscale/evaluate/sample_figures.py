"""Figures of samples and of what is trained on them: what was left out, what goes with soil moisture, how training went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from smscale.evaluate.canvas import (
    page,
)
from smscale.evaluate.palette import CURVES, DASHES, colour_of, label_of
from smscale.evaluate.report import spelled

Floats = NDArray[np.float64]

#: Width of a full figure, inches.
WIDTH = 8.0

_LOST = "#e2e2e2"
_PALE = 0.35
_POSITIVE, _NEGATIVE = "#0072b2", "#d55e00"


def sample_flow(
    steps: Mapping[str, int] | Mapping[str, Mapping[str, int]],
    path: str | Path,
    *,
    reasons: Mapping[str, str] | None = None,
    title: str = "",
) -> Path:
    """What is left after each step of the sample preparation, and why the rest went.

    Parameters
    ----------
    steps : step -> count kept, in order; the first is what there was to begin with. Or such mappings by name, "coarse cells" and
        "fine pixels", one panel each: their counts differ by orders of magnitude
    reasons : step -> why what it leaves out is left out
    """
    nested = any(isinstance(counts, Mapping) for counts in steps.values())
    panels: Mapping[str, Any] = steps if nested else {"": steps}
    rows = [max(len(counts), 1) for counts in panels.values()]
    heights = [0.42 * n + (0.3 if nested else 0.0) for n in rows]
    with page(path, WIDTH, 0.75 + 0.3 * len(rows) + sum(heights), title) as figure:
        axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (name, counts) in zip(axes, panels.items(), strict=True):
            _draw_flow(ax, {step: int(count) for step, count in counts.items()}, reasons or {})
            ax.set_title(name, loc="left")
        axes[-1].set_xlabel("kept (grey: left out at this step)", loc="left")
    return Path(path)


def correlation_bars(table: pd.DataFrame, path: str | Path, *, significance: float = 0.05, title: str = "") -> Path:
    """Correlation of each predictor with soil moisture, one panel per subset; black where p exceeds the significance level.

    Parameters
    ----------
    table : columns predictor, subset, cc, p and n, as `scores.correlations` gives it; with p_effective, bars are pale that are
        significant only if samples were independent
    """
    subsets = list(dict.fromkeys(table["subset"]))
    predictors = list(dict.fromkeys(table["predictor"]))
    reach = max(0.1, float(np.nanmax(np.abs(table["cc"].to_numpy(np.float64)), initial=0.0)) * 1.1)
    with page(path, 2.0 + 1.75 * len(subsets), 1.3 + 0.27 * len(predictors), title) as figure:
        axes = figure.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
        for ax, subset in zip(axes, subsets, strict=True):
            part = table[table["subset"] == subset].set_index("predictor").reindex(predictors)
            _draw_correlations(ax, part, significance)
            ax.set_title(f"{subset}\nn = {spelled(part['n'].max())}", fontsize=9.5)
            ax.set_xlabel("correlation")
            ax.set_xlim(-reach, reach)
        axes[0].set_yticks(range(len(predictors)), [label_of(p) for p in predictors])
        axes[0].invert_yaxis()
        keys = [("positive", _POSITIVE), ("negative", _NEGATIVE), (f"p > {significance:g}", "black")]
        handles = [Patch(color=colour, label=name) for name, colour in keys]
        if "p_effective" in table:
            handles.append(Patch(color=_LOST, label=f"pale: p effective > {significance:g}"))
        columns = 2 if len(handles) > 3 and len(subsets) < 3 else len(handles)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return Path(path)


def importance_bars(
    table: pd.Series | pd.DataFrame, path: str | Path, *, label: str = "importance", title: str = ""
) -> Path:
    """Importances of predictors, largest on top.

    Parameters
    ----------
    table : index predictors; a Series, or a DataFrame with one column per model (ordered by the mean of its columns)
    """
    frame = table.to_frame("rf") if isinstance(table, pd.Series) else table
    frame = frame.loc[frame.mean(axis=1).sort_values(kind="stable").index]
    height = 0.8 / max(len(frame.columns), 1)
    with page(path, 6.5, 1.2 + len(frame) * max(0.28, 0.16 * len(frame.columns)), title) as figure:
        ax = figure.subplots()
        ax.xaxis.grid(True)
        for i, name in enumerate(frame.columns):
            y = np.arange(len(frame)) - (i - (len(frame.columns) - 1) / 2) * height
            ax.barh(
                y,
                frame[name].to_numpy(np.float64),
                height * 0.92,
                color=colour_of(str(name)),
                label=label_of(str(name)),
            )
        ax.set_yticks(range(len(frame)), [label_of(str(p)) for p in frame.index])
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(label)
        if len(frame.columns) > 1:
            ax.legend(loc="lower right")
    return Path(path)


def training_curves(panels: Mapping[str, pd.DataFrame], path: str | Path, *, title: str = "") -> Path:
    """How training went, one panel per model or phase; the vertical axis is logarithmic where values span a factor of 30.

    Parameters
    ----------
    panels : title -> DataFrame; the index is the step and its name the horizontal label ("generation", "epoch"), each
        column is a line (best, mean, training, validation ...), and `attrs["label"]` names the vertical axis
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with page(path, 1.0 + 3.3 * columns, 0.4 + 2.8 * rows, title) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, (name, curves) in zip(axes.flat, panels.items(), strict=False):
            ax.grid(True)
            for (column, values), colour, dash in zip(curves.items(), CURVES, DASHES.values(), strict=False):
                marker = "o" if len(curves) == 1 else None
                ax.plot(
                    curves.index,
                    values.to_numpy(np.float64),
                    label=str(column),
                    color=colour,
                    linestyle=dash,
                    marker=marker,
                )
            _log_if_wide(ax, curves.to_numpy(np.float64))
            ax.set_title(name)
            ax.set_xlabel(str(curves.index.name or "step"))
            ax.set_ylabel(str(curves.attrs.get("label", "")))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(curves.columns) > 1:
                ax.legend()
        for ax in axes.flat[len(panels) :]:
            ax.remove()
    return Path(path)


def _draw_flow(ax: Axes, steps: Mapping[str, int], reasons: Mapping[str, str]) -> None:
    kept = list(steps.values())
    before = [*kept[:1], *kept[:-1]]
    largest = max([1, *kept])
    ax.barh(range(len(kept)), before, 0.62, color=_LOST)
    ax.barh(range(len(kept)), kept, 0.62, color=colour_of("gabp"))
    for i, (step, count, previous) in enumerate(zip(steps, kept, before, strict=True)):
        ax.text(
            max(count, previous) + 0.012 * largest, i, _flow_words(count, previous, reasons.get(step, "")), va="center"
        )
    ax.set_yticks(range(len(kept)), [label_of(step) for step in steps])
    ax.invert_yaxis()
    ax.set_xlim(0, largest * 1.62)  # room for the words
    ax.set_xticks([tick for tick in MaxNLocator(4, integer=True).tick_values(0, largest) if 0 <= tick <= largest])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value)))
    ax.spines["bottom"].set_bounds(0, largest)
    ax.tick_params(axis="y", length=0)


def _flow_words(count: int, previous: int, reason: str) -> str:
    if count == previous:
        return spelled(count)
    share = (previous - count) / previous
    shown = "<1%" if share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"
    return f"{spelled(count)}   −{spelled(previous - count)} ({shown})   {reason}".rstrip()


def _draw_correlations(ax: Axes, part: pd.DataFrame, significance: float) -> None:
    cc, p = part["cc"].to_numpy(np.float64), part["p"].to_numpy(np.float64)
    colours = [
        "black" if not pv <= significance else _POSITIVE if c > 0 else _NEGATIVE for c, pv in zip(cc, p, strict=True)
    ]
    bars = ax.barh(range(len(part)), np.nan_to_num(cc), 0.66, color=colours)
    if "p_effective" in part:
        for bar, pv, effective in zip(bars, p, part["p_effective"].to_numpy(np.float64), strict=True):
            bar.set_alpha(_PALE if pv <= significance and not effective <= significance else 1.0)
    ax.axvline(0, color="#444444", linewidth=0.8)
    ax.xaxis.grid(True)
    ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    ax.tick_params(axis="y", length=0)


def _log_if_wide(ax: Axes, values: Floats) -> None:
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
