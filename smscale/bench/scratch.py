"""Where a measurement writes: a folder that takes it, with room for all of it, and empty again afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smscale.errors import InputError

#: Room that must be left on a disk.
SPARE = 1.1


@contextmanager
def scratch_folder(folder: str | None, needed: float) -> Iterator[Path]:
    """A folder of its own within `folder` (the system's temporary one if not given), removed at the end.

    Raises
    ------
    InputError
        where it cannot be written, or has less than the bytes that are needed.
    """
    place = Path(folder or tempfile.gettempdir())
    free = _free(place, "--folder")
    if free < SPARE * needed:
        raise InputError(
            f"--folder {place}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; name another folder, a smaller --shape, or --quick"
        )
    with tempfile.TemporaryDirectory(prefix="smscale-bench-", dir=place) as made:
        yield Path(made)


def writable(folder: str, option: str) -> Path:
    """A folder that can be written, made where it is not there."""
    _free(Path(folder), option)
    return Path(folder)


def _free(place: Path, option: str) -> int:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return shutil.disk_usage(place).free
    except OSError as error:
        told = error.strerror or os.strerror(error.errno or 0)
        raise InputError(f"{option} {place}: cannot be written ({told}); name a folder that can") from None
