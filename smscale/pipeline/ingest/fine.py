"""Blocks of the fine cubes: LST and composites band by band, land cover, terrain.

A band is a row of the grid's windows over one row of MODIS tiles. Its tiles are read from west to east, each file once; a
window is written and dropped as soon as its last tile has come, so that memory does not grow with the region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from smscale import cube, schema, sinusoidal, store
from smscale.blocks import spans
from smscale.errors import ElsewhereError, InputError
from smscale.grid import Grid
from smscale.kernels.lookup import Coded
from smscale.pipeline.ingest.inputs import OfDate, Tile, composite_length
from smscale.pipeline.ingest.report import problem
from smscale.places.copies import local_copies
from smscale.sources.appeears import parse_layer, read_coded_layers
from smscale.sources.dem import open_dem
from smscale.sources.modis import read_coded

#: Pixels along a tile's side, and sub-points along a fine cell's side, by family.
PIXELS = {"LST": (1200, 1), "VI": (1200, 1), "ET": (2400, 3), "LC": (2400, 3)}
#: How far the pixels of two dates of one request may lie apart, in pixels.
SAME_PIXELS = 1e-3
#: Rows of the grid whose elevation is held at once: of 3 degrees of 1 arc-second tiles some 80 MB.
STRIP = 50
#: The view that serves an overpass step.
VIEWS = {"AM": "night", "PM": "day"}

Window = tuple[slice, slice]
Gathered = TypeVar("Gathered")


@dataclass(frozen=True)
class Source:
    """Where the files of one family lie and how they are read: whole tiles, or layers of one area (`lattice`)."""

    family: str
    qc: str
    lattice: cube.Lattice | None = None

    def touching(self, part: Grid) -> list[Tile]:
        """Tiles under a part of the grid, west to east."""
        return [cube.AREA] if self.lattice else sinusoidal.tiles_of_box(*part.bounds)

    def window(self, part: Grid) -> cube.TileWindow:
        pixels, k = PIXELS[self.family]
        return cube.raster_window(part, self.lattice, k) if self.lattice else cube.tile_window(part, pixels, k)

    def granules(self, files: Sequence[str]) -> list[Sequence[str]]:
        """Files that are read together: layers of an area all at once, tiles one by one."""
        return [files] if self.lattice and files else [[file] for file in files]

    def read(self, files: Sequence[str], names: Sequence[str]) -> tuple[Mapping[str, Coded], Mapping[str, Any]]:
        """The files' layers and facts; refuses what does not lie on the pixels that windows are made for."""
        if self.lattice is None:
            tile = read_coded(files[0], names or None, self.qc)  # type: ignore[arg-type]
            side = PIXELS[self.family][0]
            if (tile.y.size, tile.x.size) != (side, side):
                raise InputError(
                    f"{files[0]}: has {tile.y.size} x {tile.x.size} pixels, a whole tile {side} x {side}: download it whole"
                )
            return tile.layers, tile.attrs
        paths = {layer.layer: file for file in files if (layer := parse_layer(file)) is not None}
        layers, transform, crs, attrs = read_coded_layers(paths, self.qc)  # type: ignore[arg-type]
        shape = next(iter(layers.values())).raw.shape
        if not _alike(self.lattice, cube.Lattice(transform, crs, (shape[0], shape[1]))):
            raise InputError(f"{files[0]}: lies on other pixels than the first date of its request: download it again")
        if lacking := [name for name in names if name not in layers]:
            raise InputError(f"{files[0]}: no layer of {', '.join(lacking)} lies beside it: order it too")
        return layers, attrs


def _alike(a: cube.Lattice, b: cube.Lattice) -> bool:
    """Whether two rasters have the same pixels."""
    apart = np.abs(np.subtract(a.transform, b.transform)).max()
    return (a.crs, a.shape) == (b.crs, b.shape) and bool(apart <= SAME_PIXELS * a.transform[0])


@dataclass(eq=False)
class _Open(Generic[Gathered]):
    """A window at work: what its tiles have given so far."""

    place: Window
    window: cube.TileWindow
    gathered: Gathered


def _walk(
    source: Source, grid: Grid, tiles: Sequence[Window], begin: Callable[[cube.TileWindow], Gathered]
) -> Iterator[tuple[Tile, list[_Open[Gathered]], list[_Open[Gathered]]]]:
    """Tiles from west to east, each with the windows that it touches and those of them that it finishes."""
    parts = [grid.window(*place) for place in tiles]
    touching = [source.touching(part) for part in parts]
    opened: dict[int, _Open[Gathered]] = {}
    for tile in sorted({tile for found in touching for tile in found}):
        here = [i for i, found in enumerate(touching) if tile in found]
        for i in here:
            if i not in opened:
                window = source.window(parts[i])
                opened[i] = _Open(tiles[i], window, begin(window))
        touched = [opened[i] for i in here if tile in opened[i].window.tiles]
        yield tile, touched, [opened[i] for i in here if touching[i][-1] == tile]
        for i in here:
            if touching[i][-1] == tile:
                del opened[i]


def _read(
    source: Source, files: Sequence[str], names: Sequence[str], problems: list[dict[str, Any]]
) -> Iterator[tuple[Mapping[str, Coded], Mapping[str, Any]]]:
    """Layers and facts of the files of one tile and date that can be read; the others are named."""
    for some in source.granules(files):
        with local_copies(some) as copies:
            here = list(map(str, copies))
            try:
                yield source.read(here, names)
            except InputError as error:
                problems.append(problem(here[0], error))


def _words(counts: Mapping[str, np.ndarray], products: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Counts of quality words that occur: "product layer" -> word -> number of sub-points."""
    return {
        f"{products[layer]} {layer}": {str(word): int(found[word]) for word in np.flatnonzero(found)}
        for layer, found in counts.items()
        if found.any()
    }


def overpass_block(
    path: str,
    group: str,
    region: slice,
    tiles: Sequence[Window],
    grid: Grid,
    labels: Sequence[tuple[str, str]],
    files: Mapping[str, OfDate],
    source: Source,
) -> dict[str, Any]:
    """LST and its view time of some steps on one band.

    region : the steps within the group; labels : their (local date, overpass); files : UTC date -> tile -> paths
    """
    own_dates = {day for day, _ in labels}
    problems: list[dict[str, Any]] = []
    written, words = [], cube.quality_words(VIEWS)
    valid = empty = without = cells = 0
    products: dict[str, str] = {}
    values: np.ndarray | None = None
    came: dict[str, set[Tile]] = {date: set() for date in own_dates & set(files)}
    for tile, touched, done in _walk(source, grid, tiles, lambda window: cube.LocalViews(window, labels, words)):
        for date in sorted(files):
            for found, attrs in _read(source, files[date].get(tile, ()), (), problems):
                came.get(date, set()).add(tile)
                for overpass, view in VIEWS.items():
                    lst, times = found.get(f"lst_{view}"), found.get(f"lst_view_time_{view}")
                    if lst is not None and times is not None:
                        products[view] = attrs["product"]
                        for each in touched:
                            each.gathered.add(tile, date, overpass, lst, times, counted=date in own_dates)
                    elif lst is not None or times is not None:
                        what = f"LST of the {view} and its view time do not both lie there: left out"
                        problems.append({"file": Path(files[date][tile][0]).name, "what": what, "count": 1})
        for each in done:
            values = each.gathered.result(values)
            written.append(store.write(path, group, "values", (region, *each.place, slice(0, 2)), values))
            valid += each.gathered.valid
            cells += values[..., 0].size
            empty += each.gathered.empty
            without += sum(each.window.cells_without(tiles_of_date) for tiles_of_date in came.values())
    return {
        "written": written,
        "problems": problems,
        "cells_without_tile": without,
        "valid": valid,
        "cells": cells,
        "quality": {"words": _words({VIEWS[o]: w for o, w in words.items()}, products), "empty": empty},
    }


def composite_block(
    path: str, cadence: str, index: int, tiles: Sequence[Window], grid: Grid, files: OfDate, source: Source
) -> dict[str, Any]:
    """The variables of one composite on one band."""
    names = schema.CADENCES[cadence]
    problems: list[dict[str, Any]] = []
    written, words = [], cube.quality_words(names)
    valid = empty = without = cells = 0
    product, length = "", composite_length(cadence)
    whole = composite_length(cadence)

    def begin(window: cube.TileWindow) -> dict[str, cube.Mean]:
        return {name: cube.Mean(window, words[name]) for name in names}

    for tile, touched, done in _walk(source, grid, tiles, begin):
        for found, attrs in _read(source, files.get(tile, ()), names, problems):
            product, length = attrs["product"], int(attrs["composite_days"])
            for each in touched:
                for name in names:
                    each.gathered[name].add(tile, found[name])
        for each in done:
            # A sum over the year's last, shorter composite as a sum over a whole one: et is per 8 days in every one.
            factors = [np.float32(whole / length if name == "et" else 1) for name in names]
            layers = [mean.result() * factor for mean, factor in zip(each.gathered.values(), factors, strict=True)]
            values = np.stack(layers, axis=-1)[None]
            region = (slice(index, index + 1), *each.place, slice(0, len(names)))
            written.append(store.write(path, f"fine/{cadence}", "values", region, values))
            valid += int(np.isfinite(values[..., 0]).sum())
            cells += values[..., 0].size
            first = each.gathered[names[0]]
            empty += first.empty
            without += each.window.cells_without(first.came)
    return {
        "written": written,
        "problems": problems,
        "cells_without_tile": without,
        "valid": valid,
        "cells": cells,
        "quality": {"words": _words(words, dict.fromkeys(names, product)), "empty": empty},
    }


def land_cover_block(
    path: str, index: int, tiles: Sequence[Window], grid: Grid, files: OfDate, source: Source
) -> dict[str, Any]:
    """Majority class, and share of each class, of one year on one band."""
    problems: list[dict[str, Any]] = []
    written = []
    valid = without = cells = 0
    for tile, touched, done in _walk(source, grid, tiles, lambda window: cube.Classes(window, len(schema.IGBP) + 1)):
        for found, _ in _read(source, files.get(tile, ()), ("land_cover",), problems):
            for each in touched:
                each.gathered.add(tile, found["land_cover"])
        for each in done:
            year = slice(index, index + 1)
            values, shares = each.gathered.majority(), each.gathered.percent()[1:]
            region = (year, slice(0, shares.shape[0]), *each.place)
            written.append(store.write(path, "fine/land_cover", "land_cover", (year, *each.place), values[None]))
            written.append(store.write(path, "fine/land_cover", "land_cover_fraction", region, shares[None]))
            valid += int((values != schema.LAND_COVER_FILL).sum())
            cells += values.size
            without += each.window.cells_without(each.gathered.came)
    return {"written": written, "problems": problems, "cells_without_tile": without, "valid": valid, "cells": cells}


def static_block(path: str, place: Window, grid: Grid, dem: Sequence[str], halo: float) -> dict[str, Any]:
    """Terrain on one window of the grid, from the elevation of it and of `halo` degrees around it, strip by strip."""
    names = schema.CADENCES["static"]
    values = np.full((*grid.shape, len(names)), np.nan, np.float32)
    counts = {"voids": 0, "overlap_conflicts": 0}
    problems: list[dict[str, Any]] = []
    with local_copies(dem) as here:
        for rows in spans(grid.shape[0], STRIP) if dem else ():
            strip = grid.window(rows, slice(0, grid.shape[1]))
            west, south, east, north = strip.bounds
            box = (west - halo, max(south - halo, -90), east + halo, min(north + halo, 90))
            try:
                elevation = open_dem(here, box=box)
                layers = cube.static_layers(elevation, strip)
            except ElsewhereError:  # tiles that touch the window, and not this strip
                continue
            for name in counts:
                counts[name] += int(elevation.attrs[name])
            if elevation.attrs["holes"]:
                problems.append(_hole(elevation.attrs))
            values[rows] = np.stack([layers[name].values for name in names], axis=-1)
    if counts["overlap_conflicts"]:
        problems.append(_conflict(dem, counts["overlap_conflicts"]))
    receipt = store.write(path, "fine/static", "values", (*place, slice(0, len(names))), values)
    return {
        "dem": counts,
        "written": [receipt],
        "problems": problems,
        "valid": int(np.isfinite(values[..., 0]).sum()),
        "cells": values[..., 0].size,
    }


def _conflict(dem: Sequence[str], pixels: int) -> dict[str, Any]:
    """Elevation tiles that overlap and differ; `pixels` are those of one window."""
    names = ", ".join(sorted(Path(path).name for path in dem))
    what = f"elevation tiles overlap and differ by more than 0.1 m: the first by name is taken, of {names}"
    return {"file": "DEM", "what": what, "count": pixels}


def _hole(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What no elevation tile covers, among those that a window touches."""
    what = f"no elevation tile covers {attrs['hole_boxes']}"
    return {"file": "DEM", "what": what, "count": int(attrs["holes"])}
