"""Versions and machine of a run, as its record has them. No host names and no paths: a record travels with its report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

#: Libraries whose versions decide numbers, files or how work is spread.
LIBRARIES = (
    "dask",
    "distributed",
    "numpy",
    "scipy",
    "numba",
    "pandas",
    "pyarrow",
    "xarray",
    "zarr",
    "numcodecs",
    "obstore",
    "icechunk",
    "scikit-learn",
    "xgboost",
    "torch",
    "pytorch-lightning",
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and those libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in ("smscale", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def about_machine() -> dict[str, Any]:
    """What the machine of this process is: system, processor, usable cores, bytes of memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def _processor() -> str:
    """The processor's name; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
