"""Many requests at once, where each waits for an object store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from smscale.places.names import Place, is_remote

#: Objects that one process asks for at the same time: a request waits for the network, not for a core.
REQUESTS = 32

Given = TypeVar("Given")
Result = TypeVar("Result")


def together(
    call: Callable[[Given], Result], items: Iterable[Given], where: Place | str, most: int = REQUESTS
) -> Iterator[Result]:
    """Results in the order of the items; `most` at a time if `where` each one waits is an object store, else one by one."""
    if not is_remote(where):
        yield from map(call, items)
        return
    flying: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(most) as pool:  # what was begun is done, also where the items or the caller stop
        for item in items:
            flying.append(pool.submit(call, item))
            while flying and (flying[0].done() or len(flying) >= 2 * most):
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


def read_many(files: Iterable[Place]) -> Iterator[bytes | None]:
    """Contents of small files of one place, None of those that are not there."""
    rest = iter(files)
    for first in rest:
        yield from together(_bytes_or_none, chain([first], rest), first)


def _bytes_or_none(path: Place) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
