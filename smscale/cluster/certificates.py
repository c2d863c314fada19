"""Certificates for a cluster: an authority of one's own and one certificate for all its hosts, by OpenSSL's command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smscale.cluster.profile import Tls
from smscale.errors import RecipeError, StoreError

#: What `make` writes: the authority and a host's certificate, each with its key.
CA, CA_KEY, CERT, KEY = "ca.pem", "ca.key", "host.pem", "host.key"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
#: It takes a moment, where the machine has randomness to give.
OPENSSL_SECONDS = 60.0
#: Longest validity that is made.
MOST_DAYS = 3650


def make(folder: Path, days: int = 30, hosts: Sequence[str] = ()) -> Tls:
    """Write an authority, and a certificate of it that every scheduler, worker and client of a cluster uses.

    Parameters
    ----------
    folder : is made where it is not there; keys in it can be read by their owner alone
    days : of validity of both
    hosts : names and addresses to write into the certificate; dask itself trusts the authority, whatever the name

    Raises
    ------
    StoreError
        if the folder holds certificates already, or cannot be written.
    RecipeError
        if OpenSSL's command is not there, or a host or the days make no sense.
    """
    if shutil.which("openssl") is None:
        raise RecipeError("certificates: the command openssl is not on PATH: install it")
    if not 1 <= days <= MOST_DAYS:
        raise RecipeError(f"certificates: --days {days}: expected 1 to {MOST_DAYS}")
    names = ",".join(_subject(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts)))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = [name for name in (CA, CA_KEY, CERT, KEY) if (folder / name).exists()]
        if held:
            raise StoreError(f"{folder} holds {held[0]} already: name another folder, or remove it")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:  # mode 0700, as are its files' keys
            _sign(Path(scratch), days, names)
            for name in (CA_KEY, KEY, CA, CERT):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        raise StoreError(f"{folder}: certificates cannot be written ({error.strerror}): name another folder") from None
    return Tls(*(str(folder / name) for name in (CA, CERT, KEY)))


def _sign(folder: Path, days: int, names: str) -> None:
    valid = ("-days", str(days))
    _openssl(
        folder,
        *("req", "-x509", *CURVE, *valid, "-subj", "/CN=smscale cluster authority", "-keyout", CA_KEY, "-out", CA),
        *("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    _openssl(folder, "req", *CURVE, "-subj", "/CN=smscale cluster host", "-keyout", KEY, "-out", "host.csr")
    extensions = f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n"
    (folder / "host.ext").write_text(extensions)
    signing = ("-CA", CA, "-CAkey", CA_KEY, "-CAcreateserial", "-extfile", "host.ext")
    _openssl(folder, "x509", "-req", "-in", "host.csr", *signing, *valid, "-out", CERT)
    for name in (CA_KEY, KEY):
        (folder / name).chmod(0o600)


def _openssl(folder: Path, *arguments: str) -> None:
    command = ["openssl", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=OPENSSL_SECONDS, umask=0o077)
    except subprocess.TimeoutExpired:
        raise RecipeError(f"certificates: openssl {arguments[0]} did not end within {OPENSSL_SECONDS:.0f} s") from None
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise RecipeError(f"certificates: openssl {arguments[0]} failed: {told[-1] if told else done.returncode}")


def _subject(host: str) -> str:
    if not re.fullmatch(r"[\w.*:-]+", host):
        raise RecipeError(f"certificates: --host {host!r}: expected a host's name or address")
    return f"IP:{host}" if re.fullmatch(r"[\d.]+|[0-9a-fA-F]*:[0-9a-fA-F:]+", host) else f"DNS:{host}"
