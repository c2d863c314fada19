"""What is finished: one small JSON file a block, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Named(Protocol):
    """What a record is of: a task."""

    @property
    def key(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Ledger:
    """What is finished in one stage: a JSON record per task in a folder."""

    folder: Path

    def record(self, task: Named) -> dict[str, Any] | None:
        """The record of a finished task; None where it is not finished, or was made from something else."""
        return self._record(task.key, task.fingerprint)

    def enter(self, task: Named, result: Any, seconds: float, failures: int = 0, failure: str = "") -> Any:
        """Enter a finished task; the record appears whole or not at all. The result comes back as a later run will read it.

        `failures` counts the tries that failed before, `failure` is the reason of the last one.
        """
        return self._enter(task.key, task.fingerprint, result, seconds, failures, failure)

    def forget(self, prefix: str = "") -> None:
        """Remove the records of all tasks whose keys begin so."""
        if not prefix:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.is_dir():
            for record in self.folder.glob(f"{prefix.replace('/', '.')}*.json"):
                record.unlink(missing_ok=True)

    def keep_only(self, keys: Collection[str]) -> int:
        """Remove the records of all other tasks, as of blocks that were planned with another extent; how many there were."""
        kept, removed = {self._path(key).name for key in keys}, 0
        for record in self.folder.glob("[!.]*.json"):
            if record.name not in kept:
                record.unlink(missing_ok=True)
                removed += 1
        return removed

    def _record(self, key: str, fingerprint: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._path(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("fingerprint") == fingerprint else None

    def _enter(self, key: str, fingerprint: str, result: Any, seconds: float, failures: int, failure: str) -> Any:
        record = {"key": key, "fingerprint": fingerprint, "seconds": round(seconds, 3), "result": result}
        if failures:
            record |= {"failures": failures, "failure": failure}
        text = json.dumps(record)
        write_text(self._path(key), text)
        return json.loads(text)["result"]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key.replace('/', '.')}.json"


@dataclass(frozen=True)
class Joint:
    """The ledgers of several stages whose work one task does at once.

    The task's result has one entry for each part, and each part its own record. A task is finished where every part says
    so: one that was killed between two entries is done again, and writes the same.

    Parameters
    ----------
    parts : stage -> its ledger and the fingerprint of its records, in the order of entering
    """

    parts: Mapping[str, tuple[Ledger, str]]

    @property
    def folder(self) -> Path:
        """Of the first part."""
        return next(iter(self.parts.values()))[0].folder

    def record(self, task: Named) -> dict[str, Any] | None:
        """The records of a finished task as one, with the results by part; None where a part is not finished."""
        results = {}
        for name, (ledger, fingerprint) in self.parts.items():
            record = ledger._record(task.key, fingerprint)
            if record is None:
                return None
            results[name] = record["result"]
        return {"key": task.key, "result": results}

    def enter(self, task: Named, result: Any, seconds: float, failures: int = 0, failure: str = "") -> Any:
        """Enter every part. Time and failures stand with the first, so that sums over the stages are true."""
        told = (seconds, failures, failure)
        entered = {}
        for name, (ledger, fingerprint) in self.parts.items():
            entered[name] = ledger._enter(task.key, fingerprint, result[name], *told)
            told = (0.0, 0, "")
        return entered

    def keep_only(self, keys: Collection[str]) -> int:
        """Remove the records of all other tasks; how many there were."""
        return sum(ledger.keep_only(keys) for ledger, _ in self.parts.values())


class Recorded(Mapping[str, Any]):
    """Results of finished tasks by key, in the order of the tasks, read from the ledger when asked: none is held."""

    def __init__(self, tasks: Sequence[Named], ledger: Ledger | Joint) -> None:
        self._tasks = {task.key: task for task in tasks}
        self._ledger = ledger

    def __getitem__(self, key: str) -> Any:
        record = self._ledger.record(self._tasks[key])
        if record is None:
            raise KeyError(key)
        return record["result"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{hashlib.blake2b(content, digest_size=4).hexdigest()}")
    try:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
