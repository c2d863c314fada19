"""SMAP soil moisture: SPL3SMP and SPL2SMP, their 9 km kin SPL3SMP_E and SPL2SMP_E, SPL4SMAU and SPL4SMGP, on EASE-Grid 2.0 cells.

Every finite retrieval is kept: quality control is `smscale.sources.quality`. Values are read where they are touched
(`smap_layers`). Names of data sets and flags: smap_tables.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid
from smscale.schema import OVERPASSES, VARIABLES
from smscale.sources.files import check
from smscale.sources.smap_layers import (
    FLAG_FILL,
    FLOAT_FILL,
    Cells,
    Constant,
    Layer,
    Plane,
    Source,
    lazy,
    opened,
    parse_utc,
)

__all__ = ["FLAG_FILL", "TABLES", "SmapBackend", "open_smap", "parse_utc"]

TABLES: dict[str, Any] = json.loads((files("smscale.sources") / "smap_tables.json").read_text())

#: How far a file's own latitude, longitude or placement may lie from the grid's, in cells.
_PLACEMENT_TOLERANCE = 0.01
#: Of a window of more cells than this only some rows are compared with the grid: a shifted or flipped file shows in any.
_CHECKED_CELLS, _CHECKED_ROWS = 1_000_000, 12

_L3, _L2 = "Soil_Moisture_Retrieval_Data_AM", "Soil_Moisture_Retrieval_Data"
#: Groups on the polar azimuthal grids (EPSG:6931), which are no rows and columns of latitude and longitude.
_POLAR = re.compile(r"Soil_Moisture_Retrieval_Data_Polar(_AM|_PM)?$")
_SHAPES = {(rows, columns): km for km, (columns, rows, _) in EASE2_GRIDS.items()}

#: Name -> dimensions, lazy array, attributes.
_Fields = dict[str, tuple[tuple[str, ...], BackendArray, dict[str, Any]]]


def open_smap(path: str | Path, algorithm: str | None = None, grid: Grid | None = None) -> xr.Dataset:
    """One SMAP granule on its EASE-Grid 2.0 cells; quality control is not applied.

    Headers are read and checked now, values when they are touched; the file does not stay open, and the Dataset pickles.

    Parameters
    ----------
    path : SPL3SMP, SPL3SMP_E, SPL2SMP, SPL2SMP_E, SPL4SMAU or SPL4SMGP file (HDF5)
    algorithm : "dca", "scav" or "scah"; None takes the product's own default, which the attribute `algorithm` names
    grid : a window of `Grid.ease2` of the file's resolution: only its cells are read, cells that the file lacks are missing

    Returns
    -------
    Dataset, (overpass, lat, lon) for SPL3SMP, with overpass "AM", "PM"; (lat, lon) for SPL2SMP (the rows and columns that
    its cells span) and SPL4SM (the file's window), with:

    soil_moisture : float32, m3 m-3, every finite retrieval, also outside the valid range; fill is NaN
    observation_time : datetime64[ns], UTC, NaT where not observed
    retrieval_quality, surface_flag : uint16 bit fields, 65534 where not observed (not in SPL4SM, which has none)
    what quality control uses (vegetation_opacity, static_water_body_fraction, ...), float32, or SPL4SM's further fields;
        what belongs to one algorithm is there only for the algorithm that was chosen

    Coordinates lat, lon (degrees), y, x (metres); attributes product, version, release, algorithm, default_algorithm, date (UTC),
    crs, row0, col0, resolution_km, source; `groups_not_read` names what lies on polar grids.

    Raises
    ------
    InputError
        if the file is broken, is no SMAP soil moisture, lacks the algorithm, or does not lie where its grid says.
    """
    ds = _open(path, algorithm, grid)
    for variable in ds.variables.values():
        if isinstance(variable._data, indexing.LazilyIndexedArray):
            variable.data = indexing.MemoryCachedArray(indexing.CopyOnWriteArray(variable._data))
    return ds


def _open(path: str | Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    """As `open_smap`, with nothing kept of what is read."""
    path = check(path, "HDF5")
    with opened(path) as file:
        if _L3 in file:
            ds = _open_l3(file, path, algorithm, grid)
        elif _L2 in file:
            ds = _open_l2(file, path, algorithm, grid)
        elif any(name in file for name in TABLES["analysis"]["groups"]):
            ds = _open_l4(file, path, grid)
        else:
            raise InputError(
                f"{path}: holds no SMAP soil moisture group (found {', '.join(list(file)[:5]) or 'nothing'}); "
                f"expected SPL3SMP, SPL2SMP or SPL4SM"
            )
        if polar := [name for name in file if _POLAR.match(name)]:
            ds.attrs["groups_not_read"] = ", ".join(polar)
    ds.attrs["source"] = path.name
    return ds


# -- level 3: whole grid, a day, two overpasses ---------------------------------------------------


def _open_l3(file: h5py.File, path: Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    groups = []
    for overpass, end in zip(OVERPASSES, ("", "_pm"), strict=True):
        name = f"{_L3[:-2]}{overpass}"
        if name not in file:
            raise InputError(f"{path}: has no {overpass} group ({name}); expected both overpasses")
        groups.append(_Group(file[name], path, end))
    facts = _facts(file, path, algorithm, groups[0])
    layers = [group.layers(facts) for group in groups]
    shape = file[layers[0]["soil_moisture"][0].name].shape
    whole = _whole_grid(shape, path)
    window = whole if grid is None else grid
    _locate(window, whole, path)
    place = Plane(window.shape, (window.row0, window.col0), shape)
    for group in groups:
        _check_place(group, window, place)
    dims = ("overpass", "lat", "lon")
    data: _Fields = {}
    for name in [n for n in layers[0] if n in layers[1]]:
        sources = [layer[name][0] for layer in layers]
        _check_shapes(file, path, sources, shape)
        data[name] = (dims, Layer(path, sources, place, stacked=True), layers[0][name][1])
    return _dataset(data, window, facts | _date(file, path)).assign_coords(
        overpass=("overpass", list(OVERPASSES), {"long_name": "AM descending, about 06:00 local; PM ascending, 18:00"})
    )


def _check_shapes(file: h5py.File, path: Path, sources: Iterable[Source], shape: tuple[int, ...]) -> None:
    for source in sources:
        if file[source.name].shape != shape:
            raise InputError(f"{path}: {source.name} is {file[source.name].shape}, but its soil moisture {shape}")


def _check_place(group: _Group, window: Grid, place: Plane) -> None:
    """A file whose own latitudes or longitudes are not the grid's is flipped or shifted: refuse it."""
    step = 1 if window.shape[0] * window.shape[1] <= _CHECKED_CELLS else max(1, window.shape[0] // _CHECKED_ROWS)
    all_columns = slice(0, window.shape[1])
    for row in range(0, window.shape[0], window.shape[0] if step == 1 else step):
        rows = slice(row, window.shape[0] if step == 1 else row + 1)
        for name, known in (("latitude", window.lat[rows, None]), ("longitude", window.lon[None, :])):
            if name not in group or group.field(name).shape != place.stored:
                continue
            values = place.read(group.field(name), "float", rows, all_columns).astype(np.float64)
            _refuse_elsewhere(group.path, name, values, np.broadcast_to(known, values.shape), window, row)


def _refuse_elsewhere(
    path: Path, name: str, values: np.ndarray, known: np.ndarray, window: Grid, first_row: int
) -> None:
    """Refuse where a file's own latitude or longitude (NaN where it says none) is not the known one, degrees."""
    width = np.diff(window.lon_edges)[0] if name == "longitude" else (-np.diff(window.lat_edges)).min()
    with np.errstate(invalid="ignore"):
        off = np.abs(values - known) > max(_PLACEMENT_TOLERANCE * width, 1e-4)
    if off.any():
        at = tuple(int(i) for i in np.argwhere(off)[0])
        raise InputError(
            f"{path}: its {name} in grid row {window.row0 + first_row + at[0]} is not that of EASE-Grid 2.0 "
            f"({known[at]:.4f}, found {values[at]:.4f}; {int(off.sum())} cells differ): the file is flipped or shifted"
        )


# -- level 2: a list of cells of one half orbit ---------------------------------------------------


def _open_l2(file: h5py.File, path: Path, algorithm: str | None, grid: Grid | None) -> xr.Dataset:
    group = _Group(file[_L2], path, "")
    facts = _facts(file, path, algorithm, group)
    whole = _ease2(9 if facts["product"].endswith("_E") else 36)
    row, col = (group.field(f"EASE_{axis}_index")[:].astype(np.int64) for axis in ("row", "column"))
    placed = (row < whole.shape[0]) & (col < whole.shape[1])
    if not placed.any():
        km = _resolution(whole)
        raise InputError(f"{path}: lists no cell of the {km} km grid ({row.size} entries, all fill)")
    _check_listed(group, whole, row, col, placed)
    if grid is None:
        r, c = row[placed], col[placed]
        window = whole.window(slice(r.min(), r.max() + 1), slice(c.min(), c.max() + 1))
    else:
        _locate(grid, whole, path)
        window = grid
    row, col = row - window.row0, col - window.col0
    inside = placed & (row >= 0) & (row < window.shape[0]) & (col >= 0) & (col < window.shape[1])
    cells = np.ravel_multi_index((row[inside], col[inside]), window.shape)
    place = Cells(window.shape, np.flatnonzero(inside), cells, row.size)
    layers = group.layers(facts)
    _check_shapes(file, path, (source for source, _ in layers.values()), place.stored)
    data: _Fields = {
        name: (("lat", "lon"), Layer(path, [source], place), attrs) for name, (source, attrs) in layers.items()
    }
    attrs: dict[str, Any] = {
        "unplaced_cells": int((~placed).sum()),
        "duplicate_cells": int(cells.size - np.unique(cells).size),
    }
    if direction := re.search(r"_\d{5}_([AD])_", path.name):
        attrs["overpass"] = {"A": "PM", "D": "AM"}[direction[1]]
    return _dataset(data, window, facts | _date(file, path) | attrs)


def _check_listed(group: _Group, whole: Grid, row: np.ndarray, col: np.ndarray, placed: np.ndarray) -> None:
    """The stated latitude and longitude of each listed cell must be those of its row and column."""
    for name, centres, index in (("latitude", whole.lat, row), ("longitude", whole.lon, col)):
        if name in group:
            values = group.field(name)[:].astype(np.float64)
            values = np.where(placed & (values != FLOAT_FILL), values, np.nan)
            known = centres[np.where(placed, index, 0)]
            width = 360.0 / whole.shape[1]
            off = np.abs(values - known) > _PLACEMENT_TOLERANCE * width * (4 if name == "latitude" else 1)
            if off.any():
                i = int(np.flatnonzero(off)[0])
                raise InputError(
                    f"{group.path}: cell {i} of its list says {name} {values[i]:.4f}, but its row {row[i]} and column {col[i]} "
                    f"of the {_resolution(whole)} km EASE-Grid 2.0 lie at {known[i]:.4f} ({int(off.sum())} cells differ)"
                )


# -- level 4: analysed fields, possibly a cropped window ------------------------------------------


def _open_l4(file: h5py.File, path: Path, grid: Grid | None) -> xr.Dataset:
    table = TABLES["analysis"]
    group = file[next(name for name in table["groups"] if name in file)]
    fields = {n: item for n, item in group.items() if isinstance(item, h5py.Dataset) and item.ndim == 2}
    fields = {n: item for n, item in fields.items() if item.dtype.kind == "f"}
    if not fields:
        raise InputError(f"{path}: {group.name} holds no two-dimensional field")
    shape = next(iter(fields.values())).shape
    own = _l4_grid(file, shape, path)
    window = own if grid is None else grid
    if grid is not None:
        _locate(grid, _ease2(_resolution(own)), path)
    place = Plane(window.shape, (window.row0 - own.row0, window.col0 - own.col0), shape)
    dims = ("lat", "lon")
    data: _Fields = {}
    for name, item in fields.items():
        plain = name.removesuffix(table["suffix"])
        ours = table["names"].get(plain, plain)
        attrs = {"long_name": _text(item.attrs.get("long_name", plain)), "units": _text(item.attrs.get("units", ""))}
        source = Source(item.name, "float")
        _check_shapes(file, path, [source], shape)
        data[ours] = (dims, Layer(path, [source], place), attrs)
    if "soil_moisture" not in data:
        raise InputError(f"{path}: {group.name} has no surface soil moisture; found {', '.join(fields)}")
    data["soil_moisture"][2].update(VARIABLES["soil_moisture"].attrs)
    time = _granule_time(file, path)
    constant = Constant(time, np.dtype("datetime64[ns]"), window.shape)
    data["observation_time"] = (dims, constant, {"long_name": "time of analysis, UTC"})
    facts = {
        "product": _product(file, path),
        "version": _version(file),
        "release": _release(file, path),
        "algorithm": "analysis",
        "default_algorithm": "analysis",
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

    def layers(self, facts: Mapping[str, Any]) -> dict[str, tuple[Source, dict[str, Any]]]:
        """Where each of our variables lies, and its attributes."""
        out: dict[str, tuple[Source, dict[str, Any]]] = {
            "soil_moisture": (
                Source(self._of_algorithm("soil_moisture", facts).name, "float"),
                dict(VARIABLES["soil_moisture"].attrs),
            ),
            "retrieval_quality": (
                Source(self._of_algorithm("retrieval_qual_flag", facts).name, "flag"),
                _flag_attrs("retrieval_quality", "quality bits of the retrieval; 0 is recommended"),
            ),
            "surface_flag": (
                Source(self.field("surface_flag").name, "flag"),
                _flag_attrs("surface_flag", "ambient surface conditions"),
            ),
            "observation_time": (self._time(), {"long_name": "time of observation, UTC"}),
        }
        for name, entry in TABLES["variables"].items():
            item = self._optional(entry, facts)
            if item is None:
                continue
            if "flags" in entry:
                out[name] = (Source(item.name, "flag"), _flag_attrs(entry["flags"], entry["long_name"]))
            else:
                out[name] = (Source(item.name, "float"), {"long_name": entry["long_name"], "units": entry["units"]})
        return out

    def _named(self, name: str, algorithm: str) -> h5py.Dataset | None:
        """The data set that bears the algorithm's own suffix."""
        for suffix in TABLES["algorithms"][algorithm]["suffixes"]:
            if f"{name}_{suffix}" in self:
                return self.field(f"{name}_{suffix}")
        return None

    def _of_algorithm(self, name: str, facts: Mapping[str, Any]) -> h5py.Dataset:
        """The data set of the chosen algorithm; the plain name is the default algorithm's."""
        chosen, default = facts["algorithm"], facts["default_algorithm"]
        named = self._named(name, chosen)
        if named is not None:
            return named
        if chosen == default:
            return self.field(name)
        there = [a for a in TABLES["algorithms"] if self._named(name, a) is not None or a == default]
        raise InputError(
            f"{self.path}: {self.group.name} holds no {chosen} {name}; it has {', '.join(there)} (its default is {default})"
        )

    def _optional(self, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> h5py.Dataset | None:
        """A data set that not every version has; one algorithm's is not given for another's."""
        name = entry["field"]
        if entry.get("algorithm"):
            named = self._named(name, facts["algorithm"])
            if named is not None or facts["algorithm"] != facts["default_algorithm"]:
                return named
        return self.field(name) if name in self else None

    def _time(self) -> Source:
        if "tb_time_utc" in self:
            return Source(self.field("tb_time_utc").name, "utc")
        return Source(self.field("tb_time_seconds").name, "seconds")

    def linked_algorithm(self) -> str | None:
        """The algorithm whose data set the plain soil moisture is another name of (a hard link), if the file has it so."""
        if "soil_moisture" not in self:
            return None
        plain = self.field("soil_moisture")
        linked = [
            a for a in TABLES["algorithms"] if (item := self._named("soil_moisture", a)) is not None and item == plain
        ]
        return linked[0] if len(linked) == 1 else None


# -- what a file says of itself -------------------------------------------------------------------


def _facts(file: h5py.File, path: Path, algorithm: str | None, group: _Group) -> dict[str, Any]:
    """product, version, release, the chosen algorithm and the default one."""
    product, version, release = _product(file, path), _version(file), _release(file, path)
    default = group.linked_algorithm() or _default_algorithm(product, version, release)
    chosen = default if algorithm is None else algorithm.lower().replace("-", "")
    if chosen not in TABLES["algorithms"]:
        raise InputError(f"algorithm must be one of {', '.join(TABLES['algorithms'])} or None, got {algorithm!r}")
    return {
        "product": product,
        "version": version,
        "release": release,
        "algorithm": chosen,
        "default_algorithm": default,
    }


def _default_algorithm(product: str, version: int, release: str) -> str:
    """The product's baseline, by its version, else by its composite release (R18290); the newest if neither is known."""
    table = TABLES["default_algorithm"]
    number = re.match(r"R(\d\d)", release)
    if version and product in table["first_dca_version"]:
        new = version >= table["first_dca_version"][product]
    else:
        new = number is None or int(number[1]) >= table["first_dca_release"]
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
        ("L3_SM_P_E_", "SPL3SMP_E"),
        ("L3_SM_P_", "SPL3SMP"),
        ("L2_SM_P_E_", "SPL2SMP_E"),
        ("L2_SM_P_", "SPL2SMP"),
        ("L4_SM_aup_", "SPL4SMAU"),
        ("L4_SM_gph_", "SPL4SMGP"),
    ):
        if part in path.name:
            return product
    return {_L3: "SPL3SMP", _L2: "SPL2SMP"}.get(next((g for g in (_L3, _L2) if g in file), ""), "SPL4SM")


def _version(file: h5py.File) -> int:
    found = re.fullmatch(r"0*(\d+)", _metadata(file, "ECSVersionID"))
    return int(found[1]) if found else 0


def _release(file: h5py.File, path: Path) -> str:
    """The composite release, as R18290 (SPL4SM: Vv4030…): of the metadata, else of the name; empty if neither says."""
    named = re.search(r"_(R\d{5}|Vv\d{4})_", path.name)
    return _metadata(file, "CompositeReleaseID") or (named[1] if named else "")


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
        first, last = parse_utc(np.array([begin.encode(), end.encode()]))
        if not (np.isnat(first) or np.isnat(last)):
            return first + (last - first) / 2
    named = re.search(r"_(20\d\d)(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)_", path.name)
    if not named:
        raise InputError(f"{path}: neither its metadata nor its name say when it was; expected Metadata/Extent")
    y, mo, d, h, mi, s = named.groups()
    return np.datetime64(f"{y}-{mo}-{d}T{h}:{mi}:{s}", "ns")


# -- small things ---------------------------------------------------------------------------------


def _dataset(data: _Fields, grid: Grid, attrs: dict[str, Any]) -> xr.Dataset:
    variables = {name: xr.Variable(dims, lazy(array), said) for name, (dims, array, said) in data.items()}
    coords = {
        "lat": ("lat", grid.lat, VARIABLES["latitude"].attrs),
        "lon": ("lon", grid.lon, VARIABLES["longitude"].attrs),
        "y": ("lat", grid.y, {"units": "m", "standard_name": "projection_y_coordinate"}),
        "x": ("lon", grid.x, {"units": "m", "standard_name": "projection_x_coordinate"}),
    }
    place = {"crs": grid.crs, "row0": grid.row0, "col0": grid.col0, "resolution_km": _resolution(grid)}
    return xr.Dataset(variables, coords, attrs | place)


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


def _locate(window: Grid, whole: Grid, path: Path) -> None:
    """Refuse a window that is none of the whole grid."""
    rows = slice(window.row0, window.row0 + window.shape[0])
    cols = slice(window.col0, window.col0 + window.shape[1])
    fits = rows.stop <= whole.shape[0] and cols.stop <= whole.shape[1] and min(rows.start, cols.start) >= 0
    if window is not whole and not (fits and window == whole.window(rows, cols)):
        raise InputError(f"{path}: {window} is no window of its EASE-Grid 2.0 of {_resolution(whole)} km")


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
        """See `open_smap`; xarray keeps what it has read, or not (`cache=`)."""
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return _open(filename_or_obj, algorithm, grid).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is a SMAP soil moisture granule's."""
        return bool(re.match(r"SMAP_L[234]_SM.*\.h5$", Path(str(filename_or_obj)).name))
