"""Blocks of the coarse retrievals and of the stations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from smscale import store
from smscale.errors import InputError
from smscale.features.match import smap_steps
from smscale.grid import Grid
from smscale.pipeline.ingest.arrays import RETRIEVALS
from smscale.pipeline.ingest.report import problem
from smscale.places import Place, is_remote, place
from smscale.places.copies import local_copies
from smscale.sources.quality import flag_counts, quality
from smscale.sources.smap import open_smap
from smscale.sources.stations import ColumnMap, open_stations


def smap_block(
    path: str,
    slab: slice,
    grid: Grid,
    steps: xr.Dataset,
    files: Sequence[str],
    policy: str,
    errors: Mapping[str, float],
    algorithm: str | None,
) -> dict[str, Any]:
    """Retrievals of some steps on the coarse grid, with their weights."""
    problems: list[dict[str, Any]] = []
    granules = []
    for file in files:
        with local_copies([file]) as (here,):
            try:
                granules.append(open_smap(here, algorithm=algorithm, grid=grid).load())
            except InputError as error:
                problems.append(problem(str(here), error))
    region = (slab, slice(0, grid.shape[0]), slice(0, grid.shape[1]))
    if not granules:  # an earlier run may have had some
        shape = (steps.sizes["time"], *grid.shape)
        written = [store.write(path, "coarse", n, region, np.full(shape, fill)) for n, fill in RETRIEVALS.items()]
        return {"written": written, "problems": problems, "counts": {}, "observed": 0}
    kinds = sorted({(str(g.attrs["algorithm"]), str(g.attrs["version"])) for g in granules})
    refuse_mixed(kinds)
    observed = smap_steps(granules, steps)
    keep, weight, counts = quality(observed, policy, errors)  # type: ignore[arg-type]
    observed["weight"] = xr.where(keep, weight, 0.0).astype(np.float32)
    written = [
        store.write(path, "coarse", name, region, observed[name].transpose("time", "lat", "lon").values)
        for name in RETRIEVALS
    ]
    return {
        "written": written,
        "problems": problems,
        "kinds": kinds,
        "counts": {k: int(v) for k, v in counts.items()},
        "flags": flag_counts(observed),
        "observed": int(observed.attrs["observations"]),
        "duplicates": int(observed.attrs["duplicates"]),
        "overpass_disagrees": int(observed.attrs["overpass_disagrees"]),
    }


def refuse_mixed(kinds: Sequence[Sequence[str]]) -> None:
    """Refuse retrievals of two algorithms or two versions (algorithm, version): they differ by more than the soil does."""
    algorithms, versions = (sorted({str(kind[i]) for kind in kinds}) for i in (0, 1))
    if len(algorithms) > 1:
        raise InputError(
            f"SMAP granules hold different default algorithms ({', '.join(algorithms)}): set smap.algorithm in the recipe"
        )
    if len(versions) > 1:
        raise InputError(
            f"SMAP granules are of versions {' and '.join(versions)}, which do not mix: keep those of one version in the folder"
        )


def stations_block(
    path: str, files: Sequence[str], grid: Grid, steps: xr.Dataset, columns: ColumnMap | None
) -> dict[str, Any]:
    """Station values of the period within the region."""
    with local_copies([*files, *_beside(files, columns)]) as here:
        found, problems = _open_stations(list(map(str, here[: len(files)])), columns)
    store.remove(path, "stations")
    if found is None:  # the maps can be made without stations
        return {"problems": problems, "stations": 0, "values": 0}
    row, _ = grid.index(found["lon"].values, found["lat"].values)
    for name in found["station"].values[row < 0].tolist():
        problems.append({"file": name, "what": "station outside the region", "count": 1})
    margin = np.timedelta64(1, "D")
    time = found["time"].values
    within = (time >= steps["time"].values[0] - margin) & (time <= steps["time"].values[-1] + margin)
    kept = found.isel(station=row >= 0, time=within)
    silent = ~kept["soil_moisture"].notnull().any("time").values
    for name in kept["station"].values[silent].tolist():
        problems.append({"file": name, "what": "station without a value in the period", "count": 1})
    kept = kept.isel(station=~silent)
    if not kept.sizes["station"]:
        where = Path(files[0]).parent.name
        problems.append({"file": where, "what": "no station with values in the region and period", "count": 1})
    store.create(path, "stations", kept.load(), {}, None)
    return {
        "written": [store.receipt(path, "stations", "soil_moisture")],
        "problems": problems,
        "stations": int(kept.sizes["station"]),
        "values": int(np.isfinite(kept["soil_moisture"]).sum()),
    }


def _beside(files: Sequence[str], columns: ColumnMap | None) -> list[Place]:
    """Tables of an object store that say where the stations of the files beside them lie."""
    if columns is None or columns.table is None:
        return []
    folders = dict.fromkeys(place(file).parent for file in files if is_remote(file))
    return [table for folder in folders if (table := folder / columns.table).is_file()]


def _open_stations(files: Sequence[str], columns: ColumnMap | None) -> tuple[xr.Dataset | None, list[dict[str, Any]]]:
    """All stations of the files that can be read, and what was left out."""
    try:
        found = open_stations(files, columns=columns)
        return found, json.loads(found.attrs.pop("problems", "[]"))
    except InputError as error:
        if len(files) == 1:
            return None, [problem(files[0], error)]
    problems, readable = [], []
    for file in files:
        one, left_out = _open_stations([file], columns)
        if one is None:
            problems += left_out
        else:
            readable.append(file)
    found_rest, left_out = _open_stations(readable, columns) if readable and problems else (None, [])
    return found_rest, problems + left_out
