"""Models on a part of the fine cube: read, match in time, predict, and say of every cell why it is what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from smscale import blocks, schema, store
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.kernels import marks
from smscale.models import Predictor, load_model
from smscale.models.cnn.patch import own_name
from smscale.pipeline.run import Run
from smscale.pipeline.surroundings import Surroundings
from smscale.places import folder_to_read, place
from smscale.schema import Status
from smscale.sources.outline import inside, read_outline
from smscale.workspace import COORDINATES, Workspace, plane_index, plane_values

Region = tuple[slice, slice, slice]
#: Row and column of some cells of a window.
Cells = tuple[np.ndarray, np.ndarray]

#: Models that predict on a GPU where a task holds one; trees stay on the CPU.
GPU_MODELS = {"gabp", "cnn"}
#: Models that take every step by itself; trees share what neighbouring steps have in common, and are given all of a block.
STEP_BY_STEP = GPU_MODELS
#: Cadences whose planes serve many steps.
COMPOSITES = ("eight_day", "sixteen_day")
#: Bits without a value, by predictor: LST is missing under cloud, all else for want of data.
MISSING = {"lst": Status.NO_LST}


@dataclass(frozen=True)
class Prediction:
    """What every block knows: names and settings. Models, outline and cube are read by each worker, by reference.

    trained : fingerprint of the stage that made the models
    drawn : fingerprint of the outline
    """

    root: str
    models: tuple[str, ...]
    trained: str
    excluded: tuple[int, ...]
    bounds: tuple[float, float]
    never_later: bool
    outline: str | None
    drawn: str

    @classmethod
    def of(cls, run: Run) -> Prediction:
        """That of a run whose models are trained."""
        recipe = run.recipe
        outline = str(recipe.resolve(recipe.outline)) if recipe.outline else None
        return cls(
            str(run.workspace.root),
            tuple(recipe.models),
            run.upstream("train"),
            recipe.match.exclude_land_cover,
            recipe.bounds,
            recipe.modis.never_later,
            outline,
            store.fingerprint(read_outline(outline)) if outline else "",
        )

    @property
    def gpu(self) -> bool:
        """Whether a block of these models can use a GPU."""
        return not GPU_MODELS.isdisjoint(self.models)

    def predict(
        self, models: Sequence[str], grid: Grid, region: Region, cells: Cells | None = None
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Each model's name, values and status on a window, one model after another.

        Parameters
        ----------
        grid : the window's cells (m, n); region: the window as steps, rows and columns of the cube
        cells : only these k cells of the window

        Returns
        -------
        values float32 and status uint32, (t, m, n), or (t, 1, k) of `cells`
        """
        workspace = _workspace(self.root, self.trained)
        steps = workspace.steps.isel(time=region[0])
        predictors = {name: _model(str(workspace.model(name)), self.trained) for name in models}
        names = list(dict.fromkeys(own_name(n) for p in predictors.values() for n in (*p.features, "land_cover")))
        held = {name: _held(workspace, name, steps, self.never_later, *region[1:]) for name in names}
        beyond = np.zeros(grid.shape, bool)
        if self.outline is not None:
            beyond = ~inside(_polygons(self.outline, self.drawn), grid)
        lat, lon = grid.lat[:, None], grid.lon[None, :]
        if cells is not None:
            held = {name: _picked(planes, grid.shape, cells) for name, planes in held.items()}
            beyond, lat, lon = beyond[cells][None], grid.lat[cells[0]][None], grid.lon[cells[1]][None]
        shape = (steps.sizes["time"], *beyond.shape)
        for name, predictor in predictors.items():
            around = _surroundings(workspace, steps, lat, lon, predictor)
            values, status = np.empty(shape, np.float32), np.empty(shape, np.uint32)
            whole = cells is not None or predictor.kind not in STEP_BY_STEP
            for run in [slice(0, shape[0])] if whole else _runs(held, shape[0]):
                planes = {name: plane.at(run) for name, plane in held.items()}
                still = _mark_missing(status[run], planes, beyond, self.excluded)
                _predict(predictor, planes, still, self.bounds, around, run.start, values[run], status[run])
            yield name, values, status


@lru_cache(maxsize=2)
def _workspace(root: str, fingerprint: str) -> Workspace:
    """The cube as its stages left it, opened once by each worker."""
    return Workspace.at(root)


@lru_cache(maxsize=8)
def _model(folder: str, fingerprint: str) -> Predictor:
    """A trained model, read once by each worker.

    Raises
    ------
    InputError
        for a model of predictors that no cube has.
    """
    with folder_to_read(place(folder)) as here:
        model = load_model(here)
    unknown = sorted({own_name(name) for name in model.features} - {*COORDINATES, *schema.VARIABLES})
    if unknown:
        raise InputError(
            f"{folder}: the model was trained on {', '.join(unknown)}, which the cube does not have: train it in this run (--only train)"
        )
    return model


@lru_cache(maxsize=2)
def _polygons(outline: str, drawn: str) -> list[dict[str, Any]]:
    """The region's outline, read once by each worker."""
    return read_outline(outline)


class Held(NamedTuple):
    """One predictor on a window: its planes (p, m | 1, n | 1), each once, and which of them each step has (t,)."""

    planes: np.ndarray
    which: np.ndarray

    def at(self, steps: slice) -> np.ndarray:
        """(t, m | 1, n | 1) of some steps, or (1, m | 1, n | 1) where all have the same."""
        which = self.which[steps]
        first, last = int(which[0]), int(which[-1])
        if (which == first).all():
            return self.planes[first : first + 1]
        return self.planes[first : last + 1] if (np.diff(which) == 1).all() else self.planes[which]


def _held(workspace: Workspace, name: str, steps: xr.Dataset, never_later: bool, rows: slice, cols: slice) -> Held:
    """A predictor's planes, read once each."""
    which = first = np.arange(steps.sizes["time"])
    composite = name in schema.VARIABLES and schema.VARIABLES[name].cadence in COMPOSITES
    if composite or name == "land_cover" or name in schema.FRACTIONS:
        _, first, which = np.unique(
            plane_index(workspace, name, steps, never_later), return_index=True, return_inverse=True
        )
    planes = plane_values(workspace, name, steps.isel(time=first), never_later, rows, cols)
    return Held(planes, which if len(planes) > 1 else np.zeros_like(which))


def _picked(held: Held, shape: tuple[int, int], cells: Cells) -> Held:
    """Of some cells of a window (m, n): planes (p, 1, k)."""
    return Held(np.broadcast_to(held.planes, (len(held.planes), *shape))[:, None, cells[0], cells[1]], held.which)


def _runs(held: Mapping[str, Held], steps: int) -> list[slice]:
    """Runs of steps, in each of which every composite is one plane."""
    cuts = {0, steps}
    for planes, which in held.values():
        if 1 < len(planes) < steps:
            cuts.update((np.flatnonzero(np.diff(which)) + 1).tolist())
    return [slice(start, stop) for start, stop in pairwise(sorted(cuts))]


def _mark_missing(
    status: np.ndarray, planes: Mapping[str, np.ndarray], beyond: np.ndarray, excluded: Sequence[int]
) -> np.ndarray:
    """Fill status (t, m, n) with the bits of what keeps a model from having a value.

    Returns
    -------
    (t | 1, m, n) of these, those of what does not change within the steps
    """
    still = np.where(beyond, np.uint32(Status.OUTSIDE_REGION), np.uint32(0))[None]
    if excluded:
        where = np.isin(planes["land_cover"], list(excluded))
        still = still | np.where(where, np.uint32(Status.WATER_ICE_URBAN), np.uint32(0))
    moving = {}
    for name, plane in planes.items():
        bit = np.uint32(MISSING.get(name, Status.PREDICTOR_MISSING))
        if plane.shape == status.shape and len(plane) > 1:
            moving[name] = plane, bit
        elif not np.isfinite(plane).all():
            still = still | np.where(np.isfinite(plane), np.uint32(0), bit)
    status[...] = still
    for plane, bit in moving.values():
        marks.mark_missing(status, plane, bit)
    return still


def _surroundings(
    workspace: Workspace, steps: xr.Dataset, lat: np.ndarray, lon: np.ndarray, predictor: Predictor
) -> Surroundings | None:
    """The coarse cells around the fine ones, for a model that looks at them."""
    own = list(dict.fromkeys(map(own_name, predictor.features)))
    patch = math.isqrt(len(predictor.features) // len(own))
    if patch == 1:
        return None
    lat, lon = np.broadcast_arrays(lat, lon)
    return Surroundings(workspace, steps, lat, lon, own, patch)


def _predict(
    predictor: Predictor,
    planes: Mapping[str, np.ndarray],
    still: np.ndarray,
    bounds: tuple[float, float],
    around: Surroundings | None,
    first: int,
    values: np.ndarray,
    status: np.ndarray,
) -> None:
    """A model's values, NaN where something is missing, and the rest of their status, of steps from the `first` on.

    `still` are marks of cells that need not be looked at.
    """
    hide = np.where(still != 0, np.float32(np.nan), np.float32(0))
    given = [
        planes[name] + hide if i == 0 else planes[name] for i, name in enumerate(predictor.features) if name in planes
    ]
    if around is None:
        found, outside, filled = _values(predictor, given), predictor.outside_planes(given), None
    else:
        given = [np.broadcast_to(plane, status.shape) for plane in given]
        found, outside, filled = _predict_patches(predictor, given, around, first)
    marks.settle(found, outside, filled, bounds, values, status)


def _predict_patches(
    predictor: Predictor, given: list[np.ndarray], around: Surroundings, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step by step, since a patch multiplies the planes: values, and where a predictor is outside its training range or stood in for."""
    found = []
    for step in range(len(given[0])):
        own = [plane[step] for plane in given]
        neighbours, filled = around.at(first + step, own)
        seen = [*own, *neighbours]
        found.append((_values(predictor, seen), predictor.outside_planes(seen), filled))
    values, outside, stood_in = (np.stack(parts) for parts in zip(*found, strict=True))
    return values, outside, stood_in


def _values(predictor: Predictor, planes: Sequence[np.ndarray]) -> np.ndarray:
    """What a model says of planes, calculated where the running task may."""
    device = blocks.device()
    if device == "cpu":
        return predictor.predict_planes(planes)
    from smscale.models import on_device  # loads torch

    return on_device.predict_planes(predictor, planes, device)
