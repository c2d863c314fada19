"""The nearest reporting points of every cell of a grid, found tile by tile, for many columns (times) at once.

All cells of a small tile have their nearest points among the few that are nearest to its middle, give or take the
diagonal of the tile: only those few, its candidates, are ranked for each cell. Once ranked they serve every time: what
of them reports is a mask, and the first k of a cell that the mask lets through are its set. Cells of a row with one set
are a run, which is summed at once. A set is what it is whatever the tile, so that a cell's value does not depend on the
grid that is asked for with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_info, threadpool_limits

from smscale.grid import EARTH_RADIUS_KM

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
#: Indices of the points that report, and of the columns (times) at which just these do.
Pattern = tuple[Integers, Integers]

#: Longest side of a tile, cells, and its share of the distance to the last neighbour, about.
SIDE, SHARE = 32, 0.5
#: Distances that a chunk of tiles holds: 2 MB in float64.
CHUNK_NUMBERS = 250_000
#: Numbers of a chunk that a covariance is taken of at once: 128 kB.
PIECE = 16_384
#: Cells that are tried at most at once with the set of the last one.
AHEAD = 32
#: Candidates that times with different silence share at most; where more would be needed, each pattern looks for its own.
SHARED = 256
#: How many standard deviations of a negative binomial the ranks that times share reach beyond their mean.
SPREAD = 4.0
#: What rounding of a distance may be at most, km (1 mm).
SLACK = 1e-6
#: Cells that are summed at once; arrays of weights have that many numbers to spare at their end.
LANES = 16


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


class Group(NamedTuple):
    """Silence patterns that share candidates.

    points (n, d); values (n, t); depth: ranks that are certain in every cell; reporting (p, n) bool; needed (p,): size of the
    sets of each pattern; columns (c,): of `values`, pattern after pattern, which start at first (p + 1,).
    """

    points: Floats
    values: Floats
    tree: cKDTree
    depth: int
    reporting: NDArray[np.bool_]
    needed: Integers
    columns: Integers
    first: Integers

    def only(self, pattern: int) -> Group:
        """One pattern, among its own points."""
        points = np.flatnonzero(self.reporting[pattern])
        columns = self.columns[self.first[pattern] : self.first[pattern + 1]]
        return _group(
            self.points[points], self.values[points], [(np.arange(points.size), columns)], self.needed[pattern]
        )


class Chunk(NamedTuple):
    """Tiles with their cells and candidates, one after the other.

    tiles (p, 4): first and last + 1 row, first and last + 1 column; start (p + 1,): first cell of each; candidates (c,): points,
    ascending in each tile, which start at first (p + 1,); distance: (candidates, cells) of each tile, flat, from base (p + 1,)
    on, `LANES` more at the end; pairs: (candidates, candidates) likewise, from square (p + 1,) on; safe (m,): every point
    nearer to the cell is a candidate, NaN where the cell has no place.
    """

    tiles: Integers
    start: Integers
    candidates: Integers
    first: Integers
    distance: Floats
    base: Integers
    pairs: Floats
    square: Integers
    safe: Floats


#: Fills the cells of a chunk in `out` (t, m, n) and says for which (tiles, patterns) the candidates did not suffice.
Finish = Callable[[Singles, Chunk, Group], NDArray[np.bool_]]


def fill(out: Singles, cells: Cells, points: Floats, values: Floats, neighbours: int, finish: Finish) -> None:
    """Fill `out` (t, m, n) from the nearest reporting points of each cell; NaN where none reports.

    As many chunks of tiles are worked on at once as BLAS has threads, which it gives up meanwhile.

    Parameters
    ----------
    points : (n, 3 | 4) float64, km, of `chord_points`; values : (n, t) float64, NaN where silent
    """
    out[~np.isfinite(values).any(axis=0)] = np.nan
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for group in _groups(points, values, neighbours):
            work = list(_tiles(cells, group))
            list(pool.map(lambda tiles, group=group: _work(out, cells, group, tiles, finish), work))


def _work(out: Singles, cells: Cells, group: Group, tiles: Integers, finish: Finish) -> None:
    chunk, crowded = _chunk(cells, group, tiles)
    if len(crowded):
        _work(out, cells, group, _quarters(crowded), finish)
    if len(chunk.tiles) == 0:
        return
    short = finish(out, chunk, group)
    for pattern in np.flatnonzero(short.any(axis=0)):
        _work(out, cells, group.only(int(pattern)), chunk.tiles[short[:, pattern]], finish)


def _groups(points: Floats, values: Floats, neighbours: int) -> Iterator[Group]:
    """Patterns of like silence, by powers of two; each by itself where they have little in common."""
    patterns = list(silence_patterns(values))
    share = np.array([reporting.size / len(points) for reporting, _ in patterns])
    octave = np.floor(-np.log2(share))
    for label in np.unique(octave):
        members = np.flatnonzero(octave == label)
        alike = [patterns[i] for i in members]
        part = share[members].min()
        depth = min(len(points), int(np.ceil((neighbours + SPREAD * np.sqrt(neighbours * (1 - part))) / part)))
        if len(alike) > 1 and depth <= SHARED:
            yield _group(points, values, alike, depth, neighbours)
            continue
        for reporting, columns in alike:
            own = [(np.arange(reporting.size), columns)]
            yield _group(points[reporting], values[reporting], own, min(neighbours, reporting.size))


def _group(points: Floats, values: Floats, patterns: list[Pattern], depth: int, neighbours: int | None = None) -> Group:
    reporting = np.zeros((len(patterns), len(points)), bool)
    for i, (present, _) in enumerate(patterns):
        reporting[i, present] = True
    needed = np.minimum(reporting.sum(axis=1), neighbours or depth)
    columns = np.concatenate([columns for _, columns in patterns])
    first = np.concatenate([[0], np.cumsum([columns.size for _, columns in patterns])])
    return Group(points, values, cKDTree(points), int(depth), reporting, needed, columns, first)


def _tiles(cells: Cells, group: Group) -> Iterator[Integers]:
    """Tiles (p, 4) of the grid, chunk by chunk."""
    rows, cols = cells.lat.size, cells.lon.size
    side = _side(cells, group)
    corners = np.meshgrid(np.arange(0, rows, side), np.arange(0, cols, side), indexing="ij")
    top, left = corners[0].ravel(), corners[1].ravel()
    tiles = np.stack([top, np.minimum(top + side, rows), left, np.minimum(left + side, cols)], axis=1)
    step = max(1, CHUNK_NUMBERS // (side**2 * min(2 * group.depth, len(group.points))))
    for start in range(0, len(tiles), step):
        yield tiles[start : start + step]


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


def _chunk(cells: Cells, group: Group, tiles: Integers) -> tuple[Chunk, Integers]:
    """The tiles with their candidates, and those tiles that have too many and can be cut."""
    count = (tiles[:, 1] - tiles[:, 0]) * (tiles[:, 3] - tiles[:, 2])
    place, middle, away, radius = _places(cells, group.points, tiles, count)
    n = len(group.points)
    wanted = min(n, 2 * group.depth + 16)
    apart, index = group.tree.query(middle, k=np.arange(1, wanted + 1))
    reach = apart[:, group.depth - 1] + 2.0 * radius + SLACK
    full = (apart[:, -1] <= reach) & (wanted < n)
    crowded = full & (count > 1)
    if full[~crowded].any():  # many points at one place
        apart, index = group.tree.query(middle, k=np.arange(1, n + 1))
    near = (apart <= reach[:, None]) & ~crowded[:, None]
    index = np.sort(np.where(near, index, n), axis=1)
    kept = ~crowded
    candidates, first = index[index < n], _starts(near.sum(axis=1)[kept])
    inside = np.repeat(kept, count)
    safe = (np.repeat(reach, count) - away - 0.5 * SLACK)[inside]
    starts = _starts(count[kept])
    base, square = _starts(np.diff(first) * np.diff(starts)), _starts(np.diff(first) ** 2)
    distance, pairs = np.empty(base[-1] + LANES), np.empty(square[-1])
    distance[-LANES:] = 0.0
    _distances(place[:, inside], starts, group.points, candidates, first, base, square, distance, pairs)
    return Chunk(tiles[kept], starts, candidates, first, distance, base, pairs, square, safe), tiles[crowded]


def in_pieces(function: Callable[[Floats], Floats], numbers: Floats) -> Floats:
    """function(numbers), piece by piece, so that what lies between its steps stays in the processor's cache."""
    out = np.empty_like(numbers)
    for start in range(0, numbers.size, PIECE):
        out[start : start + PIECE] = function(numbers[start : start + PIECE])
    return out


def _starts(sizes: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _places(cells: Cells, points: Floats, tiles: Integers, count: Integers) -> tuple[Floats, Floats, Floats, Floats]:
    """Cells of the tiles as points (d, m), middles (p, d), distances to them (m,) and the largest (p,)."""
    start = _starts(count)
    place = np.empty((points.shape[1], start[-1]))
    lam, phi = np.deg2rad(cells.lon), np.deg2rad(cells.lat)
    flat = cells.height is None or points.shape[1] == 3
    height = np.zeros((1, 1)) if flat else cells.height
    middle, away, radius = np.empty((len(tiles), len(place))), np.empty(start[-1]), np.zeros(len(tiles))
    _place(
        tiles,
        start,
        np.cos(lam),
        np.sin(lam),
        np.cos(phi),
        np.sin(phi),
        height,
        cells.rise,
        place,
        middle,
        away,
        radius,
    )
    return place, middle, away, radius


@njit(nogil=True, cache=True)
def _place(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    tiles, start, cos_lon, sin_lon, cos_lat, sin_lat, height, rise, place, middle, away, radius
):
    axes = place.shape[0]
    for p in range(tiles.shape[0]):
        i = start[p]
        for y in range(tiles[p, 0], tiles[p, 1]):
            for x in range(tiles[p, 2], tiles[p, 3]):
                place[0, i] = EARTH_RADIUS_KM * (cos_lat[y] * cos_lon[x])
                place[1, i] = EARTH_RADIUS_KM * (cos_lat[y] * sin_lon[x])
                place[2, i] = EARTH_RADIUS_KM * sin_lat[y]
                if axes == 4:
                    place[3, i] = height[y, x] / 1000.0 * rise
                i += 1
        for axis in range(axes):
            low, high = np.inf, -np.inf
            for i in range(start[p], start[p + 1]):
                low, high = min(low, place[axis, i]), max(high, place[axis, i])
            middle[p, axis] = (low + high) / 2.0 if low <= high else 0.0
        for i in range(start[p], start[p + 1]):
            total = 0.0
            for axis in range(axes):
                total += (place[axis, i] - middle[p, axis]) ** 2
            away[i] = np.sqrt(total)
            if away[i] > radius[p]:
                radius[p] = away[i]


@njit(nogil=True, cache=True)
def _distances(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    place, start, points, candidates, first, base, square, distance, pairs
):
    axes = place.shape[0]
    for p in range(start.size - 1):
        m, own = start[p + 1] - start[p], candidates[first[p] : first[p + 1]]
        east, north, up = (
            place[0, start[p] : start[p + 1]],
            place[1, start[p] : start[p + 1]],
            place[2, start[p] : start[p + 1]],
        )
        for j in range(own.size):
            row = distance[base[p] + j * m : base[p] + (j + 1) * m]
            x, y, z = points[own[j], 0], points[own[j], 1], points[own[j], 2]
            for i in range(m):
                row[i] = (x - east[i]) ** 2 + (y - north[i]) ** 2 + (z - up[i]) ** 2
            if axes == 4:
                for i in range(m):
                    row[i] += (points[own[j], 3] - place[3, start[p] + i]) ** 2
            for i in range(m):
                row[i] = np.sqrt(row[i])
            for k in range(own.size):
                total = 0.0
                for axis in range(axes):
                    total += (points[own[j], axis] - points[own[k], axis]) ** 2
                pairs[square[p] + j * own.size + k] = np.sqrt(total)


@njit(nogil=True, cache=True)
def rank(distance, safe, patterns, needed):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The candidates nearest to each cell, as bits: by distance, at equal distance by number.

    Parameters
    ----------
    distance : (c, m) float64; safe : (m,)
    patterns : of silence; a single one, whose candidates all report, is asked only for its first `needed`

    Returns
    -------
    nearest : (c + 1, m + 8, w) uint64, bit j % 64 of word j // 64 set where candidate j is among the first so many; the eight
        spare cells keep the ranks of one cell out of one set of the processor's cache
    certain : (m,) int64, how many ranks no other point can take, -1 where the cell has no place
    """
    c, m = distance.shape
    nearest = np.zeros((c + 1, m + 8, (c + 63) // 64), np.uint64)
    certain = np.full(m, -1, np.int64)
    order, key = np.arange(c), np.empty(c)
    if patterns == 1:
        _split(distance, safe, needed, order, key, nearest[needed], certain)
        return nearest, certain
    word = np.zeros(nearest.shape[2], np.uint64)
    for i in range(m):
        if not safe[i] >= 0.0:
            continue
        _sort(distance, i, order, key)
        count = 0
        word[:] = 0
        for j in range(c):
            word[order[j] >> 6] |= np.uint64(1) << np.uint64(order[j] & 63)
            for w in range(word.size):
                nearest[j + 1, i, w] = word[w]
            if key[j] <= safe[i]:
                count += 1
        certain[i] = count
    return nearest, certain


@njit(nogil=True, cache=True)
def _sort(distance, i, order, key):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Candidates of cell i by insertion into the order of the cell before, which is nearly this one's."""
    for j in range(order.size):
        own = order[j]
        value = distance[own, i]
        k = j
        while k > 0 and (key[k - 1] > value or (key[k - 1] == value and order[k - 1] > own)):
            key[k], order[k] = key[k - 1], order[k - 1]
            k -= 1
        key[k], order[k] = value, own


@njit(nogil=True, cache=True)
def _split(distance, safe, k, order, key, nearest, certain):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The first k candidates of each cell only, as bits, into `nearest` (m, w).

    Sorted are only cells where the farthest of the last set is not clearly nearer than the nearest of the others.
    """
    c, m = distance.shape
    farthest, closest = np.empty(AHEAD), np.empty(AHEAD)
    word = np.zeros(nearest.shape[1], np.uint64)
    i, ahead, known = 0, 8, False
    while i < m:
        if not known:
            while i < m and not safe[i] >= 0.0:
                i += 1
            if i == m:
                break
            _sort(distance, i, order, key)
            word[:] = 0
            for j in range(k):
                word[order[j] >> 6] |= np.uint64(1) << np.uint64(order[j] & 63)
            nearest[i], certain[i] = word, k
            i, known = i + 1, True
        n = min(ahead, m - i)
        farthest[:n], closest[:n] = 0.0, np.inf
        for j in range(c):
            row = distance[order[j], i : i + n]
            if j < k:
                for lane in range(n):
                    farthest[lane] = max(farthest[lane], row[lane])
            else:
                for lane in range(n):
                    closest[lane] = min(closest[lane], row[lane])
        lane = 0
        while lane < n and farthest[lane] < closest[lane] and safe[i + lane] >= 0.0:
            nearest[i + lane], certain[i + lane] = word, k
            lane += 1
        known, ahead = lane == n, AHEAD if lane == n else 8
        i += lane


@njit(nogil=True, cache=True)
def _ones(nearest, at, i, mask):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How many bits nearest[at, i] and the mask share; LLVM knows the idiom as one instruction."""
    total = np.int64(0)
    for w in range(mask.size):
        x = nearest[at, i, w] & mask[w]
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        total += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
    return total


@njit(nogil=True, cache=True)
def _same(nearest, at, i, mask, bits, label):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for w in range(mask.size):  # noqa: SIM110
        if nearest[at, i, w] & mask[w] != bits[label, w]:
            return False
    return True


@njit(nogil=True, cache=True)
def mask_of(reporting, candidates):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(w,) uint64: the bits of the candidates that report."""
    mask = np.zeros((candidates.size + 63) // 64, np.uint64)
    for j in range(candidates.size):
        if reporting[candidates[j]]:
            mask[j >> 6] |= np.uint64(1) << np.uint64(j & 63)
    return mask


@njit(nogil=True, cache=True)
def find_sets(nearest, certain, mask, k, width, bits, members, runs):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The sets of first k candidates that the mask lets through, and the runs of cells, none beyond its row, that have one.

    Parameters
    ----------
    nearest, certain : of `rank`; mask : (w,) uint64; width : cells in a row
    bits : (m, w) uint64, members : (m, >= k) int64, ascending; runs : (m, 3) int64, first cell, last + 1, set or -1 without place:
        filled

    Returns
    -------
    sets, runs : how many; -1 runs where a cell has too few candidates.
    """
    c = len(nearest) - 1
    sets = found = 0
    at, last = int(min(k, c)), -1
    for row in range(0, certain.size, width):
        i, end = row, row + width
        while i < end:
            if certain[i] < 0:
                label, start = -1, i
                while i < end and certain[i] < 0:
                    i += 1
            else:
                if last < 0 or at > certain[i] or not _same(nearest, at, i, mask, bits, last):
                    at = _seek(nearest, i, at, mask, k, certain[i])
                    if at < 0:
                        return sets, -1
                    last = _label(nearest, at, i, mask, bits, sets)
                    if last == sets:
                        _enter(nearest, at, i, mask, bits, members, sets)
                        sets += 1
                label, start = last, i
                while i < end and at <= certain[i] and _same(nearest, at, i, mask, bits, last):
                    i += 1
            if start > row and runs[found - 1, 2] == label:
                runs[found - 1, 1] = i
            else:
                runs[found, 0], runs[found, 1], runs[found, 2] = start, i, label
                found += 1
    return sets, found


@njit(nogil=True, cache=True)
def _seek(nearest, i, at, mask, k, certain):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A rank, certain for cell i, up to which just k candidates report; -1 if there is none. `at` is where to begin."""
    at = min(at, certain)
    count = _ones(nearest, at, i, mask)
    while count != k:
        if count < k and at == certain:
            return -1
        at = min(certain, at + k - count)
        count = _ones(nearest, at, i, mask)
    return at


@njit(nogil=True, cache=True)
def _label(nearest, at, i, mask, bits, sets):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Which of the known sets it is; `sets` if none."""
    for label in range(sets):
        if _same(nearest, at, i, mask, bits, label):
            return label
    return sets


@njit(nogil=True, cache=True)
def _enter(nearest, at, i, mask, bits, members, label):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A new set: its bits, and its members in ascending order."""
    n = 0
    for w in range(mask.size):
        bits[label, w] = nearest[at, i, w] & mask[w]
    for j in range(len(nearest) - 1):
        if (bits[label, j >> 6] >> np.uint64(j & 63)) & np.uint64(1):
            members[label, n] = j
            n += 1


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def evaluate(out, tile, m, lanes, runs, members, level, shares, weights, present, columns):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out = level + shares . weights, run by run; divided by the sum of the weights if `present` is not empty.

    Parameters
    ----------
    out : (t, rows, cols) float32; tile : (4,), of m cells; runs : (r, 3); columns : (c,), of out
    members : (s, q) int64, candidates of each set, q a multiple of 4; level : (s, c); shares : (s, c, q), 0 beyond the members
    weights : (candidates, m) float64, flat, and `lanes` more; present : (q,), 1 for members, 0 beyond
    lanes : `LANES`, but not as a constant: LLVM would unroll the loops instead of making vectors of them
    """
    width = tile[3] - tile[2]
    total, norm, single = np.empty(lanes), np.ones(lanes), np.empty(lanes, np.float32)
    for r in range(runs.shape[0]):
        a, b, s = runs[r, 0], runs[r, 1], runs[r, 2]
        y, x = tile[0] + a // width, tile[2] + a % width
        if s < 0:
            for day in columns:
                out[day, y, x : x + b - a] = np.nan
            continue
        for i in range(a, b, lanes):
            own, start, n = members[s], np.uint64(x + i - a), np.uint64(min(lanes, b - i))
            if present.size:
                _sum(total, 0.0, present, weights, own, m, i)
                for lane in range(np.uint64(lanes)):
                    norm[lane] = 1.0 / total[lane]
            for c in range(columns.size):
                day = columns[c]
                _sum(total, level[s, c], shares[s, c], weights, own, m, i)
                for lane in range(np.uint64(lanes)):
                    single[lane] = norm[lane] * total[lane]
                for lane in range(n):
                    out[day, y, start + lane] = single[lane]


@njit(nogil=True, cache=True, fastmath={"contract"}, inline="always")
def _sum(total, level, shares, weights, members, m, i):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """total = level + shares . weights for the cells from i on."""
    lanes = np.uint64(total.size)
    for lane in range(lanes):
        total[lane] = level
    for q in range(0, members.size, 4):
        s0, s1, s2, s3 = shares[q], shares[q + 1], shares[q + 2], shares[q + 3]
        w0, w1 = np.uint64(members[q] * m + i), np.uint64(members[q + 1] * m + i)
        w2, w3 = np.uint64(members[q + 2] * m + i), np.uint64(members[q + 3] * m + i)
        for lane in range(lanes):
            total[lane] += (
                s0 * weights[w0 + lane] + s1 * weights[w1 + lane] + s2 * weights[w2 + lane] + s3 * weights[w3 + lane]
            )
