"""Downloads against a server on this machine that behaves as archives do on bad days. No real archive is asked."""

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import h5py
import numpy as np
import pytest
import rasterio
import requests
from rasterio.transform import Affine

from smscale import config
from smscale.errors import InputError, RecipeError
from smscale.fetch import Cmr, Copernicus, Login, Remote, Result, Wanted, download_all
from smscale.fetch.download import MANIFEST, PIECE
from smscale.fetch.patience import Patience, Unreachable, get
from smscale.pipeline.fetch import Outcome, fetch
from smscale.sources.catalogue import scan

BODY = bytes(range(256)) * 3000
HDF4 = b"\x0e\x03\x13\x01\x00\x01\x00\x00\x00\x00" + b"\x00\x01\x00\x00" + b"\x00" * 8
PAGE = b"<!DOCTYPE html><html><title>Earthdata Login</title></html>"


class Server:
    """Files by path, and what goes wrong with the next requests for each; every request is kept."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.granules: list[dict] = []
        self.page_size = 2000
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.token: str | None = None
        handler = type("Handler", (_Handler,), {"archive": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def of(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a path."""
        return [headers for where, headers in self.requests if urlsplit(where).path == path]

    def add_granule(self, product: str, version: str, name: str, body: bytes, **facts: object) -> None:
        """A file, and what CMR says of it."""
        self.files[f"/data/{name}"] = body
        checksum = {"Value": hashlib.md5(body).hexdigest(), "Algorithm": "MD5"}
        described = {"Name": name, "Size": 0.1, "SizeUnit": "MB", "SizeInBytes": len(body), "Checksum": checksum}
        links = [
            {"URL": f"s3://bucket/{name}", "Type": "GET DATA VIA DIRECT ACCESS"},
            {"URL": f"{self.url}/data/{name}", "Type": "GET DATA"},
            {"URL": f"{self.url}/data/{name}.xml", "Type": "EXTENDED METADATA"},
        ]
        umm = {"RelatedUrls": links, "DataGranule": {"ArchiveAndDistributionInformation": [described | facts]}}
        self.granules.append({"product": product, "version": version, "name": name, "umm": umm})


class _Handler(BaseHTTPRequestHandler):
    archive: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.archive.requests.append((self.path, dict(self.headers)))
        where = urlsplit(self.path)
        if where.path == "/cmr/granules.umm_json":
            return self.search(parse_qs(where.query))
        pending = self.archive.faults.get(where.path, [])
        fault = pending.pop(0) if pending else ""
        body = self.archive.files.get(where.path)
        if fault and getattr(self, fault.split(":")[0].replace("-", "_"), None):
            return getattr(self, fault.split(":")[0].replace("-", "_"))(body, fault.partition(":")[2])
        if self.archive.token and self.headers.get("Authorization") != f"Bearer {self.archive.token}":
            return self.answer(401, b"HTTP Basic: Access denied.")
        if body is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self.send(body)

    def send(self, body: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            return self.answer(200, body)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        return self.answer(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def status(self, body: bytes, what: str) -> None:
        code, _, wait = what.partition(" ")
        self.answer(int(code), b"not now", {"Retry-After": wait} if wait else None)

    def page(self, body: bytes, what: str) -> None:
        self.answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})

    def no_range(self, body: bytes, what: str) -> None:
        self.answer(200, body)

    def other_range(self, body: bytes, what: str) -> None:
        self.answer(206, body[7:], {"Content-Range": f"bytes 7-{len(body) - 1}/{len(body)}"})

    def corrupt(self, body: bytes, what: str) -> None:
        self.answer(200, body[:-1] + b"?")

    def short(self, body: bytes, what: str) -> None:
        self.answer(200, body[: len(body) // 2])

    def cut(self, body: bytes, what: str) -> None:
        """The connection breaks in the middle of the body."""
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + (len(body) - start) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def slow(self, body: bytes, what: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side is killed meanwhile
            for i in range(0, len(body), 1 << 16):
                self.wfile.write(body[i : i + (1 << 16)])
                time.sleep(0.1)

    def redirect(self, body: bytes, to: str) -> None:
        self.answer(302, b"", {"Location": to})

    def basic(self, body: bytes, to: str) -> None:
        """As urs.earthdata.nasa.gov: name and password, then back with a cookie."""
        if not self.headers.get("Authorization", "").startswith("Basic "):
            return self.answer(401, b"HTTP Basic: Access denied.")
        return self.answer(302, b"", {"Location": to, "Set-Cookie": "session=yes"})

    def search(self, query: dict[str, list[str]]) -> None:
        pending = self.archive.faults.get("/cmr", [])
        fault = pending.pop(0) if pending else ""
        if fault:
            return self.answer(int(fault), b'{"errors":["Parameter [x] was not recognized."]}')
        patterns = query.get("readable_granule_name[]", ["*"])
        first, last = query.get("temporal[]", ["0000,9999"])[0].split(",")
        hits = [
            g
            for g in self.archive.granules
            if [g["product"]] == query["short_name"]
            and [g["version"]] == query["version"]
            and any(fnmatch.fnmatch(g["name"], p) for p in patterns)
        ]
        start = int(self.headers.get("CMR-Search-After", "0"))
        page = hits[start : start + self.archive.page_size]
        headers = {"CMR-Hits": str(len(hits))} | ({"CMR-Search-After": str(start + len(page))} if page else {})
        assert first <= last
        return self.answer(200, json.dumps({"items": [{"umm": g["umm"]} for g in page]}).encode(), headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("SMSCALE_CMR_URL", f"{server.url}/cmr")
    monkeypatch.setenv("SMSCALE_COPERNICUS_URL", f"{server.url}/dem")
    monkeypatch.setenv("EARTHDATA_TOKEN", "secret")
    monkeypatch.setenv("NETRC", "/nonexistent")
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def patience() -> Patience:
    return Patience(tries=3, first=0.0, sleep=lambda seconds: None)


@pytest.fixture
def one(server: Server, tmp_path: Path, patience: Patience) -> Callable[..., Result]:
    """Download one file of BODY; keywords change what is known of it."""
    server.files["/data/a.h5"] = BODY

    def download(**facts: object) -> Result:
        known = {"size": len(BODY), "checksum": ("md5", hashlib.md5(BODY).hexdigest()), "login": True} | facts
        remote = Remote(f"{server.url}/data/a.h5", "a.h5", **known)  # type: ignore[arg-type]
        wanted = [(remote, tmp_path / "x" / "a.h5")]
        return download_all(wanted, tmp_path / MANIFEST, 1, patience=patience, progress=False)[0]

    return download


# -- one file -----------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_is_entered(one: Callable, server: Server, tmp_path: Path) -> None:
    result = one()
    assert (result.status, result.bytes) == ("fetched", len(BODY))
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.h5"]
    (entry,) = map(json.loads, (tmp_path / MANIFEST).read_text().splitlines())
    assert entry["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert entry["checksum"]["value"] == hashlib.md5(BODY).hexdigest()
    assert (entry["path"], entry["bytes"], entry["url"]) == ("x/a.h5", len(BODY), f"{server.url}/data/a.h5")
    assert one().status == "present"
    assert len(server.of("/data/a.h5")) == 1


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([], ["bytes=100000-"]),
        (["no-range"], ["bytes=100000-"]),
        (["other-range"], ["bytes=100000-", None]),
        (["status:503", "status:500"], ["bytes=100000-"] * 3),
    ],
)
def test_what_came_before_is_not_fetched_again(
    one: Callable, server: Server, tmp_path: Path, faults: list[str], ranges: list[str | None]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.h5.part").write_bytes(BODY[:100_000])
    server.faults["/data/a.h5"] = faults
    assert one().status == "fetched"
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY
    assert [headers.get("Range") for headers in server.of("/data/a.h5")] == ranges


def test_a_connection_that_breaks_costs_one_piece_at_most(one: Callable, server: Server, tmp_path: Path) -> None:
    server.faults["/data/a.h5"] = ["cut", "cut"]
    result = one()
    assert result.status == "fetched"
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY
    starts = [int(h["Range"].removeprefix("bytes=").rstrip("-")) for h in server.of("/data/a.h5")[1:]]
    assert len(BODY) / 2 - PIECE <= starts[0] <= len(BODY) / 2
    assert starts[0] < starts[1]
    assert result.bytes == len(BODY)


@pytest.mark.parametrize("size", [len(BODY), None])
@pytest.mark.parametrize("part", [BODY, BODY + b"more"])
def test_a_part_that_is_complete_is_taken_and_one_that_is_too_long_thrown_away(
    one: Callable, server: Server, tmp_path: Path, part: bytes, size: int | None
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.h5.part").write_bytes(part)
    assert one(size=size).status == "fetched"
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY
    assert len(server.of("/data/a.h5")) == (1 if part == BODY else 2)


def test_a_part_of_another_file_is_found_out_by_the_checksum(one: Callable, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.h5.part").write_bytes(b"?" * 100_000)
    assert one().status == "fetched"
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY


@pytest.mark.parametrize("fault", ["corrupt", "short"])
def test_what_is_not_as_promised_is_thrown_away_and_fetched_again(
    one: Callable, server: Server, tmp_path: Path, fault: str
) -> None:
    server.faults["/data/a.h5"] = [fault]
    assert one().status == "fetched"
    assert (tmp_path / "x" / "a.h5").read_bytes() == BODY
    (tmp_path / "x" / "a.h5").unlink()
    server.faults["/data/a.h5"] = [fault] * 3
    result = one()
    assert result.status == "failed"
    assert "MD5 is not the archive's (tried 3 times)" in result.reason
    assert not (tmp_path / "x" / "a.h5").exists()


def test_without_a_checksum_the_size_is_checked(one: Callable, server: Server) -> None:
    server.faults["/data/a.h5"] = ["short"] * 3
    assert "the archive says 768000" in one(checksum=None).reason


def test_a_server_that_stays_away_is_named_after_some_tries(one: Callable, server: Server) -> None:
    server.faults["/data/a.h5"] = ["status:503"] * 3
    result = one()
    assert (result.status, result.reason) == ("failed", "503 Service Unavailable (tried 3 times)")


def test_the_server_is_waited_for_as_long_as_it_asks(server: Server) -> None:
    waits: list[float] = []
    server.files["/data/a.h5"] = BODY
    server.faults["/data/a.h5"] = ["status:429 7", "status:503", "status:503"]
    answer = get(requests.Session(), f"{server.url}/data/a.h5", Patience(4, 2.0, 60.0, waits.append))
    assert answer.content == BODY
    assert waits[0] == 7.0
    assert 2.0 * 2 * 0.75 <= waits[1] <= 2.0 * 2 * 1.25 < waits[2] <= 2.0 * 4 * 1.25
    with pytest.raises(Unreachable, match="Connection"):
        get(requests.Session(), "http://127.0.0.1:9/x", Patience(2, 0.0, 0.0, waits.append))


def test_what_the_archive_does_not_have_is_absent_and_no_failure(one: Callable, server: Server, tmp_path: Path) -> None:
    del server.files["/data/a.h5"]
    assert one().status == "absent"
    assert list((tmp_path / "x").iterdir()) == []
    assert Outcome(absent=("a",)).exit_code == 0
    assert Outcome(failed=("a",)).exit_code == 2


def test_a_broken_file_that_is_there_is_replaced(server: Server, tmp_path: Path, patience: Patience) -> None:
    server.files["/data/a.tif"] = BODY
    target = tmp_path / "a.tif"
    target.write_bytes(b"II*\x00rest")
    remote = Remote(f"{server.url}/data/a.tif", "a.tif")  # neither size nor checksum are known, as of Copernicus
    kept, replaced = (
        download_all([(remote, target)], tmp_path / MANIFEST, patience=patience, suspect=suspect, progress=False)[0]
        for suspect in (frozenset(), frozenset([target]))
    )
    assert (kept.status, replaced.status) == ("present", "fetched")
    assert target.read_bytes() == BODY


def test_two_fetches_do_not_write_into_one_part(one: Callable, server: Server, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / "a.h5.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another smscale fetch" in one().reason
    assert server.requests == []
    assert one().status == "fetched"


def test_a_run_that_is_killed_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    body = BODY * 4
    server.files["/data/a.h5"] = body
    server.faults["/data/a.h5"] = ["slow"]
    code = (
        "from pathlib import Path; from smscale.fetch import Remote, download_all;"
        f"r = Remote('{server.url}/data/a.h5', 'a.h5', {len(body)}, ('md5', '{hashlib.md5(body).hexdigest()}'));"
        f"print(download_all([(r, Path({str(tmp_path / 'a.h5')!r}))], Path({str(tmp_path / MANIFEST)!r}), progress=False)[0].status)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "a.h5.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    have = part.stat().st_size
    assert 100_000 < have < len(body)
    assert not (tmp_path / "a.h5").exists()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fetched"
    assert (tmp_path / "a.h5").read_bytes() == body
    assert server.of("/data/a.h5")[1]["Range"] == f"bytes={have}-"


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path, patience: Patience) -> None:
    server.files["/data/a.h5"] = BODY
    (tmp_path / "x").write_text("no folder")
    wanted = [(Remote(f"{server.url}/data/a.h5", "a.h5"), tmp_path / "x" / "a.h5")]
    (result,) = download_all(wanted, tmp_path / MANIFEST, patience=patience, progress=False)
    assert (result.status, result.reason.split(":")[0]) == ("failed", "cannot be written")


# -- the login ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"), [("page", "an HTML login page came instead of"), ("status:401", "refused the login (401")]
)
def test_a_refused_login_is_said_once_and_nothing_more_is_tried(
    server: Server, tmp_path: Path, patience: Patience, fault: str, said: str
) -> None:
    names = [f"{i}.h5" for i in range(5)]
    for name in names:
        server.files[f"/data/{name}"] = BODY
        server.faults[f"/data/{name}"] = [fault] * 9
    server.files["/data/open.tif"] = BODY
    (tmp_path / "0.h5.part").write_bytes(BODY[:1000])
    wanted = [(Remote(f"{server.url}/data/{n}", n, login=True), tmp_path / n) for n in names]
    wanted.append((Remote(f"{server.url}/data/open.tif", "open.tif"), tmp_path / "open.tif"))
    results = download_all(wanted, tmp_path / MANIFEST, 1, patience=patience, progress=False)
    assert [r.status for r in results] == ["failed"] * 5 + ["fetched"]
    assert said in results[0].reason
    assert "EARTHDATA_TOKEN" in results[0].reason
    assert "~/.netrc" in results[0].reason
    assert all("not tried" in r.reason for r in results[1:5])
    assert len([path for path, _ in server.requests if path.endswith(".h5")]) == 1
    assert (tmp_path / "0.h5.part").read_bytes() == BODY[:1000]  # a page does not spoil what came before


def test_the_token_goes_to_the_archive_and_not_where_that_sends_us(one: Callable, server: Server) -> None:
    server.token = "secret"
    elsewhere = f"http://localhost:{server.port}/signed/a.h5"  # another host, as a signed address is
    server.files["/signed/a.h5"] = BODY
    server.faults["/data/a.h5"] = [f"redirect:{elsewhere}"]
    server.faults["/signed/a.h5"] = ["no-range"]
    assert one().status == "fetched"
    assert server.of("/data/a.h5")[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.of("/signed/a.h5")[0]


def test_the_token_leaves_this_machine_only_encrypted() -> None:
    def sent(url: str) -> str | None:
        return Login("secret")(requests.Request("GET", url).prepare()).headers.get("Authorization")

    assert sent("https://data.lpdaac.earthdatacloud.nasa.gov/x") == "Bearer secret"
    assert sent("http://data.lpdaac.earthdatacloud.nasa.gov/x") is None
    assert sent("https://nasa.gov.example.org/x") is None
    assert "secret" not in repr(Login("secret"))


def test_name_and_password_of_netrc_are_given_where_the_archive_sends_us(
    one: Callable, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EARTHDATA_TOKEN")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login ann password word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.faults["/data/a.h5"] = [f"redirect:http://localhost:{server.port}/oauth"]
    server.faults["/oauth"] = [f"basic:{server.url}/data/a.h5"]
    assert one().status == "fetched"
    first, after = server.of("/data/a.h5")
    assert "Authorization" not in first
    assert "Authorization" not in after
    assert server.of("/oauth")[0]["Authorization"].startswith("Basic ")
    assert not Login.from_environment().known  # of urs.earthdata.nasa.gov this file says nothing
    netrc.write_text("machine urs.earthdata.nasa.gov login ann password word\n")
    assert Login.from_environment().known


# -- the search -----------------------------------------------------------------------------------------


def test_the_search_asks_for_what_is_wanted_and_follows_the_pages(server: Server, patience: Patience) -> None:
    names = [f"MYD11A1.A20171{i:02d}.h26v05.061.2021296000000.hdf" for i in range(10, 40)]
    for name in names:
        server.add_granule("MYD11A1", "061", name, BODY)
    server.add_granule("MYD11A1", "061", names[0].replace("h26", "h27"), BODY)
    server.add_granule("MYD11A1", "006", names[0].replace(".061.", ".006."), BODY)
    server.page_size = 8
    server.faults["/cmr"] = ["503"]
    found = Cmr(patience=patience).search(
        Wanted("MYD11A1", "061", "2017-04-20", "2017-05-30", ("MYD11A1.A*.h26v05.*",))
    )
    assert [remote.name for remote in found] == names
    assert found[0] == Remote(
        f"{server.url}/data/{names[0]}", names[0], len(BODY), ("md5", hashlib.md5(BODY).hexdigest()), login=True
    )
    query = parse_qs(urlsplit(server.requests[0][0]).query)
    assert query["temporal[]"] == ["2017-04-20T00:00:00Z,2017-05-30T23:59:59Z"]
    assert query["options[readable_granule_name][pattern]"] == ["true"]
    # One failed try, four pages, and the empty one that ends the list.
    assert len(server.requests) == 6


def test_sizes_in_megabytes_and_unknown_checksums_are_not_believed(server: Server, patience: Patience) -> None:
    facts = {"SizeInBytes": None, "Checksum": {"Value": "1", "Algorithm": "CKSUM"}}
    server.add_granule("MYD11A1", "061", "a.hdf", BODY, **facts)
    (remote,) = Cmr(patience=patience).search(Wanted("MYD11A1", "061"))
    assert (remote.size, remote.checksum) == (None, None)


def test_a_search_that_fails_says_where_and_why(server: Server, patience: Patience) -> None:
    server.faults["/cmr"] = ["400"]
    with pytest.raises(InputError, match=r"answered 400.*not recognized"):
        Cmr(patience=patience).search(Wanted("MYD11A1", "061"))
    with pytest.raises(InputError, match="cannot be reached"):
        Cmr("http://127.0.0.1:9", patience).search(Wanted("MYD11A1", "061"))
    server.files["/other/granules.umm_json"] = b"<html>"
    with pytest.raises(InputError, match="no list of granules"):
        Cmr(f"{server.url}/other", patience).search(Wanted("MYD11A1", "061"))


def test_addresses_of_copernicus_are_those_of_its_bucket() -> None:
    # As its readme (copernicus-dem-30m.s3.amazonaws.com/readme.html) and published examples write them.
    (remote,) = Copernicus("https://copernicus-dem-30m.s3.amazonaws.com").search(Wanted("", "", names=("S14W172",)))
    name = "Copernicus_DSM_COG_10_S14_00_W172_00_DEM"
    assert remote.url == f"https://copernicus-dem-30m.s3.amazonaws.com/{name}/{name}.tif"
    assert not remote.login


# -- a recipe ---------------------------------------------------------------------------------------------


RECIPE = """name: small
inputs: raw
region: [103.1, 30.1, 103.3, 30.3]
period: [2017-06-10, 2017-06-11]
"""


def elevation(path: Path) -> bytes:
    """A 1 degree GeoTIFF at N30E103."""
    profile = {"driver": "GTiff", "height": 10, "width": 10, "count": 1, "dtype": "float32", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", transform=Affine(0.1, 0, 103, 0, -0.1, 31), **profile) as file:
        file.write(np.ones((10, 10), "float32"), 1)
    return path.read_bytes()


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> Server:
    """Everything that RECIPE needs: SMAP, Aqua's LST, vegetation indices, gap-filled ET, land cover, one DEM tile."""

    def modis(product: str, day: str, production: str = "2021001000000") -> None:
        server.add_granule(product, "061", f"{product}.A{day}.h26v05.061.{production}.hdf", HDF4)

    for day in ("09", "10", "11"):
        server.add_granule("SPL3SMP", "009", f"SMAP_L3_SM_P_201706{day}_R19240_001.h5", hdf5(tmp_path))
    for day in ("2017160", "2017161", "2017162", "2017163"):
        modis("MYD11A1", day)
    modis("MYD11A1", "2017161", "2022001000000")
    for day in ("2017145", "2017161"):
        modis("MOD13A2", day)
    for day in ("2017153", "2017161"):
        modis("MOD16A2GF", day)
    modis("MCD12Q1", "2017001")
    name = "Copernicus_DSM_COG_10_N30_00_E103_00_DEM"
    server.files[f"/dem/{name}/{name}.tif"] = elevation(tmp_path / "dem.tif")
    (tmp_path / "dem.tif").unlink()
    server.token = "secret"
    return server


def hdf5(folder: Path) -> bytes:
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = np.zeros(2000)
    body = (folder / "x.h5").read_bytes()
    (folder / "x.h5").unlink()
    return body


@pytest.fixture
def recipe(tmp_path: Path) -> config.Recipe:
    (tmp_path / "small.yaml").write_text(RECIPE)
    return config.read(tmp_path / "small.yaml")


@pytest.fixture
def run(recipe: config.Recipe, patience: Patience) -> Callable[..., tuple[Outcome, str]]:
    def fetched(**options: object) -> tuple[Outcome, str]:
        said: list[str] = []
        outcome = fetch(recipe, progress=False, say=said.append, patience=patience, **options)  # type: ignore[arg-type]
        return outcome, "".join(said)

    return fetched


def without_login_for_dem(archive: Server) -> None:
    """The bucket of Copernicus asks for no token; the server's other files do."""
    archive.token = None


def test_a_recipe_gets_what_it_lacks_and_nothing_twice(archive: Server, run: Callable, tmp_path: Path) -> None:
    without_login_for_dem(archive)
    outcome, said = run()
    assert outcome.exit_code == 0
    assert outcome.absent == ()
    assert len(outcome.fetched) == 3 + 3 + 1 + 1 + 1 + 1
    found = scan(tmp_path / "raw")
    assert found.counts["MYD11A1"] == 3
    assert "MYD11A1.A2017161.h26v05.061.2022001000000.hdf" in outcome.fetched  # the newest production
    assert "MYD11A1.A2017163.h26v05.061.2021001000000.hdf" not in outcome.fetched  # outside the period
    assert (tmp_path / "raw" / "MYD11A1").is_dir()
    assert len((tmp_path / "raw" / MANIFEST).read_text().splitlines()) == len(outcome.fetched)
    assert "stations  none there" in said
    asked = len(archive.requests)
    outcome, said = run()
    assert outcome.fetched == outcome.failed == ()
    assert len(archive.requests) == asked  # stations are all that is missing: no archive has them
    lost = tmp_path / "raw" / "MYD11A1" / "MYD11A1.A2017160.h26v05.061.2021001000000.hdf"
    lost.write_bytes(HDF4[:9])
    outcome, _ = run()
    assert outcome.fetched == (lost.name,)
    assert lost.read_bytes() == HDF4


def test_a_dry_run_asks_no_archive(archive: Server, run: Callable, tmp_path: Path) -> None:
    outcome, said = run(dry_run=True)
    assert archive.requests == []
    assert not (tmp_path / "raw").exists()
    assert "LST 2017-06-09 h26v05" in outcome.missing
    assert "DEM N30E103" in outcome.missing
    for part in ("MYD11A1", "3 of 3 missing", "MOD16A2GF", "Copernicus GLO-30"):
        assert part in said


def test_what_the_archives_do_not_have_is_listed(archive: Server, run: Callable) -> None:
    without_login_for_dem(archive)
    archive.granules = [g for g in archive.granules if "A2017161" not in g["name"] and g["product"] != "MCD12Q1"]
    del archive.files[next(path for path in archive.files if path.startswith("/dem"))]
    archive.add_granule("MCD12Q1", "061", "MCD12Q1.A2015001.h26v05.061.2021001000000.hdf", HDF4)
    outcome, said = run()
    assert outcome.lacking == ("VI", "ET", "DEM")
    assert outcome.exit_code == 2
    assert "nothing    of VI, ET, DEM is there: a run would refuse" in said
    assert "MYD11A1 2017-06-10 h26v05" in outcome.absent
    assert "Copernicus_DSM_COG_10_N30_00_E103_00_DEM.tif" in outcome.absent
    assert "only sea" in said
    assert "MCD12Q1 2017 h26v05 is not in the archive: 2015 stands in" in said
    assert "MCD12Q1.A2015001.h26v05.061.2021001000000.hdf" in outcome.fetched
    outcome, said = run()  # 2017 is still not there: the older map is not fetched again
    assert outcome.fetched == ()


def test_failures_end_with_exit_code_2_and_are_tried_again(archive: Server, run: Callable) -> None:
    without_login_for_dem(archive)
    name = "MYD11A1.A2017160.h26v05.061.2021001000000.hdf"
    archive.faults[f"/data/{name}"] = ["status:503"] * 3
    outcome, said = run(jobs=3)
    assert outcome.exit_code == 2
    assert outcome.failed == (f"{name}: 503 Service Unavailable (tried 3 times)",)
    assert "the same command tries them again" in said
    assert run()[0].fetched == (name,)


def test_without_a_login_nothing_is_downloaded(
    archive: Server, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EARTHDATA_TOKEN")
    with pytest.raises(InputError, match="EARTHDATA_TOKEN"):
        run()
    assert not any(path.startswith("/data") for path, _ in archive.requests)
    assert not (tmp_path / "raw").exists()


def test_a_full_disk_is_foreseen(archive: Server, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(InputError, match="--into"):
        run()


def test_a_folder_of_another_collection_is_warned_of(archive: Server, run: Callable, tmp_path: Path) -> None:
    without_login_for_dem(archive)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "MYD11A1.A2017160.h26v05.006.2018001000000.hdf").write_bytes(HDF4)
    outcome, said = run()
    assert "MYD11A1: the folder holds collection 006, the archive gives 061" in said
    assert "MYD11A1.A2017160.h26v05.061.2021001000000.hdf" not in outcome.fetched


def test_aster_comes_through_the_search(archive: Server, run: Callable, tmp_path: Path) -> None:
    without_login_for_dem(archive)
    body = elevation(tmp_path / "aster.tif")
    for part in ("dem", "num"):
        archive.add_granule("ASTGTM", "003", f"ASTGTMV003_N30E103_{part}.tif", body)
    outcome, _ = run(dem="aster", into=tmp_path / "elsewhere")
    assert "ASTGTMV003_N30E103_dem.tif" in outcome.fetched
    assert "ASTGTMV003_N30E103_num.tif" not in outcome.fetched
    assert (tmp_path / "elsewhere" / "DEM" / "ASTGTMV003_N30E103_dem.tif").is_file()


def test_day_and_night_of_viirs_are_both_fetched(archive: Server, run: Callable, tmp_path: Path) -> None:
    without_login_for_dem(archive)
    body = hdf5(tmp_path)
    for product in ("VNP21A1D", "VNP21A1N"):
        for day in ("2017160", "2017161", "2017162"):
            archive.add_granule(product, "002", f"{product}.A{day}.h26v05.002.2021001000000.h5", body)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "VNP21A1D.A2017161.h26v05.002.2021001000000.h5").write_bytes(body)
    half = tmp_path / "raw" / "VNP21A1N.A2017161.h26v05.002.2021001000000.h5"
    half.write_bytes(body[:100])
    outcome, _ = run()
    assert half.read_bytes() == body  # a broken file is replaced where it lies
    assert sum(name.startswith("VNP21A1D") for name in outcome.fetched) == 2
    assert sum(name.startswith("VNP21A1N") for name in outcome.fetched) == 3
    assert not any(name.startswith("MYD11A1") for name in outcome.fetched)  # the folder has chosen


def test_a_recipe_of_a_nature_run_has_nothing_to_fetch(tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text("name: w\nworld: x.yaml\n")
    with pytest.raises(RecipeError, match="--into"):
        fetch(config.read(tmp_path / "world.yaml"))
