"""A Zarr v3 shard from values, in one go: what zarr-python does chunk by chunk through its event loop.

The layout is that of the sharding_indexed codec (ZEP 2): inner chunks one after another, each a zstd frame; then where each
begins and how long it is (two little-endian uint64 in C order of the chunks, both 2^64 - 1 where a chunk holds nothing
but the fill); then the CRC-32C of that index.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

#: Offset and length of a chunk that is not stored.
_ABSENT = np.uint64(2**64 - 1)


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
