"""Residual fields of a run, slab by slab of time: each worker reads those of the steps that it is asked for.

They lie beside the ledger of the fuse stage, a folder for each way of fusing: what all steps share (shared.npz), the residuals
of a slab (posed-START.npz), and what was solved of it (solved-START.npz). Slabs have so many steps, whatever the plan: the
numbers do not depend on how the cube is cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.blocks import spans
from smscale.fusion.field import ResidualField
from smscale.fusion.scoring import error_sums, standardised_left_out
from smscale.fusion.solve import Posed, from_shared, shared_arrays
from smscale.pipeline.archives import read_arrays, write_arrays
from smscale.places import Place, place

#: Steps of a slab: their systems share the inverse of all stations, which takes as long as twenty of them.
STEPS = 128
#: Of the fields that a worker keeps; the last two stay in any case.
KEPT_BYTES = 24 << 20

_KEPT: OrderedDict[tuple[str, tuple[str, ...], int, int, str], dict[str, ResidualField]] = OrderedDict()
_LOCK = Lock()


def folder(root: Place) -> Place:
    """Where the fields of a run lie."""
    return root / "ledger" / "fuse" / "fields"


def slabs(steps: int) -> list[slice]:
    """Runs of steps that are solved together."""
    return spans(steps, STEPS)


def files(root: Place, names: Sequence[str], steps: int) -> list[Place]:
    """Every file of the solved fields."""
    parts = [f"{kind}-{slab.start}.npz" for slab in slabs(steps) for kind in ("posed", "solved")]
    return [folder(root) / name / part for name in names for part in ("shared.npz", *parts)]


def keep_posed(root: Place, name: str, posed: Posed) -> None:
    """Write a fusion whose steps wait to be solved."""
    write_arrays(folder(root) / name / "shared.npz", shared_arrays(posed))
    for slab in slabs(posed.residuals.shape[1]):
        arrays = {"residuals": posed.residuals[:, slab], "model": posed.models.index[slab]}
        write_arrays(folder(root) / name / f"posed-{slab.start}.npz", arrays)


def solve_slab(root: str, name: str, start: int, fingerprint: str) -> dict[str, Any]:
    """Solve the steps of a slab and leave out one station after the other.

    Returns
    -------
    steps by method; counts, of stations that are compared at each step; interpolators; standardised, `error_sums` of leaving one out
    """
    here = folder(place(root)) / name
    posed = read_arrays(here / f"posed-{start}.npz")
    field = _shared(root, name, fingerprint).given(posed["residuals"], posed["model"]).solve()
    mean, coefficients = field.daily.dual()
    left_out = field.leave_one_out().astype(np.float32)
    write_arrays(here / f"solved-{start}.npz", {"mean": mean, "coefficients": coefficients, "left_out": left_out})
    return {
        "steps": field.steps_by_method(),
        "counts": field.counts.tolist(),
        "interpolators": field.to_dict()["interpolators"],
        "standardised": error_sums(standardised_left_out(field)),
    }


def fields_at(root: str, names: Sequence[str], steps: slice, fingerprint: str) -> dict[str, ResidualField]:
    """The solved fields of just these steps, by way; each worker keeps those that it was asked for last: tiles share them."""
    key = root, tuple(names), steps.start, steps.stop, fingerprint
    with _LOCK:
        fields = _KEPT.pop(key, None)
    if fields is None:
        fields = {
            name: _restored(_shared(root, name, fingerprint), folder(place(root)) / name, steps) for name in names
        }
    with _LOCK:
        _KEPT[key] = fields
        while len(_KEPT) > 2 and sum(f.nbytes for kept in _KEPT.values() for f in kept.values()) > KEPT_BYTES:
            _KEPT.popitem(last=False)
    return fields


@lru_cache(maxsize=8)
def _shared(root: str, name: str, fingerprint: str) -> Posed:
    """What all steps share, read once by each worker."""
    return from_shared(read_arrays(folder(place(root)) / name / "shared.npz"))


def _restored(shared: Posed, here: Place, steps: slice) -> ResidualField:
    parts = []
    for first in range(steps.start // STEPS * STEPS, max(steps.stop, 1), STEPS):
        within = slice(max(steps.start - first, 0), min(steps.stop - first, STEPS))
        arrays = read_arrays(here / f"posed-{first}.npz") | read_arrays(here / f"solved-{first}.npz")
        parts.append({key: values[..., within] for key, values in arrays.items()})
    rows = max(len(part["coefficients"]) for part in parts)
    mean, index = (np.concatenate([part[key] for part in parts]) for key in ("mean", "model"))
    coefficients = np.concatenate([_with_rows(part["coefficients"], rows) for part in parts], axis=1)
    residuals = np.concatenate([part["residuals"] for part in parts], axis=1)
    return shared.given(residuals, index).solve((mean, coefficients))


def _with_rows(table: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """A slab in which nothing was solved by kriging has no coefficients."""
    return table if len(table) == rows else np.zeros((rows, table.shape[1]))


class SolvedFields(Mapping[str, ResidualField]):
    """The solved fields of all steps by way, read when asked for: thousands of stations and years of steps are large."""

    def __init__(self, root: Place, names: Sequence[str], steps: int) -> None:
        self._root, self._names, self._steps = root, list(names), steps

    def __getitem__(self, name: str) -> ResidualField:
        if name not in self._names:
            raise KeyError(name)
        here = folder(self._root) / name
        return _restored(from_shared(read_arrays(here / "shared.npz")), here, slice(0, self._steps))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def left_out(root: Place, name: str, steps: int) -> NDArray[np.float32]:
    """(n, steps) residuals of each station, predicted from the others."""
    here = folder(root) / name
    return np.concatenate([read_arrays(here / f"solved-{slab.start}.npz")["left_out"] for slab in slabs(steps)], axis=1)
