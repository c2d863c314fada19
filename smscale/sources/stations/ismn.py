"""ISMN's data files in both layouts, header+values and CEOP (Dorigo et al. 2013, doi:10.2136/vzj2012.0097)."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from smscale.errors import InputError
from smscale.sources.stations.series import Problems, Record, Sensor, placed

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_HEADER = re.compile(
    rf"(?P<cse>\S+)\s+(?P<network>\S+)\s+(?P<station>\S.*?)\s+(?P<lat>{_NUMBER})\s+(?P<lon>{_NUMBER})\s+"
    rf"(?P<elevation>{_NUMBER}|[Nn]a[Nn])\s+(?P<depth_from>{_NUMBER})\s+(?P<depth_to>{_NUMBER})(?:\s+(?P<sensor>\S.*))?\s*$"
)
_CEOP = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d\s+\d{4}/\d\d/\d\d \d\d:\d\d\s+(?P<cse>\S+)\s+(?P<network>\S+)\s+(?P<station>\S+)\s+"
    rf"(?P<lat>{_NUMBER})\s+(?P<lon>{_NUMBER})\s+(?P<elevation>{_NUMBER}|[Nn]a[Nn])\s+(?P<depth_from>{_NUMBER})\s+"
    rf"(?P<depth_to>{_NUMBER})\s+\S+\s+\S+"
)
#: Columns of date, time, value and flag in each layout.
_HEADER_COLUMNS, _CEOP_COLUMNS = (0, 1, 2, 3), (0, 1, 12, 13)


def zip_records(path: Path, problems: Problems) -> Iterator[Record]:
    """Every soil moisture file of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.lower().endswith(".stm"))
            for name in names:
                yield from ismn_records(name.rsplit("/", 1)[-1], archive.read(name), problems)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip archive ({error}): download it again") from error


def ismn_records(name: str, content: bytes, problems: Problems) -> Iterator[Record]:
    """One data file of either layout: the first line tells which."""
    if name.lower().endswith(".stm") and "_sm_" not in name:
        return  # ISMN archives hold temperature, precipitation, ... beside soil moisture
    raw = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", errors="replace")
    text = raw.read()  # any line ends: some files have bare \r
    first, _, rest = text.partition("\n")
    if ceop := _CEOP.match(first):
        parts = name.split("_sm_")[-1].split("_")
        sensor = _sensor(ceop, parts[2] if len(parts) > 3 else "", name)
        rows, columns = text, _CEOP_COLUMNS
    elif header := _HEADER.match(first):
        sensor = _sensor(header, header["sensor"] or "", name)
        rows, columns = rest, _HEADER_COLUMNS
    else:
        problems.add(name, f"is in neither of ISMN's layouts (its first line is {first[:40]!r})")
        return
    if (at := placed(sensor, name, problems)) is not None:
        yield _parsed(name, rows, at, columns, problems)


def _sensor(match: re.Match[str], sensor: str, file: str) -> Sensor:
    """Place and depth from the line; the station's name from the file's (CSE_NETWORK_STATION_sm_…), as the ismn package has it."""
    keys = ("lat", "lon", "elevation", "depth_from", "depth_to")
    lat, lon, elevation, top, bottom = (float(match[key]) for key in keys)
    named = file.split("_sm_")[0].split("_", 2)
    station = named[2] if "_sm_" in file and len(named) == 3 else match["station"]
    return Sensor(match["network"], station, lat, lon, elevation, top, bottom, sensor.strip())


def _parsed(name: str, text: str, sensor: Sensor, columns: tuple[int, int, int, int], problems: Problems) -> Record:
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
    return Record(
        sensor,
        time.to_numpy("datetime64[ns]")[good],
        number.to_numpy(np.float64)[good],
        table[flag].to_numpy(object)[good].astype(str),
        name,
    )
