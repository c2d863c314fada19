"""Kriging and inverse distance weighting of a province's season against PyKrige and against one bare matrix product.

Run: python -m benchmarks kriging
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from benchmarks.timing import medians
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.variogram import Variogram
from smscale.kernels import taper
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


def sparse_product() -> Callable[[], object]:
    """Ready weights of all cells' nearest stations, as SciPy's CSR, times all days' values."""
    coords, values = scene(STATIONS, 0.0)
    cells = chord_points(*targets())
    distance, index = cKDTree(chord_points(*coords.T)).query(cells, k=NEIGHBOURS)
    weights = distance**-2.0 / (distance**-2.0).sum(axis=1, keepdims=True)
    starts = np.arange(0, weights.size + 1, NEIGHBOURS)
    matrix = csr_array((weights.astype(np.float32).ravel(), index.ravel(), starts), (len(cells), STATIONS))
    return lambda: matrix @ values.astype(np.float32)


def query_day() -> Callable[[], object]:
    """What a day whose silent stations are left out costs: the nearest of the others, and their mean."""
    coords, values = scene(STATIONS, 0.1)
    known = np.isfinite(values[:, 0])
    points, z, cells = chord_points(*coords[known].T), values[known, 0], chord_points(*targets())

    def run() -> np.ndarray:
        distance, index = cKDTree(points).query(cells, k=NEIGHBOURS)
        weights = distance**-2.0
        return (weights * z[index]).sum(axis=1) / weights.sum(axis=1)

    return run


def nearest(out: np.ndarray) -> dict[str, float]:
    """Medians of what uses only the nearest stations, and of its peers."""
    one = np.zeros((ROWS, COLUMNS), np.float32)
    runs: dict[str, Callable[[], object]] = {}
    for stations in (STATIONS, MANY, 10 * MANY):
        coords, values = scene(stations, 0.1, 1)
        day = Kriging(VARIOGRAM, neighbours=NEIGHBOURS).fit(coords, values[:, 0])
        runs[f"kriging, {NEIGHBOURS} nearest of {stations}, a day"] = partial(day.predict_grid, LON, LAT, out=one)
    coords, values = scene(STATIONS, 0.1, 1)
    plain = Kriging(VARIOGRAM, neighbours=NEIGHBOURS).fit(coords, values[:, 0])
    positive = Kriging(VARIOGRAM, neighbours=NEIGHBOURS, negative_weights="zero").fit(coords, values[:, 0])
    runs[f"its variance, {NEIGHBOURS} nearest of {STATIONS}, a day"] = partial(plain.variance_grid, LON, LAT, out=one)
    runs[f"no negative weights, {NEIGHBOURS} nearest, a day"] = partial(positive.predict_grid, LON, LAT, out=one)
    runs[f"PyKrige, {NEIGHBOURS} nearest of {STATIONS}, a day"] = pykrige_day(STATIONS, 0.1, NEIGHBOURS)
    for silent in (0.0, 0.1):
        coords, values = scene(STATIONS, silent)
        days = Kriging(VARIOGRAM, neighbours=NEIGHBOURS).fit(coords, values)
        inverse = InverseDistance(NEIGHBOURS).fit(coords, values)
        runs[f"kriging, {NEIGHBOURS} nearest, {silent:.0%} silent"] = partial(days.predict_grid, LON, LAT, out=out)
        runs[f"inverse distance, {silent:.0%} silent"] = partial(inverse.predict_grid, LON, LAT, out=out)
    points, reporting = chord_points(*coords.T), np.isfinite(values)
    runs["taper of 50 km, 10% silent"] = partial(taper.fill, out, LON, LAT, points, reporting, 50.0)
    runs["inverse distance, CSR product, 0% silent"] = sparse_product()
    runs["inverse distance, k-d tree, a day"] = query_day()
    return medians(runs, 3)


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
    found |= nearest(out)
    found |= medians({"PyKrige, a day": pykrige_day(STATIONS, 0.1)}, 1)
    for name, seconds in found.items():
        print(f"{name:45s} {seconds:9.3f}")
    ours = found[f"kriging, {STATIONS} stations, 10% silent"]
    print(
        f"the season by PyKrige, day by day, takes {found['PyKrige, a day'] * DAYS / ours:.0f} times as long (reckoned)"
    )
    day, peer = (f"{who}, {NEIGHBOURS} nearest of {STATIONS}, a day" for who in ("kriging", "PyKrige"))
    print(
        f"{NEIGHBOURS} nearest, a day: PyKrige takes {found[peer] / found[day]:.0f} times as long, for field and variance"
    )
    silent, constant = (found[f"kriging, {NEIGHBOURS} nearest, {share} silent"] for share in ("10%", "0%"))
    print(f"{NEIGHBOURS} nearest, a season: silent stations cost {silent / constant:.1f} times a constant set")
    print(f"largest disagreement with PyKrige {disagreement():.1e}")


if __name__ == "__main__":
    main()
