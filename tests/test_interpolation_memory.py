"""What interpolators hold beside the output does not grow with the grid, by the operating system's account."""

import subprocess
import sys

CODE = """
import resource, sys
import numpy as np
from smscale import InverseDistance, Kriging, Variogram

rng = np.random.default_rng(0)
coords = np.column_stack([rng.uniform(98, 107, 100), rng.uniform(27, 36, 100)])
values = rng.normal(0, 0.05, (100, 2))
values[rng.random(values.shape) < 0.1] = np.nan
variogram = Variogram("exponential", 0.0025, 80.0, 0.0005)
everywhere, near = Kriging(variogram).fit(coords, values), Kriging(variogram, 8).fit(coords, values)
few = Kriging(variogram, 8, negative_weights="zero").fit(coords, values)
fields = {
    "nearest": near.predict_grid,
    "variance of the nearest": few.variance_grid,
    "all stations": everywhere.predict_grid,
    "inverse distance": InverseDistance(8).fit(coords, values).predict_grid,
    "variance of all stations": everywhere.variance_grid,
}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
out = np.ones(2 * 1600 * 1600, np.float32)
for name, fill in fields.items():
    for size in (500, 1600):
        fill(98 + 9 * np.arange(size) / size, 36 - 9 * np.arange(size) / size, out=out[: 2 * size * size].reshape(2, size, size))
        print(name, size, peak())
"""


def test_peak_memory_stays_as_the_grid_grows_tenfold() -> None:
    """The whole output is there from the start; what the small grid took is enough for the large one."""
    run = [sys.executable, "-c", CODE]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    peaks = [float(line.split()[-1]) for line in lines]
    assert len(peaks) == 10
    for small, large in zip(peaks[::2], peaks[1::2], strict=True):
        assert large - small < 12.0, lines  # MB; an array of float64 over the large grid has 20
