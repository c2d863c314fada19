"""Station soil moisture: ISMN folders and zips (header+values and CEOP layouts), and tables in long and wide form.

ISMN (Dorigo et al. 2013, doi:10.2136/vzj2012.0097) marks a value G (good), C.. (implausible), D.. (dubious, by its
spectrum), M (missing) or U (not judged). By default G is kept; of a station without a single G (older archives judged none:
all that passed is U) U is kept and that is said. Whatever is left out, or read otherwise than it stands, is counted and named
in the attribute `problems`.

Columns of a table: station, time (UTC unless it states a zone), lat, lon, soil_moisture (m3 m-3, or percent, which is
recognised); optional elevation (m), depth_from, depth_to (m), flag (empty or as ISMN's), network, sensor. Other names, units,
zones and forms: `ColumnMap`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.schema import VARIABLES
from smscale.sources.stations.columns import ColumnMap as ColumnMap
from smscale.sources.stations.ismn import ismn_records, zip_records
from smscale.sources.stations.series import (
    GOOD,
    UNJUDGED,
    Problems,
    Record,
    Series,
    chosen,
    cleaned,
    in_fractions,
    merged,
)
from smscale.sources.stations.table import csv_records
from smscale.sources.stations.table import is_station_csv as is_station_csv
from smscale.sources.stations.table import why_no_station_csv as why_no_station_csv

#: Files of a folder that can hold stations.
_ISMN, _TABLES = (".stm", ".zip"), (".csv", ".tsv")


def open_stations(
    path: str | Path | Sequence[str | Path],
    depth: tuple[float, float] = (0.0, 0.10),
    flags: Sequence[str] | None = None,
    *,
    columns: ColumnMap | Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Station soil moisture from an ISMN folder, an ISMN zip, one ISMN file, a table, or several of these.

    Parameters
    ----------
    path : where they are
    depth : metres; sensors that lie within it are used. Of those of one place that measured together the shallowest is taken (of
        several, the one with most good values), the others are counted in `problems`
    flags : values with these flags are kept; None keeps "G", or "U" of a station that has no "G"; a table's empty flag is "G"
    columns : how tables are read that do not name their columns as above: a `ColumnMap`, or the mapping that makes one

    Returns
    -------
    Dataset (station, time): soil_moisture, float32, m3 m-3, NaN where silent or rejected; time UTC, every time that a kept sensor
    reports. Coordinates along station: lat, lon, elevation (m), depth_from, depth_to (m), network, sensor, station_name. A station
    all of whose values were rejected stays, silent. A station that was moved, or got another sensor, is two: "NAME" and
    "NAME (2)", both with `station_name` NAME. The attribute `problems` is JSON: a list of {"file", "what", "count"}.

    Raises
    ------
    InputError
        if nothing can be read as stations, or no sensor lies within `depth`.

    Example
    -------
    >>> open_stations("cma.csv", columns={"station": "站号", "time": "时间", "unit": "percent", "zone": "+08:00"})  # doctest: +SKIP
    """
    if columns is not None and not isinstance(columns, ColumnMap):
        columns = ColumnMap.from_mapping(columns)
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    problems = Problems()
    found = [record for p in paths for record in _records(p, columns, problems)]
    for record in found:
        problems.add(record.file, f"station {record.sensor.station} has no line that can be read", not record.time.size)
    records = [record for record in found if record.time.size]
    if not records:
        raise InputError(
            f"{_names(paths)}: no station could be read ({_reasons(problems) or 'no .stm or .csv file found'})"
        )
    within = _within(records, depth, paths, problems)
    known = [r for record in within if (r := in_fractions(record, problems)) is not None]
    series = [cleaned(record, flags, problems) for record in merged(known, problems)]
    if not series:
        raise InputError(f"{_names(paths)}: no station is left ({_reasons(problems)})")
    return _dataset(chosen(series, problems), problems, flags, depth)


def _records(path: Path, columns: ColumnMap | None, problems: Problems) -> Iterator[Record]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in _ISMN + _TABLES and p.is_file()):
            if file.suffix.lower() in _TABLES and not _holds_values(file, columns):
                continue  # ISMN puts static_variables.csv beside each station
            yield from _records(file, columns, problems)
    elif suffix == ".zip":
        yield from zip_records(path, problems)
    elif suffix in _TABLES or (columns is not None and suffix != ".stm"):
        yield from csv_records(path, columns or ColumnMap(), problems)
    else:
        yield from ismn_records(path.name, path.read_bytes(), problems)


def _holds_values(file: Path, columns: ColumnMap | None) -> bool:
    """Whether a table of a folder is one of values, and not the one that describes the stations."""
    if columns is not None and columns.table is not None:
        tables = {(file.parent / columns.table).resolve(), Path(columns.table).resolve()}
        if file.resolve() in tables:
            return False
    return is_station_csv(file, columns)


def _within(records: list[Record], depth: tuple[float, float], paths: list[Path], problems: Problems) -> list[Record]:
    """Records of sensors between the depths; the others are counted."""
    lowest, highest = depth

    def lies(record: Record) -> bool:
        return record.sensor.depth_from >= lowest - 1e-6 and record.sensor.depth_to <= highest + 1e-6

    for record in records:
        if not lies(record):
            sensor = record.sensor
            what = f"sensor at {sensor.depth_from:g} to {sensor.depth_to:g} m is outside {lowest:g} to {highest:g} m"
            problems.add(record.file, what)
    within = [record for record in records if lies(record)]
    if not within:
        found = ", ".join(sorted({f"{r.sensor.depth_from:g} to {r.sensor.depth_to:g}" for r in records}))
        raise InputError(
            f"{_names(paths)}: no sensor lies within {lowest:g} to {highest:g} m; found {found} m: widen depth="
        )
    return within


def _dataset(
    labelled: list[tuple[str, Series]],
    problems: Problems,
    flags: Sequence[str] | None,
    depth: tuple[float, float],
) -> xr.Dataset:
    series = [item for _, item in labelled]
    time = pd.DatetimeIndex(np.unique(np.concatenate([s.values.index.to_numpy("datetime64[ns]") for s in series])))
    values = np.full((len(series), time.size), np.nan, dtype=np.float32)
    for row, item in enumerate(series):
        values[row, time.get_indexer(item.values.index)] = item.values.to_numpy(np.float32)

    def along(name: str, attrs: Mapping[str, Any] | None = None) -> tuple[str, NDArray, dict[str, Any]]:
        return "station", np.array([getattr(item.sensor, name) for item in series]), dict(attrs or {})

    coords = {
        "station": ("station", np.array([label for label, _ in labelled])),
        "time": ("time", time.to_numpy(), {"long_name": "time, UTC", "standard_name": "time"}),
        "lat": along("lat", VARIABLES["latitude"].attrs),
        "lon": along("lon", VARIABLES["longitude"].attrs),
        "elevation": along("elevation", {"units": "m"}),
        "depth_from": along("depth_from", {"units": "m"}),
        "depth_to": along("depth_to", {"units": "m"}),
        "network": along("network"),
        "sensor": along("name"),
        "station_name": along("station", {"long_name": "name that the network gives the station"}),
    }
    attrs = {
        "problems": json.dumps(problems.listed()),
        "flags_kept": ", ".join(flags) if flags is not None else f"{GOOD}, or {UNJUDGED} of a station without {GOOD}",
        "depth": f"{depth[0]:g} to {depth[1]:g} m",
    }
    return xr.Dataset({"soil_moisture": (("station", "time"), values, VARIABLES["soil_moisture"].attrs)}, coords, attrs)


def _reasons(problems: Problems) -> str:
    return "; ".join(f"{p['file']}: {p['what']}" for p in problems.listed()[:3])


def _names(paths: list[Path]) -> str:
    return ", ".join(str(p) for p in paths[:3]) + (" …" if len(paths) > 3 else "")
