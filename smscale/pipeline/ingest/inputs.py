"""Which files a run reads: found in a folder, told apart, and what is set aside or missing named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smscale import sinusoidal
from smscale.config import Recipe
from smscale.cube import AREA, Lattice, lst_file_dates
from smscale.errors import InputError, RecipeError
from smscale.grid import Grid
from smscale.pipeline.layout import Layout
from smscale.places import Place
from smscale.places.copies import local_copies
from smscale.sources.appeears import lattice_of
from smscale.sources.catalogue import FAMILIES, Catalogue, Granule, scan
from smscale.sources.dem import DemTile
from smscale.sources.needs import Box, touches
from smscale.sources.products import calendar
from smscale.sources.quality import checked_errors
from smscale.sources.stations import ColumnMap, why_no_station_csv

#: Families without which there is no map.
REQUIRED = ("SPL3SMP", "LST", "VI", "ET", "LC", "DEM")
#: Composites: cadence -> family.
COMPOSITES = {"eight_day": "ET", "sixteen_day": "VI"}
#: Companions of product files that nobody reads: documentation, previews, metadata, station descriptions.
IGNORED = (".xml", ".txt", ".md", ".yaml", ".json", ".jsonl", ".jpg", ".png", "static_variables.csv", ".qml", ".pdf")
#: Elevation pixels beyond a block that are read: slope and aspect need the pixel after the one that its edge cuts.
DEM_HALO_PIXELS = 3

Tile = tuple[int, int]
#: Files of one date: tile -> paths (day and night of VIIRS are two).
OfDate = Mapping[Tile, tuple[str, ...]]


@dataclass(frozen=True)
class Inputs:
    """The files of one run: granules of each family, elevation tiles, stations, and what was set aside and why.

    dem_boxes : west, south, east, north of each elevation tile, degrees
    dem_halo : how far beyond a block elevation is read, degrees
    described : tables that say where the stations lie
    problems : (name, why) of every file that is not read, and of what is missing
    """

    granules: Mapping[str, tuple[Granule, ...]]
    dem: tuple[str, ...]
    dem_boxes: tuple[Box, ...]
    dem_halo: float
    stations: tuple[str, ...]
    described: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def files(self) -> list[str]:
        """Every file that is read."""
        granules = [path for found in self.granules.values() for g in found for path in map(str, g.files)]
        return [*granules, *self.dem, *self.stations, *self.described]

    def dem_touching(self, grid: Grid) -> tuple[str, ...]:
        """Elevation tiles that a window and its halo touch; none where none touches the window itself."""
        wide = _padded(grid.bounds, self.dem_halo)
        if not any(touches(box, grid.bounds) for box in self.dem_boxes):
            return ()
        return tuple(path for path, box in zip(self.dem, self.dem_boxes, strict=True) if touches(box, wide))

    def by_date(self, family: str) -> dict[str, dict[Tile, tuple[str, ...]]]:
        """The files of a family: date -> tile -> paths."""
        found: dict[str, dict[Tile, tuple[str, ...]]] = {}
        for granule in self.granules[family]:
            tiles = found.setdefault(granule.date, {})
            tile = granule.tile or AREA
            tiles[tile] = (*tiles.get(tile, ()), *map(str, granule.files))
        return found

    def lattice(self, family: str) -> Lattice | None:
        """The pixels of a family whose layers were cut out of their tiles (AppEEARS); None for whole tiles."""
        first = next(iter(self.granules[family]), None)
        if first is None or not first.layers:
            return None
        with local_copies([first.path]) as (here,):
            return Lattice(*lattice_of(here))

    def composites(self, cadence: str, layout: Layout) -> list[tuple[str, str]]:
        """First and last day of the composites of which there is a granule, within the period and one on each side of it."""
        granules = self.granules[COMPOSITES[cadence]]
        if not granules:
            return []
        there = {g.date for g in granules}
        days = calendar(granules[0].product, *layout.widened(composite_length(cadence)))
        return [(str(first), str(last)) for first, last in days if str(first) in there]

    @property
    def years(self) -> list[int]:
        """Years of the land cover."""
        return sorted({int(g.date[:4]) for g in self.granules["LC"]})


def _padded(box: Box, margin: float) -> Box:
    west, south, east, north = box
    return west - margin, max(south - margin, -90.0), east + margin, min(north + margin, 90.0)


def _halo(tiles: Sequence[DemTile]) -> float:
    """Degrees of `DEM_HALO_PIXELS` of the widest pixels."""
    widths = [0.0]
    for tile in tiles:
        west, south, east, north = tile.box
        widths += [(east - west) / tile.shape[1], (north - south) / tile.shape[0]]
    return DEM_HALO_PIXELS * max(widths)


def composite_length(cadence: str) -> int:
    """Days of a whole composite."""
    return {"eight_day": 8, "sixteen_day": 16}[cadence]


def gather(folder: Place, layout: Layout, recipe: Recipe) -> Inputs:
    """What a run takes from a folder; refuses where one family is not there at all."""
    _check_settings(recipe)
    columns = column_map(recipe)
    catalogue = scan(folder, columns) if folder.is_dir() else Catalogue(folder, (), (), (), (), (), ())
    granules = _granules(catalogue, layout, recipe)
    halo = _halo(catalogue.dem_tiles)
    covering = set(catalogue.dem_covering(_padded(layout.grid.bounds, halo)))
    tiles_of_dem = [tile for tile in catalogue.dem_tiles if tile.path in covering]
    dem = tuple(str(tile.path) for tile in tiles_of_dem)
    absent = [family for family in REQUIRED if not (dem if family == "DEM" else granules[family])]
    if absent:
        where = (
            f"{folder}: " if folder.is_dir() else f"inputs: there is no folder {folder}; it should hold the raw files. "
        )
        raise InputError(where + _what_is_missing(catalogue, layout, absent, recipe.products))
    stations = _station_files(catalogue, columns is not None)
    described = _describing(stations, columns)
    problems = _set_aside(catalogue, granules, [*stations, *described], layout, columns)
    boxes = tuple(tile.box for tile in tiles_of_dem)
    return Inputs(granules, dem, boxes, halo, tuple(map(str, stations)), tuple(map(str, described)), tuple(problems))


def _check_settings(recipe: Recipe) -> None:
    """Refuse products and errors that no reader knows before anything is done."""
    where = Path(recipe.path).name
    families = [family for family in FAMILIES if family not in ("DEM", "STATIONS")]
    for family, product in recipe.products.items():
        if family not in families:
            raise RecipeError(f"{where}: key products: found {family}, expected families among {', '.join(families)}")
        known = FAMILIES[family]["products"]
        if product not in known:
            raise RecipeError(f"{where}: key products.{family}: found {product!r}, expected one of {', '.join(known)}")
    try:
        checked_errors(recipe.smap.errors)
    except InputError as error:
        raise RecipeError(f"{where}: key smap.errors: {error}") from None


def _granules(catalogue: Catalogue, layout: Layout, recipe: Recipe) -> dict[str, tuple[Granule, ...]]:
    """Granules by family, of one series of products each: Aqua's and Terra's views are not mixed."""
    bounds, (start, end) = layout.grid.bounds, layout.period
    tiles = set(sinusoidal.tiles_of_box(*bounds))
    smap = [str(d) for d in np.arange(np.datetime64(start) - 1, np.datetime64(end) + 2)]
    dates: dict[str, list[str] | None] = {"SPL3SMP": smap, "LST": lst_file_dates(start, end, layout.grid.lon)}
    wide = {family: layout.widened(composite_length(cadence)) for cadence, family in COMPOSITES.items()}
    longest = max(map(composite_length, COMPOSITES))  # one that reaches into the period began before it
    dates |= {
        family: [str(d) for d in np.arange(np.datetime64(first) - longest, np.datetime64(last) + 1)]
        for family, (first, last) in wide.items()
    }
    dates["LC"] = None
    found = {}
    for family, days in dates.items():
        where = None if family == "SPL3SMP" else tiles
        series = recipe.products.get(family)
        if series is None:
            found[family] = _of_one_form(catalogue.of_one_series(family, days, where))
        else:
            found[family] = _of_one_form(catalogue.select(family, days, where, series))
    found["LC"] = _near_years(found["LC"], int(start[:4]), int(end[:4]))
    return found


def _near_years(granules: tuple[Granule, ...], first: int, last: int) -> tuple[Granule, ...]:
    """Land cover of the period's years, and of the nearest year before and after them."""
    years = sorted({int(g.date[:4]) for g in granules})
    before, after = [y for y in years if y < first][-1:], [y for y in years if y > last][:1]
    kept = {*before, *after, *(y for y in years if first <= y <= last)}
    return tuple(g for g in granules if int(g.date[:4]) in kept)


def _of_one_form(granules: tuple[Granule, ...]) -> tuple[Granule, ...]:
    """Whole files, where there is one; else the layers of one area."""
    if any(not g.layers for g in granules):
        return tuple(g for g in granules if not g.layers)
    return tuple(g for g in granules if g.part == granules[0].part)


def _set_aside(
    catalogue: Catalogue,
    granules: Mapping[str, Sequence[Granule]],
    stations: Sequence[Place],
    layout: Layout,
    columns: ColumnMap | None,
) -> list[tuple[str, str]]:
    """Every file that is not read, and every one that is missing: (name, why)."""
    aside = [(g.path.name, "an older production of a granule that is there twice") for g in catalogue.duplicates]
    used = {g.path for found in granules.values() for g in found}
    aside += [
        (g.path.name, "outside the region or period, or of another product or area")
        for g in catalogue.granules
        if g.path not in used
    ]
    aside += [
        (p.name, _why_unknown(p, columns))
        for p in catalogue.unknown
        if not p.name.endswith(IGNORED) and p not in stations
    ]
    aside += [(p.name, reason) for p, reason in catalogue.problems]
    series = {family: found[0].series for family, found in granules.items() if found}
    aside += [
        (lack.family, str(lack))
        for lack in catalogue.missing(catalogue.needs(*layout.period, layout.grid.bounds, products=series))
    ]
    aside += [("several products", line) for line in (*catalogue.mixtures, *catalogue.rivals)]
    other = "stations of another form (ISMN files, or tables) beside those that are read"
    return aside + [(p.name, other) for p in catalogue.station_files if p not in stations]


def _why_unknown(path: Place, columns: ColumnMap | None) -> str:
    """Of a table, what it lacks of what the recipe says of tables."""
    lacks = why_no_station_csv(path, columns) if columns is not None and path.suffix == ".csv" else None
    return "not a file that is read here" + (f": as a table of stations it {lacks}" if lacks else "")


def column_map(recipe: Recipe) -> ColumnMap | None:
    """How the station tables of a recipe are read, its own station table found beside the recipe or beside the data."""
    if recipe.stations is None:
        return None
    columns = ColumnMap.from_mapping(recipe.stations, where=f"{Path(recipe.path).name}: stations")
    beside = recipe.resolve(str(columns.table)) if columns.table else None
    return replace(columns, table=str(beside)) if beside is not None and beside.is_file() else columns


def _station_files(catalogue: Catalogue, mapped: bool) -> list[Place]:
    """Tables, where the recipe says how to read them; else ISMN files where there are some (a nature run has both), else all."""
    is_ismn = {path: path.suffix in (".stm", ".zip") for path in catalogue.station_files}
    return [path for path, ismn in is_ismn.items() if ismn != mapped] or list(is_ismn)


def _describing(stations: Sequence[Place], columns: ColumnMap | None) -> list[Place]:
    """The tables that say where the stations lie: beside each file of values, or where the recipe has it."""
    if columns is None or columns.table is None:
        return []
    where: list[Place] = [*(file.parent / columns.table for file in stations), Path(columns.table)]
    return list(dict.fromkeys(found for found in where if found.is_file()))


def _what_is_missing(catalogue: Catalogue, layout: Layout, absent: Sequence[str], products: Mapping[str, str]) -> str:
    """Which files are not there; and which are, but broken: those may be the same."""
    needs = catalogue.needs(*layout.period, layout.grid.bounds, stations_too=False, products=products)
    named = "; ".join(str(m) for m in catalogue.missing(needs) if m.family in absent)
    known = ", ".join(f"{f} ({products.get(f) or ' or '.join(FAMILIES[f]['products'])})" for f in absent)
    broken = [f"{path.name} {reason}" for path, reason in catalogue.problems]
    more = f"; … {len(broken) - 3} more" if len(broken) > 3 else ""
    return (named or f"nothing for the region and period of {known}") + (
        f". Broken files there: {'; '.join(broken[:3])}{more}" if broken else ""
    )
