"""Files of an object store as files of this machine, for libraries that read nothing else: a bounded cache of each process.

Copies lie under the folder of temporary files (TMPDIR), in the tree that they have in their bucket, so that what lies beside a
file there lies beside it here. They go when the process ends; those of a killed one go when the next begins.
"""

from __future__ import annotations

import atexit
import errno
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from smscale import owners
from smscale.places.files import file_to_write
from smscale.places.names import Place, place
from smscale.places.remote import Found, Remote
from smscale.places.together import together

#: Bytes of copies that the processes of this machine keep together, beside those that they read at the moment.
KEPT = 2 << 30
#: Copies that a process fetches at the same time: large files share one line.
FETCHES = 4
_NAME = "smscale-copies"
_FULL = {errno.ENOSPC, errno.EDQUOT}


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
    with ExitStack() as given_back:
        for file in remote:
            _COPIES.reads(file)
            given_back.callback(_COPIES.give_back, file)
        held = dict(
            zip(remote, together(_COPIES.fetch, remote, remote[0] if len(remote) > 1 else "", FETCHES), strict=True)
        )
        yield [held[file] if isinstance(file, Remote) else Path(str(file)) for file in wanted]


class _Copies:
    """Copies by place, the one that was read longest ago first; what is read now stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: Path | None = None
        self._kept: OrderedDict[Remote, Found] = OrderedDict()
        self._readers: dict[Remote, int] = {}

    def reads(self, file: Remote) -> None:
        """It is read until it is given back."""
        with self._lock:
            self._readers[file] = self._readers.get(file, 0) + 1

    def give_back(self, file: Remote) -> None:
        """It is read no more."""
        with self._lock:
            self._readers[file] -= 1
            if not self._readers[file]:
                del self._readers[file]
            self._make_room(self._share())

    def fetch(self, file: Remote) -> Path:
        """A copy of the object as it is now, of one that is read."""
        now = Remote(file.bucket, file.key).stat()
        with self._lock:
            path = self._path(file)
            fresh = self._kept.get(file) == now
        if not fresh:
            try:
                _download(file, path)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                with self._lock:  # once more, without what nobody reads
                    self._make_room(0)
                _download(file, path)
        with self._lock:
            self._kept[file] = now
            self._kept.move_to_end(file)
            self._make_room(self._share())
        return path

    def _make_room(self, most: int) -> None:
        size = sum(found.st_size for found in self._kept.values())
        for file in [f for f in self._kept if f not in self._readers]:
            if size <= most:
                return
            size -= self._kept.pop(file).st_size
            self._path(file).unlink(missing_ok=True)

    def _share(self) -> int:
        """Bytes that this process may keep, of those of its machine."""
        others = Path(tempfile.gettempdir()).glob(f"{_NAME}-{owners.machine()}-*")
        return KEPT // max(1, sum(1 for _ in others))

    def _path(self, file: Remote) -> Path:
        return self._folder() / file.bucket / file.key

    def _folder(self) -> Path:
        """The folder of this process; those of processes of this machine that are gone are removed when it is made."""
        if self._root is None:
            for left in Path(tempfile.gettempdir()).glob(f"{_NAME}-*"):
                if owners.is_gone(left.name.removeprefix(f"{_NAME}-").rpartition("-")[0]):
                    shutil.rmtree(left, ignore_errors=True)
            self._root = Path(tempfile.mkdtemp(prefix=f"{_NAME}-{owners.this_process()}-"))
            atexit.register(self._end)
        return self._root

    def _end(self) -> None:
        with suppress(OSError):
            shutil.rmtree(str(self._root), ignore_errors=True)


def _download(file: Remote, path: Path) -> None:
    with file_to_write(path) as half:
        file.download(half)


_COPIES = _Copies()
