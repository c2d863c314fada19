"""Files of an object store as files of this machine, for libraries that read nothing else: a bounded cache of each process.

Copies lie under the folder of temporary files (TMPDIR), in the tree that they have in their bucket, so that what lies beside a
file there lies beside it here. They go when the process ends; those of a killed one go when the next begins.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from smscale.places import Found, Place, Remote, place, together

#: Bytes of copies that a process keeps beside those that it reads at the moment.
KEPT = 2 << 30
_NAME = "smscale-copies"


@contextmanager
def local_copies(files: Sequence[str | Place]) -> Iterator[list[Path]]:
    """Paths of files of this machine with the same contents and names: themselves, or copies that stay for the block.

    Raises
    ------
    FileNotFoundError, Unreachable
        where one cannot be had.
    """
    wanted = [place(file) for file in files]
    remote = [file for file in dict.fromkeys(wanted) if isinstance(file, Remote)]
    held = dict(zip(remote, together(_COPIES.take, remote, remote=len(remote) > 1), strict=True))
    try:
        yield [held[file] if isinstance(file, Remote) else Path(str(file)) for file in wanted]
    finally:
        for file in remote:
            _COPIES.give_back(file)


class _Copies:
    """Copies by place, the one that was read longest ago first; what is read now stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: Path | None = None
        self._kept: OrderedDict[Remote, Found] = OrderedDict()
        self._readers: dict[Remote, int] = {}

    def take(self, file: Remote) -> Path:
        """A copy of the object as it is now."""
        with self._lock:
            self._readers[file] = self._readers.get(file, 0) + 1
        try:
            now = Remote(file.bucket, file.key).stat()
            with self._lock:
                path = self._folder() / file.bucket / file.key
                fresh = self._kept.get(file) == now
            if not fresh:
                path.parent.mkdir(parents=True, exist_ok=True)
                half = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
                file.download(half)
                half.replace(path)
            with self._lock:
                self._kept[file] = now
                self._kept.move_to_end(file)
                self._make_room()
            return path
        except BaseException:
            self.give_back(file)
            raise

    def give_back(self, file: Remote) -> None:
        """It is read no more."""
        with self._lock:
            self._readers[file] -= 1
            if not self._readers[file]:
                del self._readers[file]
            self._make_room()

    def _make_room(self) -> None:
        size = sum(found.st_size for found in self._kept.values())
        for file in [f for f in self._kept if f not in self._readers]:
            if size <= KEPT:
                return
            size -= self._kept.pop(file).st_size
            (self._folder() / file.bucket / file.key).unlink(missing_ok=True)

    def _folder(self) -> Path:
        """The folder of this process; those of processes that are gone are removed when it is made."""
        if self._root is None:
            for left in Path(tempfile.gettempdir()).glob(f"{_NAME}-*"):
                owner = re.fullmatch(rf"{_NAME}-(\d+)-.*", left.name)
                if owner and not Path(f"/proc/{owner.group(1)}").exists() and Path("/proc/self").exists():
                    shutil.rmtree(left, ignore_errors=True)
            self._root = Path(tempfile.mkdtemp(prefix=f"{_NAME}-{os.getpid()}-"))
            atexit.register(self._end)
        return self._root

    def _end(self) -> None:
        with suppress(OSError):
            shutil.rmtree(str(self._root), ignore_errors=True)


_COPIES = _Copies()
