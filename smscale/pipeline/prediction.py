"""Models on a part of the fine cube: read, match in time, predict, and say of every cell why it is what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from smscale import blocks, schema, store
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.models import Predictor, load_model
from smscale.models.cnn.patch import own_name
from smscale.pipeline.run import Run
from smscale.pipeline.surroundings import Surroundings
from smscale.places import folder_to_read, place
from smscale.schema import Status
from smscale.sources.outline import inside, read_outline
from smscale.workspace import COORDINATES, Workspace, plane_values

Region = tuple[slice, slice, slice]
#: Row and column of some cells of a window.
Cells = tuple[np.ndarray, np.ndarray]

#: Models that predict on a GPU where a task holds one; trees stay on the CPU.
GPU_MODELS = {"gabp", "cnn"}
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
        planes = {name: plane_values(workspace, name, steps, self.never_later, *region[1:]) for name in names}
        beyond = np.zeros(grid.shape, bool)
        if self.outline is not None:
            beyond = ~inside(_polygons(self.outline, self.drawn), grid)
        lat, lon = grid.lat[:, None], grid.lon[None, :]
        if cells is not None:
            planes = {name: _picked(plane, grid.shape, cells) for name, plane in planes.items()}
            beyond, lat, lon = beyond[cells][None], grid.lat[cells[0]][None], grid.lon[cells[1]][None]
        missing = _missing(planes, (steps.sizes["time"], *beyond.shape), self.excluded)
        missing[:, beyond] |= np.uint32(Status.OUTSIDE_REGION)
        for name, predictor in predictors.items():
            around = _surroundings(workspace, steps, lat, lon, predictor)
            yield name, *_predict(predictor, planes, missing, self.bounds, around)


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


def _picked(plane: np.ndarray, shape: tuple[int, int], cells: Cells) -> np.ndarray:
    """(t | 1, 1, k) of a plane broadcastable to (time, *shape)."""
    return np.broadcast_to(plane, (len(plane), *shape))[:, None, cells[0], cells[1]]


def _missing(planes: dict[str, np.ndarray], shape: tuple[int, ...], excluded: Sequence[int]) -> np.ndarray:
    """Status bits (time, lat, lon) of what keeps a model from having a value."""
    status = np.zeros(shape, np.uint32)
    if excluded:
        status |= np.where(
            np.isin(planes["land_cover"], list(excluded)), np.uint32(Status.WATER_ICE_URBAN), np.uint32(0)
        )
    for name, plane in planes.items():
        bit = np.uint32(MISSING.get(name, Status.PREDICTOR_MISSING))
        status |= np.where(np.isfinite(plane), np.uint32(0), bit)
    return status


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
    planes: dict[str, np.ndarray],
    missing: np.ndarray,
    bounds: tuple[float, float],
    around: Surroundings | None,
) -> tuple[np.ndarray, np.ndarray]:
    """A model's values, NaN where something is missing, and their status."""
    hide = np.where(missing != 0, np.float32(np.nan), np.float32(0))
    given = [
        planes[name] + hide if i == 0 else planes[name] for i, name in enumerate(predictor.features) if name in planes
    ]
    if around is None:
        values, outside, filled = _values(predictor, given), predictor.outside_planes(given), None
    else:
        given = [np.broadcast_to(plane, missing.shape) for plane in given]
        values, outside, filled = _predict_patches(predictor, given, around)
    status = missing.copy()
    valid = np.isfinite(values)
    if filled is not None:
        status[filled & valid] |= np.uint32(Status.NEIGHBOURS_FILLED)
    status[outside & valid] |= np.uint32(Status.OUTSIDE_TRAINING_RANGE)
    clipped = valid & ((values < bounds[0]) | (values > bounds[1]))
    status[clipped] |= np.uint32(Status.CLIPPED)
    return np.clip(values, *bounds).astype(np.float32), status


def _predict_patches(
    predictor: Predictor, given: list[np.ndarray], around: Surroundings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step by step, since a patch multiplies the planes: values, and where a predictor is outside its training range or stood in for."""
    found = []
    for step in range(len(given[0])):
        own = [plane[step] for plane in given]
        neighbours, filled = around.at(step, own)
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
