"""What every figure is drawn on: a page in one style, written as the same bytes each time, and maps with their true cells."""

from __future__ import annotations

from collections.abc import Iterator
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
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from smscale.evaluate.palette import label_of
from smscale.grid import ease2_inverse
from smscale.places import file_to_write

Floats = NDArray[np.float64]

#: Dots per inch: an 8 inch figure is 1120 pixels wide.
DPI = 140

#: Cells along one side above which a map is averaged down before it is drawn.
MAX_MAP_CELLS = 1200

SOIL_MOISTURE = "soil moisture (m³ m⁻³)"

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

MISSING_FACE, MISSING_HATCH = "#e8e8e8", "#b4b4b4"


@contextmanager
def page(
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
    with file_to_write(path) as half:
        figure.savefig(half, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches=box)


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


def _edges(centres: Floats, step: float) -> Floats:
    if centres.size == 1:
        return np.array([centres[0] - step / 2, centres[0] + step / 2])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def box_of(lon_edges: Floats, lat_edges: Floats) -> tuple[float, float, float, float]:
    """West, south, east, north of edges."""
    return float(lon_edges.min()), float(lat_edges.min()), float(lon_edges.max()), float(lat_edges.max())


def shrunk(panel: xr.DataArray) -> xr.DataArray:
    """The map with at most `MAX_MAP_CELLS` cells a side: means of square blocks of cells, missing ones left out."""
    factor = -(-max(panel.shape) // MAX_MAP_CELLS)
    if factor == 1:
        return panel.load()
    window = {dim: factor for dim in ("lat", "lon") if panel.sizes[dim] >= factor}
    return panel.coarsen(window, boundary="trim").mean().load()  # type: ignore[attr-defined]


def limits_of(values: Floats, diverging: bool) -> tuple[float, float]:
    """Ends of a colour scale: the 2nd and 98th percentile, rounded outwards to 0.01; about zero for differences."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (-0.1, 0.1) if diverging else (0.0, 0.5)
    if diverging:
        reach = max(float(np.ceil(np.percentile(np.abs(finite), 98) * 100) / 100), 0.01)
        return -reach, reach
    low, high = np.percentile(finite, [2, 98])
    low, high = np.floor(low * 100 + 1e-6) / 100, np.ceil(high * 100 - 1e-6) / 100
    return float(low), float(max(high, low + 0.01))


def extend_of(values: Floats, low: float, high: float) -> str:
    """Where values lie beyond a colour scale, as a colour bar names it."""
    finite = values[np.isfinite(values)]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def columns_of(count: int) -> int:
    """Panels per row of so many."""
    return count if count <= 3 else {4: 2, 5: 3, 6: 3, 9: 3}.get(count, 4)


def scale_of(norm: Normalize, cmap: str) -> Any:
    """What a colour bar is made from."""
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm, cmap)


def relief_of(elevation: xr.DataArray) -> Floats:
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


def draw_map(
    ax: Axes, panel: xr.DataArray, edges: tuple[Floats, Floats], norm: Normalize, cmap: str, shade: Floats | None
) -> None:
    """One map at its cells' edges, missing cells hatched."""
    lon, lat = edges
    ax.set_facecolor(MISSING_FACE)
    ax.patch.set_hatch("////")
    ax.patch.set_edgecolor(MISSING_HATCH)
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


def draw_points(ax: Axes, points: pd.DataFrame | None, norm: Normalize, cmap: str) -> list[Any]:
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


def finish_map_axes(axes: NDArray[Any], used: int) -> None:
    """Degrees at the outer axes; axes beyond those used are removed."""
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
