"""A fusion of thousands of stations over ten years, without its maps: time and peak memory of every step of the stage.

    python -m benchmarks stations_at_scale [stations=2000] [steps=7300] [solved=2] [silent=0.45]

Of the slabs (128 steps each) only so many are solved for each way; what all of them take is told from those. A slab is a task of
its own, so that the time divides by the workers. Peaks are what the system's account says of this process above its start.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from smscale.fusion.ladder import pooling_levels
from smscale.fusion.scoring import raw_and_debiased
from smscale.fusion.solve import pose
from smscale.pipeline.evaluate import station_table
from smscale.pipeline.fusion_scores import AtStations, left_out, station_scores
from smscale.pipeline.solved import fields_at, keep_posed, slabs, solve_slab
from smscale.pipeline.stations import packed, unpacked
from smscale.progress import forget_peak, used

WAYS = {
    "gda_kriging": ("difference", "kriging"),
    "gda_idw": ("difference", "idw"),
    "gra_kriging": ("ratio", "kriging"),
    "gra_idw": ("ratio", "idw"),
}


@contextmanager
def told(what: str) -> Iterator[None]:
    """A line of the wall time, the time of this process's threads and the peak of its memory above what it had."""
    forget_peak()
    before, start, spent = used().peak, time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - start, time.process_time() - spent
    print(f"{what:<46} {wall:8.1f} s {cpu:8.1f} s cpu {(used().peak - before) >> 20:7d} MiB", flush=True)


def network(n: int, t: int, silent: float) -> tuple[np.ndarray, ...]:
    """Stations, what they measure, a map under cloud, and the steps."""
    rng = np.random.default_rng(0)
    coords = np.column_stack([rng.uniform(75, 130, n), rng.uniform(20, 50, n)])
    times = pd.date_range("2015-04-01T06:00", periods=t, freq="12h").values
    overpass = np.where(np.arange(t) % 2, "PM", "AM")
    season = 0.25 + 0.08 * np.sin(np.arange(t) / 365)
    level = rng.normal(0, 0.04, (n, 1)).astype(np.float32)
    seen = (season + level + rng.normal(0, 0.03, (n, t)).astype(np.float32)).astype(np.float64)
    seen[rng.random((n, t)) < 0.1] = np.nan
    held = rng.permutation(n) < 0.3 * n
    ground = (season + rng.normal(0, 0.03, (n, t)).astype(np.float32)).astype(np.float64)
    ground[rng.random((n, t)) < silent] = np.nan
    return coords, np.clip(seen, 0, 0.6), np.clip(ground, 0, 0.6), held, times, overpass


def main(stations: int = 2000, steps: int = 7300, solved: int = 2, silent: float = 0.45) -> None:
    """Print the steps of the fusion, and of its scores."""
    print(f"{stations} stations x {steps} steps x {len(WAYS)} ways, map missing at {silent:.0%}")
    coords, observed, background, held, times, overpass = network(stations, steps, silent)
    merged = np.where(held[:, None], np.nan, observed)
    fuse(coords, merged, background, pooling_levels(times, overpass), solved)
    series = {name: background.astype(np.float32) for name in ("rf", *WAYS)}
    keep(series["rf"])
    with told("scores of leaving one out, five estimates"):
        raw_and_debiased(merged, series)
    score(observed, held, series, times)


def fuse(coords: np.ndarray, merged: np.ndarray, background: np.ndarray, levels: np.ndarray, some: int) -> None:
    """Fit, solve some slabs, and read them as a worker does."""
    every = slabs(background.shape[1])
    few = every[:: max(1, len(every) // some)][:some]
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, how) in WAYS.items():
            with told(f"{name}: what steps share, fitted and kept"):
                keep_posed(Path(folder), name, pose(coords, merged, background, kind, how, groups=levels))
            with told(f"{name}: {len(few)} of {len(every)} slabs solved, left out"):
                for slab in few:
                    solve_slab(folder, name, slab.start, "")
        with told("a worker reads the fields of a block of 64 steps"):
            fields_at(folder, list(WAYS), slice(few[0].start, few[0].start + 64), "")


def keep(series: np.ndarray) -> None:
    """A series as the ledger keeps it."""
    with told("records of a series written and read"):
        text = [packed(series[:, slab]) for slab in slabs(series.shape[1])]
        again = np.concatenate([unpacked(part, len(series)) for part in text], axis=1)
    assert np.array_equal(again, series, equal_nan=True)
    print(f"{'':<6}bytes of a record per value: {sum(map(len, text)) / series.size:.2f}")


def score(observed: np.ndarray, held: np.ndarray, series: dict[str, np.ndarray], times: np.ndarray) -> None:
    """What `evaluate` makes of the stations."""
    whole, n = np.broadcast_to(held[:, None], observed.shape), len(observed)
    at = AtStations([""] * n, observed, whole, np.ones(n, bool), series["rf"], series, {}, "rf", "rf")
    with told("evaluate: scores of every source, three tables"):
        station_scores(at, at.held)
        station_scores(at, at.held, shared=True)
        station_scores(at, np.ones_like(at.held))
    with told("evaluate: who was left out"):
        left_out(at)
    with told("evaluate: table of the figures"):
        table = station_table(at, _Steps(times))
    print(f"{'':<6}{len(table)} rows, {table.memory_usage(deep=True).sum() / len(table):.1f} bytes a row")


class _Steps:
    """As much of a layout as the table asks for."""

    def __init__(self, times: np.ndarray) -> None:
        import xarray as xr

        self.steps = xr.Dataset({"local_date": ("time", times.astype("datetime64[D]").astype("datetime64[ns]"))})
