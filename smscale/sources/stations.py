"""Station soil moisture: ISMN folders and zips (header+values and CEOP layouts), and CSV in long form.

ISMN (Dorigo et al. 2013, doi:10.2136/vzj2012.0097) marks a value G (good), C.. (implausible), D.. (dubious, by its
spectrum), M (missing) or U (not judged). By default G is kept; of a station without a single G (older archives judged none:
all that passed is U) U is kept and that is said. Whatever is left out is counted and named in the attribute `problems`.

CSV columns: station, time (ISO 8601, UTC unless it states a zone), lat, lon, soil_moisture (m3 m-3); optional elevation (m),
depth_from, depth_to (m), flag (empty or as ISMN's), network, sensor.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.schema import VARIABLES

#: Values that networks write for "missing" (they are not errors of a sensor).
_MISSING_CODES = (-99.0, -999.0, -9999.0, 9999.0, 999.9)
#: A station of which more than this share of the values lies in 1..100 reports percent.
_PERCENT_SHARE = 0.5
#: ISMN's flags for good, and for not judged.
_GOOD, _UNJUDGED = "G", "U"
_LOWEST, _HIGHEST = VARIABLES["soil_moisture"].valid_min, VARIABLES["soil_moisture"].valid_max

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_HEADER = re.compile(
    rf"(?P<cse>\S+)\s+(?P<network>\S+)\s+(?P<station>\S.*?)\s+(?P<lat>{_NUMBER})\s+(?P<lon>{_NUMBER})\s+"
    rf"(?P<elevation>{_NUMBER})\s+(?P<depth_from>{_NUMBER})\s+(?P<depth_to>{_NUMBER})(?:\s+(?P<sensor>\S.*))?\s*$"
)
_CEOP = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d\s+\d{4}/\d\d/\d\d \d\d:\d\d\s+(?P<cse>\S+)\s+(?P<network>\S+)\s+(?P<station>\S+)\s+"
    rf"(?P<lat>{_NUMBER})\s+(?P<lon>{_NUMBER})\s+(?P<elevation>{_NUMBER})\s+(?P<depth_from>{_NUMBER})\s+(?P<depth_to>{_NUMBER})\s+\S+\s+\S+"
)
_CSV_REQUIRED = ("station", "time", "lat", "lon", "soil_moisture")
_CSV_ALIASES = {
    "latitude": "lat",
    "longitude": "lon",
    "altitude": "elevation",
    "sm": "soil_moisture",
    "datetime": "time",
    "quality": "flag",
}


@dataclass(frozen=True)
class _Sensor:
    """One sensor: its place and depth in metres."""

    network: str
    station: str
    lat: float
    lon: float
    elevation: float
    depth_from: float
    depth_to: float
    name: str = ""

    @property
    def place(self) -> tuple[str, float, float]:
        """What makes a station: name and coordinates (a network may be named in one file and not in another)."""
        return self.station, round(self.lat, 4), round(self.lon, 4)


@dataclass(frozen=True, eq=False)
class _Record:
    """What one sensor said, as it stands in its file."""

    sensor: _Sensor
    time: NDArray[np.datetime64]
    value: NDArray[np.float64]
    flag: NDArray[np.object_]
    file: str


@dataclass(frozen=True, eq=False)
class _Series:
    """What is worth keeping of one sensor's record."""

    sensor: _Sensor
    values: pd.Series
    file: str


@dataclass
class _Problems:
    """What was left out, by file and reason."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, file: str, what: str, count: int = 1) -> None:
        if count:
            self.counts[file, what] = self.counts.get((file, what), 0) + int(count)

    def listed(self) -> list[dict[str, object]]:
        return [{"file": f, "what": w, "count": n} for (f, w), n in self.counts.items()]


def open_stations(
    path: str | Path | Sequence[str | Path],
    depth: tuple[float, float] = (0.0, 0.10),
    flags: Sequence[str] | None = None,
) -> xr.Dataset:
    """Station soil moisture from an ISMN folder, an ISMN zip, one ISMN file, a CSV file, or several of these.

    Parameters
    ----------
    path : where they are
    depth : metres; sensors that lie within it are used, of each station the shallowest (of several, the one with most
        good values); the others are counted in `problems`
    flags : values with these flags are kept; None keeps "G", or "U" of a station that has no "G"; a CSV's empty flag is "G"

    Returns
    -------
    Dataset (station, time): soil_moisture, float32, m3 m-3, NaN where silent or rejected; time UTC, every time that a kept sensor
    reports. Coordinates along station: lat, lon, elevation (m), depth_from, depth_to (m), network, sensor. A station
    all of whose values were rejected stays, silent. The attribute `problems` is JSON: a list of {"file", "what", "count"}.

    Raises
    ------
    InputError
        if nothing can be read as stations, or no sensor lies within `depth`.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    problems = _Problems()
    records = [record for p in paths for record in _records(p, problems)]
    if not records:
        reasons = "; ".join(f"{p['file']}: {p['what']}" for p in problems.listed()[:3])
        raise InputError(f"{_names(paths)}: no station could be read ({reasons or 'no .stm or .csv file found'})")
    lowest, highest = depth
    within = [r for r in records if r.sensor.depth_from >= lowest - 1e-6 and r.sensor.depth_to <= highest + 1e-6]
    for r in records:
        if r not in within:
            problems.add(
                r.file,
                f"sensor at {r.sensor.depth_from:g} to {r.sensor.depth_to:g} m is outside {lowest:g} to {highest:g} m",
            )
    if not within:
        found = sorted({f"{r.sensor.depth_from:g} to {r.sensor.depth_to:g}" for r in records})
        raise InputError(
            f"{_names(paths)}: no sensor lies within {lowest:g} to {highest:g} m; found {', '.join(found)} m: widen depth="
        )
    cleaned = [series for r in _merged(within) if (series := _clean(r, flags, problems)) is not None]
    if not cleaned:
        reasons = "; ".join(f"{p['file']}: {p['what']}" for p in problems.listed()[:3])
        raise InputError(f"{_names(paths)}: no station is left ({reasons})")
    return _dataset(_one_per_station(cleaned, problems), problems, flags, depth)


# -- finding and parsing --------------------------------------------------------------------------


def _records(path: Path, problems: _Problems) -> Iterator[_Record]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in (".stm", ".csv", ".zip") and p.is_file()):
            if file.suffix.lower() == ".csv" and not is_station_csv(file):
                continue  # ISMN puts static_variables.csv beside each station
            yield from _records(file, problems)
    elif path.suffix.lower() == ".zip":
        yield from _zip_records(path, problems)
    elif path.suffix.lower() == ".csv":
        yield from _csv_records(path, problems)
    else:
        yield from _ismn_records(path.name, path.read_bytes(), problems)


def is_station_csv(path: Path) -> bool:
    """Whether the first line of a CSV file names the columns that a station table needs."""
    with path.open("rb") as handle:
        header = handle.readline(4096).decode("utf-8-sig", "replace")
    return set(_CSV_REQUIRED) <= set(_plain_columns(header.strip().split(",")))


def _plain_columns(names: Iterable[str]) -> list[str]:
    plain = [str(name).strip().strip('"').lower() for name in names]
    return [_CSV_ALIASES.get(name, name) for name in plain]


def _zip_records(path: Path, problems: _Problems) -> Iterator[_Record]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.lower().endswith(".stm"))
            for name in names:
                yield from _ismn_records(name.rsplit("/", 1)[-1], archive.read(name), problems)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip archive ({error}): download it again") from error


def _ismn_records(name: str, content: bytes, problems: _Problems) -> Iterator[_Record]:
    """One ISMN data file of either layout: the first line tells which."""
    if name.lower().endswith(".stm") and "_sm_" not in name:
        return  # ISMN archives hold temperature, precipitation, ... beside soil moisture
    text = io.TextIOWrapper(
        io.BytesIO(content), "utf-8", errors="replace"
    ).read()  # any line ends: some files have bare \r
    first, _, rest = text.partition("\n")
    if ceop := _CEOP.match(first):
        yield from _ceop_records(name, text, ceop, problems)
    elif header := _HEADER.match(first):
        sensor = _sensor(header, header["sensor"] or "", name)
        if (reason := _bad_place(sensor)) is not None:
            problems.add(name, reason)
            return
        yield _parsed(name, rest, sensor, (0, 1, 2, 3), problems)
    else:
        problems.add(name, f"is in neither of ISMN's layouts (its first line is {first[:40]!r})")


def _ceop_records(name: str, text: str, first: re.Match[str], problems: _Problems) -> Iterator[_Record]:
    parts = name.split("_sm_")[-1].split("_")
    sensor = _sensor(first, parts[2] if len(parts) > 3 else "", name)
    if (reason := _bad_place(sensor)) is not None:
        problems.add(name, reason)
        return
    yield _parsed(name, text, sensor, (0, 1, 12, 13), problems)


def _sensor(match: re.Match[str], sensor: str, file: str) -> _Sensor:
    """Place and depth from the line; the station's name from the file's (CSE_NETWORK_STATION_sm_…), as the ismn package has it."""
    lat, lon, elevation, top, bottom = (
        float(match[key]) for key in ("lat", "lon", "elevation", "depth_from", "depth_to")
    )
    named = file.split("_sm_")[0].split("_", 2)
    station = named[2] if "_sm_" in file and len(named) == 3 else match["station"]
    return _Sensor(match["network"], station, lat, lon, elevation, top, bottom, sensor)


def _bad_place(sensor: _Sensor) -> str | None:
    if not (abs(sensor.lat) <= 90 and -180 <= sensor.lon <= 360):
        return f"station {sensor.station} has no coordinates (lat {sensor.lat:g}, lon {sensor.lon:g})"
    return None


def _parsed(name: str, text: str, sensor: _Sensor, columns: tuple[int, int, int, int], problems: _Problems) -> _Record:
    """Rows of date, time, value, flag in the given columns of a blank-separated table; lines that are not so are counted."""
    date, clock, value, flag = columns
    table = pd.read_csv(
        io.StringIO(text),
        sep=r"\s+",
        names=list(range(flag + 4)),
        index_col=False,
        dtype=str,
        header=None,
        on_bad_lines="skip",
        quoting=3,
        keep_default_na=False,
        na_values=[""],
    )
    lines = sum(1 for line in text.splitlines() if line.strip())
    time = pd.to_datetime(table[date] + " " + table[clock], format="%Y/%m/%d %H:%M", errors="coerce")
    number = pd.to_numeric(table[value], errors="coerce")
    good = (time.notna() & number.notna() & table[flag].notna()).to_numpy()
    problems.add(name, "broken line", lines - int(good.sum()))
    return _Record(
        sensor,
        time.to_numpy("datetime64[ns]")[good],
        number.to_numpy(np.float64)[good],
        table[flag].to_numpy(object)[good],
        name,
    )


def _csv_records(path: Path, problems: _Problems) -> Iterator[_Record]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "replace")
        table = pd.read_csv(
            io.StringIO(text), dtype=str, on_bad_lines="skip", skipinitialspace=True, keep_default_na=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    table.columns = pd.Index(_plain_columns(table.columns))
    lacking = [name for name in _CSV_REQUIRED if name not in table]
    if lacking:
        raise InputError(f"{path}: lacks the column {', '.join(lacking)}; found {', '.join(table.columns[:12])}")
    lines = sum(1 for line in text.splitlines() if line.strip()) - 1
    time = pd.to_datetime(
        table["time"].str.replace("/", "-"), format="ISO8601", utc=True, errors="coerce"
    ).dt.tz_localize(None)
    value = pd.to_numeric(table["soil_moisture"].replace("", "nan"), errors="coerce")
    good = (
        time.notna()
        & (value.notna() | table["soil_moisture"].str.lower().isin(["", "nan", "na"]))
        & (table["station"] != "")
    )
    problems.add(path.name, "broken line", lines - int(good.sum()))
    keys = pd.DataFrame(
        {"network": table.get("network", ""), "station": table["station"], "sensor": table.get("sensor", "")}
    )
    for column in ("lat", "lon", "elevation", "depth_from", "depth_to"):
        default = "0" if column.startswith("depth") else ""
        keys[column] = pd.to_numeric(table.get(column, pd.Series(default, table.index)), errors="coerce")
    keys[["depth_from", "depth_to"]] = keys[["depth_from", "depth_to"]].fillna(0.0)
    flag = table.get("flag", pd.Series("", table.index)).str.strip().replace("", "G")
    for _, part in keys[good].groupby(list(keys.columns), sort=True, dropna=False):
        first, rows = part.iloc[0], part.index
        lat, lon, elevation, top, bottom = (
            float(first[c]) for c in ("lat", "lon", "elevation", "depth_from", "depth_to")
        )
        sensor = _Sensor(
            str(first["network"]), str(first["station"]), lat, lon, elevation, top, bottom, str(first["sensor"])
        )
        if (reason := _bad_place(sensor)) is not None:
            problems.add(path.name, reason, len(rows))
            continue
        stamps = time.loc[rows].to_numpy("datetime64[ns]")
        yield _Record(sensor, stamps, value.loc[rows].to_numpy(np.float64), flag.loc[rows].to_numpy(object), path.name)


# -- cleaning and choosing ------------------------------------------------------------------------


def _merged(records: list[_Record]) -> list[_Record]:
    """Records of one sensor in one: archives are split by period."""
    by_sensor: dict[_Sensor, list[_Record]] = {}
    for record in records:
        by_sensor.setdefault(record.sensor, []).append(record)
    out = []
    for sensor, parts in by_sensor.items():
        if len(parts) == 1:
            out += parts
            continue
        out.append(
            _Record(
                sensor,
                np.concatenate([p.time for p in parts]),
                np.concatenate([p.value for p in parts]),
                np.concatenate([p.flag for p in parts]),
                parts[0].file,
            )
        )
    return out


def _clean(record: _Record, flags: Sequence[str] | None, problems: _Problems) -> _Series | None:
    """The values worth keeping, at every time reported, sorted; None if the station reports percent."""
    value = record.value.copy()
    name = f"station {record.sensor.station}"
    coded = np.isin(value, _MISSING_CODES)
    problems.add(record.file, f"{name}: missing-value code as value", int(coded.sum()))
    value[coded] = np.nan
    real = value[np.isfinite(value)]
    if real.size and np.mean((real > _HIGHEST) & (real <= 100.0)) > _PERCENT_SHARE:
        problems.add(
            record.file, f"{name} reports percent (median {np.median(real):.4g}), expected m3 m-3: left out", real.size
        )
        return None
    with np.errstate(invalid="ignore"):
        impossible = (value < _LOWEST) | (value > _HIGHEST)
    problems.add(
        record.file, f"{name}: impossible value, outside {_LOWEST:g} to {_HIGHEST:g} m3 m-3", int(impossible.sum())
    )
    value[impossible] = np.nan
    value[_rejected(record, value, flags, problems)] = np.nan
    series = pd.Series(value, index=pd.DatetimeIndex(record.time)).sort_index(kind="stable")
    twice = series.index.duplicated()
    if twice.any():
        problems.add(record.file, f"{name}: time given twice (the first value is kept)", int(twice.sum()))
        series = series.groupby(level=0).first()
    return _Series(record.sensor, series, record.file)


def _rejected(
    record: _Record, value: NDArray[np.float64], flags: Sequence[str] | None, problems: _Problems
) -> NDArray[np.bool_]:
    """Which values their flags leave out."""
    said = record.flag.astype(str)
    name = f"station {record.sensor.station}"
    if flags is None:
        unjudged = not np.any(said == _GOOD) and np.any(said == _UNJUDGED)
        flags = (_UNJUDGED,) if unjudged else (_GOOD,)
        if unjudged:
            problems.add(
                record.file,
                f"{name}: no value is flagged {_GOOD}, those flagged {_UNJUDGED} (not judged) are kept",
                int((said == _UNJUDGED).sum()),
            )
    rejected = np.isfinite(value) & ~np.isin(said, list(flags))
    if rejected.any():
        found, counts = np.unique(said[rejected], return_counts=True)
        common = ", ".join(f"{f} {n}" for n, f in sorted(zip(counts, found, strict=True), reverse=True)[:4])
        problems.add(record.file, f"{name}: flag other than {', '.join(flags)} ({common})", int(rejected.sum()))
    return rejected


def _one_per_station(cleaned: list[_Series], problems: _Problems) -> list[_Series]:
    """Of each station the shallowest sensor; of several, the one with most values."""
    by_place: dict[tuple, list[_Series]] = {}
    for item in cleaned:
        by_place.setdefault(item.sensor.place, []).append(item)
    chosen = []
    for items in by_place.values():
        best, *others = sorted(items, key=_preference)
        chosen.append(best)
        for other in others:
            sensor = other.sensor
            depths = f"{sensor.depth_from:g} to {sensor.depth_to:g} m"
            what = f"station {sensor.station} is already read from {best.file}: another sensor ({sensor.name or 'unnamed'}, {depths}) left out"
            problems.add(other.file, what)
    return sorted(chosen, key=lambda item: (item.sensor.network, item.sensor.station, item.sensor.lat, item.sensor.lon))


def _preference(item: _Series) -> tuple:
    """Order in which the sensors of one station are taken."""
    sensor = item.sensor
    return (
        sensor.depth_to,
        sensor.depth_from,
        -int(item.values.notna().sum()),
        not sensor.network,
        sensor.name,
        item.file,
    )


def _dataset(
    chosen: list[_Series],
    problems: _Problems,
    flags: Sequence[str] | None,
    depth: tuple[float, float],
) -> xr.Dataset:
    time = pd.DatetimeIndex(
        np.unique(np.concatenate([item.values.index.to_numpy("datetime64[ns]") for item in chosen]))
    )
    values = np.full((len(chosen), time.size), np.nan, dtype=np.float32)
    for row, item in enumerate(chosen):
        values[row, time.get_indexer(item.values.index)] = item.values.to_numpy(np.float32)
    sensors = [item.sensor for item in chosen]

    def along(name: str, attrs: dict | None = None) -> tuple:
        return "station", np.array([getattr(sensor, name) for sensor in sensors]), attrs or {}

    coords = {
        "station": ("station", _labels(sensors)),
        "time": ("time", time.to_numpy(), {"long_name": "time, UTC", "standard_name": "time"}),
        "lat": along("lat", dict(VARIABLES["latitude"].attrs)),
        "lon": along("lon", dict(VARIABLES["longitude"].attrs)),
        "elevation": along("elevation", {"units": "m"}),
        "depth_from": along("depth_from", {"units": "m"}),
        "depth_to": along("depth_to", {"units": "m"}),
        "network": along("network"),
        "sensor": along("name"),
    }
    attrs = {
        "problems": json.dumps(problems.listed()),
        "flags_kept": ", ".join(flags)
        if flags is not None
        else f"{_GOOD}, or {_UNJUDGED} of a station without {_GOOD}",
        "depth": f"{depth[0]:g} to {depth[1]:g} m",
    }
    return xr.Dataset({"soil_moisture": (("station", "time"), values, VARIABLES["soil_moisture"].attrs)}, coords, attrs)


def _labels(sensors: list[_Sensor]) -> NDArray[np.str_]:
    """Station names; with the network, then a number, where a name is not unique (a relocated station is another one)."""
    names = [s.station for s in sensors]
    labels = [f"{s.network}:{s.station}" if names.count(s.station) > 1 and s.network else s.station for s in sensors]
    seen: dict[str, int] = {}
    out = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        out.append(label if seen[label] == 1 else f"{label}#{seen[label]}")
    return np.array(out)


def _names(paths: list[Path]) -> str:
    return ", ".join(str(p) for p in paths[:3]) + (" …" if len(paths) > 3 else "")
