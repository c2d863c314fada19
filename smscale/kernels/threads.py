"""As many threads as BLAS has: what a worker was given, by its environment or by `threadpool_limits`, holds for kernels too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def blas_threads() -> int:
    """Threads of BLAS; 1 where there is none."""
    return max((pool["num_threads"] for pool in _blas().info()), default=1)


def in_threads(work: Callable[[Any], object], parts: Iterable[Any], *, uses_blas: bool = False) -> None:
    """Do the work on each part, as many at once as BLAS has threads, which it gives up meanwhile if the work uses it."""
    parts = list(parts)
    threads = min(blas_threads(), len(parts)) if len(parts) > 1 else 1
    if threads == 1:
        for part in parts:
            work(part)
        return
    given_up = _blas().limit(limits=1) if uses_blas else nullcontext()
    with given_up, ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


def one_blas_thread() -> AbstractContextManager[object]:
    """BLAS with one thread: how many share a factorisation or a product changes its rounding."""
    return _blas().limit(limits=1)


@cache
def _blas() -> ThreadpoolController:
    """BLAS of NumPy, which is loaded by then; to find libraries takes a millisecond, to ask them none."""
    return ThreadpoolController().select(user_api="blas")
