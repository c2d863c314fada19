"""Polygons on a rectilinear grid: the exact area of each cell that lies within.

Everything is in the plane of EASE-Grid 2.0 (EPSG:6933), which keeps areas, and in which any longitude-latitude cell is a
rectangle. A polygon's area in a cell follows from its boundary (Green's theorem): each piece of an edge within one cell
adds the area to its right in that cell, and its height times the width of every cell further right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.grid import Grid, ease2_forward

Floats = NDArray[np.float64]

#: Degrees along an edge after which a corner is added: RFC 7946 has edges straight in longitude and latitude. Between two such
#: corners an edge is off by some centimetres.
DENSE = 0.01


@dataclass(frozen=True)
class Polygon:
    """A named area: rings of (n, 2) float64 longitude, latitude in degrees, closed; holes marked."""

    name: str
    rings: tuple[tuple[Floats, bool], ...]


def read_polygons(path: Path) -> list[Polygon]:
    """The polygons of a GeoJSON file, each feature one; named by `id`, `name`, or their number.

    Raises
    ------
    InputError
        if the file is not there, is no GeoJSON, holds no polygon, or names two the same.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"--polygons: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no GeoJSON ({error})") from None
    found = []
    for number, (properties, geometries) in enumerate(_features(document), start=1):
        rings = tuple(ring for geometry in geometries for ring in _rings(path, geometry))
        if rings:
            found.append(Polygon(_name(properties, number), rings))
    if not found:
        raise InputError(f"{path}: holds no Polygon or MultiPolygon; give areas as GeoJSON in longitude, latitude")
    names = [polygon.name for polygon in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two polygons are named {', '.join(twice)}; give each its own id")
    return found


def _features(document: Any) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Properties (with the feature's id) and geometries of each feature."""
    if not isinstance(document, Mapping):
        return
    if document.get("type") == "FeatureCollection":
        for feature in document.get("features") or ():
            yield from _features(feature)
    elif document.get("type") == "Feature":
        properties = dict(document.get("properties") or {})
        if document.get("id") is not None:
            properties["id"] = document["id"]
        yield properties, list(_geometries(document.get("geometry")))
    else:
        yield {}, list(_geometries(document))


def _geometries(geometry: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(geometry, Mapping):
        return
    if geometry.get("type") == "GeometryCollection":
        for part in geometry.get("geometries") or ():
            yield from _geometries(part)
    elif geometry.get("type") in ("Polygon", "MultiPolygon"):
        yield geometry


def _name(properties: Mapping[str, Any], number: int) -> str:
    for key in ("id", "ID", "name", "NAME"):
        if properties.get(key) not in (None, ""):
            return str(properties[key])
    return str(number)


def _rings(path: Path, geometry: Mapping[str, Any]) -> Iterator[tuple[Floats, bool]]:
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for part in parts:
        for i, ring in enumerate(part):
            try:
                points = np.array([corner[:2] for corner in ring], np.float64)
            except (TypeError, ValueError):
                points = np.empty((0, 2))
            if len(points) < 3 or not np.all(np.isfinite(points)) or np.abs(points[:, 1]).max() > 90:
                raise InputError(f"{path}: a ring needs at least 3 corners of longitude, latitude in degrees")
            yield np.vstack([points, points[:1]]), i > 0


def cell_areas(polygon: Polygon, grid: Grid) -> tuple[tuple[slice, slice], Floats, float]:
    """Where a polygon lies on a grid, and how much of it.

    Returns
    -------
    window : rows and columns that it touches
    areas : (rows, columns) float64, km2: area of each cell of the window within the polygon
    area : km2, of the whole polygon, on the grid or not
    """
    x_edges, _ = ease2_forward(grid.lon_edges, 0.0)
    _, y_edges = ease2_forward(0.0, grid.lat_edges)
    y_edges = y_edges[::-1]  # ascending while areas are added
    rings = [(_plane(ring, grid), hole) for ring, hole in polygon.rings]
    whole = sum(abs(_area(points)) * (-1 if hole else 1) for points, hole in rings)
    corners = np.vstack([points for points, _ in rings])
    low_x, high_x = _span(x_edges, corners[:, 0])
    low_y, high_y = _span(y_edges, corners[:, 1])
    areas = np.zeros((high_y - low_y, high_x - low_x))
    for points, hole in rings if areas.size else ():
        part = np.zeros_like(areas)
        _add(part, points, x_edges[low_x : high_x + 1], y_edges[low_y : high_y + 1])
        areas += part * (np.sign(_area(points)) * (-1 if hole else 1))
    m = grid.shape[0]
    window = slice(m - high_y, m - low_y), slice(low_x, high_x)
    return window, np.maximum(areas[::-1], 0.0) / 1e6, whole / 1e6


def _plane(ring: Floats, grid: Grid) -> Floats:
    """(n, 2) metres: a ring in the plane, its long edges with more corners, turned to the grid's longitudes."""
    lon, lat = ring.T
    middle, centre = (lon.min() + lon.max()) / 2, (grid.lon_edges[0] + grid.lon_edges[-1]) / 2
    lon = lon + 360.0 * np.round((centre - middle) / 360.0)
    pieces = np.maximum(1, np.ceil(np.hypot(np.diff(lon), np.diff(lat)) / DENSE).astype(int))
    start = np.repeat(np.arange(pieces.size), pieces)
    share = (np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / np.repeat(pieces, pieces)
    dense = [c[start] + share * (c[start + 1] - c[start]) for c in (lon, lat)]
    x, y = ease2_forward(np.append(dense[0], lon[-1]), np.append(dense[1], lat[-1]))
    return np.column_stack([x, y])


def _area(points: Floats) -> float:
    """Signed area of a closed ring, positive where it runs counterclockwise."""
    x, y = (points - points[0]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _span(edges: Floats, values: Floats) -> tuple[int, int]:
    """First and one past the last cell between ascending edges that values reach; the same where they reach none."""
    low = int(np.searchsorted(edges, values.min(), side="right")) - 1
    high = int(np.searchsorted(edges, values.max(), side="left"))
    low, high = max(low, 0), min(high, edges.size - 1)
    return (low, high) if high > low else (0, 0)


def _add(areas: Floats, points: Floats, x_edges: Floats, y_edges: Floats) -> None:
    """Add a ring's signed area within each cell; rows and columns ascend."""
    rows, cols = areas.shape
    x, y, rise = _pieces(points, x_edges, y_edges)
    row = np.searchsorted(y_edges, y, side="right") - 1
    inside = (row >= 0) & (row < rows)
    row, x, rise = row[inside], np.clip(x[inside], x_edges[0], x_edges[-1]), rise[inside]
    col = np.searchsorted(x_edges, x, side="right") - 1  # cols: right of the grid, nothing lies further right
    row, col, x, rise = (values[col < cols] for values in (row, col, x, rise))
    # Counterclockwise, the inside is left of a rising edge: the area to its right is taken away.
    np.add.at(areas, (row, col), -rise * (x_edges[col + 1] - x))
    height = np.zeros((rows, cols + 1))  # of edges, by the first column that lies wholly to their right
    np.add.at(height, (row, col + 1), rise)
    areas -= np.cumsum(height[:, :cols], axis=1) * np.diff(x_edges)


def _pieces(points: Floats, x_edges: Floats, y_edges: Floats) -> tuple[Floats, Floats, Floats]:
    """Edges of a ring cut where they cross those of cells: middle x, middle y and rise of each piece."""
    start, step = points[:-1], np.diff(points, axis=0)
    whole = np.arange(len(step))
    owners, shares = [whole, whole], [np.zeros(len(step)), np.ones(len(step))]
    for axis, edges in ((0, x_edges), (1, y_edges)):
        ends = np.stack([points[:-1, axis], points[1:, axis]])
        first = np.searchsorted(edges, ends.min(axis=0), side="right")
        count = np.maximum(np.searchsorted(edges, ends.max(axis=0), side="left") - first, 0)
        owner = np.repeat(whole, count)
        crossed = edges[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())]
        owners.append(owner)
        shares.append((crossed - start[owner, axis]) / step[owner, axis])
    owner, share = np.concatenate(owners), np.concatenate(shares)
    order = np.lexsort((share, owner))
    owner, share = owner[order], share[order]
    same = owner[1:] == owner[:-1]
    owner, middle, length = owner[:-1][same], ((share[1:] + share[:-1]) / 2)[same], np.diff(share)[same]
    place = start[owner] + middle[:, None] * step[owner]
    return place[:, 0], place[:, 1], length * step[owner, 1]
