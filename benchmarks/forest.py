"""A random forest of 300 unlimited trees on days of a province, from predictor planes, against scikit-learn.

Two scenes are made. "rough": fractal terrain down to single cells with the slope and aspect that follow, coordinates, land
cover in patches, and per day LST (season, lapse, weather, noise of each cell), NDVI, EVI and ET with noise. "smooth": the
same over `SMOOTH` cells, with noise in LST alone. The forest has learnt noisy soil moisture at random cells and days.
scikit-learn predicts one day's table, made beforehand; ours the same table, and planes of one day, or of `DAYS` at once, without
and with clouds, and a block as the pipeline has them (`BLOCK`, under more clouds). A table of scattered rows (cells and days at
random) is given to both. All in turns, as many threads as BLAS has (ours) or as named (scikit-learn's).
treelite, tl2cgen and onnxruntime are slower than scikit-learn here, or take an hour to compile (docs), and are not measured.
Run: python -m benchmarks forest
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import RandomForestRegressor

from benchmarks.timing import medians
from smscale.kernels.noise import fbm
from smscale.models.forests import rf_from_arrays, rf_to_arrays
from smscale.models.tree_arrays import ForestPredictor

#: Cells along latitude and longitude, at 0.01 degrees; days in a run; share of cells without LST under clouds.
ROWS, COLUMNS, DAYS, CLOUDS = 256, 256, 16, 0.4
#: Days, rows and columns of a block of the pipeline, and its share without LST; rows of a scattered table.
BLOCK, OVERCAST, SCATTERED = (8, 300, 300), 0.85, 20_000
SAMPLES, TREES, REPEATS = 8670, 300, 3
#: Cells of the province that times are given for.
PROVINCE = 1_125_000
#: K: what LST of a cell departs from its neighbours', beside terrain (noise of the product); the same in the smooth scene.
LST_NOISE, SMOOTH_NOISE = 0.7, 0.5
#: Cells: standard deviation of the smoothing.
SMOOTH = 4.0


def scene(rows: int, columns: int, days: int, seed: int = 0) -> list[np.ndarray]:
    """Twelve planes, broadcastable to (days, rows, columns): lon, lat, elevation, slope, aspect, cover, LST, NDVI, EVI, ET, day, overpass."""
    rng = np.random.default_rng(seed)
    lon, lat = 101 + 0.01 * np.arange(columns)[None, None], 33 - 0.01 * np.arange(rows)[None, :, None]
    x, y = np.broadcast_arrays(lon[0], lat[0])
    field = lambda size, kind, octaves=5: fbm(x / size, y / size, kind, octaves, 0.6)  # noqa: E731
    elevation = 2500 + 1200 * field(2.0, 1, 8)
    slope_y, slope_x = np.gradient(elevation, 1000.0)
    slope, aspect = np.degrees(np.arctan(np.hypot(slope_x, slope_y))), np.degrees(np.arctan2(slope_x, slope_y)) % 360
    cover = np.digitize(field(0.4, 2, 6), [-0.8, -0.2, 0.4, 1.0]).astype(float)
    green = 0.5 + 0.15 * field(0.5, 3, 6) - 0.05 * (elevation - 2500) / 1200
    number = 150 + np.arange(days)
    weather = np.stack([field(1.5, 100 + day, 4) for day in number])
    lst = 300 - 0.0055 * (elevation - 2500) + 2.5 * weather + LST_NOISE * rng.normal(size=(days, rows, columns))
    ndvi = green + 0.002 * (number[:, None, None] - 150) + 0.005 * rng.normal(size=(days, rows, columns))
    evi = 0.6 * ndvi + 0.005 * rng.normal(size=ndvi.shape)
    et = 2 + 3 * green + 0.2 * weather + 0.02 * rng.normal(size=weather.shape)
    dated = (number[:, None, None], (np.arange(days) % 2)[:, None, None])
    static = [plane[None] for plane in (elevation, slope, aspect, cover)]
    return [np.asarray(p, np.float32) for p in (lon, lat, *static, lst, ndvi, evi, et, *dated)]


def table(planes: list[np.ndarray]) -> np.ndarray:
    """(n, 12) rows of those cells that have all values."""
    rows = np.stack([p.ravel() for p in np.broadcast_arrays(*planes)], axis=1)
    return rows[np.isfinite(rows).all(axis=1)]


def forest(trees: int = TREES, samples: int = SAMPLES) -> RandomForestRegressor:
    """Unlimited trees grown on samples of a province and half a year."""
    rng = np.random.default_rng(1)
    rows = table(scene(750, 1500, 1, seed=7))
    X = rows[rng.integers(0, len(rows), samples)]
    day = rng.integers(91, 265, samples)
    X[:, 6] += 8 * np.sin(2 * np.pi * (day - 110) / 365) + 2 * rng.normal(size=samples)
    X[:, 7:9] += (0.1 * np.sin(2 * np.pi * (day - 120) / 365) + 0.02 * rng.normal(size=samples))[:, None]
    X[:, 9] += np.sin(2 * np.pi * (day - 110) / 365) + 0.3 * rng.normal(size=samples)
    X[:, 10], X[:, 11] = day, rng.integers(0, 2, samples)
    wet = -0.08 * (X[:, 6] - 300) + 1.5 * X[:, 7] + 0.4 * np.sin(3 * X[:, 0]) - 0.02 * X[:, 3] + 0.2 * X[:, 9]
    y = 0.05 + 0.4 / (1 + np.exp(-wet + 1.0)) + 0.03 * rng.normal(size=samples)
    return RandomForestRegressor(trees, random_state=0, n_jobs=-1).fit(X, y)


def smoothed(planes: list[np.ndarray]) -> list[np.ndarray]:
    """The scene over `SMOOTH` cells; noise in LST alone."""
    fields = [
        p if 1 in p.shape[1:] else gaussian_filter(p, [0.0] * (p.ndim - 2) + [SMOOTH, SMOOTH], mode="nearest")
        for p in planes
    ]
    noise = np.random.default_rng(2).normal(size=fields[6].shape)
    fields[6] = (fields[6] + SMOOTH_NOISE * noise).astype(np.float32)
    return fields


def clouded(planes: list[np.ndarray], share: float = CLOUDS) -> list[np.ndarray]:
    """The scene without LST where clouds are: in patches, others each day."""
    lst = planes[6].copy()
    for day, plane in enumerate(lst):
        y, x = np.indices(plane.shape) / 50
        cloud = fbm(x, y, 500 + day, 4, 0.6)
        plane[cloud > np.quantile(cloud, 1 - share)] = np.nan
    return [*planes[:6], lst, *planes[7:]]


def scattered(rows: int = SCATTERED) -> np.ndarray:
    """(n, 12): cells of a province and days at random, no two neighbours."""
    rng = np.random.default_rng(4)
    every = table(scene(750, 1500, 1, seed=7))
    X = every[rng.integers(0, len(every), rows)]
    X[:, 6] += 8 * rng.normal(size=rows)
    X[:, 10] = rng.integers(91, 265, rows)
    return X


def first_day(planes: list[np.ndarray]) -> list[np.ndarray]:
    return [p[:1] for p in planes]


def runs_of(
    peer: RandomForestRegressor, ours: ForestPredictor, planes: list[np.ndarray]
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed, and the cells that each predicts."""
    X = table(first_day(planes))

    def theirs(threads: int) -> Callable[[], object]:
        return lambda: peer.set_params(n_jobs=threads).predict(X)

    cloudy = clouded(planes)
    runs: dict[str, Callable[[], object]] = {
        "scikit-learn, n_jobs=1": theirs(1),
        "scikit-learn, n_jobs=2": theirs(2),
        "ours, that table": lambda: ours.predict(X),
        "ours, one day": lambda: ours.predict_planes(first_day(planes)),
        f"ours, {DAYS} days": lambda: ours.predict_planes(planes),
        f"ours, {DAYS} days, cells under clouds": lambda: ours.predict_planes(cloudy),
    }
    known = int(np.isfinite(cloudy[6]).sum())
    return runs, dict(zip(runs, [*[len(X)] * 4, DAYS * len(X), known], strict=True))


def apart(peer: RandomForestRegressor, ours: ForestPredictor) -> None:
    """Print medians of a scattered table, and of a block of the pipeline."""
    X, planes = scattered(), clouded(scene(BLOCK[1], BLOCK[2], BLOCK[0]), OVERCAST)
    rows = table(planes)
    runs: dict[str, Callable[[], object]] = {}
    for name, values in {f"{len(X)} scattered rows": X, f"the {len(rows)} known cells of a block": rows}.items():
        for threads in (1, 2):
            runs[f"scikit-learn, n_jobs={threads}, {name}"] = lambda x=values, n=threads: peer.set_params(
                n_jobs=n
            ).predict(x)
    runs[f"ours, {len(X)} scattered rows"] = lambda: ours.predict(X)
    runs["ours, a table of the block's cells"] = lambda: ours.predict(rows)
    runs[f"ours, that block from planes, {OVERCAST:.0%} clouds"] = lambda: ours.predict_planes(planes)
    expected = peer.set_params(n_jobs=1).predict(X).astype(np.float32)
    print(f"\nForest of {TREES} trees; same bits: {np.array_equal(ours.predict(X), expected)}")
    for run, value in medians(runs, REPEATS).items():
        print(f"  {run:58s} {value:8.2f} s")


def main() -> None:
    """Print medians, for a day of a province."""
    peer = forest()
    ours = rf_from_arrays(*rf_to_arrays(peer))
    apart(peer, ours)
    rough = scene(ROWS, COLUMNS, DAYS)
    for name, planes in {"rough": rough, "smooth": smoothed(rough)}.items():
        X = table(first_day(planes))
        expected = peer.set_params(n_jobs=1).predict(X).astype(np.float32)
        same = np.array_equal(ours.predict_planes(first_day(planes)).ravel(), expected)
        runs, cells = runs_of(peer, ours, planes)
        seconds = {run: value * PROVINCE / cells[run] for run, value in medians(runs, REPEATS).items()}
        two = seconds["scikit-learn, n_jobs=2"]
        print(f"\nForest of {TREES} trees, {name} scene: a day of {PROVINCE / 1e6:.3f} M cells; same bits: {same}")
        for run, value in seconds.items():
            print(f"  {run:42s} {value:8.2f} s   scikit-learn, n_jobs=2 takes {two / value:5.2f} x")


if __name__ == "__main__":
    main()
