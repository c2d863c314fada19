"""Small sets of arrays beside the ledger: one .npz each, there whole or not at all, of the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from smscale.places import Place, write_bytes


def write_arrays(path: Place, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_bytes(path, content.getvalue())


def read_arrays(path: Place) -> dict[str, np.ndarray]:
    """The arrays of `write_arrays`."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)
