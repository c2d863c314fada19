"""Which points are nearest to each cell of a tile, and which cells have the same nearest points that report.

Once ranked, the candidates of a tile serve every time: what of them reports is a mask, and the first k of a cell that the mask
lets through are its set. Cells of a row with one set are a run, which is summed at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Cells that are handled at once; arrays of distances and weights have that many numbers to spare at their end. It is handed to
#: compiled loops as a size, not as a constant: LLVM would unroll them instead of making vectors of them.
LANES = 16


@njit(nogil=True, cache=True)
def rank(distance, safe, patterns, needed, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The candidates nearest to each cell, as bits: by distance, at equal distance by number.

    Parameters
    ----------
    distance : (c * m + lanes,) float64, of candidates and cells; safe : (m,), every point nearer to the cell is a candidate,
        NaN where the cell has no place
    patterns : of silence; a single one, whose candidates all report, is asked only for its first `needed`

    Returns
    -------
    nearest : (ranks, m + 8, w) uint64, bit j % 64 of word j // 64 set where candidate j is among the first so many, or for a
        single pattern the first `needed`; the eight spare cells keep the ranks of one cell out of one set of the processor's cache
    certain : (m,) int64, the last rank that no other point can take, -1 where the cell has no place
    """
    m = safe.size
    c = (distance.size - lanes) // m
    certain = np.full(m, -1, np.int64)
    order, key = np.arange(c), np.empty(c)
    words = (c + 63) // 64
    if patterns == 1:
        nearest = np.empty((1, m + 8, words), np.uint64)
        _split(distance, safe, needed, order, key, nearest[0], certain, np.empty(lanes), np.empty(lanes))
        return nearest, certain
    nearest = np.empty((c + 1, m + 8, words), np.uint64)
    nearest[0] = 0
    word = np.zeros(words, np.uint64)
    for i in range(m):
        if not safe[i] >= 0.0:
            continue
        _sort(distance, m, i, order, key)
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
def _sort(distance, m, i, order, key):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Candidates of cell i by insertion into the order of the cell before, which is nearly this one's."""
    for j in range(order.size):
        own = order[j]
        value = distance[own * m + i]
        k = j
        while k > 0 and (key[k - 1] > value or (key[k - 1] == value and order[k - 1] > own)):
            key[k], order[k] = key[k - 1], order[k - 1]
            k -= 1
        key[k], order[k] = value, own


@njit(nogil=True, cache=True)
def _split(distance, safe, k, order, key, nearest, certain, farthest, closest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The first k candidates of each cell only, as bits, into `nearest` (m, w); `certain` is 0, the only rank there is.

    Sorted are only cells where the farthest of the last set is not clearly nearer than the nearest of the others.
    """
    m = safe.size
    word = np.zeros(nearest.shape[1], np.uint64)
    i, known = 0, False
    while i < m:
        if not known:
            if safe[i] >= 0.0:
                _sort(distance, m, i, order, key)
                word[:] = 0
                for j in range(k):
                    word[order[j] >> 6] |= np.uint64(1) << np.uint64(order[j] & 63)
                _write(nearest, certain, i, i + 1, word)
                known = True
            i += 1
            continue
        _bounds(distance, m, i, order, k, farthest, closest)
        n, lane = min(farthest.size, m - i), 0
        while lane < n and farthest[lane] < closest[lane] and safe[i + lane] >= 0.0:
            lane += 1
        _write(nearest, certain, i, i + lane, word)
        known = lane == n
        i += lane


@njit(nogil=True, cache=True)
def _write(nearest, certain, start, stop, word):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(start, stop):
        certain[i] = 0
        for w in range(word.size):
            nearest[i, w] = word[w]


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
    bits : (m, w) uint64, members : (m, >= k) int64, ascending, 0 beyond; runs : (m, 3) int64, first cell, last + 1, set or -1
        without place: filled

    Returns
    -------
    sets, runs : how many; -1 runs where a cell has too few candidates.
    """
    sets = found = 0
    at, last = int(min(k, len(nearest) - 1)), -1
    above = np.full(width, -1, np.int64)  # sets of the row before: most likely the next one
    for row in range(0, certain.size, width):
        i, end = row, row + width
        while i < end:
            if certain[i] < 0:
                label, start = -1, i
                while i < end and certain[i] < 0:
                    i += 1
            else:
                guess = above[i - row]
                if guess >= 0 and at <= certain[i] and _same(nearest, at, i, mask, bits, guess):
                    last = guess
                else:
                    at = _seek(nearest, i, at, mask, k, certain[i])
                    if at < 0:
                        return sets, -1
                    last = _label(nearest, at, i, mask, bits, sets)
                    if last == sets:
                        _enter(nearest, at, i, mask, bits, members, sets)
                        sets += 1
                label, start = last, i
                i = _end_of_run(nearest[at], certain, at, i, end, mask, bits[last])
                for x in range(start - row, i - row):
                    above[x] = last
            if start > row and runs[found - 1, 2] == label:
                runs[found - 1, 1] = i
            else:
                runs[found, 0], runs[found, 1], runs[found, 2] = start, i, label
                found += 1
    return sets, found


@njit(nogil=True, cache=True)
def _end_of_run(nearest, certain, at, i, end, mask, bits):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The first cell from i + 1 on, at most `end`, that has another set than cell i."""
    first, word = mask[0], bits[0]
    i += 1
    while i < end and at <= certain[i] and nearest[i, 0] & first == word:
        for w in range(1, mask.size):
            if nearest[i, w] & mask[w] != bits[w]:
                return i
        i += 1
    return i


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
    for j in range(64 * mask.size):
        if (bits[label, j >> 6] >> np.uint64(j & 63)) & np.uint64(1):
            members[label, n] = j
            n += 1
    for j in range(n, members.shape[1]):
        members[label, j] = 0
