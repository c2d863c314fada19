"""Progress as lines: for a log that people read, and as JSON for one that programs read. No control characters in either."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from smscale.observe.observer import SUMS, Observer, Sink, Stage
from smscale.observe.record import counts
from smscale.progress import Part
from smscale.redaction import redacted_values

#: Seconds between two lines on the progress of a stage, at the least.
EVERY_SECONDS = 10.0
#: For people a line waits for so much more of the blocks, but no longer than this.
SHARE, LONGEST_SECONDS = 0.1, 60.0


class Lines(Sink):
    """One line where the blocks of a stage begin and where it ends, and few in between; none of what is refused or finished already."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last, self.share = time.monotonic(), 0.0
        self.worked: Stage | None = None
        self.begun: Stage | None = None

    def joined(self, run: Observer) -> None:
        self._say(f"cluster: {_cluster(run.cluster)}")

    def works(self, run: Observer, stage: Stage) -> None:
        self.worked = stage

    def part_begins(self, stage: Stage, part: Part) -> None:
        self.share = part.share
        if self.begun is not stage and part.before < part.total:
            self.begun = stage
            self._say(f"{stage.name} begins")

    def moved(self, stage: Stage, part: Part) -> None:
        since = time.monotonic() - self.last
        enough = part.share - self.share >= SHARE or since >= LONGEST_SECONDS
        if since >= EVERY_SECONDS and enough and part.share < 1:
            self.share = part.share
            self._say(f"{part.label}: {_progress(part)}")

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        if self.begun is stage or (self.worked is stage and stage.state == "done"):
            self._say(f"{stage.name} {_summary(stage)}")
        for key, why in stage.failures if stage.state == "failed" else ():
            self._say(f"{stage.name} block {key}: {why}")

    def _say(self, text: str) -> None:
        self.last = time.monotonic()
        _write(self.stream, f"{_now()} {_one_line(text)}")


class JsonLines(Sink):
    """One JSON object a line for every event of a run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last, self.run = time.monotonic(), ""

    def begins(self, run: Observer) -> None:
        self.run = run.id
        about = {key: run.about[key] for key in ("versions", "machine") if key in run.about}
        self._tell("run_begins", recipe=run.about.get("recipe", {}).get("name"), **about)

    def joined(self, run: Observer) -> None:
        self._tell("cluster", **run.cluster)

    def stage_begins(self, run: Observer, stage: Stage) -> None:
        self._tell("stage_begins", stage=stage.name)

    def part_begins(self, stage: Stage, part: Part) -> None:
        if part.before < part.total:
            self._tell("blocks_begin", **_part(stage, part))

    def moved(self, stage: Stage, part: Part) -> None:
        if time.monotonic() - self.last >= EVERY_SECONDS:
            self._tell("progress", **_part(stage, part))

    def part_ends(self, stage: Stage, part: Part) -> None:
        if part.before < part.total:
            self._tell("blocks_end", **_part(stage, part))

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        sums = {name: stage.sum(name) for name in SUMS}
        failures = [{"block": key, "why": why} for key, why in stage.failures]
        told = {**counts(stage.seconds, sums, stage.peak), "cells_per_second": round(stage.cells_per_second)}
        self._tell("stage_ends", stage=stage.name, state=stage.state, **told, failures=failures)

    def ends(self, run: Observer) -> None:
        self._tell("run_ends", state=run.state, seconds=round(run.seconds, 2), ending=run.ending)

    def _tell(self, event: str, **told: Any) -> None:
        self.last = time.monotonic()
        tell(self.stream, event, run=self.run, **told)


def tell(stream: TextIO, event: str, **told: Any) -> None:
    """Write one event as a line of JSON: its time (UTC, ISO 8601) and what there is to tell, without secrets."""
    _write(stream, json.dumps({"time": _now(3), "event": event, **redacted_values(told)}, ensure_ascii=True))


def _part(stage: Stage, part: Part) -> dict[str, Any]:
    sums = {name: getattr(part, name) for name in SUMS}
    left = part.seconds_left
    return {
        "stage": stage.name,
        "part": part.label,
        **counts(part.seconds, sums, part.peak),
        "cells_per_second": round(part.cells_per_second),
        "seconds_left": None if math.isnan(left) else round(left, 1),
    }


def _progress(part: Part) -> str:
    """Blocks, rate, time left and troubles of a part."""
    finished = part.before + part.done
    said = [f"{finished} of {part.total} blocks ({part.share:.0%})", f"{part.blocks_per_second:.3g} blocks/s"]
    said += [f"{_si(part.cells_per_second)}cells/s"] if part.cells else []
    said += [f"{_clock(part.seconds_left)} left"] if part.done else []
    return ", ".join([*said, *_troubles(part.retried, part.failed, part.workers_lost)])


def _summary(stage: Stage) -> str:
    """How a stage ended."""
    if not stage.sum("planned"):
        return f"{stage.state} in {_clock(stage.seconds)}"
    said = [f"{stage.state} in {_clock(stage.seconds)}: {stage.sum('done')} of {stage.sum('planned')} blocks"]
    said[0] += f" ({stage.sum('skipped')} before)" if stage.sum("skipped") else ""
    said += [f"{_si(stage.sum('values'))}B of values"] if stage.sum("values") else []
    said += [f"{_si(stage.cells_per_second)}cells/s"] if stage.cells_per_second else []
    said += [f"peak {_si(stage.peak)}B a process"] if stage.peak else []
    return ", ".join([*said, *_troubles(stage.sum("retried"), stage.sum("failed"), stage.sum("workers_lost"))])


def _troubles(retried: int, failed: int, lost: int) -> list[str]:
    said = [f"{retried} tried again"] if retried else []
    said += [f"{failed} failed"] if failed else []
    return said + ([f"{lost} worker{'s' * (lost > 1)} lost"] if lost else [])


def _cluster(facts: dict[str, Any]) -> str:
    n = facts["workers"]
    link = f", dashboard {facts['dashboard']}" if facts.get("dashboard") else ""
    return f"{n} worker{'s' * (n != 1)}, {facts['threads']} thread{'s' * (facts['threads'] != 1)}{link}"


def _clock(seconds: float) -> str:
    """Seconds as 7 s, 3:05 or 1:02:03."""
    if math.isnan(seconds) or seconds < 60:
        return "?" if math.isnan(seconds) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _si(value: float) -> str:
    """A number with a space and the letter of its thousands: 12.3 M."""
    for letter in ("", "k", "M", "G", "T"):
        if value < 999.5 or letter == "T":
            return f"{value:.3g} {letter}"
        value /= 1000
    return ""


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _now(digits: int = 0) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds" if digits else "seconds")
    return now.replace("+00:00", "Z")


def _write(stream: TextIO, line: str) -> None:
    """A line at once; a log that nobody reads any more stops no run."""
    with suppress(OSError, ValueError):
        stream.write(f"{line}\n")
        stream.flush()
