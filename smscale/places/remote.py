"""A key in a bucket, in the words of pathlib."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from smscale.places.ranges import Ranges
from smscale.places.server import SCHEME, bucket, library, told

#: Bytes of an object beyond which it is sent in parts; below it is one request, there whole or not at all.
ONE_REQUEST = 64 << 20
#: Bytes that are read at least where a file is read here and there.
PIECE = 1 << 16


class Found(NamedTuple):
    """What a listing says of an object; of a prefix, that it is one."""

    st_size: int = 0
    st_mtime_ns: int = 0
    tag: str = ""
    is_folder: bool = False


@total_ordering
@dataclass(frozen=True)
class Remote:
    """A key in a bucket, in the words of pathlib. A folder is a prefix: it is there where an object is below it.

    Parameters
    ----------
    key : parts joined by "/", without one at either end; empty for the bucket itself
    found : what the listing that named it said; asked for where it is not given
    quick : whether requests for it give up soon; not so for what is made of it
    """

    bucket: str
    key: str
    found: Found | None = field(default=None, compare=False, repr=False)
    quick: bool = field(default=False, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, part: str, /) -> Remote:
        return Remote(self.bucket, "/".join(p for p in (self.key, *part.split("/")) if p not in ("", ".")))

    def __lt__(self, other: Remote) -> bool:
        return (self.bucket, self.parts) < (other.bucket, other.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.key.split("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Remote:
        return Remote(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def is_relative_to(self, other: object, /) -> bool:
        return (
            isinstance(other, Remote)
            and other.bucket == self.bucket
            and f"{self.key}/".startswith(f"{other.key}/".lstrip("/"))
        )

    def relative_to(self, other: Remote, /) -> PurePosixPath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie in {other}")
        return PurePosixPath(self.key[len(other.key) :].lstrip("/"))

    @property
    def _store(self) -> Any:
        return bucket(self.bucket, quick=self.quick)

    # -- what is there --------------------------------------------------------------------------

    def stat(self) -> Found:
        """Size and time of the object; FileNotFoundError where there is none."""
        if self.found is not None and not self.found.is_folder:
            return self.found
        with told(self):
            return _found(library().head(self._store, self.key))

    def is_file(self) -> bool:
        if self.found is not None:
            return not self.found.is_folder
        if not self.key:
            return False
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        if self.found is not None:
            return self.found.is_folder
        with told(self):
            pages = library().list(self._store, self.key or None, chunk_size=1)
            return bool(next(iter(pages), []))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def files(self) -> dict[str, Found]:
        """What a listing says of the objects directly in this prefix, by name: one request."""
        return {str(meta["path"]).rpartition("/")[2]: _found(meta) for meta in self._listed()["objects"]}

    def _listed(self) -> Any:
        with told(self):
            return library().list_with_delimiter(self._store, self.key or None)

    def iterdir(self) -> Iterator[Remote]:
        """What lies directly in this prefix, by name; FileNotFoundError where there is nothing."""
        listed = self._listed()
        inside = [Remote(self.bucket, str(meta["path"]), _found(meta)) for meta in listed["objects"]]
        below = (Remote(self.bucket, str(prefix)) for prefix in listed["common_prefixes"])
        inside += [
            Remote(self.bucket, p.key, Found(is_folder=True)) for p in below if p.is_dir()
        ]  # some stores list empty ones
        if not inside:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return iter(sorted(inside))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """What lies directly in this prefix and has such a name."""
        try:
            return (inside for inside in self.iterdir() if fnmatchcase(inside.name, pattern))
        except FileNotFoundError:
            return iter(())

    def rglob(self, pattern: str) -> Iterator[Remote]:
        """Objects (no folders) at any depth that have such a name, in order."""
        with told(self):
            pages = list(library().list(self._store, self.key or None, chunk_size=1000))
        below = (Remote(self.bucket, str(meta["path"]), _found(meta)) for page in pages for meta in page)
        return iter(sorted(inside for inside in below if fnmatchcase(inside.name, pattern)))

    # -- contents -------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        with told(self):
            return bytes(library().get(self._store, self.key).bytes())

    def read_found(self) -> tuple[bytes, Found]:
        """The contents, and what the store says of just these: another may write the object the moment after."""
        with told(self):
            answer = library().get(self._store, self.key)
            return bytes(answer.bytes()), _found(answer.meta)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def download(self, path: Path) -> None:
        """Write the contents to a file of this machine, piece by piece."""
        with told(self):
            pieces = library().get(self._store, self.key).stream()
        with path.open("wb") as file:
            while True:
                with told(self):
                    piece = next(pieces, None)
                if piece is None:
                    return
                file.write(piece)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A file to read: by pieces, where it is sought in."""
        if mode != "rb":
            raise ValueError(f"{self}: can be opened to read bytes only")
        return io.BufferedReader(Ranges(self.stat().st_size, self._range), PIECE)

    def write_bytes(self, content: bytes, /) -> int:
        """Write the object, whole or not at all."""
        with told(self):
            library().put(self._store, self.key, content, use_multipart=len(content) > ONE_REQUEST)
        return len(content)

    def upload(self, path: Path) -> None:
        """Write the object from a file of this machine, whole or not at all; a large one piece by piece."""
        large = path.stat().st_size > ONE_REQUEST
        with told(self):
            library().put(self._store, self.key, path if large else path.read_bytes(), use_multipart=large)

    def write_if(self, content: bytes, tag: str | None) -> str | None:
        """Write the object where it still has this tag (None: where there is none); its new tag, or None where it has not."""
        obstore = library()
        mode: Any = "create" if tag is None else {"e_tag": tag}
        with told(self):
            try:
                done = obstore.put(self._store, self.key, content, mode=mode, use_multipart=False)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                return None
        return str(done["e_tag"])

    def write_text(self, text: str, /, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    def _range(self, start: int, length: int) -> bytes:
        with told(self):
            return bytes(library().get_range(self._store, self.key, start=start, length=length))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok:
            self.stat()
        with told(self):
            library().delete(self._store, self.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a prefix is there with its first object."""


def _found(meta: Any) -> Found:
    return Found(int(meta["size"]), int(meta["last_modified"].timestamp() * 1e9), str(meta.get("e_tag") or ""))
