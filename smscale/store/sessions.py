"""Icechunk's repositories and sessions: these as bytes, credentials from the environment, what goes wrong in one line."""

from __future__ import annotations

import atexit
import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

from zarr.abc.store import Store

from smscale import disk
from smscale.errors import StoreError
from smscale.places import Place, Remote, Unreachable, place

try:
    import icechunk
    from icechunk import IcechunkStore
    from icechunk._icechunk_python import PySession  # what its own classes pickle: as bytes, without pickle
except ImportError:
    raise StoreError(
        "store: icechunk needs the package icechunk: pip install 'smscale[icechunk]', or leave out store: in the recipe"
    ) from None

VERSION: str = icechunk.__version__
#: A request that fails is sent again so often: with pauses of 0.1 s that double up to 10 s some two minutes.
TRIES, FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 18, 100, 10_000


@cache
def _ready() -> None:
    """What icechunk needs once in a process."""
    icechunk.set_logs_filter("off")  # what goes wrong is raised; the rest are many lines on a folder's weakness
    # Its threads may still hand over what was asked for last: where the interpreter ends before, every tenth process aborts.
    atexit.register(time.sleep, 0.05)


def session_of(content: bytes) -> Any:
    """A session of its bytes."""
    _ready()
    try:
        return PySession.from_bytes(content)
    except icechunk.IcechunkError:
        raise StoreError(
            f"a change that was staged cannot be read by icechunk {VERSION}: it is damaged; run with --fresh"
        ) from None


def store_of(session: Any) -> Store:
    """What a session that is under way sees, to read and to write; it is not pickled."""
    return IcechunkStore(session.store, for_fork=True)


@lru_cache(maxsize=8)
def reading(url: str, snapshot: str) -> Store:
    """A snapshot, to read."""
    with told(url):
        return repository(url).readonly_session(snapshot_id=snapshot).store


@lru_cache(maxsize=8)
def repository(url: str) -> Any:
    """The repository at a place."""
    return icechunk.Repository.open(storage(place(url)), config())


def make(where: Place) -> None:
    """Make a repository, where there is none yet."""
    with told(where):
        here = storage(where)
        if not icechunk.Repository.exists(here):
            icechunk.Repository.create(here, config())


def merge(session: Any, change: Any) -> bool:
    """Take over what another session changed; False where icechunk cannot, since an array was made longer in between."""
    try:
        session.merge(change)
        return True
    except icechunk.IcechunkError as error:
        if "splitting" in str(error):
            return False
        raise


def commit(session: Any, message: str, metadata: dict[str, Any]) -> tuple[str, list[str]]:
    """Commit what a session changed, beside what others committed meanwhile; the snapshot, or nothing and where both changed the same."""
    try:
        return str(session.commit(message, metadata, rebase_with=icechunk.ConflictDetector())), []
    except (icechunk.RebaseFailedError, icechunk.ConflictError) as error:
        return "", sorted({str(one.path).strip("/") for one in getattr(error, "conflicts", None) or ()})


def config() -> Any:
    """How a repository is spoken to."""
    pauses = icechunk.StorageRetriesSettings(TRIES, FIRST_PAUSE_MS, LONGEST_PAUSE_MS)
    return icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=pauses))


def storage(where: Place) -> Any:
    """Where a repository lies, as icechunk says it."""
    _ready()
    if not isinstance(where, Remote):
        return icechunk.local_filesystem_storage(str(where))
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if address and "@" in address:
        raise StoreError(
            "AWS_ENDPOINT_URL: holds more than an address, and it would be written down: leave out what stands before @"
        )
    return icechunk.s3_storage(
        bucket=where.bucket,
        prefix=where.key,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=address,
        allow_http=bool(address and address.startswith("http://")),
        force_path_style=address is not None,
        from_env=True,
    )


@contextmanager
def told(where: object) -> Iterator[None]:
    """What icechunk answers, in one line without its context."""
    try:
        yield
    except icechunk.IcechunkError as error:
        text = str(error)
        system = re.search(r"\(os error (\d+)\)", text)
        if system and (code := int(system[1])) in disk.REFUSED | disk.FULL:
            raise OSError(code, os.strerror(code), str(where)) from None
        causes = re.findall(r"^  (?:x|\|->|`->) (.+)$", text, re.MULTILINE)
        why = next((cause for cause in reversed(causes) if not cause.startswith("Error {")), type(error).__name__)
        if "NoSuchKey" in text or (system and system[1] == str(errno.ENOENT)):
            raise StoreError(f"{where}: what the repository says is there is missing ({why})") from None
        kind = Unreachable if str(where).startswith("s3://") else StoreError
        raise kind(f"{where}: icechunk says: {why[:200]}: run again, finished blocks stay finished") from None
