"""NASA Earthdata Login: a token in EARTHDATA_TOKEN, or name and password in ~/.netrc.

A token goes with the first request to the archive and not to where that redirects (requests drops it when the host
changes): archives hand out signed addresses. With ~/.netrc the archive redirects to urs.earthdata.nasa.gov, where requests
itself gives name and password.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from requests.utils import get_netrc_auth

URS = "urs.earthdata.nasa.gov"
HOW = (
    "set EARTHDATA_TOKEN (https://urs.earthdata.nasa.gov, Generate Token), or put the line "
    f"'machine {URS} login NAME password WORD' into ~/.netrc"
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Whom the token is for.
_TRUSTED = ".nasa.gov"


@dataclass(frozen=True)
class Login(requests.auth.AuthBase):
    """A bearer token; without one, whatever ~/.netrc holds."""

    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Login:
        """The token of EARTHDATA_TOKEN, if it is set."""
        return cls((os.environ.get("EARTHDATA_TOKEN") or "").strip() or None)

    @property
    def known(self) -> bool:
        """Is there a token, or an entry in ~/.netrc (or the file that NETRC names)."""
        return self.token is not None or get_netrc_auth(f"https://{URS}") is not None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token: for NASA's hosts, and encrypted; or for this machine."""
        where = urlsplit(request.url or "")
        host = where.hostname or ""
        if self.token and (host in _LOOPBACK or (where.scheme == "https" and host.endswith(_TRUSTED))):
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request
