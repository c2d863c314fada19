"""A fusion of thousands of stations over ten years, without its maps: time and peak memory of every step of the stage.

    python -m benchmarks.stations_at_scale [STATIONS] [STEPS] [SLABS] [silent share]

Of the slabs (128 steps each) only SLABS are solved for each way; what all of them take is told from those. A slab is a task of
its own, so that the time divides by the workers. Peaks are what the system's account says of this process above its start.
"""

from __future__ import annotations

import sys
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

WAYS = {
    "gda_kriging": ("difference", "kriging"),
    "gda_idw": ("difference", "idw"),
    "gra_kriging": ("ratio", "kriging"),
    "gra_idw": ("ratio", "idw"),
}


def resident(name: str) -> int:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) // 1024


@contextmanager
def told(what: str) -> Iterator[None]:
    """A line of the wall time, the time of this process's threads and the peak of its memory above what it had."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start, spent = resident("VmRSS"), time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - start, time.process_time() - spent
    print(f"{what:<46} {wall:8.1f} s {cpu:8.1f} s cpu {resident('VmHWM') - before:7d} MiB", flush=True)


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


def main(n: int = 2000, t: int = 7300, some: int = 2, silent: float = 0.45) -> None:
    print(f"{n} stations x {t} steps x {len(WAYS)} ways, map missing at {silent:.0%}")
    coords, observed, background, held, times, overpass = network(n, t, silent)
    merged = np.where(held[:, None], np.nan, observed)
    levels = pooling_levels(times, overpass)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, (kind, how) in WAYS.items():
            with told(f"{name}: what steps share, fitted and kept"):
                keep_posed(root, name, pose(coords, merged, background, kind, how, groups=levels))
            few = slabs(t)[:: max(1, len(slabs(t)) // some)][:some]
            with told(f"{name}: {len(few)} of {len(slabs(t))} slabs solved, left out"):
                for slab in few:
                    solve_slab(folder, name, slab.start, "")
        with told("a worker reads the fields of a block of 64 steps"):
            fields_at(folder, list(WAYS), slice(few[0].start, few[0].start + 64), "")
    series = {"rf": background.astype(np.float32)} | {name: background.astype(np.float32) for name in WAYS}
    with told("records of a series written and read"):
        text = [packed(series["rf"][:, slab]) for slab in slabs(t)]
        again = np.concatenate([unpacked(part, n) for part in text], axis=1)
    assert np.array_equal(again, series["rf"], equal_nan=True)
    print(f"{'':<6}bytes of a record per value: {sum(map(len, text)) / (n * t):.2f}")
    del text, again
    with told("scores of leaving one out, five estimates"):
        raw_and_debiased(merged, series)
    whole = np.broadcast_to(held[:, None], observed.shape)
    smap = background.astype(np.float32)
    at = AtStations([""] * n, observed, whole, np.ones(n, bool), smap, series, {}, "rf", "rf")
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


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*(int(a) for a in given[:3]), *(float(a) for a in given[3:]))
