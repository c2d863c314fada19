"""Places of this machine are paths, and what is said of an object store needs none: names, order, messages."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smscale import places
from smscale.copies import local_copies
from smscale.errors import InputError
from smscale.places import Remote, file_to_write, folder_to_write, place, remove, together, walk, write_bytes
from smscale.workspace import Workspace


def test_a_local_place_is_a_path() -> None:
    assert place("runs/demo") == Path("runs/demo")
    assert Workspace.at("runs/demo").root == Path("runs/demo")
    assert Workspace.at("s3://bucket/runs/demo").cube == Remote("bucket", "runs/demo/cube.zarr")
    assert str(Workspace.at("s3://bucket/runs//demo/").model("rf")) == "s3://bucket/runs/demo/models/rf"
    assert str(place("s3://bucket")) == "s3://bucket"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///key", "s3://bucket/../other", "s3://bucket/a?token=x", "https://key:secret@host/bucket"]
)
def test_urls_that_are_no_place_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        place(url)
    assert not any(word in str(error.value) for word in ("secret", "token"))


def test_a_local_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"1")
    with file_to_write(tmp_path / "new" / "b") as half:
        assert half.parent == tmp_path / "new"  # a rename, no copy
        half.write_bytes(b"2")
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "new", b"3")
    with pytest.raises(IsADirectoryError), file_to_write(tmp_path / "new" / "c") as half:
        (half.write_bytes(b"4"), tmp_path.read_bytes())
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == {"a": b"1", "b": b"2"}
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_local_files_and_folders_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.hdf").write_bytes(b"1")
    with local_copies([tmp_path / "a.hdf", str(tmp_path / "a.hdf")]) as here:
        assert here == [tmp_path / "a.hdf"] * 2
    with folder_to_write(tmp_path / "report") as folder:
        assert folder == tmp_path / "report"
    remove(tmp_path / "a.hdf")
    remove(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_folders_can_be_left_out_of_a_walk(tmp_path: Path) -> None:
    for name in ("c/0/0", "group/zarr.json"):
        write_bytes(tmp_path / name, b"")
    seen = []
    for folder, folders, names in walk(tmp_path):
        folders[:] = [name for name in folders if name != "c"]
        seen.append((folder, names))
    assert seen == [(tmp_path, []), (tmp_path / "group", ["zarr.json"])]


def test_what_is_done_together_comes_in_order_and_ends_where_the_items_stop() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def call(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)
        with lock:
            done.append(i)
        return -i

    assert list(together(call, range(100), remote=True)) == [-i for i in range(100)]
    assert list(together(call, range(3), remote=False)) == [0, -1, -2]
    done.clear()

    def items() -> Iterator[int]:
        yield from range(10)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        list(together(call, items(), remote=True))
    assert sorted(done) == list(range(10))  # what was begun is done: a record of the ledger is not lost


def test_nothing_of_a_refusal_but_its_kind_is_told() -> None:
    answer = (
        "Error performing PUT http://host/b/x in 1ms - Server returned non-2xx status code: 403 Forbidden: "
        "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIAKEY</AWSAccessKeyId></Error>\n\nDebug source: SECRET"
    )
    told = places._line(place("s3://bucket/x"), Exception(answer))
    assert told.startswith("s3://bucket/x: the object store refuses (SignatureDoesNotMatch)")
    assert not any(word in told for word in ("AKIAKEY", "SECRET"))
    silent = places._line(place("s3://bucket/x"), Exception("error trying to connect to 169.254.169.254"))
    assert "no credentials: set AWS_ACCESS_KEY_ID" in silent
