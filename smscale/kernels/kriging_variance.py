"""Variance of ordinary kriging at many cells and times, where the reporting stations change from time to time.

With x = (c, 1), c the covariance between a cell and the stations, and B the inverse of the ordinary kriging matrix of all
stations [[K, 1], [1', 0]], the variance from all of them is V = C(0) - x' B x. A time that lacks the stations S has

    V + |L^-1 w_S|**2,    L L' = B_SS,

w = B x being the kriging weights of all stations (the inverse of a matrix less some rows and columns, by the Schur
complement of their block): the product B x serves all times, and each adds |S| x |S| work per cell. Where fewer stations
report than are silent, those are taken directly: with K = L L' among them,

    C(0) - |L^-1 c|**2 + (1 - v . L^-1 c)**2 / (v . v),    v = L^-1 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from threadpoolctl import threadpool_info, threadpool_limits

from smscale.kernels.kriging import Covariance, Floats, Integers, SingularSystemError, factor
from smscale.kernels.sphere import pair_distance

Singles = NDArray[np.float32]
#: Indices of the points that report, and of the times at which just these do.
Pattern = tuple[Integers, Integers]
#: (m, d) points in km of the cells in some rows and columns of the grid, row by row.
Targets = Callable[[slice, slice], Floats]

#: Numbers in the largest working array, and cells of a tile at most.
TILE_NUMBERS, TILE_CELLS = 2_000_000, 8192
#: A time's factor whose condition is below this is applied in float32: its rounding is then below 1e-5 of the sill.
SINGLE_CONDITION = 50.0
#: The inverse for all stations is not trusted, and each time factored by itself, from this condition on.
INVERSE_CONDITION = 1e10


class Share(NamedTuple):
    """What the times of one pattern need: variance = start + signs . (root @ table[rows])**2.

    If `lacking`, start is the variance from all stations and table their weights w, else they are C(0) and (c, 1).
    rows : (k,); root : (r, k); signs : (r,)
    """

    times: Integers
    lacking: bool
    rows: Integers
    root: NDArray[Any]
    signs: NDArray[Any]


class System(NamedTuple):
    """Solved for all times: points (n, d) that ever report; `inverse` (n + 1, n + 1), None if nothing needs it."""

    points: Floats
    covariance: Covariance
    prior: float
    inverse: Floats | None
    shares: list[Share]


def solve(points: Floats, covariance: Covariance, k: Floats, prior: float, patterns: Iterable[Pattern]) -> System:
    """Everything that does not depend on the cell.

    Parameters
    ----------
    points : (n, d) float64, km; k : (n, n) float64, covariance among them, measurement error on the diagonal
    prior : variance of the signal, C(0)
    patterns : times that share their reporting points, as `silence_patterns` gives them
    """
    patterns = list(patterns)
    ever = np.unique(np.concatenate([np.empty(0, np.int64), *(reporting for reporting, _ in patterns)]))
    k = k[np.ix_(ever, ever)]
    whole = _bordered_inverse(k) if any(2 * reporting.size > ever.size for reporting, _ in patterns) else None
    shares = []
    for reporting, times in patterns:
        heard = np.searchsorted(ever, reporting)
        silent = np.setdiff1d(np.arange(ever.size), heard)
        if whole is not None and silent.size < heard.size:
            shares.append(_lacking(whole, silent, times))
        else:
            shares.append(_reporting(k, heard, times))
    return System(points[ever], covariance, prior, whole, shares)


def fill(out: Singles, targets: Targets, system: System) -> None:
    """Fill `out` (t, m, n) with the variance, never below 0; NaN at times without any station.

    As many tiles are computed at once as BLAS has threads, which it gives up meanwhile.
    """
    heard = np.concatenate([np.empty(0, np.int64), *(share.times for share in system.shares)])
    out[np.setdiff1d(np.arange(len(out)), heard)] = np.nan
    if not system.shares:
        return
    tiles = list(_tiles(out.shape[1], out.shape[2], len(system.points) + 1))
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    run = partial(_tile, out, targets, system)
    if threads == 1 or len(tiles) == 1:
        for tile in tiles:
            run(tile)
        return
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, tiles))


def _tile(out: Singles, targets: Targets, system: System, tile: tuple[slice, slice]) -> None:
    cells = targets(*tile)
    cross = np.ones((len(system.points) + 1, len(cells)))
    cross[:-1] = system.covariance(pair_distance(system.points, cells))
    tables, starts = {False: cross}, {False: np.full(len(cells), system.prior)}
    if system.inverse is not None:
        tables[True] = system.inverse @ cross
        starts[True] = system.prior - np.einsum("nm,nm->m", cross, tables[True])
    kinds = {(share.lacking, share.root.dtype) for share in system.shares}
    ready = {(lacking, kind): tables[lacking].astype(kind, copy=False) for lacking, kind in kinds}
    for share in system.shares:
        parts = share.root @ ready[share.lacking, share.root.dtype][share.rows]
        np.square(parts, out=parts)
        variance = starts[share.lacking] + share.signs @ parts
        out[share.times, *tile] = np.maximum(variance, 0.0).reshape(out[0, *tile].shape)


def _bordered_inverse(k: Floats) -> Floats | None:
    """(n + 1, n + 1): inverse of [[k, 1], [1', 0]]; None if `k` is too near to singular to be inverted."""
    try:
        cho, jitter = factor(k)
    except SingularSystemError:
        return None
    inverse = cho_solve(cho, np.eye(len(k)))
    if jitter > 0.0 or np.linalg.norm(k, 1) * np.linalg.norm(inverse, 1) > INVERSE_CONDITION:
        return None
    ones = inverse.sum(axis=1, keepdims=True)
    total = ones.sum()
    return np.block([[inverse - ones @ ones.T / total, ones / total], [ones.T / total, -1.0 / total]])


def _lacking(whole: Floats, silent: Integers, times: Integers) -> Share:
    root = _inverse_root(whole[np.ix_(silent, silent)])
    kind = _precision(root)
    return Share(times, True, silent, root.astype(kind), np.ones(silent.size, kind))


def _reporting(k: Floats, heard: Integers, times: Integers) -> Share:
    """The mean's part is one more square, of a row below L^-1, with the row of ones in (c, 1) for its constant."""
    root = _inverse_root(k[np.ix_(heard, heard)])
    kind = _precision(root)
    v = root.sum(axis=1)
    size = np.sqrt(v @ v)
    bordered = np.block([[root, np.zeros((heard.size, 1))], [-(v @ root) / size, 1.0 / size]])
    signs = np.append(np.full(heard.size, -1.0), 1.0)
    return Share(times, False, np.append(heard, len(k)), bordered.astype(kind), signs.astype(kind))


def _inverse_root(matrix: Floats) -> Floats:
    """L^-1 of the Cholesky factor: a product with it takes less time than a triangular solve."""
    if matrix.size == 0:
        return matrix
    (lower, _), _ = factor(matrix)
    return solve_triangular(lower, np.eye(len(matrix)), lower=True)


def _precision(root: Floats) -> type[np.floating[Any]]:
    return np.float32 if root.size == 0 or np.linalg.cond(root) < SINGLE_CONDITION else np.float64


def _tiles(rows: int, columns: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Row and column slices of at most as many cells as memory, or the cache, has room for."""
    cells = max(1, min(TILE_CELLS, TILE_NUMBERS // width))
    across = min(cells, columns)
    down = max(1, cells // max(across, 1))
    for top in range(0, rows, down):
        for left in range(0, columns, max(across, 1)):
            yield slice(top, min(top + down, rows)), slice(left, min(left + across, columns))
