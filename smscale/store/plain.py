"""A store kept as Zarr, in a folder or in a bucket.

Until an array is published its metadata document carries another name (`unfinished.json`), so that no reader, plain xarray
included, sees an unfinished array: a killed run leaves chunks without metadata, never an array that looks finished.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from smscale import places
from smscale.places import Place, Remote, told
from smscale.places.files import PARTIAL
from smscale.store.kinds import METADATA, UNFINISHED, Telling, document_of


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


class Plain:
    """A store kept as Zarr."""

    def __init__(self, where: Place) -> None:
        self._where = where

    def make(self) -> None:
        pass

    def finished(self) -> Store:
        where = self._where
        if isinstance(where, Remote):
            return Telling(ObjectStore(places.zarr_root(where)), where, told)
        return LocalStore(Path(str(where)))

    published = finished

    def unfinished(self) -> Store:
        return _Unfinished(self.finished())

    @contextmanager
    def laying_out(self, paths: Sequence[str]) -> Iterator[Store]:
        yield self.unfinished()

    def state(self, path: str) -> tuple[str, int, int, str] | None:
        """Which document holds, its size, when it was written, its tag."""
        where = self._where / path
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
        return None

    def put(self, key: str, content: bytes | None) -> None:
        path = self._where / key
        if content is None:
            path.unlink(missing_ok=True)
        else:
            places.write_bytes(path, content)

    def files(self, store: Store) -> Path | None:
        return self._where if isinstance(self._where, Path) else None

    def members(self, group: str) -> list[str]:
        async def listed() -> list[str]:
            return [name async for name in self.finished().list_dir(group)]

        return sorted(name for name in sync(listed()) if name not in (METADATA, UNFINISHED))

    def publish(self, paths: Sequence[str]) -> None:
        store = self.finished()
        for path in paths:
            sync(_publish(store, path))

    def discard(self, group: str) -> None:
        store = self.finished()
        for name in self.members(group):
            path = f"{group}/{name}" if group else name
            if sync(store.exists(document_of(path))):
                sync(store.delete(f"{path}/{UNFINISHED}"))

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            sync(_delete(self.finished(), path))

    def sweep(self) -> int:
        where = self._where
        if isinstance(where, Remote) or not where.is_dir():  # an object is there whole or not at all
            return 0
        leftovers = list(where.rglob(f"*{PARTIAL}"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def commit(self, recipe: str, stage: str, fingerprint: str) -> str:
        return ""

    def drop(self) -> None:
        pass

    def history(self) -> list[dict[str, Any]]:
        return []

    def inside(self) -> Place:
        return self._where

    def document(self, path: str) -> tuple[bytes, bool] | None:
        finished = (self._where / document_of(path)).is_file()
        for name in (UNFINISHED, METADATA):
            try:
                return (self._where / path / name).read_bytes(), finished
            except FileNotFoundError:
                continue
        return None


async def _publish(store: Store, path: str) -> None:
    hidden = f"{path}/{UNFINISHED}" if path else UNFINISHED
    document = await store.get(hidden, default_buffer_prototype())
    if document is not None:
        await store.set(document_of(path), document)
        await store.delete(hidden)


async def _delete(store: Store, path: str) -> None:
    """Remove an array, its metadata first so that no reader sees it half gone."""
    for document in (METADATA, UNFINISHED):
        await store.delete(f"{path}/{document}" if path else document)
    await store.delete_dir(path)
