"""How a run's blocks go: what the engine counts while it works, and who is told of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from smscale.errors import SmscaleError
from smscale.places import Place

#: Failures of which block and reason are kept; the others are counted.
KEPT_FAILURES = 20
#: Fields of a process's status and of its account of files, as Linux writes them.
_PEAK, _READ, _WRITTEN = b"VmHWM:", b"rchar:", b"wchar:"


@dataclass(frozen=True)
class Used:
    """What a process used of its machine, so far as the system tells (Linux).

    peak : bytes resident at the most since `forget_peak`, or since the process began; 0 where unknown
    read, written : bytes that went through calls on files; an object store's are not among them
    """

    peak: int = 0
    read: int = 0
    written: int = 0

    def since(self, earlier: Used) -> Used:
        """What was read and written in between; the peak is that of the later account."""
        return Used(self.peak, self.read - earlier.read, self.written - earlier.written)


def used() -> Used:
    """The account of this process: two small files of /proc, some 50 µs."""
    try:
        files = Path("/proc/self/io").read_bytes()
    except OSError:
        files = b""
    return Used(_number(_status(), _PEAK) * 1024, _number(files, _READ), _number(files, _WRITTEN))


def forget_peak() -> bool:
    """Let the peak of this process begin anew; whether the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status() -> bytes:
    try:
        return Path("/proc/self/status").read_bytes()
    except OSError:
        return b""


def _number(text: bytes, name: bytes) -> int:
    at = text.find(name)
    return int(text[at + len(name) :].split(maxsplit=1)[0]) if at >= 0 else 0


@dataclass
class Part:
    """Blocks that the engine does in one go, and how far they are: a stage has one such part, or a few.

    Parameters
    ----------
    total : blocks; `before` of them were finished when it began, `again` of these by an earlier part of the same run
    done, retried, failed : blocks that were finished now; those among them that failed at first; those that failed for good
    workers_lost : workers that ended while blocks ran on them
    cells : of the cube that were made
    values : bytes of the values that receipts name, before they were compressed
    read, written : bytes that workers read from and wrote to files, so far as the system tells
    peak : bytes resident at the most in one worker process while it did these blocks; in this process since it began
    here : whether the process that asks does them itself
    failures : the first few blocks that failed, each with the reason
    """

    label: str
    total: int = 0
    before: int = 0
    again: int = 0
    done: int = 0
    retried: int = 0
    failed: int = 0
    workers_lost: int = 0
    cells: int = 0
    values: int = 0
    read: int = 0
    written: int = 0
    peak: int = 0
    here: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: float = math.nan

    @property
    def seconds(self) -> float:
        """Since it began, or that it took."""
        return (time.monotonic() if math.isnan(self.ended) else self.ended) - self.began

    @property
    def planned(self) -> int:
        """Its blocks that no earlier part of the same run did."""
        return self.total - self.again

    @property
    def skipped(self) -> int:
        """Blocks that an earlier run had finished."""
        return self.before - self.again

    @property
    def share(self) -> float:
        """Of its blocks that are finished, from 0 to 1."""
        return (self.before + self.done) / self.total if self.total else 1.0

    @property
    def blocks_per_second(self) -> float:
        return self.done / max(self.seconds, 1e-6)

    @property
    def cells_per_second(self) -> float:
        return self.cells / max(self.seconds, 1e-6)

    @property
    def seconds_left(self) -> float:
        """At the rate so far; NaN where nothing is done yet."""
        left = self.total - self.before - self.done
        return left / self.blocks_per_second if self.done else math.nan

    def uses(self, more: Used) -> None:
        """Add what a process used for some of the blocks."""
        self.peak = max(self.peak, more.peak)
        self.read += more.read
        self.written += more.written

    def fails(self, key: str, why: str) -> None:
        """Keep why a block failed, of the first few."""
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append((key, why))


class Watch(Protocol):
    """Who is told how blocks go, in the process that asks for them; each call must return at once."""

    def begins(self, part: Part) -> None: ...

    def moved(self, part: Part) -> None: ...

    def ends(self, part: Part) -> None: ...


class Unwatched:
    """A watch for who does not look."""

    def begins(self, part: Part) -> None:
        pass

    def moved(self, part: Part) -> None:
        pass

    def ends(self, part: Part) -> None:
        pass


class Receipted:
    """Bytes of the values that a block's receipts name; the layout of each array is read once.

    Parameters
    ----------
    root : of the stores that receipts name
    """

    def __init__(self, root: Place) -> None:
        self._root = root
        self._item: dict[tuple[str, str], int] = {}

    def bytes_of(self, result: Any) -> int:
        """Of one block's result, or of those of several stages."""
        return sum(self._bytes(receipt) for receipt in _receipts(result))

    def _bytes(self, receipt: Mapping[str, Any]) -> int:
        array = str(receipt["store"]), str(receipt["array"])
        if array not in self._item:
            self._item[array] = self._item_bytes(*array)
        return math.prod(stop - start for start, stop in receipt["region"]) * self._item[array]

    def _item_bytes(self, store: str, array: str) -> int:
        from smscale.store_inspection import read_array

        try:
            return read_array(self._root / store, array).item_bytes
        except (SmscaleError, OSError):  # it is counted, not needed
            return 0


def _receipts(result: Any) -> Iterator[Mapping[str, Any]]:
    """Receipts of a block's result, or of the results of several stages in it."""
    if isinstance(result, Mapping):
        for part in (result, *result.values()):
            written = part.get("written") if isinstance(part, Mapping) else None
            yield from written if isinstance(written, list) else ()
