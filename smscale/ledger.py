"""What is finished: one small JSON file a block, there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from smscale.places import Place, Remote, is_remote, read_many, remove, remove_all, write_text

#: Records that are read together where one is asked for, in an object store: the next ones are asked for next.
AHEAD = 256


class Named(Protocol):
    """What a record is of: a task."""

    @property
    def key(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


Task = TypeVar("Task", bound=Named)


@dataclass(frozen=True)
class Ledger:
    """What is finished in one stage: a JSON record per task in a folder."""

    folder: Place

    def record(self, task: Named) -> dict[str, Any] | None:
        """The record of a finished task; None where it is not finished, or was made from something else."""
        return self.read(task.key, task.fingerprint)

    def records(self, tasks: Sequence[Task], listed: bool = True) -> Iterator[tuple[Task, dict[str, Any] | None]]:
        """Each task with its record, in order: in an object store many are read at a time, and none that no list of them names.

        Without `listed` none is asked for: for a few tasks that are likely to be there.
        """
        found = self.read_many([(task.key, task.fingerprint) for task in tasks], listed)
        return zip(tasks, found, strict=True)

    def enter(self, task: Named, result: Any, seconds: float, failures: int = 0, failure: str = "") -> Any:
        """Enter a finished task; the record appears whole or not at all. The result comes back as a later run will read it.

        `failures` counts the tries that failed before, `failure` is the reason of the last one.
        """
        return self.write(task.key, task.fingerprint, result, seconds, failures, failure)

    def forget(self, prefix: str = "") -> None:
        """Remove the records of all tasks whose keys begin so."""
        if not prefix:
            remove(self.folder)
        elif self.folder.is_dir():
            remove_all(self.folder.glob(f"{prefix.replace('/', '.')}*.json"))

    def keep_only(self, keys: Collection[str]) -> int:
        """Remove the records of all other tasks, as of blocks that were planned with another extent; how many there were."""
        kept = {self._name(key) for key in keys}
        return remove_all(record for record in self.folder.glob("[!.]*.json") if record.name not in kept)

    # -- by key and fingerprint -----------------------------------------------------------------

    def read(self, key: str, fingerprint: str) -> dict[str, Any] | None:
        """The record of a key, if it was made from that; see `record`."""
        try:
            return _parsed(self._path(key).read_bytes(), fingerprint)
        except FileNotFoundError:
            return None

    def read_many(self, wanted: Sequence[tuple[str, str]], listed: bool = True) -> Iterator[dict[str, Any] | None]:
        """The records of keys, in order; see `records`."""
        if not isinstance(self.folder, Remote):
            yield from (self.read(*one) for one in wanted)
            return
        there = {r.name for r in self.folder.glob("*.json")} if listed else {self._name(key) for key, _ in wanted}
        held = [one for one in wanted if self._name(one[0]) in there]
        contents = read_many(self._path(key) for key, _ in held)
        for key, fingerprint in wanted:
            content = next(contents) if self._name(key) in there else None
            yield None if content is None else _parsed(content, fingerprint)

    def write(
        self, key: str, fingerprint: str, result: Any, seconds: float, failures: int = 0, failure: str = ""
    ) -> Any:
        """Write the record of a key; see `enter`."""
        record = {"key": key, "fingerprint": fingerprint, "seconds": round(seconds, 3), "result": result}
        if failures:
            record |= {"failures": failures, "failure": failure}
        text = json.dumps(record)
        write_text(self._path(key), text)
        return json.loads(text)["result"]

    def _path(self, key: str) -> Place:
        return self.folder / self._name(key)

    @staticmethod
    def _name(key: str) -> str:
        return f"{key.replace('/', '.')}.json"


def _parsed(content: bytes, fingerprint: str) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("fingerprint") == fingerprint else None


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
    def folder(self) -> Place:
        """Of the first part."""
        return next(iter(self.parts.values()))[0].folder

    def record(self, task: Named) -> dict[str, Any] | None:
        """The records of a finished task as one, with the results by part; None where a part is not finished."""
        results = {}
        for name, (ledger, fingerprint) in self.parts.items():
            record = ledger.read(task.key, fingerprint)
            if record is None:
                return None
            results[name] = record["result"]
        return {"key": task.key, "result": results}

    def records(self, tasks: Sequence[Task], listed: bool = True) -> Iterator[tuple[Task, dict[str, Any] | None]]:
        """Each task with its records as one, in order; see `Ledger.records`."""
        if not is_remote(self.folder):
            yield from ((task, self.record(task)) for task in tasks)
            return
        parts = [ledger.read_many([(task.key, fp) for task in tasks], listed) for ledger, fp in self.parts.values()]
        for task, found in zip(tasks, zip(*parts, strict=True), strict=True):
            whole = {
                name: record["result"] for name, record in zip(self.parts, found, strict=True) if record is not None
            }
            yield task, {"key": task.key, "result": whole} if len(whole) == len(self.parts) else None

    def enter(self, task: Named, result: Any, seconds: float, failures: int = 0, failure: str = "") -> Any:
        """Enter every part. Time and failures stand with the first, so that sums over the stages are true."""
        told = (seconds, failures, failure)
        entered = {}
        for name, (ledger, fingerprint) in self.parts.items():
            entered[name] = ledger.write(task.key, fingerprint, result[name], *told)
            told = (0.0, 0, "")
        return entered

    def keep_only(self, keys: Collection[str]) -> int:
        """Remove the records of all other tasks; how many there were."""
        return sum(ledger.keep_only(keys) for ledger, _ in self.parts.values())


class Recorded(Mapping[str, Any]):
    """Results of finished tasks by key, in the order of the tasks, read from the ledger when asked: none is held.

    Of an object store the next few come with the one that is asked for, where they are asked for in that order.
    """

    def __init__(self, tasks: Sequence[Named], ledger: Ledger | Joint) -> None:
        self._tasks = {task.key: task for task in tasks}
        self._ledger = ledger
        self._ahead: dict[str, Any] = {}
        self._places = {key: i for i, key in enumerate(self._tasks)} if is_remote(ledger.folder) else {}
        self._next = 0

    def __getitem__(self, key: str) -> Any:
        task = self._tasks[key]
        if self._places:
            at = self._places[key]
            if key not in self._ahead and at in (0, self._next):
                self._look_ahead(at)
            self._next = at + 1
        record = self._ahead.pop(key) if key in self._ahead else self._ledger.record(task)
        if record is None:
            raise KeyError(key)
        return record["result"]

    def _look_ahead(self, at: int) -> None:
        some = list(islice(self._tasks.values(), at, at + AHEAD))
        self._ahead = {one.key: record for one, record in self._ledger.records(some, listed=False)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)
