"""The coarse cells around each row of a sample table, as columns for a patch network (`CNNRegressor(patch=3)`).

Columns go cell by cell: the k predictors of the row's own cell under their own names, then those of each neighbour, from north-west
row by row to south-east, as "lst[-1,+1]": one row north, one column east.

Predicting at 1 km, the centre's columns are the fine cell's, the neighbours' those of the coarse cells around the coarse cell
that holds it (`pipeline.surroundings`); where one is missing, that coarse cell's own value stands in, as here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Floats32 = NDArray[np.float32]
Indices = NDArray[np.integer]

#: What follows a predictor's name in the column of a neighbour.
OFFSET = re.compile(r"\[[+-]\d+,[+-]\d+\]$")
KEYS = ("time", "row", "col")


class Neighbourhood(NamedTuple):
    """A table with the columns of `patch_columns`, and how many of its neighbours' values (n,) the centre stands in for."""

    table: pd.DataFrame
    filled: NDArray[np.int64]


def patch_offsets(patch: int) -> list[tuple[int, int]]:
    """(rows south, columns east) of the cells of a patch of odd side: the centre, then the others row by row."""
    if patch < 1 or patch % 2 == 0:
        raise InputError(f"patch must be an odd number from 1, got {patch}")
    reach = range(-(patch // 2), patch // 2 + 1)
    return [(0, 0), *((row, col) for row in reach for col in reach if (row, col) != (0, 0))]


def patch_columns(predictors: Sequence[str], patch: int) -> list[str]:
    """Names of the columns of a patch of `patch` x `patch` cells, cell by cell, the centre first under the plain names."""
    names = list(predictors)
    return names + [f"{name}[{row:+d},{col:+d}]" for row, col in patch_offsets(patch)[1:] for name in names]


def own_name(column: str) -> str:
    """The predictor that a column of `patch_columns` holds of some cell."""
    return OFFSET.sub("", column)


def around(planes: Floats32, at: tuple[Indices, Indices, Indices], patch: int) -> Floats32:
    """Values (n, patch^2 - 1, k) of the cells around n cells, in the order of `patch_offsets`; NaN beyond the grid.

    planes (k, time, rows, cols);  at : step, row and col (n,) of the cells in the middle
    """
    reach = patch // 2
    step, row, col = at
    padded = np.pad(planes, [(0, 0), (0, 0), (reach, reach), (reach, reach)], constant_values=np.nan)
    cells = [padded[:, step, row + reach + south, col + reach + east] for south, east in patch_offsets(patch)[1:]]
    return np.stack(cells).transpose(2, 0, 1) if cells else np.empty((len(step), 0, len(planes)), np.float32)


def neighbourhood(table: pd.DataFrame, predictors: Sequence[str], patch: int) -> Neighbourhood:
    """The sample table with the predictors of the neighbouring cells at the same time added.

    Parameters
    ----------
    table : one row for each time, row and col; a neighbour that it lacks (or that is NaN) takes the centre's value
    predictors : k columns of the table
    patch : odd side of the square, in coarse cells; 1 adds nothing

    Raises
    ------
    InputError : a column is missing, two rows share a time, row and col, or patch is even.
    """
    import pandas as pd

    absent = [name for name in (*KEYS, *predictors) if name not in table]
    if absent:
        raise InputError(f"the table lacks {', '.join(absent)}, which a patch of {patch} cells needs")
    if table.duplicated(list(KEYS)).any():
        raise InputError("two rows of the table share time, row and col; a patch needs one row for each")
    index = pd.MultiIndex.from_frame(table[list(KEYS)])
    values = table[list(predictors)].to_numpy(np.float64)
    filled = np.zeros(len(table), np.int64)
    added = []
    for south, east in patch_offsets(patch)[1:]:
        wanted = pd.MultiIndex.from_arrays([table["time"], table["row"] + south, table["col"] + east])
        at = index.get_indexer(wanted)
        found = np.where((at >= 0)[:, None], values[at], np.nan)
        missing = np.isnan(found)
        filled += missing.sum(axis=1)
        added.append(np.where(missing, values, found))
    names = patch_columns(predictors, patch)[len(predictors) :]
    columns = pd.DataFrame(np.hstack(added), index=table.index, columns=names) if added else table[[]]
    wide = pd.concat([table, columns], axis=1)
    wide.attrs = dict(table.attrs)
    return Neighbourhood(wide, filled)
