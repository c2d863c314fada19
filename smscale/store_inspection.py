"""What stands in a Zarr store on disk, from its JSON documents alone: layout, codecs, files, sizes.

Nothing is decoded here, so a store with broken chunks can be looked at. `store` reads values.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smscale.errors import StoreError
from smscale.places import Place, walk
from smscale.store import METADATA, UNFINISHED, document, inside

#: Bytes read at once for a file's checksum.
PIECE = 1 << 20


@dataclass(frozen=True)
class Array:
    """One array of a store: what its metadata document says.

    Parameters
    ----------
    store : folder of the store
    path : of the array in the store, as fine/overpass/values
    shape, chunks : cells along each dimension
    shards : cells of one file along each dimension; None where a chunk is a file
    codec : how chunks are compressed, as "zstd 3"
    finished : whether readers see it
    """

    store: Place
    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    codec: str
    separator: str
    finished: bool
    attrs: dict[str, Any]

    @property
    def group(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def file_cells(self) -> tuple[int, ...]:
        """Cells of one file along each dimension."""
        return self.shards or self.chunks

    @property
    def item_bytes(self) -> int:
        """Bytes of one value; 0 where values have no fixed size (text)."""
        try:
            return np.dtype(self.dtype).itemsize
        except TypeError:
            return 0

    @property
    def logical_bytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return math.prod(self.shape) * self.item_bytes

    @property
    def is_coordinate(self) -> bool:
        """Whether it only labels others: at most one dimension, and no data of its own."""
        return len(self.shape) < 2

    def file(self, index: Sequence[int]) -> Place:
        """Path of one chunk's or shard's file."""
        key = self.separator.join(["c", *map(str, index)])
        return inside(self.store) / self.path / key

    def files(self, region: Sequence[Sequence[int]]) -> Iterator[tuple[Place, tuple[slice, ...]]]:
        """Files that a region ([start, stop] along each axis) touches, each with the part of the array that it holds."""
        spans = [
            range(start // size, max(-(-stop // size), start // size + 1))
            for (start, stop), size in zip(region, self.file_cells, strict=True)
        ]
        for index in itertools.product(*spans):
            part = tuple(
                slice(i * size, min((i + 1) * size, whole))
                for i, size, whole in zip(index, self.file_cells, self.shape, strict=True)
            )
            yield self.file(index), part

    @property
    def whole(self) -> tuple[tuple[int, int], ...]:
        """The region that is all of it."""
        return tuple((0, size) for size in self.shape)

    def on_disk(self) -> tuple[int, int]:
        """Bytes and number of its files, its metadata document included."""
        sizes = [path.stat().st_size for path in (inside(self.store) / self.path).rglob("*") if path.is_file()]
        return sum(sizes), len(sizes)


def read_array(store: Place, path: str) -> Array:
    """An array's layout, finished or not; where it is being made longer, the longer one.

    Raises
    ------
    StoreError
        if there is no metadata document, or it cannot be understood.
    """
    file = store / path / METADATA
    try:
        found = document(store, path)
        if found is not None:
            return _array(store, path, json.loads(found[0]), found[1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StoreError(
            f"{file}: cannot be understood as an array's metadata ({type(error).__name__}: {error})"
        ) from None
    raise StoreError(f"{file}: is missing, so the array's chunks cannot be read")


def arrays(store: Place) -> Iterator[Array]:
    """Every array of a store, by path.

    Raises
    ------
    StoreError
        if a metadata document cannot be understood.
    """
    for path in array_paths(store):
        yield read_array(store, path)


def array_paths(store: Place) -> list[str]:
    """Paths of every array of a store that has a metadata document which is not a group's."""
    found, store = set(), inside(store)
    for folder, folders, names in walk(store):
        if "c" in folders:
            folders.remove("c")  # chunks: no documents below
        documents = [folder / name for name in (UNFINISHED, METADATA) if name in names]
        if documents and not _is_group(documents[0]):
            found.add(folder.relative_to(store).as_posix())
    return sorted(found)


def _is_group(document: Place) -> bool:
    try:
        return json.loads(document.read_text()).get("node_type") == "group"
    except (OSError, ValueError, AttributeError):
        return document.parent.name in ("", ".") or any(p.is_dir() and p.name != "c" for p in document.parent.iterdir())


def _array(store: Place, path: str, document: dict[str, Any], finished: bool) -> Array:
    if document["node_type"] != "array":
        raise ValueError("it describes a group")
    outer = tuple(map(int, document["chunk_grid"]["configuration"]["chunk_shape"]))
    codecs, chunks, shards = document["codecs"], outer, None
    if codecs and codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        chunks, shards, codecs = tuple(map(int, inner["chunk_shape"])), outer, inner["codecs"]
    shape = tuple(map(int, document["shape"]))
    return Array(
        store=store,
        path=path,
        dims=tuple(document.get("dimension_names") or [f"dim_{i}" for i in range(len(shape))]),
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=_dtype(document["data_type"]),
        codec=_codec(codecs),
        separator=document["chunk_key_encoding"]["configuration"]["separator"],
        finished=finished,
        attrs=dict(document.get("attributes") or {}),
    )


def _dtype(data_type: Any) -> str:
    """NumPy's name of a Zarr v3 data type; extension types by their own name."""
    if isinstance(data_type, str):
        return data_type
    settings = data_type.get("configuration", {})
    if data_type["name"] == "numpy.datetime64":
        return f"datetime64[{settings.get('unit', 'ns')}]"
    return str(data_type["name"])


def _codec(codecs: Sequence[dict[str, Any]]) -> str:
    """The compressor, with its level."""
    names = []
    for codec in codecs:
        if codec["name"] not in ("bytes", "transpose", "crc32c", "vlen-utf8"):
            level = (codec.get("configuration") or {}).get("level")
            names.append(codec["name"] if level is None else f"{codec['name']} {level}")
    return ", ".join(names) or "none"


def file_checksum(path: Place) -> str:
    """BLAKE2b-128 of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def small_files(store: Place, group: str = "") -> list[Place]:
    """Files of a group that no receipt covers: metadata documents, and the chunks of coordinates."""
    found, root = [], inside(store)
    for here, folders, names in walk(root / group if group else root):
        documents = [here / name for name in names if name == METADATA]
        found += documents
        if "c" in folders:
            folders.remove("c")
        if documents and not _is_group(documents[0]):
            array = read_array(store, here.relative_to(root).as_posix())
            if array.is_coordinate:
                chunks = here / "c"
                found += [chunks] if chunks.is_file() else sorted(p for p in chunks.rglob("*") if p.is_file())
    return sorted(found)
