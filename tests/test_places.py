"""Places of this machine are paths, and what is said of an object store needs none: names, order, messages."""

import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smscale import cli, places
from smscale.errors import InputError, Unreachable
from smscale.places import Remote, file_to_write, folder_to_write, given, place, remove, together, walk, write_bytes
from smscale.places.copies import local_copies
from smscale.workspace import Workspace

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"


def test_a_local_place_is_a_path() -> None:
    assert place("runs/demo") == Path("runs/demo")
    assert Workspace.at("runs/demo").root == Path("runs/demo")
    assert Workspace.at("s3://bucket/runs/demo").samples_path == Remote("bucket", "runs/demo/samples.parquet")
    assert str(Workspace.at("s3://bucket/runs//demo/").model("rf")) == "s3://bucket/runs/demo/models/rf"
    assert str(place("s3://bucket")) == "s3://bucket"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///key", "s3://bucket/../other", "s3://bucket/a?token=x", "https://key:secret@host/bucket"]
)
def test_urls_that_are_no_place_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        given(url)
    assert not any(word in str(error.value) for word in ("secret", "token"))


def test_an_object_may_have_in_its_name_what_a_url_may_not() -> None:
    assert str(place(str(Remote("bucket", "raw/x#1.hdf")))) == "s3://bucket/raw/x#1.hdf"


def test_a_whole_bucket_is_not_removed() -> None:
    with pytest.raises(InputError, match="name a prefix in it, as s3://bucket/run"):
        remove(Remote("bucket", ""))


@pytest.mark.parametrize(
    "arguments",
    [("export", "w", "--what", "final", "--out", "s3://b/x"), ("fetch", str(TINY), "--into", "s3://b/x")],
)
def test_what_goes_to_a_folder_first_makes_none_that_is_called_like_a_url(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w" / "ledger").mkdir(parents=True)
    (tmp_path / "w" / "ledger" / "recipe.json").write_text("{}")
    assert cli.main(list(arguments)) == 2
    assert "s3://b/x: expected a folder of this machine" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


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


def test_two_that_write_the_same_file_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods have the same process ids, and runs of one recipe the same contents."""
    replace, begun = os.replace, []

    def meanwhile(half: Path, path: Path) -> None:
        begun.append(half)
        if len(begun) == 1:
            write_bytes(tmp_path / "a", b"1")
        replace(half, path)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_bytes(tmp_path / "a", b"1")
    assert len(set(begun)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Slow(http.server.BaseHTTPRequestHandler):
    """An object of ten bytes, of which one comes twenty times a second; and one that stops in the middle."""

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Length", "10"),
            ("ETag", '"x"'),
            ("Last-Modified", "Mon, 23 Nov 2026 00:00:00 GMT"),
        ):
            self.send_header(name, value)
        self.end_headers()
        for i in range(10):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(30 if self.path.endswith("stops") and i == 5 else 0.05)

    def log_message(self, *args: object) -> None:
        pass


def test_an_answer_may_take_long_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        slow.daemon_threads = True
        slow.block_on_close = False
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{slow.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "none")
        for name, seconds in (("REQUEST_SECONDS", 0.3), ("RETRY_SECONDS", 0.1), ("RETRIES", 0)):
            monkeypatch.setattr(places.server, name, seconds)
        places.server.bucket.cache_clear()
        try:
            Remote("bucket", "long").download(tmp_path / "x")
            assert (tmp_path / "x").read_bytes() == 10 * b"x"
            with pytest.raises(Unreachable):
                Remote("bucket", "stops").download(tmp_path / "y")
        finally:
            places.server.bucket.cache_clear()
            slow.shutdown()


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

    assert list(together(call, range(100), "s3://bucket")) == [-i for i in range(100)]
    assert list(together(call, range(3), "folder")) == [0, -1, -2]
    done.clear()

    def items() -> Iterator[int]:
        yield from range(10)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        list(together(call, items(), "s3://bucket"))
    assert sorted(done) == list(range(10))  # what was begun is done: a record of the ledger is not lost


def test_nothing_of_a_refusal_but_its_kind_is_told() -> None:
    answer = (
        "Error performing PUT http://host/b/x in 1ms - Server returned non-2xx status code: 403 Forbidden: "
        "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIAKEY</AWSAccessKeyId></Error>\n\nDebug source: SECRET"
    )
    told = places.server.line(place("s3://bucket/x"), Exception(answer))
    assert told.startswith("s3://bucket/x: the object store refuses (SignatureDoesNotMatch)")
    assert not any(word in told for word in ("AKIAKEY", "SECRET"))
    silent = places.server.line(place("s3://bucket/x"), Exception("error trying to connect to 169.254.169.254"))
    assert "no credentials: set AWS_ACCESS_KEY_ID" in silent


@pytest.mark.parametrize(
    ("debug", "cause"),
    [
        ("error: InvalidCertificate(UnknownIssuer)", "its TLS certificate is not trusted here"),
        ('error: "failed to lookup address information: Name or service not known"', "no such host is known"),
        ("kind: ConnectionRefused", "nothing listens there"),
    ],
)
def test_why_a_server_does_not_answer_is_told_without_its_debug_output(debug: str, cause: str) -> None:
    error = Exception(f"HTTP error: error sending request\n\nDebug source:\nSECRET {debug}")
    told = places.server.line(place("s3://bucket/x"), error)
    assert cause in told
    assert not any(word in told for word in ("SECRET", debug))
