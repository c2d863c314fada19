"""The object store itself, through obstore: how long it is waited for, and what it answers, in one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from smscale.errors import StoreError, Unreachable

if TYPE_CHECKING:
    from smscale.places.remote import Remote

SCHEME = "s3://"
#: Seconds until a connection stands; and until one request is sent and its answer begins, or goes on.
CONNECT_SECONDS, REQUEST_SECONDS = 5, 60
#: An answer that goes on and on is a large object on a thin line: it may take so long.
WHOLE_SECONDS = 900
#: A request that fails (5xx, a stall, a line cut) is sent again for so many seconds; so often at most.
RETRY_SECONDS, RETRIES = 120, 200
#: The first request of a command waits less: a wrong address is told within half a minute.
FIRST_SECONDS, FIRST_RETRIES, FIRST_RETRY_SECONDS = 10, 3, 15
#: So long may a write be under way that was begun: what is written after that was begun after that.
PENDING_SECONDS = RETRY_SECONDS + REQUEST_SECONDS


@lru_cache(maxsize=32)
def bucket(name: str, prefix: str = "", quick: bool = False) -> Any:
    """A bucket, or a prefix of it, of the server that the environment names; `quick` gives up soon."""
    library()
    from obstore.store import S3Store

    return S3Store(
        name,
        prefix=prefix or None,
        client_options={
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=FIRST_SECONDS if quick else REQUEST_SECONDS),
            "timeout": timedelta(seconds=FIRST_SECONDS if quick else WHOLE_SECONDS),
            "allow_http": _address().startswith("http://"),
        },
        retry_config={
            "max_retries": FIRST_RETRIES if quick else RETRIES,
            "retry_timeout": timedelta(seconds=FIRST_RETRY_SECONDS if quick else RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
    )


def zarr_root(where: Remote) -> Any:
    """The obstore store of a prefix, for Zarr."""
    return bucket(where.bucket, where.key)


def library() -> Any:
    """obstore, where it is installed."""
    try:
        import obstore
    except ImportError:
        raise StoreError("s3:// needs the package obstore: pip install obstore") from None
    return obstore


@contextmanager
def told(where: object) -> Iterator[None]:
    """What an object store answers, in one line without its debug output, which may show an access key.

    Raises
    ------
    FileNotFoundError
        for an object that is not there.
    Unreachable
        for everything else that it refuses.
    """
    obstore = library()
    try:
        yield
    except FileNotFoundError as error:
        if "<Code>NoSuchBucket<" in str(error):
            raise Unreachable(line(where, error)) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where)) from None
    except obstore.exceptions.BaseError as error:
        raise Unreachable(line(where, error)) from None


def line(where: object, error: Exception) -> str:
    """What went wrong, and what to do about it."""
    text, _, debug = str(error).partition("Debug source")
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    why = code.group(1) if code else status.group(1).strip() if status else ""
    server = re.sub("//[^/@]*@", "//", _address() or "AWS")
    if why == "NoSuchBucket":
        return f"{where}: there is no such bucket at {server}: create it, or correct AWS_ENDPOINT_URL"
    if "169.254.169.254" in text:
        return f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
    if why in _REFUSED or (status and status.group(1)[:3] in ("401", "403")):
        return f"{where}: the object store refuses ({why}): see what the keys in AWS_ACCESS_KEY_ID may do there"
    if why:
        return f"{where}: the object store at {server} answers {why}: see there, then run again: finished blocks stay finished"
    for sign, cause in _CAUSES.items():
        if sign in debug:
            return f"{where}: no answer from {server}: {cause}"
    return f"{where}: no answer from {server}: see AWS_ENDPOINT_URL and the network, then run again"


_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
#: What the debug output says of a line that does not stand, and what is told of it: none of its own words.
_CAUSES = {
    "InvalidCertificate": "its TLS certificate is not trusted here (SSL_CERT_FILE names authorities that are)",
    "failed to lookup address": "no such host is known: see AWS_ENDPOINT_URL and the network, then run again",
    "InvalidContentType": "it speaks no TLS: AWS_ENDPOINT_URL begins with http:// where that is meant",
    "ConnectionRefused": "nothing listens there: see AWS_ENDPOINT_URL and whether it runs, then run again",
}


def _address() -> str:
    """The address that the environment names; empty for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
