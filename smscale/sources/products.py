"""Products of satellites and models: families that serve the same purpose, and which product exists when.

Facts stand in products.json. A series is what is never mixed with another: one product of one sensor, or the day and
night products of VIIRS together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from typing import Any

TABLES: dict[str, Any] = json.loads((files("smscale.sources") / "products.json").read_text())
FAMILIES: dict[str, dict[str, Any]] = TABLES["families"]

Days = tuple[date, date]


@dataclass(frozen=True)
class Series:
    """One product, or the products that make one together.

    `members` are the products whose files all are needed; `every_days` from one composite's start to the next, `days` in
    a composite, `first_day` the day of year on which a year's first one starts; composites `over_new_year` go on into
    January, others end on 31 December. `end` is an announced or expected end, None where there is none. `megabytes` of
    a typical file. `note` says where facts come from; `remarks` are for whoever uses it, of some periods or all.
    """

    name: str
    sensor: str
    version: str
    start: str
    archive: str
    page: str
    megabytes: float
    members: tuple[str, ...] = ()
    end: str | None = None
    every_days: int = 1
    days: int = 1
    first_day: int = 1
    over_new_year: bool = False
    note: str = ""
    remarks: tuple[dict[str, str], ...] = ()

    @property
    def how(self) -> str:
        """Where its files come from."""
        return f"{TABLES['archives'][self.archive]}: {self.page}; smscale fetch RECIPE downloads them"

    def overlap(self, start: date, end: date) -> int:
        """Days of a period in which it exists."""
        first = max(start, date.fromisoformat(self.start))
        last = min(end, date.fromisoformat(self.end)) if self.end else end
        return max(0, (last - first).days + 1)

    def remarks_for(self, start: date, end: date) -> list[str]:
        """What to know of it in a period."""
        first, last = start.isoformat(), end.isoformat()
        return [r["text"] for r in self.remarks if r.get("from", "") <= last and first <= r.get("to", "9999")]


def _series(name: str, facts: dict[str, Any]) -> Series:
    lists = {"members": tuple(facts.get("members", (name,))), "remarks": tuple(facts.get("remarks", ()))}
    return Series(name=name, **{**facts, **lists})


SERIES: dict[str, Series] = {name: _series(name, facts) for name, facts in TABLES["series"].items()}
#: Series of each product.
SERIES_OF: dict[str, str] = {product: series.name for series in SERIES.values() for product in series.members}
FAMILY_OF: dict[str, str] = {name: family for family, entry in FAMILIES.items() for name in entry["products"]}


def family_of(product: str) -> str:
    """The family of a product; its own name if it is of none."""
    series = SERIES_OF.get(product, product)
    return FAMILY_OF.get(series, product)


def how_to_get(family: str, series: str = "") -> str:
    """Where files of a family come from."""
    named = series or FAMILIES[family]["products"][0]
    return FAMILIES[family].get("how") or SERIES[named].how


def calendar(product: str, start: str | date, end: str | date) -> tuple[Days, ...]:
    """First and last day of every day, composite or year of a product (or series) that touches the days `start` to `end`."""
    facts = SERIES[SERIES_OF.get(product, product)]
    first_day, last_day = _day(start), _day(end)
    if facts.every_days == 1:
        return tuple((day, day) for day in _days(first_day, last_day))
    found = []
    for year in range(first_day.year - 1, last_day.year + 1):
        found += [days for days in _of_year(facts, year) if days[0] <= last_day and days[1] >= first_day]
    return tuple(found)


def _day(day: str | date) -> date:
    return date.fromisoformat(day) if isinstance(day, str) else day


def _of_year(facts: Series, year: int) -> list[Days]:
    """Composites that start in a year."""
    new_year, new_years_eve = date(year, 1, 1), date(year, 12, 31)
    if facts.every_days >= 365:
        return [(new_year, new_years_eve)]
    starts = [new_year + timedelta(n) for n in range(facts.first_day - 1, 365, facts.every_days)]
    ends = [first + timedelta(facts.days - 1) for first in starts]
    return [(a, b if facts.over_new_year else min(b, new_years_eve)) for a, b in zip(starts, ends, strict=True)]


def _days(start: date, end: date) -> list[date]:
    return [start + timedelta(n) for n in range((end - start).days + 1)]


def flying(start: date, end: date) -> dict[str, Series]:
    """The series to take of each family for a period: the first that exists all through it, else the one that does longest.

    Families of which nothing exists in the period are left out.
    """
    chosen = {}
    for family, entry in FAMILIES.items():
        candidates = [SERIES[name] for name in entry["products"] if name in SERIES]
        best = max(candidates, key=lambda series: series.overlap(start, end), default=None)
        if best and best.overlap(start, end):
            chosen[family] = best
    return chosen
