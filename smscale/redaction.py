"""Text without secrets: what is written into recipes, logs, reports and the ledger goes through here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

#: What stands in a secret's place.
HIDDEN = "***"
#: Environment variables that hold one, by name (AWS_SECRET_ACCESS_KEY, EARTHDATA_TOKEN, …), unless they say where it lies.
_HOLDS_ONE = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SAYS_WHERE = re.compile(r"(FILE|PATH|DIR|URL|URI)$", re.IGNORECASE)
#: Shorter values are found inside of other words, and are no secret worth the name.
_SHORTEST = 8
#: Who asks, in front of a URL's host. A key of Amazon's may hold slashes.
_USER = re.compile(r"(?<=://)[^\s@?#'\"<>/:]*:[^\s@?#'\"<>]*@|(?<=://)[^\s@?#'\"<>/]+@")
#: What proves it, behind a URL's path: by its name, or since it is too long for a word.
_PROOF = re.compile(
    r"([?&](?:x-amz-[\w-]+|sig|signature|token|key|secret|password|auth|[\w-]*(?:token|secret|password|signature|credential|key)[\w-]*)=)"
    r"[^&\s'\"<>]+|([?&][\w.-]+=)[^&\s'\"<>]{24,}",
    re.IGNORECASE,
)
#: The header that does the same, as libraries show it in their errors.
_HEADER = re.compile(r"\b(bearer|authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)?)\s*[\w.+/=~-]{8,}", re.IGNORECASE)

Value = TypeVar("Value")


def redacted(text: str) -> str:
    """Text without what stands before the host of URLs, their signatures, authorisation headers, and secrets of the environment.

    Examples
    --------
    >>> redacted("GET https://me:hush@host.org/a.h5?X-Amz-Signature=AbC failed")
    'GET https://***@host.org/a.h5?X-Amz-Signature=*** failed'
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _is_secret(name, value):
            text = text.replace(value, HIDDEN)
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _PROOF.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)
    return _HEADER.sub(rf"\1 {HIDDEN}", text)


def redacted_values(values: Value) -> Value:
    """Plain values (mappings, sequences, texts) with every text redacted."""
    return _redacted(values)  # type: ignore[no-any-return]


def _is_secret(name: str, value: str) -> bool:
    return bool(_HOLDS_ONE.search(name)) and not _SAYS_WHERE.search(name) and not os.path.exists(value)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return value
