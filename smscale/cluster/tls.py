"""TLS between the parts of a cluster: the files that a profile names, and whether a scheduler answers, said in one line."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from smscale.cluster.profile import Profile, Tls
from smscale.errors import RecipeError

if TYPE_CHECKING:
    from distributed import Security

#: Between two tries to reach a scheduler that may be about to start.
AGAIN_SECONDS = 0.5
#: A dask scheduler speaks first; what says nothing for so long is asked whether it speaks TLS.
SPEAKS_SECONDS = 3.0


def security(tls: Tls | None, profile: Profile) -> Security:
    """What dask needs to speak TLS by a profile's files, or by those in dask's own settings.

    Raises
    ------
    RecipeError
        if a file is missing, cannot be read, or does not belong to the others.
    """
    from distributed import Security

    if tls is not None:
        ca, cert, key = (str(profile.resolve(path)) for path in (tls.ca, tls.cert, tls.key))
        made = Security(
            tls_ca_file=ca,
            require_encryption=True,
            **{
                f"tls_{role}_{what}": path
                for role in ("client", "scheduler", "worker")
                for what, path in (("cert", cert), ("key", key))
            },
        )
    else:
        made = Security(require_encryption=True)
    files = made.get_tls_config_for_role("client")
    if not files.get("ca_file") or not files.get("cert"):
        raise RecipeError(
            f"cluster {profile.name}: tls:// needs certificates: a profile with tls: {{ca, cert, key}}, "
            "or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like; `smscale certificates FOLDER` makes them"
        )
    context(made, profile)
    return made


def context(security: Security, profile: Profile) -> ssl.SSLContext:
    """The client's side, as dask makes it: certificates of the authority are trusted, whatever the host's name."""
    files = security.get_tls_config_for_role("client")
    given = (files["ca_file"], files["cert"], files.get("key") or files["cert"])
    for file in given:
        if "\n" not in file and not _readable(Path(file)):
            raise RecipeError(
                f"cluster {profile.name}: {file} cannot be read; `smscale certificates FOLDER` makes certificates"
            )
    try:
        made = security.get_connection_args("client")["ssl_context"]
    except (ssl.SSLError, OSError, ValueError) as error:
        raise RecipeError(
            f"cluster {profile.name}: {given[0]}, {given[1]} and {given[2]} are no authority, certificate and its key ({_said(error)})"
        ) from None
    return made  # type: ignore[no-any-return]


def reach(address: str, tls: ssl.SSLContext | None, timeout: float, name: str) -> None:
    """Return as soon as a dask scheduler answers.

    Raises
    ------
    RecipeError
        at once where waiting does not help (certificates, the wrong protocol), else after `timeout` seconds.
    """
    host, _, port = address.split("://")[1].rpartition(":")
    host, until, why = host.strip("[]"), time.monotonic() + timeout, "nothing answers"
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise RecipeError(f"cluster {name}: no scheduler at {address} within {timeout:g} s: {why}")
        try:
            with socket.create_connection((host, int(port)), timeout=max(left, 0.1)) as line:
                if _speaks(line, tls, min(left / 3, SPEAKS_SECONDS), f"cluster {name}: {address}", (host, int(port))):
                    return
                why = "what listens there is no dask scheduler"
        except (socket.gaierror, UnicodeError):
            why = f"no host {host} is known"
        except ConnectionRefusedError:
            why = "nothing listens there"
        except (TimeoutError, OSError) as error:
            why = _said(error)
        time.sleep(min(AGAIN_SECONDS, max(until - time.monotonic(), 0)))


def _speaks(
    line: socket.socket, tls: ssl.SSLContext | None, seconds: float, where: str, there: tuple[str, int]
) -> bool:
    """Whether a dask scheduler speaks at the other end; a refusal that stays is raised. Each of three waits takes `seconds`."""
    line.settimeout(seconds)
    if tls is None:
        with contextlib.suppress(TimeoutError):
            return _is_dask(line.recv(9))
        if _is_encrypted(there, seconds):
            raise RecipeError(f"{where}: the scheduler speaks TLS only: use tls:// with its certificates")
        return False
    try:
        with tls.wrap_socket(line, server_hostname=there[0]) as secret:
            return _is_dask(secret.recv(9))
    except ssl.SSLCertVerificationError as error:
        raise RecipeError(
            f"{where}: the scheduler's certificate is refused: {_verdict(error.verify_message)}"
        ) from None
    except ssl.SSLError as error:
        told = (error.reason or "").upper()
        if "ALERT" in told:  # the other end has read ours
            verdict = _verdict(told.rpartition("ALERT_")[2].replace("_", " ").lower())
            raise RecipeError(f"{where}: the scheduler refuses the certificate of this side: {verdict}") from None
        if "WRONG_VERSION" in told or "RECORD_LAYER" in told or "PACKET_LENGTH" in told:
            raise RecipeError(
                f"{where}: what listens there speaks no TLS: use tcp://, or start it with certificates"
            ) from None
        raise


def _is_encrypted(there: tuple[str, int], seconds: float) -> bool:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(there, timeout=seconds) as line, anyone.wrap_socket(line):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "").upper()
    except OSError:
        return False


def _is_dask(head: bytes) -> bool:
    """dask's first message begins with its length and its number of frames: a short one, in little-endian."""
    return len(head) > 4 and not any(head[4:8])


def _verdict(told: str) -> str:
    """What OpenSSL says of a certificate, with the cure."""
    told = told.strip()
    if "expired" in told:
        return f"{told}: make new ones with `smscale certificates`"
    if any(
        word in told for word in ("issuer", "unknown ca", "self-signed", "self signed", "decrypt error", "signature")
    ):
        return f"{told}: it is of another authority; both sides need certificates of one `smscale certificates`"
    return told


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def _said(error: Exception) -> str:
    told = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(told).split()) or type(error).__name__
