"""Who holds a workspace: one run at a time.

In a folder the claim is a file lock: it ends with its process, however that ends. In an object store it is a lease: an object
that only one can create (If-None-Match), that its holder writes again and again (If-Match), and that lapses when it is not
written for `LEASE_SECONDS` by the store's own clock, or at once where its holder was a process of this machine that is gone.

A holder that is cut off stops by itself after `SILENT_SECONDS`, whether it learns of another or not: what was on its way then has
arrived or failed when the lease lapses. (A scheduler that goes on after the run may still finish blocks: with the same bytes.)
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import uuid4

from smscale import disk, owners
from smscale.errors import StoreError, Unreachable
from smscale.places import Place, Remote, reach
from smscale.places.server import PENDING_SECONDS, RETRY_SECONDS

#: The holder of a lease renews it so often, and stops where the store was silent for so long: then writes fail as well.
RENEW_SECONDS = 10.0
SILENT_SECONDS = float(RETRY_SECONDS)
#: A lease that was not renewed for so long has lapsed: what was sent before its holder stopped is no longer on its way. The rest is
#: for a store's clock of whole seconds, and for the holder's last try.
LEASE_SECONDS = SILENT_SECONDS + PENDING_SECONDS + 30.0
#: A lease that may have lapsed is looked at so often.
LOOK_SECONDS = 2.0
#: Locks that vanish before they are held: of runs that end the same moment.
VANISHED = 10


@contextmanager
def held(root: Place, say: Callable[[str], Any] = lambda text: None) -> Iterator[None]:
    """Hold a workspace.

    Parameters
    ----------
    say : is given a line where the lease of a run that says nothing is awaited

    Raises
    ------
    StoreError
        if another run holds it (its holder is named), if it cannot be written (its disk full, then or later), or if the lease was
        lost meanwhile.
    """
    with disk.told(root), _leased(root, say) if isinstance(root, Remote) else _locked(Path(str(root))):
        yield


def require_held() -> None:
    """Refuse to go on where a workspace that this process holds may be another's by now: before anything is written or begun.

    Raises
    ------
    StoreError
        in one line.
    """
    for lease in tuple(_LEASES):
        lease.require()


def _holder() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _refusal(root: Place, holder: str) -> StoreError:
    return StoreError(
        f"{root} is in use by another run ({holder or 'unknown'}): wait for it, or name another --workspace"
    )


# -- a lock in a folder ---------------------------------------------------------------------------


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with _lock(root) as lock:
        lock.truncate(0)
        lock.write(_holder())
        lock.flush()
        yield


def _lock(root: Path) -> TextIO:
    """The locked file of a folder: the one that has its name now, not one that a run which just ended took away."""
    path = root / ".lock"
    for _ in range(VANISHED):
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
        except OSError as error:
            raise StoreError(
                f"{root}: cannot be used as a workspace ({error.strerror}): name a folder that can be written"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except FileNotFoundError:
            pass
        except (BlockingIOError, PermissionError):  # NFS says the latter
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise _refusal(root, holder) from None
        except OSError as error:
            lock.close()
            raise StoreError(
                f"{root}: this file system keeps no locks ({error.strerror}), so that runs there could not be told apart: "
                "name a --workspace on another"
            ) from None
        lock.close()
    raise _refusal(root, "one that ends this moment")


# -- a lease in an object store -------------------------------------------------------------------


@contextmanager
def _leased(root: Remote, say: Callable[[str], Any]) -> Iterator[None]:
    lease = _Lease(root)
    lease.take(say)
    keeper = threading.Thread(target=lease.keep, name="lease", daemon=True)
    keeper.start()
    _LEASES.add(lease)
    try:
        yield
        lease.require()
    finally:
        _LEASES.discard(lease)
        lease.ended.set()
        keeper.join(timeout=1)
        with suppress(Unreachable, FileNotFoundError):  # it lapses by itself
            lease.release()


def _now() -> float:
    """Seconds since this machine was started, those included in which it slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Lease:
    """The object that says who holds a workspace."""

    def __init__(self, root: Remote) -> None:
        self.root, self.object = root, replace(root / ".lock", quick=True)
        self.told: dict[str, Any] = {
            "holder": _holder(),
            "owner": owners.this_process(),
            "token": uuid4().hex,
            "renewed": 0,
        }
        self.tag, self.renewed = "", _now()
        self.lost = ""
        self.ended, self._renewing = threading.Event(), threading.Lock()

    def take(self, say: Callable[[str], Any]) -> None:
        """Take the lease, or refuse in one line, within half a minute where the store does not answer.

        Of a holder elsewhere is awaited whether it renews its lease: then this run is refused; or whether that lapses.
        """
        reach(self.root)
        at, began, awaited = self._clock(), _now(), ""
        while not self._create():
            other = self._other()
            left = LEASE_SECONDS - (at + _now() - began - other.renewed)
            if left <= 0 or owners.is_gone(other.owner):
                self._take_over(other)
                return
            if owners.runs_here(other.owner) or other.tag != (awaited or other.tag):
                raise _refusal(self.root, other.holder)
            if not awaited:
                who = other.holder or "a run"
                say(f"{'waits':<10} for {who}: it holds {self.root}; if it died, its claim lapses in {left:.0f} s\n")
            awaited = other.tag
            time.sleep(LOOK_SECONDS)

    def _create(self) -> bool:
        """Write the lease where there is none; whether it is ours."""
        self.renewed = _now()
        self.tag = self.object.write_if(self._content(), None) or self._tag_if_ours()
        return bool(self.tag)

    def _other(self) -> _Other:
        """Whose lease it is."""
        try:
            content, found = self.object.read_found()
        except FileNotFoundError:
            raise _refusal(self.root, "one that ends this moment") from None
        told = _parsed(content)
        said = (str(told.get(key, "")) for key in ("holder", "owner"))
        return _Other(found.tag, found.st_mtime_ns / 1e9, *said)

    def _take_over(self, other: _Other) -> None:
        """Take what has lapsed; of several who try only one succeeds."""
        self.renewed = _now()
        self.tag = self.object.write_if(self._content(), other.tag) or self._tag_if_ours()
        if not self.tag:
            raise _refusal(self.root, "one that took it this moment")

    def _clock(self) -> float:
        """The store's time, seconds, from an object of our own: this tells too whether it can be written, and kept from others."""
        trial = replace(self.root / f".trial-{uuid4().hex}", quick=True)
        try:
            trial.write_if(b"", None)
            if trial.write_if(b"", None) is not None or trial.write_if(b"", f'"{"0" * 32}"') is not None:
                raise StoreError(
                    f"{self.root}: the object store takes no conditional writes (If-None-Match, If-Match), so that two runs "
                    "could write at once: name a --workspace in another"
                )
            return trial.stat().st_mtime_ns / 1e9
        except Unreachable as error:
            raise Unreachable(str(error).replace(str(trial), str(self.root))) from None
        finally:
            with suppress(Unreachable):
                trial.unlink(missing_ok=True)

    # -- holding it -----------------------------------------------------------------------------

    def keep(self) -> None:
        """Renew the lease until the run ends, or another has it. An object store that is away may come back."""
        while not self.lost and not self.ended.wait(RENEW_SECONDS):
            with suppress(Exception), self._renewing:  # whatever it is: `require` counts the silence
                self._renew()

    def _renew(self) -> None:
        """Write it again, if it is still ours: then nobody had it meanwhile."""
        began = _now()
        self.told["renewed"] += 1  # other content, another tag: who found the older one lapsed cannot take this one
        with suppress(FileNotFoundError):  # somebody removed it
            if tag := self.object.write_if(self._content(), self.tag):
                self.tag, self.renewed = tag, began
                return
        self.tag = self._tag_if_ours()
        if not self.tag:
            self.lost = (
                f"{self.root}: another run took the workspace, since this one was cut off from it for "
                f"{LEASE_SECONDS:.0f} s: finished blocks stay finished"
            )

    def require(self) -> None:
        """Refuse where another run has the workspace, or may have it soon; after a long silence the store is asked once more."""
        if self._is_silent() and not self.lost:
            with self._renewing:
                self._ask_once_more()
        if self.lost:
            raise StoreError(self.lost)

    def _is_silent(self) -> bool:
        return _now() - self.renewed > SILENT_SECONDS

    def _ask_once_more(self) -> None:
        try:
            if self._is_silent():
                self._renew()
        except Exception as error:
            why = str(error) if isinstance(error, Unreachable) else f"{type(error).__name__}: {error}"
            self.lost = f"{self.root}: its claim lapses, since it cannot be renewed: {why}"

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        if not self.lost and self._tag_if_ours():
            self.object.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return json.dumps(self.told).encode()

    def _tag_if_ours(self) -> str:
        """Of a lease that was written though the answer got lost on the way; else empty."""
        try:
            content, found = self.object.read_found()
        except FileNotFoundError:
            return ""
        return found.tag if _parsed(content).get("token") == self.told["token"] else ""


class _Other(NamedTuple):
    """Another's lease: when it was renewed (seconds of the store's clock), and by whom."""

    tag: str
    renewed: float
    holder: str
    owner: str


_LEASES: set[_Lease] = set()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
        return told if isinstance(told, dict) else {}
    except ValueError:
        return {}
