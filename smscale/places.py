"""Where things lie: a folder of this machine, or a prefix in a bucket of an S3-compatible store, in the same words.

A local place is a `pathlib.Path`, so it costs what it always did. A `Remote` speaks as much of pathlib's language as the
package needs. Credentials and the server's address come from the environment alone (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or the role of the machine); nothing here keeps,
prints or sends them, and a URL that holds any is refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache, total_ordering
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from smscale.errors import InputError, SmscaleError, StoreError

SCHEME = "s3://"
#: Seconds until a connection stands, and until one request is answered in full.
CONNECT_SECONDS, REQUEST_SECONDS = 5, 60
#: A request that fails (5xx, a stall, a line cut) is sent again for so many seconds; so often at most.
RETRY_SECONDS, RETRIES = 120, 200
#: The first request of a command waits less: a wrong address is told within half a minute.
FIRST_SECONDS, FIRST_RETRIES, FIRST_RETRY_SECONDS = 10, 3, 15
#: Objects that one process asks for at the same time: a request waits for the network, not for a core.
REQUESTS = 32
#: Bytes of an object beyond which it is sent in parts; below it is one request, there whole or not at all.
ONE_REQUEST = 64 << 20
#: Bytes that are read at least where a file is read here and there.
PIECE = 1 << 16


class Place(Protocol):
    """A file or a folder, here or in an object store: what of `pathlib.Path` both understand."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def parent(self) -> Place: ...
    @property
    def open(self) -> Any: ...
    def __truediv__(self, part: str, /) -> Place: ...
    def __lt__(self, other: Any, /) -> bool: ...
    def with_name(self, name: str) -> Place: ...
    def is_relative_to(self, other: Any, /) -> bool: ...
    def relative_to(self, other: Any, /) -> PurePath: ...
    def stat(self) -> Any: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def exists(self) -> bool: ...
    def iterdir(self) -> Iterator[Place]: ...
    def glob(self, pattern: str) -> Iterator[Place]: ...
    def rglob(self, pattern: str) -> Iterator[Place]: ...
    def read_bytes(self) -> bytes: ...
    def read_text(self, encoding: str = "utf-8") -> str: ...
    def write_bytes(self, content: bytes, /) -> int: ...
    def write_text(self, text: str, /, encoding: str = "utf-8") -> int: ...
    def unlink(self, missing_ok: bool = False) -> None: ...
    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None: ...


class Unreachable(SmscaleError, RuntimeError):
    """The object store refused, or did not answer: it says nothing about what lies there."""

    exit_code = 2


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
    """

    bucket: str
    key: str
    found: Found | None = field(default=None, compare=False, repr=False)

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

    # -- what is there --------------------------------------------------------------------------

    def stat(self) -> Found:
        """Size and time of the object; FileNotFoundError where there is none."""
        if self.found is not None and not self.found.is_folder:
            return self.found
        with told(self):
            return _found(_obstore().head(_bucket(self.bucket), self.key))

    def is_file(self) -> bool:
        if self.found is not None:
            return not self.found.is_folder
        try:
            return bool(self.key) and self.stat() is not None
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        if self.found is not None:
            return self.found.is_folder
        with told(self):
            pages = _obstore().list(_bucket(self.bucket), self.key or None, chunk_size=1)
            return bool(next(iter(pages), []))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def files(self) -> dict[str, Found]:
        """What a listing says of the objects directly in this prefix, by name: one request."""
        return {str(meta["path"]).rpartition("/")[2]: _found(meta) for meta in self._listed()["objects"]}

    def _listed(self) -> Any:
        with told(self):
            return _obstore().list_with_delimiter(_bucket(self.bucket), self.key or None)

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
            pages = list(_obstore().list(_bucket(self.bucket), self.key or None, chunk_size=1000))
        below = (Remote(self.bucket, str(meta["path"]), _found(meta)) for page in pages for meta in page)
        return iter(sorted(inside for inside in below if fnmatchcase(inside.name, pattern)))

    # -- contents -------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        with told(self):
            return bytes(_obstore().get(_bucket(self.bucket), self.key).bytes())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def download(self, path: Path) -> None:
        """Write the contents to a file of this machine, piece by piece."""
        with told(self), path.open("wb") as file:
            for piece in _obstore().get(_bucket(self.bucket), self.key).stream():
                file.write(piece)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A file to read: by pieces, where it is sought in."""
        if mode != "rb":
            raise ValueError(f"{self}: can be opened to read bytes only")
        return io.BufferedReader(_Ranges(self), PIECE)

    def write_bytes(self, content: bytes, /) -> int:
        """Write the object, whole or not at all."""
        with told(self):
            _obstore().put(_bucket(self.bucket), self.key, content, use_multipart=len(content) > ONE_REQUEST)
        return len(content)

    def write_if(self, content: bytes, tag: str | None, quick: bool = False) -> str | None:
        """Write the object where it still has this tag (None: where there is none); its new tag, or None where it has not."""
        obstore = _obstore()
        mode: Any = "create" if tag is None else {"e_tag": tag}
        with told(self):
            try:
                done = obstore.put(_bucket(self.bucket, quick=quick), self.key, content, mode=mode, use_multipart=False)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                return None
        return str(done["e_tag"])

    def write_text(self, text: str, /, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok:
            self.stat()
        with told(self):
            _obstore().delete(_bucket(self.bucket), self.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a prefix is there with its first object."""


class _Ranges(io.RawIOBase):
    """An object that is read by ranges."""

    def __init__(self, place: Remote) -> None:
        self._place, self._at, self._size = place, 0, place.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        with told(self._place):
            store = _bucket(self._place.bucket)
            buffer[:length] = bytes(_obstore().get_range(store, self._place.key, start=self._at, length=length))
        self._at += length
        return length


def place(where: str | os.PathLike[str] | Place) -> Place:
    """The place of a path or an s3:// URL.

    Raises
    ------
    InputError
        for another kind of URL, and for one that holds more than a bucket and a prefix.
    """
    if isinstance(where, Path | Remote):
        return where
    text = str(where)
    if "://" not in text:
        return Path(text)
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    if not text.startswith(SCHEME):
        raise InputError(f"{text.partition('://')[0]}://…: expected a folder or s3://bucket/prefix")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):  # not shown: it may be key:secret@bucket
        raise InputError("s3://…: expected s3://bucket/prefix, the bucket in letters, digits, dots and hyphens")
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if ".." in parts or any(c in key for c in "?#"):
        raise InputError(f"{SCHEME}{bucket}/…: expected a prefix without .., ? and #")
    return Remote(bucket, "/".join(parts))


def is_remote(where: object) -> bool:
    """Whether a place, or its name, is an object store's."""
    return isinstance(where, Remote) or (isinstance(where, str) and "://" in where)


# -- writing and removing -------------------------------------------------------------------------


def write_text(path: Place, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Place, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{hashlib.blake2b(content, digest_size=4).hexdigest()}")
    try:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Place) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none."""
    if not isinstance(path, Path):
        remove_all([*path.rglob("*"), path])
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_all(files: Iterable[Place]) -> int:
    """Remove files, where they are there; how many were named."""
    count = 0
    keys: dict[str, list[str]] = {}
    for path in files:
        count += 1
        if isinstance(path, Remote):
            keys.setdefault(path.bucket, []).extend([path.key] if path.key else [])
        else:
            path.unlink(missing_ok=True)
    for bucket, names in keys.items():
        with told(Remote(bucket, names[0] if names else "")):
            _obstore().delete(_bucket(bucket), names)
    return count


def walk(folder: Place) -> Iterator[tuple[Place, list[str], list[str]]]:
    """Folders below a place, each with the names of its folders and files; folders taken out of the list are left out, as of os.walk."""
    if isinstance(folder, Path):
        for root, folders, names in os.walk(folder):
            yield Path(root), folders, names
        return
    inside: dict[Place, tuple[set[str], list[str]]] = {}
    for path in folder.rglob("*"):
        parent = path.parent
        inside.setdefault(parent, (set(), []))[1].append(path.name)
        while parent != folder:
            parent, name = parent.parent, parent.name
            inside.setdefault(parent, (set(), []))[0].add(name)
    yield from _walk(folder, inside)


def _walk(
    where: Place, inside: Mapping[Place, tuple[set[str], list[str]]]
) -> Iterator[tuple[Place, list[str], list[str]]]:
    folders = sorted(inside[where][0]) if where in inside else []
    yield where, folders, inside[where][1] if where in inside else []
    for name in folders:
        yield from _walk(where / name, inside)


# -- many at once ---------------------------------------------------------------------------------

Given = TypeVar("Given")
Result = TypeVar("Result")


def together(call: Callable[[Given], Result], items: Iterable[Given], remote: bool) -> Iterator[Result]:
    """Results in the order of the items; many at a time where each one waits for an object store, else one by one."""
    if not remote:
        yield from map(call, items)
        return
    flying: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(REQUESTS) as pool:  # what was begun is done, also where the items or the caller stop
        for item in items:
            flying.append(pool.submit(call, item))
            while flying and (flying[0].done() or len(flying) >= 2 * REQUESTS):
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


def read_many(files: Iterable[Place], remote: bool) -> Iterator[bytes | None]:
    """Contents of small files, None of those that are not there."""
    return together(_bytes_or_none, files, remote)


def _bytes_or_none(path: Place) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


# -- for libraries that want files of this machine --------------------------------------------------


@contextmanager
def folder_to_write(folder: Place, last: Sequence[str] = ()) -> Iterator[Path]:
    """A folder of this machine to write into: the place itself, or one whose files go to the place when the block ends well.

    `last` are names of files that say that the others are there: they go last, in their order.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="smscale-") as scratch:
        here = Path(scratch) / folder.name
        here.mkdir()
        yield here
        files = [path for path in sorted(here.rglob("*")) if path.is_file()]
        rank = {name: i for i, name in enumerate(last, 1)}
        files.sort(key=lambda path: rank.get(path.relative_to(here).as_posix(), 0))
        for path in files:
            (folder / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())


@contextmanager
def folder_to_read(folder: Place) -> Iterator[Path]:
    """A folder of this machine with what lies in a place: itself, or a copy for as long as the block."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="smscale-") as scratch:
        here = Path(scratch) / folder.name
        files = list(folder.rglob("*"))
        for path, content in zip(files, read_many(files, remote=True), strict=True):
            copy = here / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content or b"")
        yield here


@contextmanager
def file_to_write(path: Place) -> Iterator[Path]:
    """A file of this machine to write: beside a local place, renamed to it when the block ends well, or sent to a remote one."""
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="smscale-") as scratch:
            here = Path(scratch) / path.name
            yield here
            path.write_bytes(here.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- the object store -----------------------------------------------------------------------------


def reach(where: Place) -> None:
    """Ask an object store once whether it answers; nothing for a local place.

    Raises
    ------
    Unreachable
        within half a minute, where it does not, or where there is no such bucket.
    """
    if isinstance(where, Remote):
        with told(where):
            next(iter(_obstore().list(_bucket(where.bucket, quick=True), where.key or None, chunk_size=1)), None)


@contextmanager
def told(where: object) -> Iterator[None]:
    """What an object store answers, in one line without its debug output, which may show an access key."""
    obstore = _obstore()
    try:
        yield
    except FileNotFoundError as error:
        if "<Code>NoSuchBucket<" in str(error):
            raise Unreachable(_line(where, error)) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where)) from None
    except obstore.exceptions.BaseError as error:
        raise Unreachable(_line(where, error)) from None


def _line(where: object, error: Exception) -> str:
    """What went wrong, and what to do about it."""
    text = str(error).partition("Debug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    why = code.group(1) if code else status.group(1).strip() if status else ""
    server = re.sub("//[^/@]*@", "//", _server() or "AWS")
    if why == "NoSuchBucket":
        return f"{where}: there is no such bucket at {server}: create it, or correct AWS_ENDPOINT_URL"
    if "169.254.169.254" in text:
        return f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
    if why in _REFUSED or (status and status.group(1)[:3] in ("401", "403")):
        return f"{where}: the object store refuses ({why}): see what the keys in AWS_ACCESS_KEY_ID may do there"
    if why:
        return f"{where}: the object store at {server} answers {why}: see there, then run again: finished blocks stay finished"
    return f"{where}: no answer from {server}: see AWS_ENDPOINT_URL and the network, then run again"


_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}


def _server() -> str:
    """The address that the environment names; empty for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _found(meta: Any) -> Found:
    return Found(int(meta["size"]), int(meta["last_modified"].timestamp() * 1e9), str(meta.get("e_tag") or ""))


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise StoreError("s3:// needs the package obstore: pip install obstore") from None
    return obstore


def zarr_root(where: Remote) -> Any:
    """The obstore store of a prefix, for Zarr."""
    return _bucket(where.bucket, where.key)


@lru_cache(maxsize=32)
def _bucket(bucket: str, prefix: str = "", quick: bool = False) -> Any:
    """A bucket, or a prefix of it, of the server that the environment names; `quick` gives up soon."""
    _obstore()
    from obstore.store import S3Store

    seconds = FIRST_SECONDS if quick else REQUEST_SECONDS
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=seconds),
            "allow_http": _server().startswith("http://"),
        },
        retry_config={
            "max_retries": FIRST_RETRIES if quick else RETRIES,
            "retry_timeout": timedelta(seconds=FIRST_RETRY_SECONDS if quick else RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
    )
