"""The figures of a report: PNG files whose bytes depend on the data alone.

Every function draws on a figure of its own, with Matplotlib's defaults and the bundled font whatever the user's settings, and
returns the path that it wrote. A source (stations, smap, gabp, ...) has one colour and one name everywhere: see `palette`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from smscale.errors import InputError
from smscale.evaluate.palette import SOURCES, colour_of, label_of
from smscale.evaluate.scores import scores
from smscale.grid import ease2_inverse

Floats = NDArray[np.float64]

#: Dots per inch: an 8 inch figure is 1120 pixels wide.
DPI = 140
#: Width of a full figure, inches.
WIDTH = 8.0
#: Cells along one side above which a map is averaged down before it is drawn.
MAX_MAP_CELLS = 1200
#: Points above which a scatter becomes a density.
MAX_POINTS = 3000

SOIL_MOISTURE = "soil moisture (m³ m⁻³)"

_DASHES: dict[str, Any] = {"-": "-", "--": (0, (5, 2)), "-.": (0, (6, 2, 1.5, 2)), ":": (0, (1.5, 1.5))}

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "savefig.facecolor": "white",
}
_LOST = "#e2e2e2"
_PALE = 0.35
_MISSING_FACE, _MISSING_HATCH = "#e8e8e8", "#b4b4b4"


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
    drawn = {name: _shrunk(panel.transpose("lat", "lon")) for name, panel in panels.items()}
    edges = {name: cell_edges(panel) for name, panel in drawn.items()}
    west, south, east, north = min((_box(*e) for e in edges.values()), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    values = np.concatenate([np.asarray(p.values, np.float64).ravel() for p in drawn.values()])
    low, high = limits or _limits(values, diverging)
    norm, cmap = Normalize(low, high), "RdBu" if diverging else "YlGnBu"
    columns = columns or _columns(len(drawn))
    rows = -(-len(drawn) // columns)
    stretch = 1 / np.cos(np.deg2rad((south + north) / 2))
    width = {1: 6.5, 2: 9.0}.get(columns, 11.0)
    across = (width - 1.6) / columns - 0.42  # inches of one panel beside the colour bar and the gaps
    height = min(across * (north - south) * stretch / (east - west) + 0.35, 8.0) * rows + 0.9
    shade = None if elevation is None else _relief(_shrunk(elevation.transpose("lat", "lon")))
    with _page(path, width, height, title, layout="compressed", trim=True) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax, (name, panel) in zip(axes.flat, drawn.items(), strict=False):
            _draw_map(ax, panel, edges[name], norm, cmap, shade)
            ax.set_title(label_of(name))
            ax.set_xlim(west, east)
            ax.set_ylim(south, north)
            ax.set_aspect(stretch)
            handles = _draw_points(ax, points, norm, cmap)
        _finish_map_axes(axes, len(drawn))
        if np.isnan(values).any():
            handles.append(Patch(facecolor=_MISSING_FACE, edgecolor=_MISSING_HATCH, hatch="////", label="missing"))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        bar = figure.colorbar(
            _scale(norm, cmap),
            ax=list(axes.flat[: len(drawn)]),
            extend=_extend(values, low, high),
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
    with _page(path, max(4.5, 1.0 + 0.95 * len(data)), 4.2, title) as figure:
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
        ticks = [f"{_wrapped(label_of(name))}\nn = {_count(values.size)}" for name, values in data.items()]
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
    with _page(path, WIDTH, 4.0, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        for name, values in data.items():
            ax.plot(*_density(values, low, high), label=f"{label_of(name)} (n = {_count(values.size)})", **_line(name))
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
    with _page(path, 10.0, 4.0, title) as figure:
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
    with _page(path, max(5.0, min(11.0, 1.5 + len(table) * (0.3 + 0.22 * len(table.columns)))), 3.8, title) as figure:
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
    with _page(path, max(4.4, 2.75 * columns + 0.7), 2.9 * rows + 0.5, title) as figure:
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
    with _page(path, 6.5, 1.2 + len(frame) * max(0.28, 0.16 * len(frame.columns)), title) as figure:
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
    with _page(path, 2.0 + 1.75 * len(subsets), 1.3 + 0.27 * len(predictors), title) as figure:
        axes = figure.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
        for ax, subset in zip(axes, subsets, strict=True):
            part = table[table["subset"] == subset].set_index("predictor").reindex(predictors)
            _draw_correlations(ax, part, significance)
            ax.set_title(f"{subset}\nn = {_count(part['n'].max())}", fontsize=9.5)
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
    with _page(path, 1.0 + 3.3 * columns, 0.4 + 2.8 * rows, title) as figure:
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
    with _page(path, WIDTH, 0.75 + 0.3 * len(rows) + sum(heights), title) as figure:
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
        labels = [f"{name}  (n = {_count(n)})" for name, n in zip(labels, table["n"], strict=True)]
    with _page(path, 3.0 + 2.4 * len(metrics), 1.0 + 0.33 * len(sources), title) as figure:
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
    with _page(path, 1.8 + 2.0 * grid.shape[1], 1.2 + 0.33 * len(models), title) as figure:
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


def cell_edges(panel: xr.DataArray) -> tuple[Floats, Floats]:
    """Cell edges of a map, degrees: (columns + 1,) longitudes and (rows + 1,) latitudes.

    Panels with coordinates x(lon) and y(lat) in metres are EASE-Grid 2.0: their edges are midway in x and y. Otherwise
    edges are midway between the centres, and half a step beyond the outermost. A single row takes the columns' step.
    """
    if "x" in panel.coords and "y" in panel.coords:
        x, y = np.asarray(panel["x"].values, np.float64), np.asarray(panel["y"].values, np.float64)
        step = abs(np.diff(x).mean() if x.size > 1 else np.diff(y).mean() if y.size > 1 else 36032.220840584)
        return ease2_inverse(_edges(x, step), 0.0)[0], ease2_inverse(0.0, _edges(y, -step))[1]
    lon, lat = (np.asarray(panel[name].values, np.float64) for name in ("lon", "lat"))
    step = abs(np.diff(lon).mean() if lon.size > 1 else np.diff(lat).mean() if lat.size > 1 else 0.01)
    return _edges(lon, step), _edges(lat, -step)


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


@contextmanager
def _page(
    path: str | Path, width: float, height: float, title: str, layout: Any = "constrained", trim: bool = False
) -> Iterator[Figure]:
    """A figure in this module's style, written when the block ends; `trim` cuts its empty margins."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, fontsize=11.5, fontweight="bold")
        yield figure
        _save(figure, Path(path), "tight" if trim else None)


def _save(figure: Figure, path: Path, box: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches=box)
    part.replace(path)


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


def _count(n: float) -> str:
    return f"{int(n):,}".replace(",", "\u2009")


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


def _edges(centres: Floats, step: float) -> Floats:
    if centres.size == 1:
        return np.array([centres[0] - step / 2, centres[0] + step / 2])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _box(lon_edges: Floats, lat_edges: Floats) -> tuple[float, float, float, float]:
    return float(lon_edges.min()), float(lat_edges.min()), float(lon_edges.max()), float(lat_edges.max())


def _shrunk(panel: xr.DataArray) -> xr.DataArray:
    """The map with at most `MAX_MAP_CELLS` cells a side: means of square blocks of cells, missing ones left out."""
    factor = -(-max(panel.shape) // MAX_MAP_CELLS)
    if factor == 1:
        return panel.load()
    window = {dim: factor for dim in ("lat", "lon") if panel.sizes[dim] >= factor}
    return panel.coarsen(window, boundary="trim").mean().load()  # type: ignore[attr-defined]


def _limits(values: Floats, diverging: bool) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (-0.1, 0.1) if diverging else (0.0, 0.5)
    if diverging:
        reach = max(float(np.ceil(np.percentile(np.abs(finite), 98) * 100) / 100), 0.01)
        return -reach, reach
    low, high = np.percentile(finite, [2, 98])
    low, high = np.floor(low * 100 + 1e-6) / 100, np.ceil(high * 100 - 1e-6) / 100
    return float(low), float(max(high, low + 0.01))


def _extend(values: Floats, low: float, high: float) -> str:
    finite = values[np.isfinite(values)]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _columns(count: int) -> int:
    return count if count <= 3 else {4: 2, 5: 3, 6: 3, 9: 3}.get(count, 4)


def _scale(norm: Normalize, cmap: str) -> Any:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm, cmap)


def _relief(elevation: xr.DataArray) -> Floats:
    """(lat, lon) 0 to 1: how much the hillshade (sun in the north-west, 45 degrees high, Horn 1981) darkens each cell.

    Heights are exaggerated until the steepest tenth of the cells has slopes above one half.
    """
    heights = np.nan_to_num(elevation.values.astype(np.float64))
    lat, lon = elevation["lat"].values, elevation["lon"].values
    metres = 111_195.0  # of one degree on the mean sphere
    north, east = np.gradient(heights, lat * metres, lon * metres * np.cos(np.deg2rad(lat.mean())))
    steepest = np.percentile(np.hypot(north, east), 90)
    north, east = (0.5 * g / steepest if steepest > 0 else g for g in (north, east))
    light = (np.sqrt(0.5) + 0.5 * east - 0.5 * north) / np.sqrt(1 + east**2 + north**2)
    return np.clip(1 - light / np.percentile(light, 95), 0, 1)


def _draw_map(
    ax: Axes, panel: xr.DataArray, edges: tuple[Floats, Floats], norm: Normalize, cmap: str, shade: Floats | None
) -> None:
    lon, lat = edges
    ax.set_facecolor(_MISSING_FACE)
    ax.patch.set_hatch("////")
    ax.patch.set_edgecolor(_MISSING_HATCH)
    ax.patch.set_linewidth(0)
    values = np.ma.masked_invalid(panel.values.astype(np.float64))
    extent = (lon[0], lon[-1], lat[-1], lat[0])
    if _even(lon) and _even(lat):
        ax.imshow(values, cmap=cmap, norm=norm, extent=extent, interpolation="nearest", aspect="auto")
    else:
        ax.pcolormesh(lon, lat, values, cmap=cmap, norm=norm, rasterized=True)
    if shade is not None and shade.shape == values.shape:
        black = np.zeros((*shade.shape, 4))
        black[..., 3] = np.where(values.mask, 0.0, 0.55 * shade)
        ax.imshow(black, extent=extent, interpolation="nearest", aspect="auto")


def _even(edges: Floats) -> bool:
    steps = np.diff(edges)
    return bool(np.allclose(steps, steps.mean(), rtol=1e-3))


def _draw_points(ax: Axes, points: pd.DataFrame | None, norm: Normalize, cmap: str) -> list[Any]:
    """Station markers; returns their legend entries."""
    if points is None or points.empty:
        return []
    kinds = points["kind"] if "kind" in points.columns else pd.Series("stations", index=points.index)
    handles = []
    size = min(max(1600 / len(points), 7), 22)
    for kind, marker in zip(dict.fromkeys(kinds), "o^sDv", strict=False):
        part = points[kinds == kind]
        colour = {"c": part["value"], "cmap": cmap, "norm": norm} if "value" in part.columns else {"color": "white"}
        ax.scatter(
            part["lon"], part["lat"], s=size, marker=marker, edgecolors="black", linewidths=0.8, zorder=5, **colour
        )
        handles.append(
            Line2D(
                [],
                [],
                marker=marker,
                linestyle="",
                markerfacecolor="white",
                markeredgecolor="black",
                label=label_of(str(kind)),
            )
        )
    return handles


def _finish_map_axes(axes: NDArray[Any], used: int) -> None:
    columns = axes.shape[1]
    for i, ax in enumerate(axes.flat):
        if i >= used:
            ax.remove()
            continue
        ax.spines[:].set_visible(True)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW")))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _degrees(value, "NS")))
        ax.tick_params(labelbottom=i + columns >= used, labelleft=i % columns == 0, labelsize=8.5)


def _degrees(value: float, ends: str) -> str:
    return f"{abs(value):.4g}°{'' if value == 0 else ends[0] if value > 0 else ends[1]}"


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
    text = f"RMSE {s['rmse']:.4f}\nCC {s['cc']:.3f}\nbias {s['bias']:+.4f}\nn {_count(s['n'])}"
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
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    ax.spines["bottom"].set_bounds(0, largest)
    ax.tick_params(axis="y", length=0)


def _flow_words(count: int, previous: int, reason: str) -> str:
    if count == previous:
        return _count(count)
    share = (previous - count) / previous
    shown = "<1%" if share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"
    return f"{_count(count)}   −{_count(previous - count)} ({shown})   {reason}".rstrip()


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
