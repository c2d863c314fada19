"""Figures of maps and of the series that are read from them: fields side by side, how values are spread, how they go in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
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
from smscale.evaluate.palette import colour_of, label_of, line_of
from smscale.evaluate.report import spelled

Floats = NDArray[np.float64]

#: Width of a full figure, inches.
WIDTH = 8.0


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
            ax.plot(
                *_density(values, low, high), label=f"{label_of(name)} (n = {spelled(values.size)})", **line_of(name)
            )
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
            ax.plot(table.index, values, label=label_of(str(name)), **line_of(str(name)), marker="o", markersize=size)
            lone = _lone(values)
            ax.plot(table.index[lone], values[lone], "o", markersize=3.0, color=colour_of(str(name)))
        ax.set_ylabel(label)
        ax.margins(x=0.01)
        _date_axis(ax, table.index)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(table.columns), 6))
    return Path(path)


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


def _light(colour: str) -> tuple[float, float, float]:
    """The colour, two thirds of the way to white."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (red + 2) / 3, (green + 2) / 3, (blue + 2) / 3


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
