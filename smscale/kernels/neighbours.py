"""The nearest reporting points of every cell of a grid, found tile by tile, for many columns (times) at once.

All cells of a small tile have their nearest points among the few that are nearest to its middle, give or take the
diagonal of the tile: only among those few, its candidates, a cell's neighbours are sought (`neighbour_ranks`). Python finds the
candidates of a chunk of tiles; compiled code then does one tile after the other, whose arrays stay in the processor's
cache. A set of neighbours is what it is whatever the tile, so that a cell's value does not depend on the grid that is
asked for with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.grid import EARTH_RADIUS_KM
from smscale.kernels import radial as rad
from smscale.kernels.neighbour_ranks import RANKED, find_sets, rank
from smscale.kernels.radial import NODES, SLACK, Radial
from smscale.kernels.sphere import COLOCATED
from smscale.kernels.threads import in_threads

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
#: Indices of the points that report, and of the columns (times) at which just these do.
Pattern = tuple[Integers, Integers]

#: Longest side of a tile, cells, and its share of the distance to the last neighbour, about.
SIDE, SHARE = 32, 0.5
#: Distances that a chunk of tiles has, about.
CHUNK_NUMBERS = 1_000_000
#: A tile of fewer cells takes a function for each of them, not a polynomial.
WORTH = 4 * NODES
#: Candidates that times with different silence share at most; where more would be needed, each pattern looks for its own.
SHARED = 256
#: How many standard deviations of a negative binomial the ranks that times share reach beyond their mean.
SPREAD = 4.0
#: In place of where a candidate's weights are taken from.
LINE, SQUARE = -1, -2


def silence_patterns(values: Floats) -> Iterator[Pattern]:
    """Columns that share the same reporting points: pairs (points, columns) of indices, columns without any point left out.

    Parameters
    ----------
    values : (n, t) float64, NaN where silent
    """
    present = np.isfinite(values)
    packed = np.packbits(present, axis=0)
    _, first, label = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(label.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(label.ravel(), minlength=first.size))
    for pattern, columns in zip(first, np.split(order, ends[:-1]), strict=True):
        points = np.flatnonzero(present[:, pattern])
        if points.size:
            yield points, columns


def nearest_points(tree: cKDTree, targets: Floats, count: int) -> tuple[Floats, Integers]:
    """Distances and numbers (m, count) of the points nearest to each target, those equally far by number."""
    asked = min(count + 1, tree.n)
    distance, index = tree.query(targets, k=np.arange(1, asked + 1))
    while asked < tree.n and (distance[:, -1] == distance[:, count - 1]).any():
        asked = min(2 * asked, tree.n)
        distance, index = tree.query(targets, k=np.arange(1, asked + 1))
    tied = np.flatnonzero((distance[:, 1:] == distance[:, :-1]).any(axis=1))
    order = np.lexsort((index[tied], distance[tied]), axis=-1)
    index[tied] = np.take_along_axis(index[tied], order, axis=1)
    return distance[:, :count], index[:, :count]


class Cells(NamedTuple):
    """A grid: lon (n,) and lat (m,) degrees; height (m, n) in units of 1 / `rise` km, used if points have four coordinates."""

    lon: Floats
    lat: Floats
    height: Floats | None = None
    rise: float = 0.0


class Axes(NamedTuple):
    """`Cells` as compiled code wants them."""

    cos_lon: Floats
    sin_lon: Floats
    cos_lat: Floats
    sin_lat: Floats
    height: Floats
    rise: float


class Silence(NamedTuple):
    """Patterns: reporting (p, n) bool; needed (p,): size of their sets; columns (c,): of `values` (n, t), pattern after pattern,
    which start at first (p + 1,)."""

    values: Floats
    reporting: NDArray[np.bool_]
    needed: Integers
    columns: Integers
    first: Integers


class Group(NamedTuple):
    """Points (n, d) and patterns of silence that share candidates; depth: ranks that are certain in every cell."""

    points: Floats
    tree: cKDTree
    depth: int
    silence: Silence

    def only(self, pattern: int) -> Group:
        """One pattern, among its own points."""
        silence = self.silence
        points = np.flatnonzero(silence.reporting[pattern])
        columns = silence.columns[silence.first[pattern] : silence.first[pattern + 1]]
        own = [(np.arange(points.size), columns)]
        return _group(self.points[points], silence.values[points], own, silence.needed[pattern])


class Chunk(NamedTuple):
    """Tiles with their candidates, one after the other.

    tiles (p, 4): first and last + 1 row, first and last + 1 column; middle (p, d); reach (p,): every point nearer to the middle
    is a candidate; radius (p,): no cell is further from the middle; candidates (c,): points, ascending in each tile, which start at
    first (p + 1,); away (c,): their distance from the middle; centre, scale (c,), coefficients (c, q): polynomial of the weight;
    taken: weights of candidates whose polynomial is not good, for each cell of their tile from taken_from (c,) on, which is `LINE`
    where there is a polynomial, and `SQUARE` for all where the weight is distance**-2.
    """

    tiles: Integers
    middle: Floats
    reach: Floats
    radius: Floats
    candidates: Integers
    first: Integers
    away: Floats
    centre: Floats
    scale: Floats
    coefficients: Floats
    taken: Floats
    taken_from: Integers


class Ground(NamedTuple):
    """What all patterns share of a tile of m cells with c candidates.

    own (c,): candidates' points; distance, weights (c * m + lanes,), candidate by candidate; away (c,): from the middle; order (c,):
    candidates, nearest to the middle first; reach, radius: as in `Chunk`; placed (m,): cells that have a place; whole: all have; nearest: of `rank`, empty where nothing is ranked.
    """

    own: Integers
    distance: Floats
    weights: Floats
    away: Floats
    order: Integers
    reach: float
    radius: float
    placed: NDArray[np.bool_]
    whole: bool
    nearest: NDArray[np.uint64]


class Desk(NamedTuple):
    """Memory that the tiles of a chunk use one after another: distances and weights, and what `sets_of` fills, all flat."""

    distance: Floats
    weights: Floats
    bits: NDArray[np.uint64]
    members: Integers
    runs: Integers


#: Fills the cells of a chunk in `out` (t, m, n) and says for which (tiles, patterns) the candidates did not suffice.
Finish = Callable[[Singles, Axes, Chunk, Group], NDArray[np.bool_]]


def fill(
    out: Singles, cells: Cells, points: Floats, values: Floats, neighbours: int, weight: Radial | None, finish: Finish
) -> None:
    """Fill `out` (t, m, n) from the nearest reporting points of each cell; NaN where none reports.

    As many chunks of tiles are worked on at once as BLAS has threads, which it gives up meanwhile.

    Parameters
    ----------
    points : (n, 3 | 4) float64, km, of `chord_points`; values : (n, t) float64, NaN where silent
    weight : function of distance that `finish` needs of each cell and candidate; None for distance**-2, 0 at the point's place
    """
    out[~np.isfinite(values).any(axis=0)] = np.nan
    axes = _axes(cells, points.shape[1])
    for group in _groups(points, values, neighbours):
        side = _side(cells, group)

        def work(numbers: range, group: Group = group, side: int = side) -> None:
            _work(out, axes, group, weight, finish, _tiles(axes, side, numbers))

        in_threads(work, list(_chunks(axes, group, side)), uses_blas=True)


def _axes(cells: Cells, dimensions: int) -> Axes:
    lam, phi = np.deg2rad(cells.lon), np.deg2rad(cells.lat)
    height = np.zeros((1, 1)) if cells.height is None or dimensions == 3 else np.ascontiguousarray(cells.height)
    return Axes(np.cos(lam), np.sin(lam), np.cos(phi), np.sin(phi), height, float(cells.rise))


def _work(out: Singles, axes: Axes, group: Group, weight: Radial | None, finish: Finish, tiles: Integers) -> None:
    chunk, crowded = _chunk(axes, group, weight, tiles)
    if len(crowded):
        _work(out, axes, group, weight, finish, _quarters(crowded))
    if len(chunk.tiles) == 0:
        return
    short = finish(out, axes, chunk, group)
    for pattern in np.flatnonzero(short.any(axis=0)):
        _work(out, axes, group.only(int(pattern)), weight, finish, chunk.tiles[short[:, pattern]])


def _groups(points: Floats, values: Floats, neighbours: int) -> Iterator[Group]:
    """Patterns of like silence, by powers of two, those for which all points are candidates together; each by itself where they have
    little in common. Points that never report are left out."""
    ever = np.isfinite(values).any(axis=1)
    points, values = points[ever], values[ever]
    patterns = list(silence_patterns(values))
    share = np.array([reporting.size / len(points) for reporting, _ in patterns])
    octave = np.floor(-np.log2(share))
    whole: list[Pattern] = []
    for label in np.unique(octave):
        members = np.flatnonzero(octave == label)
        alike = [patterns[i] for i in members]
        part = share[members].min()
        depth = min(len(points), int(np.ceil((neighbours + SPREAD * np.sqrt(neighbours * (1 - part))) / part)))
        if len(alike) > 1 and depth <= SHARED:
            if depth == len(points):
                whole += alike
            else:
                yield _group(points, values, alike, depth, neighbours)
            continue
        for reporting, columns in alike:
            own = [(np.arange(reporting.size), columns)]
            yield _group(points[reporting], values[reporting], own, min(neighbours, reporting.size))
    if whole:
        yield _group(points, values, whole, len(points), neighbours)


def _group(points: Floats, values: Floats, patterns: list[Pattern], depth: int, neighbours: int | None = None) -> Group:
    reporting = np.zeros((len(patterns), len(points)), bool)
    for i, (present, _) in enumerate(patterns):
        reporting[i, present] = True
    needed = np.minimum(reporting.sum(axis=1), neighbours or depth)
    columns = np.concatenate([columns for _, columns in patterns])
    first = np.concatenate([[0], np.cumsum([columns.size for _, columns in patterns])])
    silence = Silence(values, reporting, needed, columns, first)
    return Group(np.ascontiguousarray(points), cKDTree(points), int(depth), silence)


def _chunks(axes: Axes, group: Group, side: int) -> Iterator[range]:
    """Numbers of the tiles of each chunk, tiles counted row by row."""
    rows, cols = axes.cos_lat.size, axes.cos_lon.size
    tiles = -(-rows // side) * -(-cols // side)
    step = max(1, CHUNK_NUMBERS // (side**2 * min(2 * group.depth, len(group.points))))
    for start in range(0, tiles, step):
        yield range(start, min(start + step, tiles))


def _tiles(axes: Axes, side: int, numbers: range) -> Integers:
    """(p, 4): first and last + 1 row, first and last + 1 column."""
    rows, cols = axes.cos_lat.size, axes.cos_lon.size
    across = -(-cols // side)
    top, left = (side * part for part in np.divmod(np.arange(numbers.start, numbers.stop), across))
    return np.stack([top, np.minimum(top + side, rows), left, np.minimum(left + side, cols)], axis=1)


def _side(cells: Cells, group: Group) -> int:
    """Cells along a side of a tile: a power of two, the smaller the denser the points."""
    steps = [np.median(np.abs(np.diff(axis))) for axis in (cells.lon, cells.lat) if axis.size > 1]
    size = np.deg2rad(max(steps, default=1.0)) * EARTH_RADIUS_KM
    apart = np.median(group.tree.query(group.points[: 10 * SIDE], k=[group.depth])[0])
    return int(2 ** np.clip(np.round(np.log2(max(SHARE * apart / max(size, SLACK), 1.0))), 1, np.log2(SIDE)))


def _quarters(tiles: Integers) -> Integers:
    """The tiles cut in two along each side that can be cut."""
    parts = []
    for top, bottom, left, right in tiles:
        rows, cols = sorted({top, (top + bottom + 1) // 2, bottom}), sorted({left, (left + right + 1) // 2, right})
        parts += [(*y, *x) for y in pairwise(rows) for x in pairwise(cols)]
    return np.array(parts, np.int64)


def _chunk(axes: Axes, group: Group, weight: Radial | None, tiles: Integers) -> tuple[Chunk, Integers]:
    """The tiles with their candidates, and those tiles that have too many and can be cut."""
    count = (tiles[:, 1] - tiles[:, 0]) * (tiles[:, 3] - tiles[:, 2])
    middle, radius = _locate(tiles, axes, group.points.shape[1])
    n = len(group.points)
    wanted = min(n, 2 * group.depth + 16)
    apart, index = group.tree.query(middle, k=np.arange(1, wanted + 1))
    reach = apart[:, group.depth - 1] + (2.0 * radius + SLACK)  # rounded as in `find_sets`
    full = (apart[:, -1] <= reach) & (wanted < n)
    crowded = full & (count > 1)
    if full[~crowded].any():  # many points at one place
        apart, index = group.tree.query(middle, k=np.arange(1, n + 1))
    kept = ~crowded
    tiles, middle, radius, reach, crowd = tiles[kept], middle[kept], radius[kept], reach[kept], tiles[crowded]
    candidates, away, first = _candidates(apart[kept], index[kept], reach)
    none, squares = np.empty(0), np.full(away.size, SQUARE)
    chunk = Chunk(
        tiles, middle, reach, radius, candidates, first, away, none, none, np.empty((0, NODES)), none, squares
    )
    return (chunk if weight is None else _weighed(chunk, count[kept], weight, axes, group.points)), crowd


def _weighed(chunk: Chunk, count: Integers, weight: Radial, axes: Axes, points: Floats) -> Chunk:
    """With the weights of candidates as functions of distance, for tiles of `count` (p,) cells."""
    own = np.diff(chunk.first)
    around, cells = np.repeat(chunk.radius, own), np.repeat(count, own)
    lines = rad.polynomials(weight, np.maximum(chunk.away - around, 0.0), chunk.away + around)
    plain = ~lines.smooth | (cells < WORTH)
    taken = np.empty(int(cells[plain].sum()))
    taken_from = np.where(plain, _starts(np.where(plain, cells, 0))[:-1], LINE)
    centre, scale, coefficients = lines[:3]
    chunk = chunk._replace(centre=centre, scale=scale, coefficients=coefficients, taken=taken, taken_from=taken_from)
    if taken.size:
        _take(chunk, axes, points)
        taken[:] = weight.in_pieces(taken)
    return chunk


@njit(nogil=True, cache=True)
def _candidates(apart, index, reach):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Points within reach of each tile's middle, ascending, their distances from it, and where those of a tile start."""
    first = np.zeros(len(apart) + 1, np.int64)
    points, away = np.empty(apart.size, np.int64), np.empty(apart.size)
    n = 0
    for p in range(len(apart)):
        for j in range(apart.shape[1]):
            if apart[p, j] <= reach[p]:
                at = n
                while at > first[p] and points[at - 1] > index[p, j]:
                    points[at], away[at] = points[at - 1], away[at - 1]
                    at -= 1
                points[at], away[at] = index[p, j], apart[p, j]
                n += 1
        first[p + 1] = n
    return points[:n].copy(), away[:n].copy(), first


def _starts(sizes: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def pair_distances(chunk: Chunk, points: Floats) -> tuple[Floats, Integers]:
    """Distances between any two candidates of each tile, flat, and where they start (p + 1,)."""
    start = _starts(np.diff(chunk.first) ** 2)
    pairs = np.empty(start[-1])
    _pairs(pairs, start, chunk, points)
    return pairs, start


@njit(nogil=True, cache=True)
def _pairs(pairs, start, chunk, points):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for p in range(len(chunk.tiles)):
        own = chunk.candidates[chunk.first[p] : chunk.first[p + 1]]
        at = start[p]
        for j in own:
            for k in own:
                total = 0.0
                for axis in range(points.shape[1]):
                    total += (points[j, axis] - points[k, axis]) ** 2
                pairs[at] = np.sqrt(total)
                at += 1


@njit(nogil=True, cache=True)
def _places(tile, axes, dimensions):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(d, m) km: cells of a tile, row by row."""
    width = tile[3] - tile[2]
    place = np.empty((dimensions, (tile[1] - tile[0]) * width))
    for y in range(tile[0], tile[1]):
        east, up = EARTH_RADIUS_KM * axes.cos_lat[y], EARTH_RADIUS_KM * axes.sin_lat[y]
        start = (y - tile[0]) * width
        for x in range(width):
            place[0, start + x] = east * axes.cos_lon[tile[2] + x]
            place[1, start + x] = east * axes.sin_lon[tile[2] + x]
            place[2, start + x] = up
        if dimensions == 4:
            for x in range(width):
                place[3, start + x] = axes.height[y, tile[2] + x] / 1000.0 * axes.rise
    return place


@njit(nogil=True, cache=True)
def _locate(tiles, axes, dimensions):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Middles (p, d) of tiles and the largest distance of a cell from them (p,); cells without a place do not count."""
    middle, radius = np.zeros((len(tiles), dimensions)), np.zeros(len(tiles))
    for p in range(len(tiles)):
        place = _places(tiles[p], axes, dimensions)
        for axis in range(dimensions):
            low, high = np.inf, -np.inf
            for value in place[axis]:
                low, high = min(low, value), max(high, value)
            if low <= high:
                middle[p, axis] = (low + high) / 2.0
        for away in _away(place, middle[p]):
            if away > radius[p]:
                radius[p] = away
    return middle, radius


@njit(nogil=True, cache=True)
def _away(place, point):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(m,) km from one point to cells (d, m)."""
    out = np.empty(place.shape[1])
    _distance(out, place, point)
    return out


@njit(nogil=True, cache=True)
def _distance(out, place, point):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    east, north, up = place[0], place[1], place[2]
    x, y, z = point[0], point[1], point[2]
    if len(place) == 3:
        for i in range(out.size):
            out[i] = np.sqrt((x - east[i]) ** 2 + (y - north[i]) ** 2 + (z - up[i]) ** 2)
        return
    height, h = place[3], point[3]
    for i in range(out.size):
        out[i] = np.sqrt((x - east[i]) ** 2 + (y - north[i]) ** 2 + (z - up[i]) ** 2 + (h - height[i]) ** 2)


@njit(nogil=True, cache=True)
def _take(chunk, axes, points):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Distances into `taken` of the candidates that have no polynomial."""
    for p in range(len(chunk.tiles)):
        place = _places(chunk.tiles[p], axes, points.shape[1])
        for row in range(chunk.first[p], chunk.first[p + 1]):
            start = chunk.taken_from[row]
            if start >= 0:
                _distance(chunk.taken[start : start + place.shape[1]], place, points[chunk.candidates[row]])


@njit(nogil=True, cache=True)
def desk_of(chunk, silence, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Room for the largest tile of a chunk."""
    numbers = words = cells = 0
    for p in range(len(chunk.tiles)):
        tile, c = chunk.tiles[p], chunk.first[p + 1] - chunk.first[p]
        m = (tile[1] - tile[0]) * (tile[3] - tile[2])
        numbers, words, cells = max(numbers, c * m), max(words, m * ((c + 63) // 64)), max(cells, m)
    most = (silence.needed.max() + 3) // 4 * 4
    return Desk(
        np.empty(numbers + lanes),
        np.empty(numbers + lanes),
        np.empty(words, np.uint64),
        np.empty(cells * most, np.int64),
        np.empty(3 * cells, np.int64),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def open_tile(p, axes, chunk, points, patterns, desk, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The `Ground` of tile p for so many patterns, in the memory of the desk."""
    own = chunk.candidates[chunk.first[p] : chunk.first[p + 1]]
    away = chunk.away[chunk.first[p] : chunk.first[p + 1]]
    place = _places(chunk.tiles[p], axes, points.shape[1])
    m = place.shape[1]
    distance, weights = desk.distance[: own.size * m + lanes], desk.weights[: own.size * m + lanes]
    distance[own.size * m :], weights[own.size * m :] = 0.0, 0.0
    for j in range(own.size):
        row, apart, line = chunk.first[p] + j, distance[j * m : (j + 1) * m], weights[j * m : (j + 1) * m]
        _distance(apart, place, points[own[j]])
        start = chunk.taken_from[row]
        if start >= 0:
            line[:] = chunk.taken[start : start + m]
        elif start == SQUARE:
            for i in range(m):
                line[i] = 1.0 / (apart[i] * apart[i]) if apart[i] > COLOCATED else 0.0
        else:
            rad.evaluate(line, apart, chunk.centre[row], chunk.scale[row], chunk.coefficients[row])
    placed = np.isfinite(_away(place, chunk.middle[p]))
    ranked = patterns > 1 and own.size <= RANKED
    nearest = rank(distance, placed, own.size) if ranked else np.empty((0, 0), np.uint64)
    whole = bool(placed.all())
    return Ground(
        own, distance, weights, away, np.argsort(away), chunk.reach[p], chunk.radius[p], placed, whole, nearest
    )


@njit(nogil=True, cache=True)
def sets_of(pattern, tile, ground, silence, desk, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Sets of the cells of a tile: bits (s, w), members (s, q), q a multiple of 4; runs (r, 3), none if candidates may be too few."""
    m, words, needed = ground.placed.size, (ground.own.size + 63) // 64, silence.needed[pattern]
    most = desk.members.size // (desk.runs.size // 3)
    bits, members = desk.bits[: m * words].reshape(m, words), desk.members[: m * most].reshape(m, most)
    runs = desk.runs[: 3 * m].reshape(m, 3)
    heard = silence.reporting[pattern][ground.own]
    sets, found = find_sets(ground, heard, needed, tile[3] - tile[2], lanes, bits, members, runs)
    return bits[:sets], members[:sets], runs[: max(found, 0)]


@njit(nogil=True, cache=True)
def columns_of(pattern, silence):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(c,) columns of values at which the pattern is."""
    return silence.columns[silence.first[pattern] : silence.first[pattern + 1]]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def sum_runs(out, tile, lanes, runs, members, level, shares, weights, present, columns, wanted):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out = level + shares . weights, run by run; divided by the sum of the weights if `present` is not empty.

    Parameters
    ----------
    out : (t, rows, cols) float32; tile : (4,); runs : (r, 3); columns : (c,), of out
    members : (s, q) int64, candidates of each set, q a multiple of 4; level : (s, c); shares : (s, c, q), 0 beyond the members
    weights : (candidates * m + lanes,) float64; present : (q,), 1 for members, 0 beyond
    wanted : (d, rows, cols) bool, column c is at d = c % len(wanted): cells that are needed, others become NaN; or empty: all are
    """
    width = tile[3] - tile[2]
    m = (tile[1] - tile[0]) * width
    total, norm, ones = np.empty(lanes), np.ones(lanes), present.reshape(1, 1, present.size)
    for r in range(runs.shape[0]):
        a, b, s = runs[r, 0], runs[r, 1], runs[r, 2]
        y, x = tile[0] + a // width, tile[2] + a % width
        if s < 0:
            for day in columns:
                out[day, y, x : x + b - a] = np.nan
            continue
        for i in range(a, b, lanes):
            start, n = np.uint64(x + i - a), np.uint64(min(lanes, b - i))
            if wanted.size > 0 and not _any_wanted(wanted, columns, y, start, n):
                for day in columns:
                    for lane in range(n):
                        out[day, y, start + lane] = np.nan
                continue
            if present.size:
                _sum(total, 0.0, ones, 0, 0, weights, members, s, m, i)
                for lane in range(np.uint64(lanes)):
                    norm[lane] = 1.0 / total[lane]
            for c in range(columns.size):
                _sum(total, level[s, c], shares, s, c, weights, members, s, m, i)
                day = columns[c]
                if present.size:
                    for lane in range(np.uint64(lanes)):
                        total[lane] *= norm[lane]
                for lane in range(n):
                    out[day, y, start + lane] = total[lane]


@njit(nogil=True, cache=True, inline="always")
def _any_wanted(wanted, columns, y, start, n):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Whether any of n cells of a row, from `start` on, is wanted in any of the columns."""
    found = False
    for c in columns:
        row = wanted[c % len(wanted), y]
        for lane in range(n):
            found |= row[start + lane]
    return found


@njit(nogil=True, cache=True, fastmath={"contract"}, inline="always")
def _sum(total, level, shares, row, c, weights, members, s, m, i):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """total = level + shares[row, c] . weights of members[s] for the cells from i on."""
    lanes = np.uint64(total.size)
    for lane in range(lanes):
        total[lane] = level
    for q in range(0, members.shape[1], 4):
        s0, s1, s2, s3 = shares[row, c, q], shares[row, c, q + 1], shares[row, c, q + 2], shares[row, c, q + 3]
        w0, w1 = np.uint64(members[s, q] * m + i), np.uint64(members[s, q + 1] * m + i)
        w2, w3 = np.uint64(members[s, q + 2] * m + i), np.uint64(members[s, q + 3] * m + i)
        for lane in range(lanes):
            total[lane] += (
                s0 * weights[w0 + lane] + s1 * weights[w1 + lane] + s2 * weights[w2 + lane] + s3 * weights[w3 + lane]
            )
