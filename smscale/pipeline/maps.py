"""What the maps are called, how they are laid out, and what is written about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.kernels.bits import count_bits
from smscale.pipeline.layout import Layout
from smscale.schema import Status

DIMS = ("time", "lat", "lon")


def model_map(model: str) -> str:
    """The map of one model."""
    return f"soil_moisture_{model}"


def status_of(name: str) -> str:
    """The status layer of a map."""
    return f"status_{name.removeprefix('soil_moisture_')}"


def map_template(
    layout: Layout,
    names: Sequence[str],
    notes: Mapping[str, str],
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Empty maps, each with its status layer, and other float32 layers (name -> attributes).

    `notes` are the long names of the maps; `provenance` stands in the attributes of the group.
    """
    shape = (layout.steps.sizes["time"], *layout.grid.shape)
    mapping: dict[str, Any] = {} if layout.grid.x is not None else {"grid_mapping": "spatial_ref"}
    data: dict[str, Any] = {}
    for name in names:
        status = status_of(name)
        attrs: dict[str, Any] = {
            **schema.VARIABLES["soil_moisture"].attrs,
            "long_name": notes[name],
            "ancillary_variables": status,
            **mapping,
        }
        data[name] = (DIMS, store.empty(shape, np.float32), attrs)
        data[status] = (DIMS, store.empty(shape, np.uint32, 0), {**schema.status_attrs(), **mapping})
    for name, attributes in (layers or {}).items():
        data[name] = (DIMS, store.empty(shape, np.float32), {**attributes, **mapping})
    coords: dict[Any, Any] = {**layout.steps.coords, **schema.grid_coords(layout.grid)}
    attrs = {**schema.grid_attrs(layout.grid), "title": "smscale soil moisture maps", **(provenance or {})}
    return xr.Dataset(data, coords, attrs)


def status_counts(status: np.ndarray) -> dict[str, int]:
    """How many cells carry each status bit."""
    counts = count_bits(np.ascontiguousarray(status, np.uint32).ravel())
    return {str(flag.name).lower(): int(n) for flag in Status if (n := counts[int(flag).bit_length() - 1])}


def tally(values: np.ndarray, status: np.ndarray) -> dict[str, int]:
    """What a map holds: cells by status bit, and those with a value."""
    return status_counts(status) | {"valid": int(np.count_nonzero(np.isfinite(values)))}


def totals(results: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """The blocks' tallies summed, by map."""
    sums = {name: Counter[str]() for name in names}
    for result in results:
        for name in names:
            sums[name].update(result["counts"][name])
    return {name: dict(sorted(c.items())) for name, c in sums.items()}
