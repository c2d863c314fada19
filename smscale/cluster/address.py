"""A scheduler that runs already."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from smscale.cluster import tls
from smscale.cluster.profile import Address, seconds
from smscale.cluster.start import Need, Started, wanted
from smscale.errors import RecipeError


@contextmanager
def join(profile: Address, need: Need) -> Iterator[Started]:
    """Join it; it goes on when the run ends."""
    from distributed import Client

    security = tls.security(profile.tls, profile) if profile.address.startswith("tls://") else None
    until = time.monotonic() + seconds(profile.connect_timeout)
    tls.reach(
        profile.address,
        tls.context(security, profile) if security else None,
        seconds(profile.connect_timeout),
        profile.name,
    )
    try:
        with Client(profile.address, security=security, timeout=max(until - time.monotonic(), 1)):
            pass
        # A client's own time-out is also how long it looks for a scheduler that went away.
        client = Client(profile.address, security=security, timeout=seconds(profile.lost_timeout))
    except (OSError, TimeoutError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"cluster {profile.name}: no dask scheduler answers at {profile.address}: {told}") from None
    with client:
        # The recipe's number of workers is for places that make them: here the profile's alone counts.
        least = wanted(profile, Need(None, need.memory)).min
        yield Started(client, least, lambda: f"start them with: dask worker {profile.address} --nthreads 1")
