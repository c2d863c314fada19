"""What a region and a period need of each family of products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.sources.products import FAMILIES, SERIES, calendar, flying

Box = tuple[float, float, float, float]
#: Families that have a calendar, in the order of the chain.
DATED = ("SPL3SMP", "LST", "ET", "VI", "LC")
#: Families that are cut by UTC day.
DAILY = ("SPL3SMP", "LST")


@dataclass(frozen=True)
class Requirement:
    """What a run needs of one family: every date with every tile; without dates any one file.

    `dates` are ISO days, `tiles` "h26v05" names or, for DEM, "N30E103". `product` is the series that it must be (all of its
    products); empty takes any of the family.
    """

    family: str
    dates: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()
    product: str = ""


def requirements(
    start: str, end: str, box: Box, stations_too: bool = True, products: Mapping[str, str] | None = None
) -> tuple[Requirement, ...]:
    """What the chain needs for local solar days `start` to `end` (ISO) over a box (west, south, east, north).

    Parameters
    ----------
    products : the series by family, as {"LST": "VJ121A1"}: its own dates are asked for, and nothing else will do. Of other
        families the dates are those of what existed then, and any product of the family will do.
    """
    start_day, end_day = date.fromisoformat(start), date.fromisoformat(end)
    utc = utc_days(start_day, end_day, box)
    products = products or {}
    for family, product in products.items():
        _check_series(family, product)
    existing = {family: series.name for family, series in flying(*utc).items()}
    needed = []
    for family in DATED:
        series = products.get(family) or existing.get(family)
        if series is None:
            continue
        period = utc if family in DAILY else (start_day, end_day)
        begun = date.fromisoformat(SERIES[series].start)
        dates = tuple(first.isoformat() for first, last in calendar(series, *period) if last >= begun)
        tiles = () if family == "SPL3SMP" else modis_tiles(box)
        needed.append(Requirement(family, dates, tiles, products.get(family, "")))
    needed.append(Requirement("DEM", tiles=degree_tiles(box)))
    return (*needed, Requirement("STATIONS")) if stations_too else tuple(needed)


def _check_series(family: str, product: str) -> None:
    if family not in DATED:
        raise InputError(f"products: {family!r} is no family of products; known are {', '.join(DATED)}")
    if product not in FAMILIES[family]["products"]:
        expected = ", ".join(FAMILIES[family]["products"])
        raise InputError(f"products: {family}: found {product!r}, expected one of {expected}")


def utc_days(first: date, last: date, box: Box) -> tuple[date, date]:
    """First and last UTC day of local solar days: the day before east of Greenwich, the day after west of it."""
    return first - timedelta(days=box[2] > 0), last + timedelta(days=box[0] < 0)


def modis_tiles(box: Box) -> tuple[str, ...]:
    """Names such as "h26v05" of the sinusoidal tiles that a box touches."""
    return tuple(f"h{h:02d}v{v:02d}" for h, v in sinusoidal.tiles_of_box(*box))


def degree_tiles(box: Box) -> tuple[str, ...]:
    """Names such as "N30E103" (south-western corner) of the 1 degree tiles that a box touches."""
    west, south, east, north = box
    return tuple(
        f"{'N' if lat >= 0 else 'S'}{abs(lat):02d}{'E' if lon >= 0 else 'W'}{abs(lon):03d}"
        for lat in range(_floor(south), _ceil(north))
        for lon in map(_wrapped, range(_floor(west), _ceil(east)))
    )


def corner_of(name: str) -> tuple[int, int]:
    """Longitude and latitude of the south-western corner of a 1 degree tile."""
    return int(name[4:7]) * (1 if name[3] == "E" else -1), int(name[1:3]) * (1 if name[0] == "N" else -1)


def _wrapped(lon: int) -> int:
    return (lon + 180) % 360 - 180


def touches(a: Box, b: Box) -> bool:
    """Whether two boxes have an area in common."""
    return a[0] < b[2] and a[2] > b[0] and a[1] < b[3] and a[3] > b[1]


def _floor(value: float) -> int:
    return int(value // 1)


def _ceil(value: float) -> int:
    return -int(-value // 1)
