"""A Zarr v3 shard from values and values from shards, in one go: what zarr-python does chunk by chunk through its event loop.

The layout is that of the sharding_indexed codec (ZEP 2): inner chunks one after another, each a zstd frame; then where each
begins and how long it is (two little-endian uint64 in C order of the chunks, both 2^64 - 1 where a chunk holds nothing
but the fill); then the CRC-32C of that index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from smscale.places import Place

#: Offset and length of a chunk that is not stored.
_ABSENT = np.uint64(2**64 - 1)
#: Start and stop along each axis.
Window = tuple[tuple[int, int], ...]


def level_of(array: zarr.Array) -> int | None:
    """The zstd level of an array whose shards `encode` can make; None for any other layout."""
    codecs: tuple[Any, ...] = tuple(getattr(array.metadata, "codecs", ()))
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or array.dtype.kind not in "fiu":
        return None
    inner, index = codecs[0].codecs, codecs[0].index_codecs
    if [type(codec) for codec in (*inner, *index)] != [BytesCodec, ZstdCodec, BytesCodec, Crc32cCodec]:
        return None
    compressor = inner[1]
    if codecs[0].index_location.value != "end" or array.dtype.byteorder == ">" or not isinstance(compressor, ZstdCodec):
        return None
    return None if compressor.checksum else int(compressor.level)


def encode(
    values: np.ndarray, shard: tuple[int, ...], chunk: tuple[int, ...], fill: object, level: int
) -> bytes | None:
    """The bytes of one shard; None where it holds nothing but the fill, and is not stored.

    Parameters
    ----------
    values : at most of the shape `shard`: at the array's edge the rest is filled up
    shard, chunk : shapes; a shard is a multiple of its chunk
    """
    if values.shape != shard:
        whole = np.full(shard, fill, values.dtype)
        whole[tuple(slice(0, size) for size in values.shape)] = values
        values = whole
    counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
    index = np.full((*counts, 2), _ABSENT, "<u8")
    frames, end = [], 0
    for place in np.ndindex(*counts):
        part = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunk, strict=True))
        piece = np.ascontiguousarray(values[part])
        if _is_fill(piece, fill):
            continue
        frame = _codec(level).encode(piece)
        index[place] = end, len(frame)
        frames.append(frame)
        end += len(frame)
    if not frames:
        return None
    positions = index.tobytes()
    return b"".join([*frames, positions, google_crc32c.value(positions).to_bytes(4, "little")])


@lru_cache
def _codec(level: int) -> Zstd:
    return Zstd(level)


def _is_fill(piece: np.ndarray, fill: object) -> bool:
    first = piece.flat[0]
    if fill != fill:  # NaN
        return bool(first != first) and bool(np.isnan(piece).all())
    return bool(first == fill) and bool((piece == fill).all())


# -- reading ----------------------------------------------------------------------------------------


def window_of(shape: Sequence[int], region: Sequence[Any]) -> Window | None:
    """Start and stop of a region along each axis; None for what is no plain window with something in it."""
    region = region or (slice(None),) * len(shape)
    if len(region) != len(shape) or any(not isinstance(part, slice) or part.step not in (None, 1) for part in region):
        return None
    found = tuple(part.indices(size)[:2] for part, size in zip(region, shape, strict=True))
    return found if all(start < stop for start, stop in found) else None


def read(folder: Place, array: zarr.Array, window: Window) -> np.ndarray:
    """The values of a window of an array whose shards are as `encode` makes them (`level_of`).

    Raises
    ------
    ValueError, RuntimeError
        for a shard that is damaged.
    """
    out = np.full([stop - start for start, stop in window], array.fill_value, array.dtype)
    shard, chunk = array.shards or array.chunks, array.chunks
    for place in itertools.product(*(range(a // s, -(-b // s)) for (a, b), s in zip(window, shard, strict=True))):
        try:
            file = (folder / array.metadata.encode_chunk_key(place)).open("rb")
        except FileNotFoundError:  # nothing but the fill
            continue
        with file:
            _read_shard(file, out, window, [p * s for p, s in zip(place, shard, strict=True)], shard, chunk)
    return out


def _read_shard(
    file: BinaryIO, out: np.ndarray, window: Window, origin: Sequence[int], shard: Sequence[int], chunk: Sequence[int]
) -> None:
    """Put into `out` what a shard that begins at `origin` holds of the window."""
    index = _index(file, [s // c for s, c in zip(shard, chunk, strict=True)])
    for at in _touched(window, origin, shard, chunk):
        offset, length = index[at]
        if offset == _ABSENT:
            continue
        file.seek(int(offset))
        piece = np.frombuffer(_codec(1).decode(file.read(int(length))), out.dtype).reshape(tuple(chunk))
        begins = [o + i * c for o, i, c in zip(origin, at, chunk, strict=True)]
        parts = [(max(a, b), min(z, b + c)) for (a, z), b, c in zip(window, begins, chunk, strict=True)]
        there = tuple(slice(lo - a, hi - a) for (lo, hi), (a, _) in zip(parts, window, strict=True))
        out[there] = piece[tuple(slice(lo - b, hi - b) for (lo, hi), b in zip(parts, begins, strict=True))]


def _touched(
    window: Window, origin: Sequence[int], shard: Sequence[int], chunk: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Places of a shard's chunks that meet the window."""
    sides = zip(window, origin, shard, chunk, strict=True)
    return itertools.product(*(range(max(a - o, 0) // c, -(-min(b - o, s) // c)) for (a, b), o, s, c in sides))


def _index(file: BinaryIO, counts: Sequence[int]) -> np.ndarray:
    """(*counts, 2) uint64 from a shard's end, checked."""
    size = 16 * int(np.prod(counts))
    file.seek(0, 2)
    if file.tell() < size + 4:
        raise ValueError(f"{file.name}: too short for its index")
    file.seek(-(size + 4), 2)
    held = file.read(size + 4)
    if google_crc32c.value(held[:size]) != int.from_bytes(held[size:], "little"):
        raise ValueError(f"{file.name}: its index is damaged (CRC-32C)")
    return np.frombuffer(held[:size], "<u8").reshape(*counts, 2)
