"""Figures of a fusion and a closure: variograms, maps that each have their own scale, stations by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

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
    scale_of,
    shrunk,
)
from smscale.evaluate.palette import label_of
from smscale.evaluate.report import spelled

#: What a map shows -> its colours.
COLOURS = {"value": "YlGnBu", "difference": "RdBu", "spread": "YlOrBr"}
#: Method of a step -> colour.
METHODS = {"kriging": "#332288", "idw": "#56b4e9", "mean residual": "#ddcc77", "none": "#c4c4c4"}
#: Steps up to which each has its own bar.
MAX_BARS = 400
_FIT, _POINTS, _NUGGET, _WARNING = "#d55e00", "#0072b2", "#5c5c5c", "#a50026"


class Panel(NamedTuple):
    """A map with a scale of its own.

    values : (lat, lon); kind : a key of `COLOURS`; limits : ends of the scale; points : as `figures.maps`
    """

    title: str
    values: xr.DataArray
    kind: str = "value"
    label: str = SOIL_MOISTURE
    limits: tuple[float, float] | None = None
    points: pd.DataFrame | None = None


class Variogram(NamedTuple):
    """An empirical variogram and what was fitted to it.

    lag, gamma, pairs : (l,) km, semivariance, pairs x times; empty where there are none
    h, fit : (m,) km and semivariance along the fitted model; empty without one
    nugget : of the fit; words : what is said in the panel; warning : a bound that was hit
    """

    lag: ArrayLike
    gamma: ArrayLike
    pairs: ArrayLike
    h: ArrayLike
    fit: ArrayLike
    nugget: float
    words: str
    warning: str = ""


def maps_side_by_side(panels: Sequence[Panel], path: str | Path, *, title: str = "") -> Path:
    """Maps of different things on one frame, each with its own colour bar below."""
    if not panels:
        raise InputError("maps_side_by_side needs at least one panel")
    drawn = [shrunk(panel.values.transpose("lat", "lon")) for panel in panels]
    edges = [cell_edges(values) for values in drawn]
    west, south, east, north = min((box_of(*e) for e in edges), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    stretch = 1 / np.cos(np.deg2rad((south + north) / 2))
    columns = columns_of(len(panels))
    rows = -(-len(panels) // columns)
    width = {1: 6.5, 2: 9.0}.get(columns, 11.0)
    across = (width - 0.8) / columns - 0.3
    height = min(across * (north - south) * stretch / (east - west) + 1.15, 8.5) * rows + 0.8
    handles: dict[str, Any] = {}
    with page(path, width, height, title, layout="compressed", trim=True) as figure:
        figure.get_layout_engine().set(h_pad=0.11, w_pad=0.05)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax, panel, values, edge in zip(axes.flat, panels, drawn, edges, strict=False):
            handles |= _draw_panel(figure, ax, panel, values, edge)
            ax.set_xlim(west, east)
            ax.set_ylim(south, north)
            ax.set_aspect(stretch)
        finish_map_axes(axes, len(panels))
        if any(np.isnan(values.values).any() for values in drawn):
            handles["missing"] = Patch(facecolor=MISSING_FACE, edgecolor=MISSING_HATCH, hatch="////", label="missing")
        if handles:
            figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles))
    return Path(path)


def _draw_panel(figure: Figure, ax: Axes, panel: Panel, values: xr.DataArray, edges: Any) -> dict[str, Any]:
    """The map, its points and its colour bar; legend entries by name."""
    numbers = np.asarray(values.values, np.float64).ravel()
    low, high = panel.limits or (_spread_limits(numbers) if panel.kind == "spread" else _limits(numbers, panel.kind))
    norm, cmap = Normalize(low, high), COLOURS[panel.kind]
    draw_map(ax, values, edges, norm, cmap, None)
    ax.set_title(panel.title)
    bar = figure.colorbar(
        scale_of(norm, cmap), ax=ax, location="bottom", extend=extend_of(numbers, low, high), shrink=0.92, aspect=28
    )
    bar.set_label(panel.label, fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5))
    bar.outline.set_visible(False)  # type: ignore[operator]
    return {str(handle.get_label()): handle for handle in draw_points(ax, panel.points, norm, cmap)}


def _limits(values: NDArray[np.float64], kind: str) -> tuple[float, float]:
    return limits_of(values, kind == "difference")


def _spread_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """From zero to the 98th percentile."""
    finite = values[np.isfinite(values)]
    return 0.0, float(np.percentile(finite, 98)) or 0.01 if finite.size else 0.01


def variograms(panels: Mapping[str, Variogram], path: str | Path, *, label: str, title: str = "") -> Path:
    """Empirical variograms with their fits, one panel per group on one pair of axes; dots grow with their pairs.

    Parameters
    ----------
    panels : title -> variogram; label : of the semivariance, with its unit
    """
    if not panels:
        raise InputError("variograms needs at least one panel")
    columns = len(panels) if len(panels) <= 3 else 4 if len(panels) > 6 or len(panels) == 4 else 3
    columns = 2 if len(panels) == 4 else columns
    rows = -(-len(panels) // columns)
    with page(path, 1.0 + 3.1 * columns, 0.9 + 2.6 * rows, title) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        most = max([1.0, *(float(np.max(v.pairs)) for v in panels.values() if np.size(v.pairs))])
        for i, (ax, (name, found)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            _draw_variogram(ax, found, most)
            ax.set_title(name)
            if i + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel("distance (km)")
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        axes[0, 0].set_xlim(left=0)
        axes[0, 0].set_ylim(bottom=0, top=axes[0, 0].get_ylim()[1] * 1.45)  # room for the words
        figure.supylabel(label, fontsize=9.5)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=_POINTS, alpha=0.75, label="pairs of stations"),
            Line2D([], [], color=_FIT, linewidth=1.8, label="fitted model"),
            Line2D([], [], color=_NUGGET, linestyle=":", label="nugget"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return Path(path)


def _draw_variogram(ax: Axes, found: Variogram, most: float) -> None:
    ax.grid(True)
    size = 12 + 70 * np.sqrt(np.asarray(found.pairs, np.float64) / most)
    ax.scatter(found.lag, found.gamma, s=size, color=_POINTS, alpha=0.75, linewidths=0)
    ax.plot(found.h, found.fit, color=_FIT, linewidth=1.8)
    if np.size(found.h):
        ax.axhline(found.nugget, color=_NUGGET, linestyle=":", linewidth=1.2)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    ax.text(0.03, 0.97, found.words, transform=ax.transAxes, va="top", fontsize=7.5, linespacing=1.35, bbox=box)
    if found.warning:
        ax.text(0.03, 0.8, found.warning, transform=ax.transAxes, va="top", fontsize=7.5, color=_WARNING, bbox=box)


def reporting_stations(
    time: ArrayLike, count: ArrayLike, method: Sequence[str], path: str | Path, *, title: str = ""
) -> Path:
    """How many stations are compared with the map at each step, coloured by how the step was fused.

    Parameters
    ----------
    time : (t,) datetime64; count : (t,) stations; method : (t,) keys of `METHODS`. Many steps become points.
    """
    numbers, names = np.asarray(count), np.asarray(method)
    x = pd.DatetimeIndex(np.asarray(time))
    hours = float(np.median(np.diff(x.values) / np.timedelta64(1, "h"))) if len(x) > 1 else 12.0
    with page(path, 10.0, 3.2, title) as figure:
        ax = figure.subplots()
        ax.yaxis.grid(True)
        for name, colour in METHODS.items():
            own = names == name
            if not own.any():
                continue
            words = f"{label_of(name) if name != 'idw' else 'IDW'} ({spelled(own.sum())} steps)"
            if len(x) <= MAX_BARS:
                ax.bar(x[own], numbers[own], width=0.8 * hours / 24, color=colour, label=words)
            else:
                ax.plot(x[own], numbers[own], ".", color=colour, markersize=4, label=words)
        silent = x[numbers == 0]
        (crosses,) = ax.plot(silent, np.zeros(len(silent)), "x", color="#444444", markersize=4, clip_on=False)
        crosses.set_in_layout(False)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.margins(x=0.01)
        ax.set_ylabel("stations")
        _dates(ax)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Path(path)


def _dates(ax: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=9)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
