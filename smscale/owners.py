"""Which process of which machine something belongs to, in a few letters, and whether that process has ended."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

#: Of a machine that does not tell which it is: of its processes nothing is known.
UNKNOWN = "unknown"


@cache
def machine() -> str:
    """This machine since it was started, as its processes see one another: hexadecimal digits, or `UNKNOWN`."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return UNKNOWN
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def this_process() -> str:
    """This process among those of all machines, as 4f2c9e1ab3d05c77-1234."""
    return f"{machine()}-{os.getpid()}"


def is_gone(owner: str) -> bool:
    """Whether that was a process of this machine which has ended; of other machines' nothing is known."""
    return _runs(owner) is False


def runs_here(owner: str) -> bool:
    """Whether that is a process of this machine which runs."""
    return _runs(owner) is True


def _runs(owner: str) -> bool | None:
    where, _, number = owner.rpartition("-")
    if where != machine() or where == UNKNOWN or not number.isdigit():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return None
    except OSError:  # another user's
        return True
    return True
