"""Kriging and inverse distance weighting of a season against PyKrige, day by day, on the same arrays.

Run: python -m benchmarks.kriging
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.variogram import Variogram
from smscale.kernels.sphere import chord_points

STATIONS, ROWS, COLUMNS, DAYS = 156, 300, 300, 40
REPEATS = 3
SILENT = 0.1


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of `call`, the first (compiling, warming) run left out."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Station coordinates, values with silent stations, and a grid's lon and lat."""
    rng = np.random.default_rng(2017)
    coords = np.column_stack([rng.uniform(100, 103, STATIONS), rng.uniform(29, 32, STATIONS)])
    values = rng.normal(0.0, 0.05, (STATIONS, DAYS))
    values[rng.random(values.shape) < SILENT] = np.nan
    return coords, values, np.linspace(100, 103, COLUMNS), np.linspace(32, 29, ROWS)


def pykrige_day(points: np.ndarray, values: np.ndarray, targets: np.ndarray, neighbours: int | None) -> np.ndarray:
    """One day by PyKrige on the same Euclidean points (three dimensions, as chords need)."""
    from pykrige.ok3d import OrdinaryKriging3D

    known = np.isfinite(values)
    parameters = {"psill": 0.0025, "range": 150.0, "nugget": 0.0005}
    peer = OrdinaryKriging3D(*points[known].T, values[known], "exponential", parameters)
    near = {"backend": "loop", "n_closest_points": neighbours} if neighbours else {"backend": "vectorized"}
    return np.asarray(peer.execute("points", *targets.T, **near)[0])


def field(
    model: Kriging | InverseDistance, coords: np.ndarray, values: np.ndarray, lon: np.ndarray, lat: np.ndarray
) -> np.ndarray:
    """Fit and field, as a user would."""
    return model.fit(coords, values).predict_grid(lon, lat)


def main() -> None:
    """Print medians and the largest disagreement."""
    coords, values, lon, lat = scene()
    variogram = Variogram("exponential", 0.0025, 50.0, 0.0005)
    points = chord_points(*coords.T)
    y, x = np.meshgrid(lat, lon, indexing="ij")
    targets = chord_points(x.ravel(), y.ravel())
    print(
        f"{STATIONS} stations, {ROWS} x {COLUMNS} cells, {DAYS} days, {SILENT:.0%} silent; medians of {REPEATS}, seconds"
    )
    models: dict[str, Kriging | InverseDistance] = {
        "kriging, all stations": Kriging(variogram),
        "kriging, 12 nearest": Kriging(variogram, neighbours=12),
        "inverse distance, 12 nearest": InverseDistance(),
    }
    for name, model in models.items():
        day = median_seconds(partial(field, model, coords, values[:, 0], lon, lat))
        season = median_seconds(partial(field, model, coords, values, lon, lat), 1)
        print(f"{name:30s} a day {day:8.3f}   {DAYS} days {season:8.3f}")
    for name, near, repeats in (("PyKrige, all stations", None, REPEATS), ("PyKrige, 12 nearest", 12, 1)):
        peer = median_seconds(partial(pykrige_day, points, values[:, 0], targets, near), repeats)
        print(f"{name:30s} a day {peer:8.3f}   {DAYS} days {peer * DAYS:8.3f} (reckoned)")
    ours = field(Kriging(variogram), coords, values[:, 0], lon, lat).ravel()
    print(f"largest disagreement {np.abs(ours - pykrige_day(points, values[:, 0], targets, None)).max():.1e}")


if __name__ == "__main__":
    main()
