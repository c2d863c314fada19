"""What the ledger says was written: the receipts of every finished block, and which of them still hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from smscale.places import Place, read_many
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
    known -= {"recipe", "runs"}
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
        for path, content in zip(files, read_many(files), strict=True):
            if content is None:  # a run took it away since it was listed: its block is not finished
                continue
            written = _parsed(stage, path.name, content)
            if written is None:
                unreadable.append((stage, path))
            for one in written or ():
                if one.where in holding:
                    superseded.append(holding[one.where])
                holding[one.where] = one
    return Receipts(tuple(holding.values()), tuple(superseded), tuple(unreadable))


def _parsed(stage: str, name: str, content: bytes) -> list[Written] | None:
    """The receipts of a record; None where it is none, or one of them is."""
    try:
        record = json.loads(content)
        result = record["result"]
        receipts = result.get("written", ()) if isinstance(result, dict) else ()
        return [_written(stage, _text(record["key"]), name, receipt) for receipt in receipts]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _written(stage: str, key: str, name: str, receipt: dict[str, Any]) -> Written:
    region = tuple((int(start), int(stop)) for start, stop in receipt["region"])
    store, array, checksum = (_text(receipt[part]) for part in ("store", "array", "checksum"))
    return Written(stage, key, name, store, array, region, checksum)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
