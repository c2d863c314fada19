"""From an address to a whole file: in parts, resumed, checked, put in place in one step, entered in a manifest.

While it is incomplete a file is NAME.part beside its place; whoever downloads holds that part locked. A run that was
stopped goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import requests
from tqdm.auto import tqdm

from smscale.fetch.archives import Remote
from smscale.fetch.login import HOW, Login
from smscale.fetch.patience import PASSING, Patience, reason_of

MANIFEST = "fetch-manifest.jsonl"
#: Bytes of one write; seconds to wait for a connection, and for the next bytes.
PIECE, TIMEOUT = 1 << 16, (30, 120)
#: Files that came otherwise than promised, one after the other, until that is believed.
SPOILT = 3
_PAGE = "a web page came instead of {}"
_LOGIN_PAGE = f"an HTML login page came instead of {{}}: {HOW}"
#: How web pages begin.
_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml version")


@dataclass(frozen=True)
class Result:
    """What became of one file: `status`, why if it failed, bytes that came over the line."""

    remote: Remote
    path: Path
    status: Literal["fetched", "present", "absent", "failed"]
    reason: str = ""
    bytes: int = 0


class _Absent(Exception):
    """The archive has no such file."""


class _Refused(Exception):
    """The login was refused: trying again, or with other files, would only lock the account."""


class _Hopeless(Exception):
    """An answer that will not change."""


class _Spoilt(Exception):
    """What came is not what was promised: it must be thrown away."""


class _Interrupted(Exception):
    """The file ended early, or the server was busy: what came is kept. `asked` is its Retry-After."""

    def __init__(self, reason: str, asked: str | None = None) -> None:
        super().__init__(reason)
        self.asked = asked


@dataclass
class _Downloads:
    """What the downloads of one call share."""

    login: Login
    patience: Patience
    stop: threading.Event = field(default_factory=threading.Event)
    refused: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    own: threading.local = field(default_factory=threading.local)

    @property
    def session(self) -> requests.Session:
        """This thread's session: its cookies keep a login."""
        if not hasattr(self.own, "session"):
            self.own.session = requests.Session()
        return self.own.session


def download_all(
    wanted: Iterable[tuple[Remote, Path]],
    manifest: Path,
    jobs: int = 4,
    login: Login | None = None,
    patience: Patience | None = None,
    suspect: frozenset[Path] = frozenset(),
    progress: bool = True,
) -> list[Result]:
    """Download files, several at a time; those that are there already are left as they are.

    Parameters
    ----------
    wanted : each file and where it goes
    manifest : JSON lines: one is added for each file that came (name, path, url, bytes, checksum, sha256, time)
    suspect : files that are there and known to be broken: only a matching checksum saves them

    Returns
    -------
    one result for each, in the order of `wanted`
    """
    wanted = list(wanted)
    shared = _Downloads(login or Login.from_environment(), patience or Patience())
    if shared.patience.sleep is time.sleep:  # whoever waits hears that the run is stopped
        shared.patience = replace(shared.patience, sleep=shared.stop.wait)
    results: dict[int, Result] = {}
    bar = tqdm(total=len(wanted), desc="fetch", unit="file", disable=not progress)
    with bar, ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {
            pool.submit(_download, shared, remote, path, manifest, path in suspect): i
            for i, (remote, path) in enumerate(wanted)
        }
        came = 0
        try:
            for future in as_completed(futures):
                result = results[futures[future]] = future.result()
                came += result.bytes
                bar.set_postfix_str(f"{came / 1e6:.0f} MB", refresh=False)
                bar.update()
        except BaseException:
            shared.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [results[i] for i in range(len(wanted))]


def _download(shared: _Downloads, remote: Remote, path: Path, manifest: Path, suspect: bool) -> Result:
    """One file; whatever goes wrong with it is its result."""
    try:
        if _is_there(remote, path, suspect):
            return Result(remote, path, "present")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path) as file:
            return _complete(shared, remote, path, manifest, file)
    except BlockingIOError:
        return Result(remote, path, "failed", "another smscale fetch is downloading it")
    except OSError as error:
        return Result(remote, path, "failed", f"cannot be written: {error.strerror or error}")


def _is_there(remote: Remote, path: Path, suspect: bool) -> bool:
    if not path.is_file() or (remote.size is not None and path.stat().st_size != remote.size):
        return False
    if remote.checksum and suspect:
        return _digest(path, remote.checksum[0]) == remote.checksum[1]
    return not suspect


@contextmanager
def _part(path: Path) -> Iterator[BinaryIO]:
    """The file's part, locked; removed again if nothing came."""
    part = path.with_name(f"{path.name}.part")
    with part.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
            raise BlockingIOError  # between opening and locking, another fetch put it in place
        yield file
        file.flush()
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def _complete(shared: _Downloads, remote: Remote, path: Path, manifest: Path, file: BinaryIO) -> Result:
    """Bytes, until the part is whole and checked; then it takes its place."""
    came = 0

    def count(n: int) -> None:
        nonlocal came
        came += n

    def failed(reason: str) -> Result:
        return Result(remote, path, "failed", reason, came)

    reason, spoilt = "", 0
    for tried in range(1, shared.patience.tries + 1):
        if shared.stop.is_set():
            return failed("stopped")
        if remote.login and shared.refused.is_set():
            return failed("not tried: the login was refused before")
        asked = None
        try:
            _add_bytes(shared, remote, file, count)
            sha256 = _verify(remote, file)
        except _Absent:
            return Result(remote, path, "absent", "", came)
        except _Refused as error:
            shared.refused.set()
            return failed(str(error))
        except _Hopeless as error:
            return failed(str(error))
        except _Spoilt as error:
            file.truncate(0)
            reason, spoilt = str(error), spoilt + 1
            if spoilt == SPOILT:
                return failed(f"{reason} (tried {tried} times)")
        except _Interrupted as error:
            reason, asked = str(error), error.asked
        except requests.RequestException as error:
            reason = reason_of(error)
        else:
            _put_in_place(file, path)
            with shared.lock:
                _enter(manifest, remote, path, sha256)
            return Result(remote, path, "fetched", "", came)
        if tried < shared.patience.tries:
            shared.patience.wait(tried, asked)
    return failed(f"{reason} (tried {shared.patience.tries} times)")


def _add_bytes(shared: _Downloads, remote: Remote, file: BinaryIO, count: Callable[[int], None]) -> None:
    """What the part lacks, appended to it."""
    have = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    auth = shared.login if remote.login and shared.login.token else None  # None: requests looks into ~/.netrc
    with shared.session.get(remote.url, headers=headers, auth=auth, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:
            return _all_there(answer, remote, have)
        _refuse(answer, remote)
        have = _start_of(answer, have)
        pieces = answer.iter_content(PIECE)
        first = next(pieces, b"")
        if _is_page(answer, first):
            raise _Refused(_LOGIN_PAGE.format(remote.name)) if remote.login else _Hopeless(_PAGE.format(remote.name))
        if have == 0:
            file.truncate(0)
        promised = _promised(answer, have)
        for piece in chain((first,), pieces):
            if shared.stop.is_set():
                raise _Hopeless("stopped")
            file.write(piece)
            count(len(piece))
    size = file.tell()
    if promised is not None and size < promised:
        raise _Interrupted(f"only {size} of {promised} bytes came")


def _all_there(answer: requests.Response, remote: Remote, have: int) -> None:
    """416: nothing follows the bytes that are there; right, if these are all."""
    total = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    size = remote.size if remote.size is not None else int(total[1]) if total else None
    if size is not None and have != size:
        raise _Spoilt(f"{have} bytes were there of a file of {size}")


def _refuse(answer: requests.Response, remote: Remote) -> None:
    """Raise for every answer that brings no bytes of the file."""
    status = f"{answer.status_code} {answer.reason}"
    if answer.status_code in (404, 410):
        raise _Absent
    if answer.status_code in (401, 403) and remote.login:
        raise _Refused(f"the archive refused the login ({status}{_said(answer)}): {HOW}")
    if answer.status_code in PASSING:
        raise _Interrupted(status, answer.headers.get("Retry-After"))
    if answer.status_code not in (200, 206):
        raise _Hopeless(f"the archive answered {status}")


def _said(answer: requests.Response) -> str:
    """What a refusal says of itself, if that is short: as that terms of use must be accepted first."""
    text = " ".join(answer.content[:2000].decode("utf-8", "replace").split())
    return f"; {text}" if text and len(text) < 300 and "<" not in text else ""


def _start_of(answer: requests.Response, have: int) -> int:
    """Where the bytes of an answer go: behind those that are there, or at the start if the server sends everything."""
    if answer.status_code == 200:
        return 0
    given = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if given is None or int(given[1]) != have:
        raise _Spoilt(f"bytes from {have} on were asked for, {answer.headers.get('Content-Range', 'no range')} came")
    return have


def _promised(answer: requests.Response, have: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _is_page(answer: requests.Response, first: bytes) -> bool:
    if answer.status_code != 200:
        return False
    text = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return answer.headers.get("Content-Type", "").startswith("text/html") or text.startswith(_PAGE_STARTS)


def _verify(remote: Remote, file: BinaryIO) -> str:
    """SHA-256 of the part, which is what the archive promised: by its checksum, else by its size."""
    names = ["sha256"] + ([remote.checksum[0]] if remote.checksum else [])
    digests = _digests(file, names)
    size = file.seek(0, os.SEEK_END)
    if remote.checksum:
        if digests[remote.checksum[0]] != remote.checksum[1]:
            raise _Spoilt(f"its {remote.checksum[0].upper()} is not the archive's")
    elif remote.size is not None and size != remote.size:
        raise _Spoilt(f"it holds {size} bytes, the archive says {remote.size}")
    if size == 0:
        raise _Spoilt("it came empty")
    return digests["sha256"]


def _digests(file: BinaryIO, names: Sequence[str]) -> dict[str, str]:
    file.flush()
    file.seek(0)
    hashes = {name: hashlib.new(name) for name in names}
    while piece := file.read(PIECE):
        for each in hashes.values():
            each.update(piece)
    return {name: each.hexdigest() for name, each in hashes.items()}


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return _digests(file, [name])[name]


def _put_in_place(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)


def _enter(manifest: Path, remote: Remote, path: Path, sha256: str) -> None:
    """One line of the manifest."""
    entry = {
        "name": remote.name,
        "path": os.path.relpath(path, manifest.parent),
        "url": remote.url,
        "bytes": path.stat().st_size,
        "checksum": {"algorithm": remote.checksum[0], "value": remote.checksum[1]} if remote.checksum else None,
        "sha256": sha256,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with manifest.open("a") as file:
        file.write(json.dumps(entry, sort_keys=True) + "\n")
