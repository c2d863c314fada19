"""What a folder of raw files holds: granules by product, date and tile, elevation tiles, stations; and what is missing.

Names say what a file is; a few hundred bytes of it say whether it is whole. Layout of the folder is free.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.schema import composites
from smscale.sources import dem, stations
from smscale.sources.files import Kind, defect

_TABLES: dict[str, Any] = json.loads((files("smscale.sources") / "products.json").read_text())
FAMILIES: dict[str, dict[str, Any]] = _TABLES["families"]
_PATTERNS = [(re.compile(entry["pattern"]), entry) for entry in _TABLES["names"]]
_FAMILY_OF = {product: family for family, entry in FAMILIES.items() for product in entry["products"]}

#: GeoTIFFs that come beside elevation and are none (ASTER GDEM's scene counts, Copernicus' masks, MODIS layers as GeoTIFF).
_NOT_ELEVATION = re.compile(r"(_num|_qa|_wbm|_edm|_flm|_hem|_att)\.tiff?$|^(MCD|MOD|MYD)\d\d", re.IGNORECASE)
#: Rasters of elevation hold these types; classes and masks are unsigned bytes.
_ELEVATION_TYPES = ("int16", "int32", "float32", "float64")
_RAW_SUFFIXES = (".h5", ".hdf", ".nc", ".tif", ".tiff", ".stm", ".zip", ".csv", ".hgt")

Tile = tuple[int, int]


@dataclass(frozen=True)
class Granule:
    """One product file, as its name tells.

    `date` is an ISO day (UTC; of a composite its first), `tile` (h, v) or None, `collection` "061" or "R18290",
    `production` what orders repeated productions, `part` tells apart half orbits or hours of one day.
    """

    path: Path
    product: str
    date: str
    tile: Tile | None
    collection: str
    production: str
    part: str = ""

    @property
    def family(self) -> str:
        """The family of products that it belongs to; its own name if none."""
        return _FAMILY_OF.get(self.product, self.product)

    @property
    def tile_name(self) -> str:
        """The tile as names write it, "h26v05"; empty without one."""
        return f"h{self.tile[0]:02d}v{self.tile[1]:02d}" if self.tile else ""


@dataclass(frozen=True)
class Requirement:
    """What a run needs of one family: every date with every tile; without dates any one file.

    `dates` are ISO days, `tiles` "h26v05" names or, for DEM, "N30E103".
    """

    family: str
    dates: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """What a folder lacks of one requirement."""

    family: str
    wanted: int
    absent: tuple[str, ...]

    @property
    def how(self) -> str:
        """Where such files come from."""
        return FAMILIES[self.family]["how"]

    def __str__(self) -> str:
        shown = ", ".join(self.absent[:3]) + (f", … {self.absent[-1]}" if len(self.absent) > 3 else "")
        product = " or ".join(FAMILIES[self.family]["products"][:2])
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

    folder: Path
    granules: tuple[Granule, ...]
    dem_tiles: tuple[dem.DemTile, ...]
    station_files: tuple[Path, ...]
    duplicates: tuple[Granule, ...]
    unknown: tuple[Path, ...]
    problems: tuple[tuple[Path, str], ...]

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
        tiles : (h, v); None takes all
        product : one product of the family
        """
        return tuple(
            g
            for g in self.granules
            if family in (g.family, g.product)
            and (product is None or g.product == product)
            and (dates is None or g.date in dates)
            and (tiles is None or g.tile in tiles)
        )

    def dem_covering(self, box: dem.Box) -> tuple[Path, ...]:
        """Elevation tiles that a box (west, south, east, north in degrees) touches."""
        return tuple(path for path, bounds in self._dem_boxes if _touches(bounds, box))

    @cached_property
    def _dem_boxes(self) -> list[tuple[Path, dem.Box]]:
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
        held = {(g.date, g.tile_name if requirement.tiles else "") for g in self.select(family)}
        if not requirement.dates:
            return None if held else Missing(family, 1, ("any file",))
        wanted = [(day, tile) for day in requirement.dates for tile in requirement.tiles or ("",)]
        absent = tuple(" ".join(filter(None, key)) for key in wanted if key not in held)
        return Missing(family, len(wanted), absent) if absent else None


def scan(folder: str | Path) -> Catalogue:
    """Catalogue of a folder and what lies below it.

    Raises
    ------
    InputError
        if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the one that holds the raw files")
    found: list[Granule] = []
    dems: list[dem.DemTile] = []
    station_files: list[Path] = []
    unknown: list[Path] = []
    problems: list[tuple[Path, str]] = []
    for path in sorted(_files_below(folder)):
        item = _classify(path)
        if isinstance(item, Granule):
            found.append(item)
        elif isinstance(item, dem.DemTile):
            dems.append(item)
        elif isinstance(item, str):
            problems.append((path, item))
        elif item:
            station_files.append(path)
        else:
            unknown.append(path)
    granules, duplicates = _newest(found)
    return Catalogue(folder, granules, tuple(dems), tuple(station_files), duplicates, tuple(unknown), tuple(problems))


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder tree; Zarr stores and hidden folders are no raw files."""
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.endswith(".zarr") and not f.startswith(".")]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def read_name(path: Path) -> Granule | None:
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


def _iso(parts: dict[str, Any]) -> str:
    if parts.get("doy"):
        return (date(int(parts["doy"][:4]), 1, 1) + timedelta(int(parts["doy"][4:]) - 1)).isoformat()
    day = parts["day"]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def _classify(path: Path) -> Granule | dem.DemTile | str | bool:
    """A granule, an elevation tile, why it is broken, or whether it holds stations."""
    try:
        granule = read_name(path)
    except ValueError:
        return "its name holds no calendar date"
    if granule is not None:
        kind: Kind = "HDF4" if path.suffix == ".hdf" else "HDF5"
        return defect(path, kind) or granule
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        return _elevation(path)
    if suffix == ".stm":
        return "_sm_" in path.name
    if suffix == ".zip":
        return _has_stations(path)
    if suffix == ".csv":
        return stations.is_station_csv(path)
    if suffix in _RAW_SUFFIXES and path.stat().st_size == 0:
        return "is empty (0 bytes): download it again"
    return False


def _elevation(path: Path) -> dem.DemTile | str | bool:
    if _NOT_ELEVATION.search(path.name):
        return False
    reason = defect(path, "TIFF")
    if reason:
        return reason
    try:
        tile = dem.describe(path)
        return tile if tile.dtype in _ELEVATION_TYPES else False
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")


def _has_stations(path: Path) -> str | bool:
    if path.stat().st_size == 0:
        return "is empty (0 bytes): download it again"
    try:
        with zipfile.ZipFile(path) as archive:
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


def _touches(a: dem.Box, b: dem.Box) -> bool:
    return a[0] < b[2] and a[2] > b[0] and a[1] < b[3] and a[3] > b[1]


# -- what a region and a period need --------------------------------------------------------------


def requirements(start: str, end: str, box: dem.Box, stations_too: bool = True) -> tuple[Requirement, ...]:
    """What the chain needs for local solar days `start` to `end` (ISO) over a box (west, south, east, north).

    SPL3SMP and LST are cut by UTC day: the day before (east of Greenwich) or after (west) belongs to it.
    """
    first, last = date.fromisoformat(start), date.fromisoformat(end)
    utc_first = first - timedelta(days=box[2] > 0)
    utc_last = last + timedelta(days=box[0] < 0)
    tiles = tuple(f"h{h:02d}v{v:02d}" for h, v in sinusoidal.tiles_of_box(*box))
    daily = tuple((utc_first + timedelta(i)).isoformat() for i in range((utc_last - utc_first).days + 1))
    years = tuple(f"{year}-01-01" for year in range(first.year, last.year + 1))
    needed = (
        Requirement("SPL3SMP", daily),
        Requirement("LST", daily, tiles),
        Requirement("ET", _composite_days(first, last, 8), tiles),
        Requirement("VI", _composite_days(first, last, 16), tiles),
        Requirement("LC", years, tiles),
        Requirement("DEM", tiles=degree_tiles(box)),
    )
    return (*needed, Requirement("STATIONS")) if stations_too else needed


def _composite_days(start: date, end: date, length: int) -> tuple[str, ...]:
    return tuple(first.isoformat() for first, _ in composites(start, end, length))


def degree_tiles(box: dem.Box) -> tuple[str, ...]:
    """Names such as "N30E103" (south-western corner) of the 1 degree tiles that a box touches."""
    west, south, east, north = box
    return tuple(
        f"{'N' if lat >= 0 else 'S'}{abs(lat):02d}{'E' if lon >= 0 else 'W'}{abs(lon):03d}"
        for lat in range(_floor(south), _ceil(north))
        for lon in range(_floor(west), _ceil(east))
    )


def _inside_of(name: str) -> dem.Box:
    """The middle of a 1 degree tile: tiles that only share an edge with it do not touch that."""
    lat = int(name[1:3]) * (1 if name[0] == "N" else -1)
    lon = int(name[4:7]) * (1 if name[3] == "E" else -1)
    return lon + 0.4, lat + 0.4, lon + 0.6, lat + 0.6


def _floor(value: float) -> int:
    return int(value // 1)


def _ceil(value: float) -> int:
    return -int(-value // 1)
