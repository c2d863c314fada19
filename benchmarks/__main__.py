"""Run benchmarks: all but the long ones, or those named, each with sizes of its own: `python -m benchmarks engine n=1000 lm`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from typing import Any

import benchmarks

#: Many minutes, or gigabytes: only where they are named.
LONG = ("season", "stations_at_scale")


def names() -> list[str]:
    """Benchmark modules: those with a `main`."""
    found = [m.name for m in iter_modules(benchmarks.__path__) if m.name != "__main__"]
    return [name for name in found if hasattr(import_module(f"benchmarks.{name}"), "main")]


def asked(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Names, each with the sizes that follow it.

    Raises
    ------
    ValueError
        in one line: an unknown name, or a size that the benchmark does not take.
    """
    known, found = names(), list[tuple[str, dict[str, Any]]]()
    for word in words:
        size, given, value = word.partition("=")
        if not given:
            if word not in known:
                raise ValueError(f"no benchmark {word}; there are {', '.join(known)}")
            found.append((word, {}))
        elif not found:
            raise ValueError(f"{word}: name a benchmark before its sizes")
        else:
            name, sizes = found[-1]
            sizes[size] = _sized(name, size, value)
    return found or [(name, {}) for name in known if name not in LONG]


def _sized(name: str, size: str, value: str) -> Any:
    """A size as the benchmark takes it: of the kind of its default."""
    taken = signature(import_module(f"benchmarks.{name}").main).parameters
    if size not in taken:
        raise ValueError(f"{name} has no size {size}; it has {', '.join(taken) or 'none'}")
    kind = type(taken[size].default)
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} {size}={value}: expected a number, as {taken[size].default}") from None


def run(words: Sequence[str]) -> int:
    """Run what is asked for; 2 if that cannot be."""
    try:
        chosen = asked(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, sizes in chosen:
        import_module(f"benchmarks.{name}").main(**sizes)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
