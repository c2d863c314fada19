"""What a store must be able to do, whatever it is kept as, and the Zarr stores that both kinds are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from smscale.places import Place

METADATA = "zarr.json"
UNFINISHED = "unfinished.json"


class Kind(Protocol):
    """One store. Paths are those of arrays and groups in it, "" of its root; keys are those of chunks and documents."""

    def make(self) -> None:
        """Make the store, where that takes more than its first array."""

    def finished(self) -> Store:
        """What readers see."""

    def published(self) -> Store:
        """What is published, also where readers do not see it yet."""

    def unfinished(self) -> Store:
        """What the stage sees that fills it, to read and to write chunks."""

    def laying_out(self, paths: Sequence[str]) -> AbstractContextManager[Store]:
        """Where arrays are made, or made longer; those at `paths` are hidden until they are published."""

    def state(self, path: str) -> Hashable:
        """Tells one state of an array's metadata from another; false where that cannot be told."""

    def put(self, key: str, content: bytes | None) -> None:
        """Write a chunk whole, or remove it where there is nothing to write."""

    def files(self, store: Store) -> Place | None:
        """The chunks of an array that was opened of `store`, as files; None where Zarr reads them as quickly."""

    def members(self, group: str) -> list[str]:
        """Names of what lies in a group, finished or not."""

    def publish(self, paths: Sequence[str]) -> None:
        """Make arrays and groups visible: at once, or with the next commit."""

    def discard(self, group: str) -> None:
        """Forget what was begun on the published arrays of a group."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove arrays or groups and all that is in them."""

    def sweep(self) -> int:
        """Remove what a killed writer left behind; how many files."""

    def commit(self, recipe: str, stage: str, fingerprint: str) -> str:
        """Make a stage's work visible, where that takes a commit; its name, or nothing."""

    def drop(self) -> None:
        """Forget what was written since the last commit."""

    def history(self) -> list[dict[str, Any]]:
        """Commits from the last to the first."""

    def inside(self) -> Place:
        """Documents and chunks in the words of a folder, unfinished ones as well."""

    def document(self, path: str) -> tuple[bytes, bool] | None:
        """An array's or a group's metadata, as it will be published, and whether it is; None where there is none."""


class Telling(WrapperStore[Store]):
    """A store whose refusals are told in one line.

    Parameters
    ----------
    where, told : a context manager, given where the key lies, that turns errors
    """

    def __init__(self, store: Store, where: Place, told: Callable[[object], AbstractContextManager[None]]) -> None:
        super().__init__(store)
        self._where, self._told = where, told

    def _with_store(self, store: Store) -> Telling:
        return Telling(store, self._where, self._told)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with self._told(self._where / key):
            return await self._store.get(key, prototype or default_buffer_prototype(), byte_range)

    async def exists(self, key: str) -> bool:
        with self._told(self._where / key):
            return await self._store.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        with self._told(self._where / key):
            await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        with self._told(self._where / key):
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with self._told(self._where / prefix):
            await self._store.delete_dir(prefix)

    async def getsize(self, key: str) -> int:
        with self._told(self._where / key):
            return await self._store.getsize(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with self._told(self._where / prefix):
            async for name in self._store.list_dir(prefix):
                yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with self._told(self._where / prefix):
            async for key in self._store.list_prefix(prefix):
                yield key


class Overlaid(WrapperStore[Store]):
    """A store of which some documents are others than it holds: text by path, empty where there is none."""

    def __init__(self, store: Store, documents: Mapping[str, str]) -> None:
        super().__init__(store)
        self._documents = documents

    def _with_store(self, store: Store) -> Overlaid:
        return Overlaid(store, self._documents)

    def _other(self, key: str) -> str | None:
        path, _, name = key.rpartition("/")
        return self._documents.get(path) if name == METADATA else None

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        prototype, other = prototype or default_buffer_prototype(), self._other(key)
        if other is None:
            return await self._store.get(key, prototype, byte_range)
        return prototype.buffer.from_bytes(other.encode()) if other else None

    async def exists(self, key: str) -> bool:
        other = self._other(key)
        return bool(other) if other is not None else await self._store.exists(key)


def document_of(path: str) -> str:
    """Key of an array's or a group's document."""
    return f"{path}/{METADATA}" if path else METADATA


def lies_in(path: str, group: str) -> bool:
    """Whether an array or a group is another, or lies in it."""
    return not group or path == group or path.startswith(f"{group}/")
