"""The figures of a report: PNG files whose bytes depend on the data alone.

Every function draws on a figure of its own, with Matplotlib's defaults and the bundled font whatever the user's settings, and
returns the path that it wrote. A source (stations, smap, gabp, ...) has one colour and one name everywhere: see `palette`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from smscale.errors import InputError
from smscale.evaluate.canvas import (
    MISSING_FACE,
    MISSING_HATCH,
    SOIL_MOISTURE,
    box_of,
    cell_edges,
    columns_of,
    draw_map,
    draw_points,
    extend_of,
    finish_map_axes,
    limits_of,
    page,
    relief_of,
    scale_of,
    shrunk,
)
from smscale.evaluate.palette import SOURCES, colour_of, label_of
from smscale.evaluate.report import spelled
from smscale.evaluate.scores import scores

Floats = NDArray[np.float64]

#: Width of a full figure, inches.
WIDTH = 8.0
#: Points above which a scatter becomes a density.
MAX_POINTS = 3000

_DASHES: dict[str, Any] = {"-": "-", "--": (0, (5, 2)), "-.": (0, (6, 2, 1.5, 2)), ":": (0, (1.5, 1.5))}

_LOST = "#e2e2e2"
_PALE = 0.35


def maps(
    panels: Mapping[str, xr.DataArray],
    path: str | Path,
    *,
    points: pd.DataFrame | None = None,
    elevation: xr.DataArray | None = None,
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    label: str = SOIL_MOISTURE,
    title: str = "",
    columns: int | None = None,
) -> Path:
    """Maps side by side on one colour scale, each with its own cells; missing cells are hatched grey.

    Parameters
    ----------
    panels : source or title -> (lat, lon); coarse and fine may stand together. The panel of the smallest extent sets the frame.
        Cells are drawn at their true edges: from x and y in metres for EASE-Grid 2.0, else midway between centres.
    points : columns lon, lat (degrees), optionally value (coloured as the maps are) and kind (one marker per kind)
    elevation : (lat, lon) metres; shades the relief into the panels of its own shape
    limits : the ends of the colour scale; by default the 2nd and 98th percentile of all panels, rounded outwards to 0.01
    diverging : a red to blue scale about zero, for differences
    columns : panels per row
    """
    if not panels:
        raise InputError("maps needs at least one panel")
    drawn = {name: shrunk(panel.transpose("lat", "lon")) for name, panel in panels.items()}
    edges = {name: cell_edges(panel) for name, panel in drawn.items()}
    west, south, east, north = min((box_of(*e) for e in edges.values()), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    values = np.concatenate([np.asarray(p.values, np.float64).ravel() for p in drawn.values()])
    low, high = limits or limits_of(values, diverging)
    norm, cmap = Normalize(low, high), "RdBu" if diverging else "YlGnBu"
    columns = columns or columns_of(len(drawn))
    rows = -(-len(drawn) // columns)
    stretch = 1 / np.cos(np.deg2rad((south + north) / 2))
    width = {1: 6.5, 2: 9.0}.get(columns, 11.0)
    across = (width - 1.6) / columns - 0.42  # inches of one panel beside the colour bar and the gaps
    height = min(across * (north - south) * stretch / (east - west) + 0.35, 8.0) * rows + 0.9
    shade = None if elevation is None else relief_of(shrunk(elevation.transpose("lat", "lon")))
    with page(path, width, height, title, layout="compressed", trim=True) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax, (name, panel) in zip(axes.flat, drawn.items(), strict=False):
            draw_map(ax, panel, edges[name], norm, cmap, shade)
            ax.set_title(label_of(name))
            ax.set_xlim(west, east)
            ax.set_ylim(south, north)
            ax.set_aspect(stretch)
            handles = draw_points(ax, points, norm, cmap)
        finish_map_axes(axes, len(drawn))
        if np.isnan(values).any():
            handles.append(Patch(facecolor=MISSING_FACE, edgecolor=MISSING_HATCH, hatch="////", label="missing"))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        bar = figure.colorbar(
            scale_of(norm, cmap),
            ax=list(axes.flat[: len(drawn)]),
            extend=extend_of(values, low, high),
            shrink=0.9,
            pad=0.015,
        )
        bar.set_label(label)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return Path(path)


def box_plot(series: Mapping[str, ArrayLike], path: str | Path, *, label: str = SOIL_MOISTURE, title: str = "") -> Path:
    """Median, quartiles, the 5th and 95th percentile (whiskers) and mean (diamond) of each source.

    Parameters
    ----------
    series : source -> (n,) values; NaN is left out, and n stands below the name
    """
    data = {name: _finite(values) for name, values in series.items()}
    with page(path, max(4.5, 1.0 + 0.95 * len(data)), 4.2, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        ax.boxplot(
            list(data.values()),
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            widths=0.55,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.6},
            meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 5},
        )
        for patch, name in zip(ax.patches, data, strict=True):
            patch.set_facecolor(_light(colour_of(name)))
            patch.set_edgecolor(colour_of(name))
        ticks = [f"{_wrapped(label_of(name))}\nn = {spelled(values.size)}" for name, values in data.items()]
        ax.set_xticks(range(1, len(data) + 1), ticks)
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel(label)
    return Path(path)


def pdf_curves(
    series: Mapping[str, ArrayLike], path: str | Path, *, label: str = SOIL_MOISTURE, title: str = ""
) -> Path:
    """Probability densities: Gaussian kernels of Silverman's width over 512 bins, reflected at the ends.

    Parameters
    ----------
    series : source -> (n,) values; NaN is left out; sources with fewer than 2 different values have no curve
    """
    data = {name: _finite(values) for name, values in series.items()}
    data = {name: values for name, values in data.items() if values.size and np.ptp(values) > 0}
    low = min([0.0, *(values.min() for values in data.values())])
    high = 1.05 * max([values.max() for values in data.values()], default=0.5)
    with page(path, WIDTH, 4.0, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        for name, values in data.items():
            ax.plot(*_density(values, low, high), label=f"{label_of(name)} (n = {spelled(values.size)})", **_line(name))
        ax.set_xlim(low, 1.1 * max([np.percentile(values, 99.9) for values in data.values()], default=0.5))
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
        ax.set_ylabel("probability density")
        if data:
            ax.legend()
    return Path(path)


def daily_curves(table: pd.DataFrame, path: str | Path, *, label: str = SOIL_MOISTURE, title: str = "") -> Path:
    """Means over time, one line per source; a line breaks where a value is missing, and lone values are dots.

    Parameters
    ----------
    table : index time, columns sources
    """
    table = table.sort_index()
    size = 3.0 if len(table) <= 80 else 0.0
    with page(path, 10.0, 4.0, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        for name in table.columns:
            values = table[name].to_numpy(np.float64)
            ax.plot(table.index, values, label=label_of(str(name)), **_line(str(name)), marker="o", markersize=size)
            lone = _lone(values)
            ax.plot(table.index[lone], values[lone], "o", markersize=3.0, color=colour_of(str(name)))
        ax.set_ylabel(label)
        ax.margins(x=0.01)
        _date_axis(ax, table.index)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(table.columns), 6))
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
            for (column, values), colour, dash in zip(curves.items(), _LINES, _DASHES.values(), strict=False):
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


_POSITIVE, _NEGATIVE = "#0072b2", "#d55e00"
_LINES = ("#0072b2", "#d55e00", "#009e73", "#882255")
_METRIC_LABELS = {
    "rmse": "RMSE (m³ m⁻³)",
    "mae": "MAE (m³ m⁻³)",
    "ubrmse": "ubRMSE (m³ m⁻³)",
    "bias": "bias (m³ m⁻³)",
    "cc": "correlation",
    "kge": "KGE",
    "r2": "R²",
}


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


def _light(colour: str) -> tuple[float, float, float]:
    """The colour, two thirds of the way to white."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (red + 2) / 3, (green + 2) / 3, (blue + 2) / 3


def _line(source: str) -> dict[str, Any]:
    dash = SOURCES[source][2] if source in SOURCES else "-"
    return {
        "color": colour_of(source),
        "linestyle": _DASHES[dash],
        "linewidth": 2.0 if source in ("stations", "truth") else 1.5,
    }


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n") if "," in label else label.replace(" ", "\n", 1)


def _density(values: Floats, low: float, high: float, bins: int = 512) -> tuple[Floats, Floats]:
    """Kernel density of values on bin centres; width 0.9 min(sd, iqr / 1.34) n^-1/5 (Silverman 1986, equation 3.31)."""
    counts, edges = np.histogram(values, bins=bins, range=(low, high), density=True)
    quartiles = np.percentile(values, [25, 75])
    spread = min(values.std(), (quartiles[1] - quartiles[0]) / 1.34) or values.std()
    width = 0.9 * spread * values.size**-0.2 / (edges[1] - edges[0])
    return (edges[1:] + edges[:-1]) / 2, gaussian_filter1d(counts, max(width, 1.0), mode="reflect")


def _lone(values: Floats) -> NDArray[np.bool_]:
    """Values with no neighbour to draw a line to."""
    there = np.isfinite(values)
    padded = np.concatenate([[False], there, [False]])
    return there & ~padded[:-2] & ~padded[2:]


def _date_axis(ax: Axes, index: pd.Index) -> None:
    if isinstance(index, pd.DatetimeIndex):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=4, maxticks=10)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _span(arrays: Sequence[Floats]) -> tuple[float, float]:
    finite = _finite(np.concatenate([a.ravel() for a in arrays]))
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
