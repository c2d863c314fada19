"""init: a recipe for a region and a period, with what it needs worked out."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from math import cos, radians
from pathlib import Path
from typing import Any

from smscale import config
from smscale.errors import InputError, RecipeError
from smscale.grid import Grid
from smscale.pipeline.layout import COARSE_KM
from smscale.places import write_text
from smscale.sources import outline as outlines
from smscale.sources.needs import Box, Requirement, requirements, utc_days
from smscale.sources.products import FAMILIES, SERIES, TABLES, Series, calendar, flying

#: EASE-Grid 2.0 ends there, degrees of latitude.
EASE_LIMIT = 85.044
#: Kilometres of one degree of latitude.
DEGREE_KM = 111.2
#: SMAP cells on a side of which fewer leave a model little to learn from.
FEW_CELLS = 6
#: Of a recipe that is written.
CHUNKS = config.Chunks()
#: Widest line of the comments.
WIDTH = 116

Say = Callable[[str], Any]


@dataclass(frozen=True)
class _Facts:
    """What follows from a region, a period and a step."""

    name: str
    box: Box
    outline: Path | None
    start: date
    end: date
    step: float
    grid: Grid
    coarse: Grid
    series: dict[str, Series]
    needs: tuple[Requirement, ...]
    today: date

    @property
    def days(self) -> int:
        return (self.end - self.start).days + 1

    @property
    def sizes(self) -> dict[str, tuple[int, float]]:
        """Files and GB by family."""
        found = {}
        for need in self.needs:
            n = len(need.dates or ("",)) * len(need.tiles or ("",))
            if need.family == "DEM":
                found["DEM"] = n, n * TABLES["dem"]["copernicus"]["megabytes"] / 1000
            else:
                series = self.series[need.family]
                n *= len(series.members)
                found[need.family] = n, n * series.megabytes / 1000
        return found


def init(
    name: str,
    region: str | Sequence[float],
    period: str | Sequence[str],
    step: float = 0.01,
    inputs: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    say: Say = lambda text: None,
    today: date | None = None,
) -> Path:
    """Write a recipe: tiles, days, composites, products that existed then, sizes and the grid are worked out.

    Parameters
    ----------
    name : of the recipe, without spaces or slashes
    region : west, south, east, north in degrees ("97.35,26.05,108.54,34.31"), or a GeoJSON file with the region's outline
    period : first and last local solar day ("2017-06-10,2017-11-30")
    step : of the fine grid, degrees
    inputs : the folder of raw files, relative to the recipe; raw/NAME if not given
    out : the file to write; NAME.yaml if not given
    force : replace it if it is there

    Returns
    -------
    the file

    Raises
    ------
    SmscaleError
        in one line: a region or period that is none, or outside what SMAP sees; a file that is there already.
    """
    if not name or any(c in name for c in "/\\ :#"):
        raise RecipeError(f"init: the name is {name!r}; expected one without spaces, slashes, colons")
    path = Path(out or f"{name}.yaml")
    if path.exists() and not force:
        raise RecipeError(f"init: {path} is there already: give another --out, or --force to replace it")
    facts = _work_out(name, region, period, step, today or date.today())
    text = _recipe(facts, inputs or f"raw/{name}", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    config.read(path)
    files, gigabytes = (sum(column) for column in zip(*facts.sizes.values(), strict=True))
    rows, cols = facts.grid.shape
    say(
        f"wrote {path}: {rows} x {cols} cells of {step:g} degrees, {facts.days} days; {files:.0f} files, about {gigabytes:.1f} GB\n"
        + "".join(f"note  {warning}\n" for warning in _warnings(facts))
        + f"next  smscale fetch {path}, then smscale run {path}\n"
    )
    return path


# -- reading what was given -----------------------------------------------------------------------------


def _work_out(
    name: str, region: str | Sequence[float], period: str | Sequence[str], step: float, today: date
) -> _Facts:
    box, outline = _region(region)
    start, end = _period(period, today)
    if not 0.001 <= step <= 0.25:
        raise RecipeError(f"init: --step {step:g}: expected degrees between 0.001 and 0.25, as 0.01")
    grid = Grid.latlon(*box, step=step)
    if min(grid.shape) < 2:
        raise RecipeError(
            f"init: the region holds {grid.shape[0]} x {grid.shape[1]} cells of {step:g} degrees: enlarge it"
        )
    series = flying(*utc_days(start, end, box))
    products = {family: found.name for family, found in series.items()}
    needs = requirements(start.isoformat(), end.isoformat(), grid.bounds, False, products)
    coarse = Grid.ease2(COARSE_KM, *grid.bounds)
    return _Facts(name, box, outline, start, end, step, grid, coarse, series, needs, today)


def _region(region: str | Sequence[float]) -> tuple[Box, Path | None]:
    """West, south, east, north; and the outline's file, if it is one."""
    numbers: Sequence[Any] = region.split(",") if isinstance(region, str) else region
    try:
        west, south, east, north = (float(n) for n in numbers)
    except ValueError:
        path = Path(str(region))
        if isinstance(region, str) and (path.suffix.lower() in (".json", ".geojson") or path.is_file()):
            return _checked(outlines.bounds(outlines.read_outline(path)), str(region)), path
        raise RecipeError(
            f"init: --region {region}: expected west,south,east,north in degrees, as 97.35,26.05,108.54,34.31, or a GeoJSON file"
        ) from None
    return _checked((west, south, east, north), f"{west:g},{south:g},{east:g},{north:g}"), None


def _checked(box: Box, given: str) -> Box:
    west, south, east, north = box
    if not (-180 <= west < east <= 360 and -90 <= south < north <= 90):
        hint = "; are latitude and longitude swapped?" if max(abs(south), abs(north)) > 90 else ""
        raise RecipeError(
            f"init: --region {given}: expected west < east within -180 to 360 and south < north within -90 to 90{hint}"
        )
    if west >= 180:
        return _checked((west - 360, south, east - 360, north), given)
    if east > 180:
        raise InputError(
            f"init: --region {given}: crosses the 180th meridian, where SMAP's grid ends: make two recipes"
        )
    if south < -EASE_LIMIT or north > EASE_LIMIT:
        raise InputError(f"init: --region {given}: SMAP's grid ends at {EASE_LIMIT} degrees of latitude")
    return box


def _period(period: str | Sequence[str], today: date) -> tuple[date, date]:
    days = period.split(",") if isinstance(period, str) else list(period)
    try:
        start, end = (date.fromisoformat(str(day).strip()) for day in days)
    except ValueError:
        raise RecipeError(
            f"init: --period {','.join(map(str, days))}: expected first and last day, as 2017-06-10,2017-11-30"
        ) from None
    if end < start:
        raise RecipeError(f"init: --period {start},{end}: the last day lies before the first")
    first = date.fromisoformat(SERIES["SPL3SMP"].start)
    if start < first:
        raise InputError(f"init: --period {start},{end}: SMAP's soil moisture begins on {first}: start there or later")
    if start > today:
        raise InputError(
            f"init: --period {start},{end}: it lies ahead of today, {today}: nothing has been observed yet"
        )
    return start, end


def _warnings(facts: _Facts) -> list[str]:
    """What a user should know before fetching."""
    found = []
    for family, entry in FAMILIES.items():
        if family in ("DEM", "STATIONS"):
            continue
        series = facts.series.get(family)
        if series is None:
            names = ", ".join(f"{name} to {SERIES[name].end}" for name in entry["products"])
            found.append(f"{family}: no product that is read here exists in this period ({names}): a run will refuse")
            continue
        if series.overlap(facts.start, facts.end) < facts.days:
            lasts = f"from {series.start} to {series.end or 'now'}"
            found.append(f"{family}: {series.name} exists {lasts}, not all the period")
    if facts.end > facts.today:
        found.append(f"the period goes on to {facts.end}, after today, {facts.today}: fetch again later")
    rows, cols = facts.coarse.shape
    if min(rows, cols) < FEW_CELLS:
        found.append(
            f"the region holds {rows} x {cols} SMAP cells of {COARSE_KM} km: too few to learn from; "
            "a larger region trains better, and its maps can be cut (smscale export)"
        )
    return found


# -- writing the recipe -----------------------------------------------------------------------------------


def _recipe(facts: _Facts, inputs: str, path: Path) -> str:
    west, south, east, north = facts.box
    rows, cols = facts.grid.shape
    products = ", ".join(f"{f}: {facts.series[f].name}" for f in ("LST", "VI", "ET", "LC") if f in facts.series)
    region = f"region: [{west:.8g}, {south:.8g}, {east:.8g}, {north:.8g}] # west, south, east, north, degrees"
    if facts.outline is not None:
        region = (
            f"outline: {os.path.relpath(str(facts.outline), str(path.parent))} # cells outside it are masked\n{region}"
        )
    return f"""{_head(facts, path)}
name: {facts.name}
title: "{facts.name}, {_long(facts.start)} to {_long(facts.end)}"
# The folder of raw files, of any layout, relative to this recipe; station files too: ISMN (folders or zips), or CSV.
inputs: {inputs}
{region}
period: [{facts.start}, {facts.end}] # local solar days
seed: {facts.start.year}

# The fine grid, and how its cubes are cut: one chunk is read at a time, one shard is one file and one block of work.
grid: {{kind: latlon, step: {facts.step:g}}}
chunks: {{time: {CHUNKS.time}, lat: {min(CHUNKS.lat, rows)}, lon: {min(CHUNKS.lon, cols)}, shard: {list(CHUNKS.shard)}}}

# One product of each family; views of different sensors are never mixed.
products: {{{products}}}
smap: {{quality: weighted}} # strict | paper | weighted: mountain retrievals are kept, with less weight
modis: {{quality: paper}} # strict | paper | none
match: {{min_valid_fraction: 0.5, min_lst_valid_fraction: 0.3}}

# What scores the models is held out in blocks of space: neighbours on both sides of a random split flatter them.
split:
  validation: space-block
  fraction: 0.3
  inner: space-block
  compare: [random, time-block, space-block]

models:
  gabp:
  cnn:
  rf:
  xgb:

# Residuals at stations, spread over the maps; the stations that score this are held out whole.
fusion:
  holdout: 0.3
  holdout_unit: station
  variogram: exponential
"""


def _head(facts: _Facts, path: Path) -> str:
    """The comment on top: what the recipe needs."""
    rows, cols = facts.grid.shape
    _, south, _, north = facts.grid.bounds
    tall = facts.step * DEGREE_KM
    wide = tall * cos(radians((south + north) / 2))
    coarse = "{} x {}".format(*facts.coarse.shape)
    lines = [
        f"# {facts.name}: soil moisture of {_degrees(facts.box)}, {_long(facts.start)} to {_long(facts.end)}.",
        f"# Written by smscale init. smscale fetch {path.name} downloads what is missing of this:",
        "#",
        f"#   {'family':<9}{'product':<26}{'dates':<44}{'files':>7}{'GB':>8}",
    ]
    for need in facts.needs:
        files, gigabytes = facts.sizes[need.family]
        product, dates = _product(facts, need), _dates(facts, need)
        lines.append(f"#   {need.family:<9}{product:<26}{dates:<44}{files:>7}{max(gigabytes, 0.1):>8.1f}")
    total, size = (sum(column) for column in zip(*facts.sizes.values(), strict=True))
    lines += [f"#   {'in all, about':<79}{total:>7.0f}{size:>8.1f}", "#"]
    lines += _wrapped(f"MODIS tiles: {' '.join(_tiles(facts))}")
    lines += _wrapped(f"Elevation tiles (1 degree, by south-western corner): {_degree_range(facts)}")
    lines += _wrapped(
        f"Grid: {rows} x {cols} cells of {facts.step:g} degrees (about {tall:.2f} x {wide:.2f} km); {coarse} SMAP cells of {COARSE_KM} km; "
        f"{facts.days} days, {2 * facts.days} overpasses."
    )
    for series in facts.series.values():
        for remark in series.remarks_for(facts.start, facts.end):
            lines += _wrapped(f"{series.name} ({series.sensor}): {remark}.")
    for warning in _warnings(facts):
        lines += _wrapped(f"NOTE: {warning}")
    return "\n".join(lines)


def _product(facts: _Facts, need: Requirement) -> str:
    if need.family == "DEM":
        return TABLES["dem"]["copernicus"]["title"]
    series = facts.series[need.family]
    return f"{series.name}{'D+N' if len(series.members) > 1 else ''} {series.version}"


def _dates(facts: _Facts, need: Requirement) -> str:
    """Which dates of a family, in words."""
    if need.family == "DEM":
        return "-"
    series = facts.series[need.family]
    if series.every_days == 1:
        return f"{need.dates[0]} to {need.dates[-1]}, UTC days"
    if series.every_days >= 365:
        years = [day[:4] for day in need.dates]
        return years[0] if len(years) == 1 else f"{years[0]} to {years[-1]}"
    first = calendar(series.name, facts.start, facts.end)[0][0]
    return f"{len(need.dates)} composites of {series.days} days from {first}"


def _tiles(facts: _Facts) -> tuple[str, ...]:
    return next((need.tiles for need in facts.needs if need.family not in ("DEM", "SPL3SMP")), ())


def _degree_range(facts: _Facts) -> str:
    tiles = facts.needs[-1].tiles
    return f"{tiles[0]} to {tiles[-1]}" if len(tiles) > 1 else tiles[0]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)


def _degrees(box: Box) -> str:
    west, south, east, north = box
    return f"{_lon(west)} to {_lon(east)}, {_lat(south)} to {_lat(north)}"


def _lon(value: float) -> str:
    value = (value + 180.0) % 360.0 - 180.0 if value > 180.0 else value
    return f"{abs(value):g}°{'W' if value < 0 else 'E'}"


def _lat(value: float) -> str:
    return f"{abs(value):g}°{'S' if value < 0 else 'N'}"


def _long(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"
