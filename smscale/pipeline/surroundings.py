"""What a patch network sees beside a cell: the coarse cells around it, for training samples and for blocks of the fine grid.

A neighbour that is not there, or has no value, is as the coarse cell in the middle; where that has none either, as the fine
cell itself. So a patch never makes a hole in a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import schema
from smscale.errors import InputError, RecipeError
from smscale.features.match import coarse_field
from smscale.grid import grid_of
from smscale.models.cnn.patch import Neighbourhood, around, neighbourhood, patch_columns
from smscale.workspace import Workspace

#: Steps of the coarse cube that are held at once.
STEPS = 64


def patch_of(name: str, settings: Mapping[str, Any]) -> int:
    """The side of the square of coarse cells that a recipe's model looks at; 1 is the cell alone."""
    if "patch" in dict(dict(settings.get("search") or {}).get("space") or {}):
        raise RecipeError(f"models.{name}.search.space: patch cannot be searched; set models.{name}.patch")
    return int(settings.get("patch", 1))


def widened(workspace: Workspace, table: pd.DataFrame, predictors: Sequence[str], patch: int) -> Neighbourhood:
    """The samples with the predictors of the coarse cells around each: columns of `models.cnn.patch.patch_columns`.

    They come from the coarse cube, which knows cells that gave no sample; a table of one's own is its own neighbourhood. `filled`
    counts the values for which the sample's own cell stands in.
    """
    if not workspace.cube.exists():
        return neighbourhood(table, predictors, patch)
    coarse = workspace.coarse
    columns = patch_columns(predictors, patch)
    own = table[list(predictors)].to_numpy(np.float32)
    step = np.searchsorted(coarse["time"].values, table["time"].to_numpy())
    row, col = table["row"].to_numpy(), table["col"].to_numpy()
    added = np.empty((len(table), len(columns) - len(predictors)), np.float32)
    filled = np.zeros(len(table), np.int64)
    for start in range(0, coarse.sizes["time"], STEPS):
        here = np.flatnonzero((step >= start) & (step < start + STEPS))
        if here.size:
            planes = _coarse_planes(coarse.isel(time=slice(start, start + STEPS)), predictors)
            found = around(planes, (step[here] - start, row[here], col[here]), patch)
            filled[here] = np.isnan(found).sum(axis=(1, 2))
            added[here] = _stood_in(found, own[here]).reshape(here.size, -1)
    wide = pd.DataFrame(added, index=table.index, columns=columns[len(predictors) :])
    return Neighbourhood(pd.concat([table, wide], axis=1), filled)


class Surroundings:
    """The coarse cells around those of some fine cells.

    steps (t,) overpass steps; lat, lon: centres of the fine cells in degrees, broadcast to their planes (m, n)
    """

    def __init__(
        self,
        workspace: Workspace,
        steps: xr.Dataset,
        lat: np.ndarray,
        lon: np.ndarray,
        predictors: Sequence[str],
        patch: int,
    ):
        coarse = workspace.coarse.sel(time=steps["time"].values)
        grid = grid_of(coarse)
        self.predictors, self.patch = list(predictors), patch
        self.planes = _coarse_planes(coarse, predictors)
        row = grid.index(np.full(lat.shape, grid.lon[0]), lat)[0]
        col = grid.index(lon, np.full(lon.shape, grid.lat[0]))[1]
        if min(row.min(), col.min()) < 0:
            raise InputError("the coarse grid does not cover the fine grid; remove the workspace and run it again")
        # Coarse cells first, then where the fine ones lie: few numbers for many.
        width = grid.shape[1]
        cells, self.place = np.unique(row * width + col, return_inverse=True)
        self.row, self.col = cells // width, cells % width

    def at(self, step: int, own: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Planes (m, n) of the neighbours at one step, and where a value stands in for a neighbour's (m, n) bool.

        `own` are the planes of the fine cells, by predictor.
        """
        found = around(self.planes, (np.full(self.row.size, step), self.row, self.col), self.patch)
        centre = self.planes[:, step, self.row, self.col].T
        place = self.place.reshape(own[0].shape)
        fine = _stood_in(found, centre).reshape(self.row.size, -1)[place]
        names = len(self.predictors)
        planes = [np.where(np.isnan(plane), own[i % names], plane) for i, plane in enumerate(np.moveaxis(fine, -1, 0))]
        lacking = np.asarray(np.isnan(found).any(axis=(1, 2)))
        return planes, lacking[place]


def _stood_in(found: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Neighbours (n, cells, k), the centre's values (n, k) where they are NaN."""
    return np.where(np.isnan(found), centre[:, None, :], found)


def _coarse_planes(coarse: xr.Dataset, predictors: Sequence[str]) -> np.ndarray:
    """(k, time, lat, lon) float32 of the predictors of some steps; NaN where unknown."""
    shape = (coarse.sizes["time"], coarse.sizes["lat"], coarse.sizes["lon"])
    planes = np.empty((len(predictors), *shape), np.float32)
    for plane, name in zip(planes, predictors, strict=True):
        values = coarse_field(coarse, name, shape)
        plane[...] = values
        if name == "land_cover":
            plane[values == schema.LAND_COVER_FILL] = np.nan
    return planes
