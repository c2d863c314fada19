"""Tables of station values: comma, semicolon or tab separated; long (one value a line) or wide (one column a station)."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.places import Place
from smscale.sources.stations import times
from smscale.sources.stations.columns import ColumnMap, plain
from smscale.sources.stations.series import GOOD, Problems, Record, Sensor, placed

#: What stands in a table where there is no value.
_NO_VALUE = ("", "nan", "na", "n/a", "null", "none", "-", "--", "---", "/")
#: Different texts of a column that are looked at to see how it writes numbers.
_PROBED = 1000
_SEPARATORS = (",", ";", "\t", "|")
_LAYER = re.compile(
    r"(?P<top>\d+(?:\.\d*)?)\s*(?P<first>c?m)?(?:\s*[-–~至]\s*(?P<bottom>\d+(?:\.\d*)?))?\s*(?P<unit>c?m)?$",
    re.IGNORECASE,
)
_NEEDED = ("station", "time", "lat", "lon", "value")
#: Roles whose text counts as it is written: 056187 is no number.
_AS_WRITTEN = ("station", "network", "sensor", "flag")
_PLACE = ("lat", "lon", "elevation", "depth_from", "depth_to")


def is_station_csv(path: Place, columns: ColumnMap | None = None) -> bool:
    """Whether the header of a table names the columns that stations need."""
    return why_no_station_csv(path, columns) is None


def why_no_station_csv(path: Place, columns: ColumnMap | None = None) -> str | None:
    """What keeps a table from being one of station values: a column that its header lacks; None if nothing does."""
    columns = columns or ColumnMap()
    with path.open("rb") as handle:
        start = handle.read(65536)
    try:
        text = _decoded(start, columns.encoding)
        columns.find(_header(text, columns.separator)[0], path, _needed(columns))
    except (InputError, LookupError, UnicodeDecodeError, csv.Error) as error:
        return " ".join(str(error).removeprefix(f"{path}: ").split())
    return None


def csv_records(path: Path, columns: ColumnMap, problems: Problems) -> Iterator[Record]:
    """What each sensor of a table said.

    Raises
    ------
    InputError
        if the table lacks columns, cannot be read as a table, or not one of its times can be read.
    """
    table = _read(path, columns)
    if table.decimal_comma:
        problems.add(path.name, "decimal commas read as decimal points")
    described = _described(path, columns, problems)
    if columns.layout == "wide":
        assert described is not None
        yield from _wide_records(table, described, columns, problems)
    else:
        yield from _long_records(table, described, columns, problems)


def _needed(columns: ColumnMap) -> tuple[str, ...]:
    """Roles that the table of values itself must hold."""
    if columns.layout == "wide":
        return ("time",)
    return ("station", "time", "value") if columns.table else _NEEDED


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A table as text, its columns by role, and how many lines it had."""

    path: Path
    text: pd.DataFrame
    roles: Mapping[str, str]
    lines: int
    decimal_comma: bool

    def column(self, role: str) -> pd.Series | None:
        """The text of a role; None if the table lacks it."""
        return self.text[self.roles[role]] if role in self.roles else None

    def numbers(self, column: pd.Series) -> NDArray[np.float64]:
        """(n,) numbers of a column of text; NaN where it holds none."""
        code, texts = pd.factorize(column)
        values = pd.Series(texts.astype(str)).str.strip()
        if self.decimal_comma:
            values = values.str.replace(",", ".", regex=False)
        found = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        return np.where(code >= 0, found[code], np.nan) if found.size else np.full(code.size, np.nan)


def _read(path: Path, columns: ColumnMap) -> _Table:
    content = path.read_bytes()
    try:
        text = _decoded(content, columns.encoding)
    except (LookupError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {columns.encoding} ({error}): state encoding") from None
    try:
        header, separator, start = _header(text, columns.separator)
    except csv.Error as error:
        raise InputError(f"{path}: its first line cannot be read as names of columns ({error})") from None
    roles = columns.find(header, path, _needed(columns))
    wanted = None if columns.layout == "wide" else set(roles.values())
    body = text[start:]
    names = [roles[role] for role in _AS_WRITTEN if role in roles]
    table = _as_text(body, separator, wanted, names, path)
    lines = sum(1 for line in body.splitlines() if line.strip()) - 1
    decimal_comma = separator != "," and _has_decimal_comma(table, roles, columns)
    return _Table(path, table, roles, lines, decimal_comma)


def _decoded(content: bytes, encoding: str | None) -> str:
    """Text with line ends as \\n; UTF-8, else UTF-16 by its mark, else GB 18030 (Chinese networks), else what is left."""
    if encoding is not None:
        text = content.decode(encoding)
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    else:
        read = (_tried(content, known) for known in ("utf-8-sig", "gb18030"))
        text = next((found for found in read if found is not None), None) or content.decode("utf-8-sig", "replace")
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _tried(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        # a probe of a file's first bytes may cut a character
        cut = error.start > len(content) - 4 and len(content) == 65536
        return content[: error.start].decode(encoding) if cut else None


def _header(text: str, separator: str | None) -> tuple[list[str], str, int]:
    """Column names, the separator, and where the table starts: lines before it that begin with # are passed over."""
    start = 0
    while text.startswith(("#", "\n"), start) and (end := text.find("\n", start)) >= 0:
        start = end + 1
    end = text.find("\n", start)
    line = text[start : end if end >= 0 else len(text)]
    if separator is None:
        separator = max(_SEPARATORS, key=line.count)
    names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [name.strip() for name in names], separator, start


def _as_text(body: str, separator: str, wanted: set[str] | None, as_written: Sequence[str], path: Path) -> pd.DataFrame:
    """The columns that are wanted, as categories (few different texts among many lines), or as text.

    Categories that look like numbers become numbers, which costs a station's name its leading zeros: those stay as written.
    """
    types = defaultdict(lambda: "category", dict.fromkeys(as_written, "str")) if wanted is not None else "str"
    try:
        table = pd.read_csv(
            io.StringIO(body),
            sep=separator,
            dtype=types,
            usecols=None if wanted is None else (lambda name: str(name).strip() in wanted),
            index_col=False,
            on_bad_lines="skip",
            skipinitialspace=True,
            keep_default_na=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:200]})") from error
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    return table


def _has_decimal_comma(table: pd.DataFrame, roles: Mapping[str, str], columns: ColumnMap) -> bool:
    """Whether numbers are written 0,21."""
    names = [roles[r] for r in ("value", "lat", "lon") if r in roles]
    if columns.layout == "wide":
        names = [str(name) for name in table if name not in roles.values()][:20]
    return any(_writes_commas(table[name]) for name in names)


def _writes_commas(column: pd.Series) -> bool:
    """Whether any number of a column (its first different texts stand for it) has a comma for its point."""
    texts = pd.Series(pd.unique(column)[:_PROBED].astype(str))
    return bool(texts.str.match(r"^\s*[-+]?\d*,\d+\s*$").any())


# -- long: one value a line -----------------------------------------------------------------------


def _long_records(
    table: _Table, described: pd.DataFrame | None, columns: ColumnMap, problems: Problems
) -> Iterator[Record]:
    file = table.path.name
    value, readable = _values(table, table.column("value"))
    key, sensors = _sensors(table, columns)
    time = _times(table, columns, key, problems)
    good = ~np.isnat(time) & readable & (key >= 0)
    problems.add(file, "broken line", max(0, table.lines - int(good.sum())))
    flag = _flags(table, columns)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(key[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(key[rows])) + 1
    for part in np.split(rows, cuts) if rows.size else []:
        sensor = sensors[int(key[part[0]])]
        for at, chosen in _where(sensor, time[part], described, file, problems):
            if (found := placed(at, file, problems, int(chosen.sum()))) is not None:
                mine = part[chosen]
                yield Record(found, time[mine], value[mine], flag[mine], file, columns.unit, columns.missing)


def _values(table: _Table, column: pd.Series | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers, and where the text is one or says that there is none."""
    assert column is not None
    number = table.numbers(column)
    code, texts = pd.factorize(column)
    nothing = pd.Series(texts.astype(str)).str.strip().str.lower().isin(_NO_VALUE).to_numpy(bool)
    blank = np.where(code >= 0, nothing[code], True) if nothing.size else np.ones(code.size, bool)
    return number, np.isfinite(number) | blank


def _sensors(table: _Table, columns: ColumnMap) -> tuple[NDArray[np.int64], list[Sensor]]:
    """Which sensor each line is of (-1: no station is named), and the sensors as the table describes them."""
    n = len(table.text)
    texts = {role: _text_of(table, role) for role in ("station", "network", "sensor")}
    numbers = _depths(table, columns, columns.depth or (0.0, 0.0))
    for role in ("lat", "lon", "elevation"):
        column = table.column(role)
        numbers[role] = np.full(n, np.nan) if column is None else table.numbers(column)
    rounded = [np.round(numbers[role], 4) for role in _PLACE]
    key, first = _combined([*texts.values(), *rounded])
    sensors = [
        Sensor(
            network=str(texts["network"][i]),
            station=str(texts["station"][i]),
            lat=float(numbers["lat"][i]),
            lon=float(numbers["lon"][i]),
            elevation=float(numbers["elevation"][i]),
            depth_from=float(numbers["depth_from"][i]),
            depth_to=float(numbers["depth_to"][i]),
            name=str(texts["sensor"][i]),
        )
        for i in first
    ]
    return np.where(np.asarray(texts["station"]) == "", -1, key), sensors


def _depths(table: _Table, columns: ColumnMap, default: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
    """Upper and lower depth of each line, metres; the default where none is given, NaN where the text is no depth."""
    out = {}
    for end, role in enumerate(("depth_from", "depth_to")):
        column = table.column(role)
        column = table.column("depth") if column is None else column
        if column is None:
            out[role] = np.full(len(table.text), default[end])
            continue
        code, texts = pd.factorize(column)
        layers = [_layer(str(text).strip(), columns.depth_unit, default) for text in texts]
        out[role] = np.array([layer[end] for layer in layers] + [default[end]])[code]
    return out


def _layer(text: str, unit: str, default: tuple[float, float]) -> tuple[float, float]:
    """Upper and lower depth in metres of "10", "0-10" or "0-10cm"; of one number, both."""
    if text.lower() in _NO_VALUE:
        return default
    layer = _LAYER.match(text.replace(",", "."))
    if layer is None:
        return np.nan, np.nan
    scale = 0.01 if (layer["unit"] or layer["first"] or unit).lower() == "cm" else 1.0
    return float(layer["top"]) * scale, float(layer["bottom"] or layer["top"]) * scale


def _text_of(table: _Table, role: str) -> NDArray[np.object_]:
    column = table.column(role)
    if column is None:
        return np.full(len(table.text), "", dtype=object)
    code, texts = pd.factorize(column)
    stripped = np.array([str(t).strip() for t in texts] + [""], dtype=object)
    return stripped[code]


def _flags(table: _Table, columns: ColumnMap) -> NDArray[np.str_]:
    """Flags in ISMN's letters where the map says which are good; no flag is good unless it says so."""
    column = table.column("flag")
    if column is None:
        return np.full(len(table.text), GOOD)
    code, texts = pd.factorize(column)
    said = np.array([_flag(str(text).strip(), columns) for text in texts] + [_flag("", columns)])
    return said[code]


def _flag(text: str, columns: ColumnMap) -> str:
    if columns.good is None:
        return text or GOOD
    whole = text.removesuffix(".0")
    return GOOD if text in columns.good or whole in columns.good else f"'{text}'"


def _times(table: _Table, columns: ColumnMap, series: NDArray[np.int64], problems: Problems) -> NDArray[np.datetime64]:
    """UTC of each line."""
    code, local, offset, example = _written(table, columns)
    if len(table.text) and np.isnat(local).all():
        raise InputError(
            f"{table.path}: not one of its times can be read (the first is {example!r}): write them year first, or state time_format"
        )
    time, counts = times.to_utc(local, offset, columns.zone, code, series)
    file = table.path.name
    problems.add(file, f"local time that {columns.zone} skips: left out", counts.get("skipped", 0))
    what = f"local time that came twice in {columns.zone}: read as summer time, then as standard time; alone as standard time"
    problems.add(file, what, counts.get("ambiguous", 0))
    return time


def _written(
    table: _Table, columns: ColumnMap
) -> tuple[NDArray[np.int64], NDArray[np.datetime64], NDArray[np.float64], str]:
    """Which time each line has; the different times as written; the offsets that they state; the first as text."""
    if not columns.time_parts:
        code, texts = pd.factorize(table.text[table.roles["time"]])
        local, offset = times.parse(pd.Series(texts.astype(str)), columns.time_format)
        return code, local, offset, str(texts[0]) if len(texts) else ""
    numbers = {name: table.numbers(table.text[table.roles[name]]) for name in columns.time_parts}
    code, first = _combined(list(numbers.values()))
    parts = {name: pd.Series(values[first]) for name, values in numbers.items()}
    local = times.from_parts(parts)
    example = " ".join(f"{name} {values.iloc[0]:g}" for name, values in parts.items()) if first.size else ""
    return code, local, np.full(local.size, np.nan), example


def _combined(columns: Sequence[NDArray]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the different lines each line is, in the order in which they come, and the first of each."""
    key = np.zeros(len(columns[0]), np.int64)
    for values in columns:
        code, different = pd.factorize(values, use_na_sentinel=False)
        key = pd.factorize(key * max(len(different), 1) + code)[0].astype(np.int64)
    return key, np.unique(key, return_index=True)[1]


# -- wide: one column a station -------------------------------------------------------------------


def _wide_records(table: _Table, described: pd.DataFrame, columns: ColumnMap, problems: Problems) -> Iterator[Record]:
    file = table.path.name
    time = _times(table, columns, np.zeros(len(table.text), np.int64), problems)
    good = ~np.isnat(time)
    problems.add(file, "broken line", max(0, table.lines - int(good.sum())))
    known = {_same_id(station): station for station in described.index.unique()}
    taken = set(table.roles.values())
    seen = set()
    for name in table.text.columns:
        if name in taken:
            continue
        station = known.get(_same_id(name))
        if station is None:
            problems.add(file, f"column {name} is no station of {Path(str(columns.table)).name}: left out")
            continue
        seen.add(station)
        value, readable = _values(table, table.text[name])
        problems.add(file, f"station {station}: text that is no value", int((good & ~readable).sum()))
        rows = np.flatnonzero(good & readable)
        sensor = Sensor("", str(station), np.nan, np.nan, np.nan, *(columns.depth or (0.0, 0.0)))
        for at, chosen in _where(sensor, time[rows], described, file, problems):
            if (found := placed(at, file, problems, int(chosen.sum()))) is not None:
                mine = rows[chosen]
                flag = np.full(mine.size, GOOD)
                yield Record(found, time[mine], value[mine], flag, file, columns.unit, columns.missing)
    for station in [s for s in known.values() if s not in seen]:
        problems.add(file, f"station {station} of {Path(str(columns.table)).name} has no column")


def _same_id(name: object) -> str:
    """A station's name or number without what differs by accident: case, blanks, leading zeros, a number's .0."""
    text = plain(name)
    whole = text.removesuffix(".0")
    return str(int(whole)) if whole.isdecimal() else text


# -- the table that describes the stations --------------------------------------------------------


def _described(path: Path, columns: ColumnMap, problems: Problems) -> pd.DataFrame | None:
    """Place, depth, network and sensor by station, with the times from which and to which a line holds."""
    if columns.table is None:
        return None
    file = next((p for p in (path.parent / columns.table, Path(columns.table)) if p.is_file()), None)
    if file is None:
        raise InputError(f"{path}: its table of stations {columns.table} is not there (looked beside it)")
    text = _decoded(file.read_bytes(), None)
    header, separator, start = _header(text, None)
    roles = columns.find_in_table(header, file)
    raw = _as_text(text[start:], separator, None, (), file)
    comma = separator != "," and any(_writes_commas(raw[roles[r]]) for r in ("lat", "lon"))
    table = _Table(file, raw, roles, len(raw), comma)
    out = pd.DataFrame({"station": _text_of(table, "station")})
    depths = _depths(table, columns, (np.nan, np.nan))
    for role in _PLACE:
        column = table.column(role)
        out[role] = depths[role] if role in depths else np.nan if column is None else table.numbers(column)
    for role in ("network", "sensor"):
        out[role] = _text_of(table, role)
    for role in ("start", "end"):
        out[role] = _moment(table.column(role), columns, len(out))
    whole_day = out["end"] == out["end"].dt.normalize()  # the day that is named is the last one
    out["end"] = out["end"].where(~whole_day, out["end"] + pd.Timedelta(days=1) - pd.Timedelta(1, "ns"))
    for role in ("start", "end"):
        code, nothing = np.arange(len(out)), np.full(len(out), np.nan)
        out[role] = times.to_utc(out[role].to_numpy("datetime64[ns]"), nothing, columns.zone, code, code)[0]
    out["id"] = [_same_id(s) for s in out["station"]]
    doubled = out.duplicated([c for c in out if c != "station"])
    problems.add(file.name, "station described twice in the same words", int(doubled.sum()))
    return out[~doubled & (out["station"] != "")].set_index("station", drop=False)


def _moment(column: pd.Series | None, columns: ColumnMap, n: int) -> NDArray[np.datetime64]:
    """Times of a column as written; NaT where it is not there or says none."""
    if column is None:
        return np.full(n, np.datetime64("NaT", "ns"))
    return times.parse(column, columns.time_format)[0]


def _where(
    sensor: Sensor, time: NDArray[np.datetime64], described: pd.DataFrame | None, file: str, problems: Problems
) -> Iterator[tuple[Sensor, NDArray[np.bool_]]]:
    """The sensor with what the table of stations says of it: once a line, each with the values of its own time."""
    if described is None:
        yield sensor, np.ones(time.size, dtype=bool)
        return
    lines = described[described["id"] == _same_id(sensor.station)]
    left = np.ones(time.size, dtype=bool)
    dated = lines["start"].notna() | lines["end"].notna()
    if len(lines) > 1 and not dated.all():
        what = f"station {sensor.station} is described {len(lines)} times without start and end: the first description is used"
        problems.add(file, what)
        lines = lines[:1]
    for line in lines.to_dict("records"):
        chosen = left.copy()
        if not pd.isna(line["start"]):
            chosen &= time >= np.datetime64(line["start"])
        if not pd.isna(line["end"]):
            chosen &= time <= np.datetime64(line["end"])
        left &= ~chosen
        if chosen.any():
            yield _completed(sensor, line), chosen
    if lines.empty:
        problems.add(file, f"station {sensor.station} is not in the table of stations: left out", time.size)
    else:
        problems.add(file, f"station {sensor.station}: time outside every start and end: left out", int(left.sum()))


def _completed(sensor: Sensor, line: Mapping[Any, Any]) -> Sensor:
    """What the table of values lacks, from the table of stations."""

    def number(name: str, own: float, always: bool = False) -> float:
        other = float(line[name])
        return other if np.isfinite(other) and (always or not np.isfinite(own)) else own

    return Sensor(
        sensor.network or str(line["network"]),
        sensor.station,
        number("lat", sensor.lat),
        number("lon", sensor.lon),
        number("elevation", sensor.elevation),
        number("depth_from", sensor.depth_from, always=True),
        number("depth_to", sensor.depth_to, always=True),
        sensor.name or str(line["sensor"]),
    )
