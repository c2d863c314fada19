"""Trying again: which failures pass, and how long to wait for that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

#: Answers that may be others in a moment (RFC 9110, RFC 6585).
PASSING = (408, 425, 429, 500, 502, 503, 504)


class Unreachable(Exception):
    """No answer, or only passing errors, however often it was tried."""


@dataclass(frozen=True)
class Patience:
    """`tries` in all; seconds between them double from `first` up to `longest`, with some chance in them."""

    tries: int = 5
    first: float = 1.0
    longest: float = 60.0
    sleep: Callable[[float], Any] = field(default=time.sleep, repr=False, compare=False)

    def wait(self, tried: int, asked: str | None = None) -> None:
        """Wait before the next try; `asked` is what the server's Retry-After says, in seconds or as a date (then ignored)."""
        pause = min(self.first * 2.0 ** (tried - 1), self.longest) * (0.75 + 0.5 * random.random())  # not for results
        if asked and asked.strip().isdigit():
            pause = min(float(asked), self.longest)
        self.sleep(pause)


def get(session: requests.Session, url: str, patience: Patience, **options: Any) -> requests.Response:
    """A GET that tries again where a failure may pass.

    Raises
    ------
    Unreachable
        when the last try failed too.
    """
    reason = ""
    for tried in range(1, patience.tries + 1):
        try:
            answer = session.get(url, **options)
        except requests.RequestException as error:
            reason, asked = reason_of(error), None
        else:
            if answer.status_code not in PASSING:
                return answer
            reason, asked = f"{answer.status_code} {answer.reason}", answer.headers.get("Retry-After")
            answer.close()
        if tried < patience.tries:
            patience.wait(tried, asked)
    raise Unreachable(reason)


def reason_of(error: Exception) -> str:
    """The innermost cause in one line: requests wraps urllib3 wraps the system."""
    while error.__context__ is not None or error.__cause__ is not None:
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            break
        error = inner
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
