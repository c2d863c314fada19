"""Small arrays of a worker are not mapped anew each time."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from smscale import heap
assert heap.keep_small_arrays() is {done}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(2**17)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(done, **environment):
    """Page faults of fifty arrays of a MiB, 256 pages each, one after another."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    call = [sys.executable, "-c", FAULTS.format(done=done)]
    return int(subprocess.run(call, env=kept | environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_small_arrays_stay_with_a_process_whose_nanny_gives_all_back():
    trim = {"MALLOC_TRIM_THRESHOLD_": "65536"}
    assert faults(True, **trim) < 1000
    assert faults(False) < 1000  # malloc's own way
    # who sets both knows what they want
    assert faults(False, **trim, MALLOC_MMAP_THRESHOLD_="65536") > 50 * 200
