"""What is counted of a map."""

import numpy as np

from smscale.pipeline.maps import status_counts, tally, totals
from smscale.schema import Status


def test_every_bit_is_counted_wherever_it_stands():
    rng = np.random.default_rng(0)
    status = rng.integers(0, 2**15, (3, 40, 50)).astype(np.uint32)
    status[:, :20] = np.uint32(Status.NO_LST | Status.NOT_FUSED)
    for found in (status, status.transpose(2, 0, 1), status[:, ::3, ::-2], status[:0]):
        expected = {str(f.name).lower(): int((found & np.uint32(f) != 0).sum()) for f in Status}
        assert status_counts(found) == {name: n for name, n in expected.items() if n}


def test_totals_are_sums_over_blocks():
    values = np.array([[[0.1, np.nan, 0.3]]], np.float32)
    status = np.array([[[0, Status.NO_LST, Status.CLIPPED]]], np.uint32)
    block = {"counts": {"rf": tally(values, status)}}
    assert totals([block, block, block], ["rf"]) == {"rf": {"clipped": 3, "no_lst": 3, "valid": 6}}
