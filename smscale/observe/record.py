"""The record of a run in its workspace: written when it begins to work, at both ends of each stage, and at the end."""

from __future__ import annotations

from typing import Any

from smscale.observe.observer import SUMS, Observer, Sink, Stage
from smscale.places import Place
from smscale.progress import Part
from smscale.run_record import FORMAT, lose_others, write_record


class Record(Sink):
    """Keeps `ledger/runs/ID.json` of a workspace; nothing of a run that found nothing to do.

    Parameters
    ----------
    root : of the workspace, which the run holds
    """

    def __init__(self, root: Place) -> None:
        self.root, self.begun = root, False

    def works(self, run: Observer, stage: Stage) -> None:
        if not self.begun:
            self.begun = True
            lose_others(self.root, run.id)
            self._write(run)

    def joined(self, run: Observer) -> None:
        self._write(run)

    def stage_begins(self, run: Observer, stage: Stage) -> None:
        self._write(run)

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        self._write(run)

    def ends(self, run: Observer) -> None:
        self._write(run)

    def _write(self, run: Observer) -> None:
        if self.begun:
            write_record(self.root, record_of(run))


def record_of(run: Observer) -> dict[str, Any]:
    """A run as plain values."""
    return {
        "format": FORMAT,
        "id": run.id,
        "state": run.state,
        "ending": run.ending,
        "started": run.began.isoformat(timespec="seconds"),
        "seconds": round(run.seconds, 1),
        **run.about,
        "cluster": {key: value for key, value in run.cluster.items() if key != "dashboard"},
        "client_peak_memory_bytes": run.peak,
        "stages": [_stage(stage) for stage in run.stages],
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "state": stage.state,
        **counts(stage.seconds, {name: stage.sum(name) for name in SUMS}, stage.peak),
        "failures": [{"block": key, "why": why} for key, why in stage.failures],
        "parts": [_part(part) for part in stage.parts],
    }


def _part(part: Part) -> dict[str, Any]:
    where = "this process" if part.here else "workers"
    return {
        "part": part.label,
        "where": where,
        **counts(part.seconds, {name: getattr(part, name) for name in SUMS}, part.peak),
    }


def counts(seconds: float, sums: dict[str, int], peak: int) -> dict[str, Any]:
    """What was counted, by the names of records and JSON lines."""
    return {
        "seconds": round(seconds, 2),
        "blocks": sums["planned"],
        "blocks_skipped": sums["skipped"],
        "blocks_done": sums["done"],
        "blocks_retried": sums["retried"],
        "blocks_failed": sums["failed"],
        "workers_lost": sums["workers_lost"],
        "cells": sums["cells"],
        "value_bytes_written": sums["values"],
        "file_bytes_read": sums["read"],
        "file_bytes_written": sums["written"],
        "peak_memory_bytes": peak,
    }
