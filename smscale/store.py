"""Where cubes lie: the one module that creates and writes Zarr.

A group is made first as a template, filled by whole shards, and published when it is whole. Until then its metadata
documents carry another name (`unfinished.json`), so that no reader, plain xarray included, sees an unfinished array:
a killed run leaves chunks without metadata, never an array that looks finished.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
import warnings
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from smscale import places, shards
from smscale.errors import InputError, StoreError
from smscale.kernels.nans import one_nan
from smscale.places import Place, Remote, is_remote, told

METADATA = "zarr.json"
UNFINISHED = "unfinished.json"

#: zstd level of every array: on LST of a genuine tile 2 makes files as small as 3 in five sixths of the time.
_COMPRESSOR = ZstdCodec(level=2)


#: What was written: store (its name), array (path in it), region ([start, stop] along each axis), checksum of the values.
Receipt = dict[str, Any]


def base(url: str | Place) -> Store:
    """The Zarr store at a directory or an s3:// URL."""
    where = places.place(url)
    return (
        _Remote(ObjectStore(places.zarr_root(where)), where)
        if isinstance(where, Remote)
        else LocalStore(Path(str(where)))
    )


class _Remote(WrapperStore[Store]):
    """A store in a bucket, whose refusals are told in one line."""

    def __init__(self, store: Store, where: Remote) -> None:
        super().__init__(store)
        self._where = where

    def _with_store(self, store: Store) -> _Remote:
        return _Remote(store, self._where)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with told(self._where / key):
            return await self._store.get(key, prototype or default_buffer_prototype(), byte_range)

    async def exists(self, key: str) -> bool:
        with told(self._where / key):
            return await self._store.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        with told(self._where / key):
            await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        with told(self._where / key):
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with told(self._where / prefix):
            await self._store.delete_dir(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with told(self._where / prefix):
            async for name in self._store.list_dir(prefix):
                yield name


class _Unfinished(WrapperStore[Store]):
    """A store whose new metadata documents are named `unfinished.json`; finished ones are read where there is no new one."""

    @staticmethod
    def _hidden(key: str) -> str:
        return key[: -len(METADATA)] + UNFINISHED if key.rpartition("/")[2] == METADATA else key

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        found = await self._store.get(self._hidden(key), prototype, byte_range)
        return (
            found
            if found is not None or self._hidden(key) == key
            else await self._store.get(key, prototype, byte_range)
        )

    async def exists(self, key: str) -> bool:
        return await self._store.exists(self._hidden(key)) or await self._store.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        await self._store.set(self._hidden(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        seen = set()
        async for name in self._store.list_dir(prefix):
            name = METADATA if name == UNFINISHED else name
            if name not in seen:
                seen.add(name)
                yield name


def create(
    url: str | Place,
    group: str,
    template: xr.Dataset,
    chunks: Mapping[str, int],
    shards: Mapping[str, int] | None = None,
) -> None:
    """Make a group's metadata and coordinates; its big variables wait, hidden, for `write` and `publish`.

    Parameters
    ----------
    template : lazy variables (dask arrays, see `empty`) are laid out, in-memory ones (coordinates too) are written now
    chunks, shards : cells along each dimension; a dimension left out is one chunk. A shard is a multiple of its chunk.

    An array of the same name is removed first, and with it its being finished; finished coordinates stay (`remove`
    clears a group whose grid or period is another).
    """
    # Named here, since xarray names only those that it writes now.
    template = template.assign({n: v.assign_attrs(_auxiliary(template, v)) for n, v in template.data_vars.items()})
    for variable in template.data_vars.values():
        variable.encoding.pop("coordinates", None)
    finished = [name for name in template.coords if exists(url, group, str(name))]
    template = template.drop_vars(finished)
    template = template.assign_coords({n: v.astype(object) for n, v in template.coords.items() if v.dtype.kind == "U"})
    encoding = {name: _layout(variable, chunks, shards) for name, variable in template.variables.items()}
    for name in template.variables:
        _delete(base(url), f"{group}/{name}" if group else str(name))
    with _among_unfinished():
        template.to_zarr(
            _Unfinished(base(url)),  # type: ignore[arg-type]
            group=group,
            mode="a",
            compute=False,
            consolidated=False,
            zarr_format=3,
            encoding={name: e for name, e in encoding.items() if name in template.variables},
            safe_chunks=False,
        )


@contextmanager
def _among_unfinished() -> Iterator[None]:
    """Quiet of what is not told to readers: unfinished arrays, and empty folders that some object stores go on listing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at .* is not recognized")
        yield


def extend(url: str | Place, group: str, tail: xr.Dataset, dim: str = "time") -> None:
    """Make the arrays of a group longer along a dimension, hidden until `publish`: readers see the old length until then.

    Parameters
    ----------
    tail : what follows: lazy variables lay out, in-memory ones (coordinates) are written now. Every array along `dim` must be in it
    """
    tail = tail.drop_vars([name for name, variable in tail.variables.items() if dim not in variable.dims])
    tail = tail.assign_coords({n: v.astype(object) for n, v in tail.coords.items() if v.dtype.kind == "U"})
    for variable in tail.variables.values():
        variable.encoding.clear()
    with _among_unfinished():
        tail.to_zarr(
            _Unfinished(base(url)),  # type: ignore[arg-type]
            group=group,
            mode="a",
            append_dim=dim,
            compute=False,
            consolidated=False,
            safe_chunks=False,
        )


def groups(url: str | Place) -> list[str]:
    """Paths of the groups that hold arrays, finished or not."""
    root = zarr.open_group(store=_Unfinished(base(url)), mode="r")
    with _among_unfinished():
        members = root.members(max_depth=None)
    return sorted({path.rpartition("/")[0] for path, item in members if isinstance(item, zarr.Array)})


def arrays(url: str | Place, group: str) -> list[str]:
    """Names of the arrays of a group, finished or not."""
    found = zarr.open_group(store=_Unfinished(base(url)), path=group, mode="r")
    with _among_unfinished():
        return sorted(name for name, _ in found.arrays())


def discard(url: str | Place, group: str) -> None:
    """Forget what was begun on the finished arrays of a group (`extend`, `create`) and never published."""
    store = base(url)
    for name in sync(_members(store, group)):
        path = _path(group, name)
        if exists(url, group, name):
            sync(store.delete(f"{path}/{UNFINISHED}"))


def shape(url: str | Place, group: str, name: str, unfinished: bool = True) -> tuple[int, ...]:
    """Shape of one array, as it will be published, or as it is (`unfinished=False`); empty where there is none."""
    store = _Unfinished(base(url)) if unfinished else base(url)
    try:
        return tuple(zarr.open_array(store=store, path=_path(group, name), mode="r").shape)
    except (FileNotFoundError, zarr.errors.NodeNotFoundError):
        return ()


def empty(shape: Sequence[int], dtype: Any, fill: Any = np.nan) -> dask.array.Array:
    """A lazy array to lay out in a template: no memory, no tasks worth the name."""
    return dask.array.full(tuple(shape), fill, dtype=dtype, chunks=tuple(shape))


def _auxiliary(template: xr.Dataset, variable: xr.DataArray) -> dict[str, str]:
    """CF's attribute of a variable's coordinates that are no axes; nothing where it has none."""
    names = [str(n) for n, c in template.coords.items() if n not in template.dims and set(c.dims) <= set(variable.dims)]
    return {"coordinates": " ".join(sorted(names))} if names else {}


def _layout(variable: xr.Variable, chunks: Mapping[str, int], shards: Mapping[str, int] | None) -> dict[str, Any]:
    """xarray encoding of one variable: chunk, shard, codec, fill."""
    if not variable.ndim:
        return {}
    is_float = np.issubdtype(variable.dtype, np.floating)
    encoding: dict[str, Any] = {"compressors": (_COMPRESSOR,)} if variable.dtype.kind in "fiub" else {}
    if is_float and variable.chunks is not None:
        encoding["_FillValue"] = np.array(np.nan, dtype=variable.dtype)[()]
    if variable.chunks is None:
        return encoding
    size = variable.sizes
    chunk = tuple(min(int(chunks.get(str(d), size[d])), size[d]) for d in variable.dims)
    encoding["chunks"] = chunk
    if shards is not None:
        wanted = (min(int(shards.get(str(d), size[d])), size[d]) for d in variable.dims)
        encoding["shards"] = tuple(-(-s // c) * c for s, c in zip(wanted, chunk, strict=True))
    return encoding


def write(url: str | Place, group: str, name: str, region: tuple[slice, ...], values: np.ndarray) -> Receipt:
    """Write whole shards of one array, finished or not; a receipt for the ledger comes back: where, and the checksum of the values.

    Raises
    ------
    StoreError
        if the region cuts a shard: two writers of one shard would lose data silently.
    """
    array = _opened(str(url), _path(group, name), _document(url, _path(group, name)))
    for axis, (part, size, shard) in enumerate(zip(region, array.shape, array.shards or array.chunks, strict=True)):
        start, stop, _ = part.indices(size)
        if start % shard or (stop % shard and stop != size):
            raise StoreError(
                f"{_path(group, name)}: axis {axis} must be written in multiples of its shard {shard}; got {start}:{stop}"
            )
    values = np.ascontiguousarray(values, dtype=array.dtype)
    if values.dtype.kind == "f":  # a chunk of nothing but NaN is not stored, and reads as the fill's
        values = one_nan(values)
    level = shards.level_of(array)
    if level is None:
        array[region] = values
    else:
        _write_shards(url, array, region, values, level)
    return _receipt(url, _path(group, name), region, values, array.shape)


def receipt(url: str | Place, group: str, name: str) -> Receipt:
    """A receipt for a small array that `create` wrote whole."""
    values = read(url, group, name)
    return _receipt(url, _path(group, name), (slice(None),) * values.ndim, values, values.shape)


def _receipt(
    url: str | Place, path: str, region: tuple[slice, ...], values: np.ndarray, shape: tuple[int, ...]
) -> Receipt:
    return {
        "store": str(url).rstrip("/").rpartition("/")[2],
        "array": path,
        "region": [[*part.indices(size)[:2]] for part, size in zip(region, shape, strict=True)],
        "checksum": checksum(values),
    }


def _document(url: str | Place, path: str) -> tuple[str, int, int, str]:
    """What tells one state of an array's metadata from another: which document holds, its size, when it was written, its tag."""
    where = places.place(url) / path
    files = where.files() if isinstance(where, Remote) else None
    for name in (UNFINISHED, METADATA):
        try:
            if files is None:
                found = (where / name).stat()
                return name, found.st_size, found.st_mtime_ns, ""
            if name in files:
                return name, files[name].st_size, files[name].st_mtime_ns, files[name].tag
        except FileNotFoundError:
            continue
    return "", 0, 0, ""


@lru_cache(maxsize=64)
def _kept(url: str, path: str, document: tuple[str, int, int, str]) -> zarr.Array:
    return zarr.open_array(store=_Unfinished(base(url)), path=path, mode="r+")


def _opened(url: str, path: str, document: tuple[str, int, int, str]) -> zarr.Array:
    """An array to write to; kept open while its metadata stay the same, where that can be told."""
    return (_kept if document[0] else _kept.__wrapped__)(url, path, document)


def _write_shards(
    url: str | Place, array: zarr.Array, region: tuple[slice, ...], values: np.ndarray, level: int
) -> None:
    """Write whole shards without zarr's pipeline, which takes several times as long for chunks of this size."""
    spans = [part.indices(size)[:2] for part, size in zip(region, array.shape, strict=True)]
    shape, chunk = tuple(array.shards or ()), tuple(array.chunks)
    ranges = [range(start // s, -(-stop // s)) for (start, stop), s in zip(spans, shape, strict=True)]
    for place in itertools.product(*ranges):
        inside = tuple(
            slice(i * s - start, min((i + 1) * s, stop) - start)
            for i, s, (start, stop) in zip(place, shape, spans, strict=True)
        )
        encoded = shards.encode(values[inside], shape, chunk, array.fill_value, level)
        _put(url, f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/"), encoded)


def _put(url: str | Place, key: str, content: bytes | None) -> None:
    """Write an object whole, or remove it where there is nothing to write."""
    path = places.place(url) / key
    if isinstance(path, Remote) and content is not None:
        path.write_bytes(content)
        return
    if content is None:
        path.unlink(missing_ok=True)
        return
    assert isinstance(path, Path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # swept as zarr's own are
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def read(url: str | Place, group: str, name: str, region: tuple[slice, ...] = ()) -> np.ndarray:
    """Values of one array, finished or not."""
    array = _opened(str(url), _path(group, name), _document(url, _path(group, name)))
    window = None if is_remote(url) or shards.level_of(array) is None else shards.window_of(array.shape, region)
    if window is not None:
        try:
            return shards.read(Path(str(url)) / _path(group, name), array, window)
        except (ValueError, RuntimeError):  # damaged: Zarr says so in its own words
            pass
    return np.asarray(array[region] if region else array[...])


def publish(url: str | Place, group: str, names: Sequence[str] | None = None) -> None:
    """Make the arrays of a group visible, then the group, then the groups above it.

    `names` limits the arrays (coordinates included where named); without it, all of the group.
    """
    store = base(url)
    members = list(names) if names is not None else sync(_members(store, group))
    paths = [_path(group, name) for name in members] + [group]
    while group:
        group = group.rpartition("/")[0]
        paths.append(group)
    for path in paths:
        sync(_publish(store, path))


async def _members(store: Store, group: str) -> list[str]:
    names = [name async for name in store.list_dir(group)]
    return sorted(name for name in names if name not in (METADATA, UNFINISHED))


async def _publish(store: Store, path: str) -> None:
    hidden = f"{path}/{UNFINISHED}" if path else UNFINISHED
    document = await store.get(hidden, default_buffer_prototype())
    if document is not None:
        await store.set(f"{path}/{METADATA}" if path else METADATA, document)
        await store.delete(hidden)


def open_group(url: str | Place, group: str, unfinished: bool = False) -> xr.Dataset:
    """A finished group as a lazy Dataset.

    Raises
    ------
    StoreError
        where there is no such group, or it is not finished (unless `unfinished` asks for it all the same).
    """
    store = _Unfinished(base(url)) if unfinished else base(url)
    try:
        with _among_unfinished():
            found = xr.open_zarr(store, group=group or None, chunks=None, consolidated=False, zarr_format=3)  # type: ignore[arg-type]
            found = found.assign_coords({n: _in_memory(c) for n, c in found.coords.items() if c.ndim <= 1})
            return found.assign({n: v.chunk(_shards_of(v)) for n, v in found.data_vars.items()})
    except (FileNotFoundError, KeyError):
        where = f"{url}/{group}" if group else str(url)
        if not unfinished and sync(base(url).exists(f"{group}/{UNFINISHED}" if group else UNFINISHED)):
            raise StoreError(f"{where} is not finished: run the recipe again, it goes on where it stopped") from None
        raise StoreError(f"{where} does not exist: run the stage that makes it first") from None


def _shards_of(data: xr.DataArray) -> dict[Any, int]:
    """Cells of a shard along each dimension: the lazy chunks of an array, since smaller ones are a task each."""
    sizes = data.encoding.get("shards") or data.encoding.get("chunks") or data.shape
    return dict(zip(data.dims, sizes, strict=True))


def _in_memory(coordinate: xr.DataArray) -> xr.DataArray:
    """A small coordinate, loaded; text as NumPy's fixed width, which every operation takes."""
    coordinate = coordinate.load()
    return (
        coordinate.copy(data=np.array(coordinate.values.tolist(), str)) if coordinate.dtype.kind == "T" else coordinate
    )


def exists(url: str | Place, group: str, name: str = "") -> bool:
    """Whether a group, or an array of it, is finished."""
    path = _path(group, name) if name else group
    return bool(sync(base(url).exists(f"{path}/{METADATA}" if path else METADATA)))


def sweep(url: str | Place) -> int:
    """Remove what a killed writer left behind (zarr's `*.partial` files); how many there were."""
    where = places.place(url)
    if isinstance(where, Remote) or not where.is_dir():  # an object is there whole or not at all
        return 0
    leftovers = list(where.rglob("*.partial"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def checksum(values: np.ndarray) -> str:
    """CRC-32 of the values' bytes, and the exclusive or of their 64-bit words; NaNs count as they lie.

    It tells damage, at the speed of memory; it is no cryptographic digest.
    """
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    words = data[: data.size // 8 * 8].view(np.uint64)
    return f"{zlib.crc32(data.data):08x}{int(np.bitwise_xor.reduce(words)):016x}"


def fingerprint(*parts: Any) -> str:
    """BLAKE2b-128 of JSON-able values: what a stage or a block was made from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def remove(url: str | Place, group: str) -> None:
    """Remove a group, or an array, and all that is in it."""
    _delete(base(url), group)


def _path(group: str, name: str) -> str:
    if not name:
        raise InputError("an array needs a name")
    return f"{group}/{name}" if group else name


def _delete(store: Store, path: str) -> None:
    """Remove an array, its metadata first so that no reader sees it half gone."""

    async def delete() -> None:
        for document in (METADATA, UNFINISHED):
            await store.delete(f"{path}/{document}" if path else document)
        await store.delete_dir(path)

    sync(delete())
