"""From what sensors said to one series a sensor: places, units, flags, doubles; what is one station and what is two.

Nothing is spliced or averaged: another place, depth or sensor is another series. Of sensors that measured at the same time at one
place one is taken; what followed one another is kept apart. Whatever is left out or read otherwise than it stands is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.schema import VARIABLES

#: Values that networks write for "missing" (they are not errors of a sensor).
MISSING_CODES = (-99.0, -999.0, -9999.0, 9999.0, 999.9)
#: A station of which more than this share of the values lies in 1..100 reports percent; below the second it mixes units.
_PERCENT_SHARE, _PERCENT_SURE = 0.5, 0.95
#: Values that a station needs before they can contradict the unit that is stated.
_TELLING = 10
#: ISMN's flags for good, and for not judged.
GOOD, UNJUDGED = "G", "U"
_LOWEST, _HIGHEST = VARIABLES["soil_moisture"].valid_min, VARIABLES["soil_moisture"].valid_max
#: Coordinates that differ by less are of one place: some 100 m, as networks round them.
_SAME_PLACE_DEG = 0.001
#: Sensors of which at most this share of the shorter record lies within the other's followed one another.
_SUCCESSION = 0.1

Unit = Literal["m3 m-3", "percent", "mm"]


@dataclass(frozen=True)
class Sensor:
    """One sensor: its place in degrees and metres, its depth in metres."""

    network: str
    station: str
    lat: float
    lon: float
    elevation: float
    depth_from: float
    depth_to: float
    name: str = ""

    def says(self) -> str:
        """The sensor in words."""
        return f"{self.name or 'unnamed'}, {self.depth_from:g} to {self.depth_to:g} m"


@dataclass(frozen=True, eq=False)
class Record:
    """What one sensor said, as it stands in its file: (n,) times in UTC, values in `unit` (None: not stated), flags."""

    sensor: Sensor
    time: NDArray[np.datetime64]
    value: NDArray[np.float64]
    flag: NDArray[np.str_]
    file: str
    unit: Unit | None = "m3 m-3"
    missing: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """All records of one sensor, one after another; `part` tells them apart, `files` name them."""

    sensor: Sensor
    place: int
    time: NDArray[np.datetime64]
    value: NDArray[np.float64]
    flag: NDArray[np.str_]
    part: NDArray[np.int64]
    files: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """What is worth keeping of one sensor: m3 m-3 at every time reported, ascending, once each."""

    sensor: Sensor
    place: int
    values: pd.Series
    file: str

    @property
    def span(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        """First and last time with a value; of a silent sensor, of all its times."""
        times = self.values.index[self.values.notna()] if self.values.notna().any() else self.values.index
        return times[0], times[-1]


@dataclass
class Problems:
    """What was left out or read otherwise than it stands, by file and reason."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, file: str, what: str, count: int = 1) -> None:
        """Count something; nothing is said of a count of 0."""
        if count:
            self.counts[file, what] = self.counts.get((file, what), 0) + int(count)

    def listed(self) -> list[dict[str, object]]:
        """As it goes into attributes and reports."""
        return [{"file": f, "what": w, "count": n} for (f, w), n in self.counts.items()]


# -- one record -----------------------------------------------------------------------------------


def placed(sensor: Sensor, file: str, problems: Problems, values: int = 1) -> Sensor | None:
    """The sensor with longitude in -180..180 and latitude first, or None if it has no coordinates (counted with `values`)."""
    lat, lon = sensor.lat, sensor.lon
    if abs(lat) > 90 and abs(lon) <= 90 and abs(lat) <= 360:
        problems.add(
            file, f"station {sensor.station}: lat {lat:g} and lon {lon:g} are swapped: read the other way round"
        )
        lat, lon = lon, lat
    if not (abs(lat) <= 90 and -180 <= lon <= 360) or (lat == 0 and lon == 0):
        problems.add(file, f"station {sensor.station} has no coordinates (lat {lat:g}, lon {lon:g})", values)
        return None
    if lon > 180:
        problems.add(
            file, f"station {sensor.station}: longitude {lon:g} is counted from 0 to 360: folded to {lon - 360:g}"
        )
        lon -= 360
    limits = VARIABLES["elevation"]
    known = limits.valid_min <= sensor.elevation <= limits.valid_max  # networks write -9999, or nothing, for unknown
    return replace(sensor, lat=lat, lon=lon, elevation=sensor.elevation if known else np.nan)


def in_fractions(record: Record, problems: Problems) -> Record | None:
    """The record in m3 m-3, missing codes as NaN; None (and counted) where its unit cannot be told."""
    value = record.value.copy()
    name = f"station {record.sensor.station}"
    coded = np.isin(value, MISSING_CODES + record.missing)
    problems.add(record.file, f"{name}: missing-value code as value", int(coded.sum()))
    value[coded] = np.nan
    if record.unit == "mm":
        thickness = record.sensor.depth_to - record.sensor.depth_from
        if not thickness > 0:
            problems.add(
                record.file, f"{name} reports mm, but its layer has no thickness: left out; state depth", value.size
            )
            return None
        value /= 1000.0 * thickness
    elif record.unit == "percent":
        real = value[np.isfinite(value)]
        if real.size >= _TELLING and real.max() <= _HIGHEST and np.median(real) > 0:
            said = f"{name} is said to report percent, but reaches only {real.max():.4g}: believed; see unit"
            problems.add(record.file, said, real.size)
        value /= 100.0
    else:
        share = _percent_share(value)
        real = np.isfinite(value)
        if share > _PERCENT_SHARE:
            median = float(np.median(value[real]))
            said = f"{name} reports percent (median {median:.4g})"
            if record.unit is not None:
                problems.add(record.file, f"{said}, expected m3 m-3: left out", int(real.sum()))
                return None
            if share < _PERCENT_SURE:
                problems.add(record.file, f"{said} and fractions by turns: left out; state unit", int(real.sum()))
                return None
            problems.add(record.file, f"{said}: converted to m3 m-3", int(real.sum()))
            value /= 100.0
    return replace(record, value=value)


def _percent_share(value: NDArray[np.float64]) -> float:
    """Share of the values, zeros aside, that only percent can be."""
    real = value[np.isfinite(value) & (value != 0)]
    return float(np.mean((real > _HIGHEST) & (real <= 100.0))) if real.size else 0.0


# -- records of one sensor, one after another -----------------------------------------------------


def merged(records: Iterable[Record], problems: Problems) -> list[Merged]:
    """Records of one sensor in one (archives are split by period, and stations are delivered twice); sensors keep apart.

    One sensor has one station name, place (to some 100 m), depth and sensor name.
    """
    by_station: dict[str, list[Record]] = {}
    for record in records:
        by_station.setdefault(record.sensor.station, []).append(record)
    out = []
    for parts in by_station.values():
        places: list[Sensor] = []
        by_sensor: dict[tuple, list[Record]] = {}
        for record in parts:
            sensor = record.sensor
            place = _place(sensor, places)
            if (known := places[place]) != sensor and max(_apart(known, sensor)) > 1e-4:
                problems.add(
                    record.file, f"station {sensor.station}: coordinates differ by less than 100 m: taken as one place"
                )
            depth = (round(sensor.depth_from, 4), round(sensor.depth_to, 4))
            by_sensor.setdefault((place, *depth, sensor.name), []).append(record)
        out += [_joined(items, key[0], places[key[0]]) for key, items in by_sensor.items()]
    return out


def _place(sensor: Sensor, places: list[Sensor]) -> int:
    """Which of the places it stands at; a new one if at none."""
    for i, known in enumerate(places):
        if max(_apart(known, sensor)) <= _SAME_PLACE_DEG:
            return i
    places.append(sensor)
    return len(places) - 1


def _apart(a: Sensor, b: Sensor) -> tuple[float, float]:
    """Distance north and east, degrees of latitude."""
    return abs(a.lat - b.lat), abs(a.lon - b.lon) * np.cos(np.deg2rad(a.lat))


def _joined(parts: list[Record], place: int, at: Sensor) -> Merged:
    first = parts[0].sensor
    network = next((p.sensor.network for p in parts if p.sensor.network), "")
    elevation = next((p.sensor.elevation for p in parts if np.isfinite(p.sensor.elevation)), np.nan)
    return Merged(
        replace(first, lat=at.lat, lon=at.lon, network=network, elevation=elevation),
        place,
        np.concatenate([p.time for p in parts]),
        np.concatenate([p.value for p in parts]),
        np.concatenate([p.flag for p in parts]),
        np.repeat(np.arange(len(parts)), [p.time.size for p in parts]),
        tuple(p.file for p in parts),
    )


def cleaned(record: Merged, flags: Sequence[str] | None, problems: Problems) -> Series:
    """The values worth keeping, at every time reported, sorted, each time once."""
    value = record.value.copy()
    name, file = f"station {record.sensor.station}", record.files[0]
    with np.errstate(invalid="ignore"):
        impossible = (value < _LOWEST) | (value > _HIGHEST)
    problems.add(file, f"{name}: impossible value, outside {_LOWEST:g} to {_HIGHEST:g} m3 m-3", int(impossible.sum()))
    value[impossible] = np.nan
    value[_rejected(record, value, flags, problems)] = np.nan
    return Series(record.sensor, record.place, _once(record, value, problems), file)


def _rejected(
    record: Merged, value: NDArray[np.float64], flags: Sequence[str] | None, problems: Problems
) -> NDArray[np.bool_]:
    """Which values their flags leave out."""
    said, file = record.flag, record.files[0]
    name = f"station {record.sensor.station}"
    if flags is None:
        unjudged = not np.any(said == GOOD) and np.any(said == UNJUDGED)
        flags = (UNJUDGED,) if unjudged else (GOOD,)
        if unjudged:
            what = f"{name}: no value is flagged {GOOD}, those flagged {UNJUDGED} (not judged) are kept"
            problems.add(file, what, int((said == UNJUDGED).sum()))
    rejected = np.isfinite(value) & ~np.isin(said, list(flags))
    if rejected.any():
        found, counts = np.unique(said[rejected], return_counts=True)
        common = ", ".join(f"{f} {n}" for n, f in sorted(zip(counts, found, strict=True), reverse=True)[:4])
        problems.add(file, f"{name}: flag other than {', '.join(flags)} ({common})", int(rejected.sum()))
    return rejected


def _once(record: Merged, value: NDArray[np.float64], problems: Problems) -> pd.Series:
    """Values by time, ascending; of a time given twice the first good value."""
    order = np.argsort(record.time, kind="stable")
    time, part = record.time[order], record.part[order]
    series = pd.Series(value[order], index=pd.DatetimeIndex(time))
    twice = np.zeros(time.size, dtype=bool)
    twice[1:] = time[1:] == time[:-1]
    if not twice.any():
        return series
    first = np.maximum.accumulate(np.where(twice, 0, np.arange(time.size)))
    kept = series.groupby(level=0).first()
    name = f"station {record.sensor.station}"
    within = twice & (part == part[first])
    problems.add(record.files[0], f"{name}: time given twice (the first value is kept)", int(within.sum()))
    across = twice & ~within
    if across.any():
        ours, theirs = kept.reindex(series.index[across]).to_numpy(), series.to_numpy()[across]
        differ = int((np.isfinite(theirs) & (np.abs(ours - theirs) > 1e-9)).sum())
        also = record.files[int(part[across][0])]
        what = f"{name} is also in {record.files[0]}: merged, times in both counted"
        what += f", {differ} of them with another value (the first is kept)" if differ else ""
        problems.add(also, what, int(across.sum()))
    return kept


# -- which series a station has -------------------------------------------------------------------


def chosen(series: Iterable[Series], problems: Problems) -> list[tuple[str, Series]]:
    """Labels and series, by network, station and time.

    Of sensors of one place that measured together the shallowest is taken; of several, the one with most values. Sensors that
    followed one another, and places of one name, are kept apart: the first in time bears the name, the next "NAME (2)".
    """
    by_place: dict[tuple[str, int], list[Series]] = {}
    for item in series:
        by_place.setdefault((item.sensor.station, item.place), []).append(item)
    kept = [item for items in by_place.values() for item in _in_succession(items, problems)]
    _named_twins(kept, problems)
    kept.sort(
        key=lambda s: (s.sensor.network, s.sensor.station, s.span[0], s.sensor.lat, s.sensor.lon, s.sensor.depth_to)
    )
    return list(zip(_labels(kept, problems), kept, strict=True))


def _named_twins(series: Sequence[Series], problems: Problems) -> None:
    """Say which stations of different names stand at one place and report the same: delivered twice, they count twice."""
    items = sorted(series, key=lambda s: (s.sensor.lat, s.sensor.lon))
    for i, item in enumerate(items):
        for other in items[i + 1 :]:
            if other.sensor.lat - item.sensor.lat > _SAME_PLACE_DEG:
                break
            names = {item.sensor.station, other.sensor.station}
            if len(names) == 2 and max(_apart(item.sensor, other.sensor)) <= _SAME_PLACE_DEG:
                both = pd.concat([item.values, other.values], axis=1, join="inner").dropna().to_numpy()
                if len(both) and np.allclose(both[:, 0], both[:, 1], rtol=0, atol=1e-6):
                    first, second = sorted((item, other), key=lambda s: s.sensor.station)
                    what = f"station {second.sensor.station} stands where {first.sensor.station} does and says the same: kept, leave one out"
                    problems.add(second.file, what, len(both))


def _in_succession(items: list[Series], problems: Problems) -> list[Series]:
    """Of the sensors of one place, the best at any time."""
    taken: list[Series] = []
    for item in sorted(items, key=_preference):
        silent = not item.values.notna().any()
        beside = next((t for t in taken if silent or _together(t, item)), None)
        if beside is None:
            taken.append(item)
            continue
        sensor = item.sensor
        what = f"station {sensor.station} is already read from {beside.file}: another sensor ({sensor.says()}) left out"
        problems.add(item.file, what)
    return taken


def _preference(item: Series) -> tuple:
    """Order in which the sensors of one place are taken."""
    sensor = item.sensor
    silent = not item.values.notna().any()
    return (
        silent,
        sensor.depth_to,
        sensor.depth_from,
        -int(item.values.notna().sum()),
        not sensor.network,
        sensor.name,
        item.file,
    )


def _together(a: Series, b: Series) -> bool:
    """Whether two sensors measured at the same time, and not one after the other."""
    (a0, a1), (b0, b1) = a.span, b.span
    common = min(a1, b1) - max(a0, b0)
    return common >= pd.Timedelta(0) and common >= _SUCCESSION * min(a1 - a0, b1 - b0)


def _labels(items: list[Series], problems: Problems) -> list[str]:
    """Station names; with the network where two networks share one; then numbered in time."""
    networks: dict[str, set[str]] = {}
    for item in items:
        networks.setdefault(item.sensor.station, set()).add(item.sensor.network)
    first: dict[str, Series] = {}
    seen: dict[str, int] = {}
    out = []
    for item in items:
        sensor = item.sensor
        shared = len(networks[sensor.station]) > 1 and sensor.network
        label = f"{sensor.network}:{sensor.station}" if shared else sensor.station
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            numbered = f"{label} ({seen[label]})"
            problems.add(item.file, _kept_apart(numbered, item, label, first[label]), int(item.values.notna().sum()))
            label = numbered
        else:
            first[label] = item
        out.append(label)
    return out


def _kept_apart(label: str, item: Series, name: str, first: Series) -> str:
    """Why a station has a second series."""
    sensor, known = item.sensor, first.sensor
    if item.place != first.place:
        where = f"at another place ({sensor.lat:.4f} N {sensor.lon:.4f} E, not {known.lat:.4f} N {known.lon:.4f} E)"
    else:
        where = f"with another sensor ({sensor.says()}, not {known.says()})"
    return f"station {label} is {name} {where}, from {item.span[0]:%Y-%m-%d}: kept apart"
