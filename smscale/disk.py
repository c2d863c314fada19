"""What a disk refuses (it is full, or may not be written), told in one line whichever library met it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from smscale.errors import SmscaleError, StoreError

if TYPE_CHECKING:
    from smscale.places import Place

#: What waiting does not heal, and what it may.
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def refusal(error: BaseException) -> int | None:
    """The system's number of a write that it refused, where that is what an error, or one that led to it, is about.

    Libraries in C tell the system's words alone, each in an exception of its own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in REFUSED | FULL:
            return seen.errno
        for number in FULL:
            if os.strerror(number) in str(seen):
                return number
        seen = seen.__cause__ or seen.__context__
    return None


def cure(number: int | None) -> str:
    """What the system says of a write by its number (None: of a fault of the disk), and what to do."""
    told = os.strerror(number or errno.EIO)
    if number in REFUSED:
        return f"cannot be written ({told}): let this user write there, or name another --workspace"
    return f"cannot be written ({told}): free the disk and run again"


@contextmanager
def told(where: Place) -> Iterator[None]:
    """A full or read-only disk in one line, for what is written below a place; other errors as they are.

    Raises
    ------
    StoreError
        naming the file, where that is known.
    """
    try:
        yield
    except SmscaleError:
        raise
    except Exception as error:
        number = refusal(error)
        if number is None:
            raise
        _refuse(error, number, where)


def _refuse(error: Exception, number: int, where: Place) -> NoReturn:
    name = error.filename if isinstance(error, OSError) else None
    raise StoreError(
        f"{os.fsdecode(name) if name else where}: {cure(number)}; finished blocks stay finished"
    ) from error
