"""As many threads as BLAS has: what a worker was given, by its environment or by `threadpool_limits`, holds for kernels too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np  # noqa: F401  # brings the BLAS that is asked for
from threadpoolctl import ThreadpoolController


def blas_threads() -> int:
    """Threads of BLAS; 1 where there is none."""
    return max((pool["num_threads"] for pool in _blas().info()), default=1)


def in_threads(work: Callable[[Any], object], parts: Iterable[Any], *, uses_blas: bool = False) -> None:
    """Do the work on each part, as many at once as BLAS has threads, which it gives up meanwhile if the work uses it."""
    parts = list(parts)
    threads = min(blas_threads(), len(parts)) if len(parts) > 1 else 1
    with one_blas_thread() if uses_blas else nullcontext():
        if threads == 1:
            for part in parts:
                work(part)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))


def one_blas_thread() -> AbstractContextManager[object]:
    """BLAS with one thread: how many share a factorisation or a product changes its rounding."""
    return _alone.held()


class Shared:
    """A state of the process that several threads want at once: the first sets it, the last puts back what was.

    `set_state` gets a stack for what puts it back.
    """

    def __init__(self, set_state: Callable[[ExitStack], None]):
        self._set_state = set_state
        self._lock = threading.Lock()
        self._undo = ExitStack()
        self.users = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """The state, for the time of a block."""
        with self._lock:
            if self.users == 0:
                self._set_state(self._undo)
            self.users += 1
        try:
            yield
        finally:
            with self._lock:
                self.users -= 1
                if self.users == 0:
                    self._undo.close()

    def take(self) -> None:
        """The state for good, in a process that ends with the work; nothing where it is held."""
        with self._lock:
            if self.users == 0:
                self._set_state(self._undo)


def _limit(undo: ExitStack) -> None:
    _take_over()
    limits = _blas().limit(limits=1)
    undo.callback(limits.restore_original_limits)
    undo.callback(_take_over)


def _take_over() -> None:
    """Threadpoolctl (3.8) heeds one thread of Python alone and no other; ours take turns, and the last puts back."""
    for library in _blas().lib_controllers:
        getattr(library, "clear_controlling_thread", lambda force: None)(force=True)


_alone = Shared(_limit)


@cache
def _blas() -> ThreadpoolController:
    """BLAS of NumPy; to find libraries takes a millisecond, to ask them none."""
    return ThreadpoolController().select(user_api="blas")
