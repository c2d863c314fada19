"""Kriging and inverse distance weighting of a province's season against PyKrige and against one bare matrix product.

Run: python -m benchmarks kriging
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np

from benchmarks.timing import medians
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.variogram import Variogram
from smscale.kernels.sphere import chord_points

STATIONS, MANY, ROWS, COLUMNS, DAYS, NEIGHBOURS = 156, 2000, 900, 1250, 174, 12
REPEATS = 5
VARIOGRAM = Variogram("exponential", 0.0025, 80.0, 0.0005)
LON, LAT = 97.0 + 0.01 * (np.arange(COLUMNS) + 0.5), 35.0 - 0.01 * (np.arange(ROWS) + 0.5)


def scene(stations: int, silent: float, days: int = DAYS) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) and values (n, days), NaN where silent."""
    rng = np.random.default_rng(2017)
    coords = np.column_stack([rng.uniform(LON[0], LON[-1], stations), rng.uniform(LAT[-1], LAT[0], stations)])
    values = rng.normal(0.0, 0.05, (stations, days))
    values[rng.random(values.shape) < silent] = np.nan
    return coords, values


def season(stations: int, silent: float, out: np.ndarray) -> Callable[[], object]:
    """Fit and field of all days, as a user would."""
    coords, values = scene(stations, silent)
    return lambda: Kriging(VARIOGRAM).fit(coords, values).predict_grid(LON, LAT, out=out)


def product(stations: int, out: np.ndarray) -> Callable[[], object]:
    """The weights of all cells times all days' residuals: what whoever had such weights would still have to do."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(stations, ROWS * COLUMNS)).astype(np.float32)
    residuals = rng.normal(size=(DAYS, stations)).astype(np.float32)
    flat = out.reshape(DAYS, -1)
    return lambda: np.matmul(residuals, weights, out=flat)


def targets() -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of all cells, one after the other."""
    lon, lat = np.meshgrid(LON, LAT)
    return lon.ravel(), lat.ravel()


def pykrige_day(stations: int, silent: float, neighbours: int | None = None) -> Callable[[], object]:
    """One day by PyKrige's fastest way, on a plane in km."""
    from pykrige.ok import OrdinaryKriging

    coords, values = scene(stations, silent, 1)
    known = np.isfinite(values[:, 0])
    scale = 111.2 * np.array([np.cos(np.deg2rad(30.5)), 1.0])
    lon, lat = targets()
    parameters = {"psill": 0.0025, "range": 240.0, "nugget": 0.0005}
    model = OrdinaryKriging(*(coords[known] * scale).T, values[known, 0], "exponential", parameters)
    near = {"n_closest_points": neighbours} if neighbours else {}
    return lambda: model.execute("points", lon * scale[0], lat * scale[1], backend="C", **near)


def disagreement() -> float:
    """Largest difference from PyKrige on the same chords, over some thousand cells."""
    from pykrige.ok3d import OrdinaryKriging3D

    coords, values = scene(STATIONS, 0.1, 1)
    known = np.isfinite(values[:, 0])
    rows, cols = np.arange(0, ROWS, 15), np.arange(0, COLUMNS, 15)
    # PyKrige's range is the practical one: exp(-3 h / range).
    parameters = {"psill": VARIOGRAM.partial_sill, "range": 3 * VARIOGRAM.range, "nugget": VARIOGRAM.nugget}
    peer = OrdinaryKriging3D(*chord_points(*coords[known].T).T, values[known, 0], "exponential", parameters)
    lon, lat = np.meshgrid(LON[cols], LAT[rows])
    theirs = peer.execute("points", *chord_points(lon.ravel(), lat.ravel()).T, backend="vectorized")[0]
    ours = Kriging(VARIOGRAM).fit(coords, values[:, 0]).predict_grid(LON, LAT)[np.ix_(rows, cols)]
    return float(np.abs(ours.ravel() - np.asarray(theirs)).max())


def main() -> None:
    """Print medians."""
    print(f"{ROWS} x {COLUMNS} cells, {DAYS} days; medians, seconds")
    out = np.zeros((DAYS, ROWS, COLUMNS), np.float32)
    runs = {
        f"kriging, {STATIONS} stations, {silent:.0%} silent": season(STATIONS, silent, out)
        for silent in (0.0, 0.1, 0.9)
    }
    runs[f"bare product, {STATIONS} stations"] = product(STATIONS, out)
    runs[f"kriging, {MANY} stations"] = season(MANY, 0.0, out)
    found = medians(runs, REPEATS)
    near: dict[str, Callable[[], object]] = {}
    for silent in (0.0, 0.1):
        coords, values = scene(STATIONS, silent)
        local = Kriging(VARIOGRAM, neighbours=NEIGHBOURS)
        day, days = (Kriging.fit(copy(local), coords, part) for part in (values[:, 0], values))
        inverse = InverseDistance(NEIGHBOURS).fit(coords, values)
        near[f"kriging, {NEIGHBOURS} nearest, a day, {silent:.0%} silent"] = partial(day.predict_grid, LON, LAT)
        near[f"kriging, {NEIGHBOURS} nearest, {silent:.0%} silent"] = partial(days.predict_grid, LON, LAT, out=out)
        near[f"inverse distance, {silent:.0%} silent"] = partial(inverse.predict_grid, LON, LAT, out=out)
    found |= medians(near, 1)
    found |= medians(
        {
            "PyKrige, a day": pykrige_day(STATIONS, 0.1),
            f"PyKrige, {NEIGHBOURS} nearest, a day": pykrige_day(STATIONS, 0.1, NEIGHBOURS),
        },
        1,
    )
    for name, seconds in found.items():
        print(f"{name:45s} {seconds:9.3f}")
    ours = found[f"kriging, {STATIONS} stations, 10% silent"]
    print(
        f"the season by PyKrige, day by day, takes {found['PyKrige, a day'] * DAYS / ours:.0f} times as long (reckoned)"
    )
    print(f"largest disagreement with PyKrige {disagreement():.1e}")


if __name__ == "__main__":
    main()
