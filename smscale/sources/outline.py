"""Outlines of regions: GeoJSON polygons in longitude and latitude (RFC 7946)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.transform import from_bounds

from smscale.errors import InputError
from smscale.grid import Grid, ease2_forward


def read_outline(path: str | Path) -> list[dict[str, Any]]:
    """The polygons of a GeoJSON file: a geometry, a feature or a collection of features.

    Raises
    ------
    InputError
        if the file is not there, is no GeoJSON, or holds no polygon.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"outline: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no GeoJSON ({error})") from None
    polygons = [dict(g) for g in _geometries(document) if g.get("type") in ("Polygon", "MultiPolygon")]
    if not polygons:
        raise InputError(
            f"{path}: holds no Polygon or MultiPolygon; give the outline of a region as GeoJSON in longitude, latitude"
        )
    return polygons


def _geometries(document: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(document, Mapping):
        return
    if document.get("type") == "FeatureCollection":
        for feature in document.get("features", []):
            yield from _geometries(feature)
    elif document.get("type") == "Feature":
        yield from _geometries(document.get("geometry"))
    elif document.get("type") == "GeometryCollection":
        for geometry in document.get("geometries", []):
            yield from _geometries(geometry)
    else:
        yield document


def bounds(polygons: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """West, south, east, north of polygons, degrees."""
    points = np.concatenate([np.asarray(ring, np.float64)[:, :2] for ring in _rings(polygons)])
    west, south = points.min(axis=0)
    east, north = points.max(axis=0)
    return float(west), float(south), float(east), float(north)


def inside(polygons: list[dict[str, Any]], grid: Grid) -> NDArray[np.bool_]:
    """(lat, lon) bool: cells whose centre lies within the polygons. Edges are straight in the grid's own projection."""
    rows, cols = grid.shape
    if grid.x is None:
        west, south, east, north = grid.bounds
        return geometry_mask(polygons, grid.shape, from_bounds(west, south, east, north, cols, rows), invert=True)
    (west, east), (south, north) = ease2_forward(grid.lon_edges[[0, -1]], grid.lat_edges[[-1, 0]])
    projected = [{"type": p["type"], "coordinates": _projected(p["coordinates"])} for p in polygons]
    return geometry_mask(projected, grid.shape, from_bounds(west, south, east, north, cols, rows), invert=True)


def _projected(coordinates: Any) -> Any:
    if isinstance(coordinates[0], (int, float)):
        x, y = ease2_forward(coordinates[0], coordinates[1])
        return float(x), float(y)
    return [_projected(part) for part in coordinates]


def _rings(polygons: list[dict[str, Any]]) -> Iterator[Any]:
    for polygon in polygons:
        parts = [polygon["coordinates"]] if polygon["type"] == "Polygon" else polygon["coordinates"]
        for part in parts:
            yield from part
