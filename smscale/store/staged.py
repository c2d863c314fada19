"""What is begun in an Icechunk repository and not committed: kept in a file, so that another process goes on with it."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from smscale.errors import StoreError
from smscale.places import Place, Remote, place, write_bytes
from smscale.store.sessions import VERSION


@dataclass(frozen=True)
class Stage:
    """What is laid out and not committed.

    Parameters
    ----------
    where : of the repository, as its sessions know it
    token : tells its commit from others'
    base : snapshot that it started from
    layout, fork : bytes of the session that will be committed, and of the one that writers start from
    hidden : array -> its published document, empty where it has none: laid out, or made longer, and not published
    done : recipe, stage and fingerprint of each stage that published all it made
    """

    where: str
    token: str
    base: str
    layout: bytes
    fork: bytes
    hidden: Mapping[str, str]
    done: tuple[tuple[str, str, str], ...] = ()

    def encode(self) -> bytes:
        held = {**self.__dict__, "icechunk": VERSION}
        return json.dumps(held | {k: base64.b64encode(held[k]).decode() for k in ("layout", "fork")}).encode()

    @classmethod
    def decode(cls, content: bytes, where: str) -> Stage:
        held = json.loads(content)
        made_by = held.pop("icechunk")
        if made_by.split(".")[:2] != VERSION.split(".")[:2]:
            raise StoreError(
                f"{where}: holds an interrupted stage of icechunk {made_by}, here is {VERSION}: install that, or run with --fresh"
            )
        if held["where"] != where:
            raise StoreError(
                f"{where}: was {held['where']} when a stage was interrupted: move it back and run again, or run here with --fresh"
            )
        done = tuple(tuple(one) for one in held.pop("done"))
        return cls(**held | {k: base64.b64decode(held[k]) for k in ("layout", "fork")}, done=done)


@lru_cache(maxsize=8)
def read(url: str, path: str, mark: tuple[Any, ...]) -> Stage | None:
    """The stage of a repository, in a file of this mark; None where it is gone meanwhile."""
    try:
        return Stage.decode(place(path).read_bytes(), url)
    except FileNotFoundError:
        return None


def mark_of(path: Place) -> tuple[Any, ...] | None:
    """Tells one content of a small file from another; None where it is not there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_size, found.st_mtime_ns, getattr(found, "st_ino", 0), getattr(found, "tag", ""))


def write_first(path: Place, content: bytes) -> None:
    """Write a file whole, unless it is there."""
    if isinstance(path, Remote):
        path.write_if(content, None)
        return
    trial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_bytes(trial, content)
    try:
        with suppress(FileExistsError):
            os.link(str(trial), str(path))
    finally:
        trial.unlink(missing_ok=True)
