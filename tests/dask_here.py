"""Schedulers and workers in this process, begun and ended one by one: what a test does to a cluster."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Scheduler, Security, Worker


class Dask:
    """An event loop in a thread of its own, and what runs on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.running: list[Any] = []
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def scheduler(self, security: Security | None = None, port: int = 0) -> Any:
        protocol = "tls" if security else "tcp"
        options = {"host": "127.0.0.1", "port": port, "protocol": protocol, "dashboard_address": "127.0.0.1:0"}
        return self._begin(Scheduler, dashboard=False, security=security, **options)

    def worker(self, scheduler: Any, **options: Any) -> Any:
        return self._begin(Worker, scheduler.address, **{"nthreads": 1, "memory_limit": "2GiB", **options})

    def end(self, one: Any) -> None:
        self.running.remove(one)
        self.do(one.close())

    def _begin(self, kind: type, *args: Any, **options: Any) -> Any:
        async def begin() -> Any:
            return await kind(*args, **options)

        self.running.append(self.do(begin()))
        return self.running[-1]


@contextmanager
def dask_here() -> Iterator[Dask]:
    here = Dask()
    try:
        yield here
    finally:
        for one in reversed(here.running[:]):
            here.end(one)
        here.loop.call_soon_threadsafe(here.loop.stop)
