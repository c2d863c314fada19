"""The record of each run in a workspace's ledger: what did it, for how long, and how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from smscale.errors import SmscaleError
from smscale.places import Place, read_many, write_text

#: Folder of the records in a workspace.
RUNS = "ledger/runs"
#: Of a record: another version's is not read.
FORMAT = 1
NEEDED = {"id", "state", "started", "stages"}
#: What a record says until its run says otherwise; and what a later run says of one that never did.
RUNNING, LOST = "running", "did not end"


def write_record(root: Place, record: Mapping[str, Any]) -> None:
    """Write a run's record, whole or not at all. One that cannot be written stops no run: its blocks can then not be entered either."""
    with suppress(OSError, SmscaleError):
        write_text(root / RUNS / f"{record['id']}.json", json.dumps(record, indent=1) + "\n")


def read_records(root: Place) -> list[dict[str, Any]]:
    """Every run's record, the oldest first; what cannot be read is left out."""
    folder = root / RUNS
    files = sorted(folder.glob("[!.]*.json"), key=lambda path: path.name) if folder.is_dir() else []
    parsed = (_parsed(content or b"") for content in read_many(files))
    return [record for record in parsed if record is not None]


def lose_others(root: Place, own: str) -> None:
    """Say of runs whose records still call them running that they did not end: for who holds the workspace."""
    for record in read_records(root):
        if record["state"] == RUNNING and record["id"] != own:
            stages = [{**one, "state": LOST} if one.get("state") == RUNNING else one for one in record["stages"]]
            write_record(root, {**record, "state": LOST, "stages": stages})


def ending(record: Mapping[str, Any]) -> str:
    """How a run ended, in words."""
    if record["state"] == RUNNING:
        return "has not said that it ended: it runs still, or was killed"
    if record["state"] == LOST:
        return "did not end: it was killed, or its machine was"
    why = f": {record['ending']}" if record.get("ending") else ""
    return f"{record['state']} after {record.get('seconds') or 0:.0f} s{why}"


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= NEEDED:
        return None
    named = re.fullmatch(r"[\w-]+", str(record["id"]))  # it becomes a file's name
    return record if named and all(isinstance(stage, dict) for stage in record["stages"]) else None
