"""Where cubes lie: the one part that creates and writes Zarr.

A group is made first as a template, filled by whole shards, and published when it is whole: no reader sees an unfinished
array. How a store is kept, as Zarr (`plain`) or as an Icechunk repository (`icechunks`), the name of its folder says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync

from smscale import places, shards
from smscale.errors import InputError, StoreError
from smscale.kernels.nans import one_nan
from smscale.places import Place
from smscale.store.kinds import METADATA as METADATA
from smscale.store.kinds import UNFINISHED as UNFINISHED
from smscale.store.kinds import Kind, document_of
from smscale.store.plain import Plain

#: Ending of the name of a store that is kept as an Icechunk repository.
ICECHUNK = ".icechunk"

#: zstd level of every array: on LST of a genuine tile 2 makes files as small as 3 in five sixths of the time.
_COMPRESSOR = ZstdCodec(level=2)


#: What was written: store (its name), array (path in it), region ([start, stop] along each axis), checksum of the values.
Receipt = dict[str, Any]


def kind(url: str | Place) -> Kind:
    """How the store at a directory or an s3:// URL is kept."""
    where = places.place(url)
    if where.suffix != ICECHUNK:
        return Plain(where)
    from smscale.store.icechunks import Repository

    return Repository(where)


def make(url: str | Place) -> None:
    """Make a store in which nothing lies yet, where that takes more than its first array."""
    kind(url).make()


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
    held, store = kind(url), kind(url).published()
    finished = [name for name in template.coords if sync(store.exists(document_of(_path(group, str(name)))))]
    template = template.drop_vars(finished)
    template = template.assign_coords({n: v.astype(object) for n, v in template.coords.items() if v.dtype.kind == "U"})
    encoding = {name: _layout(variable, chunks, shards) for name, variable in template.variables.items()}
    held.remove([_path(group, str(name)) for name in template.variables])
    _lay_out(held, group, template, encoding=encoding)


def _lay_out(held: Kind, group: str, template: xr.Dataset, **how: Any) -> None:
    """Write what a template holds in memory and the metadata of the rest."""
    paths = [_path(group, str(name)) for name in template.variables]
    with held.laying_out(paths) as store, _among_unfinished():
        template.to_zarr(
            store,  # type: ignore[arg-type]
            group=group,
            mode="a",
            compute=False,
            consolidated=False,
            zarr_format=3,
            safe_chunks=False,
            **how,
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
    _lay_out(kind(url), group, tail, append_dim=dim)


def groups(url: str | Place) -> list[str]:
    """Paths of the groups that hold arrays, finished or not."""
    root = zarr.open_group(store=kind(url).unfinished(), mode="r")
    with _among_unfinished():
        members = root.members(max_depth=None)
    return sorted({path.rpartition("/")[0] for path, item in members if isinstance(item, zarr.Array)})


def arrays(url: str | Place, group: str) -> list[str]:
    """Names of the arrays of a group, finished or not."""
    found = zarr.open_group(store=kind(url).unfinished(), path=group, mode="r")
    with _among_unfinished():
        return sorted(name for name, _ in found.arrays())


def discard(url: str | Place, group: str) -> None:
    """Forget what was begun on the finished arrays of a group (`extend`, `create`) and never published."""
    kind(url).discard(group)


def shape(url: str | Place, group: str, name: str, unfinished: bool = True) -> tuple[int, ...]:
    """Shape of one array, as it will be published, or as it is published (`unfinished=False`); empty where there is none."""
    store = kind(url).unfinished() if unfinished else kind(url).published()
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
    array = _opened(url, _path(group, name))
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


@lru_cache(maxsize=64)
def _kept(url: str, path: str, state: Hashable) -> zarr.Array:
    return zarr.open_array(store=kind(url).unfinished(), path=path, mode="r+")


def _opened(url: str | Place, path: str) -> zarr.Array:
    """An array to write to; kept open while its metadata stay the same, where that can be told."""
    state = kind(url).state(path)
    return (_kept if state else _kept.__wrapped__)(str(url), path, state)


def _write_shards(
    url: str | Place, array: zarr.Array, region: tuple[slice, ...], values: np.ndarray, level: int
) -> None:
    """Write whole shards without zarr's pipeline, which takes several times as long for chunks of this size."""
    held = kind(url)
    spans = [part.indices(size)[:2] for part, size in zip(region, array.shape, strict=True)]
    shape, chunk = tuple(array.shards or ()), tuple(array.chunks)
    ranges = [range(start // s, -(-stop // s)) for (start, stop), s in zip(spans, shape, strict=True)]
    for place in itertools.product(*ranges):
        inside = tuple(
            slice(i * s - start, min((i + 1) * s, stop) - start)
            for i, s, (start, stop) in zip(place, shape, spans, strict=True)
        )
        encoded = shards.encode(values[inside], shape, chunk, array.fill_value, level)
        held.put(f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/"), encoded)


def read(url: str | Place, group: str, name: str, region: tuple[slice, ...] = ()) -> np.ndarray:
    """Values of one array, finished or not."""
    array = _opened(url, _path(group, name))
    files = kind(url).files(array.store)
    window = None if files is None or shards.level_of(array) is None else shards.window_of(array.shape, region)
    if files is not None and window is not None:
        try:
            return shards.read(files / _path(group, name), array, window)
        except (ValueError, RuntimeError):  # damaged: Zarr says so in its own words
            pass
    return np.asarray(array[region] if region else array[...])


def publish(url: str | Place, group: str, names: Sequence[str] | None = None) -> None:
    """Make the arrays of a group visible, then the group, then the groups above it.

    `names` limits the arrays (coordinates included where named); without it, all of the group.
    """
    held = kind(url)
    members = list(names) if names is not None else held.members(group)
    paths = [_path(group, name) for name in members] + [group]
    while group:
        group = group.rpartition("/")[0]
        paths.append(group)
    held.publish(paths)


def commit(url: str | Place, recipe: str, stage: str, fingerprint: str) -> str:
    """Make what a stage published visible, where that takes a commit; the commit's name, or nothing.

    While arrays are hidden that were laid out and not published, as where two stages are done in one pass, nothing is: the
    commit that follows is of all stages that were named until then.

    Raises
    ------
    StoreError
        where another writer committed meanwhile what does not go together with it.
    """
    return kind(url).commit(recipe, stage, fingerprint)


def drop(url: str | Place) -> None:
    """Forget what was laid out and written since the last commit, where stores have commits."""
    kind(url).drop()


def history(url: str | Place) -> list[dict[str, Any]]:
    """Commits of a store from the last to the first: snapshot, time (ISO), stages, recipe, message; none of a Zarr store."""
    return kind(url).history()


def inside(url: str | Place) -> Place:
    """A store's documents and chunks in the words of a folder."""
    return kind(url).inside()


def document(url: str | Place, path: str) -> tuple[bytes, bool] | None:
    """An array's or a group's metadata, as it will be published, and whether it is; None where there is none."""
    return kind(url).document(path)


def open_group(url: str | Place, group: str, unfinished: bool = False) -> xr.Dataset:
    """A finished group as a lazy Dataset.

    Raises
    ------
    StoreError
        where there is no such group, or it is not finished (unless `unfinished` asks for it all the same).
    """
    held = kind(url)
    try:
        store = held.unfinished() if unfinished else held.finished()
        with _among_unfinished():
            found = xr.open_zarr(store, group=group or None, chunks=None, consolidated=False, zarr_format=3)  # type: ignore[arg-type]
            found = found.assign_coords({n: _in_memory(c) for n, c in found.coords.items() if c.ndim <= 1})
            return found.assign({n: v.chunk(_shards_of(v)) for n, v in found.data_vars.items()})
    except (FileNotFoundError, KeyError):
        where = f"{url}/{group}" if group else str(url)
        if not unfinished and held.document(group) is not None and not exists(url, group):
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
    """Whether readers see a group, or an array of it."""
    path = _path(group, name) if name else group
    return bool(sync(kind(url).finished().exists(document_of(path))))


def sweep(url: str | Place) -> int:
    """Remove what a killed writer left behind (zarr's `*.partial` files); how many there were."""
    return kind(url).sweep()


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
    kind(url).remove([group])


def _path(group: str, name: str) -> str:
    if not name:
        raise InputError("an array needs a name")
    return f"{group}/{name}" if group else name
