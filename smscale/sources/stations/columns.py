"""Which column of a station table is what: for national networks, whose tables name and cut things in their own way."""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import pandas as pd

from smscale.errors import InputError, RecipeError

Unit = Literal["m3 m-3", "percent", "mm"]
Layout = Literal["long", "wide"]

#: What a column can be. `value` is soil moisture; `depth` is of a sensor at one depth.
ROLES = (
    "station", "time", "lat", "lon", "elevation", "value", "depth", "depth_from", "depth_to", "flag", "network", "sensor",
)  # fmt: skip
#: Of the table that describes stations: from when to when a line holds, for stations that were moved.
TABLE_ROLES = (
    "station", "lat", "lon", "elevation", "depth", "depth_from", "depth_to", "network", "sensor", "start", "end",
)  # fmt: skip
TIME_PARTS = ("year", "month", "day", "hour", "minute")

#: Names under which a column is found where the map does not say it.
_ALIASES = {
    "station": ("station", "station_id", "station_name", "site", "site_id", "id"),
    "time": ("time", "datetime", "date_time", "timestamp", "time_utc"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "long", "longitude"),
    "elevation": ("elevation", "elev", "altitude", "alt"),
    "value": ("soil_moisture", "sm", "vwc"),
    "flag": ("flag", "quality", "qc"),
    "start": ("start", "valid_from"),
    "end": ("end", "valid_to"),
}
_UNITS: dict[str, Unit] = {
    "m3 m-3": "m3 m-3", "m3/m3": "m3 m-3", "m³/m³": "m3 m-3", "cm3/cm3": "m3 m-3", "cm3 cm-3": "m3 m-3", "1": "m3 m-3",
    "percent": "percent", "%": "percent", "vol%": "percent", "vol.%": "percent",
    "mm": "mm",
}  # fmt: skip
_FIXED = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d{2}))?$", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnMap:
    """How a table of station values is read.

    Parameters
    ----------
    columns : role (see `ROLES`) -> the column's name in the file; roles that it lacks are found under their usual names
    time_parts : part (year, month, day, hour, minute) -> column, where the time is cut into columns
    unit : of the values: "m3 m-3", "percent", "mm" (in the layer from the upper to the lower depth); None recognises percent
    zone : of times that state none: an offset as "+08:00", or an IANA name as "Asia/Shanghai"
    time_format : as `datetime.strptime` has it, where the times are written in another way than year first
    missing : values that stand for "missing", beside the usual ones (-99, -999, -9999, 9999, 999.9)
    good : flags of good values; None: "G", or no flag
    depth : upper and lower depth, metres, where no column says
    depth_unit : of the depth columns, "m" or "cm", where they do not say it themselves, as "0-10cm"
    layout : "long", one value a line, or "wide", one column a station (the station's name) beside the time
    table : path of a table that describes the stations, relative to the file of values; the wide layout needs one
    table_columns : role -> column of that table (see `TABLE_ROLES`)
    separator, encoding : of the file; None finds them out

    Example
    -------
    >>> cma = {"columns": {"station": "站号", "time": "时间", "value": "体积含水量"}, "unit": "percent", "zone": "Asia/Shanghai"}
    >>> ColumnMap.from_mapping(cma).columns["value"]
    '体积含水量'
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_parts: Mapping[str, str] = field(default_factory=dict)
    unit: Unit | None = None
    zone: str = "UTC"
    time_format: str | None = None
    missing: tuple[float, ...] = ()
    good: tuple[str, ...] | None = None
    depth: tuple[float, float] | None = None
    depth_unit: Literal["m", "cm"] = "m"
    layout: Layout = "long"
    table: str | None = None
    table_columns: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        offset_of(self.zone)
        if self.time_format is not None:
            _check_time_format(self.time_format)
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.separator is not None and len(self.separator) != 1:
            raise InputError(f"separator must be one character, as ; or a tab; got {self.separator!r}")
        if self.layout == "wide" and self.table is None:
            raise InputError(
                "stations in the wide layout need a table of the stations' coordinates: give table=, a CSV with station, lat, lon"
            )
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            raise InputError(
                f"depth needs the upper and the lower depth in metres, as [0.0, 0.1]; got {list(self.depth)}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "stations") -> ColumnMap:
        """A checked map of the values of a recipe.

        Parameters
        ----------
        values : the parameters above; `columns` holds the roles, and there `time` is a column or a mapping of `time_parts`, `depth`
            a column or two metres. Roles may also stand beside the other keys
        where : what an error calls the place

        Raises
        ------
        RecipeError
            one line: the key, what was found, what is expected.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where}: expected keys and values, as `columns: {{station: ID}}`; found {values!r}")
        options = [f.name for f in dataclasses.fields(cls) if f.name != "time_parts"]
        flat = {key: value for key, value in values.items() if key in ROLES and key not in options}
        nested = _mapping(values.get("columns", {}), f"{where}: columns")
        for key in values:
            if key not in options and key not in ROLES:
                raise RecipeError(f"{where}: unknown key {key}; {_hint(key, [*options, *ROLES])}")
        roles = {**flat, **nested}
        given = {key: values[key] for key in options if key in values and key != "columns"}
        if isinstance(given.get("depth"), str):
            roles["depth"] = given.pop("depth")
        if not isinstance(roles.get("depth", ""), str):
            given["depth"] = roles.pop("depth")
        parts = roles.pop("time") if isinstance(roles.get("time"), Mapping) else {}
        clean = {key: _OPTIONS[key](value, f"{where}: {key}") for key, value in given.items() if value is not None}
        try:
            return cls(
                columns=_names(roles, ROLES, f"{where}: columns"),
                time_parts=_names(parts, TIME_PARTS, f"{where}: columns: time"),
                **clean,
            )
        except InputError as error:
            raise RecipeError(f"{where}: {error}") from None

    def find(self, header: Sequence[str], path: object, needed: Iterable[str]) -> dict[str, str]:
        """Role -> column of a header; `time` is not asked for where `time_parts` are given.

        Raises
        ------
        InputError
            if a column that the map names, or a needed role, is not there.
        """
        found = _found(header, {**self.columns}, ROLES, path)
        found |= {name: _column(header, column, name, path) for name, column in self.time_parts.items()}
        lacking = [role for role in needed if role not in found and not (role == "time" and self.time_parts)]
        if lacking:
            names = ", ".join("soil_moisture" if role == "value" else role for role in lacking)
            raise InputError(f"{path}: lacks the column {names}; found {', '.join(header[:12])}")
        return found

    def find_in_table(self, header: Sequence[str], path: object) -> dict[str, str]:
        """Role -> column of the header of the table of stations."""
        found = _found(header, dict(self.table_columns), TABLE_ROLES, path)
        if lacking := [role for role in ("station", "lat", "lon") if role not in found]:
            raise InputError(f"{path}: lacks the column {', '.join(lacking)}; found {', '.join(header[:12])}")
        return found


def offset_of(zone: str) -> timedelta | ZoneInfo:
    """A fixed offset from UTC, or a zone of the IANA data base."""
    text = str(zone).strip()
    if fixed := _FIXED.match(text):
        hours, minutes = int(fixed[2]), int(fixed[3] or 0)
        if hours <= 14 and minutes < 60:
            return timedelta(hours=hours, minutes=minutes) * (-1 if fixed[1] == "-" else 1)
    if text.upper() in ("UTC", "Z", "GMT"):
        return timedelta(0)
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise InputError(
            f"zone {zone!r} is no offset as +08:00 and no name of the IANA time zones as Asia/Shanghai"
        ) from None


def _check_time_format(text: str) -> None:
    try:
        pd.to_datetime(pd.Series(["2017-06-10"]), format=text, errors="coerce")
    except ValueError as error:
        raise InputError(f"time_format {text!r} is none of strptime, as %Y-%m-%d %H:%M ({error})") from None


def _check_encoding(name: str) -> None:
    try:
        codecs.lookup(name)
    except LookupError:
        raise InputError(f"encoding {name!r} is not known; use one as utf-8 or gb18030, or leave it out") from None


def plain(name: object) -> str:
    """A column's name without what differs by accident."""
    return str(name).strip().strip("\"'").strip().lower()


def _found(header: Sequence[str], stated: Mapping[str, str], roles: Sequence[str], path: object) -> dict[str, str]:
    """Role -> column: what the map states, then what goes by a usual name and is not taken."""
    found = {role: _column(header, column, role, path) for role, column in stated.items()}
    free = {plain(name): name for name in header if name not in found.values()}
    for role in roles:
        if role not in found:
            usual = next((free[alias] for alias in _ALIASES.get(role, (role,)) if alias in free), None)
            if usual is not None:
                found[role] = usual
    return found


def _column(header: Sequence[str], column: str, role: str, path: object) -> str:
    by_plain = {plain(name): name for name in header}
    if plain(column) in by_plain:
        return by_plain[plain(column)]
    raise InputError(f"{path}: has no column {column!r} for {role}; {_hint(column, list(header))}")


def _hint(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known[:20])}"


# -- the form that a recipe has -------------------------------------------------------------------


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where} expects role: column, as {{station: ID, value: VWC}}; found {value!r}")
    return dict(value)


def _names(values: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, str]:
    """Role -> column name, each checked."""
    for key, value in _mapping(values, where).items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key}; {_hint(key, known)}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RecipeError(f"{where}: {key} expects the name of a column; found {value!r}")
    return {key: str(value) for key, value in values.items()}


def _unit(value: Any, where: str) -> Unit:
    unit = _UNITS.get(str(value).strip().lower())
    if unit is None:
        raise RecipeError(f"{where} expects one of {', '.join(get_args(Unit))}; found {value!r}")
    return unit


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{where} expects text; found {value!r}")
    return value


def _one_of(*choices: str) -> Any:
    def check(value: Any, where: str) -> str:
        if value not in choices:
            raise RecipeError(f"{where} expects one of {', '.join(choices)}; found {value!r}")
        return value

    return check


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise RecipeError(f"{where} expects numbers; found {value!r}")
    return tuple(float(v) for v in values)


def _two_depths(value: Any, where: str) -> tuple[float, ...]:
    depths = _numbers(value, where)
    if len(depths) != 2:
        raise RecipeError(f"{where} expects the upper and the lower depth in metres, as [0.0, 0.1]; found {value!r}")
    return depths


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(v, Mapping | list) for v in values):
        raise RecipeError(f"{where} expects a list of flags, as ['0', 'G']; found {value!r}")
    return tuple(str(v) for v in values)


_OPTIONS: dict[str, Any] = {
    "unit": _unit,
    "zone": _text,
    "time_format": _text,
    "missing": _numbers,
    "good": _texts,
    "depth": _two_depths,
    "depth_unit": _one_of("m", "cm"),
    "layout": _one_of(*get_args(Layout)),
    "table": _text,
    "table_columns": lambda value, where: _names(value, TABLE_ROLES, where),
    "separator": _text,
    "encoding": _text,
}
