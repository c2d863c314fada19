"""Which points are nearest to each cell of a tile, and which cells have the same nearest points that report.

What lies much nearer to the middle of a small tile than other points is among the first k of all its cells, and what lies much further
off is of none: only the few between are compared cell by cell. Few candidates are rather ranked for each cell, once for all times: what of
them reports is a mask, and the first k of a cell that the mask lets through are its set. Cells of a row with one set are a run, which is
summed at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from smscale.kernels.radial import SLACK

#: Cells that are handled at once; arrays of distances and weights have that many numbers to spare at their end. It is handed to
#: compiled loops as a size, not as a constant: LLVM would unroll them instead of making vectors of them.
LANES = 16
#: Candidates that are ranked at most: bits of a word.
RANKED = 64


@njit(nogil=True, cache=True)
def rank(distance, placed, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The c candidates nearest to each cell, as bits: (c + 1, m + 8) uint64, bit j set where candidate j is among the first so many.

    The eight spare cells keep the ranks of one cell out of one set of the processor's cache. A cell without place has no bits.
    """
    m = placed.size
    order, key = np.arange(c), np.empty(c)
    nearest = np.zeros((c + 1, m + 8), np.uint64)
    for i in range(m):
        if placed[i]:
            _sort(distance, m, i, order, key)
            word = np.uint64(0)
            for j in range(c):
                word |= np.uint64(1) << np.uint64(order[j])
                nearest[j + 1, i] = word
    return nearest


@njit(nogil=True, cache=True)
def find_sets(ground, heard, k, width, lanes, bits, members, runs):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The sets of the first k candidates that report, and the runs of cells, none beyond its row, that have one.

    Candidates rank by distance, at equal distance by number.

    Parameters
    ----------
    ground : `neighbours.Ground` of m cells; heard : (c,) bool, the candidates that report; width : cells in a row
    bits : (m, w) uint64, bit j % 64 of word j // 64 set for member j; members : (m, >= k) int64, ascending, 0 beyond;
        runs : (m, 3) int64, first cell, last + 1, set or -1 without place: filled

    Returns
    -------
    sets, runs : how many; -1 runs where there may be too few candidates.
    """
    line = ground.order[heard[ground.order]]
    away, spread = ground.away, 2.0 * ground.radius + SLACK
    if line.size < k or away[line[k - 1]] + spread > ground.reach:
        return 0, -1
    if len(ground.nearest) > 0:
        word = np.zeros(1, np.uint64)
        _mark(word, line)
        return _look_up(ground.nearest, ground.placed, word[0], k, width, bits, members, runs)
    possible, sure = k, 0
    while possible < line.size and away[line[possible]] <= away[line[k - 1]] + spread:
        possible += 1
    while sure < k and (possible == k or away[line[sure]] + spread < away[line[k]]):
        sure += 1
    word = np.zeros(bits.shape[1], np.uint64)
    _mark(word, line[:sure])
    if possible == k and ground.whole:
        _, sets = _label(word, bits, members, 0)
        for row in range(0, ground.placed.size, width):
            runs[row // width, 0], runs[row // width, 1], runs[row // width, 2] = row, row + width, 0
        return sets, ground.placed.size // width
    return _compare(ground, line[sure:possible], k - sure, word, width, lanes, bits, members, runs)


@njit(nogil=True, cache=True)
def _look_up(nearest, placed, mask, k, width, bits, members, runs):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Sets and runs from ranks."""
    sets = found = 0
    at = k
    above = np.full(width, -1, np.int64)  # sets of the row before: most likely the next one
    for row in range(0, placed.size, width):
        i, end = row, row + width
        while i < end:
            start, label = i, -1
            if not placed[i]:
                while i < end and not placed[i]:
                    i += 1
            else:
                word = nearest[at, i] & mask
                label = above[i - row]
                if label < 0 or word != bits[label, 0]:
                    at, word = _seek(nearest, i, at, mask, k)
                    label, sets = _label(np.array([word]), bits, members, sets)
                i += 1
                while i < end and nearest[at, i] & mask == word:
                    i += 1
                above[start - row : i - row] = label
            found = _add_run(runs, found, start, i, label, row)
    return sets, found


@njit(nogil=True, cache=True)
def _seek(nearest, i, at, mask, k):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A rank up to which just k candidates of cell i report, and these; `at` is where to begin."""
    word = nearest[at, i] & mask
    count = _ones(word)
    while count != k:
        at += k - count
        word = nearest[at, i] & mask
        count = _ones(word)
    return at, word


@njit(nogil=True, cache=True)
def _ones(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How many bits are set; LLVM knows the idiom as one instruction."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(nogil=True, cache=True)
def _add_run(runs, found, start, stop, label, row):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A run of cells, or more of the last one; how many there are then."""
    if start > row and runs[found - 1, 2] == label:
        runs[found - 1, 1] = stop
        return found
    runs[found, 0], runs[found, 1], runs[found, 2] = start, stop, label
    return found + 1


@njit(nogil=True, cache=True)
def _compare(ground, order, wanted, base, width, lanes, bits, members, runs):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Sets and runs where `wanted` of the candidates `order` join those of `base`, cell by cell."""
    distance, placed = ground.distance, ground.placed
    m, sets, found = placed.size, 0, 0
    key, farthest, closest = np.empty(order.size), np.empty(lanes), np.empty(lanes)
    before, word = order.copy(), base.copy()  # the order where the row before began, whose set is likely this row's
    label = label_before = -1
    for row in range(0, m, width):
        i, end = row, row + width
        order[:], label = before, label_before
        while i < end:
            start = i
            if not placed[i]:
                label = -1
                while i < end and not placed[i]:
                    i += 1
            else:
                if i == row and label >= 0:
                    i = _end_of_run(distance, placed, i, end, order, wanted, farthest, closest)
                if i == start:
                    _sort(distance, m, i, order, key)
                    word[:] = base
                    _mark(word, order[:wanted])
                    label, sets = _label(word, bits, members, sets)
                    i = _end_of_run(distance, placed, i + 1, end, order, wanted, farthest, closest)
            if start == row:
                before[:], label_before = order, label
            found = _add_run(runs, found, start, i, label, row)
    return sets, found


@njit(nogil=True, cache=True)
def _sort(distance, m, i, order, key):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Candidates of cell i by insertion into the order of a cell near it, which is nearly this one's."""
    for j in range(order.size):
        own = order[j]
        value = distance[own * m + i]
        k = j
        while k > 0 and (key[k - 1] > value or (key[k - 1] == value and order[k - 1] > own)):
            key[k], order[k] = key[k - 1], order[k - 1]
            k -= 1
        key[k], order[k] = value, own


@njit(nogil=True, cache=True)
def _end_of_run(distance, placed, i, end, order, k, farthest, closest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The first cell from i on, at most `end`, whose first k candidates may be others than the first k of `order`."""
    while i < end:
        _bounds(distance, placed.size, i, order, k, farthest, closest)
        n, lane = min(farthest.size, end - i), 0
        while lane < n and farthest[lane] < closest[lane] and placed[i + lane]:
            lane += 1
        i += lane
        if lane < n:
            break
    return i


@njit(nogil=True, cache=True)
def _bounds(distance, m, i, order, k, farthest, closest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Of the cells from i on: distance of the farthest of the first k candidates, and of the closest of the others."""
    lanes, c = np.uint64(farthest.size), order.size
    for lane in range(lanes):
        farthest[lane], closest[lane] = 0.0, np.inf
    for j in range(0, k, 4):
        r0, r1, r2, r3 = _four(order, j, k, m, i)
        for lane in range(lanes):
            first = max(distance[r0 + lane], distance[r1 + lane])
            farthest[lane] = max(farthest[lane], max(first, max(distance[r2 + lane], distance[r3 + lane])))
    for j in range(k, c, 4):
        r0, r1, r2, r3 = _four(order, j, c, m, i)
        for lane in range(lanes):
            first = min(distance[r0 + lane], distance[r1 + lane])
            closest[lane] = min(closest[lane], min(first, min(distance[r2 + lane], distance[r3 + lane])))


@njit(nogil=True, cache=True, inline="always")
def _four(order, j, end, m, i):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Where cell i is in the rows of four candidates from rank j on, the last again beyond the end."""
    last = end - 1
    r0, r1 = order[j] * m + i, order[min(j + 1, last)] * m + i
    r2, r3 = order[min(j + 2, last)] * m + i, order[min(j + 3, last)] * m + i
    return np.uint64(r0), np.uint64(r1), np.uint64(r2), np.uint64(r3)


@njit(nogil=True, cache=True)
def _mark(word, candidates):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for j in candidates:
        word[j >> 6] |= np.uint64(1) << np.uint64(j & 63)


@njit(nogil=True, cache=True)
def _label(word, bits, members, sets):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Which of the sets it is, the latest looked at first, or the next, which is entered; and how many there are then."""
    for label in range(sets - 1, -1, -1):
        w = 0
        while w < word.size and word[w] == bits[label, w]:
            w += 1
        if w == word.size:
            return label, sets
    bits[sets] = word
    n = 0
    for j in range(64 * word.size):
        if (word[j >> 6] >> np.uint64(j & 63)) & np.uint64(1):
            members[sets, n] = j
            n += 1
    members[sets, n:] = 0
    return sets, sets + 1
