"""Who holds a workspace: one run at a time.

In a folder the claim is a file lock: it ends with its process, however that ends. In an object store it is a lease: an object
that only one can create (If-None-Match), that its holder writes again and again (If-Match), and that lapses when it is not
written for `LEASE_SECONDS` by the store's own clock, or at once where its holder was a process of this machine that is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from smscale.errors import StoreError
from smscale.places import Place, Remote, Unreachable, reach

#: A lease that was not renewed for so long has lapsed; its holder renews it several times within that.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0


@contextmanager
def held(root: Place) -> Iterator[None]:
    """Hold a workspace.

    Raises
    ------
    StoreError
        if another run holds it (its holder is named), if it cannot be written, or if the lease was lost meanwhile.
    """
    with _leased(root) if isinstance(root, Remote) else _locked(Path(str(root))):
        yield


def _holder() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _refusal(root: Place, holder: str, more: str = "") -> StoreError:
    return StoreError(
        f"{root} is in use by another run ({holder or 'unknown'}): wait for it{more}, or name another --workspace"
    )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock_file = (root / ".lock").open("a+")
    except OSError as error:
        raise StoreError(
            f"{root}: cannot be used as a workspace ({error.strerror}): name a folder that can be written"
        ) from None
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise _refusal(root, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(_holder())
        lock.flush()
        yield


# -- a lease in an object store -------------------------------------------------------------------


@contextmanager
def _leased(root: Remote) -> Iterator[None]:
    lease = _Lease(root)
    lease.take()
    keeper = threading.Thread(target=lease.keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield
    except KeyboardInterrupt:
        if lease.lost:
            raise StoreError(lease.lost) from None
        raise
    except Unreachable as error:
        lease.lost = str(error)  # nor can it be given back: it lapses
        raise
    finally:
        lease.ended.set()
        keeper.join(timeout=1)
        with suppress(Unreachable, FileNotFoundError):  # it lapses by itself
            lease.release()


class _Lease:
    """The object that says who holds a workspace."""

    def __init__(self, root: Remote) -> None:
        self.root, self.object = root, root / ".lock"
        self.told: dict[str, Any] = {
            "holder": _holder(),
            "machine": _machine(),
            "process": os.getpid(),
            "token": uuid4().hex,
            "renewed": 0,
        }
        self.tag = ""
        self.lost = ""
        self.ended = threading.Event()

    def take(self) -> None:
        """Take the lease, or refuse in one line, within half a minute where the store does not answer."""
        reach(self.root)
        now = self._clock()
        self.tag = self._write(None) or self._take_over(now)

    def _write(self, tag: str | None) -> str | None:
        """Write the lease where it still has this tag; its new tag, or None where another holds it."""
        content = json.dumps(self.told).encode()
        new = self.object.write_if(content, tag, quick=True)
        if new is None and self._is_ours():  # it was written, and the answer got lost on the way
            return self.object.stat().tag
        return new

    def _is_ours(self) -> bool:
        try:
            return bool(_parsed(self.object.read_bytes()).get("token") == self.told["token"])
        except FileNotFoundError:
            return False

    def _clock(self) -> int:
        """The store's time, nanoseconds, from an object of our own: this tells too whether it can be written at all."""
        trial = self.root / f".trial-{uuid4().hex}"
        try:
            trial.write_if(b"", None, quick=True)
            return trial.stat().st_mtime_ns
        except Unreachable as error:
            raise Unreachable(str(error).replace(str(trial), str(self.root))) from None
        finally:
            with suppress(Unreachable):
                trial.unlink(missing_ok=True)

    def _take_over(self, now: int) -> str:
        """Take what has lapsed; of several who try only one succeeds."""
        try:
            found = self.object.stat()
            told = _parsed(self.object.read_bytes())
        except FileNotFoundError:
            raise _refusal(self.root, "one that ends this moment") from None
        left = LEASE_SECONDS - (now - found.st_mtime_ns) / 1e9
        if left > 0 and not _is_gone(told):
            more = f" (if it died, its claim lapses in {left:.0f} s)"
            raise _refusal(self.root, str(told.get("holder", "")), more)
        tag = self._write(found.tag)
        if tag is None:
            raise _refusal(self.root, "one that took it this moment")
        return tag

    def keep(self) -> None:
        """Renew the lease until the run ends; stop the run where another took it. An object store that is away may come back."""
        while not self.ended.wait(RENEW_SECONDS):
            self.told["renewed"] += 1  # other content, another tag: who found the older one lapsed cannot take this one
            with suppress(Unreachable):
                tag = self._write(self.tag)
                if tag is None:
                    self._lose()
                    return
                self.tag = tag

    def _lose(self) -> None:
        self.lost = (
            f"{self.root}: another run took the workspace, since this one was cut off from it for "
            f"{LEASE_SECONDS:.0f} s: finished blocks stay finished"
        )
        if not self.ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        if not self.lost and self._is_ours():
            self.object.unlink(missing_ok=True)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
        return told if isinstance(told, dict) else {}
    except ValueError:
        return {}


def _machine() -> str:
    """This machine since it was started, as its processes see one another; empty where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _is_gone(told: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine that has ended."""
    if not told.get("machine") or told["machine"] != _machine() or not isinstance(told.get("process"), int):
        return False
    try:
        os.kill(told["process"], 0)
        return False
    except ProcessLookupError:
        return True
    except OSError:
        return False
