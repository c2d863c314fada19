"""Files and folders of any place: written whole or not at all, removed, walked, and lent to libraries that want this machine's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from smscale import disk
from smscale.errors import InputError, SmscaleError
from smscale.places.names import Place
from smscale.places.remote import Remote
from smscale.places.server import bucket, library, told
from smscale.places.together import together

#: How the name of a file ends that is not whole yet: as Zarr's own, so that what a killed writer left is swept with them.
PARTIAL = ".partial"
#: Bytes that are written to see whether a disk is full.
TRIAL = 1 << 20


def write_text(path: Place, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Place, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    if isinstance(path, Remote):
        path.write_bytes(content)
        return
    with file_to_write(path) as half:
        half.write_bytes(content)


@contextmanager
def file_to_write(path: Place) -> Iterator[Path]:
    """A file of this machine to write: beside a local place, renamed to it when the block ends well, or sent to a remote one."""
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="smscale-") as scratch:
            here = Path(scratch) / path.name
            with _full_disk_told(here, here):
                yield here
            path.upload(here)
        return
    path = Path(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL}")  # hosts share folders, and pods their process ids
    try:
        with _full_disk_told(half, path):
            yield half
            os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def _full_disk_told(half: Path, path: Path) -> Iterator[None]:
    """Where a write fails, its file is named; and that the disk is full, which not every library says."""
    try:
        yield
        return
    except SmscaleError:
        raise
    except Exception as error:
        full = _full(half)
        if full is None:
            # Without a number the system's words are not shown, and a name would hide the library's own.
            if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(half), half):
                error.filename = str(path)
            raise
    raise OSError(full, os.strerror(full), str(path))  # without what led to it, which may not travel from a worker


def _full(half: Path) -> int | None:
    """The system's number where no more can be written to a file, since the disk, or the share of it, is full."""
    try:
        with half.open("ab") as file:
            file.write(bytes(TRIAL))
    except OSError as error:
        return error.errno if error.errno in disk.FULL else None
    return None


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
            _send(path, folder / path.relative_to(here).as_posix())


def _send(path: Path, where: Place) -> None:
    assert isinstance(where, Remote)
    where.upload(path)


@contextmanager
def folder_to_read(folder: Place) -> Iterator[Path]:
    """A folder of this machine with what lies in a place: itself, or a copy for as long as the block.

    Raises
    ------
    FileNotFoundError
        where a file went away between the listing and its reading.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="smscale-") as scratch:
        here = Path(scratch) / folder.name

        def fetch(path: Place) -> None:
            copy = here / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(path, Remote)
            path.download(copy)

        for _ in together(fetch, folder.rglob("*"), folder):
            pass
        yield here


def remove(path: Place) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none.

    Raises
    ------
    InputError
        for a bucket.
    """
    if isinstance(path, Remote):
        if not path.key:
            raise InputError(f"{path}: a whole bucket is not removed: name a prefix in it, as {path}/run")
        remove_all([*path.rglob("*"), path])
    elif path.is_dir():
        shutil.rmtree(str(path), ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_all(files: Iterable[Place]) -> int:
    """Remove files, where they are there; how many were named."""
    count = 0
    keys: dict[str, list[str]] = {}
    for path in files:
        count += 1
        if isinstance(path, Remote):
            keys.setdefault(path.bucket, []).append(path.key)
        else:
            path.unlink(missing_ok=True)
    for name, held in keys.items():
        with told(Remote(name, held[0])):
            library().delete(bucket(name), held)
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
