"""Zarr engines and codecs under one small interface: make an array, write a part, read a part.

The one module of this package that meets zarr. What is not installed is left out, and named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from smscale import store
from smscale.bench.packing import PACKINGS
from smscale.bench.strategies import OUR_CODEC, OUR_ENGINE, Shape, Strategy

Region = tuple[slice, slice, slice, slice]

DIMS = ("time", "lat", "lon", "variable")
NAME = "values"
#: zstd's level in `store`.
LEVEL = 2


@contextmanager
def _in_silence() -> Iterator[None]:
    """Without zarr's warning that a codec is in no specification yet: the table names it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        yield


class Array(Protocol):
    """An array of one engine."""

    def write(self, region: Region, values: np.ndarray) -> None: ...

    def read(self, region: Region) -> np.ndarray: ...


def _pcodec() -> dict[str, Any]:
    from zarr.codecs.numcodecs import PCodec

    return {"serializer": PCodec(level=8), "compressors": None}


#: Codec -> what it is called with in zarr-python, and the module that it needs.
CODECS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    OUR_CODEC: (lambda: {"compressors": (ZstdCodec(level=LEVEL),)}, "zarr"),
    "blosc-zstd": (lambda: {"compressors": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),)}, "zarr"),
    "blosc-lz4": (lambda: {"compressors": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),)}, "zarr"),
    "pcodec": (_pcodec, "pcodec"),
}


class Ours:
    """`smscale.store`: zarr-python, shards encoded by ourselves, a checksum of all that is written."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, region: Region, values: np.ndarray) -> None:
        store.write(self.path, "", NAME, region, values)

    def read(self, region: Region) -> np.ndarray:
        return store.read(self.path, "", NAME, region)


class ZarrPython:
    """zarr-python alone."""

    pipeline = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def __init__(self, path: Path) -> None:
        # The pipeline is chosen when an array is opened.
        with _in_silence(), zarr.config.set({"codec_pipeline.path": self.pipeline}):
            self.array = zarr.open_array(store=str(path), path=NAME, mode="r+")

    def write(self, region: Region, values: np.ndarray) -> None:
        self.array[region] = values

    def read(self, region: Region) -> np.ndarray:
        return np.asarray(self.array[region])


class Zarrs(ZarrPython):
    """zarr-python with the codecs of zarrs, in Rust."""

    pipeline = "zarrs.ZarrsCodecPipeline"

    def __init__(self, path: Path) -> None:
        import zarrs  # noqa: F401 - registers its pipeline

        super().__init__(path)


class TensorStore:
    """TensorStore, in C++, without a cache of its own."""

    def __init__(self, path: Path) -> None:
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / NAME}/"}}
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self.array = tensorstore.open(spec, context=context, open=True).result()

    def write(self, region: Region, values: np.ndarray) -> None:
        self.array[region].write(values).result()

    def read(self, region: Region) -> np.ndarray:
        return np.asarray(self.array[region].read().result())


#: Engine -> what opens an array, and the module that it needs.
ENGINES: dict[str, tuple[Callable[[Path], Array], str]] = {
    OUR_ENGINE: (Ours, "zarr"),
    "zarr-python": (ZarrPython, "zarr"),
    "zarrs": (Zarrs, "zarrs"),
    "tensorstore": (TensorStore, "tensorstore"),
}


def installed() -> tuple[list[str], list[str], list[str]]:
    """Codecs and engines that can be used, and names of those that are not installed."""
    codecs = [name for name, (_, module) in CODECS.items() if find_spec(module)]
    engines = [name for name, (_, module) in ENGINES.items() if find_spec(module)]
    return codecs, engines, [name for name in (*CODECS, *ENGINES) if name not in (*codecs, *engines)]


def create(path: Path, strategy: Strategy, size: Shape, status: bool = False) -> Array:
    """Make an empty array of a strategy, of values or of a map's status, and open it with the strategy's engine."""
    packing = PACKINGS[strategy.packing]
    dtype, fill = ("uint32", 0) if status else (packing.dtype, packing.fill)
    if strategy.engine == OUR_ENGINE:
        template = xr.Dataset({NAME: (DIMS, store.empty(size, dtype, fill))})
        chunks, shards = (dict(zip(DIMS, s or (), strict=False)) for s in (strategy.chunk, strategy.shard))
        store.create(path, "", template, chunks, shards or None)
        store.publish(path, "")
    else:
        settings, _ = CODECS[strategy.codec]
        with _in_silence():
            zarr.create_array(
                store=str(path),
                name=NAME,
                shape=size,
                chunks=strategy.chunk,
                shards=strategy.shard,
                dtype=dtype,
                fill_value=fill,
                **settings(),
            )
    return opened(path, strategy)


def opened(path: Path, strategy: Strategy) -> Array:
    """An array that is there, with values as the cube has them: packed when written, unpacked when read."""
    engine, _ = ENGINES[strategy.engine]
    array = engine(path)
    return array if strategy.lossless else _Packed(array, strategy.packing)


class _Packed:
    def __init__(self, array: Array, packing: str) -> None:
        self.array, self.packing = array, PACKINGS[packing]

    def write(self, region: Region, values: np.ndarray) -> None:
        self.array.write(region, self.packing.pack(values))

    def read(self, region: Region) -> np.ndarray:
        return self.packing.unpack(self.array.read(region))
