"""Prediction from planes on a torch device: a model's weights lie there once, cells go through in parts that its memory holds.

What the device has no room for, or cannot do, the CPU's kernels do; a process says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smscale.kernels.ga_torch import exact
from smscale.kernels.planes import Index, slabs
from smscale.models.table import Predictor

Floats32 = NDArray[np.float32]

#: Cells of a part at most, which most devices have room for: so they add up alike whatever else is in their memory; and at least.
MOST_CELLS, LEAST_CELLS = 1 << 18, 1 << 12
#: Of the free memory, what a part may take: allocators round up, libraries want room to work, others may share the device.
SHARE = 0.5
#: Bytes of a cell beside its model's: a predictor's value, twice; marks, place and estimate.
PLANE_BYTES, CELL_BYTES = 2 * 4, 24


class Forward(Protocol):
    """A model on a device; `row_bytes` is what a row holds while it is calculated, beside itself."""

    row_bytes: int

    def __call__(self, rows: Tensor) -> Tensor:
        """(n,) float32 for rows (n, k) float32."""


class _Held(NamedTuple):
    fingerprint: str
    forward: Forward


#: Models on devices, by name and device.
_HELD: dict[tuple[str, str], _Held] = {}


def predict_planes(predictor: Predictor, planes: Sequence[Floats32], device: str) -> Floats32:
    """As `Predictor.predict_planes`, for float32 planes, on a device of torch ("cuda") where model and device can.

    Products are of full float32 (no TF32); the same device gives the same bytes again, unless others leave it no room for `MOST_CELLS`.
    """
    place = placed(device) if hasattr(predictor.model, "on_device") else None
    if place is None:
        return predictor.predict_planes(planes)
    cells = MOST_CELLS
    while cells >= LEAST_CELLS:
        try:
            forward = _moved(predictor, place)
            cells = min(cells, _fitting(forward, len(planes), place))
            if cells >= LEAST_CELLS:
                return _predicted(forward, planes, place, cells)
        except RuntimeError as error:
            if not _is_full(error):
                raise
        # Only here: an error that is handled still holds the tensors of its frames.
        _give_back(place, but=predictor.name)
        cells //= 2
    _say(
        f"{predictor.name}: the memory of {device} is too small or taken; blocks that find no room are predicted on the CPU"
    )
    return predictor.predict_planes(planes)


def placed(device: str) -> torch.device | None:
    """The device that a task holds; None for one that torch does not see here."""
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        _say(
            f"this worker declares a GPU, but torch {torch.__version__} sees none: its blocks are predicted on the CPU"
        )
        return None
    return torch.device(device)


def _moved(predictor: Predictor, device: torch.device) -> Forward:
    """The model on the device: brought there once, until another of its name takes its place."""
    key = predictor.name, str(device)
    held = _HELD.get(key)
    if held is None or held.fingerprint != predictor.fingerprint:
        _HELD.pop(key, None)  # released before the other needs room
        _HELD[key] = held = _Held(predictor.fingerprint, predictor.model.on_device(device))  # type: ignore[attr-defined]
    return held.forward


def _fitting(forward: Forward, predictors: int, device: torch.device) -> int:
    """A power of two of cells that fit what is free on the device; at most `MOST_CELLS`."""
    if device.type != "cuda":
        return MOST_CELLS
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # ours, for use again
    cells = int(free * SHARE) // (forward.row_bytes + PLANE_BYTES * predictors + CELL_BYTES)
    return min(MOST_CELLS, 1 << max(cells.bit_length() - 1, 0))


def _predicted(forward: Forward, planes: Sequence[Floats32], device: torch.device, cells: int) -> Floats32:
    """float32 of the planes' common shape, part by part of about so many cells; NaN where a predictor is NaN or infinite."""
    given = [np.atleast_1d(np.asarray(plane, np.float32)) for plane in planes]
    shape = np.broadcast_shapes(*(plane.shape for plane in given))
    own = [_without_repeats(plane, len(shape)) for plane in given]
    out = np.empty(shape, np.float32)
    there: list[tuple[Index, Tensor]] = [((), torch.empty(0))] * len(own)
    with exact():
        for index in slabs(shape, cells):
            part = tuple(i if isinstance(i, slice) else slice(i, i + 1) for i in index)
            there = [_brought(plane, part, before, device) for plane, before in zip(own, there, strict=True)]
            out[part] = _estimates(forward, [plane for _, plane in there], out[part].shape).cpu().numpy()
    return out


def _without_repeats(plane: Floats32, axes: int) -> Floats32:
    """The plane with so many axes, of size 1 where it does not vary: what repeats does not travel."""
    plane = plane.reshape((1,) * (axes - plane.ndim) + plane.shape)
    return plane[tuple(slice(None) if step else slice(0, 1) for step in plane.strides)]


def _brought(
    plane: Floats32, part: tuple[slice, ...], before: tuple[Index, Tensor], device: torch.device
) -> tuple[Index, Tensor]:
    """A plane's values of a part on the device; those of the part before, where they are the same."""
    index = tuple(slice(0, 1) if size == 1 else where for where, size in zip(part, plane.shape, strict=False))
    if index == before[0]:
        return before
    return index, torch.tensor(np.ascontiguousarray(plane[index]), device=device)


def _estimates(forward: Forward, planes: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """float32 of a part of that shape, on the device: cells with all predictors are gathered, and their estimates put back."""
    known = torch.ones(shape, dtype=torch.bool, device=planes[0].device)
    for plane in planes:
        known &= plane.isfinite()
    where = known.view(-1).nonzero()[:, 0]
    rows = torch.empty((len(planes), len(where)), device=known.device)
    for row, plane in zip(rows, planes, strict=True):
        torch.index_select(plane.expand(shape).reshape(-1), 0, where, out=row)
    out = torch.full(shape, torch.nan, device=known.device)
    if len(where):
        out.view(-1)[where] = forward(rows.T)
    return out


def _is_full(error: RuntimeError) -> bool:
    """Whether an allocation failed: torch's own, or a library's, which has no type."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        word in str(error) for word in ("out of memory", "ALLOC_FAILED")
    )


def _give_back(device: torch.device, but: str) -> None:
    """Let go what is kept for use again, other models than `but` too."""
    for name, where in [key for key in _HELD if key[1] == str(device) and key[0] != but]:
        del _HELD[name, where]
    if device.type == "cuda":
        torch.cuda.empty_cache()


@cache
def _say(text: str) -> None:
    """Once in a process."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
