"""Files that are there whole or not at all, one export at a time in a folder, and what an export tells."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smscale.errors import InputError

#: How many names a note lists before it only counts.
NAMED = 10


@dataclass(frozen=True)
class Exported:
    """Files of one export: written now, there already, and what was left out."""

    folder: Path
    written: tuple[Path, ...]
    skipped: int
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        lines = [f"written    {_files(len(self.written))} in {self.folder}"]
        if self.skipped:
            lines.append(f"skipped    {_files(self.skipped)}: there already, of the same data")
        lines += [f"note       {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def _files(count: int) -> str:
    return f"{count} file" + ("" if count == 1 else "s")


@contextmanager
def claimed(folder: Path, stem: str) -> Iterator[None]:
    """Hold the files of one stem in a folder, and remove what a killed export of them left half written.

    Raises
    ------
    InputError
        if the folder cannot be written, or another export holds them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{stem}.lock").open("w")
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another export writes {stem} there; wait for it, or name another --out"
            ) from None
        for leftover in folder.glob(f".{stem}*.part*"):
            leftover.unlink(missing_ok=True)
        try:
            yield
        finally:
            (folder / f".{stem}.lock").unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write under; the file takes its own name when it is whole, and is gone where that fails."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror is None:
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path, label: str) -> Iterator[Path]:
    """A name beside a file for what it is made of; gone afterwards."""
    temporary = path.with_name(f".{path.stem}.part-{label}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def named(names: list[str]) -> str:
    """Some names, and how many more."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
