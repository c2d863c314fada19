"""Gather the pixels of stored tiles into cells: k x k sub-points of each cell look up one pixel each, then are reduced.

Tiles come one at a time, in any number; sums grow until the last has come. Only pixels that are looked up are decoded,
through the tables of `lookup.Coded`. The look-up (`flat`) counts pixels through all tiles of a window laid end to end: the
tile at hand begins at `first`. Sub-points that lie in another tile wait for theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.kernels.lookup import Coded

#: What a missing class is written as.
CLASS_FILL = 255
#: What a view time is written as where there is no view; no table gives it a meaning.
NO_VIEW = 255

Words = NDArray[np.int64]


class Views(NamedTuple):
    """Temperatures as stored, and their view times, of some steps: (t, m, n) uint16 and uint8, `NO_VIEW` where there is none."""

    lst: NDArray[np.uint16]
    time: NDArray[np.uint8]

    @classmethod
    def none(cls, shape: tuple[int, int, int]) -> Views:
        return cls(np.zeros(shape, np.uint16), np.full(shape, NO_VIEW, np.uint8))


def positions(
    rows: NDArray[np.int64], x: NDArray[np.float64], shrink: NDArray[np.float64], left: float, step: float, pixels: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Positions of points in the sinusoidal tiles that they touch, laid end to end in order of h, then v.

    Parameters
    ----------
    rows : (m,) row of the global mosaic of tiles
    x, shrink : (n,) metres east at the equator, (m,) cosine of latitude: a point lies at x shrink
    left, step : metres, the western edge of the mosaic and the size of a pixel
    pixels : along a tile's side

    Returns
    -------
    flat : (m, n) int32; meaningless where there are more tiles than 32 bits can count
    codes : of the tiles, h x 18 + v, ascending
    """
    flat = np.empty((rows.size, x.size), np.int32)
    touched = np.zeros(36 * 18, np.bool_)
    _mark_tiles(rows, x, shrink, left, step, pixels, touched)
    codes = np.flatnonzero(touched)
    first = np.zeros(36 * 18, np.int64)
    first[codes] = np.arange(codes.size) * pixels**2
    _lay_positions(rows, x, shrink, left, step, pixels, first, flat)
    return flat, codes


def add_mean(pixels: Coded, flat: NDArray[np.int32], first: int, k: int, sums: NDArray, words: Words) -> int:
    """Add a tile's valid sub-points to the sums of their cells.

    Parameters
    ----------
    pixels : values (float32 table), of any shape
    flat : (m k, n k) int32, position of each sub-point; negative where there is none
    sums : (2, m, n) float64, sum and number, added to
    words : (256 or 65536,) counts of quality words of the sub-points, added to

    Returns
    -------
    number of sub-points of accepted quality without a value
    """
    quality, accepted = _quality(pixels)
    return int(_add_mean(pixels.raw.ravel(), pixels.values, quality, accepted, flat, first, k, sums[0], sums[1], words))


def mean_of(sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """(m, n) mean of the sub-points that were added, NaN where there was none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[0] / sums[1]).astype(np.float32)


def add_classes(pixels: Coded, flat: NDArray[np.int32], first: int, k: int, counts: NDArray[np.uint16]) -> None:
    """Count the classes of a tile's sub-points; `counts` (c, m, n) of the classes 0 to c - 1 is added to."""
    quality, accepted = _quality(pixels)
    _add_classes(pixels.raw.ravel(), pixels.values, quality, accepted, flat, first, k, counts)


def majority_of(counts: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(m, n) the most frequent class, of equal counts the lowest; 255 where none was counted."""
    return np.where(counts.any(axis=0), counts.argmax(axis=0), CLASS_FILL).astype(np.uint8)


def add_views(
    lst: Coded,
    view: Coded,
    window: tuple[NDArray[np.int32], int],
    lon: NDArray[np.float64],
    nominal: float,
    evening: bool,
    step_of: NDArray[np.int64],
    into: Views,
    words: Words,
) -> int:
    """Lay the views of one file on the steps they belong to; of two for a cell and step the one nearer to `nominal` stays.

    The local date of a view, counted from the file's UTC date, is -floor((view time - lon / 15) / 24), and one more for
    an evening view (from 12 h on) that belongs to the night before the next morning.

    Parameters
    ----------
    lst, view : the tile's temperature and view time (hours of local solar time); of the latter only values count
    window : (m, n) int32 positions and where the tile begins among them
    lon : (n,) degrees east, within -180 to 180
    nominal : hours, the view time that is looked for
    evening : whether views from 12 h on belong to the next date
    step_of : (4,) the step of the local dates -1, 0, 1, 2 days from the file's; -1 where there is none
    into : what is found so far, changed
    words : (256 or 65536,) counts of quality words, added to

    Returns
    -------
    number of cells of accepted quality without a temperature or a time
    """
    quality, accepted = _quality(lst)
    valid = np.isfinite(lst.values)
    hours = view.values.astype(np.float64)
    flat, first = window
    return int(
        _add_views(
            lst.raw.ravel(), valid, view.raw.ravel(), hours, quality, accepted, flat, first,
            lon / 15.0, nominal, evening, step_of, into.lst, into.time, words,
        )
    )  # fmt: skip


def decode_views(
    views: Views, values: NDArray[np.float32], hours: NDArray[np.float32], out: NDArray[np.float32]
) -> int:
    """Temperature and view time by their tables into `out` (t, m, n, 2), NaN where there is no view; the number of views."""
    return int(_decode_views(views.lst, views.time, values, hours, out))


def _quality(pixels: Coded) -> tuple[NDArray, NDArray[np.bool_]]:
    """Quality words and their table; without them an empty array, which the kernels take as all accepted."""
    if pixels.quality is None or pixels.accepted is None:
        return np.zeros(0, np.uint8), np.ones(256, np.bool_)
    return pixels.quality.ravel(), pixels.accepted


@njit(inline="always")
def _column(x, shrink, left, step, columns):  # type: ignore[no-untyped-def]
    return min(max(np.int64(np.floor((x * shrink - left) / step)), 0), columns - 1)


@njit(nogil=True, cache=True)
def _mark_tiles(rows, x, shrink, left, step, pixels, touched):  # type: ignore[no-untyped-def]
    # From west to east h grows; where x falls, at the date line, it begins again.
    for i in range(rows.size):
        begin = 0
        for j in range(x.size):
            if j + 1 == x.size or x[j + 1] < x[j]:
                low = _column(x[begin], shrink[i], left, step, 36 * pixels) // pixels
                high = _column(x[j], shrink[i], left, step, 36 * pixels) // pixels
                for h in range(low, high + 1):
                    touched[h * 18 + rows[i] // pixels] = True
                begin = j + 1


@njit(nogil=True, cache=True)
def _lay_positions(rows, x, shrink, left, step, pixels, first, flat):  # type: ignore[no-untyped-def]
    for i in range(rows.size):
        v = rows[i] // pixels
        line = (rows[i] - v * pixels) * pixels
        for j in range(x.size):
            column = _column(x[j], shrink[i], left, step, 36 * pixels)
            h = column // pixels
            flat[i, j] = first[h * 18 + v] + line + column - h * pixels


@njit(nogil=True, cache=True)
def _decode_views(lst, time, values, hours, out):  # type: ignore[no-untyped-def]
    count = 0
    for t in range(lst.shape[0]):
        for i in range(lst.shape[1]):
            for j in range(lst.shape[2]):
                seen = time[t, i, j] != NO_VIEW
                count += seen
                out[t, i, j, 0] = values[lst[t, i, j]] if seen else np.float32(np.nan)
                out[t, i, j, 1] = hours[time[t, i, j]] if seen else np.float32(np.nan)
    return count


@njit(nogil=True, cache=True)
def _add_mean(raw, values, quality, accepted, flat, first, k, total, count, words):  # type: ignore[no-untyped-def]
    empty = 0
    for i in range(flat.shape[0]):
        for j in range(flat.shape[1]):
            p = flat[i, j] - first
            if flat[i, j] < 0 or p < 0 or p >= raw.size:
                continue
            if quality.size:
                words[quality[p]] += 1
                if not accepted[quality[p]]:
                    continue
            value = values[raw[p]]
            if value == value:
                total[i // k, j // k] += value
                count[i // k, j // k] += 1
            else:
                empty += 1
    return empty


@njit(nogil=True, cache=True)
def _add_classes(raw, values, quality, accepted, flat, first, k, counts):  # type: ignore[no-untyped-def]
    for i in range(flat.shape[0]):
        for j in range(flat.shape[1]):
            p = flat[i, j] - first
            if flat[i, j] < 0 or p < 0 or p >= raw.size or (quality.size and not accepted[quality[p]]):
                continue
            value = values[raw[p]]
            if value < counts.shape[0]:
                counts[value, i // k, j // k] += 1


@njit(nogil=True, cache=True)
def _add_views(  # type: ignore[no-untyped-def]
    lst,
    valid,
    view,
    hours,
    quality,
    accepted,
    flat,
    first,
    lon_hours,
    nominal,
    evening,
    step_of,
    out_lst,
    out_time,
    words,
):
    empty = 0
    last, run = np.int64(0), 0  # equal words lie side by side: they are counted by runs
    for i in range(flat.shape[0]):
        for j in range(flat.shape[1]):
            p = flat[i, j] - first
            if flat[i, j] < 0 or p < 0 or p >= lst.size:
                continue
            if quality.size:
                word = np.int64(quality[p])
                if word != last:
                    words[last] += run
                    last, run = word, 0
                run += 1
                if not accepted[word]:
                    continue
            time = hours[view[p]]
            if not valid[lst[p]] or time != time:
                empty += 1
                continue
            offset = -np.int64(np.floor((time - lon_hours[j]) / 24.0))
            if evening and time >= 12.0:
                offset += 1
            step = step_of[offset + 1]
            if step < 0:
                continue
            away = abs((time - nominal + 12.0) % 24.0 - 12.0)
            held = out_time[step, i, j]
            if held == NO_VIEW or away < abs((hours[held] - nominal + 12.0) % 24.0 - 12.0):
                out_lst[step, i, j] = lst[p]
                out_time[step, i, j] = view[p]
    words[last] += run
    return empty
