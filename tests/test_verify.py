"""verify: every damaged block is found, named and blamed on the right file; repair makes the next run do just that again."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from made_workspace import fill, make, shard, status

from smscale import store, store_inspection
from smscale.blocks import Task, run
from smscale.errors import StoreError
from smscale.receipts import read_receipts
from smscale.verify import repair, verify
from smscale.workspace import Workspace, open_workspace

LST, MAP, OTHER = "cube.zarr/fine/overpass/values", "maps.zarr/gda_kriging", "maps.zarr/soil_moisture_rf"


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    return make(tmp_path / "made")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_another(path: Path) -> None:
    """Another shard's bytes: they decode without a complaint."""
    others = [p for p in path.parents[2].rglob("*") if p.is_file() and p.read_bytes() != path.read_bytes()]
    path.write_bytes(others[0].read_bytes())


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_finished_workspace_is_sound(made: Workspace) -> None:
    found = verify(made)
    assert (found.defects, found.exit_code) == ((), 0)
    assert found.blocks == 4 * len(
        list(made.ledger("ingest").folder.iterdir())
    )  # lst, rf, gda, its status: each part once
    assert found.text.splitlines()[-1].startswith("sound ")


def test_shards_of_nothing_but_fill_have_no_file_and_are_no_defect(made: Workspace) -> None:
    first = made.root / LST / "c" / "0" / "0" / "0" / "0"
    assert not first.exists(), "the first block is all missing: this test needs a shard that was never written"
    assert verify(made).defects == ()


def test_chunks_of_nothing_but_nan_are_no_defect_whatever_their_bits(tmp_path: Path) -> None:
    """A processor makes NaN with its sign set; zarr leaves a chunk of only NaN away, and it reads as the fill's NaN."""
    workspace = Workspace(tmp_path)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "recipe.json").write_text("{}")
    template = xr.Dataset({"a": (("lat", "lon"), store.empty((4, 4), np.float32))})
    store.create(workspace.maps_path, "", template, {"lat": 2, "lon": 2}, {"lat": 4, "lon": 4})
    run([Task("0", _signed_nan, (str(workspace.maps_path),))], workspace.ledger("downscale"), progress=False)
    store.publish(workspace.maps_path, "")
    assert verify(workspace).defects == ()


def _signed_nan(path: str) -> dict[str, object]:
    values = np.ones((4, 4), np.float32)
    values[:2, :2] = -np.float32(np.nan)
    assert np.signbit(values[0, 0])
    return {"written": [store.write(path, "", "a", (slice(0, 4), slice(0, 4)), values)]}


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize(
    ("harm", "kind"),
    [(Path.unlink, "missing"), (truncate, "unreadable"), (empty, "unreadable"), (replace_by_another, "altered")],
)
@pytest.mark.parametrize(("array", "stage"), [(LST, "ingest"), (OTHER, "downscale"), (MAP, "fuse")])
def test_one_damaged_shard_is_named_with_its_block(
    made: Workspace, harm: Callable[[Path], None], kind: str, array: str, stage: str, threads: int
) -> None:
    path = shard(made, array)
    harm(path)
    found = verify(made, threads=threads)
    assert [(d.kind, d.where, d.files, d.stage) for d in found.defects] == [
        (kind, array, (path.relative_to(made.root).as_posix(),), stage)
    ]
    defect = found.defects[0]
    assert defect.key == f"{stage}/4-4-4"
    assert defect.region.startswith("time 4:6, lat 4:5, lon 4:7")
    assert found.exit_code == 2
    assert str(path.relative_to(made.root)) in found.text
    assert "--repair" in found.text
    assert all("\n" not in d.line for d in found.defects)


def test_of_two_receipts_for_one_region_the_later_stages_holds(made: Workspace) -> None:
    region = (slice(4, 6), slice(4, 5), slice(4, 7))
    assert {w.stage for w in read_receipts(made).of("maps.zarr", "gda_kriging")} == {"fuse"}
    store.write(made.maps_path, "", "gda_kriging", region, np.zeros((2, 1, 3), np.float32))
    assert [d.stage for d in verify(made).defects] == ["fuse"]


def test_an_array_without_its_document_is_named(made: Workspace) -> None:
    (made.root / MAP / "zarr.json").unlink()
    defects = verify(made).defects
    assert [(d.kind, d.where, d.stage) for d in defects] == [("layout", MAP, "fuse")]
    assert defects[0].files == (f"{MAP}/zarr.json",)


def test_a_group_without_its_document_is_named(made: Workspace) -> None:
    (made.root / "cube.zarr" / "fine" / "zarr.json").unlink()
    assert [(d.kind, d.where, d.stage) for d in verify(made).defects] == [("layout", "cube.zarr/fine", "ingest")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(r'"shape": \[\s*6,', '"shape": [4,', "4 x 5 x 7"), (r'"float32"', '"float13"', ""), ("{", "", "JSON")],
)
def test_a_document_that_does_not_fit_is_named(made: Workspace, old: str, new: str, said: str) -> None:
    path = made.root / OTHER / "zarr.json"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    defects = verify(made).defects
    assert defects, "an altered document goes unseen"
    assert {(d.where, d.stage) for d in defects} == {(OTHER, "downscale")}
    assert said in defects[0].what


def test_arrays_that_are_being_made_longer_are_sound(made: Workspace) -> None:
    """A run that was killed while it added days: the longer document is hidden, the receipts of new days stand."""
    path = made.root / OTHER
    text = (path / "zarr.json").read_text()
    (path / "unfinished.json").write_text(re.sub(r'"shape": \[\s*6,', '"shape": [8,', text))
    region = (slice(6, 8), slice(0, 4), slice(0, 4))
    task = Task("downscale/6-0-0", _write_there, (str(made.maps_path), region), "downscale")
    run([task], made.ledger("downscale"), progress=False)
    assert verify(made).defects == ()


def _write_there(path: str, region: tuple[slice, ...]) -> dict[str, object]:
    return {"written": [store.write(path, "", "soil_moisture_rf", region, np.ones((2, 4, 4), np.float32))]}


def test_a_coordinate_that_lost_its_chunk_is_named(made: Workspace) -> None:
    (made.maps_path / "lat" / "c" / "0").unlink()
    assert [(d.kind, d.where) for d in verify(made).defects] == [("layout", "maps.zarr/lat")]


def test_arrays_without_receipts_are_listed(made: Workspace) -> None:
    extra = xr.Dataset({"soil_moisture": (("station", "time"), np.ones((2, 3)))})
    store.create(made.cube, "stations", extra, {})
    store.publish(made.cube, "stations")
    found = verify(made)
    assert found.defects == ()
    assert "cube.zarr/stations/soil_moisture" in found.unverified
    shard(made, "cube.zarr/stations/soil_moisture").write_bytes(b"nothing that zstd made")
    assert [(d.where, d.key) for d in verify(made).defects] == [("cube.zarr/stations/soil_moisture", "stations")]


def test_a_ledger_record_that_is_cut_off_is_named(made: Workspace) -> None:
    record = next(made.ledger("ingest").folder.iterdir())
    truncate(record)
    assert [(d.kind, d.where) for d in verify(made).defects] == [("record", record.relative_to(made.root).as_posix())]


def test_an_unfinished_stage_is_said_and_checked_so_far(made: Workspace) -> None:
    (made.root / "ledger" / "fuse.json").unlink()
    (made.root / "ledger" / "fuse.prepared.json").write_text("{}")
    found = verify(made)
    assert found.defects == ()
    assert any("fuse is not finished" in note for note in found.notes)


def test_memory_is_that_of_a_few_blocks(tmp_path: Path) -> None:
    """32 blocks of 4 MB, two threads: at most twice two blocks in flight, each with its shard and the bytes that are hashed."""
    workspace = Workspace(tmp_path)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "recipe.json").write_text("{}")
    template = xr.Dataset({"a": (("time", "x"), store.empty((32, 1_000_000), np.float32))})
    store.create(workspace.maps_path, "", template, {"time": 1}, {"time": 1})
    blocks = [Task(f"{i}", _noise, (str(workspace.maps_path), i)) for i in range(32)]
    run(blocks, workspace.ledger("downscale"), progress=False)
    store.publish(workspace.maps_path, "")
    verify(workspace, threads=2)  # what is imported at the first use is not of the blocks
    tracemalloc.start()
    try:
        assert verify(workspace, threads=2).bytes_read == 32 * 4_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 4 * 4_000_000  # of 128 MB in all


def _noise(path: str, i: int) -> dict[str, object]:
    values = np.random.default_rng(i).random((1, 1_000_000)).astype(np.float32)
    return {"written": [store.write(path, "", "a", (slice(i, i + 1), slice(0, 1_000_000)), values)]}


# -- files beside the arrays --------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [{"written": [{"store": "cube.zarr"}]}, {"written": [7]}, {"written": 7}, {"written": [{"store": 7, "array": "a", "region": [], "checksum": ""}]}],
)  # fmt: skip
def test_a_ledger_record_with_a_broken_receipt_is_named(made: Workspace, result: object) -> None:
    path = next(made.ledger("ingest").folder.iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result": result}))
    assert [(d.kind, d.where) for d in verify(made).defects] == [("record", path.relative_to(made.root).as_posix())]


def test_samples_and_recorded_files_are_checked(made: Workspace) -> None:
    table = pd.DataFrame({"a": np.arange(5.0)})
    table.to_parquet(made.samples_path)
    table.to_csv(made.root / "samples.csv", index=False)
    note = made.root / "note.txt"
    note.write_text("as it was")
    files = {"note.txt": store_inspection.file_checksum(note)}
    made.finish("match", "match", {"samples": 5, "files": files})
    assert verify(made).defects == ()
    note.write_text("as it is ")
    truncate(made.samples_path)
    (made.root / "samples.csv").write_text("a\n0\n")
    defects = {d.where: d.what for d in verify(made).defects}
    assert set(defects) == {"note.txt", "samples.parquet", "samples.csv"}
    assert "holds 1 rows, stage match wrote 5" in defects["samples.csv"]


def test_recorded_documents_and_coordinates_tell_of_an_altered_attribute(made: Workspace) -> None:
    """Receipts are of values alone: an altered unit or scale is found only where stages record their small files."""
    small = store_inspection.small_files(made.maps_path)
    names = {p.relative_to(made.maps_path).as_posix() for p in small}
    assert {"zarr.json", "gda_kriging/zarr.json", "lat/zarr.json", "lat/c/0"} <= names
    assert not any(name.startswith("gda_kriging/c/") for name in names)
    files = {p.relative_to(made.root).as_posix(): store_inspection.file_checksum(p) for p in small}
    made.finish("fuse", "fuse", {"files": files})
    assert verify(made).defects == ()
    path = made.root / MAP / "zarr.json"
    path.write_text(path.read_text().replace("m3 m-3", "percent"))
    assert [(d.kind, d.where) for d in verify(made).defects] == [("layout", f"{MAP}/zarr.json")]


# -- repair -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [Path.unlink, truncate, replace_by_another])
def test_repair_and_a_run_give_the_same_bytes_and_redo_one_block(made: Workspace, harm: Callable[[Path], None]) -> None:
    before = files_below(made.cube) | files_below(made.maps_path)
    harm(shard(made, LST))
    done = repair(made, verify(made))
    assert done.blocks == (("ingest", "ingest/4-4-4"),)
    assert done.stages == ("ingest", "downscale", "fuse")
    assert all(made.finished(stage) is None for stage in done.stages)
    assert fill(made) == 1
    assert verify(made).defects == ()
    assert files_below(made.cube) | files_below(made.maps_path) == before


def test_repair_redoes_later_blocks_that_wrote_over_what_a_damaged_block_writes(made: Workspace) -> None:
    """downscale's block writes gda_kriging too: done again alone, it would put its own values over fuse's."""
    shard(made, OTHER).unlink()
    done = repair(made, verify(made))
    assert done.blocks == (("downscale", "downscale/4-4-4"), ("fuse", "fuse/4-4-4"))
    assert made.finished("ingest") is not None
    assert fill(made) == 2
    assert verify(made).defects == ()
    assert np.array_equal(store.read(made.maps_path, "", "status_gda_kriging"), status())


def test_repair_of_a_lost_layout_forgets_the_stage_and_what_follows(made: Workspace) -> None:
    (made.root / OTHER / "zarr.json").unlink()
    done = repair(made, verify(made))
    assert done.whole == ("downscale", "fuse")
    assert not made.ledger("downscale").folder.exists()
    assert made.finished("ingest") is not None
    assert len(list(made.ledger("ingest").folder.iterdir())) == 12


def test_repair_of_a_sound_workspace_does_nothing(made: Workspace) -> None:
    before = files_below(made.root / "ledger")
    done = repair(made, verify(made))
    assert (done.blocks, done.stages) == ((), ())
    assert files_below(made.root / "ledger") == before


def test_repair_waits_for_no_run(made: Workspace) -> None:
    shard(made, LST).unlink()
    found = verify(made)
    with made.held(), pytest.raises(StoreError, match="in use by another run"):
        repair(made, found)
    assert made.finished("ingest") is not None


# -- a run of the pipeline ----------------------------------------------------------------------


def test_a_run_is_sound_and_every_part_of_it_has_a_checksum(tiny_run: Path) -> None:
    found = verify(open_workspace(tiny_run))
    assert found.defects == ()
    assert found.unverified == ()


@pytest.mark.slow
def test_a_damaged_run_is_repaired_to_the_same_bytes(
    tiny_run: Path,
    tmp_path: Path,
    tiny_recipe: Path,
    copy_run: Callable[..., Path],
    digests: Callable[[Path], dict[str, str]],
) -> None:
    from smscale import config, pipeline

    workspace = open_workspace(copy_run(tiny_run, tmp_path / "run"))
    shard(workspace, "cube.zarr/fine/overpass/values").unlink()
    truncate(shard(workspace, "cube.zarr/fine/static/values"))
    truncate(shard(workspace, MAP))
    truncate(next(workspace.model("rf").glob("weights-*.safetensors")))
    truncate(workspace.samples_path)
    (workspace.report / "metrics.json").unlink()
    found = verify(workspace)
    assert {d.stage for d in found.defects} == {"ingest", "match", "train", "fuse", "evaluate"}
    assert len(found.defects) == 7  # the model by its folder and by its file
    done = repair(workspace, found)
    records = len(list((tiny_run / "ledger" / "ingest").iterdir()))
    kept = len(list((workspace.root / "ledger" / "ingest").iterdir()))
    assert records - kept == sum(stage == "ingest" for stage, _ in done.blocks) == 2
    pipeline.run(config.read(tiny_recipe), workspace, cluster=None, progress=False)
    assert verify(workspace).defects == ()
    assert digests(workspace.root) == digests(tiny_run)


def test_records_are_json_that_a_later_run_reads(made: Workspace) -> None:
    record = json.loads(next(made.ledger("fuse").folder.iterdir()).read_text())
    assert {"store", "array", "region", "checksum"} <= set(record["result"]["written"][0])
