"""Tables in long form: a row for each point, or polygon, and step. Beside each table a JSON file says what its columns are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse
from tqdm.auto import tqdm

from smscale import schema
from smscale.blocks import spans
from smscale.errors import InputError
from smscale.export.files import Exported, claimed, named, whole
from smscale.export.layer import Layer, Step, iso
from smscale.export.polygons import Polygon, cell_areas, read_polygons
from smscale.places import write_text
from smscale.store_inspection import file_checksum

#: Steps that are read at once for points: whole shards of most cubes.
STEPS = 32
#: Cells along a side of what is read at once for polygons, at most, in whole chunks; and its steps: 16 x 512 x 512 values are
#: 32 MB in float64.
SIDE, SLAB = 512, 16
POINT_COLUMNS = {
    "id": "of the point",
    "time": "UTC",
    "local_date": "local solar date; of composites the first day",
    "overpass": "AM (descending, 06:00) or PM (ascending, 18:00)",
    "value": "",
    "status": "names of the status bits",
    "cell_lon": "longitude of the cell's centre, degrees east",
    "cell_lat": "latitude of the cell's centre, degrees north",
}
POLYGON_COLUMNS = {
    "id": "of the polygon",
    "time": "UTC",
    "local_date": "local solar date; of composites the first day",
    "overpass": "AM (descending, 06:00) or PM (ascending, 18:00)",
    "value": "",
    "valid_fraction": "share of the polygon's area with values, 0 to 1; what lies outside the grid has none",
}


def write_points(layer: Layer, points: Path, folder: Path, progress: bool = False) -> Exported:
    """Write TITLE_NAME_points_FILE.csv: the cell of each point, every step.

    Parameters
    ----------
    points : CSV with columns id, lon, lat (degrees); points outside the grid are left out and named
    """
    table = read_points(points)
    row, col, outside = _cells_of(layer, table)
    notes = [f"{len(outside)} points outside the grid: {named(outside)}"] if outside else []
    if not row.size:
        raise InputError(f"{points}: no point lies within {_box(layer)}; points are id, lon, lat in degrees")
    kept = table[~table["id"].isin(outside)]

    def pieces() -> Iterator[pd.DataFrame]:
        for part in spans(len(layer.steps), STEPS):
            steps = layer.steps[part]
            values = _at(layer.values[part], row, col)
            status = None if layer.status is None else _at(layer.status[part], row, col)
            frame = _long(kept["id"].to_numpy(), steps)
            frame["value"] = _shown(layer, values.ravel())
            if status is not None:
                frame["status"] = meanings(status.ravel())
            frame["cell_lon"] = np.tile(layer.grid.lon[col].round(6), len(steps))
            frame["cell_lat"] = np.tile(layer.grid.lat[row].round(6), len(steps))
            yield frame

    return _write(layer, folder, f"points_{points.stem}", points, pieces(), POINT_COLUMNS, notes, STEPS, progress)


def write_polygons(layer: Layer, polygons: Path, folder: Path, progress: bool = False) -> Exported:
    """Write TITLE_NAME_polygons_FILE.csv: the mean over each polygon, weighted by area, every step.

    Classes are the one of most area, directions the circular mean. A cell counts with the area that lies in the polygon.

    Parameters
    ----------
    polygons : GeoJSON in longitude and latitude
    """
    if layer.kind == "flags":
        raise InputError(
            f"{layer.name} holds bits, which have no mean over a polygon: use --points, or --format geotiff"
        )
    areas = read_polygons(polygons)
    weights = _Weights(areas, layer)
    if not weights.tiles:
        raise InputError(f"{polygons}: no polygon meets {_box(layer)}; give areas in longitude, latitude")
    notes = []
    if outside := [p.name for p, share in zip(areas, weights.share, strict=True) if share <= 0]:
        notes.append(f"{len(outside)} polygons outside the grid: {named(outside)}")
    cut = [f"{p.name} ({100 * s:.0f} %)" for p, s in zip(areas, weights.share, strict=True) if 0 < s < 0.999]
    if cut:
        notes.append(f"{len(cut)} polygons only partly on the grid: {named(cut)}")
    met = np.array(weights.share) > 0

    def pieces() -> Iterator[pd.DataFrame]:
        for part in spans(len(layer.steps), SLAB):
            values, valid = weights.means(layer, part)
            frame = _long(np.array([p.name for p in areas])[met], layer.steps[part])
            frame["value"] = _shown(layer, values[:, met].ravel())
            frame["valid_fraction"] = np.char.mod("%.4f", valid[:, met].ravel())
            yield frame

    label = f"polygons_{polygons.stem}"
    return _write(layer, folder, label, polygons, pieces(), POLYGON_COLUMNS, notes, SLAB, progress)


# -- points -------------------------------------------------------------------------------------


def read_points(path: Path) -> pd.DataFrame:
    """id (text), lon, lat (float64, degrees) of a CSV.

    Raises
    ------
    InputError
        if the file is not there, lacks a column, names two points the same or holds no numbers.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise InputError(f"--points: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no CSV ({' '.join(str(error).split())})") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    lacking = [name for name in ("id", "lon", "lat") if name not in table.columns]
    if lacking:
        raise InputError(
            f"{path}: lacks column {', '.join(lacking)}; expected id, lon, lat, found {', '.join(table.columns)}"
        )
    for name in ("lon", "lat"):
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            raise InputError(f"{path}: line {row + 2}: {name} is {table[name].iloc[row]!r}; expected degrees")
        table[name] = numbers.astype(np.float64)
    twice = table["id"][table["id"].duplicated()].unique().tolist()
    if twice:
        raise InputError(f"{path}: two points are named {named(twice)}; give each its own id")
    return table[["id", "lon", "lat"]]


def _cells_of(layer: Layer, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows and columns of the points on the grid, and the names of those outside."""
    middle = (layer.grid.lon_edges[0] + layer.grid.lon_edges[-1]) / 2
    lon = table["lon"].to_numpy()
    lon = lon + 360.0 * np.round((middle - lon) / 360.0)
    row, col = layer.grid.index(lon, table["lat"].to_numpy())
    return row[row >= 0], col[row >= 0], table["id"][row < 0].tolist()


def _at(data: xr.DataArray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """(steps, points) values of some cells: only the chunks that hold them are read."""
    picked = data.isel({data.dims[1]: xr.DataArray(row, dims="point"), data.dims[2]: xr.DataArray(col, dims="point")})
    return np.asarray(picked.transpose(data.dims[0], "point").values)


def meanings(status: np.ndarray) -> list[str]:
    """Names of the bits that are set, joined by spaces."""
    codes, where = np.unique(status, return_inverse=True)
    texts = [" ".join(str(f.name).lower() for f in schema.Status if int(code) & int(f)) for code in codes]
    return [texts[i] for i in where]


# -- polygons -----------------------------------------------------------------------------------


class _Weights:
    """Areas of cells within polygons, by tile of the grid.

    Attributes
    ----------
    tiles : rows and columns of what is read at once, and (polygons, cells) sparse, km2
    share : of each polygon's area on the grid
    """

    def __init__(self, polygons: Sequence[Polygon], layer: Layer) -> None:
        rows_of, cols_of = (_whole_chunks(layer.values, axis) for axis in (1, 2))
        row_starts, col_starts = (np.array([part.start for part in parts]) for parts in (rows_of, cols_of))
        entries: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self.whole = np.zeros(len(polygons))
        on_grid = np.zeros(len(polygons))
        for p, polygon in enumerate(polygons):
            (rows, cols), areas, self.whole[p] = cell_areas(polygon, layer.grid)
            on_grid[p] = areas.sum()
            row, col = np.nonzero(areas > 0)
            weight, row, col = areas[row, col], row + rows.start, col + cols.start
            i_of = np.searchsorted(row_starts, row, side="right") - 1
            j_of = np.searchsorted(col_starts, col, side="right") - 1
            for i, j in {*zip(i_of.tolist(), j_of.tolist(), strict=True)}:
                here = (i_of == i) & (j_of == j)
                width = cols_of[j].stop - cols_of[j].start
                cell = (row[here] - rows_of[i].start) * width + col[here] - cols_of[j].start
                entries.setdefault((i, j), []).append((np.full(cell.size, p), cell, weight[here]))
        self.share = (
            np.divide(on_grid, self.whole, out=np.zeros_like(on_grid), where=self.whole > 0).clip(0, 1).tolist()
        )
        self.tiles: list[tuple[slice, slice, sparse.csr_array]] = []
        for (i, j), found in sorted(entries.items()):
            who, cell, weight = (np.concatenate([entry[k] for entry in found]) for k in range(3))
            cells = (rows_of[i].stop - rows_of[i].start) * (cols_of[j].stop - cols_of[j].start)
            weights = sparse.csr_array((weight, (who, cell)), shape=(len(polygons), cells))
            self.tiles.append((rows_of[i], cols_of[j], weights))

    def means(self, layer: Layer, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(steps, polygons) values and valid fractions of some steps."""
        sums: np.ndarray | float = 0.0
        valid: np.ndarray | float = 0.0
        classes = np.asarray(layer.values.attrs.get("flag_values", ()))
        for rows, cols, weights in self.tiles:
            values = np.asarray(layer.values[part, rows, cols].values)
            values = values.reshape(values.shape[0], -1)
            there = np.isfinite(values) if layer.values.dtype.kind == "f" else values != layer.fill
            valid = valid + (weights @ there.T.astype(np.float64)).T
            planes = _planes(layer, values.astype(np.float64), there, classes)
            sums = sums + np.stack([(weights @ plane.T).T for plane in planes])
        fraction = np.divide(valid, self.whole, out=np.zeros_like(valid), where=self.whole > 0).clip(0, 1)  # type: ignore[call-overload]
        return _finalised(layer, np.asarray(sums), np.asarray(valid), classes), fraction


def _whole_chunks(data: xr.DataArray, axis: int) -> list[slice]:
    """Consecutive parts of an axis, each of whole chunks and about `SIDE` cells: no chunk is read twice."""
    size = data.shape[axis]
    chunks = data.chunks[axis] if data.chunks else (size,)
    stops, last = [0], 0
    for stop in np.cumsum(chunks).tolist():
        if stop - stops[-1] > SIDE and last > stops[-1]:
            stops.append(last)
        last = stop
    return [slice(a, b) for a, b in pairwise([*stops, size])]


def _planes(layer: Layer, values: np.ndarray, there: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """What is summed over a polygon: values, sine and cosine of directions, a mask for each class; 0 where missing."""
    if layer.kind == "direction":
        angles = np.deg2rad(values)
        return [np.where(there, np.sin(angles), 0.0), np.where(there, np.cos(angles), 0.0)]
    if layer.kind == "class":
        return [(there & (values == code)).astype(np.float64) for code in classes]
    return [np.where(there, values, 0.0)]


def _finalised(layer: Layer, sums: np.ndarray, valid: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(steps, polygons) of sums; NaN where nothing is valid."""
    if layer.kind == "direction":
        mean = np.rad2deg(np.arctan2(sums[0], sums[1])) % 360.0
    elif layer.kind == "class":
        mean = classes[sums.argmax(axis=0)].astype(np.float64)
    else:
        mean = np.divide(sums[0], valid, out=np.full(valid.shape, np.nan), where=valid > 0)
    return np.where(valid > 0, mean, np.nan)


# -- the file -----------------------------------------------------------------------------------


def _long(names: np.ndarray, steps: Sequence[Step]) -> pd.DataFrame:
    """id and step of every row: all names of the first step, then of the next."""
    repeated = np.repeat(np.arange(len(steps)), names.size)
    labels = {
        "time": [iso(step.time) for step in steps],
        "local_date": ["" if np.isnat(step.date) else str(step.date) for step in steps],
        "overpass": [step.overpass for step in steps],
    }
    return pd.DataFrame({"id": np.tile(names, len(steps)), **{k: np.array(v)[repeated] for k, v in labels.items()}})


def _shown(layer: Layer, values: np.ndarray) -> list[str]:
    """Numbers as text, empty where missing: float32 has 7 digits that mean something."""
    if layer.kind in ("class", "flags"):
        fill = layer.fill
        return ["" if not np.isfinite(v) or v == fill else str(int(v)) for v in values.tolist()]
    return ["" if not np.isfinite(v) else f"{v:.7g}" for v in values.tolist()]


def _write(
    layer: Layer,
    folder: Path,
    label: str,
    given: Path,
    pieces: Iterator[pd.DataFrame],
    columns: dict[str, str],
    notes: Sequence[str],
    at_once: int,
    progress: bool,
) -> Exported:
    """Write a table piece by piece, then the JSON file beside it: where that stands, the table is whole."""
    path = folder / f"{layer.stem}_{label}.csv"
    about = path.with_suffix(".json")
    version = layer.version(layer.steps, "csv", label, file_checksum(given))
    with claimed(folder, path.stem):
        if path.is_file() and _version_of(about) == version:
            return Exported(folder, (), 1, tuple(notes))
        about.unlink(missing_ok=True)
        with (
            whole(path) as temporary,
            temporary.open("w", newline="") as file,
            tqdm(
                total=-(-len(layer.steps) // at_once), desc=f"export {layer.name}", unit="part", disable=not progress
            ) as bar,
            dask.config.set(scheduler="threads"),
        ):
            for i, frame in enumerate(pieces):
                frame.to_csv(file, index=False, header=not i, lineterminator="\n")
                bar.update()
        write_text(about, json.dumps(_about(layer, columns, version), indent=1) + "\n")
    return Exported(folder, (path,), 0, tuple(notes))


def _about(layer: Layer, columns: dict[str, str], version: str) -> dict[str, Any]:
    attrs = layer.values.attrs
    told = {name: text for name, text in columns.items() if name != "status" or layer.status is not None}
    told["value"] = f"{attrs.get('long_name', layer.short)}, {attrs.get('units', '1')}; empty where missing"
    return {"variable": layer.name, "title": layer.title, "columns": told, "fingerprint": version}


def _version_of(about: Path) -> str | None:
    try:
        return json.loads(about.read_text()).get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return None


def _box(layer: Layer) -> str:
    west, south, east, north = layer.grid.bounds
    return f"{west:g} to {east:g} E, {south:g} to {north:g} N"
