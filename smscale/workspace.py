"""A workspace: the directory, or the prefix of an object store, that a run fills, and `smscale.open`, which shows what is in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import claims, schema, store
from smscale.errors import SmscaleError, StoreError, Unreachable
from smscale.ledger import Ledger
from smscale.places import Place, folder_to_write, given, place, reach, remove, write_text

__all__ = ["NEWEST", "OVERPASS", "PRODUCTS", "Workspace", "open_workspace", "remove"]


@dataclass(frozen=True)
class Workspace:
    """Where everything of one run lies (DESIGN of the workspace: docs/data-contracts.md)."""

    root: Place

    @classmethod
    def at(cls, where: str | Place) -> Workspace:
        """That of a folder's path or an s3:// URL, as tasks carry it."""
        return cls(place(where))

    @property
    def cube(self) -> Place:
        return self.root / f"cube{self._ending}"

    @property
    def maps_path(self) -> Place:
        return self.root / f"maps{self._ending}"

    @cached_property
    def _ending(self) -> str:
        """How the arrays are kept, as the name of the first store tells."""
        return store.ICECHUNK if (self.root / REPOSITORIES[0]).is_dir() else ".zarr"

    @property
    def stores(self) -> tuple[str, str]:
        """Names of what holds the arrays."""
        return self.cube.name, self.maps_path.name

    def file(self, name: str) -> Place:
        """A file by its name in the workspace; what lies in a store that is no folder has a name too."""
        root, _, key = name.partition("/")
        return store.inside(self.root / root) / key if root in self.stores else self.root / name

    @property
    def samples_path(self) -> Place:
        return self.root / "samples.parquet"

    def model(self, name: str) -> Place:
        return self.root / "models" / name

    @property
    def report(self) -> Place:
        return self.root / "report"

    def model_to_write(self, name: str) -> AbstractContextManager[Path]:
        """A folder of this machine that becomes a model's; its record goes last."""
        return _folder_to_write(self.model(name), last=("model.json",))

    def report_to_write(self) -> AbstractContextManager[Path]:
        """A folder of this machine that becomes the report's; the page goes last: where it is, the report is whole."""
        return _folder_to_write(self.report, last=("metrics.json", "index.html"))

    def ledger(self, stage: str) -> Ledger:
        return Ledger(self.root / "ledger" / stage)

    # -- stages ---------------------------------------------------------------------------------

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage: its fingerprint and its report."""
        return self._json(self.root / "ledger" / f"{stage}.json")

    def keep(self, kind: str) -> None:
        """Keep the arrays as "zarr" or in repositories of "icechunk": these are made now."""
        self.__dict__["_ending"] = f".{kind}"
        for path in (self.cube, self.maps_path):
            store.make(path)

    def commit(self, recipe: str, stage: str, fingerprint: str) -> dict[str, str]:
        """Make visible what a stage made, where that takes a commit: store -> its name."""
        claims.require_held()
        done = {p.name: store.commit(p, recipe, stage, fingerprint) for p in (self.cube, self.maps_path)}
        return {name: snapshot for name, snapshot in done.items() if snapshot}

    def finish(
        self, stage: str, fingerprint: str, report: Mapping[str, Any], commits: Mapping[str, str] | None = None
    ) -> None:
        """Enter a stage as finished; `commits` are those that made it visible, by store."""
        claims.require_held()
        record: dict[str, Any] = {"stage": stage, "fingerprint": fingerprint, "report": report}
        if commits := commits or (self.finished(stage) or {}).get("commits"):
            record["commits"] = commits
        write_text(self.root / "ledger" / f"{stage}.json", json.dumps(record, indent=1))

    def begin(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage begins anew: False where it was prepared from the same things and only goes on."""
        prepared = self._json(self.root / "ledger" / f"{stage}.prepared.json")
        return prepared is None or prepared["fingerprint"] != fingerprint

    def entered(self, stage: str) -> int:
        """When a stage was entered as finished, nanoseconds; 0 where it is not."""
        try:
            return (self.root / "ledger" / f"{stage}.json").stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def base(self, stage: str) -> str:
        """Fingerprint of what the blocks of a stage share, as they were made last; empty where there is none."""
        prepared = self._json(self.root / "ledger" / f"{stage}.prepared.json") or {}
        return str(prepared.get("base", ""))

    def unfinish(self, stage: str) -> None:
        """Forget that a stage is finished; its blocks stay."""
        claims.require_held()
        (self.root / "ledger" / f"{stage}.json").unlink(missing_ok=True)

    def forget(self, stage: str) -> None:
        """Remove what a stage made, and every record of it: first that it is finished, last its blocks."""
        self.unfinish(stage)
        (self.root / "ledger" / f"{stage}.prepared.json").unlink(missing_ok=True)
        for name in PRODUCTS.get(stage, ()):
            remove(self.root / name)
        if stage == "downscale":
            store.drop(self.maps_path)
        self.ledger(stage).forget()

    def prepared(self, stage: str, fingerprint: str, base: str = "") -> None:
        """Enter that a stage's empty arrays stand: an interrupted stage goes on from here."""
        claims.require_held()
        record = {"fingerprint": fingerprint, "base": base}
        write_text(self.root / "ledger" / f"{stage}.prepared.json", json.dumps(record))

    @staticmethod
    def _json(path: Place) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    @contextmanager
    def held(self, say: Callable[[str], Any] = lambda text: None) -> Iterator[None]:
        """Hold the workspace: a second run is refused. The claim ends with the process, however it ends (`claims`)."""
        made = isinstance(self.root, Path) and not self.root.exists()
        with claims.held(self.root, say):
            try:
                yield
            except Unreachable:
                raise  # nothing could be removed, and that would be known late
            except BaseException:
                with suppress(OSError, SmscaleError):  # what happened is what is told
                    claims.require_held()
                    self._leave_nothing(made)
                raise

    def _leave_nothing(self, made: bool) -> None:
        """Remove a workspace in which nothing was begun, its folder too if it was `made` for that: a run that was refused leaves no claim behind."""
        ledger = self.root / "ledger"
        if {p.name for p in self.root.glob("*")} <= {".lock", "ledger", *REPOSITORIES}:
            if ledger.is_dir() and {p.name for p in ledger.glob("*")} <= {"recipe.json"}:
                for path in (*(self.root / name for name in REPOSITORIES), ledger):
                    remove(path)
            if isinstance(self.root, Path) and not ledger.exists():
                (self.root / ".lock").unlink(missing_ok=True)
                if made:
                    self.root.rmdir()

    # -- contents -------------------------------------------------------------------------------

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe that the run was made from, as plain values."""
        values = self._json(self.root / "ledger" / "recipe.json")
        if values is None:
            raise StoreError(f"{self.root} is no smscale workspace: it holds no ledger/recipe.json")
        return values

    @cached_property
    def fine(self) -> dict[str, xr.Dataset]:
        """The fine cubes by cadence: overpass, eight_day, sixteen_day (time, lat, lon), static (lat, lon)."""
        groups = {}
        for cadence in schema.CADENCES:
            if store.exists(self.cube, f"fine/{cadence}"):
                cube = store.open_group(self.cube, f"fine/{cadence}")
                groups[cadence] = _labelled(cube["values"]).assign_attrs(cube.attrs)
        if "overpass" in groups and store.exists(self.cube, NEWEST):
            groups["overpass"] = _followed(groups["overpass"], _labelled(store.open_group(self.cube, NEWEST)["values"]))
        return groups

    @cached_property
    def land_cover(self) -> xr.DataArray:
        """IGBP class (year, lat, lon) uint8, 255 where unknown."""
        return store.open_group(self.cube, "fine/land_cover")["land_cover"]

    @cached_property
    def coarse(self) -> xr.Dataset:
        """Retrievals and upscaled predictors (time, lat, lon) on the coarse grid."""
        return store.open_group(self.cube, "coarse")

    @cached_property
    def stations(self) -> xr.Dataset:
        """Station soil moisture (station, time), m3 m-3."""
        return store.open_group(self.cube, "stations")

    @cached_property
    def maps(self) -> xr.Dataset:
        """Model maps, fused maps and their status (time, lat, lon)."""
        return store.open_group(self.maps_path, "")

    @property
    def samples(self) -> pd.DataFrame:
        """The matched training table."""
        path = self.samples_path
        return pd.read_parquet(path if isinstance(path, Path) else io.BytesIO(path.read_bytes()))

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores of the report."""
        values = self._json(self.report / "metrics.json")
        if values is None:
            raise StoreError(f"{self.report}/metrics.json does not exist: run the evaluate stage first")
        return values

    @cached_property
    def steps(self) -> xr.Dataset:
        """The overpass steps: coordinates time, overpass, local_date, day_sequence, day_of_year."""
        cube = self.fine["overpass"]
        return cube.drop_vars([n for n in cube.variables if n not in ("time", *schema.STEP_COORDINATES)])

    def predictors(self, time: Any = None) -> xr.DataArray:
        """The lazy (time, lat, lon, variable) view of the recipe's predictors, each cadence matched to the overpass steps.

        Parameters
        ----------
        time : a label, list or slice of overpass steps as xarray's `sel` takes it; all of them if not given
        """
        steps = self.steps if time is None else self.steps.sel(time=time)
        steps = steps if "time" in steps.dims else self.steps.sel(time=[steps["time"].values])
        never_later = bool(self.recipe["modis"]["never_later"])
        planes = [predictor_plane(self, name, steps, never_later) for name in self.recipe["predictors"]]
        names = xr.DataArray(list(self.recipe["predictors"]), dims="variable", name="variable")
        aligned = xr.broadcast(*planes)
        stacked = xr.concat([p.transpose("time", "lat", "lon") for p in aligned], dim=names, combine_attrs="drop")
        return stacked.transpose("time", "lat", "lon", "variable").rename("predictors").drop_attrs(deep=False)


#: Group of the overpass cube, and of its newest days, which join it when they fill a shard.
OVERPASS, NEWEST = "fine/overpass", "fine/overpass_newest"

#: Stores that are kept by Icechunk.
REPOSITORIES = (f"cube{store.ICECHUNK}", f"maps{store.ICECHUNK}")

#: What each stage leaves beside the cube, in the order in which it goes: what makes the rest look finished goes first.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "match": ("samples.parquet", "samples.csv"),
    "train": ("models",),
    "downscale": ("maps.zarr/zarr.json", "maps.zarr"),
    "evaluate": ("report/index.html", "report/metrics.json", "report/figures"),
}


@contextmanager
def _folder_to_write(folder: Place, last: Sequence[str]) -> Iterator[Path]:
    with folder_to_write(folder, last) as here:
        yield here
        claims.require_held()  # it may have taken long


def open_workspace(workspace: str | Path) -> Workspace:
    """Open a workspace: a folder, or s3://bucket/prefix with the credentials of the environment.

    Raises
    ------
    StoreError
        if it holds no run, or if the object store does not answer.
    """
    found = Workspace.at(given(workspace))
    reach(found.root)
    _ = found.recipe
    return found


def _labelled(values: xr.DataArray) -> xr.Dataset:
    """One variable per label of the last dimension, with the schema's attributes."""
    data = values.to_dataset("variable")
    data.attrs = {k: v for k, v in values.attrs.items() if k not in ("long_name", "units")}
    return data.assign({str(n): data[n].assign_attrs(schema.VARIABLES[str(n)].attrs) for n in data.data_vars})


def _followed(steps: xr.Dataset, newest: xr.Dataset) -> xr.Dataset:
    """Steps and the newest after them; of those that have just joined the others none twice."""
    late = newest.isel(time=newest["time"].values > steps["time"].values[-1])
    return xr.concat([steps, late], dim="time", data_vars="minimal", coords="minimal", combine_attrs="override")


#: Predictors that are no fields: they come from the cells and the steps themselves.
COORDINATES = ("longitude", "latitude", "day_sequence", "day_of_year_sin", "day_of_year_cos", "overpass")


def field_planes(workspace: Workspace, name: str) -> xr.DataArray:
    """The planes of one predictor as the cube holds them, lazy: (time | year, lat, lon), or (lat, lon) of what stays."""
    if name == "land_cover":
        return workspace.land_cover
    if name in schema.FRACTIONS:
        shares = store.open_group(workspace.cube, "fine/land_cover")["land_cover_fraction"]
        chosen = shares.sel(igbp_class=list(schema.FRACTIONS[name]))
        known = (chosen != schema.LAND_COVER_FILL).all("igbp_class")
        return (chosen.astype(np.float32).sum("igbp_class") / np.float32(100)).where(known).rename(name)
    return workspace.fine[schema.VARIABLES[name].cadence][name]


def plane_index(workspace: Workspace, name: str, steps: xr.Dataset, never_later: bool) -> np.ndarray:
    """(t,) which plane of `field_planes` serves each overpass step; -1 where none does.

    A composite or a year's land cover serves the steps nearest to it; with `never_later` only once it is over.
    """
    planes = field_planes(workspace, name)
    if "year" in planes.dims:
        held, now = planes["year"].values[None, :], steps["local_date"].dt.year.values[:, None]
        away = np.abs(held - now).astype(np.float64)
        if never_later:  # a year's map is known when the year is over
            away[np.broadcast_to(held >= now, away.shape)] = np.inf
        return np.where(np.isfinite(away.min(axis=1)), away.argmin(axis=1), -1)
    if schema.VARIABLES[name].cadence == "overpass":
        return np.searchsorted(planes["time"].values, steps["time"].values)
    return schema.composite_index(planes, steps["time"].values, never_later)


def plane_values(
    workspace: Workspace, name: str, steps: xr.Dataset, never_later: bool, rows: slice, cols: slice
) -> np.ndarray:
    """One predictor on a window of the fine grid, read chunk by chunk: what `predictor_plane` shows, in memory.

    Returns
    -------
    (t | 1, m | 1, n | 1) float32, broadcastable to the window at the steps (t,); NaN where missing
    """
    if name in COORDINATES:
        plane = predictor_plane(workspace, name, steps, never_later)
        plane = plane.isel({dim: part for dim, part in (("lat", rows), ("lon", cols)) if dim in plane.dims})
        index = tuple(slice(None) if dim in plane.dims else None for dim in ("time", "lat", "lon"))
        return np.asarray(plane.values[index], np.float32)
    if name != "land_cover" and name not in schema.FRACTIONS and schema.VARIABLES[name].cadence == "static":
        place = schema.CADENCES["static"].index(name)
        held = store.read(workspace.cube, "fine/static", "values", (rows, cols, slice(place, place + 1)))
        return held[None, :, :, 0].astype(np.float32)
    pick = plane_index(workspace, name, steps, never_later)
    planes, which = np.unique(pick, return_inverse=True)
    out = np.full((planes.size, rows.stop - rows.start, cols.stop - cols.start), np.nan, np.float32)
    known = np.flatnonzero(planes >= 0)
    for run in np.split(known, np.flatnonzero(np.diff(planes[known]) != 1) + 1):
        if run.size:
            out[run] = _read_planes(workspace, name, slice(planes[run[0]], planes[run[-1]] + 1), rows, cols)
    return out if np.array_equal(which, np.arange(planes.size)) else out[which]


def _read_planes(workspace: Workspace, name: str, planes: slice, rows: slice, cols: slice) -> np.ndarray:
    """Consecutive planes of `field_planes` on a window."""
    if name == "land_cover":
        classes = store.read(workspace.cube, "fine/land_cover", name, (planes, rows, cols))
        return np.where(classes == schema.LAND_COVER_FILL, np.float32(np.nan), classes.astype(np.float32))
    if name in schema.FRACTIONS:
        total = np.zeros((planes.stop - planes.start, rows.stop - rows.start, cols.stop - cols.start), np.float32)
        for igbp in schema.FRACTIONS[name]:
            region = (planes, slice(igbp - 1, igbp), rows, cols)
            share = store.read(workspace.cube, "fine/land_cover", "land_cover_fraction", region)[:, 0]
            total += np.where(share == schema.LAND_COVER_FILL, np.float32(np.nan), share.astype(np.float32))
        return total / np.float32(100)
    cadence = schema.VARIABLES[name].cadence
    place = schema.CADENCES[cadence].index(name)
    group, parts = f"fine/{cadence}", []
    held = store.shape(workspace.cube, group, "values", unfinished=False)[0]
    window = rows, cols, slice(place, place + 1)
    if planes.start < held:
        older = slice(planes.start, min(planes.stop, held))
        parts.append(store.read(workspace.cube, group, "values", (older, *window))[..., 0])
    if planes.stop > held:
        newer = slice(max(planes.start, held) - held, planes.stop - held)
        parts.append(store.read(workspace.cube, NEWEST, "values", (newer, *window))[..., 0])
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def predictor_plane(workspace: Workspace, name: str, steps: xr.Dataset, never_later: bool) -> xr.DataArray:
    """One predictor, lazy, broadcastable against (time, lat, lon) of the steps."""
    if name in ("longitude", "latitude"):
        axis = workspace.fine["static"]["lon" if name == "longitude" else "lat"]
        return axis.drop_vars("spatial_ref", errors="ignore").astype(np.float32)
    if name == "day_sequence":
        return steps["day_sequence"].astype(np.float32).reset_coords(drop=True)
    if name in ("day_of_year_sin", "day_of_year_cos"):
        return xr.DataArray(schema.season_angle(steps["day_of_year"].values)[name], {"time": steps["time"]}, ("time",))
    if name == "overpass":
        return (steps["overpass"] == "PM").astype(np.float32).reset_coords(drop=True)
    planes = field_planes(workspace, name).reset_coords(drop=True)
    leading = planes.dims[0]
    if leading == "lat":
        return planes
    pick = plane_index(workspace, name, steps, never_later)
    chosen = planes.isel({leading: xr.DataArray(np.maximum(pick, 0), dims="time")})
    chosen = chosen.drop_vars("year", errors="ignore").assign_coords(time=steps["time"].values)
    if name == "land_cover":
        chosen = chosen.where(chosen != schema.LAND_COVER_FILL).astype(np.float32)
    return chosen if (pick >= 0).all() else chosen.where(xr.DataArray(pick >= 0, dims="time"))
