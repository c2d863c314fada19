"""What the ledger says was written: the receipts of every finished block, and which of them still hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smscale.places import Place, is_remote, read_many
from smscale.workspace import Workspace

#: Stages from first to last: where two wrote the same part of an array, the later one's receipt holds.
STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")

Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """One block's receipt for one part of one array; `record` is the name of the ledger's file."""

    stage: str
    key: str
    record: str
    store: str
    array: str
    region: Region
    checksum: str

    @property
    def where(self) -> tuple[str, str, Region]:
        return self.store, self.array, self.region


@dataclass(frozen=True)
class Receipts:
    """All receipts that hold, and the ledger records that cannot be read (stage, file)."""

    holding: tuple[Written, ...]
    superseded: tuple[Written, ...]
    unreadable: tuple[tuple[str, Place], ...]

    def of(self, store: str, array: str) -> list[Written]:
        """Receipts of one array."""
        return [w for w in self.holding if (w.store, w.array) == (store, array)]


def stages(workspace: Workspace) -> list[str]:
    """Stages that the ledger knows, from first to last."""
    ledger = workspace.root / "ledger"
    known = {p.name for p in ledger.glob("*") if p.is_dir()} | {
        p.name.removesuffix(".json").removesuffix(".prepared") for p in ledger.glob("*.json")
    }
    known.discard("recipe")
    return sorted(known, key=rank)


def rank(stage: str) -> tuple[int, str]:
    """Where a stage stands in the order; stages that this version does not know come last."""
    return (STAGES.index(stage) if stage in STAGES else len(STAGES)), stage


def read_receipts(workspace: Workspace) -> Receipts:
    """Every receipt of a workspace's ledger."""
    holding: dict[tuple[str, str, Region], Written] = {}
    superseded, unreadable = [], []
    for stage in stages(workspace):
        files = sorted((workspace.root / "ledger" / stage).glob("*.json"))
        for path, content in zip(files, read_many(files, is_remote(workspace.root)), strict=True):
            record = _parsed(content or b"")
            if record is None:
                unreadable.append((stage, path))
                continue
            for written in _written(stage, path.name, record):
                if written.where in holding:
                    superseded.append(holding[written.where])
                holding[written.where] = written
    return Receipts(tuple(holding.values()), tuple(superseded), tuple(unreadable))


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
        return record if isinstance(record, dict) and "key" in record else None
    except ValueError:
        return None


def _written(stage: str, name: str, record: dict[str, Any]) -> Iterator[Written]:
    result = record.get("result")
    for receipt in result.get("written", ()) if isinstance(result, dict) else ():
        region = tuple((int(start), int(stop)) for start, stop in receipt["region"])
        yield Written(stage, record["key"], name, receipt["store"], receipt["array"], region, receipt["checksum"])
