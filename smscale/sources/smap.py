"""SMAP soil moisture: SPL3SMP (and its 9 km kin SPL3SMP_E), SPL2SMP, SPL4SMAU and SPL4SMGP, on their EASE-Grid 2.0 cells.

Every finite retrieval is kept: quality control is `smscale.sources.quality`. Names of data sets and flags: smap_tables.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendEntrypoint

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid
from smscale.schema import OVERPASSES, VARIABLES
from smscale.sources.files import HDF_LOCK, check

TABLES: dict[str, Any] = json.loads((files("smscale.sources") / "smap_tables.json").read_text())
FLOAT_FILL: float = TABLES["fill"]["float"]
FLAG_FILL: int = TABLES["fill"]["uint16"]

#: tb_time_seconds counts from here; established from SPL2SMP files that hold both (their strings agree to 1 ms, leap seconds left out).
J2000_UTC = np.datetime64("2000-01-01T12:00:00", "ns")
#: How far a file's own latitude or placement may lie from the grid's, in cells.
_PLACEMENT_TOLERANCE = 0.01

_L3, _L2 = "Soil_Moisture_Retrieval_Data_AM", "Soil_Moisture_Retrieval_Data"
_SHAPES = {(rows, columns): km for km, (columns, rows, _) in EASE2_GRIDS.items()}


def open_smap(path: str | Path, algorithm: str | None = None, grid: Grid | None = None) -> xr.Dataset:
    """One SMAP granule on its EASE-Grid 2.0 cells; quality control is not applied.

    Parameters
    ----------
    path : SPL3SMP, SPL3SMP_E, SPL2SMP, SPL4SMAU or SPL4SMGP file (HDF5)
    algorithm : "dca", "scav" or "scah"; None takes the product's own default, which the attribute `algorithm` names
    grid : a window of `Grid.ease2` of the file's resolution: only its cells are read, cells that the file lacks are missing

    Returns
    -------
    Dataset, (overpass, lat, lon) for SPL3SMP, with overpass "AM", "PM"; (lat, lon) for SPL2SMP (the rows and columns that
    its cells span) and SPL4SM (the file's window), with:

    soil_moisture : float32, m3 m-3, every finite retrieval, also outside the valid range; fill is NaN
    observation_time : datetime64[ns], UTC, NaT where not observed
    retrieval_quality, surface_flag : uint16 bit fields, 65534 where not observed (not in SPL4SM, which has none)
    what quality control uses (vegetation_opacity, static_water_body_fraction, ...), float32, or SPL4SM's further fields

    Coordinates lat, lon (degrees), y, x (metres); attributes product, version, algorithm, date (UTC), crs, row0, col0.

    Raises
    ------
    InputError
        if the file is broken, is no SMAP soil moisture, lacks the algorithm, or does not lie where its grid says.
    """
    path = check(path, "HDF5")
    with HDF_LOCK:
        try:
            with h5py.File(path, "r") as file:
                return _read(file, path, algorithm, grid)
        except (OSError, KeyError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be read as SMAP HDF5 ({_one_line(error)}): download it again") from error


def _read(file: h5py.File, path: Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    if _L3 in file:
        ds = _read_l3(file, path, algorithm, grid)
    elif _L2 in file:
        ds = _read_l2(file, path, algorithm, grid)
    elif any(name in file for name in TABLES["analysis"]["groups"]):
        ds = _read_l4(file, path, grid)
    else:
        raise InputError(
            f"{path}: holds no SMAP soil moisture group (found {', '.join(list(file)[:5]) or 'nothing'}); "
            f"expected SPL3SMP, SPL2SMP or SPL4SM"
        )
    ds.attrs["source"] = path.name
    return ds


# -- level 3: whole grid, a day, two overpasses ---------------------------------------------------


def _read_l3(file: h5py.File, path: Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    names = {"AM": _L3, "PM": _L3[:-2] + "PM"}
    groups = {o: _Group(file[name], path, "_pm" if o == "PM" else "") for o, name in names.items() if name in file}
    shape = next(iter(groups.values())).field("soil_moisture").shape
    whole = _whole_grid(shape, path)
    window = whole if grid is None else grid
    rows, cols = _locate(window, whole, path)
    facts = _facts(file, path, algorithm)
    layers = []
    for overpass in OVERPASSES:
        if overpass not in groups:
            raise InputError(f"{path}: has no {overpass} group ({names[overpass]}); expected both overpasses")
        group = groups[overpass]
        _check_latitude(group, window, rows, cols, path)
        layers.append(group.variables(facts, (rows, cols)))
    common = [name for name in layers[0] if all(name in layer for layer in layers)]
    dims = ("overpass", "lat", "lon")
    data = {name: (dims, np.stack([layer[name][0] for layer in layers]), layers[0][name][1]) for name in common}
    return _dataset(data, window, facts | _date(file, path)).assign_coords(
        overpass=("overpass", list(OVERPASSES), {"long_name": "AM descending, about 06:00 local; PM ascending, 18:00"})
    )


def _check_latitude(group: _Group, window: Grid, rows: slice, cols: slice, path: Path) -> None:
    """A file whose own latitudes are not the grid's is flipped or shifted: refuse it."""
    if "latitude" not in group:
        return
    lat = group.field("latitude")[rows, cols]
    known = (lat != FLOAT_FILL) & np.isfinite(lat)
    tolerance = _PLACEMENT_TOLERANCE * -np.diff(window.lat_edges)
    off = known & (np.abs(lat - window.lat[:, None]) > np.maximum(tolerance, 1e-4)[:, None])
    if off.any():
        row = int(np.argwhere(off)[0][0])
        raise InputError(
            f"{path}: its latitude in grid row {window.row0 + row} is not that of EASE-Grid 2.0 "
            f"({window.lat[row]:.4f}; {int(off.sum())} cells differ): the file is flipped or shifted"
        )


# -- level 2: a list of cells of one half orbit ---------------------------------------------------


def _read_l2(file: h5py.File, path: Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    group = _Group(file[_L2], path, "")
    row, col = (group.field(f"EASE_{axis}_index")[:] for axis in ("row", "column"))
    whole = Grid.ease2(36)
    placed = (row < whole.shape[0]) & (col < whole.shape[1])
    if not placed.any():
        raise InputError(f"{path}: lists no cell of the 36 km grid ({row.size} entries, all fill)")
    if grid is None:
        r, c = row[placed].astype(int), col[placed].astype(int)
        window = whole.window(slice(r.min(), r.max() + 1), slice(c.min(), c.max() + 1))
    else:
        _locate(grid, whole, path)
        window = grid
    cell_row, cell_col = row.astype(int) - window.row0, col.astype(int) - window.col0
    inside = placed & (cell_row >= 0) & (cell_row < window.shape[0]) & (cell_col >= 0) & (cell_col < window.shape[1])
    cells = np.ravel_multi_index((cell_row[inside], cell_col[inside]), window.shape)
    duplicates = int(cells.size - np.unique(cells).size)
    facts = _facts(file, path, algorithm)
    data = {}
    for name, (values, attrs) in group.variables(facts, (slice(None),)).items():
        field = np.full(window.shape, _missing(values.dtype), dtype=values.dtype)
        field.ravel()[cells] = values[inside]
        data[name] = (("lat", "lon"), field, attrs)
    direction = re.search(r"_\d{5}_([AD])_", path.name)
    attrs = {"unplaced_cells": int((~placed).sum()), "duplicate_cells": duplicates}
    if direction:
        attrs["overpass"] = {"A": "PM", "D": "AM"}[direction[1]]
    return _dataset(data, window, facts | _date(file, path) | attrs)


# -- level 4: analysed fields, possibly a cropped window ------------------------------------------


def _read_l4(file: h5py.File, path: Path, grid: Grid | None) -> xr.Dataset:
    table = TABLES["analysis"]
    group = file[next(name for name in table["groups"] if name in file)]
    fields = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset) and item.ndim == 2}
    if not fields:
        raise InputError(f"{path}: {group.name} holds no two-dimensional field")
    shape = next(iter(fields.values())).shape
    own = _l4_grid(file, shape, path)
    window = own if grid is None else grid
    if grid is not None:
        _locate(grid, Grid.ease2(_resolution(own)), path)
    time = _granule_time(file, path)
    data: dict[str, tuple] = {}
    for name, item in fields.items():
        plain = name.removesuffix(table["suffix"])
        values = _window_of(item, own, window)
        if values.dtype.kind == "f":
            values = _decode(values, item)
        attrs = {"long_name": _text(item.attrs.get("long_name", plain)), "units": _text(item.attrs.get("units", ""))}
        data[table["names"].get(plain, plain)] = (("lat", "lon"), values, attrs)
    if "soil_moisture" not in data:
        raise InputError(f"{path}: {group.name} has no surface soil moisture; found {', '.join(fields)}")
    data["soil_moisture"][2].update(VARIABLES["soil_moisture"].attrs)
    data["observation_time"] = (
        ("lat", "lon"),
        np.broadcast_to(time, window.shape),
        {"long_name": "time of analysis, UTC"},
    )
    facts = {
        "product": _product(file, path),
        "version": _version(file),
        "algorithm": "analysis",
        "date": str(time)[:10],
    }
    return _dataset(data, window, facts)


def _l4_grid(file: h5py.File, shape: tuple[int, int], path: Path) -> Grid:
    """The window of the 9 km grid (or the grid whose shape the file has) that a file covers: from x, y; cell indices must agree."""
    if "x" not in file or "y" not in file:
        return _whole_grid(shape, path)
    x, y = file["x"][:], file["y"][:]
    if (y.size, x.size) != shape or x.size < 2:
        raise InputError(f"{path}: x and y ({x.size}, {y.size}) do not fit its fields {shape}")
    step = float(x[-1] - x[0]) / (x.size - 1)
    km = min(EASE2_GRIDS, key=lambda k: abs(EASE2_GRIDS[k][2] - step))
    columns, rows, size = EASE2_GRIDS[km]
    at_col, at_row = x / size + columns / 2 - 0.5, rows / 2 - 0.5 - y / size
    col0, row0 = round(float(at_col[0])), round(float(at_row[0]))
    deviation = max(np.abs(at_col - col0 - np.arange(x.size)).max(), np.abs(at_row - row0 - np.arange(y.size)).max())
    if deviation > _PLACEMENT_TOLERANCE or min(row0, col0) < 0 or row0 + y.size > rows or col0 + x.size > columns:
        raise InputError(
            f"{path}: x and y lie {deviation:.3f} cells off the EASE-Grid 2.0 of {km} km; expected its cell centres"
        )
    for name, first in (("cell_column", col0), ("cell_row", row0)):
        if name in file and int(file[name][0, 0]) != first:
            raise InputError(f"{path}: {name} starts at {int(file[name][0, 0])} but x and y at {first}")
    return Grid.ease2(km).window(slice(row0, row0 + y.size), slice(col0, col0 + x.size))


def _window_of(item: h5py.Dataset, own: Grid, window: Grid) -> NDArray:
    """The part of a field that a window covers; fill where the file has no cells."""
    r0, c0 = window.row0 - own.row0, window.col0 - own.col0
    rows = slice(max(r0, 0), min(r0 + window.shape[0], own.shape[0]))
    cols = slice(max(c0, 0), min(c0 + window.shape[1], own.shape[1]))
    if (rows, cols) == (slice(r0, r0 + window.shape[0]), slice(c0, c0 + window.shape[1])):
        return item[rows, cols]
    out = np.full(window.shape, _missing(item.dtype), dtype=item.dtype)
    if rows.start < rows.stop and cols.start < cols.stop:
        out[rows.start - r0 : rows.stop - r0, cols.start - c0 : cols.stop - c0] = item[rows, cols]
    return out


# -- one group of retrievals ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The data sets of one retrieval group: names end in `suffix` ("_pm" in the PM group of SPL3SMP)."""

    group: h5py.Group
    path: Path
    suffix: str

    def __contains__(self, name: str) -> bool:
        return name + self.suffix in self.group

    def field(self, name: str) -> h5py.Dataset:
        if name not in self:
            raise InputError(
                f"{self.path}: {self.group.name} has no {name + self.suffix}; is it a soil moisture granule?"
            )
        return self.group[name + self.suffix]

    def variables(self, facts: dict[str, Any], where: tuple[slice, ...]) -> dict[str, tuple[NDArray, dict]]:
        """Decoded arrays with attributes, by our names."""
        out: dict[str, tuple[NDArray, dict]] = {}
        item = self._of_algorithm("soil_moisture", facts)
        out["soil_moisture"] = (_decode(item[where], item), dict(VARIABLES["soil_moisture"].attrs))
        out["retrieval_quality"] = (
            self._of_algorithm("retrieval_qual_flag", facts)[where].astype(np.uint16),
            _flag_attrs("retrieval_quality", "quality bits of the retrieval; 0 is recommended"),
        )
        out["surface_flag"] = (
            self.field("surface_flag")[where].astype(np.uint16),
            _flag_attrs("surface_flag", "ambient surface conditions"),
        )
        out["observation_time"] = (self._time(where), {"long_name": "time of observation, UTC"})
        for name, entry in TABLES["variables"].items():
            if entry["field"] not in self:
                continue
            item = self._of_algorithm(entry["field"], facts) if entry.get("algorithm") else self.field(entry["field"])
            if "flags" in entry:
                out[name] = (item[where].astype(np.uint16), _flag_attrs(entry["flags"], entry["long_name"]))
            else:
                out[name] = (_decode(item[where], item), {"long_name": entry["long_name"], "units": entry["units"]})
        return out

    def _of_algorithm(self, name: str, facts: dict[str, Any]) -> h5py.Dataset:
        """The data set of the chosen algorithm; the plain name is the default algorithm's."""
        for suffix in TABLES["algorithms"][facts["algorithm"]]["suffixes"]:
            if f"{name}_{suffix}" in self:
                return self.field(f"{name}_{suffix}")
        if facts["algorithm"] == facts["default_algorithm"] or name not in ("soil_moisture", "retrieval_qual_flag"):
            return self.field(name)
        raise InputError(
            f"{self.path}: holds no {facts['algorithm']} soil moisture; its default is {facts['default_algorithm']}"
        )

    def _time(self, where: tuple[slice, ...]) -> NDArray[np.datetime64]:
        if "tb_time_utc" in self:
            return parse_utc(self.field("tb_time_utc")[where])
        seconds = self.field("tb_time_seconds")[where]
        time = np.full(seconds.shape, np.datetime64("NaT"), "datetime64[ns]")
        known = np.isfinite(seconds) & (seconds != FLOAT_FILL)
        time[known] = J2000_UTC + np.round(seconds[known] * 1e9).astype("timedelta64[ns]")
        return time


def parse_utc(text: NDArray) -> NDArray[np.datetime64]:
    """Times of strings such as b"2015-08-11T02:21:22.474Z"; anything else is NaT.

    Parameters
    ----------
    text : any shape, bytes (fixed length) or objects

    Returns
    -------
    datetime64[ns], the same shape. Milliseconds written as `***` (a rounding overflow of NASA's writer) are 1000.
    """
    text = np.asarray(text)
    if text.dtype.kind != "S":
        flat = [t if isinstance(t, bytes) else str(t).encode() for t in text.ravel()]
        text = np.array(flat, dtype="S24").reshape(text.shape)
    out = np.full(text.shape, np.datetime64("NaT"), "datetime64[ns]").ravel()
    padded = np.ascontiguousarray(text.astype("S24")).view(np.uint8).reshape(-1, 24)
    digits = padded.astype(np.int16) - ord("0")
    plain = (digits >= 0) & (digits <= 9)
    places = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]
    good = plain[:, places].all(axis=1) & (padded[:, 4] == ord("-")) & (padded[:, 10] == ord("T"))
    if not good.any():
        return out.reshape(text.shape)
    d = digits[good].astype(np.int64)

    def number(columns: Iterable[int]) -> NDArray[np.int64]:
        value = np.zeros(len(d), np.int64)
        for column in columns:
            value = value * 10 + d[:, column]
        return value

    months = (number(range(4)) - 1970) * 12 + number((5, 6)) - 1
    seconds = (number((8, 9)) - 1) * 86400 + number((11, 12)) * 3600 + number((14, 15)) * 60 + number((17, 18))
    overflow = (padded[good][:, 20:23] == ord("*")).all(axis=1)
    thousandths = plain[good][:, 20:23].all(axis=1) & (padded[good][:, 19] == ord("."))
    milliseconds = np.where(overflow, 1000, np.where(thousandths, number((20, 21, 22)), 0))
    time = months.astype("datetime64[M]").astype("datetime64[ms]") + (seconds * 1000 + milliseconds).astype(
        "timedelta64[ms]"
    )
    out[good] = time.astype("datetime64[ns]")
    return out.reshape(text.shape)


# -- what a file says of itself -------------------------------------------------------------------


def _facts(file: h5py.File, path: Path, algorithm: str | None) -> dict[str, Any]:
    """product, version, the chosen algorithm and the default one."""
    version = _version(file)
    default = _default_algorithm(version, path)
    chosen = default if algorithm is None else algorithm.lower().replace("-", "")
    if chosen not in TABLES["algorithms"]:
        raise InputError(f"algorithm must be one of {', '.join(TABLES['algorithms'])} or None, got {algorithm!r}")
    return {
        "product": _product(file, path),
        "version": version,
        "algorithm": chosen,
        "default_algorithm": default,
    }


def _default_algorithm(version: int, path: Path) -> str:
    """The product's baseline, by its version, else by the composite release in its name (R18290); the newest if neither is known."""
    table = TABLES["default_algorithm"]
    release = re.search(r"_R(\d\d)\d{3}_", path.name)
    if version:
        new = version >= table["first_dca_version"]
    else:
        new = release is None or int(release[1]) >= table["first_dca_release"]
    return table["after"] if new else table["before"]


def _metadata(file: h5py.File, name: str) -> str:
    """An attribute of the file's own metadata, first group that has it; empty if none."""
    for group in ("DatasetIdentification", "SeriesIdentification", "Extent"):
        found = file.get(f"Metadata/{group}")
        if found is not None and name in found.attrs:
            return _text(found.attrs[name])
    return ""


def _product(file: h5py.File, path: Path) -> str:
    short = _metadata(file, "shortName")
    if short:
        return short
    for part, product in (
        ("L3_SM_P_E", "SPL3SMP_E"),
        ("L3_SM_P", "SPL3SMP"),
        ("L2_SM_P", "SPL2SMP"),
        ("L4_SM_aup", "SPL4SMAU"),
    ):
        if part in path.name:
            return product
    return {_L3: "SPL3SMP", _L2: "SPL2SMP"}.get(next((g for g in (_L3, _L2) if g in file), ""), "SPL4SM")


def _version(file: h5py.File) -> int:
    found = re.fullmatch(r"0*(\d+)", _metadata(file, "ECSVersionID"))
    return int(found[1]) if found else 0


def _date(file: h5py.File, path: Path) -> dict[str, str]:
    """The UTC day of a granule: its metadata's first day, which must be the one in its name."""
    said = _metadata(file, "rangeBeginningDateTime")[:10]
    named = re.search(r"_(20\d\d)(\d\d)(\d\d)(?:T\d{6})?_", path.name)
    in_name = "-".join(named.groups()) if named else ""
    if said and in_name and said != in_name and _L3 in file:
        raise InputError(f"{path}: its metadata say {said} but its name {in_name}: rename or replace the file")
    return {"date": in_name or said} if in_name or said else {}


def _granule_time(file: h5py.File, path: Path) -> np.datetime64:
    """The middle of the period that the metadata state; else the time in the name."""
    begin, end = (_metadata(file, f"range{edge}DateTime") for edge in ("Beginning", "Ending"))
    if begin and end:
        first, last = parse_utc(np.array([begin, end], dtype="S24"))
        if not (np.isnat(first) or np.isnat(last)):
            return first + (last - first) / 2
    named = re.search(r"_(20\d\d)(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)_", path.name)
    if not named:
        raise InputError(f"{path}: neither its metadata nor its name say when it was; expected Metadata/Extent")
    y, mo, d, h, mi, s = named.groups()
    return np.datetime64(f"{y}-{mo}-{d}T{h}:{mi}:{s}", "ns")


# -- small things ---------------------------------------------------------------------------------


def _dataset(data: dict[str, tuple], grid: Grid, attrs: dict[str, Any]) -> xr.Dataset:
    coords = {
        "lat": ("lat", grid.lat, VARIABLES["latitude"].attrs),
        "lon": ("lon", grid.lon, VARIABLES["longitude"].attrs),
        "y": ("lat", grid.y, {"units": "m", "standard_name": "projection_y_coordinate"}),
        "x": ("lon", grid.x, {"units": "m", "standard_name": "projection_x_coordinate"}),
    }
    place = {"crs": grid.crs, "row0": grid.row0, "col0": grid.col0, "resolution_km": _resolution(grid)}
    return xr.Dataset(data, coords, attrs | place)


def _resolution(grid: Grid) -> int:
    """Nominal km of an EASE grid, by the width of its first cell."""
    width = float(grid.lon_edges[1] - grid.lon_edges[0])
    return min(EASE2_GRIDS, key=lambda km: abs(360.0 / EASE2_GRIDS[km][0] - width))


@lru_cache(maxsize=4)
def _ease2(km: int) -> Grid:
    return Grid.ease2(km)


def _whole_grid(shape: tuple[int, ...], path: Path) -> Grid:
    if tuple(shape) not in _SHAPES:
        expected = ", ".join(f"{r} x {c}" for r, c in sorted(_SHAPES))
        raise InputError(f"{path}: its fields are {shape}, no EASE-Grid 2.0 has that shape (expected {expected})")
    return _ease2(_SHAPES[tuple(shape)])  # type: ignore[index]


def _locate(window: Grid, whole: Grid, path: Path) -> tuple[slice, slice]:
    """Rows and columns of a window in the whole grid."""
    rows = slice(window.row0, window.row0 + window.shape[0])
    cols = slice(window.col0, window.col0 + window.shape[1])
    fits = rows.stop <= whole.shape[0] and cols.stop <= whole.shape[1] and min(rows.start, cols.start) >= 0
    if window is not whole and not (fits and window == whole.window(rows, cols)):
        raise InputError(f"{path}: {window} is no window of its EASE-Grid 2.0 of {_resolution(whole)} km")
    return rows, cols


def _decode(values: NDArray, item: h5py.Dataset) -> NDArray[np.float32]:
    """float32 with NaN for the fill that the data set states (or -9999)."""
    fill = item.attrs.get("_FillValue", FLOAT_FILL)
    values = values.astype(np.float32)
    values[(values == np.float32(np.ravel(fill)[0])) | (values == np.float32(FLOAT_FILL))] = np.nan
    return values


def _missing(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.nan
    return np.datetime64("NaT") if dtype.kind == "M" else FLAG_FILL


def _flag_attrs(table: str, long_name: str) -> dict[str, Any]:
    masks = TABLES[table]
    return {
        "long_name": long_name,
        "flag_masks": np.array(list(masks.values()), dtype=np.uint16),
        "flag_meanings": " ".join(masks),
        "missing_value": np.uint16(FLAG_FILL),
    }


def _text(value: Any) -> str:
    value = np.ravel(value)[0] if np.ndim(value) else value
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class SmapBackend(BackendEntrypoint):
    """xarray engine "smap": `xarray.open_dataset(path, engine="smap")` is `open_smap(path)`."""

    description = "SMAP soil moisture (SPL2SMP, SPL3SMP, SPL4SM) on EASE-Grid 2.0"
    open_dataset_parameters: ClassVar[tuple] = ("filename_or_obj", "drop_variables", "algorithm", "grid")  # type: ignore[misc]

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: Iterable[str] | None = None,
        algorithm: str | None = None,
        grid: Grid | None = None,
    ) -> xr.Dataset:
        """See `open_smap`."""
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return open_smap(filename_or_obj, algorithm, grid).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is a SMAP soil moisture granule's."""
        return bool(re.match(r"SMAP_L[234]_SM.*\.h5$", Path(str(filename_or_obj)).name))
