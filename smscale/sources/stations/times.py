"""Times as tables write them -> UTC: with a zone in the text, or local to a stated zone with its summer time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.sources.stations.columns import offset_of

Times = NDArray[np.datetime64]

_DATE, _CLOCK = ("year", "month", "day"), ("hour", "minute", "second")
#: Year first: 2017-06-10T08:00:00.0Z, 2017/6/10 8:00, 2017-06-10, 2017年6月10日8时; a zone may follow.
_WRITTEN = (
    r"^(?P<year>\d{4})[-/.年](?P<month>\d{1,2})[-/.月](?P<day>\d{1,2})"
    r"(?:[T ]+(?P<hour>\d{1,2})(?:(?::|时)(?P<minute>\d{2})?)?(?::(?P<second>\d{2})(?:[.,]\d+)?)?)?"
    r"\s*(?P<zone>Z|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)
#: Without separators: 20170610, 2017061008, 201706100800, 20170610080000, also 20170610T0800Z.
_COMPACT = (
    r"^(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})(?:[T ]?(?P<hour>\d{2})(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2}))?)?)?"
    r"\s*(?P<zone>Z|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)


def parse(text: pd.Series, time_format: str | None = None) -> tuple[Times, NDArray[np.float64]]:
    """Times as they are written, and the offset from UTC that they state.

    Parameters
    ----------
    text : (n,) strings
    time_format : as `strptime`; None reads what is written year first

    Returns
    -------
    datetime64[ns], NaT where it is no time; offset in minutes, NaN where the text states none
    """
    text = text.astype(str).str.replace("日", " ", regex=False).str.strip()
    if time_format is not None:
        parsed = pd.to_datetime(text, format=time_format, errors="coerce", utc="%z" in time_format)
        stated = np.where(parsed.notna(), 0.0, np.nan) if "%z" in time_format else np.full(len(text), np.nan)
        return parsed.dt.tz_localize(None).to_numpy("datetime64[ns]"), stated
    parts = text.str.extract(_WRITTEN)
    rest = parts["year"].isna()
    if rest.any():
        parts[rest] = text[rest].str.extract(_COMPACT)
    written = {name: parts[name] for name in _DATE} | {name: parts[name].fillna("0") for name in _CLOCK}
    return from_parts(written), _offsets(parts["zone"])


def from_parts(parts: Mapping[str, pd.Series]) -> Times:
    """Times of year, month, day, hour, minute, second; hour 24 is the next day's 0; NaT where any of them is no number.

    Parts that are not there at all are the first of January, midnight.
    """
    numbers = {name: pd.to_numeric(values, errors="coerce") for name, values in parts.items()}
    index = next(iter(numbers.values())).index
    for name in ("month", "day"):
        numbers.setdefault(name, pd.Series(1.0, index))
    for name in _CLOCK:
        numbers.setdefault(name, pd.Series(0.0, index))
    minute, second = numbers["minute"], numbers["second"]
    clock = (numbers["hour"].between(0, 23) | ((numbers["hour"] == 24) & (minute == 0) & (second == 0))) & (
        minute.between(0, 59) & second.between(0, 60)
    )
    day = pd.to_datetime(pd.DataFrame({name: numbers[name] for name in _DATE}), errors="coerce")
    seconds = numbers["hour"] * 3600 + minute * 60 + second
    time = day + pd.to_timedelta(seconds.where(clock), unit="s")
    return time.to_numpy("datetime64[ns]")


def _offsets(zone: pd.Series) -> NDArray[np.float64]:
    """Minutes east of UTC of "Z", "+08:00", "-0530"; NaN of none."""
    parts = zone.str.extract(r"^(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?$")
    minutes = pd.to_numeric(parts["hours"]) * 60 + pd.to_numeric(parts["minutes"]).fillna(0.0)
    signed = minutes * np.where(parts["sign"] == "-", -1.0, 1.0)
    return signed.where(~zone.isin(["Z", "UTC"]), 0.0).to_numpy(np.float64)


def to_utc(
    local: Times, offset: NDArray[np.float64], zone: str, code: NDArray[np.int64], series: NDArray[np.int64]
) -> tuple[Times, dict[str, int]]:
    """UTC of each row.

    Parameters
    ----------
    local : (m,) different times as written, NaT where none
    offset : (m,) minutes that the text itself states, NaN where it states none: then `zone` holds
    zone : see `columns.offset_of`
    code : (n,) which of the times each row has; -1 where none
    series : (n,) which sensor each row is of: of a local hour that came twice, its first row is taken as summer time, its
        second as standard time; an hour that is there once is taken as standard time

    Returns
    -------
    (n,) datetime64[ns]; counts of rows whose local time is `skipped` by the change to summer time (NaT) or `ambiguous`
    """
    stated = np.isfinite(offset)
    minutes = np.where(stated, offset, 0.0)
    utc = local - (minutes * 60e9).astype("timedelta64[ns]")
    where = offset_of(zone)
    if isinstance(where, timedelta):
        utc[~stated] -= np.timedelta64(int(where.total_seconds()), "s")
        return _rows(utc, code), {}
    index = pd.DatetimeIndex(local[~stated])
    standard, summer = (
        index.tz_localize(where, ambiguous=np.full(index.size, early), nonexistent="NaT")
        .tz_convert("UTC")
        .tz_localize(None)
        .to_numpy("datetime64[ns]")
        for early in (False, True)
    )
    utc[~stated] = standard
    skipped, twice = np.zeros((2, local.size), dtype=bool)
    skipped[~stated] = np.isnat(standard) & ~np.isnat(local[~stated])
    twice[~stated] = (standard != summer) & ~np.isnat(standard)
    out = _rows(utc, code)
    counts = {"skipped": int(_rows(skipped, code).sum()), "ambiguous": 0}
    rows = np.flatnonzero(_rows(twice, code))
    if rows.size:
        early = utc.copy()
        early[~stated] = summer
        keys = pd.DataFrame({"series": series[rows], "code": code[rows]}).groupby(["series", "code"])
        first = (keys.cumcount() == 0) & (keys["code"].transform("size") > 1)
        out[rows[first.to_numpy()]] = early[code[rows[first.to_numpy()]]]
        counts["ambiguous"] = int(rows.size)
    return out, counts


def _rows(values: NDArray, code: NDArray[np.int64]) -> NDArray:
    """Each row's value; where a row has none (-1): NaT, or False."""
    none = np.datetime64("NaT") if values.dtype.kind == "M" else False
    if not values.size:
        return np.full(code.shape, none, dtype=values.dtype)
    return np.where(code >= 0, values[code], none)
