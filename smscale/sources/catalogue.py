"""What a folder of raw files holds: granules by product, date and tile, elevation tiles, stations; and what is missing.

Names say what a file is; where they do not, its metadata do; a few hundred bytes of it say whether it is whole. Layout of
the folder is free.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import rasterio

from smscale.errors import InputError
from smscale.places import Place, place, together, walk
from smscale.places.copies import local_copies
from smscale.sources import dem, stations
from smscale.sources.appeears import Layer, parse_layer
from smscale.sources.files import Kind, defect
from smscale.sources.identity import Identity, identify
from smscale.sources.needs import Box, Requirement, corner_of, requirements, touches, utc_days
from smscale.sources.products import FAMILIES, SERIES, SERIES_OF, TABLES, family_of, flying, how_to_get
from smscale.sources.products import calendar as calendar

_PATTERNS = [(re.compile(entry["pattern"]), entry) for entry in TABLES["names"]]

#: GeoTIFFs that come beside elevation and are none (ASTER GDEM's scene counts, Copernicus' masks, layers of MODIS and VIIRS).
_NOT_ELEVATION = re.compile(
    r"(_num|_qa|_wbm|_edm|_flm|_hem|_att)\.tiff?$|^(MCD|MOD|MYD|VNP|VJ1|VJ2)\d\d", re.IGNORECASE
)
#: Rasters of elevation hold these types; classes and masks are unsigned bytes.
_ELEVATION_TYPES = ("int16", "int32", "float32", "float64")
#: First bytes of files that may say themselves what they are.
_HDF_SUFFIXES = {".hdf": "HDF4", ".hdf4": "HDF4", ".h5": "HDF5", ".he5": "HDF5"}
_RAW_SUFFIXES = (*_HDF_SUFFIXES, ".nc", ".tif", ".tiff", ".stm", ".zip", ".csv", ".hgt", ".part")

Tile = tuple[int, int]


@dataclass(frozen=True)
class Granule:
    """One product file, as its name or its metadata tell.

    `date` is an ISO day (UTC; of a composite its first), `tile` (h, v) or None, `collection` "061" or "R18290",
    `production` what orders repeated productions, `part` tells apart half orbits or hours of one day, or areas.
    `layers` are the GeoTIFFs that AppEEARS cut a granule into; `path` is then the first of them.
    """

    path: Place
    product: str
    date: str
    tile: Tile | None
    collection: str
    production: str
    part: str = ""
    layers: tuple[Place, ...] = ()

    @property
    def family(self) -> str:
        """The family of products that it belongs to; its own name if none."""
        return family_of(self.product)

    @property
    def series(self) -> str:
        """What it may stand beside: its product, or that of day and night together."""
        return SERIES_OF.get(self.product, self.product)

    @property
    def sensor(self) -> str:
        """Instrument and platform, as "MODIS Aqua"; empty if unknown."""
        return SERIES[self.series].sensor if self.series in SERIES else ""

    @property
    def files(self) -> tuple[Place, ...]:
        """Every file of it."""
        return self.layers or (self.path,)

    @property
    def tile_name(self) -> str:
        """The tile as names write it, "h26v05"; empty without one."""
        return f"h{self.tile[0]:02d}v{self.tile[1]:02d}" if self.tile else ""


@dataclass(frozen=True)
class Missing:
    """What a folder lacks of one requirement: `absent` are its names, "2017-06-11 h26v05" or "N30E103".

    `keys` are the same as (date, tile, product): without a product where any of the family will do.
    """

    family: str
    wanted: int
    absent: tuple[str, ...]
    product: str = ""
    keys: tuple[tuple[str, str, str], ...] = ()

    @property
    def how(self) -> str:
        """Where such files come from."""
        return how_to_get(self.family, self.product)

    def __str__(self) -> str:
        shown = ", ".join(self.absent[:3]) + (f", … {self.absent[-1]}" if len(self.absent) > 3 else "")
        product = self.product or " or ".join(FAMILIES[self.family]["products"][:2])
        return (
            f"{self.family} ({product}): {len(self.absent)} of {self.wanted} missing: {shown}. Get them from {self.how}"
        )


@dataclass(frozen=True)
class Catalogue:
    """What `scan` found in a folder.

    `granules` the newest whole production of each product, date, tile; `dem_tiles` elevation rasters; `station_files`
    what `open_stations` takes (all of them at once: ISMN files, zips, CSV); `duplicates` older productions that were set aside; `unknown` files that are of no product read
    here; `problems` (path, reason) of files that are broken.
    """

    folder: Place
    granules: tuple[Granule, ...]
    dem_tiles: tuple[dem.DemTile, ...]
    station_files: tuple[Place, ...]
    duplicates: tuple[Granule, ...]
    unknown: tuple[Place, ...]
    problems: tuple[tuple[Place, str], ...]

    def select(
        self,
        family: str,
        dates: Collection[str] | None = None,
        tiles: Collection[Tile] | None = None,
        product: str | None = None,
    ) -> tuple[Granule, ...]:
        """Granules of a family (or product name), ordered by date, tile, product.

        Parameters
        ----------
        family : "SPL3SMP", "LST", "VI", "ET", "LC", or a product as "MYD11A1"
        dates : ISO days; None takes all
        tiles : (h, v); None takes all. Granules without a tile (AppEEARS' areas) are taken with any
        product : one product of the family, or a series ("VNP21A1": day and night)
        """
        return tuple(
            g
            for g in self.granules
            if family in (g.family, g.series, g.product)
            and (product is None or product in (g.product, g.series))
            and (dates is None or g.date in dates)
            and (tiles is None or g.tile is None or g.tile in tiles)
        )

    def dem_covering(self, box: Box) -> tuple[Place, ...]:
        """Elevation tiles that a box (west, south, east, north in degrees) touches."""
        return tuple(path for path, bounds in self._dem_boxes if touches(bounds, box))

    @cached_property
    def _dem_boxes(self) -> list[tuple[Place, Box]]:
        return [(tile.path, tile.box) for tile in self.dem_tiles]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Files by product, with DEM, STATIONS, duplicates, unknown and broken ones."""
        found: dict[str, int] = {}
        for granule in self.granules:
            found[granule.product] = found.get(granule.product, 0) + 1
        rest = {
            "DEM": len(self.dem_tiles),
            "STATIONS": len(self.station_files),
            "duplicates": len(self.duplicates),
            "unknown": len(self.unknown),
            "broken": len(self.problems),
        }
        return dict(sorted(found.items())) | rest

    def collections(self, family: str) -> dict[str, int]:
        """How many granules of each collection (or SMAP release) a family has: more than one should not be mixed."""
        found: dict[str, int] = {}
        for granule in self.select(family):
            found[granule.collection] = found.get(granule.collection, 0) + 1
        return found

    def of_one_series(
        self, family: str, dates: Collection[str] | None = None, tiles: Collection[Tile] | None = None
    ) -> tuple[Granule, ...]:
        """Granules of a family's first series that is there: views of different sensors are never mixed."""
        for series in FAMILIES[family]["products"]:
            if found := self.select(family, dates, tiles, series):
                return found
        return ()

    def needs(
        self,
        start: str,
        end: str,
        box: Box,
        stations_too: bool = True,
        products: Mapping[str, str] | None = None,
    ) -> tuple[Requirement, ...]:
        """What a run needs (see `requirements`), of one series each: of `products`, else that the folder holds, else that existed then."""
        first, last = (d.isoformat() for d in utc_days(date.fromisoformat(start), date.fromisoformat(end), box))
        days = {g.date for g in self.granules if _before(first) <= g.date <= last}
        held = {f: found[0].series for f in FAMILIES if (found := self.of_one_series(f, days))}
        existing = flying(date.fromisoformat(first), date.fromisoformat(last))
        chosen = {f: s.name for f, s in existing.items()} | held | dict(products or {})
        return requirements(start, end, box, stations_too, chosen)

    @cached_property
    def mixtures(self) -> tuple[str, ...]:
        """One line for each product of which there are several collections: how many files, and which dates."""
        lines = []
        for series in sorted({g.series for g in self.granules}):
            dates: dict[str, list[str]] = {}
            for granule in self.select(series):
                dates.setdefault(_release(granule.collection), []).append(granule.date)
            if len(dates) > 1:
                each = [f"{name} ({len(days)} files, {_span(days)})" for name, days in sorted(dates.items())]
                lines.append(f"{series}: collections are mixed: {', '.join(each)}")
        return tuple(lines)

    @cached_property
    def rivals(self) -> tuple[str, ...]:
        """One line for each family of which there are several series: which is taken, which are not."""
        lines = []
        for family, entry in FAMILIES.items():
            counts = {name: len(self.select(family, product=name)) for name in entry["products"]}
            names = [name for name, count in counts.items() if count]
            if len(names) > 1:
                others = ", ".join(f"{name} ({counts[name]} files)" for name in names[1:])
                lines.append(
                    f"{family}: {names[0]} ({counts[names[0]]} files) is taken where it is there; not {others}"
                )
        return tuple(lines)

    def missing(self, requirements: Iterable[Requirement]) -> tuple[Missing, ...]:
        """What the folder lacks; `str()` of each is one line that says which files and where to get them."""
        return tuple(lack for r in requirements if (lack := self._lack(r)) is not None)

    def _lack(self, requirement: Requirement) -> Missing | None:
        family = requirement.family
        if family not in FAMILIES:
            raise InputError(f"unknown family {family!r}; known are {', '.join(FAMILIES)}")
        if family == "STATIONS":
            return None if self.station_files else Missing(family, 1, ("station data",))
        if family == "DEM":
            lacking = tuple(name for name in requirement.tiles if not self.dem_covering(_inside_of(name)))
            return Missing(family, len(requirement.tiles), lacking) if lacking else None
        if not requirement.dates:
            held_any = self.select(family, product=requirement.product or None)
            return None if held_any else Missing(family, 1, ("any file",), requirement.product)
        return self._lack_of_dates(requirement)

    def _lack_of_dates(self, requirement: Requirement) -> Missing | None:
        """Where several products make one series, each is wanted, and named in what is absent."""
        family, product = requirement.family, requirement.product
        members = SERIES[product].members if product else ("",)
        held: set[tuple[str, str, str]] = set()
        for granule in self.select(family, product=product or None):
            tiles = (granule.tile_name,) if granule.tile and requirement.tiles else requirement.tiles or ("",)
            held |= {(granule.date, tile, granule.product if product else "") for tile in tiles}
        wanted = [
            (day, tile, member)
            for day in requirement.dates
            for tile in requirement.tiles or ("",)
            for member in members
        ]
        keys = tuple(key for key in wanted if key not in held)
        named = len(members) > 1
        absent = tuple(" ".join(filter(None, key if named else key[:2])) for key in keys)
        return Missing(family, len(wanted), absent, product, keys) if absent else None


def scan(folder: str | Place, columns: stations.ColumnMap | None = None) -> Catalogue:
    """Catalogue of a folder and what lies below it.

    Raises
    ------
    InputError
        if the folder does not exist.
    """
    folder = place(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the one that holds the raw files")
    files = sorted(_files_below(folder))
    found: list[Granule] = []
    layers: list[tuple[Layer, Place]] = []
    dems: list[dem.DemTile] = []
    station_files: list[Place] = []
    unknown: list[Place] = []
    problems: list[tuple[Place, str]] = []
    items = together(lambda path: _classify(path, columns), files, folder)
    for path, item in zip(files, items, strict=True):
        if isinstance(item, Granule):
            found.append(item)
        elif isinstance(item, Layer):
            layers.append((item, path))
        elif isinstance(item, dem.DemTile):
            dems.append(item)
        elif isinstance(item, str):
            problems.append((path, item))
        elif item:
            station_files.append(path)
        else:
            unknown.append(path)
    granules, duplicates = _newest([*found, *_assembled(layers)])
    return Catalogue(folder, granules, tuple(dems), tuple(station_files), duplicates, tuple(unknown), tuple(problems))


def _files_below(folder: Place) -> Iterator[Place]:
    """Files of a folder tree; Zarr stores and hidden folders are no raw files."""
    for root, folders, names in walk(folder):
        folders[:] = [f for f in folders if not f.endswith(".zarr") and not f.startswith(".")]
        yield from (root / name for name in names if not name.startswith("."))


def read_name(path: Place) -> Granule | None:
    """The granule that a file's name describes; None if it follows no pattern that is known."""
    for pattern, entry in _PATTERNS:
        if match := pattern.fullmatch(path.name):
            parts = match.groupdict()
            return Granule(
                path=path,
                product=entry.get("product") or parts["product"],
                date=_iso(parts),
                tile=(int(parts["h"]), int(parts["v"])) if parts.get("h") else None,
                collection=parts["collection"],
                production=parts["production"],
                part=parts.get("orbit") or "",
            )
    return None


def read_metadata(path: Place) -> Granule | None:
    """The granule that a renamed file's metadata describe; None if they say nothing, or name a product that is not read here."""
    facts = _identified(path)
    if facts is None or facts.product not in SERIES_OF:
        return None
    named = read_name(Path(facts.local_name)) if facts.local_name else None
    if named is not None and (named.product, named.date) == (facts.product, facts.date):
        return replace(named, path=path)
    return Granule(path, facts.product, facts.date, facts.tile, facts.collection, facts.production, facts.part)


def _identified(path: Place) -> Identity | None:
    with local_copies([path]) as (here,):
        return identify(here)


def _iso(parts: dict[str, Any]) -> str:
    if parts.get("doy"):
        return (date(int(parts["doy"][:4]), 1, 1) + timedelta(int(parts["doy"][4:]) - 1)).isoformat()
    day = parts["day"]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def _classify(path: Place, columns: stations.ColumnMap | None) -> Granule | Layer | dem.DemTile | str | bool:
    """A granule, a layer or an elevation tile, why it is broken, or whether it holds stations."""
    try:
        granule = read_name(path)
    except ValueError:
        return "its name holds no calendar date"
    suffix = path.suffix.lower()
    if granule is not None:
        kind: Kind = "HDF4" if suffix == ".hdf" else "HDF5"
        return defect(path, kind) or granule
    if suffix in _HDF_SUFFIXES:
        return _unnamed(path, "HDF4" if _HDF_SUFFIXES[suffix] == "HDF4" else "HDF5")
    if suffix in (".tif", ".tiff"):
        layer = parse_layer(path.name)
        return (defect(path, "TIFF") or layer) if layer else _elevation(path)
    if suffix == ".stm":
        return "_sm_" in path.name
    if suffix == ".zip":
        return _has_stations(path)
    if suffix == ".csv":
        return stations.is_station_csv(path, columns)
    if suffix == ".part":
        return "is an unfinished download: the same smscale fetch goes on with it"
    if suffix in _RAW_SUFFIXES and path.stat().st_size == 0:
        return "is empty (0 bytes): download it again"
    return False


def _unnamed(path: Place, kind: Kind) -> Granule | str | bool:
    """A file whose name says nothing: by its metadata; without them an HDF4 file is reported."""
    reason = defect(path, kind)
    if reason:
        return reason
    granule = read_metadata(path)
    if granule is None and kind == "HDF4" and _identified(path) is None:
        return (
            "neither its name nor its metadata say what it is (it has no CoreMetadata): "
            "name it as MYD11A1.A2017161.h26v05.061.….hdf"
        )
    return granule or False


def _assembled(layers: Iterable[tuple[Layer, Place]]) -> list[Granule]:
    """One granule of the layers of one product, date and area."""
    together: dict[tuple[str, str, str, str], list[Place]] = {}
    for layer, path in layers:
        together.setdefault((layer.product, layer.date, layer.collection, layer.area), []).append(path)
    return [
        Granule(paths[0], product, day, None, collection, "AppEEARS", area, tuple(paths))
        for (product, day, collection, area), paths in together.items()
    ]


def _elevation(path: Place) -> dem.DemTile | str | bool:
    if _NOT_ELEVATION.search(path.name):
        return False
    reason = defect(path, "TIFF")
    if reason:
        return reason
    try:
        with local_copies([path]) as (here,):
            tile = dem.describe(here)
            with rasterio.open(here) as file:
                return replace(tile, path=path) if file.dtypes[tile.band - 1] in _ELEVATION_TYPES else False
    except InputError as error:
        return str(error).partition(f"{path.name}: ")[2] or str(error)


def _has_stations(path: Place) -> str | bool:
    if path.stat().st_size == 0:
        return "is empty (0 bytes): download it again"
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return any(name.lower().endswith(".stm") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        return f"cannot be read as a zip archive ({error}): download it again"


def _newest(found: list[Granule]) -> tuple[tuple[Granule, ...], tuple[Granule, ...]]:
    """The newest production of each product, date, tile and part; and the others."""
    best: dict[tuple, Granule] = {}
    older: list[Granule] = []
    for granule in sorted(found, key=lambda g: (g.collection, g.production, str(g.path))):
        key = (granule.product, granule.date, granule.tile, granule.part)
        if key in best:
            older.append(best[key])
        best[key] = granule
    order = sorted(best.values(), key=lambda g: (g.date, g.tile or (-1, -1), g.product, g.part))
    return tuple(order), tuple(sorted(older, key=lambda g: str(g.path)))


def _inside_of(name: str) -> Box:
    """The middle of a 1 degree tile: tiles that only share an edge with it do not touch that."""
    lon, lat = corner_of(name)
    return lon + 0.4, lat + 0.4, lon + 0.6, lat + 0.6


def _release(collection: str) -> str:
    """What may not be mixed: of SMAP's composite releases ("R18290") the major one."""
    return collection[:3] if re.fullmatch(r"R\d{5}", collection) else collection


def _span(days: Collection[str]) -> str:
    first, last = min(days), max(days)
    return first if first == last else f"{first} to {last}"


def _before(day: str) -> str:
    """The first day of a composite that still reaches a day: a year before, for yearly maps."""
    return (date.fromisoformat(day) - timedelta(366)).isoformat()
