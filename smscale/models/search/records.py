"""Where a fit runs (one thread, here or on a worker, with the same result), and the record that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from smscale.errors import InputError
from smscale.places import Place, place, write_text

Kept = TypeVar("Kept")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for BLAS, OpenMP and (where it is loaded) torch; put back after."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    with threadpool_limits(1):
        try:
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            if torch:
                torch.set_num_threads(threads)


def active_client() -> Any:
    """The active dask client of this process; None without one, and inside a dask task (which must not wait for others)."""
    distributed = loaded_distributed()
    if distributed is None or in_a_task():
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def in_a_task() -> bool:
    """Whether this is a task on a dask worker."""
    distributed = loaded_distributed()
    try:
        return distributed is not None and distributed.get_worker() is not None
    except ValueError:
        return False


def loaded_distributed() -> Any:
    """dask.distributed, which whoever made the client has imported; None where nobody has."""
    return sys.modules.get("distributed")


def fingerprint(array: NDArray[Any]) -> str:
    """Of an array's shape, type and values."""
    content = np.ascontiguousarray(array)
    head = f"{content.shape}{content.dtype.str}".encode()
    return hashlib.blake2b(head + content.tobytes(), digest_size=16).hexdigest()


def named(parts: Mapping[str, Any]) -> str:
    """A file name that changes with every part."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checked_folder(records: Path | str | None) -> None:
    """Make the folder of the records; InputError where that cannot be."""
    if records is None:
        return
    try:
        place(records).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{records}: finished fits cannot be kept there ({error.strerror}); name a folder that can be written"
        ) from None


def read_record(record: Place | None, parse: Callable[[Any], Kept]) -> tuple[Kept | None, bool]:
    """What `parse` makes of a record's content, and whether what stands there is spoiled: then the fit is done again.

    A record says its own name, which is that of the fit, and a hash of what it holds: neither one cut short, nor one edited,
    nor that of another fit is taken.
    """
    if record is None or not (os.path.lexists(record) if isinstance(record, Path) else record.exists()):
        return None, False
    try:
        if not record.is_file():
            raise ValueError("not a file")
        content = json.loads(record.read_text())
        if content.pop("sealed") != _seal(record, content):
            raise ValueError("altered, or of another fit")
        return parse(content), False
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None, True


def write_record(record: Place, content: Mapping[str, Any]) -> None:
    """Whole or not at all, whoever else writes it. Where a folder stands in its place, nothing is kept."""
    plain = json.loads(json.dumps(content, default=repr))
    with suppress(IsADirectoryError):
        write_text(record, json.dumps(plain | {"sealed": _seal(record, plain)}))


def report_spoiled(count: int, fits: int, records: Path | str | None) -> None:
    """Warn of records that were there and could not be used."""
    if count:
        warnings.warn(
            f"{records}: {count} of {fits} records are cut short, altered or of another fit; those fits were done again",
            stacklevel=3,
        )


def _seal(record: Place, content: Mapping[str, Any]) -> str:
    return named({"record": record.name, "content": content})
