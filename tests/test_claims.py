"""Who holds a workspace, as far as no object store is needed to tell: locks of folders, leases that are late, what is left behind."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smscale import claims, owners
from smscale.errors import RecipeError, StoreError, Unreachable
from smscale.places import Found, Remote, server
from smscale.workspace import Workspace


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> claims._Lease:
    """A lease that this process holds."""
    made = claims._Lease(Remote("bucket", "run"))
    monkeypatch.setattr(claims, "_LEASES", {made})
    return made


def test_a_holder_stops_long_enough_before_its_lease_lapses() -> None:
    last_write = claims.SILENT_SECONDS + server.RETRY_SECONDS + server.REQUEST_SECONDS
    assert last_write < claims.LEASE_SECONDS
    assert 3 * claims.RENEW_SECONDS < claims.SILENT_SECONDS  # a link that is cut for half a minute ends no run


def test_a_run_whose_store_is_silent_goes_on_for_a_while_and_then_stops(
    lease: claims._Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def away(self: Remote, content: bytes, tag: str | None) -> str | None:
        asked.append(tag)
        raise Unreachable("no answer from there")

    monkeypatch.setattr(Remote, "write_if", away)
    lease.renewed -= claims.SILENT_SECONDS - 1
    claims.require_held()
    assert not asked
    lease.renewed -= 2
    for _ in range(2):
        with pytest.raises(StoreError, match="its claim lapses, since it cannot be renewed: no answer from there"):
            claims.require_held()
    assert len(asked) == 1


def test_a_run_that_slept_goes_on_where_nobody_took_its_workspace(
    lease: claims._Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that only succeeds where its own was the last says so, however long it was away."""
    monkeypatch.setattr(Remote, "write_if", lambda self, content, tag: "tag" if tag == "ours" else None)
    monkeypatch.setattr(Remote, "read_found", lambda self: (b'{"token": "another"}', Found(tag="theirs")))
    lease.tag, lease.renewed = "ours", lease.renewed - 3600
    claims.require_held()
    lease.renewed -= 3600
    with pytest.raises(StoreError, match="another run took the workspace"):
        claims.require_held()


def test_a_lease_is_renewed_again_whatever_happened(lease: claims._Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.01)
    answers: list[Exception] = [Unreachable("away"), MemoryError("none left"), OSError("no descriptor")]

    def write_if(self: Remote, content: bytes, tag: str | None) -> str | None:
        if answers:
            raise answers.pop()
        lease.ended.set()
        return "tag"

    monkeypatch.setattr(Remote, "write_if", write_if)
    lease.renewed -= 3600
    lease.keep()
    assert lease.tag == "tag"
    claims.require_held()


def test_a_lease_that_somebody_removed_is_lost(lease: claims._Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Remote, *args: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Remote, "write_if", gone)
    monkeypatch.setattr(Remote, "read_found", gone)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.01)
    lease.keep()
    with pytest.raises(StoreError, match="another run took the workspace"):
        claims.require_held()


def test_a_file_system_without_locks_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"this file system keeps no locks .Function not implemented"):
        Workspace(tmp_path / "run").held().__enter__()


def test_a_lock_that_a_run_took_away_while_it_ended_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, flock = tmp_path / ".lock", fcntl.flock
    taken = []

    def late(file: Any, how: int) -> None:
        if not taken:
            lock.unlink()
        taken.append(file.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claims.held(tmp_path):
        monkeypatch.setattr(fcntl, "flock", flock)
        assert len(taken) == 2
        with pytest.raises(StoreError, match=f"in use by another run .process {os.getpid()} on"), claims.held(tmp_path):
            pass


def test_a_refused_run_leaves_nothing_but_the_folder_that_was_there(tmp_path: Path) -> None:
    there, made = tmp_path / "there", tmp_path / "made"
    there.mkdir()
    for root in (there, made):
        with pytest.raises(RecipeError), Workspace(root).held():
            raise RecipeError("no such key")
    assert list(tmp_path.rglob("*")) == [there]


def test_what_cannot_be_cleared_away_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "as NFS says where a file was open")

    monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(RecipeError, match="no such key"), Workspace(tmp_path / "run").held():
        raise RecipeError("no such key")


def test_of_a_run_that_lost_its_claim_nothing_is_cleared_away(tmp_path: Path, lease: claims._Lease) -> None:
    with pytest.raises(StoreError, match="silent"), Workspace(tmp_path / "run").held():
        (setattr(lease, "lost", "gone silent"), claims.require_held())
    assert (tmp_path / "run" / ".lock").exists()


def test_of_a_process_is_known_whether_it_has_ended_if_it_was_of_this_machine() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = f"{owners.machine()}-{child.pid}"
        assert (owners.runs_here(other), owners.is_gone(other)) == (True, False)
    assert (owners.runs_here(other), owners.is_gone(other)) == (False, True)
    for unknown in (f"{'0' * 16}-{child.pid}", f"{owners.machine()}-{'9' * 40}", f"{owners.UNKNOWN}-1", "", "x"):
        assert (owners.runs_here(unknown), owners.is_gone(unknown)) == (False, False)
