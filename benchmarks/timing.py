"""What the benchmarks share: medians of interleaved runs, the machine, a table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np


def medians(runs: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, so that a busy machine disturbs all alike. One warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second that one thread of NumPy copies (read and write counted)."""
    source = np.zeros(megabytes * 2**18, dtype=np.float32)
    target = np.empty_like(source)
    seconds = medians({"copy": lambda: np.copyto(target, source)}, repeats=3)["copy"]
    return 2 * source.nbytes / seconds


def missing(*modules: str) -> list[str]:
    """Those peers that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def report(title: str, seconds: Mapping[str, float], ours: str, moved: int, absent: list[str]) -> None:
    """Print one table: seconds, ratio to ours, and how far ours is from the copy bandwidth.

    Parameters
    ----------
    moved : bytes that must be read and written at least
    absent : peers that are not installed
    """
    print(f"\n{title}")
    print(f"  {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"  {name:42s} {value * 1e3:10.1f} ms   {value / seconds[ours]:7.2f} x")
    bandwidth = copy_bandwidth()
    share = moved / bandwidth / seconds[ours]
    print(
        f"  {moved / 1e6:.0f} MB moved; copying that takes {moved / bandwidth * 1e3:.1f} ms: {share:.0%} of the limit"
    )
    if absent:
        print(f"  not installed, so not measured: {', '.join(absent)}")
