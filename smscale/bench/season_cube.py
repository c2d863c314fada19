"""A season made without a run: a cube, stations and a model that the real passes take for their own.

LST lies behind clouds (`CLOUDS` of the pixel-days hidden, in fields of weather); composites, terrain, land cover; stations, a tenth
of their values missing; a GABP network fitted to samples of the cube.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from smscale import config, schema, store
from smscale.blocks import Ledger, Task, run
from smscale.errors import InputError
from smscale.kernels.noise import fbm
from smscale.pipeline.ingest import arrays
from smscale.pipeline.layout import Layout
from smscale.workspace import Workspace

#: Share of the pixel-days that clouds hide.
CLOUDS = 0.85
STATIONS, SILENT = 156, 0.1
SAMPLES = 6069
FIRST_DAY = "2017-06-10"
#: North-west corner of the region, degrees, and its cells' step.
WEST, NORTH, STEP = 97.0, 34.0, 0.01
#: The least and the most that a made season may have: days, rows, columns. A fusion needs several days; 180 E is not crossed.
LEAST, MOST = (2, 2, 2), (3650, 12_000, 8_000)


@dataclass(frozen=True)
class Composites:
    """What `arrays.lay_out` asks of the inputs."""

    years: tuple[int, ...] = (int(FIRST_DAY[:4]),)

    def composites(self, cadence: str, layout: Layout) -> list[tuple[str, str]]:
        """First and last days that cover the period."""
        days = {"eight_day": 8, "sixteen_day": 16}[cadence]
        first, last = (np.datetime64(day) for day in layout.period)
        starts = np.arange(first, last + 1, days)
        return [(str(start), str(start + days - 1)) for start in starts]


def recipe_of(
    folder: Path,
    shape: tuple[int, int, int] = (174, 900, 1250),
    chunks: str = "{time: 1, lat: 300, lon: 313, shard: [8, 1, 1]}",
    memory: str = "3GiB",
) -> config.Recipe:
    """The recipe of a made season of so many days, rows and columns, written in `folder`.

    Raises
    ------
    InputError
        for a shape that no season can have.
    """
    for n, least, most, what in zip(shape, LEAST, MOST, ("days", "rows", "columns"), strict=True):
        if not least <= n <= most:
            raise InputError(f"--shape {'x'.join(map(str, shape))}: {what} must be {least} to {most}; got {n}")
    days, rows, cols = shape
    last = np.datetime64(FIRST_DAY) + days - 1
    south, east = round(NORTH - rows * STEP, 2), round(WEST + cols * STEP, 2)
    path = folder / "season.yaml"
    path.write_text(
        f"name: season\nworld: none\nregion: [{WEST}, {south}, {east}, {NORTH}]\n"
        f"period: [{FIRST_DAY}, {last}]\n"
        f"chunks: {chunks}\nmodels: {{gabp: {{}}}}\n"
        f"fusion: {{holdout: 0.3}}\nresources: {{workers: 2, memory_per_worker: {memory}}}\n"
    )
    return config.read(path)


# -- the cube -----------------------------------------------------------------------------------------


def ground(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """What does not change: elevation, slope, aspect, northness, eastness, land cover, green."""
    elevation = elevation_of(x, y)
    dy, dx = np.gradient(elevation, 1000.0)
    aspect = np.arctan2(dx, dy)
    cover = np.digitize(fbm(x / 0.4, y / 0.4, 2, 6, 0.6), [-0.8, -0.2, 0.4, 1.0, 2.2])
    return {
        "elevation": elevation,
        "slope": np.degrees(np.arctan(np.hypot(dx, dy))),
        "aspect": np.degrees(aspect) % 360,
        "northness": np.cos(aspect),
        "eastness": np.sin(aspect),
        "land_cover": np.array([10, 5, 8, 12, 14, 17])[cover],
        "green": 0.5 + 0.15 * fbm(x / 0.5, y / 0.5, 3, 6, 0.6),
    }


def elevation_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Metres."""
    return 2500 + 1500 * fbm(x / 2, y / 2, 1, 8, 0.6)


def lst_of(x: np.ndarray, y: np.ndarray, elevation: np.ndarray, step: int) -> np.ndarray:
    """LST of one overpass, NaN behind clouds."""
    weather = fbm(x / 1.5, y / 1.5, 100 + step, 4, 0.6)
    cloud = fbm(x / 0.8, y / 0.8, 10_000 + step, 5, 0.6)
    lst = 300 - 0.0055 * (elevation - 2500) + 2.5 * weather + (8 if step % 2 else -4)
    return np.where(cloud < np.quantile(cloud[::7, ::7], CLOUDS), np.nan, lst).astype(np.float32)


def fill_tile(cube: str, layout: Layout, tile: tuple[slice, slice]) -> dict[str, Any]:
    """Every array of the fine cube on one tile."""
    rows, cols = tile
    y, x = np.meshgrid(layout.grid.lat[rows], layout.grid.lon[cols], indexing="ij")
    found = ground(x, y)
    static = np.stack([found[n] for n in schema.CADENCES["static"]], axis=-1).astype(np.float32)
    store.write(cube, "fine/static", "values", (rows, cols, slice(0, static.shape[-1])), static)
    store.write(
        cube, "fine/land_cover", "land_cover", (slice(0, 1), rows, cols), found["land_cover"][None].astype(np.uint8)
    )
    for cadence, amount in (("eight_day", 10.0), ("sixteen_day", 1.0)):
        count, names = store.shape(cube, f"fine/{cadence}", "values")[0], schema.CADENCES[cadence]
        for k in range(count):
            values = np.stack([amount * found["green"] * (1 - 0.3 * i) for i in range(len(names))], axis=-1)
            values = (values + 0.01 * amount * np.sin(k + x)[..., None]).astype(np.float32)
            store.write(
                cube, f"fine/{cadence}", "values", (slice(k, k + 1), rows, cols, slice(0, len(names))), values[None]
            )
    for slab in layout.slabs():
        lst = np.stack([lst_of(x, y, found["elevation"], step) for step in range(slab.start, slab.stop)])
        view = np.where(np.isnan(lst), np.nan, 13.5).astype(np.float32)
        store.write(cube, "fine/overpass", "values", (slab, rows, cols, slice(0, 2)), np.stack([lst, view], axis=-1))
    return {}


def make_cube(workspace: Workspace, layout: Layout, client: Any, progress: bool = True) -> None:
    """The fine cube and the stations."""
    cube = str(workspace.cube)
    arrays.lay_out(layout, Composites(), cube)  # type: ignore[arg-type]
    tasks = [Task(f"{r.start}-{c.start}", fill_tile, (cube, layout, (r, c))) for r, c in layout.tiles()]
    run(tasks, Ledger(workspace.root / "made"), client, "make the cube", progress)
    for group in ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover", "coarse"):
        store.publish(cube, group)
    rng = np.random.default_rng(1)
    west, south, east, north = layout.grid.bounds
    lon, lat = rng.uniform(west, east, STATIONS), rng.uniform(south, north, STATIONS)
    steps = layout.steps.sizes["time"]
    values = 0.25 + 0.05 * rng.normal(size=(STATIONS, 1)) + 0.04 * rng.normal(size=(STATIONS, steps))
    values[rng.random(values.shape) < SILENT] = np.nan
    stations = xr.Dataset(
        {"soil_moisture": (("station", "time"), values.astype(np.float32))},
        {
            "station": [f"s{i:03d}" for i in range(STATIONS)],
            "time": layout.steps["time"].values,
            "lon": ("station", lon),
            "lat": ("station", lat),
        },
    )
    store.create(cube, "stations", stations, {}, None)
    store.publish(cube, "stations")


def make_model(workspace: Workspace, recipe: config.Recipe, **settings: Any) -> None:
    """A GABP fitted to samples whose soil moisture follows some predictors, and the records of the stages before.

    `settings` are GABPRegressor's, beside 20 generations and a fixed seed.
    """
    import pandas as pd

    from smscale.models import GABPRegressor, save_model

    rng = np.random.default_rng(2)
    times = workspace.steps["time"].values
    held = workspace.predictors(times[: min(times.size, 32)])
    parts = []
    for step in range(held.sizes["time"]):
        with dask.config.set(scheduler="synchronous"):  # here: a plane is larger than what is made of it
            plane = held.isel(time=step).values.reshape(-1, held.sizes["variable"])
        parts.append(plane[rng.choice(len(plane), min(4000, len(plane)), replace=False)])
    rows = np.concatenate(parts)
    rows = rows[np.isfinite(rows).all(axis=1)][:SAMPLES]
    table = pd.DataFrame(rows, columns=list(recipe.predictors)).astype(np.float32)
    wet = 0.25 + 0.2 * (table["ndvi"] - 0.5) - 0.004 * (table["lst"] - 295) + 0.02 * rng.normal(size=len(table))
    model = GABPRegressor(**{"generations": 20, "random_state": 0, **settings})
    model.fit(table.to_numpy(), wet.to_numpy())
    save_model(workspace.model("gabp"), model, list(table), table, {}, {})
    inner = [{"model": "gabp", "rmse": 0.03}]
    workspace.finish("ingest", "made", {})
    workspace.finish("match", "made", {})
    workspace.finish("train", "made", {"best": "gabp", "inner": inner})
