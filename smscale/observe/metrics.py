"""Metrics of a run for Prometheus, served by the process that runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smscale import __version__
from smscale.errors import InputError
from smscale.observe.observer import Observer, Sink, Stage

#: Metrics are shown to this machine alone, unless a host is named.
HOST = "127.0.0.1"
#: Counters of each stage: name, what it says, which of a stage's sums it is.
COUNTERS = (
    ("smscale_blocks_done", "Blocks that were finished by this run.", "done"),
    ("smscale_blocks_skipped", "Blocks that an earlier run had finished.", "skipped"),
    ("smscale_blocks_retried", "Blocks that failed at first and were finished by another try.", "retried"),
    ("smscale_blocks_failed", "Blocks that failed for good.", "failed"),
    ("smscale_workers_lost", "Workers that ended while blocks ran on them.", "workers_lost"),
    ("smscale_cells", "Cells of the cube that were made.", "cells"),
    ("smscale_value_written_bytes", "Bytes of values written into arrays, before compression.", "values"),
    ("smscale_file_written_bytes", "Bytes that workers wrote to files (Linux; not to object stores).", "written"),
    ("smscale_file_read_bytes", "Bytes that workers read from files (Linux; not from object stores).", "read"),
)


class Metrics(Sink):
    """Reads the counts of a run when it is asked for them: a run does nothing for it."""

    def __init__(self) -> None:
        self.run: Observer | None = None

    def begins(self, run: Observer) -> None:
        self.run = run

    def collect(self) -> Iterator[Any]:
        """What Prometheus' client library asks of a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        yield InfoMetricFamily("smscale_build", "Version of smscale.", {"version": __version__})
        run = self.run
        if run is None:
            return
        yield GaugeMetricFamily(
            "smscale_run_start_time_seconds", "When the run began, Unix time.", run.began.timestamp()
        )
        yield GaugeMetricFamily(
            "smscale_run_workers", "Workers when the cluster was joined.", run.cluster.get("workers", 0)
        )
        stages = _by_name(list(run.stages))
        for name, says, field in COUNTERS:
            counter = CounterMetricFamily(name, says, labels=["stage"])
            for stage, some in stages.items():
                counter.add_metric([stage], sum(one.sum(field) for one in some))
            yield counter
        for name, says, read in GAUGES:
            gauge = GaugeMetricFamily(name, says, labels=["stage"])
            for stage, some in stages.items():
                gauge.add_metric([stage], read(some[-1]))
            yield gauge


#: Of each stage: name, what it says, and how it is read.
GAUGES = (
    ("smscale_blocks_planned", "Blocks of the stage, so far as it has come.", lambda stage: stage.sum("planned")),
    ("smscale_cells_per_second", "Cells of the cube per second of work on them.", lambda stage: stage.cells_per_second),
    ("smscale_stage_seconds", "Seconds that the stage takes so far, or took.", lambda stage: stage.seconds),
    ("smscale_stage_running", "1 while the stage runs.", lambda stage: float(stage.state == "running")),
    ("smscale_worker_peak_memory_bytes", "Resident at the most in one worker process.", lambda stage: stage.peak),
)


def _by_name(stages: list[Stage]) -> dict[str, list[Stage]]:
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.name, []).append(stage)
    return found


@contextmanager
def served(where: str) -> Iterator[tuple[Metrics, str]]:
    """Serve the metrics of a run at `PORT` or `HOST:PORT` as long as the block lasts: the sink, and the address.

    Raises
    ------
    InputError
        in one line, where the package is missing, or where it cannot be served there.
    """
    host, port = _place(where)
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise InputError("--metrics needs the package prometheus_client: pip install 'smscale[cluster]'") from None
    registry, metrics = CollectorRegistry(), Metrics()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        told = error.strerror or str(error)
        raise InputError(f"--metrics {where}: cannot serve at {host}:{port} ({told}): name another port") from None
    try:
        yield metrics, f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _place(where: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):)?(?P<port>\d{1,5})", where)
    if found is None or int(found["port"]) > 65535:
        raise InputError(f"--metrics {where}: expected PORT or HOST:PORT, as 9108 or 0.0.0.0:9108")
    return (found["host"] or HOST).strip("[]"), int(found["port"])
