"""Kriging variance of a province's season against the same cells one day at a time, and against PyKrige.

Run: python -m benchmarks kriging_variance
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.kriging import COLUMNS, DAYS, LAT, LON, ROWS, STATIONS, VARIOGRAM, pykrige_day, scene
from benchmarks.timing import medians
from smscale.fusion.interpolators import Kriging

REPEATS = 3
#: The peers get every so many cells along both axes: they would take minutes.
STEP = 20


def season(silent: float, out: np.ndarray) -> Callable[[], object]:
    """All cells, all days."""
    return partial(Kriging(VARIOGRAM).fit(*scene(STATIONS, silent)).variance_grid, LON, LAT, out=out)


def day_by_day(silent: float) -> Callable[[], np.ndarray]:
    """Some cells, all days, each solved by itself: (days, rows, columns)."""
    model = Kriging(VARIOGRAM).fit(*scene(STATIONS, silent))
    lon, lat = np.meshgrid(LON[::STEP], LAT[::STEP])
    coords = np.column_stack([lon.ravel(), lat.ravel()])
    return lambda: model.predict(coords, return_variance=True)[1].T.reshape(DAYS, *lon.shape)


def main() -> None:
    """Print medians, what the peers would take for all cells and days, and the largest difference."""
    print(f"{STATIONS} stations, {ROWS} x {COLUMNS} cells, {DAYS} days; medians, seconds")
    out = np.zeros((DAYS, ROWS, COLUMNS), np.float32)
    share = LON[::STEP].size * LAT[::STEP].size / (ROWS * COLUMNS)
    for silent in (0.0, 0.1, 0.5, 0.9):
        plain = day_by_day(silent)
        found = medians({"ours": season(silent, out), "day by day": plain}, REPEATS)
        error = np.abs(out[:, ::STEP, ::STEP] - plain()).max() / (VARIOGRAM.partial_sill + VARIOGRAM.nugget)
        ratio = found["day by day"] / share / found["ours"]
        print(
            f"{silent:4.0%} silent {found['ours']:9.2f}   day by day {ratio:6.1f} x   differs by {error:.0e} of the sill"
        )
    found = medians({"ours": season(0.1, out), "PyKrige": pykrige_day(STATIONS, 0.1)}, 1)
    print(f"PyKrige, a day, field and variance {found['PyKrige']:.2f}: {found['PyKrige'] * DAYS / found['ours']:.0f} x")


if __name__ == "__main__":
    main()
