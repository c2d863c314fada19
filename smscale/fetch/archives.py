"""What an archive holds: NASA's Common Metadata Repository (CMR), and the public bucket of Copernicus GLO-30.

CMR's search needs no login. What is used of it: granules.umm_json with short_name, version, temporal and
readable_granule_name; pages follow by the header CMR-Search-After; a granule is UMM-G (RelatedUrls, DataGranule).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import requests

from smscale.errors import InputError
from smscale.fetch.patience import Patience, Unreachable, get

CMR_URL = "https://cmr.earthdata.nasa.gov/search"
#: Granules of one page (CMR's largest), names of one query (its address must stay short), seconds to wait for an answer.
PAGE_SIZE, NAMES_PER_QUERY, ANSWER_WITHIN = 2000, 40, 180
#: What hashlib calls CMR's checksum algorithms.
_ALGORITHMS = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}


@dataclass(frozen=True)
class Remote:
    """One file of an archive; `size` in bytes and `checksum` (hashlib's name, hex digits) where the archive says them."""

    url: str
    name: str
    size: int | None = None
    checksum: tuple[str, str] | None = None
    login: bool = False


@dataclass(frozen=True)
class Wanted:
    """What is asked for: a collection by short name and version, ISO days `first` to `last` (both empty: all times), names
    with `*`."""

    short_name: str
    version: str
    first: str = ""
    last: str = ""
    names: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = (".hdf", ".h5")


class Archive(Protocol):
    """Something that can be asked for files."""

    def search(self, wanted: Wanted) -> list[Remote]:
        """The files that it holds of what is wanted."""
        ...


@dataclass(frozen=True)
class Cmr:
    """NASA's Common Metadata Repository."""

    url: str = field(default_factory=lambda: os.environ.get("SMSCALE_CMR_URL", CMR_URL))
    patience: Patience = field(default_factory=Patience)

    def search(self, wanted: Wanted) -> list[Remote]:
        """Files of the granules that match, each name once.

        Raises
        ------
        InputError
            if it cannot be reached, or answers something else than granules.
        """
        found: dict[str, Remote] = {}
        with requests.Session() as session:
            for query in _queries(wanted):
                for granule in self._granules(session, query):
                    for remote in _remotes(granule, wanted.suffixes):
                        found.setdefault(remote.name, remote)
        return list(found.values())

    def _granules(self, session: requests.Session, query: Sequence[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
        after: str | None = None
        while True:
            page, after = self._page(session, query, after)
            yield from page
            if not page or after is None:
                return

    def _page(
        self, session: requests.Session, query: Sequence[tuple[str, str]], after: str | None
    ) -> tuple[list[Mapping[str, Any]], str | None]:
        address = f"{self.url}/granules.umm_json"
        headers = {"CMR-Search-After": after} if after else {}
        try:
            answer = get(session, address, self.patience, params=list(query), headers=headers, timeout=ANSWER_WITHIN)
        except Unreachable as error:
            raise InputError(f"{self.url}: the archive's search cannot be reached ({error}): try again later") from None
        if answer.status_code != 200:
            raise InputError(
                f"{address}: the search answered {answer.status_code} {' '.join(answer.text[:200].split())}"
            )
        try:
            items = answer.json()["items"]
            return [item["umm"] for item in items], answer.headers.get("CMR-Search-After")
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{address}: the search answered no list of granules: is it CMR's address?") from None


def _queries(wanted: Wanted) -> Iterator[list[tuple[str, str]]]:
    """Parameters of the queries: names in groups, since an address must stay short."""
    query = [("short_name", wanted.short_name), ("version", wanted.version), ("page_size", str(PAGE_SIZE))]
    if wanted.first:
        query.append(("temporal[]", f"{wanted.first}T00:00:00Z,{wanted.last}T23:59:59Z"))
    if not wanted.names:
        yield query
    for i in range(0, len(wanted.names), NAMES_PER_QUERY):
        names = [("readable_granule_name[]", name) for name in wanted.names[i : i + NAMES_PER_QUERY]]
        yield [*query, *names, ("options[readable_granule_name][pattern]", "true")]


def _remotes(granule: Mapping[str, Any], suffixes: tuple[str, ...]) -> Iterator[Remote]:
    """The data files of one UMM-G granule."""
    described = granule.get("DataGranule", {}).get("ArchiveAndDistributionInformation") or []
    for link in granule.get("RelatedUrls") or []:
        url = str(link.get("URL", ""))
        name = url.rsplit("/", 1)[-1]
        if link.get("Type") == "GET DATA" and url.startswith(("https://", "http://")) and name.endswith(suffixes):
            facts = _facts_of(name, described)
            yield Remote(url, name, _size(facts), _checksum(facts), login=True)


def _facts_of(name: str, described: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry of a file by its name; an only entry without a name is that of the only file."""
    for facts in described:
        if facts.get("Name") == name:
            return facts
    only = described[0] if len(described) == 1 else {}
    return only if only.get("Name") in (None, "Not provided") else {}


def _size(facts: Mapping[str, Any]) -> int | None:
    """Bytes, where they are exact: Size in MB is rounded."""
    return int(facts["SizeInBytes"]) if facts.get("SizeInBytes") else None


def _checksum(facts: Mapping[str, Any]) -> tuple[str, str] | None:
    checksum = facts.get("Checksum") or {}
    algorithm = _ALGORITHMS.get(str(checksum.get("Algorithm", "")))
    return (algorithm, str(checksum["Value"]).lower()) if algorithm and checksum.get("Value") else None


@dataclass(frozen=True)
class Copernicus:
    """The public bucket of Copernicus GLO-30: an address for each 1 degree tile; there is none where there is only sea."""

    url: str

    @classmethod
    def at(cls, default: str) -> Copernicus:
        """At `default`, or where SMSCALE_COPERNICUS_URL says."""
        return cls(os.environ.get("SMSCALE_COPERNICUS_URL", default))

    def search(self, wanted: Wanted) -> list[Remote]:
        """The addresses of tiles by the names of their south-western corners, as N30E103. Nothing is asked of the bucket."""
        return [self._remote(tile) for tile in wanted.names]

    def _remote(self, tile: str) -> Remote:
        name = f"Copernicus_DSM_COG_10_{tile[:3]}_00_{tile[3:]}_00_DEM"
        return Remote(f"{self.url}/{name}/{name}.tif", f"{name}.tif")
