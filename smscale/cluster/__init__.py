"""The one package that makes or joins a dask cluster: on this machine, at an address, under Slurm, in Kubernetes.

Where the workers are is said by a profile (`smscale.cluster.profile`), never by a recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from smscale.cluster import profile as profiles
from smscale.cluster.local import default_workers
from smscale.cluster.profile import Address, Kubernetes, Local, Profile, Slurm
from smscale.cluster.start import Need, Started, await_workers, settings

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["connect", "default_workers", "when_needed"]


@contextmanager
def connect(
    where: str = "local",
    workers: int | None = None,
    memory_per_worker: str = "1.5GiB",
    say: Callable[[str], Any] = lambda text: None,
) -> Iterator[Client]:
    """A client of the cluster that `where` names; what was made for it ends with the context.

    Parameters
    ----------
    where : an address of a scheduler, or the name or file of a profile
    workers, memory_per_worker : what the recipe asks for
    say : is given a line where workers must be awaited, and one when they are there

    Raises
    ------
    RecipeError
        in one line within the profile's time-outs, if there is no such cluster or it does not give what is asked for.
    """
    import dask
    import distributed  # noqa: F401  before the settings: what it adds to dask's would go with them

    profile, need = profiles.read(where), Need(workers, memory_per_worker)
    with dask.config.set(settings(profile)), _silent(), _open(profile, need) as started:
        if not isinstance(profile, Local):
            say(f"cluster    {profile.name}: waits for {_some(started.least)}, at most {profile.start_timeout}\n")
        there = await_workers(started, profile, need)
        shown = getattr(profile, "dashboard", None) or isinstance(profile, Address | Kubernetes)
        link = f", dashboard {started.client.dashboard_link}" if shown and started.client.dashboard_link else ""
        if link or not isinstance(profile, Local):
            say(f"cluster    {profile.name}: {_some(there)}{link}\n")
        yield started.client


@contextmanager
def when_needed(
    where: str | None,
    workers: int | None,
    memory_per_worker: str,
    say: Callable[[str], Any] = lambda text: None,
) -> Iterator[Callable[[], Client | None]]:
    """A function that connects when it is first called; what it made ends with the context. None as `where`: no cluster.

    A profile that is wrong is refused at once.
    """
    if where is not None:
        profiles.read(where)
    with ExitStack() as stack:
        made: list[Client] = []

        def client() -> Client | None:
            if where is not None and not made:
                made.append(stack.enter_context(connect(where, workers, memory_per_worker, say)))
            return made[0] if made else None

        yield client


def _open(profile: Profile, need: Need) -> AbstractContextManager[Started]:
    if isinstance(profile, Address):
        from smscale.cluster.address import join

        return join(profile, need)
    if isinstance(profile, Slurm):
        from smscale.cluster.slurm import submit

        return submit(profile, need)
    if isinstance(profile, Kubernetes):
        from smscale.cluster.kubernetes import create

        return create(profile, need)
    from smscale.cluster.local import make

    assert isinstance(profile, Local)
    return make(profile, need)


@contextmanager
def _silent() -> Iterator[None]:
    """Without dask's own messages: what matters of them is told in one line."""
    import distributed  # noqa: F401 - its handlers are made on import

    handlers = {handler: handler.level for handler in logging.getLogger("distributed").handlers}
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in handlers.items():
            handler.setLevel(level)


def _some(n: int) -> str:
    return f"{n} worker{'s' if n != 1 else ''}"
