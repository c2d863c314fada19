"""What names a place, and what of `pathlib.Path` every place understands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Protocol

from smscale.errors import InputError
from smscale.places.remote import Remote
from smscale.places.server import SCHEME


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
    if ".." in parts:
        raise InputError(f"{SCHEME}{bucket}/…: expected a prefix without ..")
    return Remote(bucket, "/".join(parts))


def given(where: str | os.PathLike[str] | Place) -> Place:
    """The place that a user names: without ? and #, behind which URLs carry what proves who asks; objects may have them in their names.

    Raises
    ------
    InputError
        for such a one, and as `place` does.
    """
    found = place(where)
    if isinstance(found, Remote) and any(c in found.key for c in "?#"):
        raise InputError(f"{SCHEME}{found.bucket}/…: expected a prefix without ? and #")
    return found


def is_remote(where: object) -> bool:
    """Whether a place, or its name, is an object store's."""
    return isinstance(where, Remote) or (isinstance(where, str) and "://" in where)


def reach(where: Place) -> None:
    """Ask an object store once whether it answers; nothing for a local place.

    Raises
    ------
    Unreachable
        within half a minute, where it does not, or where there is no such bucket.
    """
    if isinstance(where, Remote):
        replace(where, found=None, quick=True).is_dir()
