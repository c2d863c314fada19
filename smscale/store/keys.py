"""A store's documents and chunks as files of a folder that can be read: for what looks into a store that lies in no folder."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from smscale.places import Found, Place
from smscale.places.ranges import Ranges

#: Bytes that are read at least where a chunk is read here and there.
PIECE = 1 << 20


@dataclass(frozen=True)
class Inside:
    """A key of a store, or what lies below it, in the words of `pathlib`.

    Parameters
    ----------
    root : where the store lies
    key : parts joined by "/"; empty for the store itself
    """

    root: Place
    store: Store = field(compare=False, repr=False)
    key: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.key}".rstrip("/")

    def __lt__(self, other: Inside) -> bool:
        return self.key.split("/") < other.key.split("/")

    def __truediv__(self, part: str, /) -> Inside:
        return Inside(self.root, self.store, "/".join(p for p in (self.key, *part.split("/")) if p))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.root.name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Inside:
        return Inside(self.root, self.store, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Inside:
        return self.parent / name

    def is_relative_to(self, other: object, /) -> bool:
        return f"{self}/".startswith(f"{other}/")

    def relative_to(self, other: object, /) -> PurePath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie in {other}")
        return PurePosixPath(str(self)[len(str(other)) :].lstrip("/"))

    def is_file(self) -> bool:
        return bool(self.key) and sync(self.store.exists(self.key))

    def is_dir(self) -> bool:
        return not self.key or sync(_first(self.store.list_prefix(f"{self.key}/"))) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def stat(self) -> Found:
        """Size of the file."""
        try:
            size = sync(self.store.getsize(self.key)) if self.key else 0
        except KeyError:
            size = 0
        if not size:  # as icechunk says of chunks that are not there
            raise FileNotFoundError(str(self))
        return Found(size)

    def iterdir(self) -> Iterator[Inside]:
        """What lies directly in it, by name."""
        return iter([self / name for name in sorted(sync(_all(self.store.list_dir(self.key))))])

    def glob(self, pattern: str) -> Iterator[Inside]:
        """What lies directly in it and has such a name."""
        return (inside for inside in self.iterdir() if fnmatchcase(inside.name, pattern))

    def rglob(self, pattern: str) -> Iterator[Inside]:
        """Files at any depth that have such a name, in order."""
        keys = sync(_all(self.store.list_prefix(f"{self.key}/" if self.key else "")))
        below = (Inside(self.root, self.store, key) for key in keys)
        return iter(sorted(inside for inside in below if fnmatchcase(inside.name, pattern)))

    def read_bytes(self) -> bytes:
        found = sync(self.store.get(self.key, default_buffer_prototype()))
        if found is None:
            raise FileNotFoundError(str(self))
        return found.to_bytes()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A file to read, by pieces."""
        if mode != "rb":
            raise ValueError(f"{self}: can be opened to read bytes only")
        return io.BufferedReader(Ranges(self.stat().st_size, self._range), PIECE)

    def _range(self, start: int, length: int) -> bytes:
        found = sync(self.store.get(self.key, default_buffer_prototype(), RangeByteRequest(start, start + length)))
        if found is None:
            raise FileNotFoundError(str(self))
        return found.to_bytes()

    def write_bytes(self, content: bytes, /) -> int:
        raise NotImplementedError(f"{self}: can only be read")

    def write_text(self, text: str, /, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        raise NotImplementedError(f"{self}: can only be read")

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        raise NotImplementedError(f"{self}: can only be read")


async def _all(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


async def _first(keys: AsyncIterator[str]) -> str | None:
    async for key in keys:
        return key
    return None
