"""What a run tells: lines, JSON, metrics, its record, the page; and that none of it holds a secret."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from prometheus_client.parser import text_string_to_metric_families

from smscale import blocks, cli, config, pipeline, run_record, store
from smscale.blocks import Ledger, Task
from smscale.errors import InputError, SmscaleError
from smscale.observe import Observer, Record
from smscale.observe.lines import JsonLines, Lines
from smscale.observe.metrics import served
from smscale.pipeline.run_page import page_of
from smscale.progress import Part, Receipted, Used
from smscale.redaction import redacted, redacted_values
from smscale.workspace import Workspace

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"


# -- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:hush@host.org/a.h5 failed", "GET https://***@host.org/a.h5 failed"),
        ("s3://AKIA12:se/cr+et@bucket/x", "s3://***@bucket/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://h/x?a=1&X-Amz-Signature=zz&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        (f"https://h/x?code={'x' * 40}", "https://h/x?code=***"),
        ("{'Authorization': 'Bearer abcdefgh1234'}", "{'Authorization': 'Bearer ***'}"),
        ("the key is wJalr/XUtn+FEMI0", "the key is ***"),
        ("https://search.earthdata.nasa.gov/search?q=VJ221A1D", None),
        ("tls://host:8786 at 10:30, me@x.org", None),
        ("Bearer of bad news in /run/token", None),
    ],
)
def test_secrets_are_hidden_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch, text: str, shown: str | None) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI0")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token")
    assert redacted(text) == (text if shown is None else shown)
    assert redacted_values({"a": [text, 1, None]}) == {"a": [redacted(text), 1, None]}


# -- what the engine counts ---------------------------------------------------------------------


class Kept:
    """A watch that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Part, int]] = []

    def begins(self, part: Part) -> None:
        self.told.append(("begins", part, part.done))

    def moved(self, part: Part) -> None:
        self.told.append(("moved", part, part.done))

    def ends(self, part: Part) -> None:
        self.told.append(("ends", part, part.done))


def square(x: int) -> int:
    return x * x


def fail(x: int) -> int:
    raise InputError(f"number {x} from https://me:hush@host is wrong")


def fail_once(folder: str) -> int:
    marker = Path(folder) / "failed"
    if not marker.exists():
        marker.write_text("x")
        raise ValueError("the first time")
    return 1


def test_a_watch_hears_of_blocks_done_skipped_tried_again_and_failed(tmp_path: Path) -> None:
    ledger, watch = Ledger(tmp_path / "ledger" / "s"), Kept()
    some = [Task(f"{x}", square, (x,), cells=10) for x in range(4)]
    blocks.run(some[:2], ledger, progress=False, watch=watch)
    assert [(what, n) for what, _, n in watch.told] == [("begins", 0), ("moved", 1), ("moved", 2), ("ends", 2)]
    again = Kept()
    tasks = [*some, Task("once", fail_once, (str(tmp_path),)), Task("bad", fail, (7,))]
    with pytest.raises(InputError):
        blocks.run(tasks, ledger, label="maps", progress=False, watch=again)
    part = again.told[-1][1]
    assert again.told[-1][0] == "ends"
    assert (part.label, part.total, part.before, part.done, part.cells) == ("maps", 6, 2, 3, 20)
    assert (part.retried, part.failed) == (1, 1)
    assert part.failures == [
        ("once", "1 time, ValueError: the first time"),
        ("bad", "InputError: number 7 from https://***@host is wrong"),
    ]
    assert part.seconds < 5
    assert np.isfinite(part.ended)


def test_only_the_first_failures_are_kept() -> None:
    part = Part("x")
    for i in range(1000):
        part.fails(f"{i}", "why")
    assert len(part.failures) == 20


def test_bytes_are_those_of_the_values_that_receipts_name(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    lazy = xr.Dataset({"a": (("lat", "lon"), store.empty((3, 4), np.float32))})
    store.create(tmp_path / "cube.zarr", "g", lazy, {"lat": 3, "lon": 2})
    receipt = store.write(tmp_path / "cube.zarr", "g", "a", (slice(0, 3), slice(0, 4)), values)
    receipted = Receipted(tmp_path)
    assert receipted.bytes_of({"written": [receipt, receipt]}) == 2 * values.nbytes
    assert receipted.bytes_of({"downscale": {"written": [receipt]}, "fuse": {"counts": 3}}) == values.nbytes
    assert receipted.bytes_of({"written": [{**receipt, "array": "g/none"}]}) == 0
    assert receipted.bytes_of([1, 2]) == receipted.bytes_of({"written": []}) == 0


PEAKS = """
import pickle, numpy as np
from smscale import block_task
def peak(size, part):
    done, _ = block_task.pack([pickle.dumps((np.ones, (size,)))], "cpu", part)
    return done[-1].used.peak
large = peak(40_000_000, "a")
print(large, peak(1, "a"), peak(1, "b"))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps one peak for a process")
def test_peak_of_a_worker_is_that_of_its_part() -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    large, same, other = map(int, done.stdout.split())
    assert large > 320e6, "an array of 320 MB"
    assert same > large - 10e6, "the system counts pages of each thread roughly"
    assert other < large - 300e6


def test_blocks_that_this_run_did_before_are_no_earlier_runs() -> None:
    run = Observer()
    for label, total, before, did in (("downscale, fuse", 12, 5, 7), ("downscale", 12, 12, 0), ("fuse", 14, 12, 2)):
        with run.stage(label):
            part = Part(label, total, before)
            run.begins(part)
            part.done = did
            run.ends(part)
    assert [(s.sum("planned"), s.sum("skipped"), s.sum("done")) for s in run.stages] == [
        (12, 5, 7),
        (0, 0, 0),
        (2, 0, 2),
    ]


# -- lines --------------------------------------------------------------------------------------


def told(run: Observer, blocks: int = 1000, fail: bool = False) -> None:
    """A made run of one stage."""
    with run.running(), run.stage("ingest"):
        part = Part("ingest", blocks)
        run.begins(part)
        for _ in range(blocks):
            part.done, part.cells, part.values = part.done + 1, part.cells + 100, part.values + 400
            run.moved(part)
        if fail:
            part.failed = 1
            part.fails("a/1", "ValueError: \x1b[31mred\r\n key=1")
        run.ends(part)
        if fail:
            raise InputError("no")


def test_plain_lines_are_few_and_hold_no_control_characters() -> None:
    stream = io.StringIO()
    with pytest.raises(InputError):
        told(Observer([Lines(stream)]), fail=True)
    said = stream.getvalue().splitlines()
    assert [line[21:] for line in said[:1]] == ["ingest begins"]
    assert re.match(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ingest failed in 0 s: 1000 of 1000 blocks, 400 kB of values", said[1]
    )
    assert said[2].endswith("ingest block a/1: ValueError: [31mred key=1")
    assert len(said) == 3, "a stage of no time says nothing between its ends"
    assert all(c.isprintable() for line in said for c in line)


def test_a_long_stage_tells_of_its_progress_at_most_once_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream, program = io.StringIO(), io.StringIO()
    run = Observer([Lines(stream), JsonLines(program)])
    with run.running(), run.stage("fuse"):
        part = Part("fuse", 1000, before=200, began=0.0)
        run.begins(part)
        for _ in range(800):
            now[0] += 0.5
            part.done += 1
            part.cells += 10_000
            run.moved(part)
        run.ends(part)
    said = [line[21:] for line in stream.getvalue().splitlines()]
    assert said[1] == "fuse: 301 of 1000 blocks (30%), 2 blocks/s, 20 kcells/s, 5:50 left"
    assert len(said) == 2 + 7, "every tenth of the blocks"
    progress = [one for one in map(json.loads, program.getvalue().splitlines()) if one["event"] == "progress"]
    assert len(progress) == 40, "four hundred seconds"
    assert progress[0] | {"time": "", "run": ""} == {
        "time": "", "event": "progress", "run": "", "stage": "fuse", "part": "fuse", "seconds": 10.0, "blocks": 1000,
        "blocks_skipped": 200, "blocks_done": 20, "blocks_retried": 0, "blocks_failed": 0, "workers_lost": 0,
        "cells": 200_000, "value_bytes_written": 0, "file_bytes_read": 0, "file_bytes_written": 0, "peak_memory_bytes": 0,
        "cells_per_second": 20_000, "seconds_left": 390.0,
    }  # fmt: skip


def test_a_log_that_nobody_reads_stops_no_run() -> None:
    stream = io.StringIO()
    stream.close()
    told(Observer([Lines(stream), JsonLines(stream)]), 3)


# -- metrics ------------------------------------------------------------------------------------


def scraped(address: str) -> dict[str, dict[str, float]]:
    """Samples by name and stage, as Prometheus' own parser reads them."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("stage", "")] = sample.value
    return found


def test_metrics_are_those_of_the_run() -> None:
    with served("0") as (metrics, address):
        assert address.startswith("http://127.0.0.1:")
        assert set(scraped(address)) == {"smscale_build_info"}
        run = Observer([metrics])
        told(run)
        with suppress(KeyboardInterrupt), run.running(), run.stage("fuse"):
            part = Part("fuse", 7, before=3, peak=5)
            run.begins(part)
            part.uses(Used(2_000_000, 30, 40))
            assert scraped(address)["smscale_stage_running"] == {"ingest": 0, "fuse": 1}
            raise KeyboardInterrupt
        found = scraped(address)
    assert found["smscale_blocks_done_total"] == {"ingest": 1000, "fuse": 0}
    assert found["smscale_blocks_skipped_total"] == {"ingest": 0, "fuse": 3}
    assert found["smscale_cells_total"]["ingest"] == 100_000
    assert found["smscale_value_written_bytes_total"]["ingest"] == 400_000
    assert found["smscale_file_read_bytes_total"]["fuse"] == 30
    assert found["smscale_worker_peak_memory_bytes"]["fuse"] == 2_000_000
    assert found["smscale_blocks_planned"]["fuse"] == 7
    assert found["smscale_cells_per_second"]["ingest"] > 0
    assert abs(found["smscale_run_start_time_seconds"][""] - time.time()) < 60
    with pytest.raises(OSError, match="refused"):
        scraped(address)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", str(TINY), *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert not said.out
    return said.err


def test_metrics_that_cannot_be_served_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, "--workspace", str(tmp_path / "w"), "--metrics", str(port))
    assert "Address already in use" in said
    assert "name another port" in said
    for wrong in ("x", "70000", "a b:9108", "http://h:1"):
        assert "expected PORT or HOST:PORT" in refused(capsys, "--metrics", wrong)
    assert "cannot serve at 192.0.2.1:9108" in refused(capsys, "--metrics", "192.0.2.1:9108")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "pip install 'smscale[cluster]'" in refused(capsys, "--metrics", "9108")
    assert not (tmp_path / "w").exists()


def test_manifests_serve_and_let_in_the_same_port() -> None:
    folder = Path(__file__).parents[1] / "deploy" / "kubernetes"
    (_, job), (policy,) = (
        list(yaml.safe_load_all((folder / name).read_text())) for name in ("run.yaml", "network.yaml")
    )
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = cli._parser().parse_args(container["args"][1:])
    (port,) = (port["containerPort"] for port in container["ports"])
    assert (options.metrics, options.log) == (f"0.0.0.0:{port}", "json")
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert port in [one["port"] for rule in policy["spec"]["ingress"] for one in rule.get("ports", [])]


# -- the record ---------------------------------------------------------------------------------


KILLED = {
    "format": run_record.FORMAT,
    "id": "20200101T000000Z-aaaaaa",
    "state": "running",
    "started": "2020-01-01T00:00:00+00:00",
    "stages": [{"stage": "fuse", "state": "running"}],
}


def test_a_record_says_how_its_run_ended(tmp_path: Path) -> None:
    told(Observer([Record(tmp_path)]))
    with pytest.raises(InputError):
        told(Observer([Record(tmp_path)]), fail=True)
    with suppress(KeyboardInterrupt):
        run = Observer([Record(tmp_path)])
        with run.running(), run.stage("train"):
            run.works()
            (left,) = [r for r in run_record.read_records(tmp_path) if r["id"] == run.id]
            assert (left["state"], left["stages"][0]["state"]) == ("running", "running")
            raise KeyboardInterrupt("SIGTERM")
    records = {(r["state"], r["ending"]): r for r in run_record.read_records(tmp_path)}
    assert set(records) == {("finished", ""), ("failed", "InputError: no"), ("interrupted", "SIGTERM")}
    (stage,) = records["finished", ""]["stages"]
    assert (stage["stage"], stage["state"], stage["blocks_done"], stage["cells"]) == ("ingest", "done", 1000, 100_000)
    assert records["failed", "InputError: no"]["stages"][0]["failures"][0]["block"] == "a/1"
    assert run_record.ending(left) == "has not said that it ended: it runs still, or was killed"


def test_a_run_that_begins_says_of_killed_ones_that_they_did_not_end(tmp_path: Path) -> None:
    run_record.write_record(tmp_path, KILLED)
    run_record.write_record(tmp_path, {**KILLED, "id": "20200102T000000Z-other", "format": 99})
    (tmp_path / run_record.RUNS / "20200103.json").write_text(json.dumps({**KILLED, "id": "../../outside"}))
    (tmp_path / run_record.RUNS / "20200102T000000Z-broken.json").write_text('{"id": ')
    told(Observer([Record(tmp_path)]))
    assert {p.name for p in tmp_path.iterdir()} == {"ledger"}
    first, second = run_record.read_records(tmp_path)
    assert (first["state"], second["state"]) == ("did not end", "finished")
    assert first["stages"][0]["state"] == "did not end"
    page = page_of([{**first, "stages": []}, second])
    assert "2020-01-01 00:00:00 UTC" in page
    assert "Did not end: it was killed" in page


def test_a_record_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where a folder should be")
    told(Observer([Record(tmp_path)]))


def test_the_page_shows_what_failed_and_is_deaf_to_html() -> None:
    run = Observer(about={"where": "local", "machine": {"processor": "<script>"}})
    with pytest.raises(InputError):
        told(run, fail=True)
    from smscale.observe.record import record_of

    page = page_of([record_of(run)] * 5)
    assert page.count("a/1") == 3, "the last three runs in full"
    assert "Earlier runs" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert page.count(">failed<") >= 3


# -- the command line ---------------------------------------------------------------------------

SECRET = "sw0rdf1sh/Tr0ut+"


@pytest.fixture(scope="module")
def matched(
    tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, copy_run: Callable[..., Path]
) -> tuple[Path, str, str]:
    """A copy of the tiny run whose stage match was done again after a killed run: the workspace, and what was said."""
    root = copy_run(tiny_run, tmp_path_factory.mktemp("observed") / "run")
    Workspace(root).forget("match")
    run_record.write_record(root, KILLED)
    arguments = ["run", str(TINY), "--workspace", str(root), "--cluster", "none", "--only", "match", "--log", "json"]
    arguments += ["--metrics", "0", "--set", f"title=made with https://me:{SECRET}@host/x"]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, "EARTHDATA_TOKEN": SECRET[::-1]}
    command = [sys.executable, "-m", "smscale.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return root, done.stdout, done.stderr


def test_json_is_one_object_a_line_and_stdout_stays_as_it_is(matched: tuple[Path, str, str]) -> None:
    _, out, err = matched
    events = [json.loads(line) for line in err.splitlines()]
    assert [one["event"] for one in events] == [
        "metrics", "run_begins", "stage_begins", "blocks_begin", "blocks_end", "stage_ends", "run_ends"
    ]  # fmt: skip
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"]) for one in events)
    ended = next(one for one in events if one["event"] == "stage_ends")
    assert (ended["stage"], ended["state"], ended["blocks_done"], ended["blocks_failed"]) == ("match", "done", 4, 0)
    assert ended["value_bytes_written"] > 0
    assert ended["file_bytes_read"] > ended["file_bytes_written"] > 0
    assert ended["peak_memory_bytes"] > 50e6
    assert events[-1]["state"] == "finished"
    assert re.fullmatch(r"match +done in \d+ s\n", out)


def test_the_workspace_has_a_record_and_the_page_shows_it(matched: tuple[Path, str, str]) -> None:
    root, _, _ = matched
    killed, *_, record = sorted(run_record.read_records(root), key=lambda r: r["id"])
    assert (killed["state"], record["state"], record["only"]) == ("did not end", "finished", "match")
    assert record["versions"]["smscale"]
    assert record["machine"]["cores"] >= 1
    assert record["recipe"]["name"] == "tiny"
    assert os.uname().nodename not in json.dumps(record)
    assert [stage["stage"] for stage in record["stages"]] == ["match"]
    (part,) = record["stages"][0]["parts"]
    assert part["blocks_done"] == record["stages"][0]["blocks_done"] == 4


def test_no_secret_lies_in_the_workspace_or_was_told(matched: tuple[Path, str, str]) -> None:
    root, out, err = matched
    for text in (out, err, *(p.read_bytes().decode("latin-1") for p in root.rglob("*") if p.is_file())):
        assert SECRET not in text
        assert SECRET[::-1] not in text
    assert "https://***@host/x" in (root / "ledger" / "recipe.json").read_text()


def test_report_ends_with_the_page_of_the_run(tiny_run: Path) -> None:
    report = (tiny_run / "report" / "index.html").read_text()
    assert report.rindex("<h2>") == report.index("<h2>The run</h2>")
    assert '<object data="../ledger/runs/index.html"' in report
    page = (tiny_run / "report" / "../ledger/runs/index.html").read_text()
    for stage in ("simulate", *cli.STAGES):
        assert f'<th scope="row">{stage}</th>' in page
    assert page.rstrip().endswith("</html>")


def test_a_run_that_does_nothing_leaves_no_record_nor_one_that_is_refused(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    before = {r["id"] for r in run_record.read_records(root)}
    (root / run_record.RUNS / "index.html").unlink()
    pipeline.run(config.read(TINY), Workspace(root), cluster=None, progress=False)
    with pytest.raises(SmscaleError):
        pipeline.run(config.read(TINY, ["smap.quality=strict"]), Workspace(root), None, "fuse", progress=False)
    assert {r["id"] for r in run_record.read_records(root)} == before
    assert (root / run_record.RUNS / "index.html").is_file(), "a page that is missing is made"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run", str(TINY), "--set", "nonsense=1", "--log", "json"], "RecipeError"),
        (["run", "--log=json"], "UsageError"),
        (["run", str(TINY), "--log", "json", "--only", "nothing"], "UsageError"),
    ],
)
def test_an_error_is_one_json_line_where_lines_are_json(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = int(str(left.code))
    said = json.loads(capsys.readouterr().err)
    assert (code, said["event"], said["error"], said["exit_code"]) == (2, "error", error, 2)


def test_a_fault_and_what_others_say_are_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: Any) -> int:
        import logging
        import warnings

        warnings.warn("beware\nof it", stacklevel=1)
        logging.getLogger("other").warning("odd %s", "thing")
        raise ZeroDivisionError("at https://me:hush@host")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["run", "x", "--log", "json"]) == 1
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["message"]) == ("warning", "beware of it")
    assert (second["event"], second["message"]) == ("log", "odd thing")
    assert (third["error"], third["message"], third["exit_code"]) == ("ZeroDivisionError", "at https://***@host", 1)
    assert "hush" not in third["traceback"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_and_its_run_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def slow(options: Any) -> int:
        run = Observer([Record(tmp_path)])
        with run.running(), run.stage("ingest"):
            run.works()
            os.kill(os.getpid(), number)
            time.sleep(10)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_run", slow)
    assert cli.main(["run", "x"]) == code
    assert capsys.readouterr().err == "smscale: stopped; the same command goes on where it stopped\n"
    (record,) = run_record.read_records(tmp_path)
    assert (record["state"], record["ending"]) == ("interrupted", signal.Signals(number).name)
    assert signal.getsignal(signal.SIGTERM) == before
