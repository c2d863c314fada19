"""Variance of ordinary kriging at many cells and times, where the reporting stations change from time to time.

With x = (c, 1), c the covariance between a cell and the stations, and B the inverse of the ordinary kriging matrix of all
stations [[K, 1], [1', 0]], the variance from all of them is V = C(0) - x' B x. A time that lacks the stations S has

    V + |L^-1 w_S|**2,    L L' = B_SS,

w = B x being the kriging weights of all stations (the inverse of a matrix less some rows and columns, by the Schur
complement of their block): the product B x serves all times, and each adds |S| x |S| work per cell. Where fewer stations
report than are silent, those are taken directly: with K = L L' among them,

    C(0) - |L^-1 c|**2 + (1 - v . L^-1 c)**2 / (v . v),    v = L^-1 1.

All this is quadratic in x. On a regular grid few stations are near a tile: with x = f + sum over them of c_j e_j, the part of f alone
and the factors of each c_j are smooth in the tile, and are computed at its nodes only (`node_tiles`); c_j is each cell's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular

from smscale.kernels.kriging import Covariance, Floats, Integers, SingularSystemError, factor
from smscale.kernels.node_tiles import NODES, Tiles, groups, tiles_of, within
from smscale.kernels.sphere import grid_points, pair_distance
from smscale.kernels.threads import in_threads

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
#: Times that are computed at once at the nodes of a tile, and that are finished at once: bounds memory.
BATCH, SLAB = 16, 16
#: Columns of the grid that are finished at once: bounds memory.
COLUMNS = 512
#: Stations near a tile from which on it is computed cell by cell.
MANY = 8
#: Parts at nodes so many times as large as the variance cancel: interpolation and float32 would show it.
CANCELLING = 8.0


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
    """Solved for all times: points (n, d) that ever report, of all that there are (p, d); `inverse` (n + 1, n + 1), None if nothing
    needs it."""

    every: Floats
    ever: Integers
    covariance: Covariance
    prior: float
    inverse: Floats | None
    shares: list[Share]

    @property
    def points(self) -> Floats:
        """(n, d) that ever report."""
        return self.every[self.ever]

    @property
    def nbytes(self) -> int:
        return sum(share.root.nbytes for share in self.shares) + (0 if self.inverse is None else self.inverse.nbytes)


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
    return System(points, ever, covariance, prior, whole, shares)


def fill(out: Singles, targets: Targets, system: System) -> None:
    """Fill `out` (t, m, n) with the variance, never below 0; NaN at times without any station.

    As many tiles are computed at once as BLAS has threads, which it gives up meanwhile.
    """
    heard = np.concatenate([np.empty(0, np.int64), *(share.times for share in system.shares)])
    out[np.setdiff1d(np.arange(len(out)), heard)] = np.nan
    if not system.shares or out.size == 0:
        return
    tiles = list(_tiles(out.shape[1], out.shape[2], len(system.ever) + 1))
    in_threads(partial(_tile, out, targets, system), tiles, uses_blas=True)


def fill_grid(
    out: Singles, lon: Floats, lat: Floats, system: System, kink: float = np.inf, times: Integers | None = None
) -> None:
    """As `fill` at lat (m,) and lon (n,) degrees, each ascending or descending, of a grid that `node_tiles.suits`.

    Parameters
    ----------
    kink : a distance (km) at which the covariance is not smooth, beside 0
    times : (t,) which of a longer `out` (s, m, n) are filled, if not all
    """
    if times is not None:
        shares = [share._replace(times=times[share.times]) for share in system.shares]
        system = system._replace(shares=shares)
    heard = np.concatenate([np.empty(0, np.int64), *(share.times for share in system.shares)])
    out[np.setdiff1d(np.arange(len(out)) if times is None else times, heard)] = np.nan
    if not system.shares or out.size == 0:
        return
    tiles, batches = tiles_of(lon, lat, system.every), _batches(system)

    def strip(row: int) -> None:
        for group in groups(tiles.columns, COLUMNS):
            _strip(out, tiles, row, group, system, batches, kink)

    in_threads(strip, range(len(tiles.rows)), uses_blas=True)


class Batch(NamedTuple):
    """Some shares (numbers (b,) in the system) of one kind, padded to one size: rows (b, k), roots (b, r, k), signs (b, r)."""

    numbers: Integers
    lacking: bool
    rows: Integers
    roots: NDArray[Any]
    signs: NDArray[Any]


def _batches(system: System) -> list[Batch]:
    """Shares of like size together; what is padded meets a row of zeros."""
    kinds: dict[tuple[bool, str], list[int]] = {}
    for number, share in enumerate(system.shares):
        kinds.setdefault((share.lacking, share.root.dtype.str), []).append(number)
    found = []
    for (lacking, kind), members in kinds.items():
        members.sort(key=lambda number: system.shares[number].rows.size)
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            shares = [system.shares[number] for number in part]
            k, r = max(share.rows.size for share in shares), max(share.signs.size for share in shares)
            rows = np.full((len(part), k), len(system.ever) + 1)
            roots, signs = np.zeros((len(part), r, k), kind), np.zeros((len(part), r), kind)
            for i, share in enumerate(shares):
                rows[i, : share.rows.size], signs[i, : share.signs.size] = share.rows, share.signs
                roots[i, : share.root.shape[0], : share.rows.size] = share.root
            found.append(Batch(np.array(part), lacking, rows, roots, signs))
    return found


class NearPart(NamedTuple):
    """What q stations near a tile add: sum over j of c_j (linear_j + sum over k of square_jk c_k).

    linear : (s, q, NODES, cells) at nodes along latitude and cells along longitude; square : (s, q, q); cross : (q, rows, cells)
    """

    cells: slice
    linear: Singles
    square: Singles
    cross: Singles


def _strip(
    out: Singles, tiles: Tiles, row: int, group: range, system: System, batches: list[Batch], kink: float
) -> None:
    """Some neighbouring tiles between two parallels."""
    weights, rows = tiles.down[row].astype(np.float32), tiles.rows[row].cells
    cells = slice(tiles.columns[group[0]].cells.start, tiles.columns[group[-1]].cells.stop)
    far = np.zeros((len(system.shares), NODES, cells.stop - cells.start), np.float32)
    near, exact = [], []
    for number in group:
        column = tiles.columns[number].cells
        part = _at_nodes(far[:, :, within(column, cells)], tiles, row, number, system, batches, kink)
        if part is None:
            exact.append(column)
        elif len(part.cross):
            near.append(part)
    for start in range(0, len(system.shares), SLAB):
        slab = slice(start, start + SLAB)
        tile = np.matmul(weights, far[slab])
        for part in near:
            _add_near(tile[:, :, within(part.cells, cells)], weights, part.linear[slab], part.square[slab], part.cross)
        np.maximum(tile, 0.0, out=tile)
        for share, field in zip(system.shares[slab], tile, strict=True):
            out[share.times, rows, cells] = field
    for column in exact:
        for some in _pieces(rows, column, len(system.ever) + 1):
            _tile(out, lambda y, x: grid_points(tiles.lon[x], tiles.lat[y]), system, (some, column))


def _at_nodes(
    far: Singles, tiles: Tiles, row: int, column: int, system: System, batches: list[Batch], kink: float
) -> NearPart | None:
    """The far part of all shares into `far` (s, NODES, cells), and the near one; None where the tile must be computed cell by cell."""
    seen = tiles.seen(row, column)
    close = seen.near(kink)[system.ever]
    near = np.flatnonzero(close)
    if near.size >= MANY:
        return None
    n, q, nodes = len(system.ever), near.size, NODES**2
    # Far covariances and the 1 at the nodes, and a unit column for each near station; a row of zeros for what is padded.
    x = np.zeros((n + 2, nodes + q))
    x[:n, :nodes][~close] = system.covariance(seen.distance[:, system.ever[~close]]).T
    x[n, :nodes] = 1.0
    x[near, nodes + np.arange(q)] = 1.0
    tables, base = {False: x}, {False: np.zeros((1 + q, nodes + q))}
    if system.inverse is not None:
        tables[True] = np.zeros_like(x)
        tables[True][:-1] = system.inverse @ x[:-1]
        base[True] = _quadratic(x, tables[True], nodes)
    fields, squares = np.empty((len(system.shares), 1 + q, nodes)), np.empty((len(system.shares), q, q))
    for batch in batches:
        parts = batch.roots @ tables[batch.lacking].astype(batch.roots.dtype, copy=False)[batch.rows]
        signed = parts * batch.signs[:, :, None]
        whole = np.empty((len(parts), 1 + q, nodes + q))
        whole[:, 0] = np.einsum("brm,brm->bm", signed, parts)
        whole[:, 1:] = signed[:, :, nodes:].swapaxes(1, 2) @ parts
        whole -= base[batch.lacking]
        fields[batch.numbers], squares[batch.numbers] = whole[:, :, :nodes], whole[:, 1:, nodes:]
    fields[:, 0] += system.prior
    fields[:, 1:] *= 2.0
    sizes = [
        np.abs(fields[:, 0]).max(),
        *(np.abs(part).max(initial=0.0) * system.prior for part in (fields[:, 1:], squares * system.prior)),
    ]
    if not max(sizes) <= CANCELLING * system.prior:
        return None
    interpolated = fields.reshape(-1, NODES) @ tiles.along[column].T
    interpolated = interpolated.reshape(len(fields), 1 + q, NODES, -1).astype(np.float32)
    far[...] = interpolated[:, 0]
    cells, cross = tiles.columns[column].cells, np.empty((0, 0, 0), np.float32)
    if q:
        points = system.every[system.ever[near]]
        cross = system.covariance(pair_distance(points, tiles.cells(row, column))).astype(np.float32)
        cross = cross.reshape(q, -1, cells.stop - cells.start)
    return NearPart(cells, np.ascontiguousarray(interpolated[:, 1:]), squares.astype(np.float32), cross)


def _quadratic(x: Floats, table: Floats, nodes: int) -> Floats:
    """(1 + q, nodes + q): x'Bx at the nodes, and the products of the near stations' columns with all, B x being `table`."""
    return np.vstack([np.einsum("nm,nm->m", x, table), x[:, nodes:].T @ table])


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add_near(out, weights, linear, square, cross):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The near part onto `out` (s, r, c), with weights (r, NODES) along latitude."""
    line = np.empty(out.shape[2], np.float32)
    for s in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(cross.shape[0]):
                line[:] = 0.0
                for node in range(weights.shape[1]):
                    share, part = weights[i, node], linear[s, j, node]
                    for c in range(line.size):
                        line[c] += share * part[c]
                for k in range(cross.shape[0]):
                    share, part = square[s, j, k], cross[k, i]
                    for c in range(line.size):
                        line[c] += share * part[c]
                for c in range(line.size):
                    out[s, i, c] += cross[j, i, c] * line[c]


def _pieces(rows: slice, columns: slice, width: int) -> Iterator[slice]:
    """Rows of a tile, as many at once as memory has room for."""
    step = max(1, min(TILE_CELLS, TILE_NUMBERS // width) // max(1, columns.stop - columns.start))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _tile(out: Singles, targets: Targets, system: System, tile: tuple[slice, slice]) -> None:
    cells = targets(*tile)
    cross = np.ones((len(system.ever) + 1, len(cells)))
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
    down = max(1, cells // across)
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            yield slice(top, min(top + down, rows)), slice(left, min(left + across, columns))
