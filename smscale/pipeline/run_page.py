"""ledger/runs/index.html: what the workspace's runs took, shown at the end of the report.

It is a page of its own, outside of the report's folder: that has the same bytes in every run of a recipe, and seconds do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from smscale.errors import SmscaleError
from smscale.evaluate.report import Section, Table, inset_html
from smscale.observe import Observer, Sink, Stage
from smscale.places import write_text
from smscale.run_record import RUNS, ending, read_records
from smscale.workspace import Workspace

#: In a workspace; and as its report names it.
PAGE = f"{RUNS}/index.html"
FROM_REPORT = f"../{PAGE}"
#: Runs whose stages are shown, the newest first; of earlier ones a line each.
SHOWN = 3


class RunPage(Sink):
    """Keeps the page of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.worked = workspace, False

    def works(self, run: Observer, stage: Stage) -> None:
        self.worked = True

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        if stage.name == "evaluate":
            self._write()

    def ends(self, run: Observer) -> None:
        self._write()

    def _write(self) -> None:
        page = self.workspace.root / PAGE
        # Neither a page that cannot be written stops a run, nor a record that somebody changed.
        with suppress(OSError, SmscaleError, KeyError, TypeError, ValueError, AttributeError):
            if (self.worked or not page.is_file()) and (records := read_records(self.workspace.root)):
                write_text(page, page_of(records))


def page_of(records: Sequence[Mapping[str, Any]]) -> str:
    """The page of a workspace's runs, given from the oldest to the newest."""
    newest = records[::-1]
    sections = [_section(i, record) for i, record in enumerate(newest[:SHOWN])]
    if len(newest) > SHOWN:
        rows = [{"began": _when(record), "how it ended": ending(record)} for record in newest[SHOWN:]]
        sections.append(Section("earlier", "Earlier runs", "", [Table("Earlier runs", "", rows, wrap="prose")]))
    return inset_html("The run", sections)


def _section(number: int, record: Mapping[str, Any]) -> Section:
    title = f"{'The last run' if not number else 'Before'}: {_when(record)}"
    parts: list[Table | Mapping[str, Any]] = []
    if record["stages"]:
        parts.append(Table("Stages", "" if number else _note(record), _stages(record["stages"])))
    troubles = [
        {"stage": stage["stage"], "block": failure["block"], "why": failure["why"]}
        for stage in record["stages"]
        for failure in stage["failures"]
    ]
    if troubles:
        note = "The first few of each stage; what was tried again was finished."
        parts.append(Table("Blocks that failed", note, troubles, wrap="words"))
    return Section(f"run-{number}", title, f"{_capital(ending(record))}.", [*parts, _facts(record)])


def _note(record: Mapping[str, Any]) -> str:
    whose = "of one worker during the stage" if record.get("cluster") else "of this one process, since it began"
    return (
        "Values are those of arrays, before compression; files are what went through the system's calls, object stores not "
        f"among them. Memory is {whose}. Cells are those of blocks that say how many they make."
    )


def _stages(stages: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a stage; columns of troubles only where there were any."""
    rows = pd.DataFrame([_row(stage) for stage in stages])
    return rows.drop(columns=[name for name in TROUBLES if not rows[name].any()])


#: Columns of the table of stages that are left out where there is nothing in them.
TROUBLES = ("done before", "tried again", "failed", "workers lost")


def _row(stage: Mapping[str, Any]) -> dict[str, Any]:
    worked = sum(part["seconds"] for part in stage["parts"] if part["cells"])
    return {
        "stage": stage["stage"],
        "": stage["state"],
        "seconds": float(stage["seconds"]),
        "blocks": stage["blocks_done"],
        "done before": stage["blocks_skipped"],
        "tried again": stage["blocks_retried"],
        "failed": stage["blocks_failed"],
        "workers lost": stage["workers_lost"],
        "values_mb": _megabytes(stage["value_bytes_written"]),
        "read_mb": _megabytes(stage["file_bytes_read"]),
        "written_mb": _megabytes(stage["file_bytes_written"]),
        "peak_mb": _megabytes(stage["peak_memory_bytes"]),
        "mcells_per_second": stage["cells"] / worked / 1e6 if worked else math.nan,
    }


def _megabytes(size: int) -> float:
    return size / 1e6 if size else math.nan


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    machine, cluster = record.get("machine", {}), record.get("cluster") or {}
    memory = machine.get("memory_bytes", 0) / 2**30
    return {
        "workers": f"{record.get('where', '')}: {_workers(cluster)}" if cluster else str(record.get("where", "")),
        "machine": f"{machine.get('system')}, {machine.get('processor')}, {machine.get('cores')} cores, {memory:.0f} GiB",
        "versions": ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items()),
        "record": f"{RUNS}/{record['id']}.json",
    }


def _workers(cluster: Mapping[str, Any]) -> str:
    memory = f" with {cluster['memory_bytes'] / 2**30:.2g} GiB each" if cluster.get("memory_bytes") else ""
    return f"{cluster['workers']} worker{'s' * (cluster['workers'] != 1)}{memory}"


def _when(record: Mapping[str, Any]) -> str:
    return str(record["started"])[:19].replace("T", " ") + " UTC"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
